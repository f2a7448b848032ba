//! A network namespace without a name: it is gone when nobody is in it and nobody holds it.
//!
//! Which one a task is in is a property of its thread. So root needs no process of its own for it; anybody else first
//! has to become root of a user namespace, which a process with threads cannot, and a test runs again inside
//! `unshare` (util-linux), with a `/run` of its own.

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

/// A tool of the system's, which stands where not everybody looks.
pub fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Is this program there, asked for its version? Skipped in the same way where not.
pub fn installed(test: &str, program: &str, version: &str) -> bool {
    succeeds(tool(program).arg(version)) || skip(test, &format!("{program} is not installed"))
}

/// Are there two users to be told apart? A user namespace that somebody without rights made has one.
pub fn several_users_possible(test: &str) -> bool {
    if !possible(test) {
        return false;
    }
    several_users() || skip(test, ONE_USER)
}

/// Why a test is left out that has to tell users apart.
const ONE_USER: &str = "one user only; it needs real root";

/// Are there other users than the one we are?
pub fn several_users() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    let users: u64 = map.lines().map(|line| line.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()).sum();
    users > 65_534
}

/// Says that a test is left out, and that there is nothing to run; under CI it fails.
pub fn skip(test: &str, why: &str) -> bool {
    eprintln!("not tested: {test}: {why}");
    assert!(env::var_os("CI").is_none(), "nothing may be skipped");
    false
}

fn unshared(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-ec", OWN_RUN]).arg(program);
    command
}

/// Gives the command that follows a `/run` in which it may leave its word as root: this machine's is another's, and what
/// is in there, sockets of services, is not asked. Only the list of name servers is often a link that leads there.
const OWN_RUN: &str = r#"
servers=$(readlink -m /etc/resolv.conf)
said=$(cat /etc/resolv.conf || :)
mount -t tmpfs -o mode=755 tmpfs /run
case $servers in
/run/*)
    mkdir -p "${servers%/*}"
    printf '%s\n' "$said" >"$servers"
    ;;
esac
exec "$0" "$@"
"#;

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
            let mut child = tool(words[0])
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

    /// Runs a command that has to work; what it printed.
    pub fn must(&self, words: &[&str], input: &str) -> String {
        let output = self.run(words, input);
        assert!(output.status.success(), "{words:?}: {input}{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Commands of `ip`, one a line.
    pub fn ip(&self, lines: &str) {
        self.must(&["ip", "-batch", "-"], lines);
    }

    /// Lays a cable to another one, with these names for its ends; both are up.
    pub fn join(&self, here: &str, other: &Self, there: &str) {
        self.ip(&format!("link add {here} type veth peer name {there} netns {}\nlink set {here} up\n", other.path()));
        other.ip(&format!("link set {there} up\n"));
    }

    /// Sets a switch below `/proc/sys/net`.
    pub fn set(&self, switch: &str, value: &str) {
        self.inside(|| fs::write(format!("/proc/sys/net/{switch}"), value).unwrap());
    }
}
