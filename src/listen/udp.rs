//! The UDP door: threads that answer what needs no waiting on the spot, a batch at a time.
//!
//! Every worker has a socket of its own for every address; the kernel spreads the clients over them. What has to wait
//! for an upstream is asked through the worker's own lane, so that the same thread hears the reply and answers.

use std::{
    io::{self, PipeReader, PipeWriter},
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio_util::task::TaskTracker;

use super::{
    House,
    introduction::{Introduction, introduce},
    pulse::{Beat, Pulse},
};
use crate::{
    audit::Transport,
    gateway::{Step, Waiting},
    lasting,
    sys::datagram::{BATCH, Batch, Datagram, Local, send_from},
    upstream::{Ear, Lane, Lanes},
};

/// Batches taken from one socket before the worker looks at its others and at whether to stop.
const ROUNDS: usize = 8;

/// How long a worker rests after an error that would come back at once.
const PAUSE: Duration = Duration::from_millis(10);

/// Where a test has it panic.
#[cfg(test)]
pub(super) const WORKER: &str = "a worker";
#[cfg(test)]
pub(super) const DATAGRAM: &str = "a datagram";

/// The threads of the UDP door.
#[derive(Debug)]
pub(super) struct Workers {
    /// All workers watch the other end, which tells when this one is gone.
    stop: PipeWriter,
    threads: Vec<JoinHandle<()>>,
    beats: Vec<Arc<Beat>>,
}

/// One thread's world.
#[derive(Debug)]
struct Worker {
    sockets: Vec<Arc<UdpSocket>>,
    lane: Arc<Lane>,
    beat: Arc<Beat>,
    house: House,
    tasks: TaskTracker,
}

/// Starts a worker for every socket of an address; `addresses` have equally many.
pub(super) fn serve(
    addresses: Vec<Vec<UdpSocket>>,
    house: House,
    lanes: &Lanes,
    tasks: &TaskTracker,
) -> io::Result<Workers> {
    let (stopped, stop) = io::pipe()?;
    let mut shares: Vec<Vec<Arc<UdpSocket>>> = Vec::new();
    for sockets in addresses {
        shares.resize(shares.len().max(sockets.len()), Vec::new());
        for (share, socket) in shares.iter_mut().zip(sockets) {
            share.push(Arc::new(socket));
        }
    }
    let mut workers = Workers { stop, threads: Vec::new(), beats: Vec::new() };
    for (number, sockets) in shares.into_iter().enumerate() {
        let (mut ear, stop) = (lanes.ear(number).ok_or(io::ErrorKind::NotFound)?, stopped.try_clone()?);
        let (lane, beat) = (Arc::clone(ear.lane()), Arc::new(Beat::of(Arc::clone(ear.lane()))));
        workers.beats.push(Arc::clone(&beat));
        let worker = Worker { sockets, lane, beat, house: house.clone(), tasks: tasks.clone() };
        let thread = thread::Builder::new().name(format!("udp-{number}"));
        workers.threads.push(thread.spawn(move || worker.work(&mut ear, &stop))?);
    }
    Ok(workers)
}

impl Workers {
    pub(super) fn pulse(&self) -> Pulse {
        Pulse::of(self.beats.iter().cloned())
    }

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
    /// Works until told to stop, and then until nobody waits any more. A panic costs the datagrams in hand and nothing
    /// else: the sockets are kept.
    fn work(&self, ear: &mut Ear, stop: &PipeReader) {
        while lasting::call(&self.house.metrics, || self.work_until_stopped(ear, stop)).is_none() {
            thread::sleep(PAUSE);
        }
    }

    fn work_until_stopped(&self, ear: &mut Ear, stop: &PipeReader) {
        let mut batch = Batch::new();
        let mut watched = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        watched.push(PollFd::new(self.lane.as_fd(), PollFlags::POLLIN));
        watched.extend(self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        loop {
            let patience = ear.patience();
            let timeout = patience.map_or(PollTimeout::NONE, |time| time.try_into().unwrap_or(PollTimeout::ZERO));
            // An interrupted or failed poll leaves nothing marked, or what the last one marked; both do no harm.
            if poll(&mut watched, timeout).is_err() {
                thread::sleep(PAUSE);
            }
            let mut ready = watched.iter().map(|watched| watched.any().unwrap_or(true));
            let (is_stopped, is_heard) = (ready.next() == Some(true), ready.next() == Some(true));
            if is_stopped {
                break;
            }
            for (socket, is_ready) in self.sockets.iter().zip(ready) {
                if is_ready && self.serve(socket, &mut batch).is_err() {
                    self.house.metrics.receive_errors.increment();
                    thread::sleep(PAUSE);
                }
            }
            if is_heard || patience.is_some() && ear.is_due() {
                ear.hear(Some(Duration::ZERO));
            }
            self.beat.give(&self.house);
            #[cfg(test)]
            lasting::injected::here(&self.house.metrics, WORKER);
        }
        // What waits by then is over within the time that upstreams are given.
        while ear.is_waited_for() {
            let patience = ear.patience();
            ear.hear(patience);
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
                if lasting::call(&self.house.metrics, || self.answer(socket, datagram, reply)).is_none() {
                    reply.clear();
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
        #[cfg(test)]
        lasting::injected::here(&self.house.metrics, DATAGRAM);
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
        self.house.gateway.finish_then(waiting, &self.lane, move |reply| {
            if reply.is_some_and(|reply| send_from(&socket, reply, to, local).is_err()) {
                metrics.send_errors.increment();
            }
            drop(token);
        });
    }
}
