//! `tunnelwarden firewall`: the packet filter's rules, shown, applied, compared and taken away.

use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use serde::Serialize;

use super::{Common, Exit, control_socket, learned, load, print_json, socket_or_default, state_dir};
use crate::{
    config::Config,
    control::{self, Change, ClientError, Firewall, Reply, Request},
    firewall::{self, Difference, Mode, Ruleset},
    ingress::{self, Report},
    keeper::{self, Counts},
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
    Apply(Apply),
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

#[derive(clap::Args, Debug)]
struct Apply {
    /// Where [firewall] mode is "off", there is nothing to do, and that is no failure
    #[arg(long)]
    if_any: bool,
}

/// What `status` tells a machine.
#[derive(Serialize)]
struct Status {
    same: bool,
    differences: Vec<Difference>,
    /// What the daemon says of it; none where there is no daemon.
    held: Option<Firewall>,
    learned: Option<Report>,
}

pub(super) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<Exit> {
    match &arguments.action {
        Action::Show(Show { uid }) => {
            anstream::print!("{}", ruleset(&load(common)?, *uid)?);
            Ok(Exit::Done)
        }
        Action::Apply(Apply { if_any }) => {
            let config = load(common)?;
            if *if_any && config.firewall.mode == Mode::Off {
                anstream::println!("there are no rules to apply: [firewall] mode is \"off\"");
                return Ok(Exit::Done);
            }
            apply(&config, common)
        }
        Action::Status => status(&load(common)?, common),
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
        None => firewall::user_of(options).context("the rules know the forwarder by its user")?.uid.as_raw(),
    };
    Ok(Ruleset::new(options, &config.policy, uid))
}

/// Through the daemon where one holds the firewall: the table is its keeper's. Else changes the kernel itself.
fn apply(config: &Config, common: &Common) -> anyhow::Result<Exit> {
    let ruleset = ruleset(config, None)?;
    if change(&socket_or_default(config.listen.socket.clone(), common)?, Change::Apply)? {
        anstream::println!("in force: table inet {}, by the running daemon", firewall::TABLE);
        return Ok(Exit::Done);
    }
    firewall::apply(&ruleset)?;
    let differences = firewall::compare(&ruleset)?;
    if !differences.is_empty() {
        return Err(firewall::Failure::NotTaken(differences).into());
    }
    close_remembered(config, common)?;
    anstream::println!("in force: table inet {}", firewall::TABLE);
    Ok(Exit::Done)
}

/// Until there is a daemon, what an earlier one learned is closed as it was.
fn close_remembered(config: &Config, common: &Common) -> anyhow::Result<()> {
    let Ok(folder) = state_dir(common) else { return Ok(()) };
    let remember = config.ingress.remember;
    let remembered = ingress::remembered(&folder, remember, Timestamp::now());
    if remembered.is_empty() {
        return Ok(());
    }
    let closed = keeper::set_up(super::keeper::terms(common, 0, false)?, &remembered, remember);
    closed.map_err(|words| anyhow!("the rules are in force, without the addresses that were learned: {words}"))
}

/// Asks the daemon for a change; no, where nobody holds the firewall.
fn change(socket: &Path, change: Change) -> anyhow::Result<bool> {
    match control::send(socket, &Request::Firewall { change: Some(change) }) {
        Ok(Reply::Firewall(Firewall::Held { .. })) => Ok(true),
        Ok(Reply::Firewall(Firewall::Refused { reason })) => bail!("the running daemon did not do it: {reason}"),
        Ok(Reply::Firewall(Firewall::None)) | Err(ClientError::Absent { .. }) => Ok(false),
        Ok(Reply::Reload(_) | Reply::Flushed | Reply::Learned(_) | Reply::Following | Reply::Refused { .. }) => {
            bail!("the daemon answered something else")
        }
        Err(error) => Err(error.into()),
    }
}

fn status(config: &Config, common: &Common) -> anyhow::Result<Exit> {
    let differences = match asked_for(config, None)? {
        Some(ruleset) => firewall::compare(&ruleset)?,
        None => firewall::compare_with_none()?,
    };
    let socket = socket_or_default(config.listen.socket.clone(), common)?;
    let held = control::send(&socket, &Request::Firewall { change: None });
    let held = match held {
        Ok(Reply::Firewall(held)) => Some(held),
        Ok(_) | Err(_) => None,
    };
    let learned = learned::ask(&socket).ok();
    let same = differences.is_empty();
    if common.json {
        print_json(&Status { same, differences, held, learned })?;
    } else {
        print(&differences, held, config.firewall.mode);
        if let Some(learned) = learned {
            anstream::print!("learned: ");
            learned::show(&learned, &config.policy, &mut (false, &mut anstream::stdout().lock()))?;
        }
    }
    Ok(if same { Exit::Done } else { Exit::No })
}

fn print(differences: &[Difference], held: Option<Firewall>, mode: Mode) {
    match (differences, mode) {
        ([], Mode::Off) => anstream::println!("there are no rules, as the configuration asks for"),
        ([], Mode::Host | Mode::Gateway) => {
            anstream::println!("the kernel has the rules that the configuration asks for");
        }
        (differences, _) => differences.iter().for_each(|difference| anstream::println!("{difference}")),
    }
    match held {
        Some(Firewall::Held { standing, counts }) => {
            let Counts { leases, ports, denied, .. } = counts;
            anstream::println!("table: {standing}");
            anstream::println!("open: {leases} addresses, {ports} ports; ingress addresses: {denied}");
        }
        Some(Firewall::Refused { reason }) => anstream::println!("the daemon does not say how it stands: {reason}"),
        Some(Firewall::None) => anstream::println!("the running daemon has no firewall: nothing opens or learns"),
        None => anstream::println!("no daemon answers: what was learned and is open is not known"),
    }
}

/// Needs no configuration: broken files must not keep anybody from opening the network again.
fn remove(common: &Common) -> anyhow::Result<Exit> {
    // Where it cannot be given, the keeper says that it was not.
    let word = keeper::Word::give(keeper::REMOVAL.as_ref());
    let changed = change(&control_socket(common)?, Change::Remove);
    drop(word);
    if changed? {
        anstream::println!("removed: table inet {}, by the running daemon", firewall::TABLE);
    } else if firewall::remove()? {
        anstream::println!("removed: table inet {}", firewall::TABLE);
    } else {
        anstream::println!("there was no table inet {}", firewall::TABLE);
    }
    Ok(Exit::Done)
}
