//! What an upstream said, read down to what was asked: the alias chain of the asked name, the records at its
//! end, what proves an absence. Everything else in the packet is left behind, so nothing planted beside an
//! answer is ever kept or passed on (CVE-2025-40778, GHSA-83hf-93m4-rgwq).
//!
//! An [`Answer`] holds its records as bytes that follow the question section, and the facts a policy judges.
//! It holds no verdict. Whether a packet belongs to a query by id and address is the caller's to see.

mod body;
mod chain;
mod packet;
mod service;

use std::{collections::HashSet, net::IpAddr};

use thiserror::Error;

use self::{
    body::{Body, Owner},
    chain::{Chain, Link},
    packet::{KeptError, Packet, Record, Steps, is_name, read_name},
};
use super::{HEADER, Rcode, reply::ExtendedError, rtype};
use crate::name::{DomainName, NameRef};

/// Most aliases that are followed in one answer.
pub const MAX_ALIASES: usize = 16;

/// What an upstream was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asked<'a> {
    /// The name.
    pub name: NameRef<'a>,
    /// The type, as its number.
    pub qtype: u16,
    /// The class, as its number.
    pub qclass: u16,
    /// DNSSEC records were asked for.
    pub dnssec_ok: bool,
}

/// Why an upstream's packet is no answer. The client gets SERVFAIL.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BadAnswer {
    /// Not the packet of an answer: cut off, or with something in it that may not be there.
    #[error("malformed answer")]
    Malformed,
    /// No response to a query, or one to another question.
    #[error("answer to another question")]
    OtherQuestion,
    /// More than [`MAX_ALIASES`].
    #[error("more than {MAX_ALIASES} aliases")]
    TooManyAliases,
    /// An alias that leads back.
    #[error("aliases that lead in a circle")]
    AliasLoop,
    /// Reading it would take more steps than any honest answer needs.
    #[error("answer that takes too long to read")]
    TooMuchWork,
    /// Too large for a message once its names are written anew.
    #[error("answer too large")]
    TooLarge,
}

/// An answer: facts, no verdict. It belongs to a name, type, DO and CD; id and the name's case are the client's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    rcode: Rcode,
    authentic: bool,
    truncated: bool,
    negative: bool,
    has_ech: bool,
    ttl: Option<u32>,
    counts: (u16, u16),
    body: Box<[u8]>,
    ttl_places: Box<[u16]>,
    aliases: Box<[DomainName]>,
    addresses: Box<[IpAddr]>,
    errors: Box<[KeptError]>,
}

impl Answer {
    /// Reads an upstream's packet that has been matched to its query by id and address.
    ///
    /// A DNAME counts by the name it makes of the asked one, the nearest where there are several. Where the server made
    /// no CNAME of it, one is made here (RFC 6672 section 3.1), with the DNAME's TTL; where it made another than the
    /// DNAME says, both are aliases. One that would make too long a name ends the chain and is left behind. Of several
    /// CNAMEs of one name the first counts.
    ///
    /// Owners are written as pointers to the question or to the alias before, and so take its letters' case; all other
    /// names keep theirs. Of a truncated packet nothing is used but its header.
    ///
    /// # Errors
    /// [`BadAnswer`] says why it may not be passed on.
    pub fn read(packet: &[u8], asked: &Asked<'_>) -> Result<Self, BadAnswer> {
        Self::read_counted(packet, asked, false, &mut Steps::new())
    }

    /// The response code.
    pub fn rcode(&self) -> Rcode {
        self.rcode
    }

    /// How long it may be kept, in seconds; `None` if it may not: failures, truncated and incomplete ones, negative
    /// ones without an SOA (RFC 2308 section 5).
    pub fn ttl(&self) -> Option<u32> {
        self.ttl
    }

    /// Is there nothing of the asked type at the end of the chain?
    pub fn is_negative(&self) -> bool {
        self.negative
    }

    /// Did the upstream cut it (TC)?
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Did the upstream validate it (AD)?
    pub fn is_authentic(&self) -> bool {
        self.authentic
    }

    /// Every name the asked one leads to, in order: aliases by CNAME and DNAME, then SVCB and HTTPS targets.
    pub fn aliases(&self) -> &[DomainName] {
        &self.aliases
    }

