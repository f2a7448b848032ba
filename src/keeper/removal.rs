//! Root's word that the table is to be taken away. The forwarder passes the request on, but whoever has taken it over must
//! not be able to make it: so root leaves a file where only root can, for as long as it takes.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// A word counts for so long, should whoever gave it not have taken it back.
const FRESH: Duration = Duration::from_secs(60);

/// Group and others may not write.
const WRITABLE: u32 = 0o022;

/// The word, until it is dropped.
#[derive(Debug)]
pub struct Word(PathBuf);

impl Word {
    /// Gives it, in a file of this process's own whose name begins with this path.
    ///
    /// # Errors
    /// When this is not root, or the folder is not to be written to.
    pub fn give(path: &Path) -> io::Result<Self> {
        let mut own = path.as_os_str().to_owned();
        own.push(format!(".{}", std::process::id()));
        // One that a process of this number left behind would not be fresh.
        let _ = fs::remove_file(&own);
        File::options().write(true).create_new(true).mode(0o600).open(&own)?;
        Ok(Self(own.into()))
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        // Left behind, it is soon not fresh any more.
        let _ = fs::remove_file(&self.0);
    }
}

/// Has root given it?
pub(super) fn is_given(path: &Path, now: SystemTime) -> bool {
    let (Some(folder), Some(beginning)) = (path.parent(), path.file_name()) else { return false };
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| {
        let is_word = entry.file_name().as_encoded_bytes().starts_with(beginning.as_encoded_bytes());
        // Of a link, the link itself.
        is_word && entry.metadata().is_ok_and(|found| is_roots(&found) && is_fresh(&found, now))
    })
}

fn is_roots(found: &Metadata) -> bool {
    found.is_file() && found.uid() == 0 && found.mode() & WRITABLE == 0
}

fn is_fresh(found: &Metadata, now: SystemTime) -> bool {
    // A moment in the future comes from files that keep time more finely than clocks tell it.
    found.modified().is_ok_and(|given| now.duration_since(given).unwrap_or_default() <= FRESH)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    #[test]
    fn roots_word_counts_while_it_is_fresh_and_nobody_elses_does() {
        let folder = tempfile::tempdir().unwrap();
        let beginning = folder.path().join("word");
        let now = SystemTime::now();
        assert!(!is_given(&beginning, now));
        let word = Word::give(&beginning).unwrap();
        if !nix::unistd::geteuid().is_root() {
            return assert!(!is_given(&beginning, now));
        }
        assert!(is_given(&beginning, now) && !is_given(&beginning, now + FRESH + Duration::from_secs(5)));
        symlink(&word.0, folder.path().join("link")).unwrap();
        assert!(!is_given(&folder.path().join("link"), now));
        fs::set_permissions(&word.0, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(!is_given(&beginning, now));
        fs::set_permissions(&word.0, fs::Permissions::from_mode(0o600)).unwrap();
        // In a user namespace there may be no other user.
        if chown(&word.0, Some(65_534), None).is_ok() {
            assert!(!is_given(&beginning, now));
        }
        drop(word);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
