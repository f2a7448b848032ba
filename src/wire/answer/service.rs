//! The data of SVCB and HTTPS records (RFC 9460 section 2.2), as far as a policy wants to know it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    name::NameBuffer,
    wire::cursor::{Cursor, Malformed},
};

const MANDATORY: u16 = 0;
const IPV4_HINT: u16 = 4;
const ECH: u16 = 5;
const IPV6_HINT: u16 = 6;

/// What a service record says.
pub(super) struct Service<'p> {
    /// Its target; the root stands for the owner itself.
    pub(super) target: NameBuffer,
    /// Its address hints.
    pub(super) hints: Vec<IpAddr>,
    /// It has an `ech` parameter.
    pub(super) has_ech: bool,
    /// Priority and target, as they stand.
    front: &'p [u8],
    /// Key and value of each parameter.
    parameters: Vec<(u16, &'p [u8])>,
}

impl<'p> Service<'p> {
    pub(super) fn read(data: &'p [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(data, 0);
        let mut target = NameBuffer::new();
        cursor.number()?;
        // The target is never compressed.
        cursor.plain_name(&mut target)?;
        let front = data.get(..cursor.position()).unwrap_or_default();
        let mut service = Self { target, hints: Vec::new(), has_ech: false, front, parameters: Vec::new() };
        while !cursor.is_at_end() {
            let (key, length) = (cursor.number()?, cursor.number()?);
            let value = cursor.take(usize::from(length))?;
            if service.parameters.last().is_some_and(|&(last, _)| last >= key) {
                return Err(Malformed);
            }
            service.note(key, value)?;
            service.parameters.push((key, value));
        }
        Ok(service)
    }

    fn note(&mut self, key: u16, value: &[u8]) -> Result<(), Malformed> {
        match key {
            MANDATORY if value.is_empty() || !value.len().is_multiple_of(2) => Err(Malformed),
            IPV4_HINT => self.add_hints(value, |bytes: [u8; 4]| Ipv4Addr::from(bytes).into()),
            IPV6_HINT => self.add_hints(value, |bytes: [u8; 16]| Ipv6Addr::from(bytes).into()),
            ECH => {
                self.has_ech = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add_hints<const N: usize>(&mut self, value: &[u8], address: fn([u8; N]) -> IpAddr) -> Result<(), Malformed> {
        let (hints, rest) = value.as_chunks::<N>();
        if hints.is_empty() || !rest.is_empty() {
            return Err(Malformed);
        }
        self.hints.extend(hints.iter().map(|&bytes| address(bytes)));
        Ok(())
    }

    /// The record's data without `ech`, and without the demand for it.
    pub(super) fn push_without_ech(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.front);
        for &(key, value) in self.parameters.iter().filter(|(key, _)| *key != ECH) {
            if key != MANDATORY {
                push_parameter(key, value, out);
                continue;
            }
            let kept: Vec<u8> =
                value.chunks_exact(2).filter(|pair| *pair != ECH.to_be_bytes()).flatten().copied().collect();
            // A list of nothing may not be there at all.
            if !kept.is_empty() {
                push_parameter(MANDATORY, &kept, out);
            }
        }
    }
}

fn push_parameter(key: u16, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&key.to_be_bytes());
    // It was read from a 16-bit length and is not longer now.
    out.extend_from_slice(&u16::try_from(value.len()).unwrap_or_default().to_be_bytes());
    out.extend_from_slice(value);
}
