//! Network namespaces for tests: what they do to tables and addresses, this machine never sees.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread that has a network of its own with a loopback interface. Where that may not be, the test is
/// skipped aloud, and fails on a machine that has to run everything.
pub(crate) fn within_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            assert!(std::env::var_os("CI").is_none(), "this has to run: no network namespace: {error}");
            return eprintln!("SKIPPED: no network namespace: {error}");
        }
        run("ip", &["link", "set", "lo", "up"]).unwrap();
        test();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Has `nft` carry out a script; its output, or what it complained about.
pub(crate) fn nft(script: &str) -> Result<String, String> {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = nft.spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Runs a command; its output, or what it complained about.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
