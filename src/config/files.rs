//! Files as they are opened for reading: ordinary ones only, and never more than a limit of them.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

use thiserror::Error;

/// Why a file was not read.
#[derive(Debug, Error)]
pub(super) enum ReadError {
    /// There is none.
    #[error("no such file")]
    Missing,
    /// The system refused.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// A folder, a device, a pipe: reading it may never end.
    #[error("it is {0}, not a file")]
    NotAFile(&'static str),
    /// More bytes than anybody writes by hand.
    #[error("it is larger than {} MiB", .0 >> 20)]
    TooLarge(u64),
    /// Bytes that are no text.
    #[error("line {line} is not UTF-8 text")]
    NotText {
        /// The line, counted from 1.
        line: usize,
    },
}

/// Reads a text of at most `limit` bytes.
///
/// # Errors
/// See [`ReadError`].
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String, ReadError> {
    String::from_utf8(read_bytes(path, limit)?).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        ReadError::NotText { line: valid.iter().filter(|&&byte| byte == b'\n').count() + 1 }
    })
}

/// Reads at most `limit` bytes, and refuses a larger file by its size before reading any of it.
///
/// # Errors
/// See [`ReadError`].
pub(super) fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let file = open(path)?;
    let size = file.metadata().map_err(ReadError::Io)?.len();
    if size > limit {
        return Err(ReadError::TooLarge(limit));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    // It may grow while it is read.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(ReadError::Io)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge(limit));
    }
    Ok(bytes)
}

fn open(path: &Path) -> Result<File, ReadError> {
    // Symlinks are followed (a ConfigMap is made of them); a pipe without a writer must not make us wait, and a
    // terminal must not become ours.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let file = file.map_err(|error| if is_missing(&error) { ReadError::Missing } else { ReadError::Io(error) })?;
    let kind = file.metadata().map_err(ReadError::Io)?.file_type();
    let name = if kind.is_file() {
        return Ok(file);
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe"
    } else {
        "a device"
    };
    Err(ReadError::NotAFile(name))
}

#[cfg(test)]
mod tests {
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn only_ordinary_files_of_a_sensible_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("good"), "text").unwrap();
        std::fs::write(at("latin1"), b"a\nb\xe4\n").unwrap();
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(at("good"), at("link")).unwrap();
        // 100 GB that take no room on the disk: only its size can be looked at in time.
        File::create(at("huge")).unwrap().set_len(100 << 30).unwrap();
        assert_eq!(read_text(&at("good"), 4).unwrap(), "text");
        assert_eq!(read_text(&at("link"), 4).unwrap(), "text");
        #[rustfmt::skip]
        let cases = [
            (at("good"),        "it is larger than 0 MiB"),
            (at("huge"),        "it is larger than 4 MiB"),
            (at("latin1"),      "line 2 is not UTF-8 text"),
            (at("pipe"),        "it is a pipe, not a file"),
            (at("none"),        "no such file"),
            (at("good/none"),   "Not a directory (os error 20)"),
            (at(""),            "it is a folder, not a file"),
            ("/dev/zero".into(), "it is a device, not a file"),
        ];
        for (path, expected) in cases {
            let limit = if path.ends_with("good") { 3 } else { 4 << 20 };
            assert_eq!(read_text(&path, limit).unwrap_err().to_string(), expected, "{}", path.display());
        }
    }
}
