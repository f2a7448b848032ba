//! An upstream's packet taken apart into records, and its compressed names. Every step of the work is
//! counted, so that no packet costs more than [`MAX_STEPS`], however its pointers are laid.

use super::BadAnswer;
use crate::{
    name::{NameBuffer, NameRef},
    wire::{
        HEADER, Rcode,
        cursor::{Cursor, Malformed},
        rtype,
    },
};

/// Most steps (a record or a label looked at, a pointer followed) that reading one packet may take. A packet
/// of 64 KiB full of addresses at the end of a long chain takes under half of it.
pub(crate) const MAX_STEPS: u32 = 1 << 18;

/// Most options of an OPT record that are looked at.
const MAX_OPTIONS: usize = 64;

/// Most extended errors that are kept, and the most bytes of text of each.
const MAX_ERRORS: usize = 4;
const MAX_TEXT: usize = 256;

/// An extended error: its code and text.
pub(super) type KeptError = (u16, Box<[u8]>);

/// What reading may still cost.
#[derive(Debug)]
pub(super) struct Steps(u32);

/// A record, as offsets into its packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) owner: usize,
    pub(super) rtype: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    pub(super) data: usize,
    pub(super) end: usize,
}

/// A packet's records.
#[derive(Debug)]
pub(super) struct Packet<'p> {
    pub(super) bytes: &'p [u8],
    pub(super) rcode: Rcode,
    pub(super) authentic: bool,
    pub(super) truncated: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) errors: Vec<KeptError>,
}

/// The labels of a name, each with its offset in the packet. Pointers are followed backwards only.
pub(super) struct Labels<'p> {
    packet: &'p [u8],
    at: usize,
    /// Where this run of labels began: a pointer must lead before it.
    floor: usize,
}

impl From<Malformed> for BadAnswer {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Steps {
    pub(super) fn new() -> Self {
        Self(MAX_STEPS)
    }

    pub(super) fn spend(&mut self) -> Result<(), BadAnswer> {
        self.0 = self.0.checked_sub(1).ok_or(BadAnswer::TooMuchWork)?;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn spent(&self) -> u32 {
        MAX_STEPS - self.0
    }
}

impl<'p> Packet<'p> {
    /// Takes a response to `name`, `qtype`, `qclass` apart. A truncated one is not looked into: nothing in it is used.
    pub(super) fn read(
        bytes: &'p [u8],
        (name, qtype, qclass): (NameRef<'_>, u16, u16),
        steps: &mut Steps,
    ) -> Result<Self, BadAnswer> {
        let Some(&[_, _, high, low, ref counts @ ..]) = bytes.first_chunk::<HEADER>() else {
            return Err(BadAnswer::Malformed);
        };
        let mut counts =
            counts.chunks_exact(2).map(|pair| pair.iter().fold(0_u16, |sum, &byte| sum << 8 | u16::from(byte)));
        let mut count = || counts.next().unwrap_or_default();
        // A response, and one to a query: RFC 1035 section 4.1.1.
        if high & 0xf8 != 0x80 || count() != 1 {
            return Err(BadAnswer::OtherQuestion);
        }
        let mut cursor = Cursor::new(bytes, HEADER);
        let mut buffer = NameBuffer::new();
        cursor.plain_name(&mut buffer)?;
        if (buffer.name(), cursor.number()?, cursor.number()?) != (name, qtype, qclass) {
            return Err(BadAnswer::OtherQuestion);
        }
        let mut packet = Self {
            bytes,
            rcode: Rcode(u16::from(low & 0xf)),
            authentic: low & 0x20 != 0,
            truncated: high & 0x02 != 0,
            answers: Vec::new(),
            authorities: Vec::new(),
            errors: Vec::new(),
        };
        if !packet.truncated {
            packet.answers = read_records(&mut cursor, count(), steps)?;
            packet.authorities = read_records(&mut cursor, count(), steps)?;
            let additional = read_records(&mut cursor, count(), steps)?;
            packet.take_opt(&additional)?;
        }
        Ok(packet)
    }

    /// The record's data.
    pub(super) fn data(&self, record: &Record) -> &'p [u8] {
        self.bytes.get(record.data..record.end).unwrap_or_default()
    }

    /// Is the record a signature over records of a type?
    pub(super) fn is_signature(&self, record: &Record, rtype: u16) -> bool {
        record.rtype == rtype::RRSIG && self.data(record).first_chunk() == Some(&rtype.to_be_bytes())
    }

    /// Does the record prove that something is not there, or sign such a proof? Signatures over an SOA go with
    /// negative answers only.
    pub(super) fn is_proof(&self, record: &Record, negative: bool) -> bool {
        matches!(record.rtype, rtype::NSEC | rtype::NSEC3)
            || self.is_signature(record, rtype::NSEC)
            || self.is_signature(record, rtype::NSEC3)
            || negative && self.is_signature(record, rtype::SOA)
    }

