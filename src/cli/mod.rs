//! The command line: one file per command.

pub mod attempts;
pub mod check;
pub mod explain;
mod export;
mod firewall;
mod healthcheck;
mod keeper;
pub mod learned;
mod manual;
mod reload;
mod scout;
mod serve;
mod ways;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use jiff::{Timestamp, ZonedDateTime};

use attempts::Screen;

use crate::{audit::Store, config, control, daemon, gateway::Clock, listen::OpenError, problem::Problems};

/// What the process tells its caller. The numbers are a promise to scripts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed at run time.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Configuration or policy is invalid.
    Invalid = 3,
    /// The question asked was answered "no".
    No = 4,
    /// Not permitted.
    NotPermitted = 5,
}

/// What every command takes.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub struct Common {
    /// Configuration file [default: /etc/tunnelwarden/tunnelwarden.toml; built-in defaults where there is none]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State folder: record, control socket [default: $STATE_DIRECTORY, else tunnelwarden in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, global = true, value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,
    /// Print JSON where there is something to print
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Parser)]
#[command(name = "tunnelwarden", version, about, disable_help_subcommand = true, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed at run time; 2 wrong usage; 3 configuration or policy invalid;\n\
                          4 the question asked was answered \"no\"; 5 not permitted.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: answer DNS questions, refuse foreign ingresses, record who tried
    Serve(serve::Arguments),
    /// Read configuration and packs; print every problem, and what would be in force
    #[command(after_help = "Exit codes: 0 valid; 3 not valid.")]
    Check(check::Arguments),
    /// Say how a question is decided: the rule, its file and line, and what the client is told
    #[command(after_help = "Exit codes: 0 the client gets an answer; 4 it is refused.")]
    Explain(explain::Arguments),
    /// Show who tried: the record, as a table or as JSON lines
    Attempts(attempts::Arguments),
    /// Have the daemon read its files again, and say what came of it
    #[command(after_help = "Exit codes: 0 in force; 3 refused, the files are broken; 4 held until --accept.")]
    Reload(reload::Arguments),
    /// The packet filter's rules: print, apply, compare, take away
    Firewall(firewall::Arguments),
    /// Write the same policy for another system, and what that system cannot say
    Export(export::Arguments),
    /// Ask the daemon whether it is ready
    #[command(after_help = "Exit codes: 0 ready; 1 not ready, or nobody to ask.")]
    Healthcheck(healthcheck::Arguments),
    /// Print completions of commands and options for a shell
    #[command(after_help = "Exit codes: 0 done; 2 no such shell.")]
    Completions(manual::Completions),
    /// Write the manual pages of all commands into a folder
    #[command(hide = true)]
    Manual(manual::Pages),
    /// What `serve` starts to hold the firewall
    #[command(hide = true)]
    Keeper(keeper::Arguments),
    /// What `serve` starts to see whether it is asked
    #[command(hide = true)]
    Scout(scout::Arguments),
}

/// Why a command ends early, beyond what it printed itself.
#[derive(Debug, thiserror::Error)]
#[error("configuration or policy is invalid")]
struct Invalid;

/// Runs the command that the arguments name. Results go to standard output, errors to standard error.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let line = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    let result = match &line.command {
        Command::Serve(arguments) => serve::run(arguments, &line.common),
        Command::Check(arguments) => check::run(arguments, &line.common),
        Command::Explain(arguments) => explain(arguments, &line.common),
        Command::Attempts(arguments) => attempts(arguments, &line.common),
        Command::Reload(arguments) => reload::run(arguments, &line.common),
        Command::Firewall(arguments) => firewall::run(arguments, &line.common),
        Command::Export(arguments) => export::run(arguments, &line.common),
        Command::Healthcheck(arguments) => healthcheck::run(arguments, &line.common),
        Command::Completions(arguments) => manual::complete(arguments),
        Command::Manual(arguments) => manual::write(arguments),
        Command::Keeper(arguments) => keeper::run(arguments, &line.common),
        Command::Scout(arguments) => scout::run(arguments),
    };
    result.unwrap_or_else(|error| {
        if is_unheard(&error) {
            return Exit::Done;
        }
        let exit = exit_of(&error);
        // What is wrong with the files has been printed, each at its place.
        if exit != Exit::Invalid || error.downcast_ref::<Invalid>().is_none() {
            anstream::eprintln!("tunnelwarden: {error:#}");
        }
        if let Some(error) = error.downcast_ref::<OpenError>() {
            anstream::eprintln!("    hint: {}", error.hint());
        }
        exit
    })
}

