//! What the daemon may still do once it has started: which rights it needs, and where it writes.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::{
    audit::{Sink, Store},
    config::Config,
    sys::{
        rights::{self, Right},
        sandbox::Sandbox,
    },
};

/// The sandbox, and what a later configuration has to keep to.
#[derive(Debug)]
pub struct Confinement {
    /// What is in force.
    pub sandbox: Sandbox,
    writable: Vec<PathBuf>,
}

impl Confinement {
    /// Enters the sandbox that fits a configuration. After the keeper was started, before there are threads.
    pub fn enter(config: &Config, state_dir: &Path) -> Self {
        let writable: Vec<_> = written(config, state_dir).iter().filter_map(|path| place(path)).collect();
        let sandbox = Sandbox::enter(needed(config), &writable);
        Self { sandbox, writable }
    }

    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self { sandbox: Sandbox { parts: Vec::new() }, writable: Vec::new() }
    }

    /// What another configuration writes to and this process may not, since it did not know of it at its start.
    pub(super) fn outside(&self, config: &Config, state_dir: &Path) -> Option<PathBuf> {
        let is_inside = |path: &PathBuf| {
            place(path).is_some_and(|place| self.writable.iter().any(|writable| place.starts_with(writable)))
        };
        let paths = if self.sandbox.holds("landlock") { written(config, state_dir) } else { Vec::new() };
        paths.into_iter().find(|path| !is_inside(path))
    }
}

/// Of the rights that are there, those that a configuration takes: to listen on ports below 1024.
pub(super) fn needed(config: &Config) -> &'static [Right] {
    let doors = config.listen.dns.iter().copied().chain(config.listen.admin.address()).chain(config.firewall.gate());
    let is_low = |door: SocketAddr| (1..1024).contains(&door.port());
    if doors.into_iter().any(is_low) && rights::has(Right::NetBindService).unwrap_or_default() {
        &[Right::NetBindService]
    } else {
        &[]
    }
}

/// Everything that is written while we run: folders, since files in them are made, renamed and rotated away, and what is
/// no file, a pipe say.
fn written(config: &Config, state_dir: &Path) -> Vec<PathBuf> {
    let mut paths = vec![state_dir.to_owned()];
    if let Store::File(path) = &config.audit.store {
        paths.extend(state_dir.join(path).parent().map(Path::to_owned));
    }
    for sink in &config.audit.sinks {
        if let Sink::File(path) = sink {
            let is_special = fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
            paths.extend(if is_special { Some(path.clone()) } else { path.parent().map(Path::to_owned) });
        }
    }
    paths.extend(config.listen.socket.as_deref().and_then(Path::parent).map(Path::to_owned));
    paths
}

/// Where the kernel is to let us write for that: there, or in the nearest folder above it that exists, where it may come
/// to be.
fn place(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    if fs::metadata(&path).is_ok_and(|found| !found.is_dir()) {
        // By its own name: what a link like /dev/stdout leads to may have none.
        return Some(path);
    }
    path.ancestors().find_map(|place| fs::canonicalize(place).ok())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{config, sys::sandbox::Part};

    fn config(folder: &Path, text: &str) -> Config {
        let path = folder.join("tunnelwarden.toml");
        fs::write(&path, format!("[upstream]\nservers = [\"udp://127.0.0.1:9\"]\n{text}")).unwrap();
        config::load(Some(&path), Timestamp::now()).outcome.unwrap()
    }

    fn sink(path: &Path) -> String {
        format!("[[audit.sinks]]\nkind = \"file\"\npath = \"{}\"\n", path.display())
    }

    #[test]
    fn a_later_configuration_writes_where_the_first_one_did() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        for name in ["state", "logs", "else"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let state = root.join("state");
        let first = config(&root, &sink(&root.join("logs/lines")));
        let writable: Vec<_> = written(&first, &state).iter().filter_map(|path| place(path)).collect();
        assert_eq!(writable, [state.clone(), state.clone(), root.join("logs")]);
        let part = Part { name: "landlock", is_in_force: true, words: String::new() };
        let confinement = Confinement { sandbox: Sandbox { parts: vec![part] }, writable };
        for (path, is_outside) in [
            (root.join("logs/other"), false),
            (root.join("logs/deeper/lines"), false),
            (state.join("lines"), false),
            (root.join("else/lines"), true),
            (PathBuf::from("/dev/null"), true),
        ] {
            let next = config(&root, &sink(&path));
            assert_eq!(confinement.outside(&next, &state).is_some(), is_outside, "{}", path.display());
        }
    }

    #[test]
    fn a_right_is_kept_for_low_ports_alone() {
        let folder = tempfile::tempdir().unwrap();
        let high = config(folder.path(), "[listen]\ndns = [\"127.0.0.1:5300\"]\n");
        assert_eq!(needed(&high), &[]);
        let low = config(folder.path(), "[listen]\ndns = [\"127.0.0.1:53\"]\n");
        let kept: &[Right] = if rights::has(Right::NetBindService).unwrap() { &[Right::NetBindService] } else { &[] };
        assert_eq!(needed(&low), kept);
    }
}
