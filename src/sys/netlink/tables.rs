//! Tables of nftables: whether one is there, whose it is, what stands in it.

use std::io;

use super::{
    message::{Message, Request},
    socket::Netfilter,
};

/// `struct nfgenmsg`: family, version, resource.
pub(super) const NFGENMSG: usize = 4;
const INET: u8 = 1; // NFPROTO_INET
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_OWNER: u16 = 7;
const OWNER: u32 = 2; // NFT_TABLE_F_OWNER, Linux 5.12
const PERSIST: u32 = 4; // NFT_TABLE_F_PERSIST, Linux 6.9
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_KEY_LENGTH: u16 = 5;
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_KIND: u16 = 3;
const OBJECT_DATA: u16 = 4;
const COUNTER: u32 = 1; // NFT_OBJECT_COUNTER
const COUNTER_PACKETS: u16 = 2;

/// A table of family `inet`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Table {
    /// Does it outlive its owner?
    pub persists: bool,
    /// The socket that owns it.
    pub owner: Option<u32>,
}

/// What came of the attempt to own a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Adoption {
    /// Nobody else can change it while the socket lives, and it outlives the socket.
    Owned,
    /// It cannot be owned: the kernel is older than 6.9, or the table was made without `persist`.
    Impossible,
    /// Another socket owns it, or there is no right to change it.
    Taken,
}

impl Netfilter {
    /// The table, where there is one.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn table(&mut self, name: &str) -> io::Result<Option<Table>> {
        let mut request = self.0.request();
        request.message(nftables(libc::NFT_MSG_GETTABLE), libc::NLM_F_REQUEST | libc::NLM_F_ACK);
        request.push(&nfgenmsg(INET, 0)).text(TABLE_NAME, name);
        let mut table = None;
        let outcome = self.0.dump(&request, |message| table = Some(read_table(message)));
        match outcome {
            Ok(_) => Ok(table),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the table, so that it can be owned where the kernel has that. Tells whether it has.
    ///
    /// # Errors
    /// When there is no right to.
    pub fn create_table(&mut self, name: &str) -> io::Result<bool> {
        match self.new_table(name, PERSIST) {
            Ok(()) => Ok(true),
            Err(error) if is_unknown(&error) => self.new_table(name, 0).map(|()| false),
            Err(error) => Err(error),
        }
    }

    /// Makes this socket the table's owner.
    ///
    /// # Errors
    /// When the kernel fails in another way than [`Adoption`] has a word for.
    pub fn adopt(&mut self, name: &str) -> io::Result<Adoption> {
        match self.new_table(name, OWNER | PERSIST) {
            Ok(()) => Ok(Adoption::Owned),
            Err(error) if is_unknown(&error) => Ok(Adoption::Impossible),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Adoption::Taken),
            Err(error) => Err(error),
        }
    }

    /// Takes the table away with all that is in it. One that is not there is no error.
    ///
    /// # Errors
    /// When it is somebody else's.
    pub fn delete_table(&mut self, name: &str) -> io::Result<()> {
        let mut batch = self.batch();
        batch.message(nftables(libc::NFT_MSG_DELTABLE), libc::NLM_F_REQUEST | libc::NLM_F_ACK);
        batch.push(&nfgenmsg(INET, 0)).text(TABLE_NAME, name);
        match self.commit(batch) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            outcome => outcome,
        }
    }

    /// The sets of a table, each with the length of its keys in bytes.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn sets(&mut self, table: &str) -> io::Result<Vec<(String, usize)>> {
        let mut request = self.0.request();
        request.message(nftables(libc::NFT_MSG_GETSET), libc::NLM_F_REQUEST | libc::NLM_F_DUMP);
        request.push(&nfgenmsg(INET, 0)).text(SET_TABLE, table);
        let mut sets = Vec::new();
        self.0.dump(&request, |message| {
            let attributes = message.attributes(NFGENMSG);
            let length = attributes.number(SET_KEY_LENGTH).and_then(|length| usize::try_from(length).ok());
            sets.extend(attributes.text(SET_NAME).zip(length));
        })?;
        Ok(sets)
    }

    /// The named counters of a table, each with the packets that it has counted.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn counters(&mut self, table: &str) -> io::Result<Vec<(String, u64)>> {
        let mut request = self.0.request();
        request.message(nftables(libc::NFT_MSG_GETOBJ), libc::NLM_F_REQUEST | libc::NLM_F_DUMP);
        request.push(&nfgenmsg(INET, 0)).text(OBJECT_TABLE, table);
        let mut counters = Vec::new();
        self.0.dump(&request, |message| {
            let attributes = message.attributes(NFGENMSG);
            let is_ours = attributes.text(OBJECT_TABLE).is_some_and(|found| found == table);
            let packets = attributes.within(OBJECT_DATA).long_number(COUNTER_PACKETS);
            if is_ours && attributes.number(OBJECT_KIND) == Some(COUNTER) {
                counters.extend(attributes.text(OBJECT_NAME).zip(packets));
            }
        })?;
        Ok(counters)
    }

    fn new_table(&mut self, name: &str, flags: u32) -> io::Result<()> {
        let mut batch = self.batch();
        let create = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE;
        batch.message(nftables(libc::NFT_MSG_NEWTABLE), create).push(&nfgenmsg(INET, 0));
        batch.text(TABLE_NAME, name).attribute(TABLE_FLAGS, &flags.to_be_bytes());
        self.commit(batch)
    }

    /// A request that takes effect as a whole or not at all.
    pub(super) fn batch(&self) -> Request {
        let mut batch = self.0.request();
        let nftables = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or_default();
        batch.message(u16::try_from(libc::NFNL_MSG_BATCH_BEGIN).unwrap_or_default(), libc::NLM_F_REQUEST);
        batch.push(&nfgenmsg(0, nftables));
        batch
    }

    /// Ends a batch and sends it. The end asks for no acknowledgement, since older kernels give none: what stands
    /// before it does.
    pub(super) fn commit(&mut self, mut batch: Request) -> io::Result<()> {
        let expected = batch.count();
        let nftables = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or_default();
        batch.message(u16::try_from(libc::NFNL_MSG_BATCH_END).unwrap_or_default(), libc::NLM_F_REQUEST);
        batch.push(&nfgenmsg(0, nftables));
        self.0.acknowledged(&batch, expected - 1)
    }
}

