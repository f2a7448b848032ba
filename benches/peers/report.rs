//! What was measured, as tables for the terminal and as the document.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context;

use crate::{
    contestant::Kind,
    duel::Series,
    figures::{Estimate, Standing, thousands},
    plot::svg,
    question::Workload,
    section,
    server::Start,
    trial::{Board, Effort, Results, TWO_ECHOES, TWO_WORKERS, WITH_LIST},
};

/// One line of the goals' table.
struct Goal {
    what: String,
    ours: String,
    goal: String,
    standing: Option<Standing>,
}

/// Other load, in CPUs, above which figures are not to be quoted.
const NOISY: f64 = 0.25;

pub(crate) fn print(results: &Results) {
    println!("{}", tables(results));
    if results.effort == Effort::Quick {
        println!("One short round: it all runs, and the figures mean nothing.");
    }
}

/// Writes the document and the plots.
pub(crate) fn write(results: &Results, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let put = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let mut text = document(results);
    let firewall = section::read(&dir.join("performance.md"));
    if !firewall.is_empty() {
        let _ = write!(text, "\n{firewall}");
    }
    put("performance.md", text)?;
    for growth in &results.growth {
        put(growth.file, svg(growth))?;
    }
    println!("written: performance.md and {} plots in {}", results.growth.len(), dir.display());
    Ok(())
}

fn document(results: &Results) -> String {
    let mut text = String::from(INTRODUCTION);
    let _ = write!(
        text,
        "\n## The run\n\n{}.\n{}; {} rounds of {} ms; load average {:.2} before, {:.2} after; {} minutes in all.\n",
        results.machine,
        results.date,
        results.rounds,
        results.time.as_millis(),
        results.load.0,
        results.load.1,
        results.took.as_secs().div_ceil(60),
    );
    if !results.missing.is_empty() {
        let names: Vec<_> = results.missing.iter().map(|kind| kind.name()).collect();
        let _ = writeln!(text, "Not installed, and so left out: {}.", names.join(", "));
    }
    text.push('\n');
    text.push_str(&tables(results));
    text.push_str(WHERE_THE_TIME_GOES);
    text.push_str("\n## How cost grows\n\nOurs alone; flat is the goal. The bars are 95 % intervals.\n");
    for growth in &results.growth {
        let _ = write!(text, "\n![{}]({})\n", growth.title, growth.file);
    }
    text.push_str("\n## What each does in the run, and what not\n\n| | version | |\n|---|---|---|\n");
    let echo = (Kind::Echo, Kind::Echo.version());
    for (kind, version) in [&echo].into_iter().chain(&results.present) {
        let _ = writeln!(text, "| {} | {version} | {} |", kind.name(), kind.account());
    }
    text
}

const WHERE_THE_TIME_GOES: &str = "
## Where the time goes

By `perf record` (cpu-clock, as the machine has no counters) on 2026-11-25, for the workloads that miss their goal.

**D all miss.** 73 % of a question's time is the kernel's: 26 % sends the query, 24 % the answer, 11 % receives both, 5 %
gives every fifth query a new port, 2 % waits. Of the 23 % that are ours no function has more than 1.3 %: cache 3.5 %,
questions in flight and their places 4 %, memory 2.6 %, packets read and judged 3 %. The kernel's part alone is
2.2 times the echo; dnsdist, which keeps one port and looks at no answer, stands at 2.7 to 3.3. Tried and kept: one thread
that asks, hears and answers; sockets that change their port instead of being closed; answers sent together; mimalloc
(3.20 to 2.79 times the echo; jemalloc 3.62). Not taken: fewer ports, ids without a generator fit for secrets.

**A with 100,000 pairs.** 16 % is the record's thread: SQLite's statements and pages, and the copies they are made from,
since every count that has changed is saved each second. The thread that answers spends 2 % on counting.

**Two workers.** They share both CPUs with the load; a bare echo with two threads, in the table, grows too.
";

const INTRODUCTION: &str = "# Performance

What a question costs, beside what it costs others, on the same machine in the same minutes. Written by
`just bench-peers`; run it again rather than believe it.

## How it is measured

Every server listens on loopback, runs on CPU 1 with one worker where it has such a setting, has the same
policy and asks the same upstream, a stand-in that answers every name at once. The load and the upstream run on
CPU 0: eight sockets with 16 questions on the way on each, as fast as answers come. In every round each server
runs once, one right after the other, beginning with another one each time.

**Cost** is the CPU time of all threads of the server, and of the kernel's packet thread on its CPU, for each
answered question; where tunnelwarden refuses, what it spends within a second after the run to write its record
counts too. All of it is divided by what a bare UDP echo (one receive, one send) cost in the same round on
the same workload. The median of these ratios is shown with its 95 % interval (bootstrap over the rounds). The
rate and the microseconds depend on the machine and on its other guests; the ratio much less so.

