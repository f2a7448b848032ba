//! Notices that configuration or packs changed: once they are closed and have been stable for a second.
//!
//! The folders are watched rather than the files, since editors, package managers and Kubernetes replace a file by
//! renaming another, or a link to a folder, over it. What counts in the end is what the files look like now.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use tokio::time::{Instant, sleep_until};

/// How long files must be left alone before they are read.
const STABLE: Duration = Duration::from_secs(1);

/// How often we look without being told: network file systems tell nothing, and a folder may have been missing.
const ROUND: Duration = Duration::from_secs(30);

/// What a file looks like without reading it; `None` when it is not there.
type Look = Option<(u64, u64, u64, i64, i64)>;

/// Watches a set of files.
pub(super) struct Watch {
    looks: BTreeMap<PathBuf, Look>,
    events: Option<EventStream<[u8; 4096]>>,
}

impl Watch {
    /// Remembers what `files` look like. Files that are not there yet count: they may come. One that was written
    /// since `read_at`, when reading began, may have been read before that: it counts as changed.
    pub(super) fn new(files: &[PathBuf], read_at: SystemTime) -> Self {
        let read_at = read_at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let raced =
            |look: &Look| look.is_some_and(|(.., written, _)| u64::try_from(written).is_ok_and(|at| at >= read_at));
        let remembered = |path: &PathBuf| (path.clone(), look(path).filter(|found| !raced(&Some(*found))));
        let looks: BTreeMap<_, _> = files.iter().map(remembered).collect();
        let events = watch_folders(&looks);
        Self { looks, events }
    }

    /// Waits until a file differs from what was remembered, and nobody has touched one for a second.
    pub(super) async fn changed(&mut self) {
        let mut open = HashSet::new();
        let mut touched: Option<Instant> = None;
        let mut round = Instant::now() + ROUND;
        loop {
            let wake = touched.map_or(round, |touched| touched + STABLE);
            tokio::select! {
                event = next(&mut self.events) => match event {
                    Some((mask, name)) => {
                        note(&mut open, mask, name);
                        touched = Some(Instant::now());
                    }
                    // The folders' watches ended: the next round sets new ones.
                    None => self.events = None,
                },
                () = sleep_until(wake) => {
                    if open.is_empty() && self.differ() {
                        return;
                    }
                    // A writer that never closes must not hide later changes for ever.
                    if touched.take().is_none() {
                        open.clear();
                        self.events = watch_folders(&self.looks);
                        round = Instant::now() + ROUND;
                    }
                }
            }
        }
    }

    fn differ(&self) -> bool {
        self.looks.iter().any(|(path, seen)| look(path) != *seen)
    }
}

/// A file that is written to is open until it is closed or replaced.
fn note(open: &mut HashSet<OsString>, mask: EventMask, name: OsString) {
    if mask.contains(EventMask::MODIFY) {
        open.insert(name);
    } else {
        open.remove(&name);
    }
}

async fn next(events: &mut Option<EventStream<[u8; 4096]>>) -> Option<(EventMask, OsString)> {
    match events {
        Some(stream) => {
            let event = stream.next().await?.ok()?;
            Some((event.mask, event.name.unwrap_or_default()))
        }
        None => std::future::pending().await,
    }
}

fn watch_folders(looks: &BTreeMap<PathBuf, Look>) -> Option<EventStream<[u8; 4096]>> {
    // Without inotify (its instances are limited per user) the rounds still notice.
    let inotify = Inotify::init().ok()?;
    let mask = WatchMask::MODIFY
        | WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO;
    let folders: BTreeSet<_> = looks.keys().filter_map(|path| path.parent()).collect();
    for folder in folders {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let _ = inotify.watches().add(folder, mask);
    }
    inotify.into_event_stream([0; 4096]).ok()
}

fn look(path: &Path) -> Look {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    /// As if reading had begun well after the files were written.
    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(10)
    }

    #[tokio::test]
    async fn a_file_replaced_by_rename_or_born_late_is_noticed_and_a_touched_neighbour_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (here, late) = (folder.path().join("here.toml"), folder.path().join("late.toml"));
        fs::write(&here, "1").unwrap();
        let files = [here.clone(), late.clone()];

        let mut watch = Watch::new(&files, later());
        fs::write(folder.path().join("neighbour"), "x").unwrap();
        assert!(timeout(STABLE * 2, watch.changed()).await.is_err(), "a neighbour is none of our business");

        fs::write(folder.path().join("new"), "2").unwrap();
        fs::rename(folder.path().join("new"), &here).unwrap();
        timeout(SOON, watch.changed()).await.unwrap();

        let mut watch = Watch::new(&files, later());
        fs::write(&late, "3").unwrap();
        timeout(SOON, watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_still_being_written_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("here.toml");
        let mut file = File::create(&path).unwrap();
        let mut watch = Watch::new(std::slice::from_ref(&path), later());
        file.write_all(b"half").unwrap();
        assert!(timeout(STABLE * 2, watch.changed()).await.is_err(), "it is open");
        drop(file);
        timeout(SOON, watch.changed()).await.unwrap();
    }
}
