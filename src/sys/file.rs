//! Files that a crash must not leave half-written.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Gives a file another content: written beside (`.new`) and renamed, so that there is the old or the new and nothing
/// between. The file is 0640.
///
/// # Errors
/// When it cannot be written; then it is as it was.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o640).open(&beside)?;
    file.write_all(content)?;
    file.sync_data()?;
    fs::rename(beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_replaced_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        replace_file(&path, b"first").unwrap();
        replace_file(&path, b"second").unwrap();
        fs::create_dir(folder.path().join("kept.new")).unwrap();
        replace_file(&path, b"third").unwrap_err();
        assert_eq!(fs::read(path).unwrap(), b"second");
    }
}
