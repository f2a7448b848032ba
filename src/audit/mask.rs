//! How much of a client's address is shown. Applied before anything is written; folding knows the real address.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use ipnet::IpNet;
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};

use super::{Client, ClientMask};

/// The key's file in the state folder.
pub(super) const KEY_FILE: &str = "clients.key";

/// Bytes in a key: as many as HMAC-SHA-256 puts out (RFC 2104 section 3).
const KEY_LENGTH: usize = 32;

/// Bytes of a hash that are shown. 128 bits keep clients apart.
const HASH_LENGTH: usize = 16;

/// [`ClientMask`], with the key it may need.
#[derive(Debug)]
pub(super) enum Mask {
    Full,
    Prefix,
    // HMAC is a pseudo-random function: without the key no list of addresses can be tried against a hash.
    KeyedHash(hmac::Key),
}

impl Mask {
    /// Reads the key of a keyed hash, or makes one the first time.
    pub(super) fn new(mask: ClientMask, state_dir: &Path) -> io::Result<Self> {
        Ok(match mask {
            ClientMask::Full => Self::Full,
            ClientMask::Prefix => Self::Prefix,
            ClientMask::KeyedHash => {
                Self::KeyedHash(hmac::Key::new(hmac::HMAC_SHA256, &key(&state_dir.join(KEY_FILE))?))
            }
        })
    }

    /// What may be shown of a client, or of the network that several clients were folded into.
    pub(super) fn show(&self, clients: IpNet, port: u16) -> Client {
        let one = clients.prefix_len() == clients.max_prefix_len();
        match self {
            Self::Full if one => Client::Address { address: clients.addr(), port },
            Self::Prefix if one => Client::Network { network: prefix(clients.addr()) },
            Self::Full | Self::Prefix => Client::Network { network: clients },
            Self::KeyedHash(_) if clients.prefix_len() == 0 => Client::Network { network: clients },
            Self::KeyedHash(key) => Client::Hash { hash: hash(key, clients) },
        }
    }
}

/// The network that stands for a client where its address may not: /24 or /56.
pub(super) fn prefix(client: IpAddr) -> IpNet {
    let length = match client {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 56,
    };
    cut(client, length)
}

/// The network of that length around an address; the address alone where the length is too long for it.
pub(super) fn cut(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length).map_or_else(|_| IpNet::from(address), |network| network.trunc())
}

fn hash(key: &hmac::Key, clients: IpNet) -> String {
    let tag = hmac::sign(key, clients.to_string().as_bytes());
    tag.as_ref().iter().take(HASH_LENGTH).map(|byte| format!("{byte:02x}")).collect()
}

fn key(path: &Path) -> io::Result<[u8; KEY_LENGTH]> {
    match File::open(path) {
        Ok(file) => read_key(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_key(path)?;
            read_key(File::open(path)?)
        }
        Err(error) => Err(error),
    }
}

fn read_key(file: File) -> io::Result<[u8; KEY_LENGTH]> {
    let mut bytes = Vec::with_capacity(KEY_LENGTH + 1);
    file.take(KEY_LENGTH as u64 + 1).read_to_end(&mut bytes)?;
    bytes.try_into().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a key has 32 bytes; this is none"))
}

/// Written beside its place and linked there, so that a crash leaves no half key and a second process no second one.
fn create_key(path: &Path) -> io::Result<()> {
    let mut bytes = [0; KEY_LENGTH];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the system gives no random bytes"))?;
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    let written = file.write_all(&bytes).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft)?;
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn shown(mask: &Mask, clients: &str) -> String {
        let clients = clients.parse::<IpNet>().unwrap();
        serde_json::to_string(&mask.show(clients, 4711)).unwrap()
    }

    #[test]
    fn no_more_of_a_client_is_shown_than_the_mask_allows() {
        #[rustfmt::skip]
        let cases = [
            (Mask::Full,   "192.0.2.7/32",       r#"{"address":"192.0.2.7","port":4711}"#),
            (Mask::Full,   "192.0.2.0/24",       r#"{"network":"192.0.2.0/24"}"#),
            (Mask::Prefix, "192.0.2.7/32",       r#"{"network":"192.0.2.0/24"}"#),
            (Mask::Prefix, "2001:db8:1:2ff::7/128", r#"{"network":"2001:db8:1:200::/56"}"#),
            (Mask::Prefix, "0.0.0.0/0",          r#"{"network":"0.0.0.0/0"}"#),
        ];
        for (mask, clients, expected) in cases {
            assert_eq!(shown(&mask, clients), expected, "{mask:?} {clients}");
        }
    }

    #[test]
    fn a_keyed_hash_is_the_same_word_after_a_restart_and_another_with_another_key() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let hashed = |folder: &Path| shown(&Mask::new(ClientMask::KeyedHash, folder).unwrap(), "192.0.2.7/32");
        let first = hashed(one.path());
        assert_eq!(hashed(one.path()), first);
        assert_ne!(hashed(other.path()), first);
        assert!(first.len() == r#"{"hash":""}"#.len() + 32 && !first.contains("192"), "{first}");
        let key = one.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(one.path()).unwrap().count(), 1, "a draft was left behind");
    }

    #[test]
    fn a_key_file_of_another_length_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for length in [0, 31, 33] {
            fs::write(folder.path().join(KEY_FILE), vec![7; length]).unwrap();
            assert!(Mask::new(ClientMask::KeyedHash, folder.path()).is_err(), "{length} bytes");
        }
    }
}
