//! Patterns made findable: for a name, the most specific of a million, by one probe for each of its labels.
//!
//! The records lie in an arena. The index holds offsets into it, searched by the hash of a suffix; a record
//! counts only where its name is the same, byte for byte. Patterns with stars in the middle hang in a small
//! tree of labels from the right, whose edges are hashed too. A line of a list takes some 25 to 30 bytes.

use std::cmp::Reverse;

use hashbrown::HashTable;

use super::{
    arena::{Arena, Name, Stored},
    judge::Witness,
    path::{Hashing, Path},
    pattern::{Pattern, Rank, STAR, Shape},
    rule::Origin,
    verdict::RuleId,
};
use crate::{
    name::{DomainName, MAX_NAME},
    problem::Place,
};

/// What sets the hash of "an allowed name lies below this one" apart from the name's own.
const ABOVE: u64 = 0x9e37_79b9_7f4a_7c15;

const FLAG_ABOVE: u8 = 4;
const FLAG_ALLOWS: u8 = 8;
const FLAG_LISTED: u8 = 16;

/// A set of patterns, each with its decision and rule.
#[derive(Debug, Default)]
pub(super) struct Table {
    arena: Arena,
    index: HashTable<u32>,
    stars: Option<Box<Stars>>,
    places: Vec<Place>,
    lists: Vec<Box<str>>,
    patterns: usize,
    /// A bit for each number of labels that an indexed name has: suffixes of other lengths need no probe.
    lengths: u128,
}

/// What is known of a pattern besides what it matches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    /// Allows rather than blocks.
    pub(super) allows: bool,
    /// Whose pattern it is.
    pub(super) rule: RuleId,
    /// Where it was read.
    pub(super) spot: Spot<'a>,
}

/// Where a pattern was read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spot<'a> {
    /// In a configuration file or pack.
    Place(&'a Place),
    /// On a line of a list, that [`Table::add_list`] gave the number.
    Line(u32, u32),
}

/// The winner among the patterns that match; greater wins.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Found {
    /// How specific it is.
    pub(super) rank: Rank,
    /// Blocks rather than allows, which wins on a tie.
    pub(super) blocks: bool,
    /// Whose it is; on a further tie the first of the file.
    pub(super) rule: Reverse<RuleId>,
    /// Which it is.
    pub(super) record: Reverse<u32>,
}

/// A pattern as it lies in the arena.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    offset: u32,
    flags: u8,
    /// The name it bears.
    pub(super) name: Name<'a>,
    /// Whose it is.
    pub(super) rule: RuleId,
    spot: (u32, u32),
}

impl Table {
    /// Makes room for patterns, and for those of lists of so many bytes, so that growing does not hash and copy
    /// everything again.
    pub(super) fn reserve(&mut self, hashing: &Hashing, patterns: usize, bytes: usize) {
        let arena = &mut self.arena;
        arena.share(patterns, bytes);
        self.index.reserve(patterns, |&offset| hash_of(hashing, arena, offset));
    }

    /// Gives back what was reserved and not used. Nothing may be added afterwards.
    pub(super) fn finish(&mut self, hashing: &Hashing) {
        let arena = &mut self.arena;
        arena.finish();
        self.index.shrink_to_fit(|&offset| hash_of(hashing, arena, offset));
        self.places.shrink_to_fit();
    }

    /// Announces a list file; the number goes into [`Spot::Line`].
    pub(super) fn add_list(&mut self, path: &str) -> u32 {
        self.lists.push(path.into());
        number(self.lists.len() - 1)
    }

