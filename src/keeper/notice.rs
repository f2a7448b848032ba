//! What the keeper tells the forwarder unasked, on a socket of its own.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::codec::{Malformed, Reader, Writer};

/// Bytes of an explanation.
const WORDS: usize = 400;

/// What the keeper tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Notice {
    /// The table is in force.
    Ready(Protection),
    /// A packet was refused, or would have been.
    Denied(Denied),
    /// Somebody else changed the table; it is as it was.
    Restored,
    /// Somebody else changed the table, and it could not be put back so far.
    Lost,
    /// Something does not work.
    Trouble {
        /// What.
        trouble: Trouble,
        /// More of it, for people; escaped.
        words: String,
    },
}

/// What keeps others from changing the table.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[repr(u8)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// The kernel: nobody else can.
    Owned = 1,
    /// We watch, and restore it.
    Watched = 2,
}

/// A packet that was refused, or for a client that is only observed, would have been.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Denied {
    /// What it tried.
    pub way: Way,
    /// Was it let through?
    pub observed: bool,
    /// The number of the transport, as in `/etc/protocols`.
    pub protocol: u8,
    /// Whence; port 0 where the transport has none.
    pub source: SocketAddr,
    /// Whither; port 0 where the transport has none.
    pub destination: SocketAddr,
    /// The user whose socket sent it, where that is on this machine.
    pub user: Option<u32>,
    /// How many more there were since the last notice that nobody is told of.
    pub suppressed: u32,
}

/// What a refused packet tried.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Way {
    /// Another resolver; redirected to us.
    Dns = 1,
    /// DNS over TLS.
    Dot = 2,
    /// A known resolver over HTTPS.
    Doh = 3,
    /// An ingress address.
    Address = 4,
    /// An address that nobody resolved through us.
    Unresolved = 5,
    /// Anything, where nothing is open but what was resolved through us.
    Strict = 6,
    /// An ingress address, where the gate would have looked.
    Gate = 7,
}

/// What does not work.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[repr(u8)]
pub enum Trouble {
    /// There is no `nft`.
    #[error("there is no nft")]
    NoNft = 1,
    /// The right to change the packet filter is missing.
    #[error("the right to change the packet filter (CAP_NET_ADMIN) is missing")]
    NoRight = 2,
    /// Another process owns the table.
    #[error("another process owns the table")]
    TableTaken = 3,
    /// The configuration gave no ruleset.
    #[error("the configuration gives no ruleset")]
    Configuration = 4,
    /// `nft` did not take it.
    #[error("nft did not take the ruleset")]
    Ruleset = 5,
    /// What was loaded is not what is there.
    #[error("the table is not as it was loaded")]
    NotAsLoaded = 6,
    /// The kernel failed.
    #[error("the kernel refused")]
    Kernel = 7,
    /// The log of packets cannot be read: enforcement goes on, unseen.
    #[error("refused packets cannot be seen")]
    Unseen = 8,
    /// A message was none: the forwarder is not what it was.
    #[error("a message to the keeper was malformed")]
    Message = 9,
}

impl Notice {
    /// The bytes of it.
    pub fn encode(&self) -> Vec<u8> {
        let kind = |kind| Writer::default().byte(kind);
        let writer = match self {
            Self::Ready(protection) => kind(1).byte(*protection as u8),
            Self::Denied(denied) => kind(2)
                .byte(denied.way as u8)
                .byte(u8::from(denied.observed))
                .byte(denied.protocol)
                .end(denied.source)
                .end(denied.destination)
                .maybe(denied.user.map(u64::from))
                .number(denied.suppressed),
            Self::Restored => kind(3),
            Self::Lost => kind(5),
            Self::Trouble { trouble, words } => kind(4).byte(*trouble as u8).text(words, WORDS),
        };
        writer.finish()
    }

    /// The notice in some bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let notice = match reader.byte()? {
            1 => Self::Ready(numbered(&Protection::ALL, reader.byte()?, |one| one as u8)?),
            2 => Self::Denied(Denied::read(&mut reader)?),
            3 => Self::Restored,
            4 => Self::Trouble {
                trouble: numbered(&Trouble::ALL, reader.byte()?, |one| one as u8)?,
                words: reader.text(WORDS)?,
            },
            5 => Self::Lost,
            _ => return Err(Malformed),
        };
        reader.finish(notice)
    }
}

