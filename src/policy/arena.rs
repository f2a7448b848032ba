//! Where the patterns of a table lie: a few bytes each, one behind the other.
//!
//! A record is flags, name, rule, and where it was read. The names of lists end alike: what several have in common
//! lies once in a block of its own, and a pointer stands for it, much as in DNS messages (RFC 1035 section 4.1.4).

use hashbrown::HashTable;

use super::{
    bytes::{push_number, take_number, wire_length},
    path::{Path, Suffix},
    verdict::RuleId,
};
use crate::name::{MAX_LABEL, MAX_NAME};

/// Records, found by their offset.
#[derive(Debug, Default)]
pub(super) struct Arena {
    bytes: Vec<u8>,
    /// Ends of names, in wire form.
    ends: Vec<u8>,
    /// Only while it is filled.
    sharing: Option<Box<Sharing>>,
}

/// A record's bytes, taken apart.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) flags: u8,
    pub(super) name: Name<'a>,
    pub(super) rule: RuleId,
    /// Two numbers that say where it was read.
    pub(super) spot: (u32, u32),
}

/// A name in wire form, in one piece or two.
#[derive(Clone, Copy)]
pub(super) struct Name<'a> {
    front: &'a [u8],
    end: &'a [u8],
}

/// Which ends of names have come before.
#[derive(Debug)]
struct Sharing {
    /// Hashes and offsets of what lies in [`Arena::ends`].
    known: HashTable<(u64, u32)>,
    /// A bit for each hash that came once; two ends may share one, which costs a few bytes and nothing else.
    seen: Box<[u64]>,
}

/// Begins a pointer, where the length of a label would be.
const POINTER: u8 = 0xc0;

/// Bytes of a pointer, which has 22 bits for the offset.
const POINTER_SIZE: usize = 3;
const MAX_ENDS: usize = 1 << 22;

/// Bytes that a record has besides its entry in a list, where there are not millions of rules.
const MOST_BESIDES: usize = 6;

/// Bits for seen ends for each name, and at most: 2 MiB.
const SEEN_A_NAME: usize = 4;
const MAX_SEEN: usize = 1 << 24;

impl Arena {
    /// From now on listed names share their ends. So many may come, from lists of so many bytes.
    pub(super) fn share(&mut self, names: usize, bytes: usize) {
        // At once: growing would leave twice the memory behind.
        self.bytes.reserve_exact(bytes + MOST_BESIDES * names);
        let bits = names.saturating_mul(SEEN_A_NAME).clamp(64, MAX_SEEN).next_power_of_two();
        self.sharing = Some(Box::new(Sharing { known: HashTable::new(), seen: vec![0; bits / 64].into() }));
    }

    /// Nothing more will come: gives back what is not used.
    pub(super) fn finish(&mut self) {
        self.sharing = None;
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// Adds a record with the whole name, whose bytes then begin one behind the offset. `None`: there is no room.
    pub(super) fn append(&mut self, flags: u8, wire: &[u8], rule: RuleId, spot: (u32, u32)) -> Option<u32> {
        let offset = self.begin(flags)?;
        self.bytes.extend_from_slice(wire);
        self.end(rule, spot);
        Some(offset)
    }

    /// Adds a record whose name may share its end. `None`: there is no room.
    pub(super) fn append_sharing(&mut self, flags: u8, path: &Path<'_>, rule: RuleId, spot: (u32, u32)) -> Option<u32> {
        let Some((end, pointer)) = self.shared_end(path) else { return self.append(flags, path.wire(), rule, spot) };
        let offset = self.begin(flags)?;
        let front = path.wire().len() - end.wire.len();
        self.bytes.extend_from_slice(path.wire().get(..front)?);
        let [_, high, middle, low] = pointer.to_be_bytes();
        self.bytes.extend_from_slice(&[POINTER | high, middle, low]);
        self.end(rule, spot);
        Some(offset)
    }

    fn begin(&mut self, flags: u8) -> Option<u32> {
        let offset = u32::try_from(self.bytes.len()).ok()?;
        self.bytes.push(flags);
        Some(offset)
    }

    fn end(&mut self, rule: RuleId, spot: (u32, u32)) {
        [rule.0, spot.0, spot.1].into_iter().for_each(|value| push_number(&mut self.bytes, value));
    }

    /// The longest end of a name that came before, and where it lies.
    fn shared_end<'p>(&mut self, path: &Path<'p>) -> Option<(Suffix<'p>, u32)> {
        let Self { ends, sharing, .. } = self;
        let sharing = sharing.as_mut()?;
        let mut worth = path.suffixes().skip(1).take_while(|suffix| suffix.wire.len() > POINTER_SIZE);
        worth.find_map(|suffix| Some((suffix, sharing.place(ends, suffix)?)))
    }

    /// Every record with its offset, in the order in which they were added.
    pub(super) fn records(&self) -> impl Iterator<Item = (u32, Stored<'_>)> {
        let mut rest = &*self.bytes;
        std::iter::from_fn(move || {
            let offset = u32::try_from(self.bytes.len() - rest.len()).ok()?;
            Some((offset, self.take_record(&mut rest)?))
        })
    }

