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

/// The time of a write may be rounded down: to a tick of the kernel, or to the two seconds of a poor file system.
const TICK: Duration = Duration::from_millis(20);
const POOR: Duration = Duration::from_secs(2);

/// What a file looks like without reading it; `None` when it is not there.
type Look = Option<(u64, u64, u64, i64, i64)>;

/// What all of them look like.
type Looks = BTreeMap<PathBuf, Look>;

/// Watches a set of files. What it has heard is kept in it: [`changed`](Self::changed) may be dropped and called again.
pub(super) struct Watch {
    looks: Looks,
    names: HashSet<OsString>,
    events: Option<EventStream<[u8; 4096]>>,
    /// A folder is missing, so that one above it is watched instead.
    is_partial: bool,
    /// Files that are being written to.
    open: HashSet<OsString>,
    /// When something happened last; none once that was looked at.
    touched: Option<Instant>,
    /// What a change looked like that no event told of, to see whether it goes on.
    unheard: Option<Looks>,
    round: Instant,
}

impl Watch {
    /// Begins to [`follow`](Self::follow).
    pub(super) fn new(files: &[PathBuf], read_at: SystemTime) -> Self {
        let mut watch = Self {
            looks: Looks::new(),
            names: HashSet::new(),
            events: None,
            is_partial: false,
            open: HashSet::new(),
            touched: None,
            unheard: None,
            round: Instant::now() + ROUND,
        };
        watch.follow(files, read_at);
        watch
    }

    /// Remembers what `files` look like now. Files that are not there yet count: they may come. One that was written
    /// since `read_at`, when reading began, may have been read before that: it counts as changed. What is heard of
    /// the same folders goes on, so that who began to write meanwhile is still known to write.
    pub(super) fn follow(&mut self, files: &[PathBuf], read_at: SystemTime) {
        let mut raced = false;
        let mut remembered = |path: &PathBuf| {
            let found = look(path);
            let may_have_raced = found.is_some_and(|found| may_have_raced(found, read_at));
            raced |= may_have_raced;
            (path.clone(), found.filter(|_| !may_have_raced))
        };
        let looks: Looks = files.iter().map(&mut remembered).collect();
        self.is_partial = watch_folders(&mut self.events, &looks);
        self.names = files.iter().filter_map(|path| path.file_name()).map(OsString::from).collect();
        self.open.retain(|name| self.names.contains(name));
        self.unheard = raced.then(|| look_at_all(&looks));
        if raced {
            self.touched = Some(Instant::now());
        }
        self.looks = looks;
    }

    /// Waits until a file differs from what was remembered, and nobody has touched one for a second.
    pub(super) async fn changed(&mut self) {
        loop {
            let wake = self.touched.map_or(self.round, |touched| touched + STABLE);
            tokio::select! {
                event = next(&mut self.events) => match event {
                    Some((mask, name)) => self.note(mask, name),
                    // The folders' watches ended: the next round sets new ones.
                    None => self.events = None,
                },
                () = sleep_until(wake) => {
                    let is_told = self.touched.take().is_some();
                    if is_told && self.has_settled() {
                        return;
                    }
                    if !is_told {
                        self.make_round();
                    }
                }
            }
        }
    }

    /// A file that is written to is open until it is closed or replaced. Neighbours may be busy all the time (a log,
    /// say): what happens to them makes us look, since a link may be among them, but never wait longer.
    fn note(&mut self, mask: EventMask, name: OsString) {
        let is_write = mask.contains(EventMask::MODIFY);
        if self.names.contains(&name) {
            self.touched = Some(Instant::now());
            if is_write {
                self.open.insert(name);
            } else {
                self.open.remove(&name);
            }
        } else if !is_write {
            self.touched.get_or_insert_with(Instant::now);
        }
        self.is_partial |= mask.contains(EventMask::IGNORED);
    }

    /// A second has passed since something happened. Is there a change, and is it whole?
    fn has_settled(&mut self) -> bool {
        if self.is_partial {
            self.is_partial = watch_folders(&mut self.events, &self.looks);
        }
        let now = look_at_all(&self.looks);
        if now == self.looks || !self.open.is_empty() {
            return false;
        }
        match self.unheard.take() {
            Some(before) if before != now => {
                (self.unheard, self.touched) = (Some(now), Some(Instant::now()));
                false
            }
            Some(_) | None => true,
        }
    }

