//! Patterns of names: what can be written, what it matches, and which of two is the more specific.
//!
//! Four shapes: `name`, `.name`, `*.name` and `a.*.b`. [`Pattern::matches`] is the plain definition;
//! `table` finds the same matches among a million without trying each.

use std::{fmt, net::IpAddr};

use thiserror::Error;

use crate::name::{DomainName, InvalidName, NameBuffer, NameRef};

/// Most stars in the middle of one pattern.
pub(super) const MAX_STARS: usize = 4;

/// The label that stands for a star in the middle. Patterns cannot hold it as a literal label.
pub(super) const STAR: &[u8] = b"*";

/// What a pattern matches of its name; the least specific first, at equal length.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Shape {
    /// `*.name`: everything below, not itself.
    Below,
    /// `.name`: it and everything below.
    Within,
    /// `a.*.b`: each star is one whole label.
    Middle,
    /// `name`: exactly.
    Exact,
}

/// One pattern.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern {
    /// What it matches of `name`.
    pub shape: Shape,
    /// The name; in a [`Shape::Middle`] with [`STAR`] where a star stands.
    pub name: DomainName,
}

/// How specific a pattern is: the greater wins.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Rank(u16);

/// Why a text is not a pattern.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(super) enum InvalidPattern {
    #[error("the pattern matches every name")]
    Everything,
    #[error("an address is no name")]
    Address,
    #[error("{0:?}: a star stands for a whole label, not for a part of one")]
    StarInLabel(String),
    #[error("a star at the end would match every top-level domain")]
    StarAtEnd,
    #[error("a star in the middle goes with neither a leading dot nor a leading star")]
    LeadAndMiddle,
    #[error("{0} stars; a pattern has at most {MAX_STARS} in the middle")]
    TooManyStars(usize),
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl InvalidPattern {
    /// How to mend it, where there is one way.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Address => Some("addresses in answers are compared with the networks of a pack's rules"),
            Self::Everything => Some("name a domain: .example.com is it and everything below"),
            Self::StarInLabel(_) | Self::LeadAndMiddle => {
                Some("forms are name, .name (and below), *.name (only below) and a.*.b (one label in the middle)")
            }
            Self::StarAtEnd => Some("write the end out; one pattern for each top-level domain"),
            Self::TooManyStars(_) => Some("use .name or *.name for a whole branch"),
            Self::Name(InvalidName::BadCharacter('/' | ':')) => {
                Some("write the host name alone, no scheme, port or path")
            }
            Self::Name(_) => None,
        }
    }
}

impl Pattern {
    /// Reads a pattern: any case, internationalised names in either form, with or without the last dot.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if matches!(text, "." | "*" | "*." | ".*") {
            return Err(InvalidPattern::Everything);
        }
        let (shape, rest) = match (text.strip_prefix("*."), text.strip_prefix('.')) {
            (Some(rest), _) => (Shape::Below, rest),
            (None, Some(rest)) => (Shape::Within, rest),
            (None, None) => (Shape::Exact, text),
        };
        if rest.parse::<IpAddr>().is_ok() {
            return Err(InvalidPattern::Address);
        }
        if !rest.contains('*') {
            let name: DomainName = rest.parse()?;
            return if name.as_name().is_root() { Err(InvalidPattern::Everything) } else { Ok(Self { shape, name }) };
        }
        let name = starred_name(rest)?;
        if shape == Shape::Exact { Ok(Self { shape: Shape::Middle, name }) } else { Err(InvalidPattern::LeadAndMiddle) }
    }

    /// Does it match this name?
    pub fn matches(&self, name: NameRef<'_>) -> bool {
        let own = self.name.as_name();
        match self.shape {
            Shape::Exact => name == own,
            Shape::Within => name.is_within(own),
            Shape::Below => name != own && name.is_within(own),
            Shape::Middle => {
                name.label_count() == own.label_count()
                    && name.labels().zip(own.labels()).all(|(theirs, ours)| ours == STAR || theirs == ours)
            }
        }
    }

    /// Is there a name that both match?
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (own, theirs) = (self.name.as_name(), other.name.as_name());
        match (self.shape, other.shape) {
            (Shape::Exact, _) => other.matches(own),
            (_, Shape::Exact) => self.matches(theirs),
            (Shape::Middle, Shape::Middle) => {
                own.label_count() == theirs.label_count()
                    && own.labels().zip(theirs.labels()).all(|(a, b)| a == STAR || b == STAR || a == b)
            }
            (Shape::Middle, Shape::Within | Shape::Below) => other.reaches_into(self),
            (Shape::Within | Shape::Below, Shape::Middle) => self.reaches_into(other),
            (Shape::Within | Shape::Below, Shape::Within | Shape::Below) => {
                own.is_within(theirs) || theirs.is_within(own)
            }
        }
    }

    /// Is a name that the starred pattern matches within this suffix pattern?
    fn reaches_into(&self, starred: &Self) -> bool {
        let (suffix, name) = (self.name.as_name(), starred.name.as_name());
        let Some(extra) = name.label_count().checked_sub(suffix.label_count()) else { return false };
        (extra > 0 || self.shape == Shape::Within)
            && name.labels().skip(extra).zip(suffix.labels()).all(|(ours, theirs)| ours == STAR || ours == theirs)
    }

    /// How specific it is.
    pub(super) fn rank(&self) -> Rank {
        Rank::new(self.shape, self.name.as_name().label_count())
    }
}

