//! Where lines go besides the store: a file or standard output. Knows lines, not attempts.
//!
//! A sink never makes the others wait: what it does not take is kept, up to [`MAX_WAITING`], and tried again every
//! [`RETRY`]; what does not fit there is turned away and counted. A line that was cut short (a full disk) is
//! continued where it was cut before any other line follows; one that a crash cut short is closed by a newline.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Sink, SinkHealth, health::Watched};
use crate::{metrics::Metrics, problem::printable};

/// How soon a sink that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Bytes that may wait for a sink that does not take them.
const MAX_WAITING: usize = 1 << 20;

/// Bytes that wait for more to come in a burst.
const MANY_WAITING: usize = 1 << 16;

/// Bytes in one write. A pipe takes so many whole or not at all (pipe(7), PIPE_BUF).
const CHUNK: usize = 4096;

/// Mode of a file that we create: the owner writes, the group reads.
pub(super) const FILE_MODE: u32 = 0o640;

/// One sink and what waits for it.
#[derive(Debug)]
pub(super) struct Outlet {
    sink: Sink,
    part: String,
    file: Option<File>,
    waiting: VecDeque<Arc<str>>,
    waiting_bytes: usize,
    /// Bytes of the first waiting line that are written already.
    written: usize,
    /// The file ends in the middle of a line that is not ours to continue.
    is_torn: bool,
    watched: Watched,
    retry_at: Option<Instant>,
}

impl Outlet {
    /// A sink, not yet opened; the first write opens it.
    pub(super) fn new(sink: &Sink) -> Self {
        let part = match sink {
            Sink::Stdout => "stdout".to_owned(),
            Sink::File(path) => printable(&path.to_string_lossy()),
        };
        Self {
            sink: sink.clone(),
            file: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            written: 0,
            is_torn: false,
            watched: Watched::new(&format!("audit sink {part}")),
            part,
            retry_at: None,
        }
    }

    /// What it writes to.
    pub(super) fn sink(&self) -> &Sink {
        &self.sink
    }

    /// How it is doing.
    pub(super) fn health(&self) -> SinkHealth {
        SinkHealth { sink: self.part.clone(), condition: self.watched.condition().clone() }
    }

