//! Network namespaces for tests: what they do to tables and addresses, this machine never sees.

use std::{io::Write as _, process::Stdio, thread};

use namespace::{Namespace, possible, skip};
pub(crate) use namespace::{several_users, tool};

#[path = "../../../tests/suite/support/bed/namespace.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the suite, where all of it is used and public")]
mod namespace;

/// Runs a test on a thread that has a network of its own with a loopback interface. Where that may not be, the test is
/// skipped aloud, and fails on a machine that has to run everything.
pub(crate) fn within_namespace(test: impl FnOnce() + Send) {
    let this = thread::current();
    let name = this.name().unwrap_or_default();
    // By its name, which is its thread's but for `--test-threads=1`, a test can be run again as root of its own.
    let has_name = name.contains("::") || nix::unistd::geteuid().is_root();
    if !has_name {
        skip("a test in a namespace", "with one thread for all it needs real root");
    } else if possible(name) {
        Namespace::new().inside(test);
    }
}

/// Has `nft` carry out a script; its output, or what it complained about.
pub(crate) fn nft(script: &str) -> Result<String, String> {
    let mut nft = tool("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = nft.spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Runs a command; its output, or what it complained about.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = tool(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
