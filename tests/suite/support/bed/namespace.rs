//! A network namespace without a name: it is gone when nobody is in it and nobody holds it.
//!
//! Which one a task is in is a property of its thread. So root needs no process of its own for it; anybody else first
//! has to become root of a user namespace, which a process with threads cannot, and a test runs again inside
//! `unshare` (util-linux).

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    os::fd::AsRawFd as _,
    panic::resume_unwind,
    process::{self, Command, Output, Stdio},
    thread,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{Uid, geteuid, setfsuid},
};

/// A network of its own.
pub struct Namespace(File);

/// Is there a bed for the test of this name, here and now? Where root of a user namespace is needed, the test runs
/// there and this says no, having failed with it. Where neither is to be had it is skipped, aloud; under CI it fails.
pub fn possible(test: &str) -> bool {
    if !installed(test, "ip", "-V") || !installed(test, "nft", "-v") {
        return false;
    }
    if thread::spawn(may_make_networks).join().unwrap() {
        return true;
    }
    if !succeeds(&mut unshared("true")) {
        return skip(test, "neither root nor allowed to make a user namespace");
    }
    let again = unshared(env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).status().unwrap();
    assert!(again.success(), "{test} failed in its user namespace");
    false
}

/// Tries it, in a thread to be thrown away. Root of a container may be root in name only.
fn may_make_networks() -> bool {
    geteuid().is_root()
        && unshare(CloneFlags::CLONE_NEWNET).is_ok()
        && fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").is_ok()
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Its tools stand where not everybody looks.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Is this program there, asked for its version? Skipped in the same way where not.
pub fn installed(test: &str, program: &str, version: &str) -> bool {
    succeeds(command(program).arg(version)) || skip(test, &format!("{program} is not installed"))
}

/// Are there two users to be told apart? A user namespace that somebody without rights made has one.
pub fn several_users_possible(test: &str) -> bool {
    if !possible(test) {
        return false;
    }
    several_users() || skip(test, "one user only; it needs real root")
}

/// Are there other users than the one we are?
pub fn several_users() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    let users: u64 = map.lines().map(|line| line.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()).sum();
    users > 65_534
}

fn skip(test: &str, why: &str) -> bool {
    eprintln!("not tested: {test}: {why}");
    assert!(env::var_os("CI").is_none(), "nothing may be skipped");
    false
}

fn unshared(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net"]).arg(program);
    command
}

/// From now on sockets that this thread makes belong to `user`, as `meta skuid` sees it: the kernel takes the id that
/// counts for files. The rights of the thread stay.
pub fn sockets_belong_to(user: u32) {
    setfsuid(Uid::from_raw(user));
    assert_eq!(setfsuid(Uid::from_raw(user)), Uid::from_raw(user), "no such user here");
}

impl Namespace {
    /// A new one with loopback up.
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let namespace = made.join().unwrap();
        namespace.set("ipv6/conf/default/accept_dad", "0");
        namespace.ip("link set lo up\n");
        namespace
    }

    /// Does `work` in it, on a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(entered).join().unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// Where other processes find it, for as long as we hold it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }

    /// Runs a command in it.
    pub fn run(&self, words: &[&str], input: &str) -> Output {
        self.inside(|| {
            let mut child = command(words[0])
                .args(&words[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // Who reads nothing of it may be gone.
            let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
            child.wait_with_output().unwrap()
        })
    }

    /// Commands of `ip`, one a line.
    pub fn ip(&self, lines: &str) {
        let output = self.run(&["ip", "-batch", "-"], lines);
        assert!(output.status.success(), "{lines}{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Sets a switch below `/proc/sys/net`.
    pub fn set(&self, switch: &str, value: &str) {
        self.inside(|| fs::write(format!("/proc/sys/net/{switch}"), value).unwrap());
    }
}