    /// Looks without having been told. A writer that never closes must not hide later changes for ever.
    fn make_round(&mut self) {
        self.open.clear();
        self.is_partial = watch_folders(&mut self.events, &self.looks);
        let now = look_at_all(&self.looks);
        if now != self.looks {
            (self.unheard, self.touched) = (Some(now), Some(Instant::now()));
        }
        self.round = Instant::now() + ROUND;
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

/// Watches the folder of each file, or the nearest one above it that is there; tells whether that was needed. What is
/// watched already, and what was heard there, stays.
fn watch_folders(events: &mut Option<EventStream<[u8; 4096]>>, looks: &Looks) -> bool {
    if events.is_none() {
        // Without inotify (its instances are limited per user) the rounds still notice.
        *events = Inotify::init().and_then(|inotify| inotify.into_event_stream([0; 4096])).ok();
    }
    let Some(mut watches) = events.as_ref().map(EventStream::watches) else { return false };
    let mask = WatchMask::MODIFY
        | WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO;
    let mut is_partial = false;
    let folders: BTreeSet<_> = looks.keys().filter_map(|path| path.parent()).collect();
    for folder in folders {
        for (steps, folder) in folder.ancestors().enumerate() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            if watches.add(folder, mask).is_ok() {
                is_partial |= steps > 0;
                break;
            }
        }
    }
    is_partial
}

fn look_at_all(looks: &Looks) -> Looks {
    looks.keys().map(|path| (path.clone(), look(path))).collect()
}

fn look(path: &Path) -> Look {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

/// May the file have been written after `read_at`? Not if its time has yet to come: that says nothing, and would say
/// it for ever.
fn may_have_raced((.., seconds, nanoseconds): (u64, u64, u64, i64, i64), read_at: SystemTime) -> bool {
    let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds)) else { return false };
    let slack = if nanoseconds == 0 { POOR } else { TICK };
    let written = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    written + slack >= read_at && written <= SystemTime::now() + POOR
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

    #[tokio::test]
    async fn what_was_heard_is_not_forgotten_when_the_waiting_is_given_up_and_begun_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("here.toml");
        let mut watch = Watch::new(std::slice::from_ref(&path), later());
        fs::write(&path, "1").unwrap();
        for _ in 0..3 {
            assert!(timeout(STABLE / 4, watch.changed()).await.is_err(), "not yet stable");
        }
        timeout(STABLE, watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_write_that_began_during_a_reload_is_left_alone_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("here.toml");
        let files = [path.clone(), folder.path().join("missing/pack.toml")];
        let read_at = SystemTime::now();
        let mut watch = Watch::new(&files, later());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        watch.follow(&files, read_at);
        assert!(timeout(STABLE * 2, watch.changed()).await.is_err(), "it is open");
        drop(file);
        timeout(SOON, watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_busy_neighbour_hides_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("here.toml");
        let mut watch = Watch::new(std::slice::from_ref(&path), later());
        let mut log = File::create(folder.path().join("log")).unwrap();
        fs::write(&path, "1").unwrap();
        let busy = async {
            for round in 0.. {
                log.write_all(b"line\n").unwrap();
                fs::write(folder.path().join(format!("{round}.log")), "").unwrap();
                tokio::time::sleep(STABLE / 10).await;
            }
        };
        tokio::select! {
            () = busy => {}
            noticed = timeout(SOON, watch.changed()) => noticed.unwrap(),
        }
    }

    #[tokio::test]
    async fn a_folder_that_was_missing_is_noticed_with_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("packs/deep/here.toml");
        let mut watch = Watch::new(std::slice::from_ref(&path), later());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        assert!(timeout(STABLE * 2, watch.changed()).await.is_err(), "the file is not there yet");
        fs::write(&path, "1").unwrap();
        timeout(SOON, watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_written_while_it_was_read_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("here.toml");
        fs::write(&path, "1").unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(10);
        let mut watch = Watch::new(std::slice::from_ref(&path), long_ago);
        timeout(SOON, watch.changed()).await.unwrap();
        let mut watch = Watch::new(std::slice::from_ref(&path), later());
        assert!(timeout(STABLE * 2, watch.changed()).await.is_err(), "it was read after that");
    }
}