    /// Every address in it: A, AAAA, ipv4hint, ipv6hint.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The upstream's extended errors.
    pub fn errors(&self) -> impl Iterator<Item = ExtendedError<'_>> {
        self.errors.iter().map(|(code, text)| ExtendedError { code: *code, text })
    }

    /// Is there an `ech` parameter in it?
    pub fn has_ech(&self) -> bool {
        self.has_ech
    }

    /// The same without `ech` parameters, for clients that did not set DO; AD is clear, since it is no longer what was
    /// signed. `asked` is what it was read with.
    ///
    /// # Errors
    /// Only when `asked` is something else.
    pub fn without_ech(&self, asked: &Asked<'_>) -> Result<Self, BadAnswer> {
        let packet = self.as_packet(asked);
        let stripped = Self::read_counted(&packet, asked, true, &mut Steps::new())?;
        Ok(Self {
            rcode: self.rcode,
            truncated: self.truncated,
            negative: self.negative,
            ttl: self.ttl,
            errors: self.errors.clone(),
            ..stripped
        })
    }

    /// Bytes of memory it takes, the allocator's overhead estimated.
    pub fn memory(&self) -> usize {
        const ALLOCATION: usize = 16;
        let aliases: usize =
            self.aliases.iter().map(|name| size_of::<DomainName>() + name.as_wire().len() + ALLOCATION).sum();
        let errors: usize = self.errors.iter().map(|(_, text)| size_of::<KeptError>() + text.len() + ALLOCATION).sum();
        let flat = self.body.len() + size_of_val(&*self.ttl_places) + size_of_val(&*self.addresses);
        size_of::<Self>() + flat + aliases + errors + 6 * ALLOCATION
    }

    /// The records, as they follow a question section with a name of the asked length.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Where in the body TTLs stand.
    pub(super) fn ttl_places(&self) -> &[u16] {
        &self.ttl_places
    }

    /// Records in the answer and the authority section.
    pub(super) fn counts(&self) -> (u16, u16) {
        self.counts
    }

    /// A response that holds it.
    fn as_packet(&self, asked: &Asked<'_>) -> Vec<u8> {
        let name = asked.name.as_wire();
        let (answers, authorities) = self.counts;
        let mut packet = Vec::with_capacity(HEADER + name.len() + 4 + self.body.len());
        packet.extend_from_slice(&[0, 0, 0x80, 0, 0, 1]);
        packet.extend_from_slice(&answers.to_be_bytes());
        packet.extend_from_slice(&authorities.to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(name);
        packet.extend_from_slice(&asked.qtype.to_be_bytes());
        packet.extend_from_slice(&asked.qclass.to_be_bytes());
        packet.extend_from_slice(&self.body);
        packet
    }

    fn read_counted(bytes: &[u8], asked: &Asked<'_>, strip_ech: bool, steps: &mut Steps) -> Result<Self, BadAnswer> {
        let packet = Packet::read(bytes, (asked.name, asked.qtype, asked.qclass), steps)?;
        let chain = Chain::follow(&packet, asked, steps)?;
        let mut reading = Reading {
            packet: &packet,
            asked,
            steps,
            body: Body::new(bytes, asked.name, strip_ech),
            answers: 0,
            authorities: 0,
            shortest: u32::MAX,
            dnames: HashSet::new(),
        };
        let found = reading.push_chain(&chain)?;
        let negative = packet.rcode == Rcode::NXDOMAIN || !found;
        let proven = reading.push_authority(chain.end(asked), negative)?;
        let complete =
            matches!(packet.rcode, Rcode::NOERROR | Rcode::NXDOMAIN) && !packet.truncated && (!negative || proven);
        let Reading { body, answers, authorities, shortest, .. } = reading;
        let mut aliases = chain.aliases;
        aliases.extend(body.aliases);
        Ok(Self {
            rcode: packet.rcode,
            authentic: packet.authentic && !strip_ech,
            truncated: packet.truncated,
            negative,
            has_ech: body.has_ech,
            ttl: complete.then_some(shortest),
            counts: (answers, authorities),
            body: body.bytes.into(),
            ttl_places: body.ttl_places.into(),
            aliases: aliases.into(),
            addresses: body.addresses.into(),
            errors: packet.errors.into(),
        })
    }
}

/// An answer on its way from packet to body.
struct Reading<'r, 'p> {
    packet: &'r Packet<'p>,
    asked: &'r Asked<'r>,
    steps: &'r mut Steps,
    body: Body<'p>,
    answers: u16,
    authorities: u16,
    /// The shortest TTL of what decides how long the answer holds.
    shortest: u32,
    /// Where the owners of the DNAMEs stand that have been written.
    dnames: HashSet<usize>,
}

