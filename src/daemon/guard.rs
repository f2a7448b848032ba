//! Before anything else runs: the keeper is started, and every right that answering does not need is given up.
//!
//! Whoever can put bytes into the part that answers strangers gains neither the packet filter nor another user's files.
//! All of it happens before there are threads, since the kernel keeps rights for each thread.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder},
    io,
    net::SocketAddr,
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, lchown},
        process::CommandExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::Context as _;
use nix::unistd::{Uid, User};
use thiserror::Error;

use crate::{
    config::Config,
    firewall::{Mode, Obstacle, Options},
    keeper::{Keeper, Notices, Protection},
    name::DomainName,
    sys::rights::{self, Right},
    upstream,
};

/// What enforces, and what speaks for it.
#[derive(Debug)]
pub struct Guard {
    /// Takes what is to be opened and denied.
    pub keeper: Arc<Keeper>,
    /// What it tells by itself.
    pub notices: Notices,
    /// What keeps others from changing the table.
    pub protection: Protection,
    /// On a host: sees whether its questions are turned to us.
    pub scout: Option<Scout>,
    /// Other people's rules that turn away what is turned to us, and the lines that would open them.
    pub obstacles: Vec<String>,
}

/// A process of another user than ours that waits for a word, and then asks somebody else for a name.
#[derive(Debug)]
pub struct Scout {
    /// The name.
    pub name: DomainName,
    /// Ends soon after its standard input does.
    pub process: Child,
}

/// Why there is no enforcing.
#[derive(Debug, Error)]
pub enum Unguarded {
    /// The packet filter is not ours to change.
    #[error("the firewall needs the right to change the packet filter: start as root, or with CAP_NET_ADMIN")]
    NoRight,
    /// Processes are to be named, and cannot be seen.
    #[error("processes = true needs the rights CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH: start as root, or with them")]
    NoSight,
    /// Questions to it would come back to us.
    #[error(
        "the upstream server {0} is on this machine, and what it asks is turned to us: name the servers it asks in [upstream]"
    )]
    Loop(SocketAddr),
}

/// Starts the keeper and gives up what only it needs. `None` where no firewall is configured.
///
/// # Errors
/// When the firewall cannot be enforced as it is configured. Nothing is half in force then that was not before.
pub fn raise(config: &Config, named: Option<&Path>, state_dir: &Path) -> anyhow::Result<Option<Guard>> {
    let options = &config.firewall;
    if options.mode == Mode::Off {
        return Ok(None);
    }
    if !rights::has(Right::NetAdmin).context("cannot tell which rights this process has")? {
        return Err(Unguarded::NoRight.into());
    }
    let sees = || Ok::<_, io::Error>(rights::has(Right::SysPtrace)? && rights::has(Right::DacReadSearch)?);
    if options.processes && !sees()? {
        return Err(Unguarded::NoSight.into());
    }
    if let Some(server) = looping(options) {
        return Err(Unguarded::Loop(server).into());
    }
    let user = user(options)?;
    if Uid::effective().is_root() {
        hand_over(state_dir, &user)
            .with_context(|| format!("cannot make {} ready for {}", state_dir.display(), user.name))?;
    }
    let mut guard = start_keeper(named, options.processes)?;
    guard.scout = start_scout(options);
    guard.obstacles = obstacles(options);
    step_down(&user).with_context(|| format!("cannot become user {}", user.name))?;
    Ok(Some(guard))
}

/// A server whose own questions our rules would turn to us: on a host that is any on this machine.
fn looping(options: &Options) -> Option<SocketAddr> {
    if options.mode != Mode::Host {
        return None;
    }
    let system = options.asks_system.then(upstream::system_servers).unwrap_or_default();
    options.resolvers.iter().copied().chain(system).find(|server| server.ip().is_loopback())
}

fn user(options: &Options) -> anyhow::Result<User> {
    crate::firewall::uid_of(options)?;
    let found = User::from_name(&options.user).with_context(|| format!("cannot look up user {}", options.user))?;
    found.with_context(|| format!("there is no user {}", options.user))
}

/// The state folder is the user's, with what an earlier daemon left in it: files of its own, no links.
fn hand_over(folder: &Path, user: &User) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    let owners = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
    let mut below = vec![folder.to_owned()];
    while let Some(path) = below.pop() {
        let found = fs::symlink_metadata(&path)?;
        if found.is_dir() {
            below.extend(fs::read_dir(&path)?.filter_map(Result::ok).map(|entry| entry.path()));
        }
        if found.uid() != user.uid.as_raw() && (found.is_dir() || found.nlink() == 1) {
            lchown(&path, owners.0, owners.1)?;
        }
    }
    Ok(())
}

/// Runs this program once more, as the keeper.
fn start_keeper(named: Option<&Path>, processes: bool) -> anyhow::Result<Guard> {
    let mut command = Command::new("/proc/self/exe");
    if let Some(path) = named {
        command.args([OsString::from("--config"), path.into()]);
    }
    // A group of its own: what a terminal sends to us must not end it before we have said good-bye.
    command.arg("keeper").args(processes.then_some("--processes")).arg0("tunnelwarden-keeper").process_group(0);
    let (keeper, notices, protection) = Keeper::start(command).context("the firewall cannot be enforced")?;
    Ok(Guard { keeper: Arc::new(keeper), notices, protection, scout: None, obstacles: Vec::new() })
}

/// Only root's questions are another user's than ours, and only on a host somebody of this machine can tell. That there
/// is none takes nothing away from anybody.
fn start_scout(options: &Options) -> Option<Scout> {
    if options.mode != Mode::Host || !Uid::effective().is_root() {
        return None;
    }
    let system = options.asks_system.then(upstream::system_servers).unwrap_or_default();
    let server = options.resolvers.iter().copied().chain(system).next()?;
    let label = format!("{:032x}", rand::random::<u128>());
    let name: DomainName = format!("{label}.scout.tunnelwarden.example").parse().ok()?;
    let mut command = Command::new("/proc/self/exe");
    let server = SocketAddr::new(server.ip(), 53).to_string();
    command.args(["scout", &server, &name.to_string()]).arg0("tunnelwarden-scout").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    Some(Scout { name, process: command.spawn().ok()? })
}

/// On a gateway, what is turned to us comes in; and whoever closes that to clients closes it to them too.
fn obstacles(options: &Options) -> Vec<String> {
    if options.mode != Mode::Gateway {
        return Vec::new();
    }
    let found = crate::firewall::rules_of_all().map(|listing| crate::firewall::obstacles(&listing)).unwrap_or_default();
    let line = |obstacle: &Obstacle, lan: &String| format!("{obstacle}; its owner opens it: {}", obstacle.remedy(lan));
    found.iter().flat_map(|obstacle| options.lan.iter().map(move |lan| line(obstacle, lan))).collect()
}

/// Becomes the user whose sockets the rules let out.
fn step_down(user: &User) -> io::Result<()> {
    let keep: &[Right] = if rights::has(Right::NetBindService)? { &[Right::NetBindService] } else { &[] };
    if Uid::effective() == user.uid {
        return rights::keep_only(keep);
    }
    rights::become_user(user.uid.as_raw(), user.gid.as_raw(), keep)
}
