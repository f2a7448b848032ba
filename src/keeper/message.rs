//! What the forwarder asks of the keeper, and what it gets back. There are numbers and addresses here, and towards the
//! keeper no text, no table name and no path.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::codec::{Malformed, Reader, Writer};

/// No message is longer.
pub const LONGEST: usize = 512;
/// Addresses that one answer may open.
pub const PERMITTED_AT_ONCE: usize = 16;
/// Addresses that are denied with one message.
pub const DENIED_AT_ONCE: usize = 24;
/// Bytes of a program's path.
const EXE: usize = 255;

/// What the forwarder asks. A client of `None` is this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// Opens addresses that an answer named to the client that asked.
    Permit {
        /// Who asked.
        client: Option<IpAddr>,
        /// At most [`PERMITTED_AT_ONCE`].
        addresses: Vec<IpAddr>,
        /// Seconds.
        lifetime: u32,
    },
    /// Opens one port of ingress addresses, because an allowing rule names it.
    PermitPort {
        /// Who asked.
        client: Option<IpAddr>,
        /// At most [`PERMITTED_AT_ONCE`].
        addresses: Vec<IpAddr>,
        /// One of those that the rules name.
        port: u16,
        /// Seconds.
        lifetime: u32,
    },
    /// Makes addresses ones of ingresses.
    Deny {
        /// At most [`DENIED_AT_ONCE`].
        addresses: Vec<IpAddr>,
        /// Seconds.
        lifetime: u32,
    },
    /// Takes that back.
    Forget {
        /// At most [`DENIED_AT_ONCE`].
        addresses: Vec<IpAddr>,
    },
    /// How much there is of everything.
    Count,
    /// Closes to a client what was open to it.
    Release {
        /// To whom.
        client: Option<IpAddr>,
        /// What.
        address: IpAddr,
    },
    /// The same, and ends the connections that are there.
    Cut {
        /// Whose.
        client: Option<IpAddr>,
        /// To where.
        address: IpAddr,
    },
    /// Whose a socket of this machine is.
    Process {
        /// 6 or 17, as in `/etc/protocols`.
        protocol: u8,
        /// Its own end.
        local: SocketAddr,
        /// The other end.
        remote: SocketAddr,
    },
    /// Marks the socket that comes with it as the forwarder's, so that the rules know it.
    Mark,
    /// Reads the configuration again.
    Reload,
    /// Takes the table away.
    Remove,
    /// The forwarder stops on purpose.
    Bye,
}

/// What the keeper answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reply {
    /// It is so in the kernel.
    Done(Done),
    /// Nothing was done.
    Refused(Refusal),
    /// How much there is.
    Counts(Counts),
    /// Whose the socket is; `None` where it is gone.
    Process(Option<Process>),
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Done {
    /// Addresses that have to stay as they are.
    pub skipped: u8,
    /// Was something closed to this client, to make room?
    pub evicted: bool,
    /// Another number than before where something was closed to others for another reason than time: what was open
    /// before may not be.
    pub epoch: u32,
}

/// Why nothing was done.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    /// More in a second than anybody needs.
    #[error("too many requests in a second")]
    Rate = 1,
    /// There is no room in the set.
    #[error("the set is full")]
    Full = 2,
    /// The kernel would not; a notice says what.
    #[error("the kernel refused")]
    Kernel = 3,
    /// The port is none that the rules open.
    #[error("no rule opens this port")]
    Port = 4,
    /// The request does not fit the mode: a client where there is one alone, or none where there are many.
    #[error("the client does not fit the mode")]
    Client = 5,
    /// Configuration or rules are not good; those in force stay. A notice says what.
    #[error("the new ruleset was not taken")]
    Ruleset = 6,
    /// The address may not be touched.
    #[error("the address may not be touched")]
    Address = 7,
    /// Root has not said so.
    #[error("root has not asked for it")]
    Unasked = 8,
    /// No socket came with the request, or none that is marked in this mode.
    #[error("there is no socket to be marked")]
    Socket = 9,
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// Addresses open to clients.
    pub leases: u64,
    /// Ports open to clients.
    pub ports: u64,
    /// Addresses of ingresses.
    pub denied: u64,
    /// Leases that made room for others.
    pub evicted: u64,
    /// Addresses that were asked for and may not be touched.
    pub skipped: u64,
    /// Requests refused since there were too many.
    pub hurried: u64,
    /// Requests that the kernel refused.
    pub failed: u64,
    /// Times that the table was restored after others changed it.
    pub restored: u64,
    /// Refused packets that were counted and not told one by one.
    pub untold: u64,
}

/// Whose a socket is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Process {
    /// The user.
    pub user: u32,
    /// The number of the control group.
    pub cgroup: Option<u64>,
    /// The process, where we may see it and it was found in time.
    pub id: Option<u32>,
    /// Its program; escaped, and empty where unknown.
    pub exe: String,
}