impl Reading<'_, '_> {
    /// Writes the chain and the records at its end; says whether anything of the asked type was among them.
    fn push_chain(&mut self, chain: &Chain) -> Result<bool, BadAnswer> {
        // The question's name, which every message has at this place.
        let mut place = u16::try_from(HEADER).ok();
        for link in &chain.links {
            if let Some(dname) = link.dname.filter(|dname| !self.dnames.contains(&dname.owner)) {
                self.push_answer(&dname, Owner::AsRead)?;
                let owner = read_name(self.packet.bytes, dname.owner, self.steps)?;
                self.push_signatures(owner.name(), Owner::AsRead, rtype::DNAME)?;
            }
            place = self.push_link(link, place)?;
        }
        // Who asks for the alias itself has it now.
        if self.asked.qtype == rtype::CNAME {
            return Ok(!chain.links.is_empty());
        }
        let (end, owner) = (chain.end(self.asked), place.map_or(Owner::AsRead, Owner::At));
        if self.asked.qtype == rtype::ANY {
            // An alias is an answer to this question too.
            return Ok(self.push_owned(end, owner, |_, _| true)? || !chain.links.is_empty());
        }
        let qtype = self.asked.qtype;
        let found = self.push_owned(end, owner, |_, record| record.rtype == qtype)?;
        if qtype != rtype::RRSIG {
            self.push_signatures(end, owner, qtype)?;
        }
        Ok(found)
    }

    /// Writes an alias and what belongs to it; gives the place of its target.
    fn push_link(&mut self, link: &Link, place: Option<u16>) -> Result<Option<u16>, BadAnswer> {
        let owner = place.map_or(Owner::AsRead, Owner::At);
        let name = link.name.as_name();
        let target = match (&link.cname, &link.dname) {
            (Some(cname), _) => self.push_answer(cname, owner)?,
            (None, Some(dname)) => {
                let pointer = place.map(|offset| (0xc000 | offset).to_be_bytes());
                let owner = pointer.as_ref().map_or(name.as_wire(), |pointer| pointer.as_slice());
                self.answers += 1;
                self.body.push_alias(owner, dname.class, dname.ttl, link.target.as_name())?
            }
            (None, None) => None,
        };
        if self.asked.qtype == rtype::ANY {
            self.push_owned(name, owner, |_, record| record.rtype != rtype::CNAME)?;
        } else if link.cname.is_some() {
            self.push_signatures(name, owner, rtype::CNAME)?;
        }
        Ok(target)
    }

    fn push_answer(&mut self, record: &Record, owner: Owner) -> Result<Option<u16>, BadAnswer> {
        // A DNAME may serve several aliases of a chain, and be asked for with ANY besides.
        if record.rtype == rtype::DNAME && !self.dnames.insert(record.owner) {
            return Ok(None);
        }
        self.answers += 1;
        self.shortest = self.shortest.min(record.ttl);
        self.body.push(record, owner, record.ttl, self.steps)
    }

    /// Writes the signatures over the records of one name and type, if DNSSEC records were asked for.
    fn push_signatures(&mut self, name: NameRef<'_>, owner: Owner, rtype: u16) -> Result<(), BadAnswer> {
        if self.asked.dnssec_ok {
            self.push_owned(name, owner, |packet, record| packet.is_signature(record, rtype))?;
        }
        Ok(())
    }

    /// Writes those records of the answer section that a name owns and that are wanted; says whether there were any.
    fn push_owned(
        &mut self,
        name: NameRef<'_>,
        owner: Owner,
        is_wanted: impl Fn(&Packet<'_>, &Record) -> bool,
    ) -> Result<bool, BadAnswer> {
        let packet = self.packet;
        let mut found = false;
        for record in packet.answers.iter().filter(|record| record.class == self.asked.qclass) {
            self.steps.spend()?;
            if record.holds_data()
                && is_wanted(packet, record)
                && is_name(packet.bytes, record.owner, name, self.steps)?
            {
                self.push_answer(record, owner)?;
                found = true;
            }
        }
        Ok(found)
    }

    /// Writes what proves an absence; says whether an SOA told how long it holds.
    fn push_authority(&mut self, end: NameRef<'_>, negative: bool) -> Result<bool, BadAnswer> {
        let packet = self.packet;
        let mut zone = None;
        for record in packet.authorities.iter().filter(|record| record.class == self.asked.qclass) {
            self.steps.spend()?;
            if record.rtype == rtype::SOA && negative && zone.is_none() {
                let owner = read_name(packet.bytes, record.owner, self.steps)?;
                if end.is_within(owner.name()) {
                    zone = Some(owner);
                    // The record itself ends when the absence does: RFC 2308 section 5.
                    let ttl = record.ttl.min(packet.last_number(record));
                    self.shortest = self.shortest.min(ttl);
                    self.push_authority_record(record, ttl)?;
                }
            } else if self.asked.dnssec_ok && packet.is_proof(record, negative) {
                self.push_authority_record(record, record.ttl)?;
            }
        }
        Ok(zone.is_some())
    }

    fn push_authority_record(&mut self, record: &Record, ttl: u32) -> Result<(), BadAnswer> {
        self.authorities += 1;
        self.body.push(record, Owner::AsRead, ttl, self.steps).map(drop)
    }
}

#[cfg(test)]
mod tests;
