//! What is asked: questions as bytes, and the mixtures of them that a run goes through.

use std::net::Ipv4Addr;

use crate::kernel::Packet;

/// Names below the blocked domain, and names that are allowed.
const NAMES: usize = 1_000;

/// Domains that every contestant blocks, with all that is below. The first is where the blocked questions are.
pub(crate) const BLOCKED: [&str; 8] = [
    "ngrok-agent.com",
    "tunnel.ngrok.com",
    "tunnel.us.ngrok.com",
    "tunnel.eu.ngrok.com",
    "tunnel.ap.ngrok.com",
    "tunnel.au.ngrok.com",
    "tunnel.sa.ngrok.com",
    "tunnel.jp.ngrok.com",
];

/// The row of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Workload {
    /// Every question is refused; one client.
    Blocked,
    /// The same by 100 clients in as many networks: 100,000 pairs of client and name.
    BlockedByMany,
    /// Every answer is in the cache.
    Cached,
    /// 10 % refused, 80 % cached, 10 % never asked before.
    Mixed,
    /// Every question is a new one.
    Missed,
}

/// One question of a mixture.
#[derive(Clone)]
struct Question {
    bytes: Vec<u8>,
    source: Ipv4Addr,
    /// Has eight digits in front that make it new each time.
    fresh: bool,
}

/// Questions, asked one after the other and then from the start.
#[derive(Clone)]
pub(crate) struct Questions {
    list: Vec<Question>,
    /// Answer codes that are right; a reply with another is a failure.
    rcodes: &'static [u8],
}

pub(crate) const NOERROR: u8 = 0;
pub(crate) const NXDOMAIN: u8 = 3;

/// Where the digits of a fresh name are: behind the header and the length of the first label.
const DIGITS: std::ops::Range<usize> = 13..21;

impl Workload {
    pub(crate) const ALL: [Self; 5] = [Self::Blocked, Self::BlockedByMany, Self::Cached, Self::Mixed, Self::Missed];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Blocked => "A blocked",
            Self::BlockedByMany => "A blocked, 100,000 pairs",
            Self::Cached => "B cached",
            Self::Mixed => "C mixed",
            Self::Missed => "D all miss",
        }
    }

    pub(crate) fn questions(self) -> Questions {
        let blocked = |number: usize| Question::new(&format!("x{number}.{}", BLOCKED[0]));
        let allowed = |number: usize| Question::new(&allowed_name(number));
        match self {
            Self::Blocked => Questions { list: (0..NAMES).map(blocked).collect(), rcodes: &[NXDOMAIN] },
            Self::BlockedByMany => {
                let pair = |number: usize| {
                    let source = Ipv4Addr::new(127, 1, (number % 100) as u8, 1);
                    Question { source, ..blocked(number / 100) }
                };
                Questions { list: (0..100 * NAMES).map(pair).collect(), rcodes: &[NXDOMAIN] }
            }
            Self::Cached => Questions { list: (0..NAMES).map(allowed).collect(), rcodes: &[NOERROR] },
            Self::Mixed => {
                let one_of_ten = |number: usize| match number % 10 {
                    3 => blocked(number / 10 % NAMES),
                    7 => Question::fresh(),
                    // A stride without a common factor visits all names.
                    _ => allowed(number * 7 % NAMES),
                };
                Questions { list: (0..10 * NAMES).map(one_of_ten).collect(), rcodes: &[NOERROR, NXDOMAIN] }
            }
            Self::Missed => Questions { list: vec![Question::fresh()], rcodes: &[NOERROR] },
        }
    }

    /// Does it need the allowed names in the cache?
    pub(crate) fn is_warm(self) -> bool {
        match self {
            Self::Cached | Self::Mixed => true,
            Self::Blocked | Self::BlockedByMany | Self::Missed => false,
        }
    }
}

impl Questions {
    /// The first `count` allowed names.
    pub(crate) fn allowed(count: usize) -> Self {
        let list = (0..count).map(|number| Question::new(&allowed_name(number))).collect();
        Self { list, rcodes: &[NOERROR] }
    }

    /// The allowed names, asked by one host of each of so many networks; see [`network`].
    pub(crate) fn allowed_by(networks: usize) -> Self {
        let asked = |number: usize| {
            let source = Ipv4Addr::from(u32::from(network(number % networks)) + 1);
            Question { source, ..Question::new(&allowed_name(number % NAMES)) }
        };
        Self { list: (0..networks.max(NAMES)).map(asked).collect(), rcodes: &[NOERROR] }
    }

    /// Everything that fills something: of 100 questions some 14 are new, one is new and refused, 10 are refused and the
    /// rest is soon cached; from 250 clients, each of which asks seldom enough for any rate that makes sense.
    pub(crate) fn of_all_kinds() -> Self {
        let one = |number: usize| {
            let question = match number % 100 {
                50 => Question::fresh_below(BLOCKED[0]),
                kind if kind % 7 == 3 => Question::fresh(),
                kind if kind % 10 == 1 => Question::new(&format!("x{}.{}", number / 10 % NAMES, BLOCKED[0])),
                _ => Question::new(&allowed_name(number * 7 % NAMES)),
            };
            Question { source: Ipv4Addr::new(127, 2, (number / 40 % 250) as u8, 1), ..question }
        };
        Self { list: (0..10 * NAMES).map(one).collect(), rcodes: &[NOERROR, NXDOMAIN] }
    }

    pub(crate) fn count(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn is_right(&self, rcode: u8) -> bool {
        self.rcodes.contains(&rcode)
    }

    /// Writes the question of this number into a packet, with this id.
    pub(crate) fn write(&self, number: u64, id: u16, packet: &mut Packet) {
        let question = &self.list[(number % self.list.len() as u64) as usize];
        packet.length = question.bytes.len();
        packet.bytes[..packet.length].copy_from_slice(&question.bytes);
        packet.bytes[..2].copy_from_slice(&id.to_be_bytes());
        packet.source = question.source;
        if question.fresh {
            for (index, byte) in packet.bytes[DIGITS].iter_mut().enumerate() {
                let digit = (number >> (4 * (7 - index))) & 15;
                *byte = b"0123456789abcdef"[digit as usize];
            }
        }
    }
}

/// The network of this number, a /24 of the loopback network.
pub(crate) fn network(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x7f40_0000 + ((number as u32) << 8))
}

/// One of a million names that a list blocks; all distinct.
pub(crate) fn listed_name(number: usize) -> String {
    // Multiplication by an odd number is one to one, and spreads neighbours apart.
    format!("{:08x}.list{}.example", (number as u32).wrapping_mul(0x9E37_79B1), number % 997)
}

fn allowed_name(number: usize) -> String {
    format!("n{number}.site.example")
}

impl Question {
    fn new(name: &str) -> Self {
        Self { bytes: encode(name), source: Ipv4Addr::LOCALHOST, fresh: false }
    }

    fn fresh() -> Self {
        Self::fresh_below("miss.example")
    }

    fn fresh_below(domain: &str) -> Self {
        Self { bytes: encode(&format!("00000000.{domain}")), source: Ipv4Addr::LOCALHOST, fresh: true }
    }
}

/// A question for the address of a name: recursion desired, no EDNS.
pub(crate) fn encode(name: &str) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}
