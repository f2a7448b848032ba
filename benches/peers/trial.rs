//! The whole run, in order: who is here, how they start, the rounds, a million names, TCP, delay, growth.

use std::{
    env,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use jiff::Timestamp;

use crate::{
    contestant::{Ground, Kind, Terms},
    duel::{Carrier, Entry, Series, round, warm},
    figures::{Estimate, estimate, median},
    kernel,
    load::{Pace, ask, ask_over_tcp},
    machine,
    question::{BLOCKED, NOERROR, NXDOMAIN, Questions, Workload, listed_name},
    server::{LOAD_CPU, Server, Start, free_address},
};

/// How much is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effort {
    /// What the document is made from.
    Full,
    /// Everything once and briefly, to see that it runs.
    Quick,
}

/// How much that is, in figures.
struct Plan {
    /// At least 12 for an interval worth its name.
    rounds: usize,
    time: Duration,
    starts: usize,
    /// Names of the long list.
    listed: usize,
    growth_rounds: usize,
    growth_time: Duration,
    patterns: &'static [usize],
    cached: &'static [usize],
    groups: &'static [usize],
    delay_rounds: usize,
    delay_time: Duration,
}

const FULL: Plan = Plan {
    rounds: 12,
    time: Duration::from_millis(600),
    starts: 7,
    listed: 1_000_000,
    growth_rounds: 6,
    growth_time: Duration::from_millis(400),
    patterns: &[10, 100, 1_000, 10_000, 100_000, 1_000_000],
    cached: &[1_000, 10_000, 100_000, 1_000_000],
    groups: &[1, 10, 100, 1_000],
    delay_rounds: 4,
    delay_time: Duration::from_millis(1_000),
};

const QUICK: Plan = Plan {
    rounds: 1,
    time: Duration::from_millis(100),
    starts: 1,
    listed: 10_000,
    growth_rounds: 1,
    growth_time: Duration::from_millis(100),
    patterns: &[10, 1_000],
    cached: &[1_000, 5_000],
    groups: &[1, 100],
    delay_rounds: 1,
    delay_time: Duration::from_millis(200),
};

/// Room for a million answers in the cache, in MiB.
const LARGE_CACHE: usize = 2048;

/// Everything that was measured.
pub(crate) struct Results {
    pub(crate) effort: Effort,
    pub(crate) machine: String,
    pub(crate) date: String,
    pub(crate) took: Duration,
    /// Before and after.
    pub(crate) load: (f64, f64),
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    pub(crate) present: Vec<(Kind, String)>,
    pub(crate) missing: Vec<Kind>,
    pub(crate) boards: Vec<Board>,
    pub(crate) tcp: Board,
    pub(crate) listed: usize,
    /// With the short policy and with the long list.
    pub(crate) lists: Vec<(Kind, Start, Start)>,
    pub(crate) delays: Vec<Delay>,
    pub(crate) growth: Vec<Growth>,
}

/// One workload, everybody's series. The first is the echo's.
pub(crate) struct Board {
    pub(crate) label: &'static str,
    pub(crate) workload: Workload,
    pub(crate) rows: Vec<(String, Kind, Series)>,
}

/// Delay at half of the own greatest rate.
pub(crate) struct Delay {
    pub(crate) kind: Kind,
    pub(crate) rate: f64,
    pub(crate) p99: Vec<f64>,
}

/// Cost against size.
pub(crate) struct Growth {
    pub(crate) file: &'static str,
    pub(crate) title: &'static str,
    pub(crate) axis: &'static str,
    pub(crate) points: Vec<(usize, Estimate)>,
}

/// Rows of ours besides the plain one.
pub(crate) const WITH_LIST: &str = "tunnelwarden, long list";
pub(crate) const TWO_WORKERS: &str = "tunnelwarden, two workers";
/// How much of what a second worker costs is the kernel's own.
pub(crate) const TWO_ECHOES: &str = "echo, two workers";

