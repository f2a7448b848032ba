//! The state folder: one daemon at a time, the latest time seen, the last good files, where the admin door is.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use nix::{
    fcntl::{Flock, FlockArg},
    unistd::{AccessFlags, access},
};
use thiserror::Error;

use crate::{problem::SourceFile, sys::file::replace_file};

pub(super) const LOCK: &str = "lock";
const LATEST_TIME: &str = "latest-time";
const LAST_GOOD: &str = "last-good";
const ADMIN: &str = "admin";

/// The state folder, ours alone until dropped.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    _lock: Flock<File>,
}

/// Why the state folder cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// It cannot be made or written to.
    #[error("cannot write to the state folder {folder}; set --state-dir, or give its owner the right", folder = folder.display())]
    Unwritable {
        /// Which.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon uses it.
    #[error("the state folder {folder} is in use by another tunnelwarden{holder}", folder = folder.display())]
    InUse {
        /// Which.
        folder: PathBuf,
        /// Its process id, where it could be read.
        holder: String,
    },
}

impl State {
    /// Takes the folder, making it 0750 if there is none.
    ///
    /// # Errors
    /// When it cannot be written to, or another daemon has it.
    pub fn take(folder: &Path) -> Result<Self, StateError> {
        let unwritable = |source| StateError::Unwritable { folder: folder.into(), source };
        DirBuilder::new().recursive(true).mode(0o750).create(folder).map_err(unwritable)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o640);
        let file = file.open(folder.join(LOCK)).map_err(unwritable)?;
        let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(file, _)| StateError::InUse { folder: folder.into(), holder: holder(file) })?;
        lock.set_len(0).and_then(|()| writeln!(*lock, "{}", std::process::id())).map_err(unwritable)?;
        Ok(Self { folder: folder.into(), _lock: lock })
    }

    /// Root may write to anybody's folder, and no more than others once it has given up its rights.
    ///
    /// # Errors
    /// When it cannot be written to any more.
    pub fn is_still_ours(&self) -> Result<(), StateError> {
        let may = access(&self.folder, AccessFlags::W_OK | AccessFlags::X_OK);
        may.map_err(|error| StateError::Unwritable { folder: self.folder.clone(), source: error.into() })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The latest time any daemon here has seen; none on the first start, or when what is kept is not a time.
    pub fn latest_time(&self) -> Option<Timestamp> {
        latest_time(&self.folder)
    }

    /// Keeps the latest time seen.
    ///
    /// # Errors
    /// When it cannot be written: the disk is full, say. The daemon goes on.
    pub fn keep_latest_time(&self, time: Timestamp) -> io::Result<()> {
        self.replace(Path::new(LATEST_TIME), format!("{time}\n").as_bytes())
    }

    /// Keeps copies of the files a policy was made from, to look at when later ones turn out broken.
    ///
    /// # Errors
    /// When they cannot be written. The daemon goes on.
    pub fn keep_last_good(&self, files: &[Arc<SourceFile>]) -> io::Result<()> {
        let folder = self.folder.join(LAST_GOOD);
        DirBuilder::new().recursive(true).mode(0o750).create(&folder)?;
        let mut kept = HashSet::new();
        for file in files {
            // The whole path in one word, so that two packs of one file name do not overwrite each other.
            let name = file.path.to_string_lossy().trim_start_matches('/').replace('/', "%");
            self.replace(&Path::new(LAST_GOOD).join(&name), file.text.as_bytes())?;
            kept.insert(OsString::from(name));
        }
        // Only what is in force: a pack given up long ago would mislead.
        for entry in fs::read_dir(&folder)?.filter_map(Result::ok) {
            if !kept.contains(&entry.file_name()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Keeps where the admin door is, or that there is none: files that are broken by now do not tell.
    ///
    /// # Errors
    /// When it cannot be written. The daemon goes on.
    pub fn keep_admin_address(&self, address: Option<SocketAddr>) -> io::Result<()> {
        if let Some(address) = address {
            return self.replace(Path::new(ADMIN), format!("{address}\n").as_bytes());
        }
        match fs::remove_file(self.folder.join(ADMIN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn replace(&self, name: &Path, content: &[u8]) -> io::Result<()> {
        replace_file(&self.folder.join(name), content)
    }
}

/// The same, for who only looks.
pub fn latest_time(folder: &Path) -> Option<Timestamp> {
    let text = fs::read_to_string(folder.join(LATEST_TIME)).ok()?;
    text.trim().parse().ok()
}

/// Where the admin door of the daemon that has or had the folder is, for who only looks.
pub fn admin_address(folder: &Path) -> Option<SocketAddr> {
    fs::read_to_string(folder.join(ADMIN)).ok()?.trim().parse().ok()
}

fn holder(mut file: File) -> String {
    let mut pid = String::new();
    let read = file.read_to_string(&mut pid);
    match (read, pid.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!(", process {pid}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_on_one_state_folder_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = State::take(folder.path()).unwrap();
        let second = State::take(folder.path()).unwrap_err();
        assert!(
            second.to_string().ends_with(&format!("another tunnelwarden, process {}", std::process::id())),
            "{second}"
        );
        drop(first);
        State::take(folder.path()).unwrap();
    }

    #[test]
    fn the_latest_time_and_the_last_good_files_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let time: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let state = State::take(folder.path()).unwrap();
        assert_eq!(state.latest_time(), None);
        state.keep_latest_time(time).unwrap();
        let admin = "[::1]:9053".parse().unwrap();
        state.keep_admin_address(Some(admin)).unwrap();
        for path in ["/etc/tunnelwarden/old.toml", "/etc/tunnelwarden/a.toml"] {
            state.keep_last_good(&[Arc::new(SourceFile { path: path.into(), text: "x".into() })]).unwrap();
        }
        drop(state);
        assert_eq!(State::take(folder.path()).unwrap().latest_time(), Some(time));
        assert_eq!(admin_address(folder.path()), Some(admin));
        State::take(folder.path()).unwrap().keep_admin_address(None).unwrap();
        assert_eq!(admin_address(folder.path()), None);
        assert_eq!(fs::read_to_string(folder.path().join("last-good/etc%tunnelwarden%a.toml")).unwrap(), "x");
        assert_eq!(fs::read_dir(folder.path().join("last-good")).unwrap().count(), 1, "only what is in force");
    }

    #[test]
    fn a_state_folder_that_cannot_be_made_is_an_error_that_names_it() {
        let error = State::take(Path::new("/proc/nowhere")).unwrap_err();
        assert!(matches!(error, StateError::Unwritable { .. }), "{error}");
        assert!(error.to_string().contains("/proc/nowhere"), "{error}");
    }
}
