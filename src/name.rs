//! DNS names, made canonical once so that nothing downstream has to think about case, dots or escapes.
//!
//! A name is kept in wire form (length-prefixed labels, closed by the root's empty label) and in lower
//! case: that is what arrives in a packet, what hashes label by label from the right, and what compares
//! with `==`. [`Display`](fmt::Display) gives the presentation form of RFC 1035 section 5.1 with every
//! byte that could harm a terminal, a log line or a zone file escaped; a raw string from the network
//! never reaches either.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Longest name on the wire, the root's empty label included (RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 255;

/// Longest label (RFC 1035 section 2.3.4).
pub const MAX_LABEL: usize = 63;

/// A fully qualified DNS name that owns its bytes: canonical, printable, comparable.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DomainName(Box<[u8]>);

/// A borrowed [`DomainName`]: what the packet path works with, without allocating.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NameRef<'a>(&'a [u8]);

/// Room for one name on the stack, where a packet's name is put into lower case.
#[derive(Clone, Copy)]
pub struct NameBuffer {
    bytes: [u8; MAX_NAME],
    length: u8,
}

/// Why a text is not a domain name.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum InvalidName {
    /// Two dots in a row, or a dot in front.
    #[error("empty label")]
    EmptyLabel,
    /// More than [`MAX_LABEL`] bytes between two dots.
    #[error("label of {0} bytes; a label has at most 63")]
    LongLabel(usize),
    /// More than [`MAX_NAME`] bytes on the wire.
    #[error("name of {0} bytes; a name has at most 255 with its length bytes")]
    LongName(usize),
    /// A backslash that is not followed by a character or by three digits up to 255.
    #[error("bad escape; write \\. for a dot within a label and \\DDD for a byte")]
    BadEscape,
    /// Not a name that IDNA (UTS 46) can turn into ASCII.
    #[error("not a valid internationalised name")]
    BadIdn,
    /// A character that has no place in a name: white space, a control character, `*`, `/`, `:` and the like.
    #[error("{0:?} has no place in a name")]
    BadCharacter(char),
    /// Not a name in wire form: a length byte points past the end, or the root label is missing.
    #[error("not a name in wire form")]
    BadWire,
}

impl DomainName {
    /// The root, the empty name.
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// Takes an uncompressed name in wire form, in any case.
    ///
    /// # Errors
    /// [`InvalidName::BadWire`] when labels and length do not fit, or bytes follow the root label.
    pub fn from_wire(wire: &[u8]) -> Result<Self, InvalidName> {
        Ok(NameBuffer::from_wire(wire)?.name().to_owned())
    }

    /// The same name, borrowed.
    pub fn as_name(&self) -> NameRef<'_> {
        NameRef(&self.0)
    }

    /// The name in wire form, lower case, the root label included.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// Is this name `zone` itself or anything below it?
    pub fn is_within(&self, zone: NameRef<'_>) -> bool {
        self.as_name().is_within(zone)
    }
}

