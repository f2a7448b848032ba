//! List files: names one a line, in the forms in which such lists are published.
//!
//! A plain name and a line of a hosts file stand for exactly that name, `||name^` for it and everything below,
//! and `@@` in front of a name or of `||name^` allows it. What is none of these is not guessed at but told.

use std::net::IpAddr;

use super::bytes::{push_number, take_number, wire_length};
use crate::name::{NameBuffer, NameRef};

/// What a file of names holds, in the order of its lines. A million of them must stay small, so they lie in one block:
/// for each a byte of [`Listed`]'s flags, how many lines it is behind the one before, and the name in wire form.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// The file's path, for messages.
    pub path: String,
    bytes: Vec<u8>,
    last_line: u32,
    /// How many patterns it holds.
    count: usize,
    allows: bool,
}

/// One pattern of a list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listed<'a> {
    /// The number of its line, counted from 1.
    pub line: u32,
    /// It stands for the name and everything below, not for the name alone.
    pub within: bool,
    /// It allows rather than blocks.
    pub allows: bool,
    /// The name; neither the root, nor one with a star for a label.
    pub name: NameRef<'a>,
}

/// Lines that could not be taken.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Skipped {
    /// How many.
    pub count: usize,
    /// The first [`MAX_SHOWN`] of them: line number and the line, cut.
    pub first: Vec<(u32, String)>,
}

/// Most skipped lines that are told one by one.
pub const MAX_SHOWN: usize = 20;

/// Reads the bytes of a list file; `path` is for messages. Memory is about that of the names taken.
pub fn parse(path: &str, bytes: &[u8]) -> (List, Skipped) {
    let mut reader = Reader { list: List::new(path), name: NameBuffer::new() };
    // Room for all at once: growing would leave twice the memory behind.
    let words = bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count();
    reader.list.bytes.reserve_exact(bytes.len() + MOST_BESIDES * words);
    let mut skipped = Skipped::default();
    for (number, line) in (1..=u32::MAX).zip(bytes.split(|&byte| byte == b'\n')) {
        if reader.take(line, number).is_none() {
            skipped.note(number, line);
        }
    }
    reader.list.bytes.shrink_to_fit();
    (reader.list, skipped)
}

impl List {
    /// An empty one.
    pub fn new(path: &str) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }

    /// How many patterns it holds.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Does it hold none?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that they take.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Does any of them allow?
    pub fn allows(&self) -> bool {
        self.allows
    }

    /// Every pattern, in the order of the lines.
    pub fn entries(&self) -> impl Iterator<Item = Listed<'_>> {
        let (mut rest, mut line) = (&*self.bytes, 0);
        std::iter::from_fn(move || {
            let (&flags, after) = rest.split_first()?;
            rest = after;
            line += take_number(&mut rest)?;
            let (name, after) = rest.split_at_checked(wire_length(rest))?;
            rest = after;
            let name = NameRef::from_canonical(name);
            Some(Listed { line, within: flags & WITHIN != 0, allows: flags & ALLOWS != 0, name })
        })
    }

    /// Adds a pattern; its line is not before the last one's.
    fn push(&mut self, entry: Listed<'_>) {
        self.bytes.push(if entry.within { WITHIN } else { 0 } | if entry.allows { ALLOWS } else { 0 });
        push_number(&mut self.bytes, entry.line.saturating_sub(self.last_line));
        self.bytes.extend_from_slice(entry.name.as_wire());
        self.last_line = entry.line;
        self.count += 1;
        self.allows |= entry.allows;
    }
}

/// Bytes of an entry besides its text and what ends that, where lines are not far apart.
const MOST_BESIDES: usize = 3;

const WITHIN: u8 = 1;
const ALLOWS: u8 = 2;

/// A list on its way in, and room for the name at hand.
struct Reader {
    list: List,
    name: NameBuffer,
}

