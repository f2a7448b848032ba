//! tunnelwarden beside Debian's unbound, dnsdist, named and dnsmasq, and beside a bare UDP echo: the same questions,
//! the same policy, the same upstream, on loopback, in interleaved rounds on one CPU. `just bench-peers` runs it.
//!
//! `just soak` is another use of the same load: tunnelwarden alone, everything at once, for minutes (`soak/`).
//!
//! What counts is the CPU time of the server for each answered question as a multiple of the echo's in the same
//! round: the rate depends on who else uses the machine, the ratio hardly does. The bench installs nothing, writes
//! into a temporary folder, and ends every process it started by its id.

#![allow(clippy::indexing_slicing, reason = "a measuring program may end with a message where an index is wrong")]

mod contestant;
mod duel;
#[path = "../common/figures.rs"]
mod figures;
mod kernel;
mod load;
#[allow(dead_code, reason = "the firewall's bench looks at more of it")]
#[path = "../common/machine.rs"]
mod machine;
mod plot;
mod question;
mod report;
#[allow(dead_code, reason = "writing is the firewall's bench's part")]
#[path = "../common/section.rs"]
mod section;
mod server;
mod soak;
mod stand_in;
mod trial;

use std::{env, path::PathBuf, process::ExitCode, thread, time::Duration};

use anyhow::{Context, bail};

use trial::Effort;

const USAGE: &str = "usage: cargo bench --bench peers -- [--quick] [--out DIR] [--binary FILE]
       cargo bench --bench peers -- soak [SECONDS] [--binary FILE]
  --quick        one short round of everything, no judgement: does it all run?
  --out DIR      where the document and the plots go; docs/ of this project, nowhere with --quick
  --binary FILE  the tunnelwarden to measure; the one just built
  soak           nobody else, all kinds of load at once: does tunnelwarden stay as it is? 480 seconds, or so
                 many, after a warm-up of about two minutes";

/// What a soak measures where nothing else is said: with the warm-up some ten minutes.
const SOAK: Duration = Duration::from_secs(480);

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
    let mut arguments = env::args().skip(1);
    let mut effort = Effort::Full;
    let (mut out, mut soak) = (None, None);
    let mut binary = PathBuf::from(env!("CARGO_BIN_EXE_tunnelwarden"));
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            // The two ends of the comparison are this program too, as processes of their own.
            "echo" => return stand_in::echo(value()?.parse()?, value()?.parse()?),
            "upstream" => return stand_in::upstream(value()?.parse()?),
            "soak" => soak = Some(SOAK),
            seconds if soak.is_some() && seconds.parse::<u64>().is_ok() => {
                soak = seconds.parse().map(Duration::from_secs).ok();
            }
            "--quick" => effort = Effort::Quick,
            "--out" => out = Some(PathBuf::from(value()?)),
            "--binary" => binary = value()?.into(),
            // Cargo says so to every bench.
            "--bench" => {}
            _ => bail!("{argument} is not known\n{USAGE}"),
        }
    }
    let cpus = thread::available_parallelism().context("cannot tell how many CPUs there are")?;
    anyhow::ensure!(cpus.get() >= 2, "the bench needs two CPUs: one for the server, one for the load");
    if let Some(time) = soak {
        return soak::run(time, &binary);
    }
    let out = match effort {
        Effort::Full => Some(out.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/docs").into())),
        Effort::Quick => out,
    };
    let results = trial::run(effort, binary)?;
    report::print(&results);
    if let Some(out) = out {
        report::write(&results, &out)?;
    }
    Ok(())
}
