//! What is measured, in which order and how often.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use jiff::Timestamp;

use crate::{
    answers::{self, Cost, client},
    bare::{self, Standing},
    machine,
    road::{INGRESS, Road, Rules, SITE},
    traffic::{self, SetUp},
};

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    /// A stream's, and a flow's of datagrams.
    pub(crate) time: Duration,
    pub(crate) connections: usize,
    /// In the sets while packets are measured, and for the keeper alone.
    pub(crate) clients_that_fill: u32,
    pub(crate) leases: u32,
    pub(crate) inserts: u32,
    pub(crate) reloads: usize,
}

impl Effort {
    pub(crate) const FULL: Self = Self {
        rounds: 12,
        time: Duration::from_millis(1500),
        connections: 1000,
        clients_that_fill: 50,
        leases: 100_000,
        inserts: 5000,
        reloads: 15,
    };
    pub(crate) const QUICK: Self = Self {
        rounds: 1,
        time: Duration::from_millis(200),
        connections: 100,
        clients_that_fill: 5,
        leases: 100_000,
        inserts: 500,
        reloads: 2,
    };
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    Plain,
    Tracked,
    Ruleset,
    Strict,
    Gate,
    /// Another tunnelwarden's gate, for a before and after.
    OtherGate,
}

impl Way {
    const ALL: [Self; 6] = [Self::Plain, Self::Tracked, Self::Ruleset, Self::Strict, Self::Gate, Self::OtherGate];

    fn is_gate(self) -> bool {
        matches!(self, Self::Gate | Self::OtherGate)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "no rules",
            Self::Tracked => "no rules but one that asks for a connection's state",
            Self::Ruleset => "the ruleset",
            Self::Strict => "the ruleset, strict",
            Self::Gate => "the gate",
            Self::OtherGate => "the gate of the other",
        }
    }
}

/// What is measured of it.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum What {
    Stream,
    #[value(name = "single")]
    SingleStream,
    #[value(name = "connections")]
    SetUp,
    Datagrams,
}

impl What {
    pub(crate) const ALL: [Self; 4] = [Self::Stream, Self::SingleStream, Self::SetUp, Self::Datagrams];
}

/// All rounds of one way; of datagrams the gate has none.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) way: Way,
    /// A second: bytes, connections, datagrams.
    pub(crate) rates: Vec<f64>,
    /// Seconds: median and 99 of 100; connections alone have them.
    pub(crate) delays: Vec<[f64; 2]>,
}

#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) what: What,
    pub(crate) rows: Vec<Series>,
}

/// Costs of an answer, all rounds, without the firewall and with it.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) what: &'static str,
    pub(crate) without: Vec<Cost>,
    pub(crate) with: Vec<Cost>,
}

/// Bytes: of the daemon and its keeper.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) what: &'static str,
    pub(crate) leases: u32,
    pub(crate) daemon: u64,
    pub(crate) keeper: u64,
}

#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) effort: Effort,
    pub(crate) machine: String,
    pub(crate) date: String,
    pub(crate) load: (f64, f64),
    pub(crate) boards: Vec<Board>,
    /// In the sets while packets were measured.
    pub(crate) leases: u32,
    pub(crate) memory: Vec<Memory>,
    /// None where packets alone were asked for.
    pub(crate) beyond: Option<Beyond>,
}

/// What is measured beside packets.
#[derive(Debug)]
pub(crate) struct Beyond {
    pub(crate) answers: [Answers; 4],
    pub(crate) standings: [Standing; 2],
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Wanted<'b> {
    pub(crate) binary: &'b Path,
    pub(crate) other: Option<&'b Path>,
    /// Packets, and these alone; empty: everything.
    pub(crate) only: Vec<What>,
}

/// A road for each kind of appliance.
struct Roads {
    plain: Road,
    tracked: Road,
    ruleset: Road,
    strict: Road,
    other: Option<Road>,
}

pub(crate) fn run(effort: Effort, wanted: &Wanted<'_>) -> anyhow::Result<Results> {
    let load_before = machine::load_average();
    let mut beyond = wanted.only.is_empty().then(|| Beyond::begin(effort, wanted.binary)).transpose()?;
    let roads = Roads::build(wanted)?;
    say("leases");
    let (memory, leases) = roads.fill(effort.clients_that_fill)?;
    let is_wanted = |what: &What| wanted.only.is_empty() || wanted.only.contains(what);
    let has_road = |way: &Way| *way != Way::OtherGate || roads.other.is_some();
    let board = |what| Board::new(what, Way::ALL.into_iter().filter(has_road));
    let mut boards: Vec<_> = What::ALL.into_iter().filter(is_wanted).map(board).collect();
    let mut fresh = effort.clients_that_fill;
    for round in 0..effort.rounds {
        say(&format!("round {} of {}", round + 1, effort.rounds));
        for board in &mut boards {
            board.run_round(&roads, round, effort).with_context(|| format!("{:?}", board.what))?;
        }
        if let Some(beyond) = &mut beyond {
            roads.ask_round(&mut beyond.answers, &mut fresh).context("answers")?;
        }
    }
    Ok(Results {
        effort,
        machine: machine::describe(),
        date: Timestamp::now().strftime("%Y-%m-%d").to_string(),
        load: (load_before, machine::load_average()),
        boards,
        leases,
        memory,
        beyond,
    })
}