impl Denied {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            way: numbered(&Way::ALL, reader.byte()?, |one| one as u8)?,
            observed: reader.flag()?,
            protocol: reader.byte()?,
            source: reader.end()?,
            destination: reader.end()?,
            user: reader.maybe()?.map(u32::try_from).transpose().map_err(|_| Malformed)?,
            suppressed: reader.number()?,
        })
    }
}

impl Protection {
    const ALL: [Self; 2] = [Self::Owned, Self::Watched];
}

impl Way {
    const ALL: [Self; 7] = [Self::Dns, Self::Dot, Self::Doh, Self::Address, Self::Unresolved, Self::Strict, Self::Gate];

    /// What the ruleset's word for a logged packet means, and whether it was let through.
    pub(super) fn of_prefix(prefix: &str) -> Option<(Self, bool)> {
        let word = prefix.trim_end().strip_prefix("tw:")?;
        let (word, observed) = word.strip_prefix("observe-").map_or((word, false), |word| (word, true));
        Some((Self::of_word(word)?, observed))
    }

    /// The ruleset's word for it.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        Some(match word {
            "dns" => Self::Dns,
            "dot" => Self::Dot,
            "doh" => Self::Doh,
            "address" => Self::Address,
            "unresolved" => Self::Unresolved,
            "strict" => Self::Strict,
            "gate" => Self::Gate,
            _ => return None,
        })
    }
}

impl Trouble {
    const ALL: [Self; 9] = [
        Self::NoNft,
        Self::NoRight,
        Self::TableTaken,
        Self::Configuration,
        Self::Ruleset,
        Self::NotAsLoaded,
        Self::Kernel,
        Self::Unseen,
        Self::Message,
    ];
}

fn numbered<T: Copy>(all: &[T], number: u8, number_of: impl Fn(T) -> u8) -> Result<T, Malformed> {
    all.iter().copied().find(|one| number_of(*one) == number).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::{super::message::LONGEST, *};

    fn notices() -> impl Strategy<Value = Notice> {
        let end = || any::<(IpAddr, u16)>().prop_map(SocketAddr::from);
        let ways = prop::sample::select(Way::ALL.to_vec());
        let denied = (ways, any::<(bool, u8, Option<u32>, u32)>(), end(), end()).prop_map(
            |(way, (observed, protocol, user, suppressed), source, destination)| {
                Notice::Denied(Denied { way, observed, protocol, source, destination, user, suppressed })
            },
        );
        prop_oneof![
            denied,
            (prop::sample::select(Trouble::ALL.to_vec()), "[ -~]{0,400}")
                .prop_map(|(trouble, words)| Notice::Trouble { trouble, words }),
            prop::sample::select(vec![
                Notice::Restored,
                Notice::Lost,
                Notice::Ready(Protection::Owned),
                Notice::Ready(Protection::Watched)
            ]),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(notice in notices()) {
            let bytes = notice.encode();
            prop_assert!(bytes.len() <= LONGEST);
            prop_assert_eq!(Notice::decode(&bytes), Ok(notice));
        }

        #[test]
        fn any_bytes_are_a_notice_or_none(bytes in prop::collection::vec(any::<u8>(), 0..LONGEST)) {
            let _ = Notice::decode(&bytes);
        }
    }

    #[test]
    fn the_words_of_the_ruleset_are_known() {
        #[rustfmt::skip]
        let table = [
            ("tw:dns ",                 Some((Way::Dns, false))),
            ("tw:observe-unresolved ",  Some((Way::Unresolved, true))),
            ("tw:strict",               Some((Way::Strict, false))),
            ("tw:other ",               None),
            ("dns ",                    None),
        ];
        for (prefix, expected) in table {
            assert_eq!(Way::of_prefix(prefix), expected, "{prefix}");
        }
    }

    #[test]
    fn words_are_cut_between_characters() {
        let notice = Notice::Trouble { trouble: Trouble::Ruleset, words: "ü".repeat(300) };
        let Notice::Trouble { words, .. } = Notice::decode(&notice.encode()).unwrap() else { panic!() };
        assert_eq!(words.len(), 400);
    }
}