    /// The record at an offset.
    pub(super) fn record(&self, offset: u32) -> Option<Stored<'_>> {
        self.take_record(&mut self.bytes.get(offset as usize..)?)
    }

    /// The record at an offset if it bears this name.
    pub(super) fn named(&self, offset: u32, wire: &[u8]) -> Option<Stored<'_>> {
        let (&flags, mut rest) = self.bytes.get(offset as usize..)?.split_first()?;
        // A name that begins with a whole name is that name.
        if let Some((front, mut rest)) = rest.split_at_checked(wire.len())
            && front == wire
        {
            return Stored::take(flags, Name { front, end: &[] }, &mut rest);
        }
        let name = self.take_name(&mut rest)?;
        if name.is(wire) { Stored::take(flags, name, &mut rest) } else { None }
    }

    fn take_record<'a>(&'a self, bytes: &mut &'a [u8]) -> Option<Stored<'a>> {
        let (&flags, rest) = bytes.split_first()?;
        *bytes = rest;
        let name = self.take_name(bytes)?;
        Stored::take(flags, name, bytes)
    }

    fn take_name<'a>(&'a self, bytes: &mut &'a [u8]) -> Option<Name<'a>> {
        let mut at = 0;
        loop {
            let length = *bytes.get(at)?;
            if length == 0 {
                let (front, rest) = bytes.split_at_checked(at + 1)?;
                *bytes = rest;
                return Some(Name { front, end: &[] });
            }
            if usize::from(length) > MAX_LABEL {
                let (front, rest) = bytes.split_at_checked(at)?;
                let (&[first, middle, low], rest) = rest.split_first_chunk::<POINTER_SIZE>()?;
                *bytes = rest;
                let end = self.ends.get(u32::from_be_bytes([0, first & !POINTER, middle, low]) as usize..)?;
                return Some(Name { front, end: end.get(..wire_length(end))? });
            }
            at += 1 + usize::from(length);
        }
    }

    /// The label at an offset into the name of a record that was added with its whole name.
    pub(super) fn label(&self, at: u32) -> &[u8] {
        let Some((&length, rest)) = self.bytes.get(at as usize..).and_then(<[u8]>::split_first) else { return &[] };
        rest.get(..usize::from(length)).unwrap_or_default()
    }

    /// Bytes it takes.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity()
    }
}

impl<'a> Stored<'a> {
    fn take(flags: u8, name: Name<'a>, bytes: &mut &[u8]) -> Option<Self> {
        let rule = RuleId(take_number(bytes)?);
        let spot = (take_number(bytes)?, take_number(bytes)?);
        Some(Self { flags, name, rule, spot })
    }
}

impl Name<'_> {
    fn is(self, wire: &[u8]) -> bool {
        wire.split_at_checked(self.front.len()).is_some_and(|(front, end)| front == self.front && end == self.end)
    }

    /// The name in one piece, in `room`.
    pub(super) fn whole(self, room: &mut [u8; MAX_NAME]) -> &[u8] {
        let length = self.front.len() + self.end.len();
        let Some(name) = room.get_mut(..length) else { return &[0] };
        let (front, end) = name.split_at_mut(self.front.len());
        front.copy_from_slice(self.front);
        end.copy_from_slice(self.end);
        name
    }
}

impl Sharing {
    /// Where an end lies, if it is not the first time that it comes.
    fn place(&mut self, ends: &mut Vec<u8>, suffix: Suffix<'_>) -> Option<u32> {
        let Suffix { wire, hash, .. } = suffix;
        let is_it = |&(_, at): &(u64, u32)| ends.get(at as usize..).is_some_and(|end| end.starts_with(wire));
        if let Some(&(_, at)) = self.known.find(hash, is_it) {
            return Some(at);
        }
        // The table takes its place from the low bits of the same hash; any others do.
        let bit = (hash >> 32) as usize & (self.seen.len() * 64 - 1);
        let word = self.seen.get_mut(bit / 64)?;
        let seen = std::mem::replace(word, *word | 1 << (bit % 64)) >> (bit % 64) & 1 == 1;
        if !seen || ends.len() + wire.len() > MAX_ENDS {
            return None;
        }
        let at = u32::try_from(ends.len()).ok()?;
        ends.extend_from_slice(wire);
        self.known.insert_unique(hash, (hash, at), |&(hash, _)| hash);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::path::Hashing, *};
    use crate::name::DomainName;

    #[test]
    fn names_that_share_an_end_read_back_whole_and_are_told_apart() {
        let hashing = Hashing::default();
        let mut arena = Arena::default();
        arena.share(100, 1000);
        let texts: Vec<String> = ["", "a.", "b.a.", "c.b.a.", r"\003com."]
            .iter()
            .flat_map(|front| ["com", "x.com", "longer.x.com", "example"].map(|end| format!("{front}{end}")))
            .collect();
        let names: Vec<DomainName> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let offsets: Vec<u32> = (0..)
            .zip(&names)
            .map(|(number, name)| {
                let path = Path::new(&hashing, name.as_wire());
                arena.append_sharing(3, &path, RuleId(number), (7, 1000 * number)).unwrap()
            })
            .collect();
        arena.finish();
        assert_eq!(arena.records().map(|(offset, _)| offset).collect::<Vec<_>>(), offsets);
        for (number, &offset) in (0..).zip(&offsets) {
            let record = arena.record(offset).unwrap();
            assert_eq!((record.flags, record.rule, record.spot), (3, RuleId(number), (7, 1000 * number)));
            assert_eq!(record.name.whole(&mut [0; MAX_NAME]), names[number as usize].as_wire());
            for (other, name) in (0..).zip(&names) {
                assert_eq!(arena.named(offset, name.as_wire()).is_some(), other == number, "{name} at {number}");
            }
        }
        let whole: usize = names.iter().map(|name| name.as_wire().len()).sum();
        assert!(arena.ends.len() > 5 && arena.ends.len() < whole / 2, "{} of {whole}", arena.ends.len());
    }
}
