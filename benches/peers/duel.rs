//! Rounds in which every contestant runs once, one right after the other: what the machine does meanwhile, all of
//! them suffer, and only the ratios within a round are compared.

use std::{thread, time::Duration};

use anyhow::Context;

use crate::{
    contestant::Kind,
    figures::{Estimate, estimate, median},
    load::{Outcome, Pace, ask, ask_over_tcp},
    machine::{Softirq, busy, cpu_time},
    question::{NXDOMAIN, Questions, Workload},
    server::{SERVER_CPU, Server},
};

/// A contestant that is up.
pub(crate) struct Entry {
    pub(crate) label: String,
    pub(crate) kind: Kind,
    pub(crate) server: Server,
}

/// One run of one contestant.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Microseconds of the server's CPU time for each answered question.
    pub(crate) cost: f64,
    pub(crate) qps: f64,
    pub(crate) lost: u64,
    pub(crate) wrong: u64,
    /// CPUs that something else was busy on, the upstream included.
    pub(crate) others: f64,
}

/// All runs of one contestant on one workload, round by round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(pub(crate) Vec<Sample>);

/// Over what it is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Carrier {
    Udp,
    Tcp,
}

impl Series {
    fn column(&self, field: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.0.iter().map(field).collect()
    }

    pub(crate) fn cost(&self) -> f64 {
        median(&self.column(|sample| sample.cost))
    }

    pub(crate) fn qps(&self) -> f64 {
        median(&self.column(|sample| sample.qps))
    }

    pub(crate) fn lost(&self) -> u64 {
        self.0.iter().map(|sample| sample.lost).sum()
    }

    pub(crate) fn wrong(&self) -> u64 {
        self.0.iter().map(|sample| sample.wrong).sum()
    }

    pub(crate) fn others(&self) -> f64 {
        median(&self.column(|sample| sample.others))
    }

    /// How many times as much as the other it cost, round by round.
    pub(crate) fn times(&self, unit: &Self) -> Estimate {
        let ratios: Vec<_> = self.0.iter().zip(&unit.0).map(|(own, other)| own.cost / other.cost).collect();
        estimate(&ratios)
    }

    /// How much more than `other` it cost, as a multiple of `unit`, round by round.
    pub(crate) fn excess(&self, other: &Self, unit: &Self) -> Estimate {
        let runs = self.0.iter().zip(&other.0).zip(&unit.0);
        let differences: Vec<_> = runs.map(|((own, other), unit)| (own.cost - other.cost) / unit.cost).collect();
        estimate(&differences)
    }
}

/// After so long every attempt is in the record; writing it belongs to the cost of the run.
const RECORDED: Duration = Duration::from_millis(1_100);

/// One round: every contestant once, beginning with another one each time.
pub(crate) fn round(
    number: usize,
    entries: &[(&Entry, &Questions)],
    is_warm: bool,
    carrier: Carrier,
    cursor: &mut u64,
    time: Duration,
) -> anyhow::Result<Vec<Sample>> {
    let mut samples: Vec<(usize, Sample)> = Vec::new();
    for place in 0..entries.len() {
        let index = (place + number) % entries.len();
        let (entry, questions) = entries[index];
        let sample = run(entry, questions, is_warm, carrier, cursor, time)
            .with_context(|| format!("{} did not get through its run", entry.label))?;
        samples.push((index, sample));
    }
    samples.sort_by_key(|&(index, _)| index);
    Ok(samples.into_iter().map(|(_, sample)| sample).collect())
}

fn run(
    entry: &Entry,
    questions: &Questions,
    is_warm: bool,
    carrier: Carrier,
    cursor: &mut u64,
    time: Duration,
) -> anyhow::Result<Sample> {
    let server = &entry.server;
    if is_warm && entry.kind != Kind::Echo {
        warm(server, &Workload::Cached.questions())?;
    }
    let softirq = Softirq::of(SERVER_CPU);
    let spent = || cpu_time(server.pid()) + softirq.cpu_time();
    let ours = || (spent() + cpu_time(std::process::id())).as_secs_f64();
    let (spent_before, others_before) = (spent(), busy() - ours());
    let outcome = match carrier {
        Carrier::Udp => ask(server.address, questions, cursor, Pace::Full(time))?,
        Carrier::Tcp => ask_over_tcp(server.address, questions, &mut 0, time)?,
    };
    let others = (busy() - ours() - others_before).max(0.0) / outcome.elapsed.as_secs_f64().max(1e-9);
    if entry.kind == Kind::Tunnelwarden && questions.is_right(NXDOMAIN) {
        thread::sleep(RECORDED);
    }
    let spent = spent().saturating_sub(spent_before);
    anyhow::ensure!(outcome.answered > 0, "no question was answered");
    Ok(Sample {
        cost: spent.as_secs_f64() * 1e6 / outcome.answered as f64,
        qps: outcome.qps(),
        lost: outcome.lost,
        // An echo knows no codes.
        wrong: if entry.kind == Kind::Echo { 0 } else { outcome.wrong },
        others,
    })
}

/// Has every one of these questions answered at least once, so that the answers are in the cache.
pub(crate) fn warm(server: &Server, questions: &Questions) -> anyhow::Result<()> {
    // A few may be lost on the way; the second pass fetches them.
    let mut outcome = Outcome::default();
    for _ in 0..3 {
        outcome = ask(server.address, questions, &mut 0, Pace::Once)?;
        if outcome.lost == 0 && outcome.wrong == 0 {
            return Ok(());
        }
    }
    // Reported with the run itself; here nothing more can be done.
    anyhow::ensure!(outcome.answered > 0, "no question was answered");
    Ok(())
}
