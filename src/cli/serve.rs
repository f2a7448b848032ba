//! `serve`: the daemon.

use std::{
    io::{IsTerminal as _, stderr},
    time::SystemTime,
};

use anyhow::Context as _;
use jiff::Timestamp;
use tracing_subscriber::EnvFilter;

use super::{Common, Exit, Invalid, print_problems, state_dir};
use crate::{
    config,
    daemon::{self, Setup, guard},
    sys::memory,
};

pub(super) fn run(common: &Common) -> anyhow::Result<Exit> {
    start_log();
    let read_at = SystemTime::now();
    let mut loaded = config::load(common.config.as_deref(), Timestamp::now());
    print_problems(&loaded.problems);
    let config = loaded.outcome.take().ok_or(Invalid)?;
    memory::give_back();
    let state_dir = state_dir(common)?;
    // Before there are threads.
    let guard = guard::raise(&config, common.config.as_deref(), &state_dir)?;
    let setup = Setup { config_path: common.config.clone(), read_at, loaded, config, state_dir, guard };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(daemon::run(setup))?;
    Ok(Exit::Done)
}

/// The life of the process goes to standard error; RUST_LOG asks for more.
fn start_log() {
    // hickory writes lines that a stranger can trigger.
    let default = "warn,tunnelwarden=info,hickory_net=error,hickory_resolver=error,hickory_server=error";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(colours).with_target(false);
    // Only a second log could fail here, and there is none.
    let _ = log.try_init();
}