A goal counts as met where the interval, or an end of it, is within the goal.
";

/// All tables, the goals first.
fn tables(results: &Results) -> String {
    let mut text = String::new();
    if results.effort == Effort::Full {
        text.push_str("## Goals\n\n| | tunnelwarden | goal | |\n|---|---|---|---|\n");
        for Goal { what, ours, goal, standing } in goals(results) {
            let _ = writeln!(text, "| {what} | {ours} | {goal} | {} |", standing.map_or("not judged", Standing::word));
        }
        text.push('\n');
    }
    text.push_str("## Cost, echo = 1\n");
    for board in &results.boards {
        push_board(board, &mut text);
    }
    push_tcp(&results.tcp, &mut text);
    push_delays(results, &mut text);
    push_starts(results, &mut text);
    push_growth(results, &mut text);
    text
}

fn push_board(board: &Board, text: &mut String) {
    let Some((_, _, echo)) = board.rows.first() else { return };
    let _ = write!(
        text,
        "\n### {}\n\n| | cost | 95 % | us a question | answers a second | lost | wrong |\n|---|---|---|---|---|---|---|\n",
        board.label
    );
    for (label, _, series) in &board.rows {
        let Estimate { median, low, high } = series.times(echo);
        let _ = writeln!(
            text,
            "| {label} | {median:.2} | {low:.2} - {high:.2} | {:.2} | {} | {} | {} |",
            series.cost(),
            thousands(series.qps() as u64),
            series.lost(),
            series.wrong()
        );
    }
    let others = echo.others();
    if others > NOISY {
        let _ = writeln!(text, "\nSomething else kept {others:.2} CPUs busy during the echo's runs: not to be quoted.");
    }
}

fn push_tcp(board: &Board, text: &mut String) {
    let _ = write!(
        text,
        "\n### {}\n\n| | us a question | answers a second | lost | wrong |\n|---|---|---|---|---|\n",
        board.label
    );
    for (label, _, series) in &board.rows {
        let rate = thousands(series.qps() as u64);
        let _ = writeln!(text, "| {label} | {:.2} | {rate} | {} | {} |", series.cost(), series.lost(), series.wrong());
    }
}

fn push_delays(results: &Results, text: &mut String) {
    text.push_str(
        "\n### Cached, at half of the own greatest rate\n\n| | questions a second | p99, us |\n|---|---|---|\n",
    );
    for delay in &results.delays {
        let _ = writeln!(text, "| {} | {} | {:.0} |", delay.kind.name(), thousands(delay.rate as u64), delay.p99());
    }
}

fn push_starts(results: &Results, text: &mut String) {
    let _ = write!(
        text,
        "\n### Start and memory\n\nUntil the first right answer to a blocked name; resident memory then, caches empty. \
         The long list has {} names.\n\n\
         | | start, s | MB | start with list, s | CPU for it, s | MB with list | bytes a name |\n|---|---|---|---|---|---|---|\n",
        thousands(results.listed as u64)
    );
    for (kind, short, long) in &results.lists {
        let _ = writeln!(
            text,
            "| {} | {:.3} | {:.1} | {:.2} | {:.2} | {:.1} | {:.0} |",
            kind.name(),
            short.time.as_secs_f64(),
            megabytes(short),
            long.time.as_secs_f64(),
            long.cpu.as_secs_f64(),
            megabytes(long),
            bytes_a_name(short, long, results.listed)
        );
    }
}

fn push_growth(results: &Results, text: &mut String) {
    text.push_str("\n### Growth, ours\n\n| | size | cost | 95 % |\n|---|---|---|---|\n");
    for growth in &results.growth {
        for (size, Estimate { median, low, high }) in &growth.points {
            let size = thousands(*size as u64);
            let _ = writeln!(text, "| {} | {size} | {median:.2} | {low:.2} - {high:.2} |", growth.axis);
        }
    }
}

fn goals(results: &Results) -> Vec<Goal> {
    let mut goals = Vec::new();
    let costs = [
        (Workload::Blocked, 1.05),
        (Workload::BlockedByMany, 1.05),
        (Workload::Cached, 1.12),
        (Workload::Mixed, 1.45),
        (Workload::Missed, 2.5),
    ];
    for (workload, most) in costs {
        if let Some((board, ours)) = found(results, workload, Kind::Tunnelwarden.name())
            && let Some((_, _, echo)) = board.rows.first()
        {
            goals.push(Goal::times(board.label, ours.times(echo), most));
        }
    }
    goals.extend(goal_of_list(results));
    for workload in [Workload::Blocked, Workload::Cached] {
        goals.extend(goal_of_workers(results, workload));
    }
    goals.extend(goals_of_start(results));
    goals.push(goal_of_tcp(results));
    goals.push(goal_of_delay(results));
    goals
}

