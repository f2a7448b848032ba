//! A single value, and the shapes it may be asked to have.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr},
    ops::{Range, RangeInclusive},
    str::FromStr,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};
use jiff::{Timestamp, civil::Date};
use toml::{Spanned, de::DeValue};

use super::{
    Notes,
    nearest::nearest,
    quantity::{duration, size, written},
};
use crate::problem::{Located, Place};

/// A value with its place. What cannot be read is noted there, and the reader goes on with `None`.
pub struct Value<'a> {
    notes: &'a Notes,
    key: &'static str,
    in_list: bool,
    span: Range<usize>,
    value: &'a DeValue<'a>,
}

/// Why a text is not what it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// What is wrong, in one line without a full stop.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl<'a> Value<'a> {
    pub(super) fn new(notes: &'a Notes, key: &'static str, value: &'a Spanned<DeValue<'a>>) -> Self {
        Self { notes, key, in_list: false, span: value.span(), value: value.get_ref() }
    }

    /// Where it stands.
    pub fn place(&self) -> Place {
        self.notes.place(&self.span)
    }

    /// `value` with this place.
    pub fn locate<T>(&self, value: T) -> Located<T> {
        Located { value, place: self.place() }
    }

    /// Notes that it is wrong.
    pub fn wrong<T>(&self, message: impl Into<String>, hint: Option<String>) -> Option<T> {
        self.notes.error(&self.span, message.into(), hint);
        None
    }

    /// A string as it stands.
    pub fn text(&self) -> Option<&'a str> {
        self.value.as_str().or_else(|| self.expected("a string"))
    }

    /// A string for people: one line, not blank, without control characters, at most 200 characters.
    pub fn line(&self) -> Option<String> {
        let text = self.text()?;
        if text.trim().is_empty() {
            return self.wrong(format!("{} is blank", self.what()), None);
        }
        if text.chars().any(char::is_control) {
            return self.wrong(format!("{} has a control character in it", self.what()), None);
        }
        if text.chars().count() > MAX_LINE {
            return self.wrong(format!("{} is longer than {MAX_LINE} characters", self.what()), None);
        }
        Some(text.to_owned())
    }

    /// A string to be made sense of later, with its place.
    pub fn located_text(&self) -> Option<Located<String>> {
        Some(self.locate(self.text()?.to_owned()))
    }

    /// A word that names something in messages and records: letters, digits, `-`, `_` and `.`, at most 63.
    pub fn word(&self) -> Option<Located<String>> {
        let text = self.text()?;
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if text.is_empty() || text.len() > 63 || !plain {
            let hint = "use letters, digits, - _ and ., at most 63 of them".to_owned();
            return self.wrong(format!("{} is {}, which cannot be a name here", self.what(), quoted(text)), Some(hint));
        }
        Some(self.locate(text.to_owned()))
    }

    /// `true` or `false`.
    pub fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.expected("true or false"))
    }

    /// A whole number within `range`.
    pub fn integer<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let Some(number) = self.value.as_integer() else { return self.expected("a whole number") };
        let number = i128::from_str_radix(number.as_str(), number.radix()).ok();
        let within = number.and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number));
        within.or_else(|| {
            let text = self.notes.file.text.get(self.span.clone()).unwrap_or_default();
            let message = format!("{} is {text}; it must be from {} to {}", self.what(), range.start(), range.end());
            self.wrong(message, None)
        })
    }

    /// A duration such as `"90d"` or `"1h30m"`, or a number of seconds, within `range`; whole seconds.
    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let read = match self.value {
            DeValue::Integer(number) => {
                u64::from_str_radix(number.as_str(), number.radix()).ok().map(Duration::from_secs)
            }
            DeValue::String(text) => duration(text),
            DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                return self.expected("a duration such as \"90d\"");
            }
        };
        let Some(read) = read else {
            let hint = "write a whole number and s, m, h, d or w, such as \"90d\"".to_owned();
            return self.wrong(format!("{} is no duration", self.what()), Some(hint));
        };
        if range.contains(&read) {
            return Some(read);
        }
        let (from, to) = (written(*range.start()), written(*range.end()));
        self.wrong(format!("{} is {}; it must be from {from} to {to}", self.what(), written(read)), None)
    }

    /// A number of bytes such as `"1GiB"`, or a bare number, of at least `least`.
    pub fn size(&self, least: u64) -> Option<u64> {
        let read = match self.value {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            DeValue::String(text) => size(text),
            DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                return self.expected("a size such as \"1GiB\"");
            }
        };
        // What SQLite and file offsets can count.
        let Some(read) = read.filter(|&size| i64::try_from(size).is_ok()) else {
            let hint = "write a whole number and KiB, MiB or GiB, such as \"1GiB\"".to_owned();
            return self.wrong(format!("{} is no size", self.what()), Some(hint));
        };
        if read < least {
            return self.wrong(format!("{} is {read} bytes; it must be at least {least}", self.what()), None);
        }
        Some(read)
    }

    /// One of a few words.
    pub fn keyword<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some(&(_, meaning)) = words.iter().find(|(word, _)| *word == text) {
            return Some(meaning);
        }
        let known = words.iter().map(|&(word, _)| word);
        let list = known.clone().map(quoted).collect::<Vec<_>>().join(", ");
        let hint = match nearest(text, known) {
            Some(word) => format!("did you mean {}? It can be {list}", quoted(word)),
            None => format!("it can be {list}"),
        };
        self.wrong(format!("{} cannot be {}", self.what(), quoted(text)), Some(hint))
    }

    /// Anything that is read from a string; its error is the message.
    pub fn parsed<T: FromStr<Err: Display>>(&self) -> Option<T> {
        self.converted(|text| text.parse().map_err(|error: T::Err| Fault::from(format!("{}: {error}", quoted(text)))))
    }

    /// Anything that is made from a string.
    pub fn converted<T>(&self, convert: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        match convert(self.text()?) {
            Ok(value) => Some(value),
            Err(Fault { message, hint }) => self.wrong(message, hint),
        }
    }

    /// A network; a bare address is a network of one, and a v4-mapped one (RFC 4291 section 2.5.5.2) is v4.
    pub fn network(&self) -> Option<Located<IpNet>> {
        Some(self.locate(self.converted(network)?))
    }

    /// A moment: a TOML date-time with an offset.
    pub fn timestamp(&self) -> Option<Located<Timestamp>> {
        let DeValue::Datetime(moment) = self.value else {
            let hint = "write it without quotes and with an offset, such as 2026-12-24T18:00:00Z";
            let message = format!("{} must be a date and time, not {}", self.what(), with_article(self.value));
            return self.wrong(message, Some(hint.to_owned()));
        };
        if moment.date.is_none() || moment.time.is_none() || moment.offset.is_none() {
            let hint = "add Z for UTC or the offset, such as 2026-12-24T18:00:00Z or 2026-12-24T18:00:00+01:00";
            let part = if moment.time.is_none() { "a time and an offset" } else { "an offset from UTC" };
            return self.wrong(format!("{} lacks {part}", self.what()), Some(hint.to_owned()));
        }
        match moment.to_string().parse() {
            Ok(moment) => Some(self.locate(moment)),
            Err(error) => self.wrong(format!("{} is no moment: {error}", self.what()), None),
        }
    }

    /// A day: a TOML date.
    pub fn date(&self) -> Option<Date> {
        let day = match self.value {
            DeValue::Datetime(moment) if moment.time.is_none() => moment.to_string().parse().ok(),
            DeValue::Datetime(_)
            | DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        };
        day.or_else(|| {
            let hint = "write it without quotes, such as 2026-11-23".to_owned();
            self.wrong(format!("{} must be a day", self.what()), Some(hint))
        })
    }

    /// Every entry of a list; those that are wrong are noted and left out.
    pub fn entries<T>(&self, mut read: impl FnMut(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        let Some(entries) = self.value.as_array() else {
            let hint = self.value.is_str().then(|| {
                let text = self.notes.file.text.get(self.span.clone()).unwrap_or_default();
                format!("write {} = [{}]", self.key, text.chars().take(60).collect::<String>())
            });
            return self.wrong(format!("{} must be a list, not {}", self.what(), with_article(self.value)), hint);
        };
        let values = entries.iter().map(|entry| Value { in_list: true, ..Value::new(self.notes, self.key, entry) });
        Some(values.filter_map(|value| read(&value)).collect())
    }

    /// The same for a list that must not be empty; `None` too where no entry was right.
    pub fn some_entries<T>(&self, example: &str, read: impl FnMut(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        if self.value.as_array().is_some_and(|entries| entries.is_empty()) {
            return self.wrong(format!("{} is empty", self.what()), Some(format!("such as: {example}")));
        }
        self.entries(read).filter(|entries| !entries.is_empty())
    }

    fn expected<T>(&self, shape: &str) -> Option<T> {
        self.wrong(format!("{} must be {shape}, not {}", self.what(), with_article(self.value)), None)
    }

    fn what(&self) -> String {
        if self.in_list { format!("an entry of {}", quoted(self.key)) } else { quoted(self.key) }
    }
}

impl Fault {
    /// The same fault with a hint how to mend it.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self { message, hint: None }
    }
}