impl Request {
    /// The bytes of it, with the number that its reply will have. More addresses than there may be are left out.
    pub fn encode(&self, number: u32) -> Vec<u8> {
        let kind = |kind| Writer::default().number(number).byte(kind);
        let permit = |kind_of, client: &Option<_>, addresses: &[_], lifetime: &u32| {
            kind(kind_of).client(*client).addresses(addresses, PERMITTED_AT_ONCE).number(*lifetime)
        };
        let writer = match self {
            Self::Permit { client, addresses, lifetime } => permit(1, client, addresses, lifetime),
            Self::PermitPort { client, addresses, port, lifetime } => {
                permit(2, client, addresses, lifetime).short(*port)
            }
            Self::Deny { addresses, lifetime } => kind(3).addresses(addresses, DENIED_AT_ONCE).number(*lifetime),
            Self::Forget { addresses } => kind(4).addresses(addresses, DENIED_AT_ONCE),
            Self::Count => kind(5),
            Self::Release { client, address } => kind(6).client(*client).address(*address),
            Self::Cut { client, address } => kind(7).client(*client).address(*address),
            Self::Process { protocol, local, remote } => kind(8).byte(*protocol).end(*local).end(*remote),
            Self::Reload => kind(9),
            Self::Remove => kind(10),
            Self::Bye => kind(11),
            Self::Mark => kind(12),
        };
        writer.finish()
    }

    /// The request in some bytes, and its number.
    ///
    /// # Errors
    /// When they are none.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), Malformed> {
        let mut reader = Reader::new(bytes);
        let number = reader.number()?;
        let request = Self::read(&mut reader)?;
        reader.finish((number, request))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match reader.byte()? {
            1 => Self::Permit {
                client: reader.client()?,
                addresses: reader.addresses(PERMITTED_AT_ONCE)?,
                lifetime: reader.number()?,
            },
            2 => Self::PermitPort {
                client: reader.client()?,
                addresses: reader.addresses(PERMITTED_AT_ONCE)?,
                lifetime: reader.number()?,
                port: reader.short()?,
            },
            3 => Self::Deny { addresses: reader.addresses(DENIED_AT_ONCE)?, lifetime: reader.number()? },
            4 => Self::Forget { addresses: reader.addresses(DENIED_AT_ONCE)? },
            5 => Self::Count,
            6 => Self::Release { client: reader.client()?, address: reader.address()? },
            7 => Self::Cut { client: reader.client()?, address: reader.address()? },
            8 => Self::Process { protocol: reader.byte()?, local: reader.end()?, remote: reader.end()? },
            9 => Self::Reload,
            10 => Self::Remove,
            11 => Self::Bye,
            12 => Self::Mark,
            _ => return Err(Malformed),
        })
    }
}

impl Reply {
    /// The bytes of it, with the number of its request.
    pub fn encode(&self, number: u32) -> Vec<u8> {
        let kind = |kind| Writer::default().number(number).byte(kind);
        let writer = match self {
            Self::Done(done) => kind(1).byte(done.skipped).byte(u8::from(done.evicted)).number(done.epoch),
            Self::Refused(refusal) => kind(2).byte(*refusal as u8),
            Self::Counts(counts) => counts.fields().into_iter().fold(kind(3), |writer, field| writer.long(*field)),
            Self::Process(None) => kind(4),
            Self::Process(Some(process)) => kind(5)
                .number(process.user)
                .maybe(process.cgroup)
                .maybe(process.id.map(u64::from))
                .text(&process.exe, EXE),
        };
        writer.finish()
    }

    /// The reply in some bytes, and its number.
    ///
    /// # Errors
    /// When they are none.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), Malformed> {
        let mut reader = Reader::new(bytes);
        let number = reader.number()?;
        let reply = match reader.byte()? {
            1 => Self::Done(Done { skipped: reader.byte()?, evicted: reader.flag()?, epoch: reader.number()? }),
            2 => Self::Refused(Refusal::numbered(reader.byte()?)?),
            3 => Self::Counts(Counts::read(&mut reader)?),
            4 => Self::Process(None),
            5 => Self::Process(Some(Process::read(&mut reader)?)),
            _ => return Err(Malformed),
        };
        reader.finish((number, reply))
    }
}

impl Refusal {
    const ALL: [Self; 9] = [
        Self::Rate,
        Self::Full,
        Self::Kernel,
        Self::Port,
        Self::Client,
        Self::Ruleset,
        Self::Address,
        Self::Unasked,
        Self::Socket,
    ];

    fn numbered(number: u8) -> Result<Self, Malformed> {
        Self::ALL.into_iter().find(|refusal| *refusal as u8 == number).ok_or(Malformed)
    }
}