    /// Adds a pattern of the path's name; the same pattern with the same decision and rule is kept once. `false`: the
    /// table is full.
    pub(super) fn insert(&mut self, shape: Shape, path: &Path<'_>, entry: Entry<'_>) -> bool {
        let flags = shape as u8 | if entry.allows { FLAG_ALLOWS } else { 0 };
        if shape == Shape::Middle {
            if self.has_starred(flags, path, entry.rule) {
                return true;
            }
            let Some(offset) = self.append(flags, path.wire(), entry) else { return false };
            self.stars.get_or_insert_default().insert(&self.arena, path, offset);
            self.patterns += 1;
            return true;
        }
        let Some(whole) = path.suffixes().next() else { return true };
        if !self.has(whole.hash, flags, whole.wire, entry.rule) {
            let offset = match entry.spot {
                Spot::Line(list, line) => {
                    self.arena.append_sharing(flags | FLAG_LISTED, path, entry.rule, (list, line))
                }
                Spot::Place(_) => self.append(flags, whole.wire, entry),
            };
            let Some(offset) = offset else { return false };
            self.index_record(path.hashing, whole.hash, offset);
            self.lengths |= 1 << whole.labels;
            self.patterns += 1;
        }
        // RFC 8020: NXDOMAIN says that nothing exists below. Where something allowed does, NODATA has to be said.
        let shelters = entry.allows && matches!(shape, Shape::Exact | Shape::Within);
        path.suffixes().skip(1).take_while(|_| shelters).all(|parent| {
            let hash = parent.hash ^ ABOVE;
            if self.has(hash, FLAG_ABOVE, parent.wire, entry.rule) {
                return true;
            }
            let Some(offset) = self.append(FLAG_ABOVE, parent.wire, entry) else { return false };
            self.index_record(path.hashing, hash, offset);
            true
        })
    }

    /// How many different patterns it holds.
    pub(super) fn len(&self) -> usize {
        self.patterns
    }

    /// Bytes it takes, in the arena and the index.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.arena.size() + self.index.allocation_size()
    }

    /// The most specific of the active patterns that match; on a tie the one that blocks.
    pub(super) fn best<W: Witness>(
        &self,
        path: &Path<'_>,
        is_active: impl Fn(RuleId) -> bool,
        witness: &mut W,
    ) -> Option<Found> {
        let mut best = None;
        if self.patterns == 0 {
            return best;
        }
        let mut consider = |record: Record<'_>, labels: usize| {
            let active = is_active(record.rule);
            witness.candidate(self, &record, labels, active);
            if active {
                best = best.max(Some(record.found(labels)));
            }
            best.is_some()
        };
        for suffix in path.suffixes() {
            let whole = suffix.labels == path.labels();
            let mut decided = false;
            if self.lengths >> suffix.labels & 1 == 1 {
                self.for_each(suffix.hash, |offset| {
                    if let Some(record) = self.named(offset, suffix.wire)
                        && record.applies(whole)
                    {
                        decided = consider(record, suffix.labels) || decided;
                    }
                });
            }
            if whole && let Some(stars) = &self.stars {
                stars.visit(&self.arena, path, &mut |offset| {
                    if let Some(record) = self.record(offset) {
                        decided = consider(record, path.labels()) || decided;
                    }
                });
            }
            // What follows is shorter, hence less specific; only who wants to know everything reads on.
            if decided && !W::CURIOUS {
                break;
            }
        }
        best
    }

    /// Does an active exact or suffix pattern that allows lie below this name?
    pub(super) fn has_allowed_below(&self, path: &Path<'_>, is_active: impl Fn(RuleId) -> bool) -> bool {
        let Some(whole) = path.suffixes().next() else { return false };
        self.index.iter_hash(whole.hash ^ ABOVE).any(|&offset| {
            self.named(offset, whole.wire)
                .is_some_and(|record| record.flags & FLAG_ABOVE != 0 && is_active(record.rule))
        })
    }

    /// Every record of a pattern, in the order in which they were added.
    pub(super) fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let all = self.arena.records().map(|(offset, stored)| Record::new(offset, stored));
        all.filter(|record| record.flags & FLAG_ABOVE == 0)
    }

    /// The record that won.
    pub(super) fn record_of(&self, found: &Found) -> Option<Record<'_>> {
        self.record(found.record.0)
    }

    /// Where a pattern was read.
    pub(super) fn origin(&self, record: &Record<'_>) -> Option<Origin> {
        let (first, second) = record.spot;
        if record.flags & FLAG_LISTED == 0 {
            return self.places.get(first as usize).cloned().map(Origin::Place);
        }
        let path = self.lists.get(first as usize)?;
        Some(Origin::Line { path: path.clone(), line: second })
    }

    /// Calls `visit` for each offset that may have this hash. A search that nothing ends is hashbrown's tightest loop.
    fn for_each(&self, hash: u64, mut visit: impl FnMut(u32)) {
        self.index.find(hash, |&offset| {
            visit(offset);
            false
        });
    }

    fn has(&self, hash: u64, flags: u8, wire: &[u8], rule: RuleId) -> bool {
        self.index.iter_hash(hash).any(|&offset| {
            self.named(offset, wire).is_some_and(|old| old.flags & !FLAG_LISTED == flags && old.rule == rule)
        })
    }

    fn has_starred(&self, flags: u8, path: &Path<'_>, rule: RuleId) -> bool {
        let mut found = false;
        let mut compare = |offset| {
            let old = self.named(offset, path.wire());
            found |= old.is_some_and(|old| old.flags & !FLAG_LISTED == flags && old.rule == rule);
        };
        self.stars.iter().for_each(|stars| stars.visit(&self.arena, path, &mut compare));
        found
    }

    fn index_record(&mut self, hashing: &Hashing, hash: u64, offset: u32) {
        let arena = &self.arena;
        self.index.insert_unique(hash, offset, |&offset| hash_of(hashing, arena, offset));
    }

    fn append(&mut self, flags: u8, wire: &[u8], entry: Entry<'_>) -> Option<u32> {
        let (listed, spot) = match entry.spot {
            Spot::Line(list, line) => (FLAG_LISTED, (list, line)),
            Spot::Place(_) if flags & FLAG_ABOVE != 0 => (0, (0, 0)),
            Spot::Place(place) => {
                self.places.push(place.clone());
                (0, (number(self.places.len() - 1), 0))
            }
        };
        self.arena.append(flags | listed, wire, entry.rule, spot)
    }

    /// The record at an offset if it bears this name.
    fn named(&self, offset: u32, wire: &[u8]) -> Option<Record<'_>> {
        self.arena.named(offset, wire).map(|stored| Record::new(offset, stored))
    }

    fn record(&self, offset: u32) -> Option<Record<'_>> {
        self.arena.record(offset).map(|stored| Record::new(offset, stored))
    }
}