/// Longest text for people, in characters.
const MAX_LINE: usize = 200;

/// A text from outside in quotes, escaped, cut so that the message around it stays readable.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// What a value is, as a message says it.
pub(super) fn with_article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(true) => "true",
        DeValue::Boolean(false) => "false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn network(text: &str) -> Result<IpNet, Fault> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let parsed: IpAddr = address.parse().map_err(|_| {
        let fault = Fault::from(format!("{} is no network", quoted(text)));
        match completed(address) {
            Some(full) => fault.hint(format!("write all four numbers: {full}/{}", length.unwrap_or("32"))),
            None => fault.hint("write an address and a prefix length, such as 10.20.0.0/16 or 2001:db8:20::/48"),
        }
    })?;
    let (family, most) = if parsed.is_ipv4() { ("IPv4", 32) } else { ("IPv6", 128) };
    let length = match length {
        None => most,
        Some(digits) => digits.parse::<u8>().ok().filter(|&length| length <= most).ok_or_else(|| {
            let message = format!("{}: prefix length {}", quoted(text), quoted(digits));
            Fault::from(message).hint(format!("a length of {family} is a number from 0 to {most}"))
        })?,
    };
    let fault = |_| Fault::from(format!("{} is no network", quoted(text)));
    let network = IpNet::new(parsed, length).map_err(fault)?;
    if network.trunc() != network {
        let message = format!("{} has bits set behind its prefix length", quoted(text));
        return Err(Fault::from(message).hint(format!("did you mean {}?", network.trunc())));
    }
    Ok(unmapped(network))
}

/// The four numbers that `10.20` begins, the missing ones 0.
fn completed(address: &str) -> Option<Ipv4Addr> {
    let numbers = address.split('.').map(|number| number.parse().ok()).collect::<Option<Vec<u8>>>()?;
    let mut octets = [0; 4];
    octets.get_mut(..numbers.len())?.copy_from_slice(&numbers);
    Some(octets.into())
}

fn unmapped(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    let v4 = mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok());
    v4.map_or(network, IpNet::V4)
}
