//! `tunnelwarden firewall`: the packet filter's rules, shown, applied, compared and taken away.

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{Common, Exit, control_socket, load, print_json};
use crate::{
    config::Config,
    control::{self, Change, ClientError, Reply, Request},
    firewall::{self, Difference, Failure, Ruleset},
    keeper,
};

/// What `firewall` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Print the exact ruleset, as `nft -f` takes it; needs no privileges
    Show(Show),
    /// Put the rules in force, in place of those of before; what was learned and leased stays
    #[command(after_help = "Exit codes: 0 in force; 1 nothing was changed; 5 not permitted.")]
    Apply,
    /// Compare the kernel's rules with those that the configuration asks for
    #[command(after_help = "Exit codes: 0 the same; 4 they differ, or there are none; 5 not permitted.")]
    Status,
    /// Take the rules away, and nobody else's
    #[command(after_help = "Exit codes: 0 there are none now; 5 not permitted.")]
    Remove,
}

#[derive(clap::Args, Debug)]
struct Show {
    /// Take this number for the user of [firewall] user, who need not exist then
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    uid: Option<u32>,
}

/// What `status` tells a machine.
#[derive(Serialize)]
struct Status {
    same: bool,
    differences: Vec<Difference>,
}

pub(super) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<Exit> {
    match &arguments.action {
        Action::Show(Show { uid }) => {
            anstream::print!("{}", ruleset(&load(common)?, *uid)?);
            Ok(Exit::Done)
        }
        Action::Apply => apply(&ruleset(&load(common)?, None)?, common),
        Action::Status => status(&load(common)?, common.json),
        Action::Remove => remove(common),
    }
}

/// The rules that the configuration asks for.
fn ruleset(config: &Config, uid: Option<u32>) -> anyhow::Result<Ruleset> {
    match asked_for(config, uid)? {
        Some(ruleset) => Ok(ruleset),
        None => bail!("there are no rules: [firewall] mode is \"off\"; set it to \"host\" or \"gateway\""),
    }
}

fn asked_for(config: &Config, uid: Option<u32>) -> anyhow::Result<Option<Ruleset>> {
    let options = &config.firewall;
    if options.mode == firewall::Mode::Off {
        return Ok(None);
    }
    let uid = match uid {
        Some(uid) => uid,
        None => firewall::uid_of(&options.user).context("the rules know the forwarder by its user")?,
    };
    Ok(Ruleset::new(options, &config.policy, uid))
}

fn apply(ruleset: &Ruleset, common: &Common) -> anyhow::Result<Exit> {
    let asked = ask_keeper(Change::Apply, common)?;
    if asked != Asked::Done {
        asked.or_directly(firewall::apply(ruleset))?;
    }
    let differences = firewall::compare(ruleset)?;
    if !differences.is_empty() {
        return Err(firewall::Failure::NotTaken(differences).into());
    }
    anstream::println!("in force: table inet {}", firewall::TABLE);
    Ok(Exit::Done)
}

fn status(config: &Config, json: bool) -> anyhow::Result<Exit> {
    let differences = match asked_for(config, None)? {
        Some(ruleset) => firewall::compare(&ruleset)?,
        None => firewall::compare_with_none()?,
    };
    let same = differences.is_empty();
    if json {
        print_json(&Status { same, differences })?;
    } else if same {
        anstream::println!("the kernel has the rules that the configuration asks for");
    } else {
        differences.iter().for_each(|difference| anstream::println!("{difference}"));
    }
    Ok(if same { Exit::Done } else { Exit::No })
}

/// Needs no configuration: broken files must not keep anybody from opening the network again.
fn remove(common: &Common) -> anyhow::Result<Exit> {
    // Where it cannot be given, the keeper says that it was not.
    let word = keeper::Word::give(keeper::REMOVAL.as_ref());
    let asked = ask_keeper(Change::Remove, common)?;
    drop(word);
    if asked == Asked::Done || asked.or_directly(firewall::remove())? {
        anstream::println!("removed: table inet {}", firewall::TABLE);
    } else {
        anstream::println!("there was no table inet {}", firewall::TABLE);
    }
    Ok(Exit::Done)
}

/// What came of asking the daemon, whose keeper owns the table while it runs.
#[derive(Eq, PartialEq)]
enum Asked {
    Done,
    Refused(String),
    /// There is no daemon, or none that we may ask.
    Nobody,
}

fn ask_keeper(change: Change, common: &Common) -> anyhow::Result<Asked> {
    let Ok(socket) = control_socket(common) else { return Ok(Asked::Nobody) };
    match control::send(&socket, &Request::Firewall { change }) {
        Ok(Reply::Firewall { refused: None }) => Ok(Asked::Done),
        Ok(Reply::Firewall { refused: Some(why) }) => Ok(Asked::Refused(why)),
        Ok(Reply::Reload(_) | Reply::Flushed | Reply::Learned(_) | Reply::Following | Reply::Refused { .. }) => {
            bail!("the daemon answered something else")
        }
        Err(ClientError::Absent { .. } | ClientError::NotPermitted { .. }) => Ok(Asked::Nobody),
        Err(error @ ClientError::Broken { .. }) => Err(error.into()),
    }
}

impl Asked {
    /// What came of doing it ourselves. Where the table is the daemon's, what that said is the reason.
    fn or_directly<T>(self, done: Result<T, Failure>) -> anyhow::Result<T> {
        match (self, done) {
            (Self::Refused(why), Err(Failure::NotPermitted(_))) => bail!("the running daemon says: {why}"),
            (Self::Done | Self::Refused(_) | Self::Nobody, done) => Ok(done?),
        }
    }
}