pub(super) fn read_table(message: &Message<'_>) -> Table {
    let attributes = message.attributes(NFGENMSG);
    let flags = attributes.number(TABLE_FLAGS).unwrap_or_default();
    Table { persists: flags & PERSIST != 0, owner: attributes.number(TABLE_OWNER) }
}

/// The kernel does not know a flag (EINVAL before 5.12), or does not change it (EOPNOTSUPP).
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

/// The type of a message to nftables.
pub(super) fn nftables(kind: libc::c_int) -> u16 {
    netfilter(libc::NFNL_SUBSYS_NFTABLES, kind)
}

/// The type of a message to one part of netfilter.
pub(super) fn netfilter(part: libc::c_int, kind: libc::c_int) -> u16 {
    u16::try_from(part << 8 | kind).unwrap_or_default()
}

pub(super) fn nfgenmsg(family: u8, resource: u16) -> [u8; NFGENMSG] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// The family `inet` for the neighbours.
pub(super) const fn inet() -> u8 {
    INET
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::testing::{nft, within_namespace};

    #[test]
    fn a_table_of_ours_survives_what_others_flush_and_our_own_death() {
        within_namespace(|| {
            let mut ours = Netfilter::open().unwrap();
            assert_eq!(ours.table("kept").unwrap(), None);
            ours.delete_table("kept").unwrap();
            if !ours.create_table("kept").unwrap() {
                return eprintln!("skipped: this kernel has no tables that persist");
            }
            assert_eq!(ours.adopt("kept").unwrap(), Adoption::Owned);
            nft("flush ruleset").unwrap();
            nft("add chain inet kept theirs").unwrap_err();
            let mut other = Netfilter::open().unwrap();
            assert_eq!(other.adopt("kept").unwrap(), Adoption::Taken);
            assert_eq!(other.table("kept").unwrap().unwrap().owner, Some(ours.port().unwrap()));
            drop(ours);
            assert_eq!(other.table("kept").unwrap(), Some(Table { persists: true, owner: None }));
            assert_eq!(other.adopt("kept").unwrap(), Adoption::Owned);
            other.delete_table("kept").unwrap();
            assert_eq!(other.table("kept").unwrap(), None);
        });
    }

    #[test]
    fn counters_are_read() {
        within_namespace(|| {
            nft("add table inet t
                add counter inet t first
                add counter inet t second { packets 3 bytes 5; }
                add quota inet t other { 25 mbytes }
                add table inet u
                add counter inet u third")
            .unwrap();
            let counters = Netfilter::open().unwrap().counters("t").unwrap();
            assert_eq!(counters, [("first".to_owned(), 0), ("second".to_owned(), 3)]);
        });
    }

    #[test]
    fn a_plain_table_cannot_be_owned() {
        within_namespace(|| {
            nft("add table inet plain\nadd set inet plain pairs { type ipv4_addr . inet_service; }").unwrap();
            let mut ours = Netfilter::open().unwrap();
            assert_eq!(ours.adopt("plain").unwrap(), Adoption::Impossible);
            assert_eq!(ours.sets("plain").unwrap(), [("pairs".to_owned(), 8)]);
        });
    }
}
