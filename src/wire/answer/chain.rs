//! The alias chain of the asked name, found in an answer section whatever the order of its records.

use super::{
    Asked, BadAnswer, MAX_ALIASES,
    packet::{Packet, Record, Steps, is_name, read_name},
};
use crate::{
    name::{DomainName, NameBuffer, NameRef},
    wire::rtype,
};

/// Where the asked name leads.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) links: Vec<Link>,
    /// Every target, and what a DNAME makes where its CNAME says otherwise.
    pub(super) aliases: Vec<DomainName>,
}

/// One alias. One of `dname` and `cname` is there.
#[derive(Debug)]
pub(super) struct Link {
    /// The name that is an alias.
    pub(super) name: DomainName,
    /// The DNAME it lies below.
    pub(super) dname: Option<Record>,
    /// Its CNAME.
    pub(super) cname: Option<Record>,
    /// What it is an alias of.
    pub(super) target: DomainName,
}

/// What a DNAME makes of a name.
struct Made {
    dname: Record,
    owner_length: usize,
    name: DomainName,
}

impl Chain {
    pub(super) fn follow(packet: &Packet<'_>, asked: &Asked<'_>, steps: &mut Steps) -> Result<Self, BadAnswer> {
        let is_alias =
            |record: &&Record| record.class == asked.qclass && matches!(record.rtype, rtype::CNAME | rtype::DNAME);
        let records: Vec<Record> = packet.answers.iter().filter(is_alias).copied().collect();
        let mut chain = Self::default();
        let mut current = asked.name.to_owned();
        while let Some(link) = chain.find_link(packet, &records, &current, steps)? {
            if chain.links.len() == MAX_ALIASES {
                return Err(BadAnswer::TooManyAliases);
            }
            current = link.target.clone();
            let seen = |earlier: &Link| earlier.name == current;
            if link.name == current || chain.links.iter().any(seen) {
                return Err(BadAnswer::AliasLoop);
            }
            chain.aliases.push(current.clone());
            chain.links.push(link);
            // Who asks for the alias itself is not led further.
            if asked.qtype == rtype::CNAME {
                break;
            }
        }
        Ok(chain)
    }

    /// The name at its end.
    pub(super) fn end<'c>(&'c self, asked: &Asked<'c>) -> NameRef<'c> {
        self.links.last().map_or(asked.name, |link| link.target.as_name())
    }

    fn find_link(
        &mut self,
        packet: &Packet<'_>,
        records: &[Record],
        name: &DomainName,
        steps: &mut Steps,
    ) -> Result<Option<Link>, BadAnswer> {
        let mut cname = None;
        let mut dname: Option<Made> = None;
        for record in records {
            if record.rtype == rtype::CNAME {
                if cname.is_none() && is_name(packet.bytes, record.owner, name.as_name(), steps)? {
                    cname = Some(*record);
                }
            } else if let Some(made) = make_name(packet, record, name.as_name(), steps)? {
                // A zone has one that counts; of several the nearest is taken, wherever it stands.
                if dname.as_ref().is_none_or(|other| other.owner_length < made.owner_length) {
                    dname = Some(made);
                }
            }
        }
        let link = |dname, cname, target| Link { name: name.clone(), dname, cname, target };
        Ok(match (cname, dname) {
            (Some(cname), dname) => {
                let target = read_name(packet.bytes, cname.data, steps)?.name().to_owned();
                if let Some(made) = dname.as_ref().filter(|made| made.name != target) {
                    self.aliases.push(made.name.clone());
                }
                Some(link(dname.map(|made| made.dname), Some(cname), target))
            }
            (None, Some(made)) => Some(link(Some(made.dname), None, made.name)),
            (None, None) => None,
        })
    }
}

/// What a DNAME makes of a name below its owner (RFC 6672 section 2.2). A name that would be too long is none: the
/// server says YXDOMAIN.
fn make_name(
    packet: &Packet<'_>,
    dname: &Record,
    name: NameRef<'_>,
    steps: &mut Steps,
) -> Result<Option<Made>, BadAnswer> {
    let owner = read_name(packet.bytes, dname.owner, steps)?;
    if !name.is_within(owner.name()) || name == owner.name() {
        return Ok(None);
    }
    let target = read_name(packet.bytes, dname.data, steps)?;
    let own_labels = name.label_count() - owner.name().label_count();
    let mut made = NameBuffer::new();
    made.clear();
    let mut labels = name.labels().take(own_labels).chain(target.name().labels());
    if labels.any(|label| made.push_label(label).is_err()) {
        return Ok(None);
    }
    let owner_length = owner.name().as_wire().len();
    Ok(made.close().ok().map(|made| Made { dname: *dname, owner_length, name: made.name().to_owned() }))
}