fn say(what: &str) {
    eprintln!("bench: {what}");
}

impl Beyond {
    fn begin(effort: Effort, binary: &Path) -> anyhow::Result<Self> {
        say("the keeper alone");
        let standings = bare::measure(binary, effort.leases, effort.inserts, effort.reloads)?;
        let answers = ["known", "new", "known, 16 on the way", "new, 16 on the way"].map(Answers::new);
        Ok(Self { answers, standings })
    }
}

impl Roads {
    fn build(wanted: &Wanted<'_>) -> anyhow::Result<Self> {
        let with = |rules, binary| Road::with(rules, binary).with_context(|| format!("a road with {rules:?}"));
        let road = |rules| with(rules, wanted.binary);
        let roads = Self {
            plain: road(Rules::None)?,
            tracked: road(Rules::Tracking)?,
            ruleset: road(Rules::Gateway)?,
            strict: road(Rules::Strict)?,
            other: wanted.other.map(|binary| with(Rules::Gateway, binary)).transpose()?,
        };
        [&roads.plain, &roads.ruleset, &roads.strict].into_iter().try_for_each(answers::resolve_site)?;
        Ok(roads)
    }

    fn of(&self, way: Way) -> anyhow::Result<&Road> {
        Ok(match way {
            Way::Plain => &self.plain,
            Way::Tracked => &self.tracked,
            Way::Ruleset | Way::Gate => &self.ruleset,
            Way::Strict => &self.strict,
            Way::OtherGate => self.other.as_ref().context("no other")?,
        })
    }

    /// Memory before and after.
    fn fill(&self, clients: u32) -> anyhow::Result<(Vec<Memory>, u32)> {
        let mut memory = vec![memory("no firewall", &self.plain, 0)?, memory("firewall", &self.ruleset, 0)?];
        // Without a firewall as well: what the cache takes is not the leases'.
        answers::fill(&self.plain, clients)?;
        let leases = answers::fill(&self.ruleset, clients)?;
        for road in [&self.strict].into_iter().chain(&self.other) {
            answers::fill(road, clients)?;
        }
        memory.push(self::memory("no firewall", &self.plain, leases)?);
        memory.push(self::memory("firewall", &self.ruleset, leases)?);
        Ok((memory, leases))
    }

    /// Each way of asking, without a firewall and with it; those that are new have never asked before.
    fn ask_round(&self, answers: &mut [Answers; 4], fresh: &mut u32) -> anyhow::Result<()> {
        let old = [client(*fresh)];
        let ones = [client(*fresh + 1), client(*fresh + 2)];
        let many: Vec<_> = (3..15).map(|number| client(*fresh + number)).collect();
        *fresh += 15;
        for road in [&self.plain, &self.ruleset] {
            // The names are in the cache from here on, and the leases of the old client are known.
            answers::measure(road, &old, 1, 1)?;
            let costs = [
                answers::measure(road, &old, 2, 1)?,
                answers::measure(road, &ones, 1, 1)?,
                answers::measure(road, &old, 12, 16)?,
                answers::measure(road, &many, 1, 16)?,
            ];
            for (answers, cost) in answers.iter_mut().zip(costs) {
                let into = if std::ptr::eq(road, &self.plain) { &mut answers.without } else { &mut answers.with };
                into.push(cost);
            }
        }
        Ok(())
    }
}

fn memory(what: &'static str, road: &Road, leases: u32) -> anyhow::Result<Memory> {
    let (daemon, keeper) = road.daemon.as_ref().context("no daemon")?.memory();
    Ok(Memory { what, leases, daemon, keeper })
}

impl Answers {
    fn new(what: &'static str) -> Self {
        Self { what, without: Vec::new(), with: Vec::new() }
    }
}

impl Board {
    fn new(what: What, ways: impl Iterator<Item = Way>) -> Self {
        let ways = ways.filter(|way| !way.is_gate() || what != What::Datagrams);
        Self { what, rows: ways.map(|way| Series { way, rates: Vec::new(), delays: Vec::new() }).collect() }
    }

    /// Begins with another way each time.
    fn run_round(&mut self, roads: &Roads, round: usize, effort: Effort) -> anyhow::Result<()> {
        let count = self.rows.len();
        for place in 0..count {
            let series = &mut self.rows[(round + place) % count];
            let road = roads.of(series.way)?;
            let to = if series.way.is_gate() { INGRESS } else { SITE };
            let rate = match self.what {
                What::Stream => traffic::stream(road, to, effort.time),
                What::SingleStream => {
                    road.send_one_by_one(true);
                    let rate = traffic::stream(road, to, effort.time);
                    road.send_one_by_one(false);
                    rate
                }
                What::Datagrams => traffic::datagrams(road, effort.time),
                What::SetUp => traffic::set_up(road, to, effort.connections).map(|SetUp { per_second, p50, p99 }| {
                    series.delays.push([p50, p99].map(|delay| delay.as_secs_f64()));
                    per_second
                }),
            };
            series.rates.push(rate.with_context(|| series.way.name())?);
        }
        Ok(())
    }
}