    /// Does anything wait for it, or it for being tried again?
    pub(super) fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.watched.is_working()
    }

    /// Takes a line, its newline included; [`write`](Self::write) writes it, and so does this once many wait.
    pub(super) fn push(&mut self, line: Arc<str>, metrics: &Metrics, now: Timestamp) {
        if self.waiting_bytes >= MANY_WAITING {
            self.write(metrics, now);
        }
        if self.waiting_bytes + line.len() > MAX_WAITING {
            metrics.audit_lost_sink.increment();
            // Only a reader that stalls gets here without an error.
            if self.watched.is_working() {
                self.watched.fail("its reader does not keep up", now);
            }
            return;
        }
        self.waiting_bytes += line.len();
        self.waiting.push_back(line);
    }

    /// Writes what waits, unless it failed less than [`RETRY`] ago. Opens the file if it has to.
    pub(super) fn write(&mut self, metrics: &Metrics, now: Timestamp) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        match self.open().and_then(|()| self.write_waiting()) {
            Ok(()) => self.watched.recover(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                metrics.audit_failures_sink.increment();
                self.watched.fail(&error.to_string(), now);
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Lets go of the file, so that the next write opens it by its name, and tries at once.
    pub(super) fn reopen(&mut self) {
        self.file = None;
        self.retry_at = None;
        // The rest of a line has no place in another file; there it is written whole.
        self.written = 0;
    }

    /// Counts what still waits as lost.
    pub(super) fn give_up(&self, metrics: &Metrics) {
        metrics.audit_lost_sink.add(self.waiting.len().try_into().unwrap_or(u64::MAX));
    }

    fn open(&mut self) -> io::Result<()> {
        let is_removed =
            |file: &File| file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 0);
        if self.file.as_ref().is_some_and(is_removed) {
            self.reopen();
        }
        if self.file.is_none() {
            self.file = Some(match &self.sink {
                Sink::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
                Sink::File(path) => {
                    let mut file = open_or_create(path)?;
                    self.is_torn = ends_within_a_line(&mut file)?;
                    file
                }
            });
        }
        Ok(())
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        let Some(mut file) = self.file.as_ref() else { return Ok(()) };
        while !self.waiting.is_empty() {
            let chunk = chunk(&self.waiting, self.written, self.is_torn);
            if !is_ready(file)? {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let length = match file.write(&chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                written => written?,
            };
            let own = length - usize::from(self.is_torn && length > 0);
            self.is_torn &= length == 0;
            self.written += own;
            while let Some(line) = self.waiting.front().filter(|line| line.len() <= self.written) {
                self.written -= line.len();
                self.waiting_bytes -= line.len();
                self.waiting.pop_front();
            }
            if length == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// As many whole lines as fit, but at least one; without the bytes of the first that are written already.
fn chunk(lines: &VecDeque<Arc<str>>, written: usize, is_torn: bool) -> Vec<u8> {
    let mut chunk = Vec::with_capacity(CHUNK);
    if is_torn {
        chunk.push(b'\n');
    }
    for (index, line) in lines.iter().enumerate() {
        let rest = line.as_bytes().get(if index == 0 { written } else { 0 }..).unwrap_or_default();
        if index > 0 && chunk.len() + rest.len() > CHUNK {
            break;
        }
        chunk.extend_from_slice(rest);
    }
    chunk
}

/// Opens a file to append to it and, if it is new, gives it [`FILE_MODE`] whatever the umask says.
fn open_or_create(path: &Path) -> io::Result<File> {
    // A named pipe without a reader, or with a slow one, must not stop us. Reading is for `ends_within_a_line`.
    let mut options = OpenOptions::new();
    options.append(true).read(true).mode(FILE_MODE).custom_flags(libc::O_NONBLOCK);
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            file.set_permissions(Permissions::from_mode(FILE_MODE))?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        Err(error) => Err(error),
    }
}

fn ends_within_a_line(file: &mut File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Would a write of [`CHUNK`] bytes be taken at once? Files always do.
fn is_ready(file: &File) -> io::Result<bool> {
    let mut asked = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    // An error on the other side shows as ready: the write then says what it is.
    Ok(poll(&mut asked, PollTimeout::ZERO)? > 0)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileTypeExt};

    use super::{super::Condition, *};

    fn outlet(path: &Path) -> Outlet {
        Outlet::new(&Sink::File(path.into()))
    }

    fn put(outlet: &mut Outlet, metrics: &Metrics, line: &str) {
        outlet.push(format!("{line}\n").into(), metrics, Timestamp::UNIX_EPOCH);
        outlet.write(metrics, Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn a_new_file_is_0640_and_an_old_one_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attempts.jsonl");
        let metrics = Metrics::default();
        put(&mut outlet(&path), &metrics, "one");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, FILE_MODE);
        put(&mut outlet(&path), &metrics, "two");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_line_that_a_crash_cut_short_is_closed_before_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attempts.jsonl");
        fs::write(&path, "whole\nhal").unwrap();
        put(&mut outlet(&path), &Metrics::default(), "next");
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\nhal\nnext\n");
    }

    #[test]
    fn a_line_that_was_cut_short_is_continued_and_in_another_file_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attempts.jsonl");
        let metrics = Metrics::default();
        let mut outlet = outlet(&path);
        put(&mut outlet, &metrics, "first");
        // As after a write of 3 bytes of "second\n".
        fs::write(&path, "first\nsec").unwrap();
        outlet.push("second\n".into(), &metrics, Timestamp::UNIX_EPOCH);
        outlet.written = 3;
        put(&mut outlet, &metrics, "third");
        assert_eq!(fs::read_to_string(&path).unwrap(), "first\nsecond\nthird\n");
        outlet.push("fourth\n".into(), &metrics, Timestamp::UNIX_EPOCH);
        outlet.written = 3;
        fs::rename(&path, folder.path().join("old")).unwrap();
        outlet.reopen();
        outlet.write(&metrics, Timestamp::UNIX_EPOCH);
        assert_eq!(fs::read_to_string(&path).unwrap(), "fourth\n");
    }

    #[test]
    fn a_full_disk_is_counted_and_shown_and_what_waits_is_bounded() {
        let metrics = Metrics::default();
        let mut outlet = outlet(Path::new("/dev/full"));
        assert!(fs::metadata("/dev/full").unwrap().file_type().is_char_device());
        let line = "x".repeat(1000);
        for _ in 0..2000 {
            put(&mut outlet, &metrics, &line);
        }
        assert!(outlet.waiting_bytes <= MAX_WAITING);
        let kept = u64::try_from(outlet.waiting.len()).unwrap();
        assert_eq!(metrics.audit_lost_sink.value() + kept, 2000);
        assert!(metrics.audit_failures_sink.value() >= 1);
        assert!(
            matches!(outlet.watched.condition(), Condition::Failing { why, .. } if why.contains("No space")),
            "{:?}",
            outlet.watched
        );
    }

    #[test]
    fn a_removed_file_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attempts.jsonl");
        let metrics = Metrics::default();
        let mut outlet = outlet(&path);
        put(&mut outlet, &metrics, "one");
        fs::remove_file(&path).unwrap();
        put(&mut outlet, &metrics, "two");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }

    #[test]
    fn a_pipe_whose_reader_stalls_does_not_block_and_gets_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let metrics = Metrics::default();
        let mut outlet = outlet(&path);
        let line = "y".repeat(999);
        for _ in 0..3000 {
            put(&mut outlet, &metrics, &line);
        }
        assert!(metrics.audit_lost_sink.value() > 0);
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let mut read = vec![0; 1 << 20];
        let length = reader.read(&mut read).unwrap();
        assert!(length >= 1000 && length.is_multiple_of(1000), "{length} bytes are not whole lines");
    }
}
