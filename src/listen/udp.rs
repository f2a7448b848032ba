//! The UDP door: threads that answer what needs no waiting on the spot, a batch at a time.
//!
//! Every worker has a socket of its own for every address; the kernel spreads the clients over them. What has
//! to wait for an upstream is answered by the thread that hears what it says.

use std::{
    io::{self, PipeReader, PipeWriter},
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio_util::task::TaskTracker;

use super::{
    House,
    introduction::{Introduction, introduce},
};
use crate::{
    audit::Transport,
    gateway::{Step, Waiting},
    sys::datagram::{BATCH, Batch, Datagram, Local, send_from},
};

/// Batches taken from one socket before the worker looks at its others and at whether to stop.
const ROUNDS: usize = 8;

/// How long a worker rests after an error that would come back at once.
const PAUSE: Duration = Duration::from_millis(10);

/// The threads of the UDP door.
#[derive(Debug)]
pub(super) struct Workers {
    /// All workers watch the other end, which tells when this one is gone.
    stop: PipeWriter,
    threads: Vec<JoinHandle<()>>,
}

/// One thread's world.
#[derive(Debug)]
struct Worker {
    sockets: Vec<Arc<UdpSocket>>,
    stop: PipeReader,
    house: House,
    tasks: TaskTracker,
}

/// Starts a worker for every socket of an address; `addresses` have equally many.
pub(super) fn serve(addresses: Vec<Vec<UdpSocket>>, house: House, tasks: &TaskTracker) -> io::Result<Workers> {
    let (stopped, stop) = io::pipe()?;
    let mut shares: Vec<Vec<Arc<UdpSocket>>> = Vec::new();
    for sockets in addresses {
        shares.resize(shares.len().max(sockets.len()), Vec::new());
        for (share, socket) in shares.iter_mut().zip(sockets) {
            share.push(Arc::new(socket));
        }
    }
    let mut workers = Workers { stop, threads: Vec::new() };
    for (number, sockets) in shares.into_iter().enumerate() {
        let worker = Worker { sockets, stop: stopped.try_clone()?, house: house.clone(), tasks: tasks.clone() };
        workers.threads.push(thread::Builder::new().name(format!("udp-{number}")).spawn(move || worker.work())?);
    }
    Ok(workers)
}

impl Workers {
    /// Has every worker finish its batch and end.
    pub(super) async fn stop(self) {
        drop(self.stop);
        let threads = self.threads;
        // A worker's panics were counted when they happened.
        let joined = tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join())));
        let _ = joined.await;
    }
}

impl Worker {
    /// Works until told to stop. A panic costs the datagrams in hand and nothing else: the sockets are kept.
    fn work(&self) {
        while catch_unwind(AssertUnwindSafe(|| self.work_until_stopped())).is_err() {
            self.house.metrics.panics.increment();
        }
    }

    fn work_until_stopped(&self) {
        let mut batch = Batch::new();
        let mut watched = vec![PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        watched.extend(self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        loop {
            // An interrupted or failed poll leaves nothing marked, or what the last one marked; both do no harm.
            if poll(&mut watched, PollTimeout::NONE).is_err() {
                thread::sleep(PAUSE);
            }
            let mut ready = watched.iter().map(|watched| watched.any().unwrap_or(true));
            if ready.next() == Some(true) {
                return;
            }
            for (socket, is_ready) in self.sockets.iter().zip(ready) {
                if is_ready && self.serve(socket, &mut batch).is_err() {
                    self.house.metrics.receive_errors.increment();
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Answers what lies in a socket, but for a share that leaves time for the others.
    fn serve(&self, socket: &Arc<UdpSocket>, batch: &mut Batch) -> io::Result<()> {
        for _ in 0..ROUNDS {
            let received = match batch.receive(socket) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => break,
                received => received?,
            };
            for (datagram, reply) in batch.exchanges() {
                // One datagram that we stumble over must not cost the others of its batch their answers.
                if catch_unwind(AssertUnwindSafe(|| self.answer(socket, datagram, reply))).is_err() {
                    reply.clear();
                    self.house.metrics.panics.increment();
                }
            }
            self.house.metrics.send_errors.add(batch.send(socket) as u64);
            if received < BATCH {
                break;
            }
        }
        Ok(())
    }

    fn answer(&self, socket: &Arc<UdpSocket>, datagram: Datagram<'_>, reply: &mut Vec<u8>) {
        let Datagram { bytes, from, to } = datagram;
        let Introduction::Complete(asker, length) = introduce(&self.house.access, from, Transport::Udp, bytes) else {
            self.house.metrics.proxy_headers_malformed.increment();
            return;
        };
        let question = bytes.get(length..).unwrap_or_default();
        match self.house.gateway.receive(question, asker, reply) {
            Step::Silence => reply.clear(),
            Step::Reply => {}
            Step::Wait(waiting) => {
                reply.clear();
                self.answer_later(socket, waiting, from, to);
            }
        }
    }

    /// Answered by whoever hears the reply. Such questions are as many as may wait: each holds its place in that
    /// quota until it ends. The token lets a stop wait for them.
    fn answer_later(&self, socket: &Arc<UdpSocket>, waiting: Box<Waiting>, to: SocketAddr, local: Option<Local>) {
        let (socket, metrics, token) = (Arc::clone(socket), Arc::clone(&self.house.metrics), self.tasks.token());
        self.house.gateway.finish_then(waiting, move |reply| {
            if reply.is_some_and(|reply| send_from(&socket, reply, to, local).is_err()) {
                metrics.send_errors.increment();
            }
            drop(token);
        });
    }
}