pub(crate) fn run(effort: Effort, binary: PathBuf) -> anyhow::Result<Results> {
    let plan = match effort {
        Effort::Full => &FULL,
        Effort::Quick => &QUICK,
    };
    let began = Instant::now();
    let load_before = machine::load_average();
    kernel::pin(&[LOAD_CPU]).context("cannot choose a CPU")?;
    let dir = tempfile::Builder::new().prefix("tunnelwarden-bench-").tempdir().context("cannot make a folder")?;
    let upstream = free_address()?;
    let ground = Ground { dir: dir.path().to_owned(), upstream, binary };
    let own_program = env::current_exe().context("cannot find this program")?;
    let mut server =
        Server::start(&own_program, &["upstream".into(), upstream.to_string()], dir.path(), upstream, &[LOAD_CPU])?;
    server.await_answer("first.example", NOERROR)?;

    let (present, missing) = Kind::PEERS.into_iter().partition::<Vec<_>, _>(|kind| kind.program(&ground).is_some());
    tell_missing(&missing);
    let kinds: Vec<_> = [Kind::Tunnelwarden].into_iter().chain(present).collect();
    let mut trial = Trial { plan, ground, kinds, cursor: 0 };
    let starts = trial.starts()?;
    let lists = trial.lists(&starts)?;
    let entries = trial.entries()?;
    let boards = trial.boards(&entries)?;
    let tcp = trial.tcp(&entries)?;
    let delays = trial.delays(&entries, &boards)?;
    drop(entries);
    let growth = vec![trial.patterns()?, trial.cached()?, trial.groups()?];
    Ok(Results {
        effort,
        machine: machine::describe(),
        date: Timestamp::now().strftime("%Y-%m-%d").to_string(),
        took: began.elapsed(),
        load: (load_before, machine::load_average()),
        rounds: plan.rounds,
        time: plan.time,
        present: trial.kinds.iter().map(|kind| (*kind, kind.version())).collect(),
        missing,
        boards,
        tcp,
        listed: plan.listed,
        lists,
        delays,
        growth,
    })
}

fn tell_missing(missing: &[Kind]) {
    if missing.is_empty() {
        return;
    }
    let names: Vec<_> = missing.iter().map(|kind| kind.name()).collect();
    let packages: Vec<_> = missing.iter().filter_map(|kind| kind.package()).collect();
    eprintln!("not here, and left out: {}. On Debian, as root:", names.join(", "));
    eprintln!("  apt-get install --no-install-recommends {}", packages.join(" "));
    eprintln!("(their services start at once; the bench does not need them: systemctl disable --now ..)");
}

/// What goes through all parts of the run.
struct Trial {
    plan: &'static Plan,
    ground: Ground,
    /// Ours first.
    kinds: Vec<Kind>,
    /// The next question's number: no two runs ask the same new name.
    cursor: u64,
}

impl Trial {
    /// Starts each a few times with the short policy; the median one counts.
    fn starts(&mut self) -> anyhow::Result<Vec<(Kind, Start)>> {
        progress("starts");
        let mut starts = Vec::new();
        for &kind in &self.kinds {
            let mut all = Vec::new();
            for _ in 0..self.plan.starts {
                all.push(self.up(kind, Terms::default())?.1);
            }
            all.sort_by_key(|start| start.time);
            starts.push((kind, all[all.len() / 2]));
        }
        Ok(starts)
    }

    /// Starts each with the long list.
    fn lists(&mut self, short: &[(Kind, Start)]) -> anyhow::Result<Vec<(Kind, Start, Start)>> {
        let terms = Terms { listed: self.plan.listed, ..Terms::default() };
        let mut lists = Vec::new();
        for &(kind, short) in short {
            progress(&format!("{} with {} names", kind.name(), self.plan.listed));
            lists.push((kind, short, self.up(kind, terms)?.1));
        }
        Ok(lists)
    }

    /// Everybody at once, the echo first.
    fn entries(&mut self) -> anyhow::Result<Vec<Entry>> {
        progress("everybody up");
        let mut entries = vec![self.entry(Kind::Echo, Kind::Echo.name(), Terms::default())?];
        for &kind in &self.kinds {
            entries.push(self.entry(kind, kind.name(), Terms::default())?);
        }
        let long = Terms { listed: self.plan.listed, ..Terms::default() };
        entries.push(self.entry(Kind::Tunnelwarden, WITH_LIST, long)?);
        let both = Terms { both_cpus: true, ..Terms::default() };
        entries.push(self.entry(Kind::Echo, TWO_ECHOES, both)?);
        entries.push(self.entry(Kind::Tunnelwarden, TWO_WORKERS, both)?);
        Ok(entries)
    }