    /// The last number of a record's data: an SOA's minimum.
    pub(super) fn last_number(&self, record: &Record) -> u32 {
        self.data(record).last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    /// The upper bits of the response code, and the extended errors, of the one OPT record.
    fn take_opt(&mut self, additional: &[Record]) -> Result<(), BadAnswer> {
        let mut found = additional.iter().filter(|record| record.rtype == rtype::OPT);
        let (Some(opt), more) = (found.next(), found.next()) else { return Ok(()) };
        if more.is_some() || self.bytes.get(opt.owner) != Some(&0) {
            return Err(BadAnswer::Malformed);
        }
        let [extended, ..] = opt.wire_ttl(self.bytes);
        self.rcode.0 |= u16::from(extended) << 4;
        self.errors = read_errors(self.data(opt))?;
        Ok(())
    }
}

impl Record {
    /// Is the type one of data, not of messages or questions (RFC 6895 section 3.1)?
    pub(super) fn holds_data(&self) -> bool {
        self.rtype != rtype::OPT && !(128..=255).contains(&self.rtype)
    }

    /// The TTL field as it stands in the packet.
    fn wire_ttl(&self, bytes: &[u8]) -> [u8; 4] {
        let front = self.data.checked_sub(6).and_then(|at| bytes.get(at..)).and_then(<[u8]>::first_chunk);
        front.copied().unwrap_or_default()
    }
}

fn read_records(cursor: &mut Cursor<'_>, count: u16, steps: &mut Steps) -> Result<Vec<Record>, BadAnswer> {
    // The count is a claim; room is made as records are really there.
    let mut records = Vec::with_capacity(usize::from(count).min(16));
    for _ in 0..count {
        steps.spend()?;
        let owner = cursor.position();
        cursor.skip_name()?;
        let (rtype, class, ttl, length) = (cursor.number()?, cursor.number()?, cursor.long_number()?, cursor.number()?);
        let data = cursor.position();
        cursor.take(usize::from(length))?;
        // A TTL with the top bit set counts as 0: RFC 2181 section 8.
        let ttl = if ttl > i32::MAX.unsigned_abs() { 0 } else { ttl };
        records.push(Record { owner, rtype, class, ttl, data, end: cursor.position() });
    }
    Ok(records)
}

fn read_errors(options: &[u8]) -> Result<Vec<KeptError>, Malformed> {
    const EXTENDED_ERROR: u16 = 15;
    let mut cursor = Cursor::new(options, 0);
    let mut errors = Vec::new();
    for _ in 0..MAX_OPTIONS {
        if cursor.is_at_end() || errors.len() == MAX_ERRORS {
            break;
        }
        let (code, length) = (cursor.number()?, cursor.number()?);
        let mut value = Cursor::new(cursor.take(usize::from(length))?, 0);
        if code == EXTENDED_ERROR {
            let code = value.number()?;
            errors.push((code, cut_text(value.rest()).into()));
        }
    }
    Ok(errors)
}

/// At most [`MAX_TEXT`] bytes, not cut within a character of UTF-8.
fn cut_text(text: &[u8]) -> &[u8] {
    let mut end = text.len().min(MAX_TEXT);
    while end > 0 && text.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

impl<'p> Labels<'p> {
    pub(super) fn new(packet: &'p [u8], at: usize) -> Self {
        Self { packet, at, floor: at }
    }

    /// The next label and where it stands; `None` at the root.
    pub(super) fn next(&mut self, steps: &mut Steps) -> Result<Option<(usize, &'p [u8])>, BadAnswer> {
        loop {
            steps.spend()?;
            let at = self.at;
            let mut cursor = Cursor::new(self.packet, at);
            match cursor.byte()? {
                0 => return Ok(None),
                length @ 1..=63 => {
                    let label = cursor.take(usize::from(length))?;
                    self.at = cursor.position();
                    return Ok(Some((at, label)));
                }
                high @ 192..=255 => {
                    let target = usize::from(u16::from_be_bytes([high & 0x3f, cursor.byte()?]));
                    if target >= self.floor {
                        return Err(BadAnswer::Malformed);
                    }
                    (self.at, self.floor) = (target, target);
                }
                64..=191 => return Err(BadAnswer::Malformed),
            }
        }
    }
}

/// The name at an offset, in lower case.
pub(super) fn read_name(packet: &[u8], at: usize, steps: &mut Steps) -> Result<NameBuffer, BadAnswer> {
    let mut buffer = NameBuffer::new();
    buffer.clear();
    let mut labels = Labels::new(packet, at);
    while let Some((_, label)) = labels.next(steps)? {
        buffer.push_label(label).map_err(|_| BadAnswer::Malformed)?;
    }
    buffer.close().map_err(|_| BadAnswer::Malformed)
}

/// Is the name at an offset this one? Stops at the first label that differs.
pub(super) fn is_name(packet: &[u8], at: usize, name: NameRef<'_>, steps: &mut Steps) -> Result<bool, BadAnswer> {
    let mut labels = Labels::new(packet, at);
    let mut rest = name;
    loop {
        match (labels.next(steps)?, rest.parent()) {
            (None, None) => return Ok(true),
            (Some((_, label)), Some(parent)) if label.eq_ignore_ascii_case(rest.first_label()) => rest = parent,
            _ => return Ok(false),
        }
    }
}
