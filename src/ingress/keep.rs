//! What was learned, across a restart: a JSON file in the state folder. What it says is a hint; who reads it checks it
//! as if a stranger had written it.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::Entry;
use crate::sys::file::replace_file;

/// Largest file that is read, in bytes: more than the most that is ever written.
const MAX_FILE: u64 = 8 << 20;

/// What the file holds; entries that make no sense are left out. Nothing where there is none.
///
/// # Errors
/// When there is one that cannot be read, or that is no list.
pub(super) fn read(path: &Path) -> io::Result<Vec<Entry>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    entries(&text)
}

/// What such a text holds.
pub(crate) fn entries(text: &[u8]) -> io::Result<Vec<Entry>> {
    let entries: Vec<serde_json::Value> = serde_json::from_slice(text)?;
    Ok(entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect())
}

/// Puts these in the place of what it held.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(path: &Path, entries: &[Entry]) -> io::Result<()> {
    replace_file(path, &serde_json::to_vec(entries)?)
}