impl Reader {
    /// `None` where the line is none of the forms; it then adds nothing.
    fn take(&mut self, line: &[u8], number: u32) -> Option<()> {
        // Names are at most 255 bytes; a hosts line has a few of them. Longer lines are not text for people.
        let line = str::from_utf8(line.get(..MAX_LINE).map_or(Ok(line), |_| Err(())).ok()?).ok()?.trim();
        // `!` and `[Adblock Plus 2.0]` are comments of filter lists.
        if line.is_empty() || line.starts_with(['#', '!', '[']) {
            return Some(());
        }
        if let Some(pattern) = line.strip_prefix("@@") {
            return self.filter_pattern(pattern, number, true);
        }
        if line.starts_with("||") {
            return self.filter_pattern(line, number, false);
        }
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let first = words.next()?;
        let names = words.clone();
        if words.next().is_none() {
            return self.pattern(first, number, false, false);
        }
        // Only the addresses that such lists put in front of a name to make it unreachable; any other is a real host.
        if !SINKS.contains(&first) {
            return None;
        }
        let (end, last_line, count) = (self.list.bytes.len(), self.list.last_line, self.list.count);
        let taken = names
            .filter(|name| !OWN_NAMES.contains(name))
            .try_for_each(|name| self.pattern(name, number, false, false));
        if taken.is_none() {
            self.list.bytes.truncate(end);
            (self.list.last_line, self.list.count) = (last_line, count);
        }
        taken
    }

    /// `||name^`, or a plain name.
    fn filter_pattern(&mut self, text: &str, number: u32, allows: bool) -> Option<()> {
        match text.strip_prefix("||") {
            Some(suffix) => self.pattern(suffix.strip_suffix('^')?, number, true, allows),
            None => self.pattern(text, number, false, allows),
        }
    }

    fn pattern(&mut self, text: &str, line: u32, within: bool, allows: bool) -> Option<()> {
        // An address is no name, though `1.2.3.4` would pass for one; and an escaped star is no name anybody asks for.
        if text.as_bytes().contains(&b'*') || is_address(text) {
            return None;
        }
        self.name.take_text(text).ok()?;
        let name = self.name.name();
        if name.is_root() {
            return None;
        }
        self.list.push(Listed { line, within, allows, name });
        Some(())
    }
}

/// Longest line looked at, in bytes.
const MAX_LINE: usize = 4096;

/// Addresses in front of names in published hosts files.
const SINKS: [&str; 5] = ["0.0.0.0", "127.0.0.1", "::", "::1", "0"];

/// What every hosts file says of the machine itself, published ones too.
const OWN_NAMES: [&str; 10] = [
    "localhost",
    "localhost.localdomain",
    "local",
    "broadcasthost",
    "ip6-localhost",
    "ip6-loopback",
    "ip6-localnet",
    "ip6-mcastprefix",
    "ip6-allnodes",
    "ip6-allrouters",
];

fn is_address(text: &str) -> bool {
    // Most names are told apart by a letter that no address has.
    let may_be = text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'.' || byte == b':');
    may_be && text.parse::<IpAddr>().is_ok()
}

