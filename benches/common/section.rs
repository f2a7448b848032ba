//! A part of a document that a bench of its own writes, between two comments which no reader sees.

use std::{fs, io, path::Path};

const BEGIN: &str = "<!-- just bench-firewall -->\n";
const END: &str = "<!-- end of just bench-firewall -->\n";

/// The part of the document at `path`, with its comments and what people wrote behind it; empty where there is none.
pub(crate) fn read(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    place(&text).map(|(from, _)| text[from..].to_owned()).unwrap_or_default()
}

/// Puts `part` in place of the one that is there, or at the end.
pub(crate) fn write(path: &Path, part: &str) -> io::Result<()> {
    let mut text = fs::read_to_string(path)?;
    let part = format!("{BEGIN}{part}{END}");
    match place(&text) {
        Some((from, to)) => text.replace_range(from..to, &part),
        None => text.push_str(&format!("\n{part}")),
    }
    fs::write(path, text)
}

fn place(text: &str) -> Option<(usize, usize)> {
    let from = text.find(BEGIN)?;
    Some((from, from + text[from..].find(END)? + END.len()))
}
