//! A table that is taken apart key by key.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Notes,
    nearest::nearest,
    value::{Value, quoted, with_article},
};
use crate::problem::{Place, Problem};

/// A TOML table. A key that nobody took is reported as unknown.
pub struct Table<'a> {
    notes: &'a Notes,
    /// As messages name it: `[policy]`, `[[clients]]`, or nothing for the root.
    name: String,
    span: Range<usize>,
    entries: &'a DeTable<'a>,
    known: Vec<&'static str>,
    later: &'static [&'static str],
}

impl<'a> Table<'a> {
    pub(super) fn root(notes: &'a Notes, entries: &'a DeTable<'a>) -> Self {
        Self { notes, name: String::new(), span: 0..0, entries, known: Vec::new(), later: &[] }
    }

    /// Where the table begins.
    pub fn place(&self) -> Place {
        self.notes.place(&self.span)
    }

    /// Names keys that a later version knows: the message for one says so instead of guessing what was meant.
    pub fn not_in_this_version(&mut self, keys: &'static [&'static str]) {
        self.later = keys;
    }

    /// Takes a key's value; `None` where it is absent, or wrong and noted.
    pub fn take<T>(&mut self, key: &'static str, read: impl FnOnce(&Value<'a>) -> Option<T>) -> Option<T> {
        read(&Value::new(self.notes, key, self.find(key)?))
    }

    /// The same for a key that must be there; `example` is the hint when it is not.
    pub fn require<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Option<T> {
        if !self.entries.contains_key(key) {
            self.known.push(key);
            self.missing(key, example);
            return None;
        }
        self.take(key, read)
    }

    /// Takes a list and reads each of its entries; those that are wrong are noted and left out.
    pub fn list<T>(&mut self, key: &'static str, read: impl FnMut(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        self.take(key, |value| value.entries(read))
    }

    /// The same for a list that must be there and hold something.
    pub fn require_list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnMut(&Value<'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.require(key, example, |value| value.some_entries(example, read))
    }

    /// Takes a table, `[key]`, apart. `None` where it is absent, or no table and noted.
    pub fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Table<'a>) -> T) -> Option<T> {
        let value = self.find(key)?;
        let name = format!("[{}]", self.path_to(key));
        let DeValue::Table(entries) = value.get_ref() else {
            let message = format!("{name} must be a table, not {}", with_article(value.get_ref()));
            self.notes.error(&value.span(), message, Some(format!("write {name} once, and its keys below")));
            return None;
        };
        Some(self.apart(name, value.span(), entries, read))
    }

    /// Takes an array of tables, each `[[key]]`, apart; a reader's `None` leaves one out.
    pub fn tables<T>(&mut self, key: &'static str, mut read: impl FnMut(&mut Table<'a>) -> Option<T>) -> Vec<T> {
        let Some(value) = self.find(key) else { return Vec::new() };
        let name = format!("[[{}]]", self.path_to(key));
        let hint = || Some(format!("begin each with a line {name}"));
        let DeValue::Array(entries) = value.get_ref() else {
            let message = format!("{name} must be an array of tables, not {}", with_article(value.get_ref()));
            self.notes.error(&value.span(), message, hint());
            return Vec::new();
        };
        let mut taken = Vec::new();
        for entry in entries {
            if let DeValue::Table(entries) = entry.get_ref() {
                taken.extend(self.apart(name.clone(), entry.span(), entries, &mut read));
            } else {
                let message = format!("an entry of {name} must be a table, not {}", with_article(entry.get_ref()));
                self.notes.error(&entry.span(), message, hint());
            }
        }
        taken
    }

    /// Notes that the table as a whole is wrong.
    pub fn wrong(&self, message: impl Into<String>, hint: Option<String>) {
        self.notes.error(&self.span, message.into(), hint);
    }

    /// Notes something that somebody should look at.
    pub fn warn(&self, problem: Problem) {
        self.notes.push(problem);
    }

    /// Reports every key that nobody took.
    pub(super) fn finish(self) {
        for key in self.entries.keys() {
            let word: &str = key.get_ref();
            if self.known.contains(&word) {
                continue;
            }
            let place = if self.name.is_empty() { String::new() } else { format!(" in {}", self.name) };
            let message = format!("unknown key {}{place}", quoted(word));
            self.notes.error(&key.span(), message, Some(self.hint_for(word)));
        }
    }

    fn hint_for(&self, word: &str) -> String {
        if self.later.contains(&word) {
            return "this version cannot do that yet; take the key out".to_owned();
        }
        match nearest(word, self.known.iter().copied()) {
            Some(known) => format!("did you mean {}?", quoted(known)),
            None => format!("known here: {}", self.known.join(", ")),
        }
    }

    fn missing(&self, key: &str, example: &str) {
        if !self.notes.has_syntax_errors() {
            let table = if self.name.is_empty() { "the file" } else { &self.name };
            let message = format!("{table} needs {}", quoted(key));
            self.notes.error(&self.span, message, Some(format!("such as: {example}")));
        }
    }

    fn find(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.entries.get(key)
    }

    fn apart<T>(
        &self,
        name: String,
        span: Range<usize>,
        entries: &'a DeTable<'a>,
        read: impl FnOnce(&mut Table<'a>) -> T,
    ) -> T {
        let mut table = Table { notes: self.notes, name, span, entries, known: Vec::new(), later: &[] };
        let value = read(&mut table);
        table.finish();
        value
    }

    fn path_to(&self, key: &str) -> String {
        let own = self.name.trim_matches(['[', ']']);
        if own.is_empty() { key.to_owned() } else { format!("{own}.{key}") }
    }
}
