//! The threads that hear servers over UDP: each waits for all of its sockets at once, and closes them in time.
//!
//! Threads and not tasks: a socket carries five questions, and to register it with the runtime, with a task and a
//! timer of its own, costs more than the questions. What a datagram means is told by `udp`.

use std::{
    collections::HashMap,
    io, mem,
    os::fd::{AsFd, AsRawFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};

use super::{
    locked,
    udp::{BUFFER, Heard, Socket},
};
use crate::metrics::Metrics;

/// One thread a core.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Arc<Lane>>,
    next: AtomicUsize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// One thread's world.
#[derive(Debug)]
struct Lane {
    epoll: Epoll,
    /// Readable where the thread has to look at `sockets` anew.
    wake: EventFd,
    sockets: Mutex<Sockets>,
    metrics: Arc<Metrics>,
}

/// A socket belongs to its lane and closes when it is taken out.
#[derive(Debug, Default)]
struct Sockets {
    /// By descriptor, which no other socket has while it is in here.
    open: HashMap<RawFd, Arc<Socket>, RandomState>,
    stopped: bool,
}

/// How often sockets are looked at for what is over or late; what waits for that waits a fifth of a second or more.
const LOOK: Duration = Duration::from_millis(20);

/// Sockets heard between two waits.
const EVENTS: usize = 64;

/// How long a lane rests after an error that would come back at once.
const PAUSE: Duration = Duration::from_millis(10);

/// Stands for `wake` among descriptors.
const WAKE: u64 = u64::MAX;

impl Lanes {
    /// Starts the threads.
    pub(super) fn start(metrics: &Arc<Metrics>) -> io::Result<Self> {
        let mut lanes = Self { lanes: Vec::new(), next: AtomicUsize::new(0), threads: Mutex::default() };
        for number in 0..thread::available_parallelism().map_or(1, usize::from) {
            let lane = Arc::new(Lane::new(Arc::clone(metrics))?);
            lanes.lanes.push(Arc::clone(&lane));
            let thread = thread::Builder::new().name(format!("upstream-{number}")).spawn(move || lane.work())?;
            locked(&lanes.threads).push(thread);
        }
        Ok(lanes)
    }

    /// Has a socket heard until it is over.
    pub(super) fn add(&self, socket: &Arc<Socket>) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.lanes.len().max(1);
        self.lanes.get(number).ok_or(io::ErrorKind::NotConnected)?.add(socket)
    }

    /// Closes every socket and has the threads end. Does not wait: one of them may be the caller.
    pub(super) fn stop(&self) {
        for lane in &self.lanes {
            let closed = {
                let mut sockets = locked(&lane.sockets);
                sockets.stopped = true;
                mem::take(&mut sockets.open)
            };
            lane.wake();
            // Without the lock: what waited on them is told.
            drop(closed);
        }
    }

    /// Waits for the threads to end. Not to be called by one of them.
    pub(super) fn join(&self) {
        let threads = mem::take(&mut *locked(&self.threads));
        // A lane's panics were counted when they happened.
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Lane {
    fn new(metrics: Arc<Metrics>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Self { epoll, wake, sockets: Mutex::default(), metrics })
    }

    fn add(&self, socket: &Arc<Socket>) -> io::Result<()> {
        let descriptor = socket.as_fd().as_raw_fd();
        let was_idle = {
            let mut sockets = locked(&self.sockets);
            if sockets.stopped {
                return Err(io::ErrorKind::NotConnected.into());
            }
            let was_idle = sockets.open.is_empty();
            sockets.open.insert(descriptor, Arc::clone(socket));
            was_idle
        };
        let number = u64::try_from(descriptor).unwrap_or(WAKE);
        if let Err(error) = self.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, number)) {
            self.remove(descriptor);
            return Err(error.into());
        }
        if was_idle {
            self.wake();
        }
        Ok(())
    }

    fn remove(&self, descriptor: RawFd) {
        let removed = locked(&self.sockets).open.remove(&descriptor);
        // Without the lock, which others wait for while the kernel closes it.
        drop(removed);
    }

    fn wake(&self) {
        // It fails only where the thread has been woken more often than it can count.
        let _ = self.wake.write(1);
    }

    /// Works until stopped. A panic costs what was being done and nothing else.
    fn work(&self) {
        while catch_unwind(AssertUnwindSafe(|| self.work_until_stopped())).is_err() {
            self.metrics.panics.increment();
        }
    }

    fn work_until_stopped(&self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut buffer = vec![0; BUFFER];
        let mut look_at = Instant::now() + LOOK;
        loop {
            let (is_idle, stopped) = {
                let sockets = locked(&self.sockets);
                (sockets.open.is_empty(), sockets.stopped)
            };
            if stopped {
                return;
            }
            let now = Instant::now();
            if now >= look_at {
                self.look(now);
                look_at = now + LOOK;
            }
            let until_look = EpollTimeout::try_from(look_at - now + Duration::from_millis(1));
            let patience = if is_idle { EpollTimeout::NONE } else { until_look.unwrap_or(EpollTimeout::ZERO) };
            let ready = match self.epoll.wait(&mut events, patience) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(_) => {
                    thread::sleep(PAUSE);
                    0
                }
            };
            for event in events.iter().take(ready) {
                match RawFd::try_from(event.data()) {
                    Ok(descriptor) => self.hear(descriptor, &mut buffer),
                    Err(_) => drop(self.wake.read()),
                }
            }
        }
    }

    fn hear(&self, descriptor: RawFd, buffer: &mut [u8]) {
        let Some(socket) = locked(&self.sockets).open.get(&descriptor).cloned() else { return };
        match socket.hear(buffer) {
            Heard::More => {}
            Heard::All => self.remove(descriptor),
        }
    }

    /// Closes what is over, and has somebody else see to what is late.
    fn look(&self, now: Instant) {
        let mut late = Vec::new();
        let over: Vec<_> = locked(&self.sockets).open.extract_if(|_, socket| socket.look(now, &mut late)).collect();
        drop(over);
        for late in late {
            late.hand_over();
        }
    }
}