impl<'a> Record<'a> {
    fn new(offset: u32, Stored { flags, name, rule, spot }: Stored<'a>) -> Self {
        Self { offset, flags, name, rule, spot }
    }

    /// The pattern, written out.
    pub(super) fn pattern(&self) -> Option<Pattern> {
        let mut room = [0; MAX_NAME];
        Some(Pattern { shape: self.shape()?, name: DomainName::from_wire(self.name.whole(&mut room)).ok()? })
    }

    /// Does it block?
    pub(super) fn blocks(&self) -> bool {
        self.flags & FLAG_ALLOWS == 0
    }

    /// What it is worth against others; `labels` is the length of the name it bears.
    pub(super) fn found(&self, labels: usize) -> Found {
        Found {
            rank: Rank::new(self.shape().unwrap_or(Shape::Below), labels),
            blocks: self.blocks(),
            rule: Reverse(self.rule),
            record: Reverse(self.offset),
        }
    }

    /// Given that its name is the asked one (`whole`) or a parent of it: does it match?
    fn applies(&self, whole: bool) -> bool {
        match self.shape() {
            Some(Shape::Exact) => whole,
            Some(Shape::Within) => true,
            Some(Shape::Below) => !whole,
            Some(Shape::Middle) | None => false,
        }
    }

    fn shape(&self) -> Option<Shape> {
        let shapes = [Shape::Below, Shape::Within, Shape::Middle, Shape::Exact];
        if self.flags & FLAG_ABOVE == 0 { shapes.get(usize::from(self.flags & 3)).copied() } else { None }
    }
}

