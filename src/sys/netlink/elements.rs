//! Elements of nftables' sets, put in and taken out in microseconds, and read back.

use std::{io, net::IpAddr, time::Duration};

use super::{
    message::{Attributes, Request},
    socket::Netfilter,
    tables::{NFGENMSG, inet, nfgenmsg, nftables},
};

const LIST_TABLE: u16 = 1; // NFTA_SET_ELEM_LIST_*
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1; // NFTA_LIST_ELEM
const KEY: u16 = 1; // NFTA_SET_ELEM_*
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const VALUE: u16 = 1; // NFTA_DATA_VALUE

/// An attribute ends at 64 KiB; an element is 60 bytes at most.
const PER_MESSAGE: usize = 1000;
/// What fits into the socket's room with space to spare.
const PER_BATCH: usize = 10_000;

/// What an element is found by: one value, or several in a row, each padded to 4 bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    bytes: [u8; Self::ROOM],
    length: usize,
}

/// An element.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Element {
    /// What it is found by.
    pub key: Key,
    /// How long it stays, or for one that was read, how long it still does; `None` without end.
    pub lifetime: Option<Duration>,
}

impl Default for Key {
    fn default() -> Self {
        Self { bytes: [0; Self::ROOM], length: 0 }
    }
}

impl Key {
    /// Two IPv6 addresses and a port.
    const ROOM: usize = 36;

    /// The same with an address behind it.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }

    /// The same with a port behind it.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.bytes(&port.to_be_bytes())
    }

    /// What does not fit is left out: no key of ours is longer.
    fn bytes(mut self, more: &[u8]) -> Self {
        let end = self.length + more.len();
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(more);
            self.length = end.next_multiple_of(4);
        }
        self
    }

    /// The bytes as the kernel has them.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Netfilter {
    /// Puts elements into sets of a table, all or none for up to ten thousand, and waits until the kernel has them.
    ///
    /// Kernels before 6.12 leave the time of an element that is there as it is, so each is added, deleted and added
    /// again in one transaction: no packet sees it missing. Deleting alone would fail for a new one.
    ///
    /// # Errors
    /// `ENFILE` when a set is full, `ENOENT` when table or set is missing, `EPERM` when somebody else owns it.
    pub fn put(&mut self, table: &str, sets: &[(&str, &[Element])]) -> io::Result<()> {
        self.in_batches(sets, |batch, set, elements| {
            for (message, flags) in [ADD, DELETE, ADD] {
                change(batch, message, flags, (table, set), elements);
            }
        })
    }

    /// Takes elements out of sets, whether they are there or not.
    ///
    /// # Errors
    /// As with [`Self::put`].
    pub fn take_out(&mut self, table: &str, sets: &[(&str, &[Element])]) -> io::Result<()> {
        self.in_batches(sets, |batch, set, elements| {
            for (message, flags) in [ADD, DELETE] {
                change(batch, message, flags, (table, set), elements);
            }
        })
    }

    fn in_batches(
        &mut self,
        sets: &[(&str, &[Element])],
        mut fill: impl FnMut(&mut Request, &str, &[Element]),
    ) -> io::Result<()> {
        let mut batch = self.batch();
        let mut within = 0;
        for (set, elements) in sets {
            for some in elements.chunks(PER_MESSAGE) {
                fill(&mut batch, set, some);
                within += some.len();
                if within >= PER_BATCH {
                    self.commit(batch)?;
                    (batch, within) = (self.batch(), 0);
                }
            }
        }
        if within > 0 { self.commit(batch) } else { Ok(()) }
    }

    /// The elements of a set and how long each still stays. What changes meanwhile may be missing.
    ///
    /// # Errors
    /// `ENOENT` when there is no such set.
    pub fn elements(&mut self, table: &str, set: &str) -> io::Result<Vec<Element>> {
        /// A dump that others' changes interrupt is begun again.
        const TRIES: usize = 3;
        let mut elements = Vec::new();
        for _ in 0..TRIES {
            elements.clear();
            if self.elements_once(table, set, &mut elements)? {
                break;
            }
        }
        Ok(elements)
    }

    fn elements_once(&mut self, table: &str, set: &str, into: &mut Vec<Element>) -> io::Result<bool> {
        let mut request = self.0.request();
        request.message(nftables(libc::NFT_MSG_GETSETELEM), libc::NLM_F_REQUEST | libc::NLM_F_DUMP);
        request.push(&nfgenmsg(inet(), 0)).text(LIST_TABLE, table).text(LIST_SET, set);
        self.0.dump(&request, |message| {
            let list = message.attributes(NFGENMSG).within(LIST_ELEMENTS);
            into.extend(list.filter_map(|(kind, value)| read(kind, Attributes(value))));
        })
    }
}

const ADD: (libc::c_int, libc::c_int) = (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE);
const DELETE: (libc::c_int, libc::c_int) = (libc::NFT_MSG_DELSETELEM, 0);

