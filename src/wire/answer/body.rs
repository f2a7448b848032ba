//! The records of an answer written anew behind a question of the same length.
//!
//! Each label of the old packet that has been written is remembered by its offset, so a pointer of the
//! old packet becomes a pointer of the new one, and what was compressed stays compressed without a search.

use std::net::IpAddr;

use super::{
    BadAnswer,
    packet::{Labels, Record, Steps},
    service::Service,
};
use crate::{
    name::{DomainName, NameRef},
    wire::{HEADER, cursor::Cursor, rtype},
};

/// Largest body: with header, the longest question and an OPT record it still is a message of 64 KiB.
const MAX_BODY: usize = 65_535 - HEADER - 259 - 11;

/// Offsets from here on cannot be pointed at (RFC 1035 section 4.1.4).
const POINTER_END: usize = 0x4000;

/// A body in the making, and the facts found in what was written.
#[derive(Debug)]
pub(super) struct Body<'p> {
    packet: &'p [u8],
    /// Offset of the body in a message.
    base: usize,
    /// For each offset in the packet: where the label there stands in the message, or 0.
    written: Vec<u16>,
    strip_ech: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) ttl_places: Vec<u16>,
    pub(super) aliases: Vec<DomainName>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) has_ech: bool,
}

/// How the owner of a record is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    /// As it stands in the packet.
    AsRead,
    /// As a pointer to a name that stands in the message already.
    At(u16),
}

/// A stretch of a record's data.
#[derive(Clone, Copy)]
enum Part {
    Bytes(usize),
    Text,
    Name,
    /// A name that may not be compressed on its way out (RFC 3597 section 4), though it is understood so.
    PlainName,
    /// Texts to the end, one at least.
    Texts,
    Rest,
}

impl<'p> Body<'p> {
    pub(super) fn new(packet: &'p [u8], name: NameRef<'_>, strip_ech: bool) -> Self {
        let mut written = vec![0; packet.len().min(POINTER_END)];
        let mut at = HEADER;
        // The question's labels stand where they stood.
        for label in name.labels() {
            if let (Some(place), Ok(offset)) = (written.get_mut(at), u16::try_from(at)) {
                *place = offset;
            }
            at += 1 + label.len();
        }
        Self {
            packet,
            base: HEADER + name.as_wire().len() + 4,
            written,
            strip_ech,
            bytes: Vec::with_capacity(packet.len().saturating_sub(at)),
            ttl_places: Vec::new(),
            aliases: Vec::new(),
            addresses: Vec::new(),
            has_ech: false,
        }
    }

    /// Writes a record with `ttl`. Gives where the first name of its data stands, if that can be pointed at.
    pub(super) fn push(
        &mut self,
        record: &Record,
        owner: Owner,
        ttl: u32,
        steps: &mut Steps,
    ) -> Result<Option<u16>, BadAnswer> {
        match owner {
            Owner::At(offset) => self.push_pointer(offset),
            Owner::AsRead => self.push_name(record.owner, true, steps).map(drop)?,
        }
        let length_at = self.push_front(record.rtype, record.class, ttl)?;
        let target = self.push_data(record, steps)?;
        self.close_data(length_at)?;
        Ok(target)
    }

    /// Writes an alias that the packet does not hold. Gives where its target stands, if that can be pointed at.
    pub(super) fn push_alias(
        &mut self,
        owner: &[u8],
        class: u16,
        ttl: u32,
        target: NameRef<'_>,
    ) -> Result<Option<u16>, BadAnswer> {
        self.bytes.extend_from_slice(owner);
        let length_at = self.push_front(rtype::CNAME, class, ttl)?;
        let place = self.offset();
        self.bytes.extend_from_slice(target.as_wire());
        self.close_data(length_at)?;
        Ok(place)
    }

    /// Type, class, TTL and room for the length; gives where the length stands.
    fn push_front(&mut self, rtype: u16, class: u16, ttl: u32) -> Result<usize, BadAnswer> {
        self.bytes.extend_from_slice(&rtype.to_be_bytes());
        self.bytes.extend_from_slice(&class.to_be_bytes());
        self.ttl_places.push(u16::try_from(self.bytes.len()).map_err(|_| BadAnswer::TooLarge)?);
        self.bytes.extend_from_slice(&ttl.to_be_bytes());
        let length_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        Ok(length_at)
    }

    fn close_data(&mut self, length_at: usize) -> Result<(), BadAnswer> {
        let length = u16::try_from(self.bytes.len() - length_at - 2).map_err(|_| BadAnswer::TooLarge)?;
        if let Some(place) = self.bytes.get_mut(length_at..length_at + 2) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        if self.bytes.len() > MAX_BODY { Err(BadAnswer::TooLarge) } else { Ok(()) }
    }

    fn push_data(&mut self, record: &Record, steps: &mut Steps) -> Result<Option<u16>, BadAnswer> {
        let data = self.packet.get(record.data..record.end).ok_or(BadAnswer::Malformed)?;
        match record.rtype {
            rtype::A => self.addresses.push(<[u8; 4]>::try_from(data).map_err(|_| BadAnswer::Malformed)?.into()),
            rtype::AAAA => self.addresses.push(<[u8; 16]>::try_from(data).map_err(|_| BadAnswer::Malformed)?.into()),
            rtype::SVCB | rtype::HTTPS => return self.push_service(data).map(|()| None),
            _ => return self.push_parts(record, steps),
        }
        self.bytes.extend_from_slice(data);
        Ok(None)
    }

