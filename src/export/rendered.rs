//! Directives as text, with long lists inline or in files beside.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// Directives for another system, and what they do not say.
#[derive(Clone, Debug, Default)]
pub struct Fragment {
    pub(super) directives: Vec<Directive>,
    /// What of the policy is not in them, a line each.
    pub missing: Vec<String>,
}

/// One directive.
#[derive(Clone, Debug)]
pub(super) enum Directive {
    /// A line for people.
    Comment(String),
    /// `acl NAME KIND VALUES`.
    List { name: String, kind: &'static str, values: Vec<String> },
    /// Any other line.
    Line(String),
}

/// Longer lists go into a file of their own where there are files.
const MAX_INLINE: usize = 100;

/// Values on a line.
const A_LINE: usize = 8;

impl Fragment {
    /// The whole as one text.
    pub fn text(&self) -> String {
        self.render(|_| None)
    }

    /// The text for a file at `path`, and the files with long lists that it names, beside it: `PATH.names-1` and so on.
    pub fn files(&self, path: &Path) -> (String, Vec<(PathBuf, String)>) {
        let mut files = Vec::new();
        let text = self.render(|values| {
            if values.len() <= MAX_INLINE {
                return None;
            }
            let mut beside = path.to_owned().into_os_string();
            beside.push(format!(".names-{}", files.len() + 1));
            let beside = PathBuf::from(beside);
            let named = format!("\"{}\"", beside.display());
            files.push((beside, values.iter().fold(String::new(), |text, value| text + value + "\n")));
            Some(named)
        });
        (text, files)
    }

    /// `beside` may put values elsewhere, and says where they are.
    fn render(&self, mut beside: impl FnMut(&[String]) -> Option<String>) -> String {
        let mut text = String::new();
        for directive in &self.directives {
            match directive {
                Directive::Comment(comment) if comment.is_empty() => text.push('\n'),
                Directive::Comment(comment) => line(&mut text, format_args!("# {comment}")),
                Directive::Line(words) => line(&mut text, format_args!("{words}")),
                Directive::List { name, kind, values } => match beside(values) {
                    Some(file) => line(&mut text, format_args!("acl {name} {kind} {file}")),
                    None => values
                        .chunks(A_LINE)
                        .for_each(|some| line(&mut text, format_args!("acl {name} {kind} {}", some.join(" ")))),
                },
            }
        }
        text
    }
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{words}");
}
