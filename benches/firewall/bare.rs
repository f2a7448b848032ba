//! The keeper alone, without a daemon: how long a lease takes, and how long other rules, with nothing and with very
//! much in the sets.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tunnelwarden::keeper::{Keeper, PERMITTED_AT_ONCE};

use crate::{
    answers::client,
    daemon::{config_in, folder_with},
    internet::made_up,
    machine::resident,
    namespace::Namespace,
    road::{GATEWAY, configuration},
    traffic::percentiles,
};

/// With so many leases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) leases: u32,
    /// From the request to the reply that the kernel has it: median, 99 of 100.
    pub(crate) insert: [Duration; 2],
    /// Until other rules stand: median, and the longest.
    pub(crate) reload: [Duration; 2],
    /// Of the keeper, and what the kernel has more than before any lease, in bytes.
    pub(crate) memory: (u64, i64),
}

/// How long a lease is.
const LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// Fewer than a client may have, so that none makes room.
const OF_CLIENT: u32 = 1_600;

/// What is put in while time is taken has clients of its own.
const TIMED_CLIENTS: u32 = 20_000;

/// With nothing, and with so many leases.
pub(crate) fn measure(binary: &Path, leases: u32, inserts: u32, reloads: usize) -> anyhow::Result<[Standing; 2]> {
    let appliance = Namespace::new();
    appliance.ip("link add lan0 type veth peer name c0\naddr add 10.77.1.1/24 dev lan0\nlink set lan0 up\n");
    let folder = folder_with(&configuration(GATEWAY))?;
    let mut command = Command::new(binary);
    command.arg("--config").arg(config_in(folder.path())).arg("keeper");
    let (keeper, notices) = appliance.inside(|| Keeper::start(command)).context("the keeper did not begin")?;
    let pid = child_running(&config_in(folder.path()))?;
    let before = slab()?;
    let stand = |from: u32, leases: u32| -> anyhow::Result<Standing> {
        let memory = (resident(pid), slab()? - before);
        let insert = percentiles(&mut insert(&keeper, from, inserts)?);
        let mut times: Vec<_> = (0..reloads).map(|_| timed(|| Ok(keeper.reload()?))).collect::<Result<_, _>>()?;
        times.sort_unstable();
        let reload = [times.len() / 2, times.len() - 1].map(|place| times[place]);
        Ok(Standing { leases, insert, reload, memory })
    };
    let empty = stand(TIMED_CLIENTS, 0)?;
    fill(&keeper, leases)?;
    let full = stand(TIMED_CLIENTS + inserts, leases)?;
    keeper.say_bye()?;
    drop(notices);
    Ok([empty, full])
}

fn fill(keeper: &Keeper, leases: u32) -> anyhow::Result<()> {
    let mut left = leases;
    for number in 0.. {
        let some: Vec<IpAddr> = (0..left.min(OF_CLIENT)).map(|nth| made_up(nth).into()).collect();
        for part in some.chunks(PERMITTED_AT_ONCE) {
            let done = keeper.permit(Some(client(number).into()), part, LIFETIME)?;
            anyhow::ensure!(done.skipped == 0, "the keeper left something out");
        }
        left -= u32::try_from(some.len())?;
        if left == 0 {
            break;
        }
    }
    Ok(())
}

/// One lease after the other, each of another client's.
fn insert(keeper: &Keeper, from: u32, inserts: u32) -> anyhow::Result<Vec<Duration>> {
    let insert = |number| timed(|| Ok(keeper.permit(Some(client(number).into()), &[made_up(0).into()], LIFETIME)?));
    (from..from + inserts).map(insert).collect()
}

fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Duration> {
    let began = Instant::now();
    work().map(|_| began.elapsed())
}

/// The process with this configuration that we started.
fn child_running(config: &Path) -> anyhow::Result<u32> {
    let wanted = config.to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == wanted.as_bytes())
    };
    processes.into_iter().find(has).context("the keeper is not there")
}

/// What the kernel keeps in small pieces, in bytes: elements of sets among it.
fn slab() -> anyhow::Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    let kilobytes: i64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("no account")?;
    Ok(kilobytes * 1024)
}
