//! The load: asks over UDP as fast as answers come, or at a given pace, and over a few TCP connections.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::{
    kernel::{BATCH, Packet, Watch, receive, send},
    question::Questions,
};

/// Sockets that questions come from: as many flows.
const SOCKETS: usize = 8;

/// Questions unanswered at any time, in all: enough to keep a server busy, and too few to overflow the smallest
/// receive buffer among the contestants.
const WINDOW: usize = 128;

/// After so long a question counts as lost.
const PATIENCE: Duration = Duration::from_millis(300);

/// The same where every lost question counts and the machine may be busy: as long as a client would wait.
const MUCH_PATIENCE: Duration = Duration::from_secs(5);

/// Ids in use on one socket: a power of two, far more than wait at once.
const SLOTS: usize = 4096;

/// The same with much patience: all there are, since they come round in a fraction of a second otherwise, and what waits
/// for longer than that would count as lost.
const MANY_SLOTS: usize = 1 << 16;

/// Questions that may wait on one socket at a given pace: a slow server must not slow the pace down.
const PACED_WINDOW: usize = 1024;

/// What a run saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) answered: u64,
    pub(crate) lost: u64,
    /// Replies with a code that is not the one expected.
    pub(crate) wrong: u64,
    pub(crate) elapsed: Duration,
    /// Nanoseconds from question to answer, in no order.
    pub(crate) latencies: Vec<u32>,
}

/// How a run goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As fast as answers come, for so long.
    Full(Duration),
    /// The same, but only what a client would give up counts as lost.
    Patient(Duration),
    /// So many questions a second, for so long.
    Rate(f64, Duration),
    /// Each question once, as fast as answers come.
    Once,
}

impl Outcome {
    pub(crate) fn qps(&self) -> f64 {
        self.answered as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Microseconds within which 99 % of the answers came.
    pub(crate) fn p99(&self) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 99 / 100).map_or(f64::NAN, |&nanoseconds| f64::from(nanoseconds) / 1e3)
    }
}

/// One socket and what it waits for.
struct Flow {
    socket: UdpSocket,
    next: u16,
    waiting: usize,
    sent_at: Vec<Option<Instant>>,
}

/// Asks the questions from number `cursor` on, which is moved forward.
pub(crate) fn ask(
    target: SocketAddrV4,
    questions: &Questions,
    cursor: &mut u64,
    pace: Pace,
) -> anyhow::Result<Outcome> {
    let mut flows = (0..SOCKETS).map(|_| Flow::open(pace.slots())).collect::<Result<Vec<_>, _>>()?;
    let mut watch = Watch::new(flows.iter().map(|flow| flow.socket.as_raw_fd()));
    let mut packets = vec![Packet::new(); BATCH];
    packets.iter_mut().for_each(|packet| packet.peer = target);
    let mut outcome = Outcome::default();
    let (began, first) = (Instant::now(), *cursor);
    let (mut last_answer, mut last_sweep) = (began, began);
    loop {
        let now = Instant::now();
        let sent = *cursor - first;
        let mut due = pace.due(now - began, sent, questions.count());
        let is_over = due.is_none();
        // Another one first each time, so that a slow pace uses all of them.
        let turn = sent as usize % SOCKETS;
        for index in 0..SOCKETS {
            let flow = &mut flows[(index + turn) % SOCKETS];
            let room = pace.window().saturating_sub(flow.waiting).min(BATCH);
            let count = room.min(due.unwrap_or(0) as usize);
            due = due.map(|due| due - count as u64);
            if count > 0 {
                *cursor += flow.ask(questions, *cursor, &mut packets[..count], &mut outcome) as u64;
            }
        }
        let ready: Vec<bool> = watch.wait(pace.nap()).collect();
        for (flow, _) in flows.iter_mut().zip(ready).filter(|(_, is_ready)| *is_ready) {
            flow.listen(questions, &mut packets, &mut outcome);
            packets.iter_mut().for_each(|packet| packet.peer = target);
            last_answer = Instant::now();
        }
        if last_sweep.elapsed() > PATIENCE / 4 {
            last_sweep = Instant::now();
            outcome.lost += flows.iter_mut().map(|flow| flow.give_up(last_sweep, pace.patience())).sum::<u64>();
        }
        if is_over && flows.iter().all(|flow| flow.waiting == 0) {
            outcome.elapsed = last_answer - began;
            return Ok(outcome);
        }
    }
}

impl Pace {
    /// How many questions may be sent now; `None` when there will be no more.
    fn due(self, passed: Duration, sent: u64, list: usize) -> Option<u64> {
        match self {
            Self::Full(time) | Self::Patient(time) => (passed < time).then_some(u64::MAX),
            Self::Rate(rate, time) => {
                (passed < time).then(|| ((passed.as_secs_f64() * rate) as u64).saturating_sub(sent))
            }
            Self::Once => (list as u64).checked_sub(sent).filter(|&left| left > 0),
        }
    }

    fn window(self) -> usize {
        match self {
            Self::Full(_) | Self::Patient(_) | Self::Once => WINDOW / SOCKETS,
            Self::Rate(..) => PACED_WINDOW,
        }
    }

    /// How long to wait for answers before it may be time to ask again.
    fn nap(self) -> Duration {
        match self {
            Self::Full(_) | Self::Patient(_) | Self::Once => Duration::from_millis(20),
            Self::Rate(..) => Duration::from_micros(50),
        }
    }

    fn slots(self) -> usize {
        match self {
            Self::Patient(_) => MANY_SLOTS,
            Self::Full(_) | Self::Rate(..) | Self::Once => SLOTS,
        }
    }