impl Counts {
    /// In the order in which they are sent.
    fn fields(&self) -> [&u64; 9] {
        let Self { leases, ports, denied, evicted, skipped, hurried, failed, restored, untold } = self;
        [leases, ports, denied, evicted, skipped, hurried, failed, restored, untold]
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            leases: reader.long()?,
            ports: reader.long()?,
            denied: reader.long()?,
            evicted: reader.long()?,
            skipped: reader.long()?,
            hurried: reader.long()?,
            failed: reader.long()?,
            restored: reader.long()?,
            untold: reader.long()?,
        })
    }
}

impl Process {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (user, cgroup) = (reader.number()?, reader.maybe()?);
        let id = reader.maybe()?.map(u32::try_from).transpose().map_err(|_| Malformed)?;
        Ok(Self { user, cgroup, id, exe: reader.text(EXE)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn requests() -> impl Strategy<Value = Request> {
        let client = || any::<Option<IpAddr>>();
        let some = |bound| vec(any::<IpAddr>(), 0..=bound);
        prop_oneof![
            (client(), some(PERMITTED_AT_ONCE), any::<u32>())
                .prop_map(|(client, addresses, lifetime)| Request::Permit { client, addresses, lifetime }),
            (client(), some(PERMITTED_AT_ONCE), any::<u16>(), any::<u32>()).prop_map(
                |(client, addresses, port, lifetime)| Request::PermitPort { client, addresses, port, lifetime }
            ),
            (some(DENIED_AT_ONCE), any::<u32>())
                .prop_map(|(addresses, lifetime)| Request::Deny { addresses, lifetime }),
            some(DENIED_AT_ONCE).prop_map(|addresses| Request::Forget { addresses }),
            (client(), any::<IpAddr>()).prop_map(|(client, address)| Request::Release { client, address }),
            (client(), any::<IpAddr>()).prop_map(|(client, address)| Request::Cut { client, address }),
            (any::<u8>(), any::<(IpAddr, u16)>(), any::<(IpAddr, u16)>()).prop_map(|(protocol, local, remote)| {
                Request::Process { protocol, local: local.into(), remote: remote.into() }
            }),
            prop::sample::select(vec![Request::Count, Request::Mark, Request::Reload, Request::Remove, Request::Bye]),
        ]
    }

    fn replies() -> impl Strategy<Value = Reply> {
        let process = (any::<u32>(), any::<Option<u64>>(), any::<Option<u32>>(), "[ -~]{0,255}")
            .prop_map(|(user, cgroup, id, exe)| Reply::Process(Some(Process { user, cgroup, id, exe })));
        let counts = any::<[u64; 3]>()
            .prop_map(|[leases, denied, untold]| Reply::Counts(Counts { leases, denied, untold, ..Counts::default() }));
        prop_oneof![
            any::<(u8, bool, u32)>().prop_map(|(skipped, evicted, epoch)| Reply::Done(Done {
                skipped,
                evicted,
                epoch
            })),
            prop::sample::select(Refusal::ALL.to_vec()).prop_map(Reply::Refused),
            process,
            counts,
            Just(Reply::Process(None)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(number: u32, request in requests(), reply in replies()) {
            let bytes = request.encode(number);
            prop_assert!(bytes.len() <= LONGEST);
            prop_assert_eq!(Request::decode(&bytes), Ok((number, request)));
            let bytes = reply.encode(number);
            prop_assert!(bytes.len() <= LONGEST);
            prop_assert_eq!(Reply::decode(&bytes), Ok((number, reply)));
        }

        #[test]
        fn any_bytes_are_a_message_or_none(bytes in vec(any::<u8>(), 0..LONGEST)) {
            if let Ok((number, request)) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode(number), &bytes[..]);
            }
            let _ = Reply::decode(&bytes);
        }

        #[test]
        fn a_message_that_was_tampered_with_is_another_or_none(
            request in requests(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index,
        ) {
            let mut bytes = request.encode(1);
            let place = at.index(bytes.len());
            bytes[place] = byte;
            let _ = Request::decode(&bytes);
            let shorter = &request.encode(1)[..cut.index(bytes.len())];
            prop_assert_eq!(Request::decode(shorter), Err(Malformed));
        }
    }

    #[test]
    fn no_message_holds_more_addresses_than_it_may() {
        let addresses = vec![IpAddr::from([192, 0, 2, 1]); 200];
        let many = Request::Permit { client: None, addresses, lifetime: 1 };
        let (_, read) = Request::decode(&many.encode(1)).unwrap();
        assert!(matches!(read, Request::Permit { addresses, .. } if addresses.len() == PERMITTED_AT_ONCE));
        let forged = [&[0, 0, 0, 1, 1, 0, 17][..], &[4, 1, 1, 1, 1].repeat(17), &[0; 4]].concat();
        assert_eq!(Request::decode(&forged), Err(Malformed));
    }
}
