//! From files to everyone's options and a compiled policy, or to everything that is wrong with the files.
//!
//! One TOML file, the packs it selects, and the lists they name. Nothing is in force because it was read: the
//! caller decides what to do with a [`Config`]. No mechanism sees the whole of it.

mod audit;
mod builtin;
mod cache;
mod clients;
mod compare;
mod files;
mod firewall;
mod library;
mod limits;
mod listen;
mod outline;
mod policy;
mod state;
mod upstream;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;

use self::{
    files::{ReadError, read_text},
    library::Library,
};
use crate::{
    document::{self, Table},
    gateway,
    policy::{
        Policy, compile,
        plan::{Organization, Plan},
    },
    problem::{Problem, Problems, Severity, SourceFile},
};

pub use outline::{Exception, Group, Outline};
pub use state::{NoStateFolder, state_dir};

/// Where the configuration and packs are where nobody says otherwise.
pub const SYSTEM_FOLDER: &str = "/etc/tunnelwarden";

/// Largest configuration and largest pack, in bytes: thirty thousand patterns. The parser takes up to eighty times as
/// much memory for garbage; more names belong into list files.
const MAX_FILE: u64 = 1 << 20;

/// What came of reading the configuration.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration, unless something is wrong with it.
    pub outcome: Option<Config>,
    /// All that is wrong, and what somebody should look at, in the order of the files.
    pub problems: Problems,
    /// Every file that was read or looked for: a change of one may change the outcome.
    pub files: Vec<PathBuf>,
    /// The text of each file that was read, built-in packs among them.
    pub sources: Vec<Arc<SourceFile>>,
}

/// Everyone's options, and the policy.
#[derive(Debug)]
pub struct Config {
    /// The file; `None` for the built-in defaults.
    pub path: Option<PathBuf>,
    /// `[listen]`.
    pub listen: crate::listen::Options,
    /// `[upstream]`.
    pub upstream: crate::upstream::Options,
    /// `[cache]`.
    pub cache: crate::cache::Options,
    /// `[limits]`.
    pub limits: gateway::Options,
    /// `[audit]`.
    pub audit: crate::audit::Options,
    /// `[firewall]`, and what of the others its rules depend on.
    pub firewall: crate::firewall::Options,
    /// How ingress addresses are learned.
    pub ingress: crate::ingress::Options,
    /// `[organization]`.
    pub organization: Organization,
    /// Networks of all `[[clients]]`.
    pub client_networks: Vec<IpNet>,
    /// What `[policy]`, `[[clients]]`, `[[exceptions]]` and the packs come to.
    pub policy: Arc<Policy>,
    /// The same in numbers and names, for people.
    pub outline: Outline,
}

/// Reads the configuration at `path`; without one, `tunnelwarden.toml` in [`SYSTEM_FOLDER`] if it is there, else the
/// built-in defaults. `now` tells which exceptions are past.
pub fn load(path: Option<&Path>, now: Timestamp) -> Loaded {
    load_in(Path::new(SYSTEM_FOLDER), path, now)
}

/// The same with another system folder.
fn load_in(system: &Path, path: Option<&Path>, now: Timestamp) -> Loaded {
    let default = system.join("tunnelwarden.toml");
    let named = path.unwrap_or(&default);
    match read_text(named, MAX_FILE) {
        Ok(text) => read_in(system, named, Some(named.to_owned()), text, now),
        Err(ReadError::Missing) if path.is_none() => read_in(system, named, None, String::new(), now),
        Err(error) => unread(named, &error),
    }
}

/// A text as the configuration at a place where there is nothing else.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_text_alone(text: String, now: Timestamp) -> Loaded {
    let nowhere = Path::new("/nonexistent");
    let path = nowhere.join("tunnelwarden.toml");
    read_in(nowhere, &path, Some(path.clone()), text, now)
}

/// A text that was read, or is as good as read, at the `named` place.
fn read_in(system: &Path, named: &Path, path: Option<PathBuf>, text: String, now: Timestamp) -> Loaded {
    let shown = path.clone().unwrap_or_else(|| "built-in defaults".into());
    let file = Arc::new(SourceFile { path: shown, text });
    let base = named.parent().unwrap_or(Path::new(""));
    let mut library = Library::new(base, system);
    library.note_file(named);
    library.sources.push(Arc::clone(&file));
    let mut problems = Problems::default();
    let sections = document::read(&file, &mut problems, |root| read_sections(root, base, &mut library));
    let Library { packs, files, sources, problems: pack_problems, .. } = library;
    problems.append(pack_problems);
    let outcome = sections.and_then(|sections| assemble(path, sections, packs, now, &mut problems));
    problems.sort_by_place();
    Loaded { outcome, problems, files, sources }
}

fn unread(path: &Path, error: &ReadError) -> Loaded {
    let mut problems = Problems::default();
    problems.push(Problem::without_place(format!("cannot read configuration {}: {error}", path.display())));
    Loaded { outcome: None, problems, files: vec![path.to_owned()], sources: Vec::new() }
}

/// The file, taken apart.
struct Sections {
    listen: crate::listen::Options,
    upstream: crate::upstream::Options,
    cache: crate::cache::Options,
    limits: gateway::Options,
    audit: crate::audit::Options,
    firewall: firewall::Section,
    /// Without its packs.
    plan: Plan,
}

fn read_sections(root: &mut Table<'_>, base: &Path, library: &mut Library) -> Sections {
    let organization = policy::read_organization(root);
    let defaults = policy::read_defaults(root, library);
    let groups = clients::read_groups(root, library, &defaults.packs);
    let exceptions = clients::read_exceptions(root);
    let firewall = firewall::read(root);
    Sections {
        listen: listen::read(root, base),
        upstream: upstream::read(root, base, library),
        cache: cache::read(root),
        limits: limits::read(root),
        audit: audit::read(root, base),
        plan: Plan { organization, defaults, groups, exceptions, packs: Vec::new(), nat64: firewall.nat64.clone() },
        firewall,
    }
}

/// Compiles the policy too when something is wrong already, so that everything is told at once.
fn assemble(
    path: Option<PathBuf>,
    sections: Sections,
    packs: Vec<crate::policy::plan::Pack>,
    now: Timestamp,
    problems: &mut Problems,
) -> Option<Config> {
    let Sections { listen, upstream, cache, limits, audit, firewall, plan } = sections;
    let plan = Plan { packs, ..plan };
    let remember = firewall.remember;
    firewall.fit_clients(&limits.clients, problems);
    let firewall = firewall.complete(&listen.dns, &upstream, &plan.organization, problems);
    let (policy, found) = compile(&plan, now);
    if problems.has_errors() {
        // A warning may only be a consequence of what could not be read, such as a pack.
        found
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .for_each(|error| problems.push(error.clone()));
        return None;
    }
    problems.append(found);
    Some(Config {
        path,
        listen,
        upstream,
        cache,
        limits,
        audit,
        ingress: builtin::ingress_options(remember, &firewall),
        firewall,
        client_networks: plan.groups.iter().flat_map(|group| &group.networks).map(|network| network.value).collect(),
        policy: Arc::new(policy?),
        outline: Outline::of(&plan),
        organization: plan.organization,
    })
}

/// Puts a value that was read in the place of a default.
fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

#[cfg(test)]
mod shipped;
#[cfg(test)]
mod tests;