impl<'a> NameRef<'a> {
    /// The name in wire form, lower case, the root label included.
    pub fn as_wire(self) -> &'a [u8] {
        self.0
    }

    /// Bytes that [`as_wire`](Self::as_wire) gave once, or labels of such in a row with the root's behind them.
    pub(crate) fn from_canonical(wire: &'a [u8]) -> Self {
        Self(wire)
    }

    /// A copy that owns its bytes.
    pub fn to_owned(self) -> DomainName {
        DomainName(self.0.into())
    }

    /// Is this the empty name?
    pub fn is_root(self) -> bool {
        self.0.len() <= 1
    }

    /// The labels from left to right, the root's empty one left out.
    pub fn labels(self) -> impl Iterator<Item = &'a [u8]> {
        self.suffixes().map(NameRef::first_label)
    }

    /// This name and each of its parents, the root left out: `a.b.c`, `b.c`, `c`.
    pub fn suffixes(self) -> impl Iterator<Item = NameRef<'a>> {
        std::iter::successors((!self.is_root()).then_some(self), |name| {
            name.parent().filter(|parent| !parent.is_root())
        })
    }

    /// How many labels it has; the root has none.
    pub fn label_count(self) -> usize {
        self.suffixes().count()
    }

    /// The name without its first label; the root has no parent.
    pub fn parent(self) -> Option<NameRef<'a>> {
        let length = usize::from(*self.0.first()?);
        if length == 0 { None } else { self.0.get(length + 1..).map(NameRef) }
    }

    /// The label in front; empty for the root.
    pub fn first_label(self) -> &'a [u8] {
        let length = self.0.first().map_or(0, |&length| usize::from(length));
        self.0.get(1..=length).unwrap_or_default()
    }

    /// Is this name `zone` itself or anything below it?
    pub fn is_within(self, zone: NameRef<'_>) -> bool {
        // The suffix must start at a label's edge: `xb.c` ends like `b.c` and is not below it.
        let Some(cut) = self.0.len().checked_sub(zone.0.len()) else { return false };
        let mut edge = 0;
        while edge < cut {
            edge += 1 + self.0.get(edge).map_or(0, |&length| usize::from(length));
        }
        edge == cut && self.0.get(cut..) == Some(zone.0)
    }
}

impl NameBuffer {
    /// An empty buffer, which holds the root.
    pub const fn new() -> Self {
        Self { bytes: [0; MAX_NAME], length: 1 }
    }

    /// Takes an uncompressed name in wire form and puts it into lower case.
    ///
    /// # Errors
    /// [`InvalidName::BadWire`] when labels and length do not fit, or bytes follow the root label.
    pub fn from_wire(wire: &[u8]) -> Result<Self, InvalidName> {
        let mut buffer = Self::new();
        if buffer.take_wire(wire)? == wire.len() { Ok(buffer) } else { Err(InvalidName::BadWire) }
    }

    /// Takes the uncompressed name that `wire` begins with, puts it into lower case, and tells how many bytes it has.
    ///
    /// # Errors
    /// A name that does not end within `wire`, a label that is too long or a pointer, or a name that is too long; what the
    /// buffer held then stays.
    pub fn take_wire(&mut self, wire: &[u8]) -> Result<usize, InvalidName> {
        let mut end = 0;
        loop {
            let length = usize::from(*wire.get(end).ok_or(InvalidName::BadWire)?);
            end += 1 + length;
            match length {
                0 => break,
                _ if length > MAX_LABEL => return Err(InvalidName::LongLabel(length)),
                // The root label still has to come.
                _ if end >= MAX_NAME => return Err(InvalidName::LongName(end + 1)),
                _ => {}
            }
        }
        let name = wire.get(..end).ok_or(InvalidName::BadWire)?;
        let room = self.bytes.get_mut(..end).ok_or(InvalidName::LongName(end))?;
        room.copy_from_slice(name);
        // All at once: what a label's length can be lies below every letter.
        room.make_ascii_lowercase();
        self.length = u8::try_from(end).map_err(|_| InvalidName::LongName(end))?;
        Ok(end)
    }

    /// Takes a name in presentation form: with or without the last dot, any case, `\.` and `\DDD` escapes, or an
    /// internationalised name, which becomes its ASCII form.
    ///
    /// # Errors
    /// See [`InvalidName`]; the buffer then holds the root.
    pub fn take_text(&mut self, text: &str) -> Result<(), InvalidName> {
        let taken = self.take_any(text);
        if taken.is_err() {
            *self = Self::new();
        }
        taken
    }

    fn take_any(&mut self, text: &str) -> Result<(), InvalidName> {
        if self.take_plain(text.as_bytes()) && !self.name().labels().any(|label| label.starts_with(b"xn--")) {
            return Ok(());
        }
        if text.is_ascii() {
            return self.take_claims(text);
        }
        // An escape is no letter, and would be taken for some.
        let is_letters = !text.contains('\\');
        let ascii = is_letters.then(|| idna::domain_to_ascii(text)).and_then(Result::ok);
        self.take_claims(&ascii.ok_or(InvalidName::BadIdn)?)
    }