impl Rank {
    /// An exact name first; then more labels, a star in the middle being one; then `a.*.b`, `.name`, `*.name`.
    pub(super) fn new(shape: Shape, labels: usize) -> Self {
        if shape == Shape::Exact {
            return Self(u16::MAX);
        }
        Self(u16::try_from(labels).unwrap_or(u16::MAX >> 2).saturating_mul(4) + shape as u16)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shape {
            Shape::Exact => write!(f, "{}", self.name),
            Shape::Within => write!(f, ".{}", self.name),
            Shape::Below => write!(f, "*.{}", self.name),
            Shape::Middle => f.write_str(&self.name.to_string().replace("\\*", "*")),
        }
    }
}

/// Reads `a.*.b`: what stands between the stars is read as names are, a piece at a time.
fn starred_name(text: &str) -> Result<DomainName, InvalidPattern> {
    let text = if text.ends_with("\\.") { text } else { text.strip_suffix('.').unwrap_or(text) };
    let mut buffer = NameBuffer::new();
    buffer.clear();
    let mut stars = 0;
    let mut piece: Vec<&str> = Vec::new();
    for label in text.split('.') {
        if label != "*" {
            if label.contains('*') {
                return Err(InvalidPattern::StarInLabel(label.to_owned()));
            }
            piece.push(label);
            continue;
        }
        stars += 1;
        push_piece(&mut buffer, &mut piece)?;
        buffer.push_label(STAR)?;
    }
    if piece.is_empty() {
        return Err(InvalidPattern::StarAtEnd);
    }
    push_piece(&mut buffer, &mut piece)?;
    if stars > MAX_STARS {
        return Err(InvalidPattern::TooManyStars(stars));
    }
    Ok(buffer.close()?.name().to_owned())
}