/// The patterns with stars: a tree of labels from the right.
#[derive(Debug)]
struct Stars {
    nodes: Vec<Node>,
    /// Children by label: hashed by parent and label.
    edges: HashTable<u32>,
    /// Records, chained by the place of the next one plus one; 0 ends a chain.
    patterns: Vec<(u32, u32)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    parent: u32,
    /// Where its label lies in the arena; unused for a star.
    label: u32,
    /// The child that takes any label; 0 for none.
    star: u32,
    /// Head of the chain of patterns that end here.
    first: u32,
    hash: u64,
}

impl Default for Stars {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], edges: HashTable::new(), patterns: Vec::new() }
    }
}

impl Stars {
    fn insert(&mut self, arena: &Arena, path: &Path<'_>, offset: u32) {
        let mut at = 0;
        for index in (0..path.labels()).rev() {
            let label = number(offset as usize + 1 + path.start(index));
            at = self.child_or_new(path.hashing, arena, at, path.label(index), label);
        }
        let place = number(self.patterns.len() + 1);
        if let Some(node) = self.nodes.get_mut(at as usize) {
            self.patterns.push((offset, std::mem::replace(&mut node.first, place)));
        }
    }

    fn child_or_new(&mut self, hashing: &Hashing, arena: &Arena, parent: u32, text: &[u8], label: u32) -> u32 {
        let next = number(self.nodes.len());
        let node = Node { parent, label, ..Node::default() };
        let above = self.node(parent);
        if text == STAR {
            if above.star != 0 {
                return above.star;
            }
            if let Some(above) = self.nodes.get_mut(parent as usize) {
                above.star = next;
            }
            // No label is empty: a star's hash is nobody else's.
            self.nodes.push(Node { hash: hashing.extend(above.hash, b""), ..node });
            return next;
        }
        let hash = hashing.extend(above.hash, text);
        if let Some(child) = self.child(arena, parent, hash, text) {
            return child;
        }
        self.nodes.push(Node { hash, ..node });
        let nodes = &self.nodes;
        self.edges.insert_unique(hash, next, |&node| nodes.get(node as usize).map_or(0, |node| node.hash));
        next
    }

    /// Calls `hit` for each record that matches. Walks only nodes that exist, each at most once.
    fn visit(&self, arena: &Arena, path: &Path<'_>, hit: &mut impl FnMut(u32)) {
        self.descend(arena, path, (0, path.labels()), hit);
    }

    /// One label further to the left. As deep as the name has labels, at most 127.
    fn descend(&self, arena: &Arena, path: &Path<'_>, (at, left): (u32, usize), hit: &mut impl FnMut(u32)) {
        let node = self.node(at);
        let Some(index) = left.checked_sub(1) else {
            let mut next = node.first;
            while let Some(&(offset, following)) =
                next.checked_sub(1).and_then(|place| self.patterns.get(place as usize))
            {
                hit(offset);
                next = following;
            }
            return;
        };
        let text = path.label(index);
        if let Some(child) = self.child(arena, at, path.hashing.extend(node.hash, text), text) {
            self.descend(arena, path, (child, index), hit);
        }
        if node.star != 0 {
            self.descend(arena, path, (node.star, index), hit);
        }
    }

    fn node(&self, at: u32) -> Node {
        self.nodes.get(at as usize).copied().unwrap_or_default()
    }

    fn child(&self, arena: &Arena, parent: u32, hash: u64, text: &[u8]) -> Option<u32> {
        let is_it = |&child: &u32| {
            let node = self.node(child);
            node.parent == parent && arena.label(node.label) == text
        };
        self.edges.find(hash, is_it).copied()
    }
}

fn hash_of(hashing: &Hashing, arena: &Arena, offset: u32) -> u64 {
    let Some(record) = arena.record(offset) else { return 0 };
    let hash = hashing.whole(record.name.whole(&mut [0; MAX_NAME]));
    if record.flags & FLAG_ABOVE == 0 { hash } else { hash ^ ABOVE }
}

/// Counts of things that lie in the arena, which ends before 4 GiB.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
