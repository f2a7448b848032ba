//! TOML whose every value knows its place, and which tells everything that is wrong at once.
//!
//! [`read`] parses a text and hands its root [`Table`] to a reader, which takes key by key what it knows;
//! what is left over is an unknown key. A value that cannot be taken is noted and skipped, so that the next
//! one is looked at too. What the keys mean is not known here, and no file is opened.

mod nearest;
mod quantity;
mod table;
mod value;

use std::{cell::RefCell, ops::Range, sync::Arc};

use toml::de::DeTable;

pub use nearest::nearest;
pub use table::Table;
pub use value::{Fault, Value, quoted};

use crate::problem::{Place, Problem, Problems, SourceFile};

/// Most problems told of one file; nobody reads more, and a file of garbage must not fill memory.
pub const MAX_PROBLEMS: usize = 100;

/// Largest text, in bytes, in which parsing goes on after the first syntax error. A larger one gets only the
/// first told: each error costs memory, and garbage has one in every byte.
const MAX_RECOVERED: usize = 256 << 10;

/// Parses `file` and lets `reader` take what it knows from the root table; adds what is wrong to `problems`,
/// in the order of the file. Without a root table, after a syntax error in a large text, there is no value.
pub fn read<T>(file: &Arc<SourceFile>, problems: &mut Problems, reader: impl FnOnce(&mut Table<'_>) -> T) -> Option<T> {
    let (root, errors) = parse(&file.text);
    let notes = Notes::new(file, &errors);
    let value = root.as_ref().map(|root| {
        let mut table = Table::root(&notes, root);
        let value = reader(&mut table);
        table.finish();
        value
    });
    problems.append(notes.into_problems());
    value
}

fn parse(text: &str) -> (Option<DeTable<'_>>, Vec<toml::de::Error>) {
    if text.len() <= MAX_RECOVERED {
        let (root, errors) = DeTable::parse_recoverable(text);
        return (Some(root.into_inner()), errors);
    }
    match DeTable::parse(text) {
        Ok(root) => (Some(root.into_inner()), Vec::new()),
        Err(error) => (None, vec![error]),
    }
}

/// What is wrong with one file, noted from wherever in it somebody reads.
struct Notes {
    file: Arc<SourceFile>,
    /// Lines with a syntax error, whose values are what the parser made up to go on.
    broken: Vec<Range<usize>>,
    found: RefCell<Found>,
}

#[derive(Default)]
struct Found {
    problems: Problems,
    left_off: usize,
}

impl Notes {
    fn new(file: &Arc<SourceFile>, errors: &[toml::de::Error]) -> Self {
        let mut notes = Self { file: Arc::clone(file), broken: Vec::new(), found: RefCell::default() };
        let mut errors: Vec<_> = errors
            .iter()
            .map(|error| (error.span().unwrap_or(file.text.len()..file.text.len()), error.message()))
            .collect();
        errors.sort_by_key(|(span, _)| span.start);
        for (span, message) in errors {
            // What follows in the same line is mostly a consequence.
            if notes.is_broken_at(span.start) {
                continue;
            }
            notes.push(Problem::error(&notes.place(&span), message));
            if notes.broken.len() < MAX_PROBLEMS {
                notes.broken.push(line_around(&file.text, span.start));
            }
        }
        notes
    }

    fn place(&self, span: &Range<usize>) -> Place {
        Place::new(Arc::clone(&self.file), span.clone())
    }

    /// Notes an error, unless it stands in a line with a syntax error: it would only say the same again.
    fn error(&self, span: &Range<usize>, message: String, hint: Option<String>) {
        // The parser puts a missing value at the start of the file.
        let made_up = *span == (0..0) && self.has_syntax_errors();
        if !made_up && !self.is_broken_at(span.start) {
            self.push(Problem { hint, ..Problem::error(&self.place(span), message) });
        }
    }

    fn is_broken_at(&self, offset: usize) -> bool {
        self.broken.iter().any(|line| line.contains(&offset))
    }

    /// Keys may be missing because of a syntax error; then nobody should be told that they are.
    fn has_syntax_errors(&self) -> bool {
        !self.broken.is_empty()
    }

    fn push(&self, problem: Problem) {
        let mut found = self.found.borrow_mut();
        if found.problems.iter().len() < MAX_PROBLEMS {
            found.problems.push(problem);
        } else {
            found.left_off += 1;
        }
    }

    fn into_problems(self) -> Problems {
        let Found { mut problems, left_off } = self.found.into_inner();
        problems.sort_by_place();
        if left_off > 0 {
            let end = Place::new(Arc::clone(&self.file), self.file.text.len()..self.file.text.len());
            problems.push(Problem::error(&end, format!("{left_off} more problems in this file are not shown")));
        }
        problems
    }
}

fn line_around(text: &str, offset: usize) -> Range<usize> {
    let (before, after) = text.as_bytes().split_at(offset.min(text.len()));
    let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let end = before.len() + after.iter().position(|&byte| byte == b'\n').unwrap_or(after.len());
    start..end + 1
}

#[cfg(test)]
mod tests;
