//! What was measured, as tables for the terminal and for the document.

use std::fmt::Write as _;

use crate::{
    answers::Cost,
    bare::Standing,
    figures::{Estimate, estimate, median, thousands},
    trial::{Answers, Board, Memory, Results, Series, Way, What},
};

/// Routed packets: so much of what goes without rules, at least.
const ROUTED: f64 = 0.8;
/// One stream through the gate, by one that is routed.
const GATED: f64 = 0.7;

/// The document's part.
pub(crate) fn part(results: &Results) -> String {
    let mut text = String::from(INTRODUCTION);
    let effort = results.effort;
    let _ = write!(
        text,
        "{}.\n{}; {} rounds; streams of {} ms, {} connections; load average {:.2} before, {:.2} after.\n\n",
        results.machine,
        results.date,
        effort.rounds,
        effort.time.as_millis(),
        thousands(effort.connections as u64),
        results.load.0,
        results.load.1
    );
    text.push_str(&tables(results));
    text
}

const INTRODUCTION: &str = "## The firewall

Written by `just bench-firewall`. Client, appliance and internet are network namespaces on one machine, joined by
virtual cables, a row of three for every kind of appliance; the client runs on CPU 0, the server on CPU 1, the daemon
where the kernel puts it. In every round each kind runs once, one right after the other, beginning with another one each
time. A **ratio** is a rate by that of plain routing in the same round, its median and 95 % interval (bootstrap over the
rounds); the goal is met where the interval, or an end of it, is. There is no flowtable, and clients' packets of
connections that exist pass every refusal.

Virtual cables carry a stream in pieces of up to 64 KiB, and a rule looks at each once. *One packet at a time* is the
same stream cut as on a wire, for which no machine with a real network card has to route so many. A small datagram is
carried all the way by the thread that sends it, whose own part is in the figures. A connection is counted from the
call to the first byte of the server's, with a TLS hello in between.

";

/// All of them.
pub(crate) fn tables(results: &Results) -> String {
    let mut text = String::new();
    push_goals(results, &mut text);
    let leases = thousands(results.leases.into());
    let _ = writeln!(text, "### Packets, with {leases} leases in the sets");
    results.boards.iter().for_each(|board| push_board(board, &mut text));
    if let Some(beyond) = &results.beyond {
        push_answers(&beyond.answers, &mut text);
        push_keeper(&beyond.standings, &mut text);
        push_memory(&results.memory, &mut text);
    }
    text
}

fn push_goals(results: &Results, text: &mut String) {
    text.push_str("| ratio | | goal | |\n|---|---|---|---|\n");
    let mut goal = |what: String, ratio: Option<Estimate>, least: f64| {
        if let Some(Estimate { median, low, high }) = ratio {
            // The smaller the better, for who judges.
            let standing = Estimate { median: -median, low: -high, high: -low }.standing(-least).word();
            let _ =
                writeln!(text, "| {what} | {median:.2} ({low:.2} - {high:.2}) | at least {least:.2} | {standing} |");
        }
    };
    for board in &results.boards {
        for way in [Way::Ruleset, Way::Strict] {
            let ratio = board.ratio(way, Way::Plain);
            goal(format!("{}, {} by no rules", board.what.title(), way.name()), ratio, ROUTED);
        }
        if [What::Stream, What::SingleStream].contains(&board.what) {
            for way in [Way::Gate, Way::OtherGate] {
                goal(
                    format!("{}, {} by the ruleset", board.what.title(), way.name()),
                    board.ratio(way, Way::Ruleset),
                    GATED,
                );
            }
        }
    }
    text.push('\n');
}

impl What {
    fn title(self) -> &'static str {
        match self {
            Self::Stream => "one stream",
            Self::SingleStream => "one stream, one packet at a time",
            Self::SetUp => "connections",
            Self::Datagrams => "small datagrams",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Stream | Self::SingleStream => "Gbit/s",
            Self::SetUp => "a second",
            Self::Datagrams => "thousands a second of CPU",
        }
    }

    fn shown(self, rate: f64) -> String {
        match self {
            Self::Stream | Self::SingleStream => format!("{:.2}", rate * 8.0 / 1e9),
            Self::SetUp => thousands(rate as u64),
            Self::Datagrams => format!("{:.0}", rate / 1e3),
        }
    }
}

impl Board {
    fn series(&self, way: Way) -> Option<&Series> {
        self.rows.iter().find(|series| series.way == way)
    }