    fn take_claims(&mut self, text: &str) -> Result<(), InvalidName> {
        self.take_ascii(text)?;
        // A label that claims to be IDNA and is not would be a name nobody can ask for by its letters. What follows an
        // escaped dot is no label of its own.
        let claims = self.name().labels().any(|label| label.starts_with(b"xn--"));
        if claims && idna::domain_to_unicode(text).1.is_err() { Err(InvalidName::BadIdn) } else { Ok(()) }
    }

    /// Most names at once: a million lines are read this way. `false`: there is something to look at more closely.
    fn take_plain(&mut self, text: &[u8]) -> bool {
        let text = text.strip_suffix(b".").unwrap_or(text);
        let Some([first, room @ .., root]) = self.bytes.get_mut(..text.len() + 2) else { return false };
        // From the right, each dot's place takes the length of the label behind it.
        let mut length = 0;
        for (place, &byte) in room.iter_mut().zip(text).rev() {
            if byte == b'.' && is_length(length) {
                *place = std::mem::take(&mut length);
            } else if is_plain(byte) {
                *place = byte.to_ascii_lowercase();
                length += 1;
            } else {
                return false;
            }
        }
        (*first, *root) = (length, 0);
        self.length = u8::try_from(text.len() + 2).unwrap_or_default();
        is_length(length)
    }

    fn take_ascii(&mut self, text: &str) -> Result<(), InvalidName> {
        self.clear();
        if text == "." {
            return self.push_root();
        }
        let mut label = Vec::with_capacity(MAX_LABEL);
        let mut bytes = text.bytes();
        let mut closed = false;
        while let Some(byte) = bytes.next() {
            closed = byte == b'.';
            match byte {
                b'.' => {
                    self.push_label(&label)?;
                    label.clear();
                }
                b'\\' => label.push(escaped(&mut bytes)?),
                _ if is_plain(byte) => label.push(byte),
                _ => return Err(InvalidName::BadCharacter(char::from(byte))),
            }
        }
        if !closed {
            self.push_label(&label)?;
        }
        self.push_root()
    }

    /// Forgets what it holds, ready for [`push_label`](Self::push_label).
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Adds a label on the right, in lower case. [`close`](Self::close) ends the name.
    ///
    /// # Errors
    /// An empty or overlong label, or a name that would grow past [`MAX_NAME`].
    pub fn push_label(&mut self, label: &[u8]) -> Result<(), InvalidName> {
        if label.is_empty() {
            return Err(InvalidName::EmptyLabel);
        }
        let length = u8::try_from(label.len()).ok().filter(|&length| usize::from(length) <= MAX_LABEL);
        let length = length.ok_or(InvalidName::LongLabel(label.len()))?;
        let start = usize::from(self.length);
        let end = start + 1 + label.len();
        // One byte stays free for the root label.
        let room = self.bytes.get_mut(start..end).filter(|_| end < MAX_NAME);
        let room = room.ok_or(InvalidName::LongName(end + 1))?;
        if let Some((first, rest)) = room.split_first_mut() {
            *first = length;
            rest.copy_from_slice(label);
            rest.make_ascii_lowercase();
        }
        self.length = u8::try_from(end).map_err(|_| InvalidName::LongName(end + 1))?;
        Ok(())
    }

    /// Closes the name with the root label.
    ///
    /// # Errors
    /// Never in practice: [`push_label`](Self::push_label) kept a byte free.
    pub fn close(mut self) -> Result<Self, InvalidName> {
        self.push_root()?;
        Ok(self)
    }

    fn push_root(&mut self) -> Result<(), InvalidName> {
        let end = usize::from(self.length);
        *self.bytes.get_mut(end).ok_or(InvalidName::LongName(end + 1))? = 0;
        self.length += 1;
        Ok(())
    }

    /// The name it holds.
    pub fn name(&self) -> NameRef<'_> {
        NameRef(self.bytes.get(..usize::from(self.length)).unwrap_or(&[0]))
    }
}

