//! tunnelwarden as a process on an appliance, in a folder of its own.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    machine::{cpu_time, resident},
    namespace::Namespace,
};

/// Ended when dropped, and its keeper with it.
pub(crate) struct Daemon {
    child: Child,
    keeper: Option<u32>,
    folder: TempDir,
    /// Open, so that it may go on writing.
    _banner: BufReader<ChildStdout>,
}

/// Longest time for a start and the first lookups.
const PATIENCE: Duration = Duration::from_secs(20);

impl Daemon {
    /// Starts it and waits until it knows where every ingress is.
    pub(crate) fn start(binary: &Path, appliance: &Namespace, config: &str) -> anyhow::Result<Self> {
        let folder = folder_with(config)?;
        let errors = File::create(folder.path().join("errors"))?;
        let mut command = Command::new(binary);
        command.arg("serve").args(files(folder.path())).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = appliance.inside(|| command.spawn()).context("cannot start the daemon")?;
        let mut banner = BufReader::new(child.stdout.take().context("no banner")?);
        let mut line = String::new();
        // The last line of the banner.
        while !line.trim_start().starts_with("record") {
            line.clear();
            if banner.read_line(&mut line)? == 0 {
                let _ = child.wait();
                let said = fs::read_to_string(folder.path().join("errors")).unwrap_or_default();
                bail!("the daemon did not come up: {said}");
            }
        }
        let keeper = first_child_of(child.id());
        let daemon = Self { child, keeper, folder, _banner: banner };
        daemon.await_first_round(binary)?;
        Ok(daemon)
    }

    /// What it and its keeper spent so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        cpu_time(self.child.id()) + self.keeper.map(cpu_time).unwrap_or_default()
    }

    /// Resident memory of it and of its keeper, in bytes.
    pub(crate) fn memory(&self) -> (u64, u64) {
        (resident(self.child.id()), self.keeper.map(resident).unwrap_or_default())
    }

    fn await_first_round(&self, binary: &Path) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let mut command = Command::new(binary);
            command.args(["explain", "--learned", "--json"]).args(files(self.folder.path()));
            let said = command.output()?.stdout;
            if serde_json::from_slice(&said).is_ok_and(|learned: serde_json::Value| learned["pending"] == 0) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("the daemon did not learn where ingresses are")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw);
        let _ = pid.map(|pid| kill(pid, Signal::SIGTERM));
        let _ = self.child.wait();
    }
}

/// A folder with a configuration that the daemon can read when it is root no more. Its state it puts there itself.
pub(crate) fn folder_with(config: &str) -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    fs::write(config_in(folder.path()), config)?;
    Ok(folder)
}

pub(crate) fn config_in(folder: &Path) -> PathBuf {
    folder.join("tunnelwarden.toml")
}

fn files(folder: &Path) -> [PathBuf; 4] {
    ["--config".into(), config_in(folder), "--state-dir".into(), folder.join("state")]
}

fn first_child_of(pid: u32) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let children: String = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
    children.split_whitespace().next()?.parse().ok()
}
