//! Before anything else runs: the keeper is started, and every right that answering does not need is given up.
//!
//! Whoever can put bytes into the part that answers strangers gains neither the packet filter nor another user's files.
//! All of it happens before there are threads, since the kernel keeps rights for each thread.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io,
    net::{IpAddr, SocketAddr},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, chown},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::Context as _;
use nix::unistd::{Uid, User};
use thiserror::Error;

use super::{confinement::needed, state::LOCK};
use crate::{
    config::Config,
    firewall::{Mode, Obstacle, Options, OwnSockets, user_of},
    keeper::{Keeper, Notices},
    name::DomainName,
    sys::{
        interfaces::Interfaces,
        rights::{self, Right},
    },
    upstream,
};

/// What enforces, and what speaks for it.
#[derive(Debug)]
pub struct Guard {
    /// Takes what is to be opened and denied.
    pub keeper: Arc<Keeper>,
    /// What it tells by itself.
    pub notices: Notices,
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

/// Which keeper there is to be.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    /// One of our own. It reads the configuration that is named here.
    Ours(Option<&'a Path>),
    /// The one that answers at a socket.
    Another(&'a Path),
}

/// Starts the keeper, or finds it, and gives up what only it needs. `None` where no firewall is configured.
///
/// # Errors
/// When the firewall cannot be enforced as it is configured. Nothing is half in force then that was not before.
pub fn raise(config: &Config, whose: Whose<'_>, state_dir: &Path) -> anyhow::Result<Option<Guard>> {
    let options = &config.firewall;
    if options.mode == Mode::Off {
        return Ok(None);
    }
    if matches!(whose, Whose::Ours(_)) {
        has_rights(options)?;
    }
    let own = Interfaces::read().map(|interfaces| interfaces.addresses).unwrap_or_default();
    if let Some(server) = looping(options, &own) {
        return Err(Unguarded::Loop(server).into());
    }
    let user = user_of(options)?;
    if let Some(program) = companion(options, &user) {
        tracing::warn!(
            "{program} runs as user {} too, and the rules let out whatever it sends: give tunnelwarden a user of its own, or set \
             own-sockets = \"mark\"",
            user.name
        );
    }
    if Uid::effective().is_root() {
        hand_over(state_dir, &user)
            .with_context(|| format!("cannot make {} ready for {}", state_dir.display(), user.name))?;
    }
    let mut guard = match whose {
        Whose::Ours(named) => start_keeper(named, options)?,
        Whose::Another(path) => find_keeper(path)?,
    };
    guard.scout = start_scout(options);
    step_down(&user, needed(config)).with_context(|| format!("cannot become user {}", user.name))?;
    Ok(Some(guard))
}

/// What a keeper of ours needs, it has from us.
fn has_rights(options: &Options) -> anyhow::Result<()> {
    if !rights::has(Right::NetAdmin).context("cannot tell which rights this process has")? {
        return Err(Unguarded::NoRight.into());
    }
    let sees = || Ok::<_, io::Error>(rights::has(Right::SysPtrace)? && rights::has(Right::DacReadSearch)?);
    if options.processes && !sees()? {
        return Err(Unguarded::NoSight.into());
    }
    Ok(())
}

/// A server whose own questions our rules would turn to us: on a host that is any on this machine, at whichever of its
/// addresses.
fn looping(options: &Options, own: &[IpAddr]) -> Option<SocketAddr> {
    if options.mode != Mode::Host {
        return None;
    }
    servers(options).find(|server| server.ip().is_loopback() || own.contains(&server.ip().to_canonical()))
}

/// Everybody whom we ask: the servers that the configuration names, and the system's where it says so.
pub fn servers(options: &Options) -> impl Iterator<Item = SocketAddr> {
    let system = options.asks_system.then(upstream::system_servers).unwrap_or_default();
    options.resolvers.iter().copied().chain(system)
}

/// Another program of the user, as far as one is to be seen: on a host the rules would not tell it from us.
fn companion(options: &Options, user: &User) -> Option<String> {
    if options.mode != Mode::Host || options.own_sockets == OwnSockets::Mark {
        return None;
    }
    let folders = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let theirs = folders.filter(|folder| folder.metadata().is_ok_and(|found| found.uid() == user.uid.as_raw()));
    let names = theirs.filter_map(|folder| fs::read_to_string(folder.path().join("comm")).ok());
    // One that was there before us may still be stopping.
    names.map(|name| name.trim_end().to_owned()).find(|name| !name.starts_with(env!("CARGO_PKG_NAME")))
}

/// The state folder is the user's, with what an earlier daemon left in it: files of its own, no links. A folder of
/// somebody else's, with files in it and none of ours, is a mistake on the command line.
fn hand_over(folder: &Path, user: &User) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    let held = hold(&fs::canonicalize(folder)?)?;
    let is_empty = fs::read_dir(place(&held))?.next().is_none();
    if !is_empty && held.metadata()?.uid() != user.uid.as_raw() && !place(&held).join(LOCK).exists() {
        return Err(io::Error::other("it has files of others in it, and none of an earlier daemon's"));
    }
    hand_over_all(&held, user)
}

/// By descriptor: whoever runs as the user already may swap folders for links meanwhile.
fn hand_over_all(held: &File, user: &User) -> io::Result<()> {
    let found = held.metadata()?;
    if found.is_dir() {
        for entry in fs::read_dir(place(held))?.filter_map(Result::ok) {
            hand_over_all(&hold(&place(held).join(entry.file_name()))?, user)?;
        }
    }
    let is_one = found.is_dir() || !found.is_symlink() && found.nlink() == 1;
    if is_one && found.uid() != user.uid.as_raw() {
        chown(place(held), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(())
}

/// What is at a path, a link as itself.
fn hold(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)
}

/// Where it is found whatever becomes of its path.
fn place(held: &File) -> PathBuf {
    format!("/proc/self/fd/{}", held.as_raw_fd()).into()
}

/// Runs this program once more, as the keeper.
fn start_keeper(named: Option<&Path>, options: &Options) -> anyhow::Result<Guard> {
    let mut command = Command::new("/proc/self/exe");
    if let Some(path) = named {
        command.args([OsString::from("--config"), path.into()]);
    }
    // A group of its own: what a terminal sends to us must not end it before we have said good-bye.
    command.arg("keeper").args(options.processes.then_some("--processes")).arg0("tunnelwarden-keeper").process_group(0);
    let (keeper, notices) = Keeper::start(command).context("the firewall cannot be enforced")?;
    Ok(Guard { keeper: Arc::new(keeper), notices, scout: None, obstacles: obstacles(options) })
}

/// Has systemd run this program as a keeper for us. Obstacles it tells itself: we may not look.
fn find_keeper(path: &Path) -> anyhow::Result<Guard> {
    let found = Keeper::at(path);
    let (keeper, notices) =
        found.with_context(|| format!("the firewall cannot be enforced by the keeper at {}", path.display()))?;
    Ok(Guard { keeper: Arc::new(keeper), notices, scout: None, obstacles: Vec::new() })
}

/// Only root's questions are another user's than ours, and only on a host somebody of this machine can tell. That there
/// is none takes nothing away from anybody.
fn start_scout(options: &Options) -> Option<Scout> {
    if options.mode != Mode::Host || !Uid::effective().is_root() {
        return None;
    }
    let server = servers(options).next()?;
    let label = format!("{:032x}", rand::random::<u128>());
    let name: DomainName = format!("{label}.scout.tunnelwarden.example").parse().ok()?;
    let mut command = Command::new("/proc/self/exe");
    let server = SocketAddr::new(server.ip(), 53).to_string();
    command.args(["scout", &server, &name.to_string()]).arg0("tunnelwarden-scout").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    Some(Scout { name, process: command.spawn().ok()? })
}

/// On a gateway, what is turned to us comes in; and whoever closes that to clients closes it to them too.
pub fn obstacles(options: &Options) -> Vec<String> {
    if options.mode != Mode::Gateway {
        return Vec::new();
    }
    let found = crate::firewall::rules_of_all().map(|listing| crate::firewall::obstacles(&listing)).unwrap_or_default();
    let line = |obstacle: &Obstacle, lan: &String| format!("{obstacle}; its owner opens it: {}", obstacle.remedy(lan));
    found.iter().flat_map(|obstacle| options.lan.iter().map(move |lan| line(obstacle, lan))).collect()
}

/// Becomes the user whose sockets the rules let out.
fn step_down(user: &User, keep: &[Right]) -> io::Result<()> {
    if Uid::effective() == user.uid {
        return rights::keep_only(keep);
    }
    rights::become_user(user.uid.as_raw(), user.gid.as_raw(), keep)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn nobody() -> User {
        User::from_name("nobody").unwrap().unwrap()
    }

    #[test]
    fn the_state_folder_is_handed_over_with_what_is_in_it_and_nothing_behind_a_link() {
        if !Uid::effective().is_root() {
            return eprintln!("SKIPPED: not root");
        }
        let folder = tempfile::tempdir().unwrap();
        let (state, others) = (folder.path().join("state"), folder.path().join("others"));
        for path in [&state.join("last-good"), &others] {
            fs::create_dir_all(path).unwrap();
        }
        for path in [state.join(LOCK), state.join("last-good/x.toml"), others.join("shadow")] {
            fs::write(path, "").unwrap();
        }
        symlink(&others, state.join("link")).unwrap();
        symlink(others.join("shadow"), state.join("other-link")).unwrap();
        fs::hard_link(others.join("shadow"), state.join("hard-link")).unwrap();
        hand_over(&state, &nobody()).unwrap();
        let owner = |path: PathBuf| fs::metadata(path).unwrap().uid();
        for path in ["", LOCK, "last-good", "last-good/x.toml"] {
            assert_eq!(owner(state.join(path)), nobody().uid.as_raw(), "{path}");
        }
        assert_eq!((owner(others.clone()), owner(others.join("shadow"))), (0, 0));
        let error = hand_over(&others, &nobody()).unwrap_err();
        assert!(error.to_string().contains("files of others"), "{error}");
        assert_eq!((owner(others.clone()), owner(others.join("shadow"))), (0, 0));
    }

    #[test]
    fn a_server_on_this_machine_loops_at_whichever_address_it_is_asked() {
        let own = ["10.0.0.1".parse().unwrap()];
        let ends = |server: &str, mode| {
            let resolvers = vec![server.parse().unwrap()];
            looping(&Options { mode, resolvers, asks_system: false, ..Options::default() }, &own).is_some()
        };
        assert!(ends("127.0.0.53:53", Mode::Host) && ends("10.0.0.1:5353", Mode::Host));
        assert!(!ends("10.0.0.2:53", Mode::Host) && !ends("10.0.0.1:5353", Mode::Gateway));
    }
}