    fn boards(&mut self, entries: &[Entry]) -> anyhow::Result<Vec<Board>> {
        let mut boards = Vec::new();
        for workload in Workload::ALL {
            let takes_part = |entry: &&Entry| match entry.label.as_str() {
                WITH_LIST => workload == Workload::Blocked,
                TWO_ECHOES | TWO_WORKERS => matches!(workload, Workload::Blocked | Workload::Cached),
                _ => true,
            };
            let entries: Vec<_> = entries.iter().filter(takes_part).collect();
            boards.push(self.board(workload.label(), workload, &entries, Carrier::Udp)?);
        }
        Ok(boards)
    }

    /// Cached answers over TCP, of those whose cost can be told.
    fn tcp(&mut self, entries: &[Entry]) -> anyhow::Result<Board> {
        let takes_part = |entry: &&Entry| {
            !matches!(entry.kind, Kind::Echo | Kind::Dnsmasq) && ![WITH_LIST, TWO_WORKERS].contains(&&*entry.label)
        };
        let entries: Vec<_> = entries.iter().filter(takes_part).collect();
        for entry in &entries {
            // dnsdist keeps what came over TCP apart from what came over UDP.
            let questions = Workload::Cached.questions();
            ask_over_tcp(entry.server.address, &questions, &mut 0, self.plan.time)
                .with_context(|| format!("{} does not answer over TCP", entry.label))?;
        }
        self.board("TCP cached, 16 connections", Workload::Cached, &entries, Carrier::Tcp)
    }

    fn board(
        &mut self,
        label: &'static str,
        workload: Workload,
        entries: &[&Entry],
        carrier: Carrier,
    ) -> anyhow::Result<Board> {
        let questions = workload.questions();
        let pairs: Vec<_> = entries.iter().map(|entry| (*entry, &questions)).collect();
        let mut rows: Vec<_> =
            entries.iter().map(|entry| (entry.label.clone(), entry.kind, Series::default())).collect();
        for number in 0..self.plan.rounds {
            progress(&format!("{label}, round {} of {}", number + 1, self.plan.rounds));
            let samples = round(number, &pairs, workload.is_warm(), carrier, &mut self.cursor, self.plan.time)?;
            rows.iter_mut().zip(samples).for_each(|((_, _, series), sample)| series.0.push(sample));
        }
        let unit = rows.first().map(|row| row.2.cost()).unwrap_or(f64::NAN);
        for (name, _, series) in &rows {
            progress(&format!("  {name}: {:.2} us, {:.2} of the first", series.cost(), series.cost() / unit));
        }
        Ok(Board { label, workload, rows })
    }

    /// 99 % of the cached answers come within this time, at half of the rate that each can do.
    fn delays(&mut self, entries: &[Entry], boards: &[Board]) -> anyhow::Result<Vec<Delay>> {
        let cached = boards.iter().find(|board| board.workload == Workload::Cached);
        let rows = cached.map(|board| board.rows.as_slice()).unwrap_or_default();
        let rate_of =
            |entry: &Entry| rows.iter().find(|(label, ..)| *label == entry.label).map(|row| row.2.qps() / 2.0);
        let takes_part = |entry: &&Entry| entry.kind.name() == entry.label && entry.kind != Kind::Echo;
        let entries: Vec<_> = entries.iter().filter(takes_part).collect();
        let questions = Workload::Cached.questions();
        let mut delays = Vec::new();
        for entry in &entries {
            let rate = rate_of(entry).context("it was not asked before")?;
            delays.push(Delay { kind: entry.kind, rate, p99: Vec::new() });
        }
        for number in 0..self.plan.delay_rounds {
            progress(&format!("delay at half load, round {} of {}", number + 1, self.plan.delay_rounds));
            for (entry, delay) in entries.iter().zip(&mut delays) {
                warm(&entry.server, &questions)?;
                let pace = Pace::Rate(delay.rate, self.plan.delay_time);
                delay.p99.push(ask(entry.server.address, &questions, &mut self.cursor, pace)?.p99());
            }
        }
        Ok(delays)
    }