fn change(batch: &mut Request, message: i32, flags: i32, (table, set): (&str, &str), elements: &[Element]) {
    batch.message(nftables(message), libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags);
    batch.push(&nfgenmsg(inet(), 0)).text(LIST_TABLE, table).text(LIST_SET, set);
    batch.nest(LIST_ELEMENTS, |list| {
        for element in elements {
            list.nest(ELEMENT, |fields| write(fields, element));
        }
    });
}

fn write(fields: &mut Request, element: &Element) {
    fields.nest(KEY, |key| {
        key.attribute(VALUE, element.key.as_bytes());
    });
    if let Some(lifetime) = element.lifetime {
        // 0 would mean "for ever".
        let milliseconds = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX).max(1);
        fields.attribute(TIMEOUT, &milliseconds.to_be_bytes());
    }
}

pub(super) fn read(kind: u16, fields: Attributes<'_>) -> Option<Element> {
    let value = fields.within(KEY).value(VALUE)?;
    let fits = kind == ELEMENT && value.len() <= Key::ROOM;
    let left = fields.long_number(EXPIRATION).or(fields.long_number(TIMEOUT));
    fits.then(|| Element { key: Key::default().bytes(value), lifetime: left.map(Duration::from_millis) })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::netlink::testing::{nft, several_users, within_namespace};

    const SETS: &str = "add table inet t
        add set inet t one { type ipv4_addr; flags timeout; size 4; }
        add set inet t three { type ipv6_addr . ipv6_addr . inet_service; flags timeout; size 200000; }";

    fn one(last: u8, seconds: u64) -> Element {
        let key = Key::default().address(IpAddr::from([192, 0, 2, last]));
        Element { key, lifetime: Some(Duration::from_secs(seconds)) }
    }

    fn three(number: u32) -> Element {
        let address = IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(number)).to_be_bytes());
        let key = Key::default().address(address).address(address).port(80);
        Element { key, lifetime: Some(Duration::from_secs(3600)) }
    }

    #[test]
    fn an_element_is_put_refreshed_read_and_taken_out() {
        within_namespace(|| {
            nft(SETS).unwrap();
            let mut netfilter = Netfilter::open().unwrap();
            netfilter.put("t", &[("one", &[one(1, 100)]), ("three", &[three(7)])]).unwrap();
            netfilter.put("t", &[("one", &[one(1, 1000)])]).unwrap();
            let found = netfilter.elements("t", "one").unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].key, one(1, 0).key);
            assert!(found[0].lifetime.unwrap() > Duration::from_secs(900), "{found:?}");
            assert!(nft("list set inet t three").unwrap().contains("2001:db8::7 . 2001:db8::7 . 80"));
            netfilter.take_out("t", &[("one", &[one(1, 1), one(2, 1)])]).unwrap();
            assert_eq!(netfilter.elements("t", "one").unwrap(), []);
        });
    }

    #[test]
    fn a_full_set_refuses_the_whole_batch() {
        within_namespace(|| {
            nft(SETS).unwrap();
            let mut netfilter = Netfilter::open().unwrap();
            let all: Vec<_> = (1..=5).map(|last| one(last, 60)).collect();
            let error = netfilter.put("t", &[("three", &[three(1)]), ("one", &all)]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
            assert_eq!(netfilter.elements("t", "three").unwrap(), []);
            netfilter.put("t", &[("one", &all[..4])]).unwrap();
            netfilter.put("t", &[("one", &all[..4])]).unwrap();
            let missing = netfilter.put("gone", &[("one", &all)]).unwrap_err();
            assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
        });
    }

    #[test]
    fn an_element_expires_by_itself() {
        within_namespace(|| {
            nft(SETS).unwrap();
            let mut netfilter = Netfilter::open().unwrap();
            let short = Element { lifetime: Some(Duration::from_millis(50)), ..one(1, 0) };
            netfilter.put("t", &[("one", &[short])]).unwrap();
            let until = Instant::now() + Duration::from_secs(5);
            while !netfilter.elements("t", "one").unwrap().is_empty() {
                assert!(Instant::now() < until, "it stays");
            }
        });
    }

    #[test]
    fn a_hundred_thousand_go_in_and_come_back() {
        within_namespace(|| {
            nft(SETS).unwrap();
            let mut netfilter = Netfilter::open().unwrap();
            let all: Vec<_> = (0..100_000).map(three).collect();
            // Who is root in a namespace only gets no room for a message with all of them.
            for part in all.chunks(if several_users() { all.len() } else { 1000 }) {
                netfilter.put("t", &[("three", part)]).unwrap();
            }
            assert_eq!(netfilter.elements("t", "three").unwrap().len(), all.len());
            let mut times: Vec<_> =
                (0..2000).map(|number| timed(&mut netfilter, three(200_000 - number * 40))).collect();
            times.sort();
            println!("one into 100,000: p50 {:?}, p99 {:?}", times[1000], times[1980]);
        });
    }

    fn timed(netfilter: &mut Netfilter, element: Element) -> Duration {
        let start = Instant::now();
        netfilter.put("t", &[("three", &[element])]).unwrap();
        start.elapsed()
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_an_element_panic(kind: u16, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(kind, Attributes(&bytes));
        }
    }
}
