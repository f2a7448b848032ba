//! Ways to the servers over UDP: each has sockets of its own, and one thread that hears them all.
//!
//! A thread that takes datagrams from clients has a lane of its own: it asks, hears and answers without another thread
//! in between. Everybody else shares one, which a thread of its own hears. Threads and not tasks: a socket carries five
//! questions, and to register it with the runtime, with a task and a timer of its own, costs more than the questions.
//! What a datagram means is told by `udp`.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
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
use crate::{lasting, metrics::Metrics, sys::datagram::corked};

/// All lanes. They outlast the servers: a reload that swaps those keeps these.
#[derive(Debug)]
pub struct Lanes {
    common: Arc<Lane>,
    own: Vec<Arc<Lane>>,
    thread: Option<JoinHandle<()>>,
}

/// One way to the servers: what is asked through it is heard by one thread.
#[derive(Debug)]
pub struct Lane {
    /// Its place among all.
    pub(super) number: usize,
    epoll: Epoll,
    /// Readable where the thread has to look at the sockets anew, or at whether to stop.
    wake: EventFd,
    /// By descriptor, which no other socket has while it is in here. A socket belongs to its lane and closes when it
    /// is taken out.
    sockets: Mutex<HashMap<RawFd, Arc<Socket>, RandomState>>,
    stopped: AtomicBool,
    metrics: Arc<Metrics>,
}

/// Hears a lane. Replies are handed on by the thread that calls, and what they make it send to clients leaves together.
#[derive(Debug)]
pub struct Ear {
    lane: Arc<Lane>,
    events: Vec<EpollEvent>,
    buffer: Vec<u8>,
    look_at: Instant,
}

/// How often sockets are looked at for what is over or late; what waits for that waits a fifth of a second or more.
const LOOK: Duration = Duration::from_millis(20);

/// Sockets heard at a time.
const EVENTS: usize = 64;

/// How long a lane rests after an error that would come back at once.
const PAUSE: Duration = Duration::from_millis(10);

/// Stands for `wake` among descriptors.
const WAKE: u64 = u64::MAX;

impl Lanes {
    /// One for everybody, and one for each of so many callers, who have to [hear](Lanes::ear) theirs.
    ///
    /// # Errors
    /// When descriptors or threads have run out.
    pub fn start(callers: usize, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let lane = |number| Lane::new(number, Arc::clone(metrics)).map(Arc::new);
        let (common, own) = (lane(0)?, (1..=callers).map(lane).collect::<io::Result<_>>()?);
        let mut ear = Ear::new(Arc::clone(&common));
        let thread = thread::Builder::new().name("upstream".to_owned()).spawn(move || ear.work())?;
        Ok(Self { common, own, thread: Some(thread) })
    }

    /// What hears a caller's lane; they are counted from 0.
    pub fn ear(&self, caller: usize) -> Option<Ear> {
        self.own.get(caller).map(|lane| Ear::new(Arc::clone(lane)))
    }

    /// The lane of those who have none of their own.
    pub(super) fn common(&self) -> &Lane {
        &self.common
    }

    /// All, in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Lane>> {
        std::iter::once(&self.common).chain(&self.own)
    }

    /// Closes the sockets of an [`Upstream`](super::Upstream) that was stopped; what waited on them is told.
    pub(super) fn close_stopped(&self) {
        for lane in self.iter() {
            lane.close(Socket::is_stopped);
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for lane in self.iter() {
            lane.stopped.store(true, Ordering::Release);
            lane.wake();
            lane.close(|_| true);
        }
        // The last to let go may be the thread itself.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            // Its panics were counted when they happened.
            drop(thread.join());
        }
    }
}

impl Lane {
    fn new(number: usize, metrics: Arc<Metrics>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Self { number, epoll, wake, sockets: Mutex::default(), stopped: AtomicBool::new(false), metrics })
    }

    /// Has a socket heard until it is over.
    pub(super) fn add(&self, socket: &Arc<Socket>) -> io::Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let descriptor = socket.as_fd().as_raw_fd();
        let was_idle = {
            let mut sockets = locked(&self.sockets);
            let was_idle = sockets.is_empty();
            sockets.insert(descriptor, Arc::clone(socket));
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
        let removed = locked(&self.sockets).remove(&descriptor);
        // Without the lock, which others wait for while the kernel closes it.
        drop(removed);
    }

    fn close(&self, is_over: impl Fn(&Socket) -> bool) {
        let closed: Vec<_> = locked(&self.sockets).extract_if(|_, socket| is_over(socket)).collect();
        // Without the lock: what waited on them is told.
        drop(closed);
    }

    /// Makes the lane readable, so that whoever hears it looks up.
    pub fn wake(&self) {
        // It fails only where the thread has been woken more often than it can count.
        let _ = self.wake.write(1);
    }

    fn hear(&self, descriptor: RawFd, buffer: &mut [u8]) {
        let Some(socket) = locked(&self.sockets).get(&descriptor).cloned() else { return };
        match socket.hear(buffer) {
            Heard::More => {}
            Heard::All => self.remove(descriptor),
        }
    }

    /// Closes what is over, and has somebody else see to what is late.
    fn look(&self, now: Instant) {
        let mut late = Vec::new();
        let over: Vec<_> = locked(&self.sockets).extract_if(|_, socket| socket.look(now, &mut late)).collect();
        drop(over);
        for late in late {
            late.hand_over();
        }
    }
}

impl Ear {
    fn new(lane: Arc<Lane>) -> Self {
        let events = vec![EpollEvent::empty(); EVENTS];
        Self { lane, events, buffer: vec![0; BUFFER], look_at: Instant::now() }
    }

    /// What it hears.
    pub fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// Does anybody still wait for a reply on this lane?
    pub fn is_waited_for(&self) -> bool {
        locked(&self.lane.sockets).values().any(|socket| socket.is_waited_for())
    }

    /// Is it time to [hear](Self::hear) even if the lane is not readable?
    pub fn is_due(&self) -> bool {
        Instant::now() >= self.look_at
    }

    /// The time after which [`hear`](Self::hear) is to be called even if the lane is not readable; `None` where nothing
    /// is expected.
    pub fn patience(&self) -> Option<Duration> {
        (!locked(&self.lane.sockets).is_empty()).then_some(LOOK)
    }

    /// Hears what is there, waiting for the first at most so long, and sees to what is late.
    pub fn hear(&mut self, patience: Option<Duration>) {
        let timeout =
            patience.map_or(EpollTimeout::NONE, |time| EpollTimeout::try_from(time).unwrap_or(EpollTimeout::ZERO));
        let Self { lane, events, buffer, look_at } = self;
        let ready = match lane.epoll.wait(events, timeout) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(_) => {
                thread::sleep(PAUSE);
                0
            }
        };
        let failed = corked(|| {
            for event in events.iter().take(ready) {
                match RawFd::try_from(event.data()) {
                    Ok(descriptor) => lane.hear(descriptor, buffer),
                    Err(_) => drop(lane.wake.read()),
                }
            }
            let now = Instant::now();
            if now >= *look_at {
                *look_at = now + LOOK;
                lane.look(now);
            }
        });
        lane.metrics.send_errors.add(failed as u64);
    }

    /// Hears until the lanes are no more. A panic costs what was being done and nothing else.
    fn work(&mut self) {
        let lane = Arc::clone(&self.lane);
        while !lane.stopped.load(Ordering::Acquire) {
            let patience = self.patience();
            let _ = lasting::call(&lane.metrics, || self.hear(patience));
        }
    }
}

/// Readable where there is something to hear.
impl AsFd for Lane {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