    fn patterns(&mut self) -> anyhow::Result<Growth> {
        let questions = Workload::Blocked.questions();
        let listed = |listed| (Terms { listed, ..Terms::default() }, questions.clone());
        Ok(Growth {
            file: "performance-patterns.svg",
            title: "A refused question, with so many patterns in the policy",
            axis: "patterns",
            points: self.grow("patterns", self.plan.patterns, listed, false)?,
        })
    }

    fn cached(&mut self) -> anyhow::Result<Growth> {
        let cached = |count| (Terms { cache: LARGE_CACHE, ..Terms::default() }, Questions::allowed(count));
        Ok(Growth {
            file: "performance-cached.svg",
            title: "A cached answer, with so many names in the cache, all of them asked",
            axis: "cached names",
            points: self.grow("cached names", self.plan.cached, cached, true)?,
        })
    }

    fn groups(&mut self) -> anyhow::Result<Growth> {
        let groups = |groups| (Terms { groups, ..Terms::default() }, Questions::allowed_by(groups));
        Ok(Growth {
            file: "performance-groups.svg",
            title: "A cached answer, with so many groups of clients, all of them asking",
            axis: "client groups",
            points: self.grow("client groups", self.plan.groups, groups, true)?,
        })
    }

    /// One server of ours for each size, all in the same rounds.
    fn grow(
        &mut self,
        what: &str,
        sizes: &[usize],
        terms: impl Fn(usize) -> (Terms, Questions),
        fill: bool,
    ) -> anyhow::Result<Vec<(usize, Estimate)>> {
        let mut entries = Vec::new();
        for &size in sizes {
            progress(&format!("{size} {what}"));
            let (terms, questions) = terms(size);
            let entry = self.entry(Kind::Tunnelwarden, &format!("tunnelwarden, {size} {what}"), terms)?;
            if fill {
                warm(&entry.server, &questions)?;
            }
            entries.push((entry, questions));
        }
        let echo = self.entry(Kind::Echo, Kind::Echo.name(), Terms::default())?;
        let plain = Workload::Blocked.questions();
        let pairs: Vec<_> =
            [(&echo, &plain)].into_iter().chain(entries.iter().map(|(entry, list)| (entry, list))).collect();
        let mut series = vec![Series::default(); pairs.len()];
        for number in 0..self.plan.growth_rounds {
            progress(&format!("{what}, round {} of {}", number + 1, self.plan.growth_rounds));
            let samples = round(number, &pairs, false, Carrier::Udp, &mut self.cursor, self.plan.growth_time)?;
            series.iter_mut().zip(samples).for_each(|(series, sample)| series.0.push(sample));
        }
        let (echo, rest) = series.split_first().context("nobody took part")?;
        Ok(sizes.iter().zip(rest).map(|(&size, series)| (size, series.times(echo))).collect())
    }

    fn entry(&self, kind: Kind, label: &str, terms: Terms) -> anyhow::Result<Entry> {
        Ok(Entry { label: label.to_owned(), kind, server: self.up(kind, terms)?.0 })
    }

    /// Starts one and waits until its whole policy is in force.
    fn up(&self, kind: Kind, terms: Terms) -> anyhow::Result<(Server, Start)> {
        let last = terms.listed.checked_sub(1).map(listed_name);
        let name = last.unwrap_or_else(|| format!("first.{}", BLOCKED[0]));
        let rcode = if kind == Kind::Echo { NOERROR } else { NXDOMAIN };
        let start = || -> anyhow::Result<_> {
            let mut server = kind.start(&self.ground, terms)?;
            let start = server.await_answer(&name, rcode)?;
            Ok((server, start))
        };
        start().with_context(|| format!("{} does not start", kind.name()))
    }
}

impl Delay {
    pub(crate) fn p99(&self) -> f64 {
        median(&self.p99)
    }

    /// As a multiple of another's, round by round.
    pub(crate) fn times(&self, other: &Self) -> Estimate {
        estimate(&self.p99.iter().zip(&other.p99).map(|(own, other)| own / other).collect::<Vec<_>>())
    }
}

fn progress(what: &str) {
    eprintln!("  {what}");
}
