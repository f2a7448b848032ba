//! The table in the kernel: loaded by one `nft`, owned where the kernel has that, watched and restored where not.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    thread,
    time::{Duration, Instant},
};

use super::{
    Terms,
    notice::{Protection, Trouble},
    sets::lease_key_length,
};
use crate::{
    firewall::{
        self, TABLE,
        sets::{INGRESS, LEASE, PORT},
    },
    sys::{
        netlink::{Adoption, Change, Changes, Netfilter},
        rights::{Right, has},
    },
};

/// How long another keeper may take to end, and how often we look.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(20);

/// What went wrong, and more of it for people.
pub(super) type Failed = (Trouble, String);

/// Our table.
pub(super) struct Kernel {
    /// While it lives and owns the table, nobody else can change it.
    netfilter: Netfilter,
    /// Open where the table is not owned.
    changes: Option<Changes>,
}

impl Kernel {
    /// Loads the table, or takes over one that is there with all that is in its sets.
    pub(super) fn load(terms: &Terms) -> Result<Self, Failed> {
        if !has(Right::NetAdmin).unwrap_or(true) {
            return Err((Trouble::NoRight, String::new()));
        }
        let mut netfilter = Netfilter::open().map_err(failed)?;
        outlast(|| make_room(&mut netfilter, terms))?;
        let mut kernel = Self { netfilter, changes: None };
        kernel.feed(terms)?;
        kernel.protect()?;
        Ok(kernel)
    }

    /// Loads other rules in place. What is in the sets that fill while we run stays; where it fails, all does.
    pub(super) fn reload(&mut self, terms: &Terms) -> Result<(), Failed> {
        self.release()?;
        let fed = self.feed(terms);
        self.protect()?;
        fed
    }

    /// Ownership ends with the socket, and with its copy in a child that was forked and did not become a program yet:
    /// `nft` cannot change the table before.
    fn release(&mut self) -> Result<(), Failed> {
        self.netfilter = Netfilter::open().map_err(failed)?;
        outlast(|| match self.netfilter.table(TABLE).map_err(failed)? {
            Some(table) if table.owner.is_some() => Err((Trouble::TableTaken, String::new())),
            Some(_) | None => Ok(()),
        })
    }

    fn feed(&mut self, terms: &Terms) -> Result<(), Failed> {
        firewall::load(&firewall::without_table(&terms.script)).map_err(refused)?;
        let sets = self.netfilter.sets(TABLE).map_err(failed)?;
        let missing = [INGRESS, LEASE, PORT].concat().into_iter().find(|name| !sets.iter().any(|(set, _)| set == name));
        missing.map_or(Ok(()), |name| Err((Trouble::NotAsLoaded, format!("set {name} is missing"))))
    }

    /// Owns the table; where that cannot be, listens from here on.
    fn protect(&mut self) -> Result<(), Failed> {
        match self.netfilter.adopt(TABLE).map_err(failed)? {
            Adoption::Owned => self.changes = None,
            Adoption::Impossible if self.changes.is_some() => {}
            Adoption::Impossible => self.changes = Some(Changes::of(TABLE).map_err(failed)?),
            Adoption::Taken => return Err((Trouble::TableTaken, String::new())),
        }
        // What happened between loading and listening was not heard.
        match self.netfilter.sets(TABLE) {
            Ok(sets) if !sets.is_empty() => Ok(()),
            Ok(_) => Err((Trouble::NotAsLoaded, "it was changed while it was loaded".to_owned())),
            Err(error) => Err(failed(error)),
        }
    }

    /// What keeps others from changing it.
    pub(super) fn protection(&self) -> Protection {
        if self.changes.is_some() { Protection::Watched } else { Protection::Owned }
    }

    /// Becomes readable when the table may have changed.
    pub(super) fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.changes.as_ref().map(|changes| changes.as_fd())
    }

    /// Did somebody else change it since this was asked last?
    pub(super) fn was_changed(&mut self) -> Result<bool, Failed> {
        let Some(changes) = &mut self.changes else { return Ok(false) };
        let heard = changes.read().map_err(failed)?;
        let ours = self.netfilter.port().map_err(failed)?;
        Ok(heard.iter().any(|change| *change != Change::By(ours)))
    }

    /// Loads the same rules again, over whatever others made of the table. Its sets are empty where they took it away;
    /// one that is made anew can be owned.
    pub(super) fn restore(&mut self, terms: &Terms) -> Result<(), Failed> {
        self.release()?;
        make_room(&mut self.netfilter, terms)?;
        self.feed(terms)?;
        self.protect()?;
        // What was heard by now is `nft`'s doing, or was put right by it.
        self.was_changed().map(drop)
    }

    /// Takes the table away.
    pub(super) fn remove(&mut self) -> Result<(), Failed> {
        self.changes = None;
        self.netfilter.delete_table(TABLE).map_err(failed)
    }

    /// For elements.
    pub(super) fn netfilter(&mut self) -> &mut Netfilter {
        &mut self.netfilter
    }
}

/// Whoever owned the table before may take a moment to end, and nothing tells when it has.
fn outlast(mut attempt: impl FnMut() -> Result<(), Failed>) -> Result<(), Failed> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err((Trouble::TableTaken, _)) if Instant::now() < deadline => thread::sleep(AGAIN),
            outcome => return outcome,
        }
    }
}

/// A table that is not there yet is made such that it can be owned. One that was made for another mode has sets of
/// other types: it goes, since no line could change them.
fn make_room(netfilter: &mut Netfilter, terms: &Terms) -> Result<(), Failed> {
    match netfilter.table(TABLE).map_err(failed)? {
        Some(table) if table.owner.is_some() => return Err((Trouble::TableTaken, String::new())),
        Some(_) => {
            let sets = netfilter.sets(TABLE).map_err(failed)?;
            let length = sets.iter().find(|(set, _)| *set == LEASE[0]).map(|(_, length)| *length);
            if length.is_none_or(|length| length == lease_key_length(terms.gateway)) {
                return Ok(());
            }
            netfilter.delete_table(TABLE).map_err(failed)?;
        }
        None => {}
    }
    netfilter.create_table(TABLE).map(drop).map_err(failed)
}

fn refused(failure: firewall::Failure) -> Failed {
    let trouble = match failure {
        firewall::Failure::NoNft | firewall::Failure::Run { .. } => Trouble::NoNft,
        firewall::Failure::NotPermitted(_) => Trouble::NoRight,
        firewall::Failure::Refused(said) => return (Trouble::Ruleset, said),
        firewall::Failure::Kernel(_) => Trouble::Kernel,
        firewall::Failure::NotTaken(_) => Trouble::NotAsLoaded,
    };
    (trouble, failure.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "read in map_err")]
fn failed(error: io::Error) -> Failed {
    (Trouble::Kernel, error.to_string())
}
