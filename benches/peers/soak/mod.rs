//! The soak: tunnelwarden under everything at once for minutes, on loopback. Memory, descriptors and threads have to
//! stay as they are, no question may get lost unless a limit counted it, and the process has to end as it began: well.
//!
//! Cache and record are small, so that both are full before anything is measured; what grows after that would grow for
//! ever.

mod household;
mod traffic;
mod vitals;

use std::{env, path::Path, sync::atomic::AtomicBool, thread, time::Duration};

use anyhow::Context;

use crate::{
    kernel,
    question::{BLOCKED, NOERROR, NXDOMAIN},
    server::{LOAD_CPU, SERVER_CPU, Server, free_address},
};
use household::{Counters, Household};
use traffic::Tally;
use vitals::Vitals;

/// Shorter than this, there are too few reloads to tell growth from chance.
const SHORTEST: Duration = Duration::from_secs(20);

/// Longest, so that a typing error does not keep a machine busy for ever.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// One thing that has to hold.
struct Check {
    what: String,
    holds: bool,
}

/// Soaks this binary for so long after a warm-up of about two minutes.
///
/// # Errors
/// Where it cannot run, and where something does not hold.
pub(crate) fn run(time: Duration, binary: &Path) -> anyhow::Result<()> {
    anyhow::ensure!((SHORTEST..=LONGEST).contains(&time), "a soak takes 20 seconds to a day: give it that many");
    // The daemon is started in a folder of its own.
    let binary = &binary.canonicalize().with_context(|| format!("there is no {}", binary.display()))?;
    let dir = tempfile::Builder::new().prefix("tunnelwarden-soak-").tempdir().context("cannot make a folder")?;
    let upstream = free_address()?;
    let own_program = env::current_exe().context("cannot find this program")?;
    let arguments = ["upstream".to_owned(), upstream.to_string()];
    let mut upstream = Server::start(&own_program, &arguments, dir.path(), upstream, &[LOAD_CPU])?;
    upstream.await_answer("first.example", NOERROR)?;

    let household = Household::new(dir.path().join("daemon"), binary, upstream.address)?;
    let (address, serve) = (household.address, household.command_line("serve"));
    let mut server = Server::start(binary, &serve, &household.dir, address, &[LOAD_CPU, SERVER_CPU])?;
    server.await_answer(&format!("first.{}", BLOCKED[0]), NXDOMAIN)?;
    // The daemon has both CPUs; the load, being several threads, takes what it needs too.
    kernel::pin(&[LOAD_CPU, SERVER_CPU]).context("cannot choose CPUs")?;

    let (over, pid) = (AtomicBool::new(false), server.pid());
    let (vitals, tally) = thread::scope(|scope| {
        let traffic = scope.spawn(|| traffic::run(&household, &over));
        let vitals = Vitals::watch(pid, time, &over);
        let tally = traffic.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        anyhow::Ok((vitals, tally?))
    })?;
    let counters = household.counters();
    let is_same = server.is_running();
    let status = server.stop();

    println!("{}", vitals.table());
    println!("{tally}\n");
    let mut checks = vitals.checks();
    checks.extend(checks_of_load(&tally, &counters.unwrap_or_default()));
    checks.push(Check::new("the process that was started answered to the end", is_same));
    checks.push(Check::new("it stopped cleanly when asked", status.is_some_and(|status| status.success())));
    let errors: Vec<_> = errors_in(&server.output());
    checks.push(Check::new(format!("errors in its log: {}", errors.len()), errors.is_empty()));
    for Check { what, holds } in &checks {
        println!("{}  {what}", if *holds { "    ok" } else { "FAILED" });
    }
    errors.iter().take(5).for_each(|line| eprintln!("{line}"));
    let failed = checks.iter().filter(|check| !check.holds).count();
    anyhow::ensure!(failed == 0, "the soak failed: {failed} of {} checks do not hold", checks.len());
    println!("\nsoaked for {} s: everything holds", time.as_secs());
    Ok(())
}

impl Check {
    fn new(what: impl Into<String>, holds: bool) -> Self {
        Self { what: what.into(), holds }
    }
}

/// What the clients saw and the daemon's counters have to agree.
fn checks_of_load(tally: &Tally, counters: &Counters) -> Vec<Check> {
    let limits = counters.sum("waiting_refused_total") + counters.sum("upstream_turned_away_total");
    let missed = tally.lost + tally.wrong;
    let asked = counters.sum("questions_total");
    let reloads = counters.sum("reloads_total{outcome=\"loaded\"}");
    let mut checks = vec![
        Check::new(
            format!(
                "{missed} of {} questions without the right answer, {limits} turned away by a limit",
                tally.asked()
            ),
            missed <= limits,
        ),
        Check::new(
            format!("the daemon counted {asked} questions, no fewer than were answered"),
            asked >= tally.answered && tally.answered > 0,
        ),
        Check::new(format!("{reloads} reloads, none of the {} asked for failed", tally.reloads), {
            reloads >= tally.reloads && tally.reloads > 0
        }),
        Check::new(format!("the record was searched {} times, and had something", tally.searches), tally.searches > 0),
        // What is not full is not tested.
        Check::new("the cache was full, and made room", counters.sum("cache_evictions_total") > 0),
        Check::new("the record was full, and made room", counters.sum("audit_removed_total{for=\"size\"}") > 0),
    ];
    // The record's queue is a limit, and what it turns away is counted; behind it nothing may go.
    let never = [
        "panics_total",
        "audit_worker_restarts_total",
        "audit_lost_total{at=\"worker\"}",
        "audit_lost_total{at=\"store\"}",
        "audit_lost_total{at=\"sink\"}",
        "audit_failures_total",
        "accept_errors_total",
        "receive_errors_total",
        "reloads_total{outcome=\"refused\"}",
        "reloads_total{outcome=\"held\"}",
        "upstream_failures_total",
    ];
    checks.extend(never.map(|metric| {
        let count = counters.sum(metric);
        Check::new(format!("{metric} {count}"), count == 0)
    }));
    checks
}

fn errors_in(log: &str) -> Vec<String> {
    log.lines().filter(|line| line.contains("ERROR") || line.contains("panicked")).map(str::to_owned).collect()
}

/// For a table: `memory` in MB.
fn row(cells: [String; 4]) -> String {
    let [time, memory, descriptors, threads] = cells;
    format!("{time:>8} {memory:>10} {descriptors:>12} {threads:>8}\n")
}
