//! List files: names one a line, in the forms in which such lists are published.
//!
//! A plain name and a line of a hosts file stand for exactly that name, `||name^` for it and everything below,
//! and `@@` in front of a name or of `||name^` allows it. What is none of these is not guessed at but told.

use super::plan::List;
use crate::name::DomainName;

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
    let mut list = List { path: path.to_owned(), ..List::default() };
    let mut skipped = Skipped::default();
    for (number, line) in (1..=u32::MAX).zip(bytes.split(|&byte| byte == b'\n')) {
        if take(line, number, &mut list).is_none() {
            skipped.note(number, line);
        }
    }
    list.block.shrink_to_fit();
    list.allow.shrink_to_fit();
    (list, skipped)
}

/// `None` where the line is none of the forms; it then adds nothing.
fn take(line: &[u8], number: u32, list: &mut List) -> Option<()> {
    // Names are at most 255 bytes; a hosts line has a few of them. Longer lines are not text for people.
    let line = str::from_utf8(line.get(..MAX_LINE).map_or(Ok(line), |_| Err(())).ok()?).ok()?.trim();
    // `!` and `[Adblock Plus 2.0]` are comments of filter lists.
    if line.is_empty() || line.starts_with(['#', '!', '[']) {
        return Some(());
    }
    if let Some(pattern) = line.strip_prefix("@@") {
        list.allow.push((number, filter_pattern(pattern)?));
        return Some(());
    }
    if line.starts_with("||") {
        list.block.push((number, filter_pattern(line)?));
        return Some(());
    }
    let words = line.split('#').next().unwrap_or_default();
    let mut words = words.split_ascii_whitespace();
    let first = words.next()?;
    let names: Vec<&str> = words.collect();
    if names.is_empty() {
        list.block.push((number, exact(first)?));
        return Some(());
    }
    // Only the addresses that such lists put in front of a name to make it unreachable; any other is a real host.
    if !SINKS.contains(&first) {
        return None;
    }
    let names = names.into_iter().filter(|name| !OWN_NAMES.contains(name));
    for name in names.map(exact).collect::<Option<Vec<_>>>()? {
        list.block.push((number, name));
    }
    Some(())
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

fn exact(text: &str) -> Option<Box<str>> {
    // An address alone in a line is no name, though `1.2.3.4` would pass for one.
    let is_address = text.parse::<std::net::IpAddr>().is_ok();
    (!is_address && is_name(text)).then(|| text.into())
}

/// `||name^`, or a plain name.
fn filter_pattern(text: &str) -> Option<Box<str>> {
    let Some(suffix) = text.strip_prefix("||") else { return exact(text) };
    let name = suffix.strip_suffix('^')?;
    is_name(name).then(|| format!(".{name}").into())
}

fn is_name(text: &str) -> bool {
    text.parse::<DomainName>().is_ok_and(|name| !name.as_name().is_root())
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
            ("Tunnel.Example.  # why",           &["Tunnel.Example."],         &[], 0),
            ("bücher.example\r",                 &["bücher.example"],          &[], 0),
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
            ("a..example",                       &[],                          &[], 1),
            (".",                                &[],                          &[], 1),
            ("a\0.example",                      &[],                          &[], 1),
        ];
        for (line, block, allow, skipped) in cases {
            let (list, left) = parse("names.txt", line.as_bytes());
            let texts =
                |patterns: &[(u32, Box<str>)]| patterns.iter().map(|(_, text)| text.to_string()).collect::<Vec<_>>();
            assert_eq!(
                (texts(&list.block), texts(&list.allow), left.count),
                (
                    block.iter().map(|text| text.to_string()).collect(),
                    allow.iter().map(|text| text.to_string()).collect(),
                    *skipped,
                ),
                "{line:?}"
            );
        }
    }

    #[test]
    fn lines_that_cannot_be_taken_are_told_with_their_numbers_up_to_a_bound() {
        let mut text = b"good.example\n\xff\xfe.example\n".to_vec();
        text.extend("no name\n".repeat(100).bytes());
        text.extend(b"x".repeat(1 << 20));
        let (list, skipped) = parse("names.txt", &text);
        assert_eq!(list.block, [(1, "good.example".into())]);
        assert_eq!(skipped.count, 102);
        assert_eq!(skipped.first.len(), MAX_SHOWN);
        assert_eq!(skipped.first[1], (3, "no name".to_owned()));
    }
}