impl Skipped {
    fn note(&mut self, number: u32, line: &[u8]) {
        self.count += 1;
        if self.first.len() < MAX_SHOWN {
            let shown = line.get(..80).unwrap_or(line);
            self.first.push((number, String::from_utf8_lossy(shown).trim_end().to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_published_form_is_taken_and_nothing_else() {
        #[rustfmt::skip]
        let cases: &[(&str, &[&str], &[&str], usize)] = &[
            ("tunnel.example",                   &["tunnel.example"],          &[], 0),
            ("Tunnel.Example.  # why",           &["tunnel.example"],          &[], 0),
            ("bücher.example\r",                 &["xn--bcher-kva.example"],   &[], 0),
            ("0.0.0.0 a.example b.example # x",  &["a.example", "b.example"],  &[], 0),
            ("127.0.0.1\ta.example",             &["a.example"],               &[], 0),
            ("127.0.0.1 localhost",              &[],                          &[], 0),
            ("::1 ip6-localhost ip6-loopback",   &[],                          &[], 0),
            ("||a.example^",                     &[".a.example"],              &[], 0),
            ("@@||a.example^",                   &[],            &[".a.example"], 0),
            ("# note",                           &[],                          &[], 0),
            ("! note",                           &[],                          &[], 0),
            ("[Adblock Plus 2.0]",               &[],                          &[], 0),
            ("   ",                              &[],                          &[], 0),
            ("10.0.0.1 a.example",               &[],                          &[], 1),
            ("a.example b.example",              &[],                          &[], 1),
            ("0.0.0.0 a.example b..example",     &[],                          &[], 1),
            ("||a.example^$important",           &[],                          &[], 1),
            ("||a.*.example^",                   &[],                          &[], 1),
            ("@@a.example",                      &[],             &["a.example"], 0),
            ("@@ a.example",                     &[],                          &[], 1),
            (".a.example",                       &[],                          &[], 1),
            ("*.a.example",                      &[],                          &[], 1),
            ("https://a.example/",               &[],                          &[], 1),
            ("192.0.2.1",                        &[],                          &[], 1),
            ("0.0.0.0 192.0.2.1",                &[],                          &[], 1),
            ("||192.0.2.1^",                     &[],                          &[], 1),
            (r"a.\*.example",                    &[],                          &[], 1),
            ("a..example",                       &[],                          &[], 1),
            (".",                                &[],                          &[], 1),
            ("a\0.example",                      &[],                          &[], 1),
        ];
        for (line, block, allow, skipped) in cases {
            let (list, left) = parse("names.txt", line.as_bytes());
            let texts = |allows: bool| {
                let entries = list.entries().filter(|entry| entry.allows == allows);
                entries
                    .map(|entry| format!("{}{}", if entry.within { "." } else { "" }, entry.name))
                    .collect::<Vec<_>>()
            };
            let taken = block.len() + allow.len();
            assert_eq!((texts(false), texts(true), left.count), (strings(block), strings(allow), *skipped), "{line:?}");
            assert_eq!(
                (list.len(), list.is_empty(), list.allows()),
                (taken, taken == 0, !allow.is_empty()),
                "{line:?}"
            );
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn every_pattern_has_the_number_of_its_line() {
        let gap = "\n".repeat(300);
        let text = format!(
            "# names\na.example\n0.0.0.0 b.example c.example\n\n0.0.0.0 d.example e..example\na.example{gap}@@||f.example^\r\n\
             no name\n0 localhost g.example"
        );
        let (list, skipped) = parse("names.txt", text.as_bytes());
        let lines: Vec<(u32, String)> = list.entries().map(|entry| (entry.line, entry.name.to_string())).collect();
        let expected = [(2, "a"), (3, "b"), (3, "c"), (6, "a"), (306, "f"), (308, "g")]
            .map(|(line, name)| (line, format!("{name}.example")));
        assert_eq!(lines, expected);
        assert_eq!(skipped.first.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [5, 307]);
    }

    #[test]
    fn lines_that_cannot_be_taken_are_told_with_their_numbers_up_to_a_bound() {
        let mut text = b"good.example\n\xff\xfe.example\n".to_vec();
        text.extend("no name\n".repeat(100).bytes());
        text.extend(b"x".repeat(1 << 20));
        let (list, skipped) = parse("names.txt", &text);
        let taken: Vec<_> = list.entries().map(|entry| (entry.line, entry.name.to_string())).collect();
        assert_eq!(taken, [(1, "good.example".to_owned())]);
        assert_eq!(skipped.count, 102);
        assert_eq!(skipped.first.len(), MAX_SHOWN);
        assert_eq!(skipped.first[1], (3, "no name".to_owned()));
    }
}
