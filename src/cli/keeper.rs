//! The keeper of the firewall: `serve` starts it, or systemd for each `serve` that connects, and nobody else has a use for
//! it. It alone may change the packet filter.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use jiff::Timestamp;
use nix::{
    sys::statvfs::{FsFlags, statvfs},
    unistd::User,
};

use super::{Common, Exit};
use crate::{
    config::{self, Config},
    daemon::guard::{self, servers},
    firewall::{self, Mode, OnStop, OwnSockets, Ruleset},
    keeper::{self, Terms},
    problem::Severity,
    sys::{
        interfaces::Interfaces,
        rights::{self, Right},
        sandbox::Sandbox,
        seqpacket::Channel,
    },
};

/// What `keeper` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Keep the rights to look into everybody's processes
    #[arg(long)]
    processes: bool,
    /// Standard input is a connection that systemd accepted, and the way for notices comes over it
    #[arg(long)]
    accepted: bool,
}

/// How long who connected may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<Exit> {
    let started = "the keeper is started by `tunnelwarden serve`";
    let requests = Channel::from_stdin().context(started)?;
    let notices = if arguments.accepted {
        requests.receive_end(Instant::now() + PATIENCE).context("who connected is no `tunnelwarden serve`")?
    } else {
        Channel::from_stdout().context(started)?
    };
    let peer = requests.peer().context("cannot tell who asks")?;
    let more: &[Right] = if arguments.processes { &[Right::SysPtrace, Right::DacReadSearch] } else { &[] };
    rights::keep_only(&[&[Right::NetAdmin], more].concat()).context("cannot give up rights")?;
    let sandbox = Sandbox::enter_with_programs(arguments.processes);
    for part in sandbox.parts.iter().filter(|part| !part.is_in_force) {
        anstream::eprintln!("the keeper is {}", part.words);
    }
    let mut is_unseen = arguments.accepted;
    let outcome = keeper::run(requests, notices, || {
        let read = terms(common, peer, std::mem::take(&mut is_unseen));
        read.map_err(|error| format!("{error:#}"))
    });
    // What was wrong was said, and is printed where it was heard.
    Ok(if outcome.is_ok() { Exit::Done } else { Exit::Failed })
}

/// What the files say now. Where the forwarder cannot see what only a keeper's rights let one see, it is looked at here.
pub(super) fn terms(common: &Common, peer: u32, is_unseen: bool) -> anyhow::Result<Terms> {
    let loaded = config::load(common.config.as_deref(), Timestamp::now());
    let Some(config) = loaded.outcome else {
        let first = loaded.problems.iter().find(|problem| problem.severity == Severity::Error);
        bail!("{}", first.map(ToString::to_string).unwrap_or_default());
    };
    let options = &config.firewall;
    let user = firewall::user_of(options)?;
    if peer != 0 && peer != user.uid.as_raw() {
        bail!("user {peer} asks, and not {}, whose packets the rules let out", user.name);
    }
    if is_unseen {
        look_around(options)?;
    }
    // Root can write everywhere; that the forwarder is root is warned of, not refused.
    if !user.uid.is_root()
        && let Some(path) = loaded.files.iter().find_map(|path| writable_on_the_way(path, &user))
    {
        bail!("user {} could change {}: it says what is refused to this very user", user.name, path.display());
    }
    let Some(ruleset) = Ruleset::new(options, &config.policy, user.uid.as_raw()) else {
        bail!("[firewall] mode is \"off\"")
    };
    let interfaces = Interfaces::read().context("cannot read the interfaces")?;
    Ok(Terms {
        script: ruleset.to_string(),
        gateway: options.mode == Mode::Gateway,
        nat64: options.nat64.clone(),
        never: untouched(&config, &interfaces),
        spared: interfaces.networks.iter().chain(&config.ingress.shared).copied().collect(),
        allowed_ports: config.policy.allowed_ports(),
        free: firewall::free_clients(options, &config.policy),
        marks: options.own_sockets == OwnSockets::Mark,
        on_stop_remove: options.on_stop == OnStop::Remove,
        removal: keeper::REMOVAL.into(),
    })
}

/// What is said in the keeper's own log, since nobody else can.
fn look_around(options: &firewall::Options) -> anyhow::Result<()> {
    if options.processes && !rights::has(Right::SysPtrace)? {
        bail!("processes = true needs CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH and --processes in the keeper's unit");
    }
    for obstacle in guard::obstacles(options) {
        anstream::eprintln!("somebody else's rules turn away what is turned to us: {obstacle}");
    }
    Ok(())
}

/// A file or folder on the way to this one that a user, or anybody, may write to: what he could have us read is his. Only
/// his main group counts, since he has no other where we begin as root.
fn writable_on_the_way(path: &Path, user: &User) -> Option<PathBuf> {
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    let is_writable = |path: &Path| {
        let Ok(found) = fs::metadata(path) else { return false };
        if statvfs(path).is_ok_and(|system| system.flags().contains(FsFlags::ST_RDONLY)) {
            return false;
        }
        // In such a folder nobody replaces what is another's.
        let by_others = !(found.is_dir() && found.mode() & STICKY != 0);
        let by_group = found.mode() & 0o020 != 0 && found.gid() == gid;
        found.uid() == uid || by_others && (found.mode() & 0o002 != 0 || by_group)
    };
    // Links and where they lead.
    let paths = [std::path::absolute(path), fs::canonicalize(path)];
    let mut places = paths.iter().flatten().flat_map(|path| path.ancestors());
    places.find(|place| is_writable(place)).map(Path::to_owned)
}

/// The bit of a folder like `/tmp`.
const STICKY: u32 = 0o1000;

/// What no request opens or closes: our own addresses, those of whom we ask, and what the configuration settles.
fn untouched(config: &Config, interfaces: &Interfaces) -> Vec<IpNet> {
    let options = &config.firewall;
    let servers = servers(options).map(|server| server.ip().to_canonical());
    let hosts = interfaces.addresses.iter().copied().chain(servers).map(IpNet::from);
    let settled = [&options.own, &options.fixed, &options.exempt];
    hosts.chain(settled.into_iter().flatten().copied()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    #[test]
    fn what_the_forwarder_could_have_written_is_found() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("SKIPPED: not root");
        }
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (inner, file) = (folder.path().join("conf"), folder.path().join("conf/x.toml"));
        fs::create_dir(&inner).unwrap();
        fs::write(&file, "").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(&file, 0o644);
        assert_eq!(writable_on_the_way(&file, &nobody), None);
        set(&file, 0o646);
        assert_eq!(writable_on_the_way(&file, &nobody), Some(file.clone()));
        set(&file, 0o644);
        set(&inner, 0o777);
        // Nobody has looked for it in vain for nothing.
        assert_eq!(writable_on_the_way(&inner.join("missing"), &nobody), Some(inner.clone()));
        set(&inner, 0o755);
        chown(&inner, Some(nobody.uid.as_raw()), None).unwrap();
        assert_eq!(writable_on_the_way(&file, &nobody), Some(inner));
    }
}
