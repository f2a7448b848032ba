//! What the firewall costs: packets and connections on their way through an appliance, answers that open a lease,
//! rules that are replaced, memory. `just bench-firewall` runs it, as root.
//!
//! Each kind of appliance has a road of its own: three network namespaces in a row, client, appliance and internet.
//! In every round each kind runs once, one right after the other, beginning with another one each time, and counts as
//! a multiple of plain routing in the same round: the machine's speed is not what is measured. Nothing outside these
//! namespaces is touched, and they go with the bench.

#![allow(clippy::indexing_slicing, reason = "a measuring program may end with a message where an index is wrong")]

mod answers;
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
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};

use trial::{Effort, Wanted, What};

const USAGE: &str =
    "usage: cargo bench --bench firewall -- [--quick] [--rounds N] [--binary FILE] [--beside FILE] [--only WHAT]
  --quick        one short round of everything, no judgement: does it all run?
  --rounds N     so many rounds; 12, and 1 with --quick
  --binary FILE  the tunnelwarden to measure; the one just built
  --beside FILE  another, whose gate is measured in the same rounds: before and after
  --only WHAT    of packets this alone, and nothing else: stream, single, connections or datagrams; as often as wanted
With none of --quick, --beside and --only the firewall's part of docs/performance.md is written.";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let (mut quick, mut rounds) = (false, None);
    let mut binary = PathBuf::from(env!("CARGO_BIN_EXE_tunnelwarden"));
    let (mut other, mut only) = (None, Vec::new());
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--rounds" => rounds = Some(arguments.next().unwrap_or_default().parse()?),
            "--binary" => binary = arguments.next().unwrap_or_default().into(),
            "--beside" => other = Some(PathBuf::from(arguments.next().unwrap_or_default())),
            "--only" => only.push(packets(&arguments.next().unwrap_or_default())?),
            // Cargo says so to every bench.
            "--bench" => {}
            _ => bail!("{argument} is not known\n{USAGE}"),
        }
    }
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the bench needs root: it makes networks and packet filter rules"
    );
    let mut effort = if quick { Effort::QUICK } else { Effort::FULL };
    effort.rounds = rounds.unwrap_or(effort.rounds);
    let is_whole = other.is_none() && only.is_empty();
    let results = trial::run(effort, &Wanted { binary: &binary, other: other.as_deref(), only })?;
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

/// Which packets that word stands for.
fn packets(word: &str) -> anyhow::Result<What> {
    What::ALL.into_iter().find(|what| what.word() == word).with_context(|| format!("--only {word}?\n{USAGE}"))
}