impl Default for NameBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for DomainName {
    type Err = InvalidName;

    /// Reads presentation form, as [`NameBuffer::take_text`] does.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let mut buffer = NameBuffer::new();
        buffer.take_text(text)?;
        Ok(buffer.name().to_owned())
    }
}

/// May a byte stand in presentation form as it is? Letters, digits, hyphen, and what service names use.
/// The rest, `/` and `:` of an address bar among it, is more often a mistake than a name and wants an escape.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'_' | b'+' | b'=' | b'~' | b'!' | b'#' | b'%' | b'&' | b'\'' | b'^' | b'`' | b'{' | b'|' | b'}'
        )
}

fn is_length(length: u8) -> bool {
    (1..=MAX_LABEL).contains(&usize::from(length))
}

fn escaped(bytes: &mut std::str::Bytes<'_>) -> Result<u8, InvalidName> {
    let first = bytes.next().ok_or(InvalidName::BadEscape)?;
    if !first.is_ascii_digit() {
        return Ok(first);
    }
    let mut value = u16::from(first - b'0');
    for _ in 0..2 {
        let digit = bytes.next().filter(u8::is_ascii_digit).ok_or(InvalidName::BadEscape)?;
        value = value * 10 + u16::from(digit - b'0');
    }
    u8::try_from(value).map_err(|_| InvalidName::BadEscape)
}

