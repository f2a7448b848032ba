//! What is wrong with a file: where exactly, the line itself, and a hint how to mend it.
//!
//! Readers and the policy compiler collect [`Problems`] instead of stopping at the first, so that an
//! operator mends a file once. Nothing here reads files or prints; the text of a problem is safe for a
//! terminal whatever the file contains.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Longest excerpt of a file in a message, in characters.
pub const MAX_EXCERPT: usize = 200;

/// A file that was read: its path as the operator wrote it, and its text.
#[derive(Debug, Eq, PartialEq)]
pub struct SourceFile {
    /// The path shown in messages.
    pub path: PathBuf,
    /// Everything in it.
    pub text: String,
}

/// A stretch of a file that a message can point at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    file: Arc<SourceFile>,
    span: Range<usize>,
}

/// A value together with where it was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Located<T> {
    /// What was read.
    pub value: T,
    /// Where.
    pub place: Place,
}

/// Whether a problem keeps the configuration from being used.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// It does.
    Error,
    /// It does not, but somebody should look.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Whether it keeps the configuration from being used.
    pub severity: Severity,
    /// Where; absent for what has no place, such as a file that cannot be opened.
    pub place: Option<Place>,
    /// What, in one line without a full stop.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

/// Everything that was found wrong, in the order in which it was found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Problems(Vec<Problem>);

impl Place {
    /// A stretch of `file`, in bytes; a span past the end points at the end.
    pub fn new(file: Arc<SourceFile>, span: Range<usize>) -> Self {
        Self { file, span }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Line, counted from 1.
    pub fn line(&self) -> usize {
        self.before().matches('\n').count() + 1
    }

    /// Column, counted from 1, in characters.
    pub fn column(&self) -> usize {
        self.before().rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1
    }

    /// The line it starts in, escaped for a terminal and cut at [`MAX_EXCERPT`] characters.
    pub fn excerpt(&self) -> String {
        let start = self.before().rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.file.text.get(start..).and_then(|rest| rest.lines().next());
        printable(line.unwrap_or_default())
    }

    fn before(&self) -> &str {
        let text = &self.file.text;
        let mut end = self.span.start.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.get(..end).unwrap_or_default()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", printable(&self.path().to_string_lossy()), self.line(), self.column())
    }
}

impl<T> Located<T> {
    /// The same place with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Located<U> {
        Located { value: change(self.value), place: self.place }
    }
}

impl Problem {
    /// An error at a place.
    pub fn error(place: &Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place: Some(place.clone()), message: message.into(), hint: None }
    }

    /// A warning at a place.
    pub fn warning(place: &Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, message) }
    }

    /// An error that has no place in a file.
    pub fn without_place(message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place: None, message: message.into(), hint: None }
    }

    /// The same problem with a hint how to mend it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Problem {
    /// Which file, counted in `files` from 1, and where in it.
    fn sort_key(&self, files: &mut Vec<*const SourceFile>) -> (usize, usize) {
        let Some(place) = &self.place else { return (0, 0) };
        let file = Arc::as_ptr(&place.file);
        let index = files.iter().position(|&known| known == file).unwrap_or_else(|| {
            files.push(file);
            files.len() - 1
        });
        (index + 1, place.span.start)
    }
}

impl fmt::Display for Problem {
    /// `file:line:column: error: message`, then the line itself, then the hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}", printable(&self.message))?;
        if let Some(place) = &self.place {
            write!(f, "\n    {}", place.excerpt().trim())?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n    hint: {}", printable(hint))?;
        }
        Ok(())
    }
}

impl Problems {
    /// Notes one more.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Takes over what somebody else found.
    pub fn append(&mut self, other: Problems) {
        self.0.extend(other.0);
    }

    /// Nothing found?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Is there one that keeps the configuration from being used?
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// How many of a kind.
    pub fn count(&self, severity: Severity) -> usize {
        self.iter().filter(|problem| problem.severity == severity).count()
    }

    /// Puts them in the order in which an operator goes through files: those without a place first, then file by
    /// file as each was first named, and within a file from top to bottom.
    pub fn sort_by_place(&mut self) {
        let mut files: Vec<*const SourceFile> = Vec::new();
        let mut keyed: Vec<_> = self.0.drain(..).map(|problem| (problem.sort_key(&mut files), problem)).collect();
        keyed.sort_by_key(|(key, _)| *key);
        self.0.extend(keyed.into_iter().map(|(_, problem)| problem));
    }

    /// Each of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.iter().enumerate() {
            let separator = if index > 0 { "\n" } else { "" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

/// A text from outside with every control character escaped, cut at [`MAX_EXCERPT`] characters.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(MAX_EXCERPT));
    for character in text.chars() {
        match character {
            '\t' => shown.push(' '),
            // Control characters, and the invisible ones that turn text around (CVE-2021-42574).
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                shown.extend(character.escape_unicode());
            }
            _ if character.is_control() => shown.extend(character.escape_default()),
            _ => shown.push(character),
        }
        if let Some((end, _)) = shown.char_indices().nth(MAX_EXCERPT) {
            shown.truncate(end);
            shown.push('…');
            break;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str, span: Range<usize>) -> Place {
        Place::new(Arc::new(SourceFile { path: "w.toml".into(), text: text.into() }), span)
    }

    #[test]
    fn a_problem_names_file_line_column_the_line_and_a_hint() {
        let place = place("a = 1\n  pakcs = []\n", 8..13);
        let problem = Problem::error(&place, "unknown key \"pakcs\"").hint("did you mean \"packs\"?");
        let expected = "w.toml:2:3: error: unknown key \"pakcs\"\n    pakcs = []\n    hint: did you mean \"packs\"?";
        assert_eq!(problem.to_string(), expected);
    }

    #[test]
    fn a_place_at_the_edges_of_a_file_still_has_a_line() {
        for (text, span, line, column) in [("", 0..0, 1, 1), ("a\n", 2..2, 2, 1), ("ä", 9..12, 1, 2), ("ä", 1..2, 1, 1)]
        {
            let place = place(text, span);
            assert_eq!((place.line(), place.column()), (line, column), "{text:?}");
        }
    }

    #[test]
    fn problems_are_sorted_by_file_and_place() {
        let (first, second) = (place("a\nb\nc", 0..1), place("a\nb\nc", 0..1));
        let at = |place: &Place, start| Place { span: start..start + 1, ..place.clone() };
        let mut problems = Problems::default();
        problems.push(Problem::error(&at(&first, 4), "third line"));
        problems.push(Problem::error(&at(&second, 2), "other file"));
        problems.push(Problem::warning(&at(&first, 0), "first line"));
        problems.push(Problem::without_place("no file"));
        problems.sort_by_place();
        let order: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
        assert_eq!(order, ["no file", "first line", "third line", "other file"]);
    }

    #[test]
    fn an_excerpt_is_escaped_and_cut() {
        let hostile = format!("x = \"\u{1b}[31m\u{202e}\"{}", "y".repeat(1000));
        let shown = place(&hostile, 0..1).excerpt();
        assert!(shown.starts_with(r#"x = "\u{1b}[31m\u{202e}""#), "{shown}");
        assert_eq!(shown.chars().last(), Some('…'));
        assert_eq!(shown.chars().count(), MAX_EXCERPT + 1);
    }
}