    fn push_service(&mut self, data: &[u8]) -> Result<(), BadAnswer> {
        let service = Service::read(data)?;
        if !service.target.name().is_root() {
            self.aliases.push(service.target.name().to_owned());
        }
        self.addresses.extend_from_slice(&service.hints);
        if self.strip_ech {
            service.push_without_ech(&mut self.bytes);
        } else {
            self.has_ech |= service.has_ech;
            self.bytes.extend_from_slice(data);
        }
        Ok(())
    }

    fn push_parts(&mut self, record: &Record, steps: &mut Steps) -> Result<Option<u16>, BadAnswer> {
        let within = self.packet.get(..record.end).ok_or(BadAnswer::Malformed)?;
        let mut cursor = Cursor::new(within, record.data);
        let mut first_name = None;
        for &part in parts(record.rtype) {
            match part {
                Part::Bytes(length) => self.bytes.extend_from_slice(cursor.take(length)?),
                Part::Text => self.push_text(&mut cursor)?,
                Part::Texts => {
                    self.push_text(&mut cursor)?;
                    while !cursor.is_at_end() {
                        self.push_text(&mut cursor)?;
                    }
                }
                Part::Name | Part::PlainName => {
                    let at = cursor.position();
                    cursor.skip_name()?;
                    let place = self.push_name(at, matches!(part, Part::Name), steps)?;
                    first_name = first_name.or(place);
                }
                Part::Rest => {
                    self.bytes.extend_from_slice(cursor.rest());
                    cursor = Cursor::new(within, record.end);
                }
            }
        }
        if cursor.is_at_end() { Ok(first_name) } else { Err(BadAnswer::Malformed) }
    }

    fn push_text(&mut self, cursor: &mut Cursor<'p>) -> Result<(), BadAnswer> {
        let length = cursor.byte()?;
        self.bytes.push(length);
        self.bytes.extend_from_slice(cursor.take(usize::from(length))?);
        Ok(())
    }

    /// Writes the name that stands at an offset of the packet. Gives where it can be pointed at.
    fn push_name(&mut self, at: usize, compressed: bool, steps: &mut Steps) -> Result<Option<u16>, BadAnswer> {
        let mut start = self.offset();
        let mut labels = Labels::new(self.packet, at);
        let mut length = 1;
        let mut is_first = true;
        while let Some((at, label)) = labels.next(steps)? {
            length += 1 + label.len();
            if length > crate::name::MAX_NAME {
                return Err(BadAnswer::Malformed);
            }
            if compressed {
                match self.written.get(at) {
                    Some(&offset @ 1..) => {
                        if is_first {
                            start = Some(offset);
                        }
                        self.push_pointer(offset);
                        // The rest stands in the message already, and was found in order when it was written;
                        // only the length of the whole is still open.
                        return self.check_rest(labels, length, steps).map(|()| start);
                    }
                    Some(0) | None => self.remember(at),
                }
            }
            is_first = false;
            self.bytes.push(u8::try_from(label.len()).map_err(|_| BadAnswer::Malformed)?);
            self.bytes.extend_from_slice(label);
        }
        self.bytes.push(0);
        Ok(start)
    }

    fn check_rest(&self, mut labels: Labels<'p>, mut length: usize, steps: &mut Steps) -> Result<(), BadAnswer> {
        while let Some((_, label)) = labels.next(steps)? {
            length += 1 + label.len();
        }
        if length > crate::name::MAX_NAME { Err(BadAnswer::Malformed) } else { Ok(()) }
    }

    /// The label at this offset of the packet stands next in the message.
    fn remember(&mut self, at: usize) {
        let offset = self.offset();
        if let (Some(place), Some(offset)) = (self.written.get_mut(at), offset) {
            *place = offset;
        }
    }

    /// Where the next byte stands in the message, if it can be pointed at.
    fn offset(&self) -> Option<u16> {
        let offset = self.base + self.bytes.len();
        u16::try_from(offset).ok().filter(|_| offset < POINTER_END)
    }

    fn push_pointer(&mut self, offset: u16) {
        self.bytes.extend_from_slice(&(0xc000 | offset).to_be_bytes());
    }
}

/// How the data of a type is laid out, where it holds names that a server may have compressed (RFC 1035
/// section 3.3, RFC 3597 section 4) or texts that must add up. All others are copied as they are.
fn parts(rtype: u16) -> &'static [Part] {
    use Part::{Bytes, Name, PlainName, Rest, Text, Texts};
    match rtype {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR
        2 | 3 | 4 | rtype::CNAME | 7 | 8 | 9 | 12 => &[Name],
        rtype::SOA => &[Name, Name, Bytes(20)],
        // HINFO
        13 => &[Text, Text],
        // MINFO
        14 => &[Name, Name],
        // MX
        15 => &[Bytes(2), Name],
        // TXT, SPF
        16 | 99 => &[Texts],
        // RP
        17 => &[PlainName, PlainName],
        // AFSDB, RT, KX
        18 | 21 | 36 => &[Bytes(2), PlainName],
        // SIG, RRSIG
        24 | rtype::RRSIG => &[Bytes(18), PlainName, Rest],
        // PX
        26 => &[Bytes(2), PlainName, PlainName],
        // NXT, NSEC
        30 | rtype::NSEC => &[PlainName, Rest],
        // SRV
        33 => &[Bytes(6), PlainName],
        // NAPTR
        35 => &[Bytes(4), Text, Text, Text, PlainName],
        rtype::DNAME => &[PlainName],
        _ => &[Rest],
    }
}