impl Goal {
    fn times(what: &str, ratio: Estimate, most: f64) -> Self {
        let Estimate { median, low, high } = ratio;
        Self {
            what: what.to_owned(),
            ours: format!("{median:.2} ({low:.2} - {high:.2})"),
            goal: format!("at most {most:.2}"),
            standing: Some(ratio.standing(most)),
        }
    }

    fn figure(what: &str, value: f64, most: f64, unit: &str) -> Self {
        let standing = if value <= most { Standing::Met } else { Standing::Missed };
        Self {
            what: what.to_owned(),
            ours: format!("{value:.3} {unit}"),
            goal: format!("at most {most} {unit}"),
            standing: Some(standing),
        }
    }
}

fn found<'a>(results: &'a Results, workload: Workload, label: &str) -> Option<(&'a Board, &'a Series)> {
    let board = results.boards.iter().find(|board| board.workload == workload)?;
    let (_, _, series) = board.rows.iter().find(|(name, ..)| name == label)?;
    Some((board, series))
}

fn goal_of_list(results: &Results) -> Option<Goal> {
    let (board, plain) = found(results, Workload::Blocked, Kind::Tunnelwarden.name())?;
    let (_, listed) = found(results, Workload::Blocked, WITH_LIST)?;
    let (_, _, echo) = board.rows.first()?;
    let what = format!("A with {} patterns, more than A", thousands(results.listed as u64));
    Some(Goal::times(&what, listed.excess(plain, echo), 0.03))
}

fn goal_of_workers(results: &Results, workload: Workload) -> Option<Goal> {
    let (board, one) = found(results, workload, Kind::Tunnelwarden.name())?;
    let (_, two) = found(results, workload, TWO_WORKERS)?;
    let mut goal = Goal::times(&format!("{}, two workers by one", board.label), two.times(one), 1.05);
    if let (Some((_, _, one)), Some((_, two))) = (board.rows.first(), found(results, workload, TWO_ECHOES)) {
        // What two cores do to each other in the kernel, nobody above it can spare.
        let _ = write!(goal.goal, " (the echo's: {:.2})", two.times(one).median);
    }
    Some(goal)
}

fn goals_of_start(results: &Results) -> Vec<Goal> {
    let Some((_, short, long)) = results.lists.iter().find(|(kind, ..)| *kind == Kind::Tunnelwarden) else {
        return Vec::new();
    };
    vec![
        Goal::figure("memory of the list, a name", bytes_a_name(short, long, results.listed), 40.0, "B"),
        Goal::figure("CPU for a start with the list", long.cpu.as_secs_f64(), 1.0, "s"),
        Goal::figure("memory, cache empty", megabytes(short), 15.0, "MB"),
        Goal::figure("start to first answer", short.time.as_secs_f64(), 0.05, "s"),
    ]
}

/// Below each of these peers in the same rounds.
fn goal_of_tcp(results: &Results) -> Goal {
    let series = |kind: Kind| results.tcp.rows.iter().find(|row| row.1 == kind).map(|row| &row.2);
    let rivals = [Kind::Named, Kind::Dnsdist];
    let ratios: Vec<_> = match series(Kind::Tunnelwarden) {
        Some(ours) => rivals.iter().filter_map(|&kind| Some((kind, ours.times(series(kind)?)))).collect(),
        None => Vec::new(),
    };
    below("TCP cached, CPU by the peer's", &rivals, &ratios)
}

fn goal_of_delay(results: &Results) -> Goal {
    let delay = |kind: Kind| results.delays.iter().find(|delay| delay.kind == kind);
    let rivals = [Kind::Dnsdist, Kind::Unbound];
    let ratios: Vec<_> = match delay(Kind::Tunnelwarden) {
        Some(ours) => rivals.iter().filter_map(|&kind| Some((kind, ours.times(delay(kind)?)))).collect(),
        None => Vec::new(),
    };
    below("p99 at half load, by the peer's", &rivals, &ratios)
}

fn below(what: &str, rivals: &[Kind], ratios: &[(Kind, Estimate)]) -> Goal {
    let shown: Vec<_> = ratios.iter().map(|(kind, ratio)| format!("{:.2} of {}", ratio.median, kind.name())).collect();
    let worst = ratios.iter().map(|(_, ratio)| *ratio).max_by(|one, other| one.median.total_cmp(&other.median));
    let names: Vec<_> = rivals.iter().map(|kind| kind.name()).collect();
    Goal {
        what: what.to_owned(),
        ours: shown.join(", "),
        goal: format!("below {}", names.join(" and ")),
        // Whoever is missing cannot be beaten.
        standing: worst.filter(|_| ratios.len() == rivals.len()).map(|ratio| ratio.standing(1.0)),
    }
}

fn megabytes(start: &Start) -> f64 {
    start.resident as f64 / 1e6
}

fn bytes_a_name(short: &Start, long: &Start, names: usize) -> f64 {
    (long.resident as f64 - short.resident as f64) / names as f64
}
