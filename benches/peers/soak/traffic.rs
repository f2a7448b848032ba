//! Everything at once: datagrams as fast as answers come, connections that ask much, connections that come and go,
//! reloads, searches of the record and looks at the counters; and beside it what strangers do.

use std::{
    fmt,
    io::{Read, Write},
    net::{SocketAddrV4, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{
    attack::{Attacks, Servers, fire, harass},
    household::Household,
};
use crate::{
    load::{Outcome, Pace, ask, ask_over_tcp},
    question::{BLOCKED, NXDOMAIN, Questions, encode},
};

/// After so long all clients make place for others, with sockets and connections of their own.
const SHIFT: Duration = Duration::from_secs(2);

/// Between two visitors.
const VISIT: Duration = Duration::from_millis(20);

/// Between two reloads.
const RELOAD: Duration = Duration::from_secs(3);

/// How long a visitor waits for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What all clients saw.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) answered: u64,
    /// Of those, over TCP.
    over_tcp: u64,
    pub(super) lost: u64,
    pub(super) wrong: u64,
    /// The longest wait for an answer to a datagram.
    slowest: Duration,
    visits: u64,
    pub(super) reloads: u64,
    pub(super) searches: u64,
    /// Looks at the counters while the household's own server was taken for down.
    pub(super) server_down: u64,
    pub(super) attacks: Attacks,
    busy: Duration,
}

/// A part of the load, which adds up what it saw.
type Work<'a> = dyn Fn(&mut Tally) -> anyhow::Result<()> + Sync + 'a;

/// Goes on until `over`, or until something fails, which makes it over.
pub(super) fn run(household: &Household, hostile: &Servers, over: &AtomicBool) -> anyhow::Result<Tally> {
    let until = |work: &Work| {
        let (began, mut tally) = (Instant::now(), Tally::default());
        let result = work(&mut tally);
        if result.is_err() {
            over.store(true, Ordering::Relaxed);
        }
        tally.busy = began.elapsed();
        result.map(|()| tally)
    };
    let goes_on = || !over.load(Ordering::Relaxed);
    let (questions, target) = (Questions::of_all_kinds(), household.address);
    let datagrams = |tally: &mut Tally| {
        let mut cursor = 0;
        while goes_on() {
            tally.add(&ask(target, &questions, &mut cursor, Pace::Patient(SHIFT))?, false);
        }
        Ok(())
    };
    let streams = |tally: &mut Tally| {
        // The new names of datagrams are below.
        let mut cursor = 1 << 31;
        while goes_on() {
            tally.add(&ask_over_tcp(target, &questions, &mut cursor, SHIFT)?, true);
        }
        Ok(())
    };
    let visitors = |tally: &mut Tally| {
        while goes_on() {
            visit(target, tally).context("a visitor was not received")?;
            thread::sleep(VISIT);
        }
        Ok(())
    };
    let operator = |tally: &mut Tally| operate(household, goes_on, tally);
    let volleys = |tally: &mut Tally| fire(target, goes_on, &mut tally.attacks);
    let connections = |tally: &mut Tally| {
        harass(household, goes_on, &mut tally.attacks);
        Ok(())
    };
    let servers = |tally: &mut Tally| {
        hostile.serve(goes_on, &mut tally.attacks);
        Ok(())
    };
    let works: [&Work; 7] = [&datagrams, &streams, &visitors, &operator, &volleys, &connections, &servers];
    thread::scope(|scope| {
        let threads = works.map(|work| scope.spawn(move || until(work)));
        let mut sum = Tally::default();
        for thread in threads {
            sum.join(&thread.join().map_err(|_| anyhow::anyhow!("a part of the load panicked"))??);
        }
        Ok(sum)
    })
}

/// Comes, and goes in one of four ways: with its answer, without waiting for it, in the middle of a question, at once.
fn visit(target: SocketAddrV4, tally: &mut Tally) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let question = encode(&format!("visitor-{}.{}", tally.visits % 100, BLOCKED[0]));
    let framed = [&(question.len() as u16).to_be_bytes()[..], &question].concat();
    tally.visits += 1;
    match tally.visits % 4 {
        0 => {
            stream.write_all(&framed)?;
            let mut reply = [0; 6];
            stream.read_exact(&mut reply)?;
            tally.answered += 1;
            tally.over_tcp += 1;
            tally.wrong += u64::from(reply[5] & 15 != NXDOMAIN);
        }
        1 => stream.write_all(&framed)?,
        2 => stream.write_all(&framed[..9])?,
        _ => {}
    }
    Ok(())
}

/// Changes the files and has them read, every other time searches the record, and looks at the counters.
fn operate(household: &Household, goes_on: impl Fn() -> bool, tally: &mut Tally) -> anyhow::Result<()> {
    let mut due = Instant::now() + RELOAD;
    while goes_on() {
        if Instant::now() < due {
            thread::sleep(VISIT);
            continue;
        }
        due += RELOAD;
        household.furnish(tally.reloads + 1)?;
        household.command("reload", &[])?;
        tally.reloads += 1;
        let counters = household.counters().context("the operator was kept from the counters")?;
        tally.server_down += u64::from(counters.server_is(household, "down"));
        if tally.reloads.is_multiple_of(2) {
            let found = household.command("attempts", &["--json", "--limit", "50"])?.stdout;
            anyhow::ensure!(!found.is_empty(), "the record is empty");
            tally.searches += 1;
        }
    }
    Ok(())
}

impl Tally {
    pub(super) fn asked(&self) -> u64 {
        self.answered + self.lost
    }

    fn add(&mut self, outcome: &Outcome, over_tcp: bool) {
        self.answered += outcome.answered;
        self.over_tcp += if over_tcp { outcome.answered } else { 0 };
        self.lost += outcome.lost;
        self.wrong += outcome.wrong;
        let slowest = outcome.latencies.iter().max().copied().unwrap_or(0);
        self.slowest = self.slowest.max(Duration::from_nanos(slowest.into()));
    }

    fn join(&mut self, other: &Self) {
        self.answered += other.answered;
        self.over_tcp += other.over_tcp;
        self.lost += other.lost;
        self.wrong += other.wrong;
        self.slowest = self.slowest.max(other.slowest);
        self.visits += other.visits;
        self.reloads += other.reloads;
        self.searches += other.searches;
        self.server_down += other.server_down;
        self.attacks += &other.attacks;
        self.busy = self.busy.max(other.busy);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.answered as f64 / self.busy.as_secs_f64().max(1e-9);
        write!(
            f,
            "{} questions answered, {} of them over TCP, {rate:.0} a second; {} lost, {} wrong, the slowest after {} ms; \
             {} visitors, {} reloads, {} searches\n{}",
            self.answered,
            self.over_tcp,
            self.lost,
            self.wrong,
            self.slowest.as_millis(),
            self.visits,
            self.reloads,
            self.searches,
            self.attacks
        )
    }
}
