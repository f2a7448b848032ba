//! A name cut at its labels, with one hash for each of its suffixes, computed once from the right.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;

/// Most labels a name can have: each takes two bytes of 255 at least.
const MAX_LABELS: usize = 127;

/// Labels of most names at most; room for the hashes of more is only made where there are more.
const FEW: usize = 20;

/// Hashes labels with a seed of this process's own.
#[derive(Clone, Debug, Default)]
pub(super) struct Hashing(RandomState);

/// A name on its way through the tables. Lives on the stack.
pub(super) struct Path<'a> {
    /// What hashed it.
    pub(super) hashing: &'a Hashing,
    wire: &'a [u8],
    starts: [u8; MAX_LABELS],
    hashes: [u64; FEW],
    more_hashes: Option<[u64; MAX_LABELS - FEW]>,
    labels: usize,
}

/// A name or one of its parents.
#[derive(Clone, Copy)]
pub(super) struct Suffix<'a> {
    /// In wire form.
    pub(super) wire: &'a [u8],
    /// Of all its labels.
    pub(super) hash: u64,
    /// How many labels it has.
    pub(super) labels: usize,
}

impl Hashing {
    /// The hash of what `hash` stands for with one more label on the left.
    pub(super) fn extend(&self, hash: u64, label: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write_u64(hash);
        hasher.write(label);
        hasher.finish()
    }

    /// The hash of a whole name in wire form.
    pub(super) fn whole(&self, wire: &[u8]) -> u64 {
        Path::new(self, wire).suffixes().next().map_or(0, |suffix| suffix.hash)
    }
}

impl<'a> Path<'a> {
    /// Cuts and hashes a name in canonical wire form. Inlined, or the kilobyte is copied to the caller.
    #[inline(always)]
    pub(super) fn new(hashing: &'a Hashing, wire: &'a [u8]) -> Self {
        let mut path = Self { hashing, wire, starts: [0; MAX_LABELS], hashes: [0; FEW], more_hashes: None, labels: 0 };
        let mut at = 0;
        while let Some(&length) = wire.get(at)
            && length > 0
            && let Ok(start) = u8::try_from(at)
            && let Some(slot) = path.starts.get_mut(path.labels)
        {
            *slot = start;
            path.labels += 1;
            at += 1 + usize::from(length);
        }
        if path.labels > FEW {
            path.more_hashes = Some([0; MAX_LABELS - FEW]);
        }
        let mut hash = 0;
        for index in (0..path.labels).rev() {
            hash = hashing.extend(hash, path.label(index));
            let slot = match index.checked_sub(FEW) {
                None => path.hashes.get_mut(index),
                Some(further) => path.more_hashes.as_mut().and_then(|more| more.get_mut(further)),
            };
            if let Some(slot) = slot {
                *slot = hash;
            }
        }
        path
    }

    /// The hash of the name without so many labels in front.
    fn hash(&self, index: usize) -> u64 {
        let hash = match index.checked_sub(FEW) {
            None => self.hashes.get(index),
            Some(further) => self.more_hashes.as_ref().and_then(|more| more.get(further)),
        };
        hash.copied().unwrap_or_default()
    }

    /// The name in wire form.
    pub(super) fn wire(&self) -> &'a [u8] {
        self.wire
    }

    /// How many labels the name has.
    pub(super) fn labels(&self) -> usize {
        self.labels
    }

    /// A label by its place from the left; empty past the end.
    pub(super) fn label(&self, index: usize) -> &'a [u8] {
        let start = self.start(index);
        let length = self.wire.get(start).map_or(0, |&length| usize::from(length));
        self.wire.get(start + 1..start + 1 + length).unwrap_or_default()
    }

    /// The labels from right to left.
    pub(super) fn labels_from_right(&self) -> impl Iterator<Item = &'a [u8]> + Clone {
        (0..self.labels).rev().map(|index| self.label(index))
    }

    /// Where a label begins in wire form, its length byte included.
    pub(super) fn start(&self, index: usize) -> usize {
        self.starts.get(index).map_or(0, |&start| usize::from(start))
    }

    /// The name and its parents, the longest first, the root left out.
    pub(super) fn suffixes(&self) -> impl Iterator<Item = Suffix<'a>> {
        (0..self.labels).map(|index| Suffix {
            wire: self.wire.get(self.start(index)..).unwrap_or_default(),
            hash: self.hash(index),
            labels: self.labels - index,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::DomainName;

    #[test]
    fn each_suffix_has_the_hash_of_that_name_however_many_labels_there_are() {
        let hashing = Hashing::default();
        for labels in [1, 2, FEW, FEW + 1, MAX_LABELS] {
            let name: DomainName = (0..labels)
                .map(|index| char::from(b'a' + (index % 26) as u8).to_string() + ".")
                .collect::<String>()
                .parse()
                .unwrap();
            let path = Path::new(&hashing, name.as_wire());
            let hashes: Vec<u64> = path.suffixes().map(|suffix| suffix.hash).collect();
            let expected: Vec<u64> = name.as_name().suffixes().map(|suffix| hashing.whole(suffix.as_wire())).collect();
            assert_eq!((hashes.len(), &hashes), (labels, &expected));
            // A hash that was not kept would be 0.
            assert!(!hashes.contains(&0), "{labels}");
        }
    }
}