/// The policy as the files have it now, and the time as this state folder knows it.
fn explain(arguments: &explain::Arguments, common: &Common) -> anyhow::Result<Exit> {
    let config = load(common)?;
    // Without a state folder no time was ever seen, so the clock is all there is.
    let latest = state_dir(common).ok().and_then(|folder| daemon::latest_time(&folder));
    let moment = Clock::new(latest).moment(Timestamp::now());
    let socket = socket_or_default(config.listen.socket, common)?;
    let heard = learned::ask(&socket);
    let mut screen = (common.json, &mut anstream::stdout().lock());
    if arguments.learned {
        learned::show(&heard?, &config.policy, &mut screen)?;
        return Ok(Exit::Done);
    }
    let heard = heard.map_err(|error| error.to_string());
    Ok(explain::run(arguments, &config.policy, (moment, &heard), screen)?)
}

/// The record, everything recorded so far in it, and what is recorded from then on.
fn attempts(arguments: &attempts::Arguments, common: &Common) -> anyhow::Result<Exit> {
    let config::Config { audit, listen, .. } = load(common)?;
    let Store::File(store) = audit.store else { bail!("there is no store: [audit] store is \"off\"") };
    let store = state_dir(common)?.join(store);
    let socket = socket_or_default(listen.socket, common)?;
    // Listening begins before the store is read, so that nothing falls between.
    let news = if arguments.follow { Some(control::follow(&socket)?) } else { None };
    // Without a daemon the store is complete as it is.
    let _ = control::send(&socket, &control::Request::Flush);
    let (mut out, mut notes) = (anstream::stdout().lock(), anstream::stderr().lock());
    let is_coloured = !common.json && io::stdout().is_terminal();
    let now = ZonedDateTime::now();
    let mut screen = Screen { out: &mut out, notes: &mut notes, json: common.json, is_coloured, now };
    let shown = attempts::show(arguments, &store, &mut screen)?;
    if let Some(news) = news {
        attempts::follow(shown, news, &mut screen)?;
    }
    Ok(Exit::Done)
}

/// Reads the configuration for a command that needs it whole, and prints what is wrong with it.
fn load(common: &Common) -> anyhow::Result<config::Config> {
    let loaded = config::load(common.config.as_deref(), Timestamp::now());
    print_problems(&loaded.problems);
    loaded.outcome.ok_or_else(|| Invalid.into())
}

/// Where state is kept.
fn state_dir(common: &Common) -> Result<PathBuf, config::NoStateFolder> {
    config::state_dir(common.state_dir.as_deref(), |name| std::env::var_os(name))
}

/// The control socket of the daemon that runs with this configuration. Broken files do not hide it: the daemon may
/// run with those of before.
fn control_socket(common: &Common) -> anyhow::Result<PathBuf> {
    let loaded = config::load(common.config.as_deref(), Timestamp::now());
    socket_or_default(loaded.outcome.and_then(|config| config.listen.socket), common)
}

fn socket_or_default(configured: Option<PathBuf>, common: &Common) -> anyhow::Result<PathBuf> {
    match configured {
        Some(path) => Ok(path),
        None => Ok(state_dir(common)?.join("control")),
    }
}

fn print_problems(problems: &Problems) {
    if !problems.is_empty() {
        anstream::eprintln!("{problems}");
    }
}

/// Whoever reads our output has had enough, as in `attempts | head -1`. Sockets have errors of their own.
fn is_unheard(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if error.is::<Invalid>() {
        return Exit::Invalid;
    }
    let denied = error.chain().any(|cause| {
        matches!(cause.downcast_ref::<control::ClientError>(), Some(control::ClientError::NotPermitted { .. }))
            || cause.downcast_ref::<io::Error>().is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
    });
    let denied = denied
        || matches!(
            error.downcast_ref::<daemon::guard::Unguarded>(),
            Some(daemon::guard::Unguarded::NoRight | daemon::guard::Unguarded::NoSight)
        )
        || matches!(error.downcast_ref::<crate::firewall::Failure>(), Some(crate::firewall::Failure::NotPermitted(_)));
    if denied { Exit::NotPermitted } else { Exit::Failed }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Writes JSON for a machine, a line.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let line = serde_json::to_string(value).context("cannot write JSON")?;
    anstream::println!("{line}");
    Ok(())
}