    /// Round by round.
    fn ratio(&self, way: Way, by: Way) -> Option<Estimate> {
        let (one, other) = (self.series(way)?, self.series(by)?);
        let ratios: Vec<_> = one.rates.iter().zip(&other.rates).map(|(one, other)| one / other).collect();
        Some(estimate(&ratios))
    }
}

fn push_board(board: &Board, text: &mut String) {
    let what = board.what;
    let with_delays = what == What::SetUp;
    let (heads, rule) = if with_delays { (" p50, us | p99, us |", "---|---|") } else { ("", "") };
    let _ = writeln!(text, "\n| {} | {} | ratio | 95 % |{heads}\n|---|---|---|---|{rule}", what.title(), what.unit());
    for series in &board.rows {
        let Some(Estimate { median: ratio, low, high }) = board.ratio(series.way, Way::Plain) else { continue };
        let rate = what.shown(median(&series.rates));
        let _ = write!(text, "| {} | {rate} | {ratio:.2} | {low:.2} - {high:.2} |", series.way.name());
        if with_delays {
            let [p50, p99] = [0, 1].map(|which| {
                let delays: Vec<_> = series.delays.iter().map(|delays| delays[which] * 1e6).collect();
                median(&delays)
            });
            let _ = write!(text, " {p50:.0} | {p99:.0} |");
        }
        text.push('\n');
    }
}

fn push_answers(answers: &[Answers], text: &mut String) {
    text.push_str(
        "\n### A lease for each answer\n\nAll answers are in the cache. A *known* lease costs a look into a table; a \
         *new* one, of a client that never asked for the name, a message to the keeper and the kernel's yes. CPU is \
         the daemon's and the keeper's; the difference is what the firewall adds.\n\n\
         | lease | CPU without, us | with, us | more, us | 95 % | p50 without, us | with, us | p99 without, us | \
         with, us |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for answers in answers {
        let us = |of: fn(&Cost) -> f64, costs: &[Cost]| costs.iter().map(|cost| of(cost) * 1e6).collect::<Vec<_>>();
        let cpu: fn(&Cost) -> f64 = |cost| cost.cpu.as_secs_f64();
        let (without, with) = (us(cpu, &answers.without), us(cpu, &answers.with));
        let more: Vec<_> = with.iter().zip(&without).map(|(with, without)| with - without).collect();
        let Estimate { median: middle, low, high } = estimate(&more);
        let _ = write!(
            text,
            "| {} | {:.1} | {:.1} | {middle:.1} | {low:.1} - {high:.1} |",
            answers.what,
            median(&without),
            median(&with)
        );
        let delays: [fn(&Cost) -> f64; 2] = [|cost| cost.p50.as_secs_f64(), |cost| cost.p99.as_secs_f64()];
        for delay in delays {
            let [without, with] = [&answers.without, &answers.with].map(|costs| median(&us(delay, costs)));
            let _ = write!(text, " {without:.0} | {with:.0} |");
        }
        text.push('\n');
    }
}

fn push_keeper(standings: &[Standing], text: &mut String) {
    text.push_str(
        "\n### The keeper\n\nFewer ingress addresses are ever learned, so leases fill the sets here; a gateway's are the \
         larger elements too. *Insert* is one lease, from the request to the reply that the kernel has it; *replaced* \
         is from the request for other rules, the configuration read anew, to the reply that they stand.\n\n\
         | leases | insert p50, us | p99, us | replaced, ms | longest, ms | keeper, MB | kernel, MB more |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for Standing { leases, insert, reload, memory } in standings {
        let [p50, p99] = insert.map(|delay| delay.as_secs_f64() * 1e6);
        let [middle, longest] = reload.map(|delay| delay.as_secs_f64() * 1e3);
        let (keeper, kernel) = (memory.0 as f64 / 1e6, memory.1 as f64 / 1e6);
        let leases = thousands((*leases).into());
        let _ = writeln!(
            text,
            "| {leases} | {p50:.0} | {p99:.0} | {middle:.0} | {longest:.0} | {keeper:.1} | {kernel:.1} |"
        );
    }
}

fn push_memory(memory: &[Memory], text: &mut String) {
    text.push_str(
        "\n### Memory\n\nResident. The clients ask the same questions with and without a firewall; each answer has 16 \
         addresses.\n\n| | leases asked for | daemon, MB | keeper, MB |\n|---|---|---|---|\n",
    );
    for memory in memory {
        let (daemon, keeper) = (memory.daemon as f64 / 1e6, memory.keeper as f64 / 1e6);
        let _ = writeln!(text, "| {} | {} | {daemon:.1} | {keeper:.1} |", memory.what, thousands(memory.leases.into()));
    }
}