    fn patience(self) -> Duration {
        match self {
            Self::Patient(_) => MUCH_PATIENCE,
            Self::Full(_) | Self::Rate(..) | Self::Once => PATIENCE,
        }
    }
}

impl Flow {
    fn open(slots: usize) -> anyhow::Result<Self> {
        // Bound to no address, so that questions can leave from any of the loopback network.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a socket to ask from")?;
        Ok(Self { socket, next: 0, waiting: 0, sent_at: vec![None; slots] })
    }

    fn ask(&mut self, questions: &Questions, cursor: u64, packets: &mut [Packet], outcome: &mut Outcome) -> usize {
        for (index, packet) in packets.iter_mut().enumerate() {
            questions.write(cursor + index as u64, self.next.wrapping_add(index as u16), packet);
        }
        let now = Instant::now();
        let sent = send(&self.socket, packets).unwrap_or(0);
        for _ in 0..sent {
            // Whatever has waited for a whole round of ids is lost.
            let slot = usize::from(self.next) % self.sent_at.len();
            if self.sent_at[slot].replace(now).is_some() {
                self.waiting -= 1;
                outcome.lost += 1;
            }
            self.next = self.next.wrapping_add(1);
        }
        self.waiting += sent;
        sent
    }

    fn listen(&mut self, questions: &Questions, packets: &mut [Packet], outcome: &mut Outcome) {
        while let Ok(received) = receive(&self.socket, packets, false) {
            let now = Instant::now();
            for packet in &packets[..received] {
                let &[high, low, _, flags, ..] = packet.content() else { continue };
                let id = usize::from(u16::from_be_bytes([high, low]));
                // What was given up counts as lost, even if it comes at last.
                let slot = id % self.sent_at.len();
                let Some(sent_at) = self.sent_at[slot].take() else { continue };
                self.waiting -= 1;
                outcome.answered += 1;
                outcome.wrong += u64::from(!questions.is_right(flags & 15));
                outcome.latencies.push((now - sent_at).as_nanos() as u32);
            }
            if received < packets.len() {
                return;
            }
        }
    }

    fn give_up(&mut self, now: Instant, patience: Duration) -> u64 {
        let mut lost = 0;
        for slot in self.sent_at.iter_mut().filter(|slot| slot.is_some_and(|at| now - at > patience)) {
            *slot = None;
            lost += 1;
        }
        self.waiting -= lost;
        lost as u64
    }
}

/// Connections of a TCP run, and questions on the way on each.
const CONNECTIONS: usize = 16;
const PIPELINE: usize = 8;

/// Silence of this length ends a TCP run.
const STALLED: Duration = Duration::from_secs(2);

/// One connection: what it has to send still, and the part of a reply that has come.
struct Line {
    stream: TcpStream,
    waiting: usize,
    unread: Vec<u8>,
    outgoing: Vec<u8>,
}

/// Asks the questions from number `cursor` on, which is moved forward, over [`CONNECTIONS`] TCP connections, several
/// at once on each.
pub(crate) fn ask_over_tcp(
    target: SocketAddrV4,
    questions: &Questions,
    cursor: &mut u64,
    time: Duration,
) -> anyhow::Result<Outcome> {
    let mut lines = (0..CONNECTIONS).map(|_| Line::open(target)).collect::<Result<Vec<_>, _>>()?;
    let mut watch = Watch::new(lines.iter().map(|line| line.stream.as_raw_fd()));
    let (mut outcome, mut packet) = (Outcome::default(), Packet::new());
    let began = Instant::now();
    let mut last_answer = began;
    loop {
        let is_over = began.elapsed() >= time;
        for line in &mut lines {
            while !is_over && line.waiting < PIPELINE {
                questions.write(*cursor, *cursor as u16, &mut packet);
                line.queue(packet.content());
                *cursor += 1;
            }
            line.flush().context("a TCP connection broke")?;
        }
        let ready: Vec<bool> = watch.wait(Duration::from_millis(20)).collect();
        for (line, _) in lines.iter_mut().zip(ready).filter(|(_, is_ready)| *is_ready) {
            line.listen(questions, &mut outcome).context("a TCP connection broke")?;
            last_answer = Instant::now();
        }
        let waiting: usize = lines.iter().map(|line| line.waiting).sum();
        if is_over && (waiting == 0 || last_answer.elapsed() > STALLED) {
            outcome.lost = waiting as u64;
            outcome.elapsed = last_answer - began;
            return Ok(outcome);
        }
        anyhow::ensure!(last_answer.elapsed() < 2 * STALLED, "no answers over TCP");
    }
}

impl Line {
    fn open(target: SocketAddrV4) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(target).with_context(|| format!("cannot connect to {target}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, waiting: 0, unread: Vec::new(), outgoing: Vec::new() })
    }

    fn queue(&mut self, question: &[u8]) {
        self.outgoing.extend((question.len() as u16).to_be_bytes());
        self.outgoing.extend(question);
        self.waiting += 1;
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(written) => drop(self.outgoing.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn listen(&mut self, questions: &Questions, outcome: &mut Outcome) -> io::Result<()> {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => self.unread.extend(&bytes[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let mut start = 0;
        while let Some(&[high, low]) = self.unread.get(start..start + 2) {
            let end = start + 2 + usize::from(u16::from_be_bytes([high, low]));
            let Some(&[_, _, _, flags, ..]) = self.unread.get(start + 2..end) else { break };
            outcome.answered += 1;
            outcome.wrong += u64::from(!questions.is_right(flags & 15));
            self.waiting -= 1;
            start = end;
        }
        self.unread.drain(..start);
        Ok(())
    }
}
