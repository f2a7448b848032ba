//! `serve`: the daemon.

use std::{
    io::{IsTerminal as _, stderr},
    path::PathBuf,
    time::SystemTime,
};

use anyhow::Context as _;
use jiff::Timestamp;
use tracing::{level_filters::LevelFilter, warn};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use super::{Common, Exit, Invalid, print_problems, state_dir};
use crate::{
    config,
    daemon::{
        self, Confinement, Setup, State,
        guard::{self, Whose},
    },
    listen::{Doors, Given, open_admin},
    sys::{activation, memory},
};

/// What `serve` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Have the firewall held by the keeper that answers at SOCKET, as a service of its own [default: one that is started]
    #[arg(long, value_name = "SOCKET")]
    keeper: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<Exit> {
    start_log();
    // Before anything is opened.
    let passed = activation::passed().context("cannot take the sockets that systemd opened")?;
    let mut given = Given::of(passed).context("what systemd passed is no socket")?;
    let read_at = SystemTime::now();
    let mut loaded = config::load(common.config.as_deref(), Timestamp::now());
    print_problems(&loaded.problems);
    let config = loaded.outcome.take().ok_or(Invalid)?;
    memory::give_back();
    let state_dir = state_dir(common)?;
    // Before there are threads.
    let whose = arguments.keeper.as_deref().map_or(Whose::Ours(common.config.as_deref()), Whose::Another);
    let guard = guard::raise(&config, whose, &state_dir)?;
    let state = State::take(&state_dir)?;
    // Who holds an address that is taken, nobody sees from within.
    let doors = Doors::open(&config.listen, &mut given)?;
    let admin = open_admin(config.listen.admin, &mut given)?;
    let confinement = Confinement::enter(&config, state.folder());
    state.is_still_ours()?;
    let setup = Setup {
        config_path: common.config.clone(),
        read_at,
        loaded,
        config,
        state,
        guard,
        confinement,
        doors,
        admin,
        given,
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(daemon::run(setup))?;
    Ok(Exit::Done)
}

/// The life of the process goes to standard error; RUST_LOG asks for more, or less, target by target.
fn start_log() {
    // hickory writes lines that a stranger can trigger.
    let default = || {
        Targets::new().with_default(LevelFilter::WARN).with_target("tunnelwarden", LevelFilter::INFO).with_targets(
            ["hickory_net", "hickory_resolver", "hickory_server"].map(|target| (target, LevelFilter::ERROR)),
        )
    };
    let asked = std::env::var("RUST_LOG").ok().filter(|words| !words.is_empty()).map(|words| words.parse()).transpose();
    let (filter, refused) = match asked {
        Ok(filter) => (filter.unwrap_or_else(default), None),
        Err(problem) => (default(), Some(problem)),
    };
    let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(colours).with_target(false);
    // Only a second log could fail here, and there is none.
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
    if let Some(problem) = refused {
        warn!("RUST_LOG is passed over: {problem}; it is a list such as warn,tunnelwarden=debug");
    }
}
