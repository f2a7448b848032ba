//! What the firewall costs: packets and connections on their way through an appliance, answers that open a lease,
//! rules that are replaced, memory. `just bench-firewall` runs it, as root.
//!
//! Each kind of appliance has a road of its own: three network namespaces in a row, client, appliance and internet.
//! In every round each kind runs once, one right after the other, beginning with another one each time, and counts as
//! a multiple of plain routing in the same round: the machine's speed is not what is measured. Nothing outside these
//! namespaces is touched, and they go with the bench.

#![allow(clippy::indexing_slicing, reason = "a measuring program may end with a message where an index is wrong")]

mod answers;
#[path = "../common/arguments.rs"]
mod arguments;
mod bare;
mod daemon;
#[allow(dead_code, reason = "the peers' bench shows more of it")]
#[path = "../common/figures.rs"]
mod figures;
mod internet;
#[allow(dead_code, reason = "the peers' bench looks at more of it")]
#[path = "../common/machine.rs"]
mod machine;
#[allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the tests' networks, which may end with a message where the machine gives none"
)]
#[path = "../../tests/suite/support/bed/namespace.rs"]
mod namespace;
mod report;
mod road;
#[allow(dead_code, reason = "reading is the peers' bench's part")]
#[path = "../common/section.rs"]
mod section;
mod traffic;
mod trial;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser as _;

use arguments::Common;
use trial::{Effort, Wanted, What};

/// What the firewall costs beside plain routing. Without --quick, --beside and --only its part of docs/performance.md is
/// written.
#[derive(clap::Parser, Debug)]
#[command(bin_name = "cargo bench --bench firewall --")]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// So many rounds; 12, and 1 with --quick, where nothing is said
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Another tunnelwarden, whose gate is measured in the same rounds: before and after
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,
    /// Of packets this alone, and nothing else; as often as wanted
    #[arg(long, value_name = "WHAT")]
    only: Vec<What>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { common: Common { quick, binary, .. }, rounds, beside, only }: Arguments) -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the bench needs root: it makes networks and packet filter rules"
    );
    let mut effort = if quick { Effort::QUICK } else { Effort::FULL };
    effort.rounds = rounds.unwrap_or(effort.rounds);
    let is_whole = beside.is_none() && only.is_empty();
    let results = trial::run(effort, &Wanted { binary: &binary, other: beside.as_deref(), only })?;
    println!("{}", report::tables(&results));
    if quick {
        println!("One short round: it all runs, and the figures mean nothing.");
    }
    if quick || !is_whole {
        return Ok(());
    }
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
    section::write(&document, &report::part(&results))?;
    println!("written: a part of {}", document.display());
    Ok(())
}
