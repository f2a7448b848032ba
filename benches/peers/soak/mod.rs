//! The soak: tunnelwarden under everything at once for minutes, load and attacks, on loopback. Memory, descriptors and
//! threads have to stay as they are, no question of an honest client may get lost unless a limit counted it, every attack
//! has to run into what is there for it, and the process has to end as it began: well.
//!
//! Cache and record are small, so that both are full before anything is measured; what grows after that would grow for
//! ever.

mod attack;
mod household;
mod traffic;
mod vitals;

use std::{env, fs, net::SocketAddrV4, path::Path, sync::atomic::AtomicBool, thread, time::Duration};

use anyhow::Context;

use crate::{
    kernel,
    question::{BLOCKED, NOERROR, NXDOMAIN},
    server::{LOAD_CPU, SERVER_CPU, Server, free_address},
};
use attack::{Attack, Servers};
use household::{Counters, Household};
use traffic::Tally;
use vitals::Vitals;

/// Shorter than this, there are too few reloads to tell growth from chance.
const SHORTEST: Duration = Duration::from_secs(20);

/// Longest, so that a typing error does not keep a machine busy for ever.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Lines that a start and a stop may take in the log.
const LINES: u64 = 20;

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

    let hostile = Servers::open()?;
    let household = Household::new(dir.path().join("daemon"), binary, upstream.address, hostile.addresses()?)?;
    let (address, serve) = (household.address, household.command_line("serve"));
    let mut server = Server::start(binary, &serve, &household.dir, address, &[LOAD_CPU, SERVER_CPU])?;
    server.await_answer(&format!("first.{}", BLOCKED[0]), NXDOMAIN)?;
    // The daemon has both CPUs; the load, being several threads, takes what it needs too.
    kernel::pin(&[LOAD_CPU, SERVER_CPU]).context("cannot choose CPUs")?;

    let (over, pid) = (AtomicBool::new(false), server.pid());
    let (vitals, tally) = thread::scope(|scope| {
        let traffic = scope.spawn(|| traffic::run(&household, &hostile, &over));
        let vitals = Vitals::watch(pid, time, &over);
        let tally = traffic.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        anyhow::Ok((vitals, tally?))
    })
    .with_context(|| format!("the load could not go on; the daemon said last: {}", server.last_words()))?;
    let counters = household.counters().unwrap_or_default();
    let dropped = dropped(address);
    let is_same = server.is_running();
    let status = server.stop();

    println!("{}", vitals.table());
    println!("{tally}\n");
    let mut checks = vitals.checks();
    checks.extend(checks_of_load(&tally, &counters, dropped));
    checks.extend(checks_of_attacks(&tally, &counters));
    let is_up = counters.server_is(&household, "up");
    checks.push(Check::new(
        format!("the honest server is up, and was taken for down {} times", tally.server_down),
        is_up && tally.server_down == 0,
    ));
    checks.push(Check::new("the process that was started answered to the end", is_same));
    checks.push(Check::new("it stopped cleanly when asked", status.is_some_and(|status| status.success())));
    let log = server.output();
    let errors: Vec<_> = errors_in(&log);
    checks.push(Check::new(format!("errors in its log: {}", errors.len()), errors.is_empty()));
    checks.extend(checks_of_log(&log, tally.reloads, time));
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
fn checks_of_load(tally: &Tally, counters: &Counters, dropped: u64) -> Vec<Check> {
    // Of the limits only this one could be an honest client's: the others are per client, and attackers alone have reason
    // to run into theirs.
    let limits = counters.sum("upstream_turned_away_total");
    let missed = tally.lost + tally.wrong;
    let asked = counters.sum("questions_total");
    let reloads = counters.sum("reloads_total{outcome=\"loaded\"}");
    let mut checks = vec![
        Check::new(
            format!(
                "{missed} of {} honest questions without the right answer, {} of them with a wrong one; {limits} turned \
                 away by a limit, {dropped} dropped by the kernel",
                tally.asked(),
                tally.wrong
            ),
            missed <= limits && tally.wrong == 0,
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
        // Silent and broken servers are among the attacks. What failed at the honest one would be a wrong answer above.
        "upstream_failures_total{reason=\"no-server\"}",
        "upstream_failures_total{reason=\"loop\"}",
    ];
    checks.extend(never.map(|metric| {
        let count = counters.sum(metric);
        Check::new(format!("{metric} {count}"), count == 0)
    }));
    checks
}

/// Each was made, and met by what is there for it.
fn checks_of_attacks(tally: &Tally, counters: &Counters) -> Vec<Check> {
    let met = Attack::ALL.map(|attack| {
        let made = tally.attacks.of(attack);
        let marks: Vec<_> = attack.marks().iter().map(|mark| (mark, counters.sum(mark))).collect();
        let told: Vec<_> = marks.iter().map(|(mark, count)| format!("{mark} {count}")).collect();
        let holds = made > 0 && marks.iter().all(|(_, count)| *count > 0);
        Check::new(format!("{made} {}: {}", attack.label(), told.join(", ")), holds)
    });
    let heard = tally.attacks.heard;
    let silence = Check::new(format!("{heard} replies to what is met with silence"), heard == 0);
    met.into_iter().chain([silence]).collect()
}

/// What a stranger does is counted and not logged; what limits turn away is summed up once a minute. A reload says so, and
/// soon after it a server that does not answer is noticed anew: the dead one each time, the damaging one seldom.
fn checks_of_log(log: &str, reloads: u64, time: Duration) -> Vec<Check> {
    let (servers, rest): (Vec<_>, Vec<_>) = log
        .lines()
        .filter(|line| !line.contains("files read again"))
        .partition(|line| line.contains("upstream server "));
    let minutes = (vitals::WARM_UP + time).as_secs() / 60;
    let told = |what, lines: Vec<&str>, allowed| {
        let lines = lines.len() as u64;
        Check::new(format!("{lines} lines in its log {what}, at most {allowed}"), (1..=allowed).contains(&lines))
    };
    vec![told("of servers", servers, 2 * reloads), told("of anything else but reloads", rest, LINES + 2 * minutes)]
}

/// Datagrams that the kernel had no room for at the sockets of this address.
fn dropped(address: SocketAddrV4) -> u64 {
    let sockets = fs::read_to_string("/proc/net/udp").unwrap_or_default();
    let port = format!(":{:04X}", address.port());
    let ours =
        sockets.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&port)));
    ours.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
}

fn errors_in(log: &str) -> Vec<String> {
    log.lines().filter(|line| line.contains("ERROR") || line.contains("panicked")).map(str::to_owned).collect()
}

/// For a table: `memory` in MB.
fn row(cells: [String; 4]) -> String {
    let [time, memory, descriptors, threads] = cells;
    format!("{time:>8} {memory:>10} {descriptors:>12} {threads:>8}\n")
}
