//! The rules in the kernel, by way of `nft`: its text is what an operator can read, and a file of it is one transaction.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use thiserror::Error;

use super::{
    Ruleset, TABLE,
    listing::{Difference, Listing},
};
use crate::sys::{
    namespace::in_fresh_network,
    netlink::Netfilter,
    rights::{self, Right},
};

/// Where `nft` is looked for; whoever started us may have any other program in its path.
const NFT_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Why the kernel was not changed or not read.
#[derive(Debug, Error)]
pub enum Failure {
    /// No such program.
    #[error("there is no nft in {}; install the package nftables", NFT_FOLDERS.join(", "))]
    NoNft,
    /// It takes CAP_NET_ADMIN.
    #[error("not permitted to {0}: it takes root, or CAP_NET_ADMIN")]
    NotPermitted(&'static str),
    /// What it says, with line and column of the ruleset.
    #[error("nft refuses: {0}")]
    Refused(String),
    /// It did not run.
    #[error("cannot run {path}")]
    Run {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel would not.
    #[error("the kernel refuses")]
    Kernel(#[source] io::Error),
    /// The rules were loaded, and others are there.
    #[error("the kernel has other rules than were loaded: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NotTaken(Vec<Difference>),
}

/// A table beside ours that is there for a moment and has no force.
const TWIN: &str = "tunnelwarden-twin";

/// Longest complaint of `nft` that is passed on, in bytes.
const MAX_COMPLAINT: usize = 1000;

/// Puts the rules in force, in place of those of before, in one transaction. What is in the dynamic sets stays, unless
/// the mode is another.
///
/// # Errors
/// Nothing was changed.
pub fn apply(ruleset: &Ruleset) -> Result<(), Failure> {
    let mut netfilter = Netfilter::open().map_err(failed)?;
    let is_new = netfilter.table(TABLE).map_err(failed)?.is_none();
    if is_new {
        // By hand, since `nft` before 1.1 cannot make one that a keeper can own later.
        netfilter.create_table(TABLE).map_err(failed)?;
    }
    match load(&without_table(&ruleset.to_string())) {
        // Asked only now: with all leases in it, a table takes seconds to list.
        Err(Failure::Refused(_)) if !is_new && !fits(ruleset)? => {
            load(&format!("delete table inet {TABLE}\n{ruleset}"))
        }
        Err(failure) if is_new => {
            netfilter.delete_table(TABLE).map_err(failed)?;
            Err(failure)
        }
        outcome => outcome,
    }
}

/// The text for a table that is there already. To `nft` before 1.1 adding it again would mean to take its flags away,
/// which the kernel refuses. The other lines keep their numbers.
pub fn without_table(script: &str) -> String {
    let line = format!("add table inet {TABLE}");
    script.lines().map(|found| if found.trim() == line { "\n".to_owned() } else { format!("{found}\n") }).collect()
}

/// Everybody's rules, as `nft` tells a program; without what is in sets.
///
/// # Errors
/// They cannot be read.
pub fn rules_of_all() -> Result<String, Failure> {
    nft(&["-j", "-t", "list", "ruleset"], "", "read packet filter rules")
}

/// Has `nft` read a text: one transaction, all of it or nothing.
///
/// # Errors
/// Nothing was changed.
pub fn load(script: &str) -> Result<(), Failure> {
    nft(&["-f", "-"], script, "change packet filter rules").map(drop)
}

/// Can the table that is there become this one? A set keeps its type and a chain its hook for life, and both are
/// another mode's.
fn fits(ruleset: &Ruleset) -> Result<bool, Failure> {
    let is_typed = |there: &Listing, name: &str, key: &str| there.value(&format!("set {name}"), "type") == Some(key);
    let there = listed(TABLE)?;
    Ok(there.is_none_or(|there| ruleset.dynamic_types().all(|(name, key)| is_typed(&there, name, key))))
}

/// Takes our table away; was there one?
///
/// # Errors
/// It is still there.
pub fn remove() -> Result<bool, Failure> {
    let was_there = listed(TABLE)?.is_some();
    if was_there {
        load(&format!("delete table inet {TABLE}\n"))?;
    }
    Ok(was_there)
}

/// How the kernel differs from these rules. They are loaded where they have no force, and the two listings are compared:
/// `nft` writes both.
///
/// # Errors
/// It cannot be told.
pub fn compare(ruleset: &Ruleset) -> Result<Vec<Difference>, Failure> {
    let Some(found) = listed(TABLE)? else { return Ok(vec![Difference::NoTable]) };
    let script = ruleset.to_string();
    let apart = in_fresh_network(|| {
        load(&script)?;
        listed(TABLE)
    });
    // A container, which may change its packet filter, may not make networks.
    let expected = apart.unwrap_or_else(|_| twin(&script))?;
    Ok(expected.map(|expected| expected.differences(&found)).unwrap_or_default())
}

/// What `nft` makes of a script, by a table beside ours that is dormant: its chains are at no hook.
fn twin(script: &str) -> Result<Option<Listing>, Failure> {
    let rules = without_table(script).replace(&format!(" inet {TABLE} "), &format!(" inet {TWIN} "));
    let (add, delete) =
        (format!("add table inet {TWIN} {{ flags dormant; }}\n"), format!("delete table inet {TWIN}\n"));
    // One may be left of a comparison that was ended.
    load(&format!("{add}{delete}{add}{rules}"))?;
    let listing = listed(TWIN);
    load(&delete)?;
    listing
}

/// The same where there should be no rules.
///
/// # Errors
/// It cannot be told.
pub fn compare_with_none() -> Result<Vec<Difference>, Failure> {
    Ok(listed(TABLE)?.map(|_| Difference::Extra(format!("table inet {TABLE}"))).into_iter().collect())
}

/// A table as it is; `None` where there is none.
fn listed(table: &str) -> Result<Option<Listing>, Failure> {
    // Without counters' values, and everything in numbers.
    match nft(&["-snn", "list", "table", "inet", table], "", "read packet filter rules") {
        Ok(text) => Ok(Some(Listing::read(&text))),
        Err(Failure::Refused(said)) if said.contains("No such file or directory") => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// What it prints.
fn nft(arguments: &[&str], input: &str, doing: &'static str) -> Result<String, Failure> {
    let paths = NFT_FOLDERS.iter().map(|folder| PathBuf::from(folder).join("nft"));
    let path = paths.into_iter().find(|path| path.exists()).ok_or(Failure::NoNft)?;
    // Where it cannot be, `nft` says what it lacks.
    let _ = rights::hand_on(Right::NetAdmin);
    let mut command = Command::new(&path);
    command.args(arguments).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.spawn().and_then(|mut child| {
        // It reads all of it before it writes; if it has had enough, it says why.
        let written = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output()?;
        match written {
            Some(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            Some(_) | None => Ok(output),
        }
    });
    let output = output.map_err(|source| Failure::Run { path, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Operation not permitted") {
        return Err(Failure::NotPermitted(doing));
    }
    Err(Failure::Refused(said.trim().chars().take(MAX_COMPLAINT).collect()))
}

fn failed(error: io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::EPERM) => Failure::NotPermitted("change packet filter rules"),
        _ => Failure::Kernel(error),
    }
}
