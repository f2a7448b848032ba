//! tunnelwarden beside Debian's unbound, dnsdist, named and dnsmasq, and beside a bare UDP echo: the same questions,
//! the same policy, the same upstream, on loopback, in interleaved rounds on one CPU. `just bench-peers` runs it.
//!
//! `just soak` is another use of the same load: tunnelwarden alone, everything at once and attacks beside it, for minutes
//! (`soak/`).
//!
//! What counts is the CPU time of the server for each answered question as a multiple of the echo's in the same
//! round: the rate depends on who else uses the machine, the ratio hardly does. The bench installs nothing, writes
//! into a temporary folder, and ends every process it started by its id.

#![allow(clippy::indexing_slicing, reason = "a measuring program may end with a message where an index is wrong")]

#[path = "../common/arguments.rs"]
mod arguments;
mod contestant;
#[allow(clippy::unwrap_used, unreachable_pub, reason = "it is the tests' own, and what is below a bound fits")]
#[path = "../../tests/suite/support/dice.rs"]
mod dice;
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

use std::{net::SocketAddrV4, path::PathBuf, process::ExitCode, thread, time::Duration};

use anyhow::Context;
use clap::Parser as _;

use arguments::Common;
use trial::Effort;

/// tunnelwarden beside other servers. Without --quick docs/performance.md is written, and its plots.
#[derive(clap::Parser, Debug)]
#[command(bin_name = "cargo bench --bench peers --")]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Where the document and the plots go; docs/ of this project, nowhere with --quick
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(subcommand)]
    instead: Option<Instead>,
}

/// What this program does in place of the comparison.
#[derive(clap::Subcommand, Debug)]
enum Instead {
    /// Nobody else, all kinds of load and of attacks at once: does tunnelwarden stay as it is?
    Soak {
        /// How long is measured, after a warm-up of about two minutes
        #[arg(default_value_t = SOAK)]
        seconds: u64,
    },
    /// One end of the comparison, as a process of its own.
    #[command(hide = true)]
    Echo { address: SocketAddrV4, workers: usize },
    /// The other end.
    #[command(hide = true)]
    Upstream { address: SocketAddrV4 },
}

/// With the warm-up some ten minutes.
const SOAK: u64 = 480;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { common: Common { quick, binary, .. }, out, instead }: Arguments) -> anyhow::Result<()> {
    let soak = match instead {
        Some(Instead::Echo { address, workers }) => return stand_in::echo(address, workers),
        Some(Instead::Upstream { address }) => return stand_in::upstream(address),
        Some(Instead::Soak { seconds }) => Some(Duration::from_secs(seconds)),
        None => None,
    };
    let cpus = thread::available_parallelism().context("cannot tell how many CPUs there are")?;
    anyhow::ensure!(cpus.get() >= 2, "the bench needs two CPUs: one for the server, one for the load");
    if let Some(time) = soak {
        return soak::run(time, &binary);
    }
    let (effort, out) = if quick {
        (Effort::Quick, out)
    } else {
        (Effort::Full, Some(out.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/docs").into())))
    };
    let results = trial::run(effort, binary)?;
    report::print(&results);
    if let Some(out) = out {
        report::write(&results, &out)?;
    }
    Ok(())
}