impl fmt::Display for NameRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for (index, label) in self.labels().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            for &byte in label {
                match byte {
                    _ if is_plain(byte) => write!(f, "{}", char::from(byte))?,
                    b'!'..=b'~' => write!(f, "\\{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_name().fmt(f)
    }
}

impl fmt::Debug for NameRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DomainName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DomainName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for NameRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn every_spelling_of_a_name_becomes_one_form() {
        #[rustfmt::skip]
        let cases: &[(&str, &str)] = &[
            ("Connect.EU.ngrok-Agent.COM.", "connect.eu.ngrok-agent.com"),
            ("_dns.resolver.arpa",          "_dns.resolver.arpa"),
            (".",                           "."),
            ("bücher.example",              "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example",       "xn--bcher-kva.example"),
            (r"a\.xn--a.example",           r"a\.xn--a.example"),
            (r"a\.b.example",               r"a\.b.example"),
            (r"\065\000.example",           r"a\000.example"),
            (r"a\ b.example",               r"a\032b.example"),
        ];
        for (text, expected) in cases {
            assert_eq!(name(text).to_string(), *expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_name_says_why() {
        let long_label = "a".repeat(64);
        let long_name = ["a".repeat(63).as_str(); 4].join(".");
        #[rustfmt::skip]
        let cases: &[(&str, InvalidName)] = &[
            ("",               InvalidName::EmptyLabel),
            ("..",             InvalidName::EmptyLabel),
            (".a",             InvalidName::EmptyLabel),
            ("a..b",           InvalidName::EmptyLabel),
            (&long_label,      InvalidName::LongLabel(64)),
            (&long_name,       InvalidName::LongName(257)),
            ("a b",            InvalidName::BadCharacter(' ')),
            ("*.b",            InvalidName::BadCharacter('*')),
            ("https://a",      InvalidName::BadCharacter(':')),
            (r"a\25",          InvalidName::BadEscape),
            (r"a\256",         InvalidName::BadEscape),
            ("xn--a-ecp.ru-\u{d7ff}\u{0}", InvalidName::BadIdn),
            ("xn--zz--.example", InvalidName::BadIdn),
            (r"a\.bücher.example", InvalidName::BadIdn),
            (r"b\117cher.bücher.example", InvalidName::BadIdn),
        ];
        for (text, expected) in cases {
            assert_eq!(DomainName::from_str(text), Err(expected.clone()), "{text}");
        }
    }

    #[test]
    fn a_name_is_within_its_zone_only_at_a_labels_edge() {
        #[rustfmt::skip]
        let cases: &[(&str, &str, bool)] = &[
            ("ngrok-agent.com",         "ngrok-agent.com", true),
            ("connect.ngrok-agent.com", "ngrok-agent.com", true),
            ("notngrok-agent.com",      "ngrok-agent.com", false),
            ("com",                     "ngrok-agent.com", false),
            ("anything.example",        ".",               true),
            (r"x\003com",               "com",             false),
        ];
        for (inner, zone, expected) in cases {
            assert_eq!(name(inner).is_within(name(zone).as_name()), *expected, "{inner} within {zone}");
        }
    }

    #[test]
    fn a_name_is_taken_from_the_front_of_a_packet_and_nothing_that_only_looks_like_one() {
        let longest = [&[63; 64][..], &[63; 64], &[63; 64], &[61; 62], b"\0"].concat();
        let too_long = [&[63; 64][..], &[63; 64], &[63; 64], &[62; 63], b"\0"].concat();
        #[rustfmt::skip]
        let cases: &[(&[u8], Result<usize, InvalidName>)] = &[
            (b"\x01A\x02Bc\0rest",  Ok(6)),
            (b"\0",                  Ok(1)),
            (&longest,               Ok(MAX_NAME)),
            (&too_long,              Err(InvalidName::LongName(256))),
            (b"",                    Err(InvalidName::BadWire)),
            (b"\x01a",               Err(InvalidName::BadWire)),
            (b"\x05a\0",             Err(InvalidName::BadWire)),
            (b"\x01a\xc0\x0c",       Err(InvalidName::LongLabel(192))),
            (b"\x40aaaa",            Err(InvalidName::LongLabel(64))),
        ];
        for (wire, expected) in cases {
            let mut buffer = NameBuffer::new();
            assert_eq!(buffer.take_wire(wire), *expected, "{wire:?}");
            let kept = expected.as_ref().map_or(vec![0], |length| wire[..*length].to_ascii_lowercase());
            assert_eq!(buffer.name().as_wire(), kept, "{wire:?}");
        }
    }

    #[test]
    fn the_longest_name_fits_and_one_byte_more_does_not() {
        let longest = [&*"a".repeat(63), &*"b".repeat(63), &*"c".repeat(63), &*"d".repeat(61)].join(".");
        assert_eq!(name(&longest).as_wire().len(), MAX_NAME);
        assert_eq!(DomainName::from_str(&format!("{longest}d")), Err(InvalidName::LongName(256)));
    }

    proptest! {
        #[test]
        fn the_short_way_of_reading_a_name_finds_what_the_long_way_finds(
            text in "[aB9._\\\\*-]{0,6}", label in "[xX][nN]--[a-z]{1,3}|[a-z]{0,70}", times in 0..5_usize
        ) {
            let text = [&*text, &*vec![label; times].join(".")].concat();
            let (mut short, mut long) = (NameBuffer::new(), NameBuffer::new());
            let (taken, read) = (short.take_plain(text.as_bytes()), long.take_ascii(&text));
            // What is escaped is left to the long way.
            prop_assert_eq!(taken, read.is_ok() && text != "." && !text.contains('\\'), "{}", text);
            prop_assert!(!taken || short.name() == long.name(), "{}", text);
        }

        #[test]
        fn what_is_printed_is_harmless_and_reads_back_as_the_same_name(
            labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..12), 1..8)
        ) {
            let mut buffer = NameBuffer::new();
            buffer.clear();
            for label in &labels {
                buffer.push_label(label).unwrap();
            }
            let name = buffer.close().unwrap().name().to_owned();
            let text = name.to_string();
            prop_assert!(text.bytes().all(|byte| (0x21..0x7f).contains(&byte)), "{text}");
            prop_assert_eq!(name.as_name().label_count(), labels.len());
            prop_assert_eq!(DomainName::from_wire(name.as_wire()), Ok(name.clone()));
            // Bytes that only look like a broken IDNA label are refused from text, by intention.
            if !text.contains("xn--") {
                prop_assert_eq!(text.parse::<DomainName>(), Ok(name));
            }
        }
    }
}