fn push_piece(buffer: &mut NameBuffer, piece: &mut Vec<&str>) -> Result<(), InvalidName> {
    if piece.is_empty() {
        return Ok(());
    }
    let name: DomainName = piece.join(".").parse()?;
    piece.clear();
    name.as_name().labels().try_for_each(|label| buffer.push_label(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn a_pattern_matches_what_the_contract_says_in_any_case_and_either_idn_form() {
        #[rustfmt::skip]
        let cases: &[(&str, &str, bool)] = &[
            ("a.example",            "a.example",          true),
            ("a.example",            "b.a.example",        false),
            (".a.example",           "a.example",          true),
            (".a.example",           "c.b.a.example",      true),
            (".a.example",           "xa.example",         false),
            ("*.a.example",          "a.example",          false),
            ("*.a.example",          "c.b.a.example",      true),
            ("a.*.example",          "a.b.example",        true),
            ("a.*.example",          "a.example",          false),
            ("a.*.example",          "a.b.c.example",      false),
            ("a.*.example",          "x.a.b.example",      false),
            ("a.*.*.d.*.f",          "a.x.y.d.z.f",        true),
            ("A.Example.",           "a.eXample",          true),
            (".bücher.example",      "xn--bcher-kva.example", true),
            (".XN--BCHER-kva.example", "bücher.example",   true),
            ("a.*.bücher.example.",  "a.b.xn--bcher-kva.example", true),
            ("_dns.resolver.arpa",   "_dns.resolver.arpa", true),
        ];
        for (text, name, expected) in cases {
            let name: DomainName = name.parse().unwrap();
            assert_eq!(pattern(text).matches(name.as_name()), *expected, "{text} on {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        use InvalidPattern::*;
        let long = "a".repeat(64);
        #[rustfmt::skip]
        let cases: &[(&str, InvalidPattern)] = &[
            ("",               Name(InvalidName::EmptyLabel)),
            (".",              Everything),
            ("*",              Everything),
            ("*.",             Everything),
            ("..",             Everything),
            ("192.0.2.1",      Address),
            ("*.192.0.2.1",    Address),
            ("2001:db8::1",    Address),
            ("a..b",           Name(InvalidName::EmptyLabel)),
            ("*..b",           Name(InvalidName::EmptyLabel)),
            ("a.*..b",         Name(InvalidName::EmptyLabel)),
            (&long,            Name(InvalidName::LongLabel(64))),
            ("a*.b",           StarInLabel("a*".into())),
            ("derp*.x.com",    StarInLabel("derp*".into())),
            ("a.**.b",         StarInLabel("**".into())),
            (r"a.\*.b",        StarInLabel(r"\*".into())),
            ("a.*",            StarAtEnd),
            ("a.*.",           StarAtEnd),
            ("*.a.*.b",        LeadAndMiddle),
            ("*.*.b",          LeadAndMiddle),
            (".a.*.b",         LeadAndMiddle),
            ("a.*.*.*.*.*.b",  TooManyStars(5)),
            ("https://a.b",    Name(InvalidName::BadCharacter(':'))),
            ("xn--zz--.b",     Name(InvalidName::BadIdn)),
        ];
        for (text, expected) in cases {
            assert_eq!(Pattern::parse(text), Err(expected.clone()), "{text}");
        }
    }

    #[test]
    fn specificity_is_exact_then_length_then_shape() {
        // Each line is more specific than the next; equal ones share a line.
        let order: &[&[&str]] = &[
            &["x", "a.b.c.d.e.f"],
            &["a.*.c.d", "a.b.*.d", "a.*.*.d"],
            &[".a.b.c.d"],
            &["*.a.b.c.d"],
            &["a.*.c"],
            &[".b.c.d"],
            &["*.b.c.d"],
            &[".d"],
            &["*.d"],
        ];
        for (place, line) in order.iter().enumerate() {
            for text in *line {
                assert_eq!(pattern(text).rank(), pattern(line[0]).rank(), "{text}");
                for later in order.iter().skip(place + 1).flat_map(|line| *line) {
                    assert!(pattern(text).rank() > pattern(later).rank(), "{text} before {later}");
                }
            }
        }
    }

    #[test]
    fn two_patterns_overlap_when_a_name_satisfies_both() {
        #[rustfmt::skip]
        let cases: &[(&str, &str, bool)] = &[
            ("a.b",     "a.b",     true),
            ("a.b",     "*.b",     true),
            ("b",       "*.b",     false),
            (".b",      "*.a.b",   true),
            (".a.b",    ".c.b",    false),
            ("a.*.c",   "*.b.c",   true),
            ("a.*.c",   ".x.c",    true),
            ("a.*.c",   "*.a.x.c", false),
            ("a.*.c",   ".a.x.c",  true),
            ("a.*.c.d", "a.b.*.d", true),
            ("a.*.c.d", "b.b.*.d", false),
            ("a.*.c",   ".q.a.b.c", false),
        ];
        for (one, other, expected) in cases {
            assert_eq!(pattern(one).overlaps(&pattern(other)), *expected, "{one} {other}");
            assert_eq!(pattern(other).overlaps(&pattern(one)), *expected, "{other} {one}");
        }
    }
}
