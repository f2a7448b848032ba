//! What confines this process for good: the rights it gave up, the files it may write, the system calls it may make.
//!
//! To be entered before there are threads: each thread has these of its own, and gives them to those it starts.

mod calls;
mod files;

use std::{fmt, path::PathBuf};

use nix::sys::prctl::get_no_new_privs;

use super::rights::{self, Right};

/// What is in force, and what the kernel has not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sandbox {
    /// `capabilities`, `no_new_privs`, `landlock` and `seccomp`.
    pub parts: Vec<Part>,
}

/// One part of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Part {
    /// Which.
    pub name: &'static str,
    /// Does it hold?
    pub is_in_force: bool,
    /// The same in words: what is left, or why it does not.
    pub words: String,
}

/// Which programs are started from within.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Programs {
    /// None may be.
    None,
    /// They have the same sandbox.
    Confined,
}

impl Sandbox {
    /// Gives up every right but those to `keep`, then every file to write that is not at or below one of `writable`,
    /// every program to start, and the system calls that nothing here makes. What the kernel lacks or an outer sandbox
    /// forbids is told, and the rest holds nevertheless.
    pub fn enter(keep: &[Right], writable: &[PathBuf]) -> Self {
        let given_up = rights::give_up(keep).and_then(|()| rights::held());
        let parts = vec![
            Part::new("capabilities", given_up.map(|held| words_of(&held))),
            no_new_privs(),
            landlock(writable, Programs::None),
            seccomp(Programs::None),
        ];
        Self { parts }
    }

    /// The same for who keeps rights and starts programs, which have all of it too. Writes nothing, unless it is to look
    /// into others' processes: who is in a domain of Landlock may not.
    pub fn enter_with_programs(looks_into_others: bool) -> Self {
        let mut parts = vec![no_new_privs()];
        if !looks_into_others {
            parts.push(landlock(&["/dev/null".into()], Programs::Confined));
        }
        parts.push(seccomp(Programs::Confined));
        Self { parts }
    }

    /// Is a part of that name in force?
    pub fn holds(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part.name == name && part.is_in_force)
    }
}

impl Part {
    fn new(name: &'static str, outcome: Result<String, impl fmt::Display>) -> Self {
        match outcome {
            Ok(words) => Self { name, is_in_force: true, words },
            Err(error) => Self { name, is_in_force: false, words: format!("without {name}: {error}") },
        }
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.parts.iter().map(|part| part.words.as_str()).collect();
        f.write_str(&words.join(", "))
    }
}

fn words_of(held: &[String]) -> String {
    if held.is_empty() { "no capabilities".to_owned() } else { format!("only {}", held.join(" ")) }
}

/// Whoever is no root may have no filter of its own without it.
fn no_new_privs() -> Part {
    Part::new("no_new_privs", seal().map(|()| "no_new_privs".to_owned()))
}

fn landlock(writable: &[PathBuf], programs: Programs) -> Part {
    Part::new("landlock", files::confine(writable, programs).map(|abi| format!("landlock ABI {abi}")))
}

fn seccomp(programs: Programs) -> Part {
    Part::new("seccomp", calls::forbid(programs).map(|()| "seccomp".to_owned()))
}

fn seal() -> nix::Result<()> {
    if get_no_new_privs()? { Ok(()) } else { nix::sys::prctl::set_no_new_privs() }
}

#[cfg(test)]
mod tests {
    use std::{
        fs, io,
        os::unix::fs::symlink,
        path::Path,
        process::{Command, Stdio},
        thread,
    };

    use nix::{errno::Errno, libc};

    use super::*;

    const FOLDER: &str = "TUNNELWARDEN_TEST_FOLDER";

    /// Runs one test of this file again, in a process of its own, with a folder to write in. `None`: that was done.
    fn alone(test: &str) -> Option<PathBuf> {
        if let Some(folder) = std::env::var_os(FOLDER) {
            return Some(folder.into());
        }
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        fs::write(folder.path().join("else"), "before").unwrap();
        let name = format!("sys::sandbox::tests::{test}");
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", &name, "--nocapture"]).env(FOLDER, folder.path()).stdin(Stdio::null());
        assert!(again.status().unwrap().success(), "{name}");
        assert_eq!(fs::read_to_string(folder.path().join("else")).unwrap(), "before");
        None
    }

    fn refused<T: fmt::Debug>(outcome: io::Result<T>) -> bool {
        outcome.unwrap_err().kind() == io::ErrorKind::PermissionDenied
    }

    /// What the kernel says to a call without arguments.
    fn call(number: libc::c_long, first: usize) -> Errno {
        // SAFETY: every call used is refused before it does anything, or fails on an argument of 0.
        #[allow(unsafe_code, reason = "calls that nobody has a face for, since nobody is to make them")]
        let result = unsafe { libc::syscall(number, first, 0_usize, 0_usize, 0_usize, 0_usize) };
        Errno::result(result).unwrap_err()
    }

    fn needs(sandbox: &Sandbox, part: &str) -> bool {
        let holds = sandbox.holds(part);
        assert!(holds || std::env::var_os("CI").is_none(), "this has to hold: {sandbox}");
        if !holds {
            eprintln!("SKIPPED: {sandbox}");
        }
        holds
    }

    #[test]
    fn only_what_was_named_is_written_and_what_was_open_stays() {
        let Some(folder) = alone("only_what_was_named_is_written_and_what_was_open_stays") else { return };
        let (state, other) = (folder.join("state"), folder.join("else"));
        symlink(&other, state.join("link")).unwrap();
        let sandbox = Sandbox::enter(&[], &[state.clone(), "/dev/null".into(), folder.join("missing")]);
        if !needs(&sandbox, "landlock") {
            return;
        }
        for path in [other.as_path(), &state.join("link"), Path::new("/dev/full")] {
            assert!(refused(fs::OpenOptions::new().append(true).open(path)), "{}", path.display());
        }
        assert!(refused(fs::write(folder.join("new"), "")) && refused(fs::create_dir(folder.join("newer"))));
        assert!(refused(fs::remove_file(&other)));
        fs::write("/dev/null", "nothing").unwrap();
        fs::create_dir(state.join("inner")).unwrap();
        fs::write(state.join("inner/new"), "new").unwrap();
        fs::rename(state.join("inner/new"), state.join("inner/newer")).unwrap();
        std::os::unix::net::UnixListener::bind(state.join("socket")).unwrap();
        // All is read that modes let be read: a reload names what it likes.
        assert_eq!(fs::read_to_string(&other).unwrap(), "before");
        let database = rusqlite::Connection::open(state.join("store")).unwrap();
        database.pragma_update(None, "journal_mode", "WAL").unwrap();
        database.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
        // Threads have it from who starts them.
        assert!(thread::spawn(move || refused(fs::write(other, "after"))).join().unwrap());
    }

    #[test]
    fn what_takes_a_machine_over_is_not_called() {
        if alone("what_takes_a_machine_over_is_not_called").is_none() {
            return;
        }
        let sandbox = Sandbox::enter(&[], &[]);
        if !needs(&sandbox, "seccomp") {
            return;
        }
        assert!(refused(Command::new("/bin/true").status()));
        for number in calls::NEVER.iter().chain(calls::PROGRAMS) {
            assert_eq!(call(*number, 0), Errno::EPERM, "{number}");
        }
        for family in [libc::AF_PACKET, libc::AF_ALG, libc::AF_VSOCK] {
            assert_eq!(call(libc::SYS_socket, usize::try_from(family).unwrap()), Errno::EPERM, "{family}");
        }
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWNS] {
            assert_eq!(call(libc::SYS_clone, usize::try_from(flag).unwrap()), Errno::EPERM, "{flag}");
        }
        assert_eq!(call(libc::SYS_clone3, 0), Errno::ENOSYS);
        // No stranger's name for a call gets round the list.
        #[cfg(target_arch = "x86_64")]
        assert_eq!(call(0x4000_0000 | 520, 0), Errno::EPERM);
        // What answering takes goes on.
        assert_eq!(thread::spawn(|| 7).join().unwrap(), 7);
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!crate::sys::interfaces::Interfaces::read().unwrap().addresses.is_empty());
    }

    #[test]
    fn what_is_started_from_within_has_the_same_around_it() {
        let Some(folder) = alone("what_is_started_from_within_has_the_same_around_it") else { return };
        let sandbox = Sandbox::enter_with_programs(false);
        if !needs(&sandbox, "seccomp") || !needs(&sandbox, "landlock") {
            return;
        }
        for number in calls::NEVER {
            assert_eq!(call(*number, 0), Errno::EPERM, "{number}");
        }
        let shell = |words: &str| Command::new("/bin/sh").args(["-c", words]).current_dir(&folder).status().unwrap();
        assert!(shell("cat else >/dev/null && grep -q '^Seccomp:.2$' /proc/self/status").success());
        for words in ["echo after >else", "echo new >state/new", "unshare --user true", "chroot . true"] {
            assert!(!shell(words).success(), "{words}");
        }
    }

    #[test]
    fn who_looks_into_others_processes_still_can() {
        if alone("who_looks_into_others_processes_still_can").is_none() {
            return;
        }
        let mut other = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let sandbox = Sandbox::enter_with_programs(true);
        let seen = fs::read_link(format!("/proc/{}/exe", other.id()));
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(seen.is_ok() && sandbox.holds("no_new_privs"), "{seen:?} {sandbox}");
    }

    #[test]
    fn nothing_is_left_of_rights_and_what_holds_is_told() {
        if alone("nothing_is_left_of_rights_and_what_holds_is_told").is_none() {
            return;
        }
        let sandbox = Sandbox::enter(&[], &[]);
        assert!(sandbox.to_string().starts_with("no capabilities, no_new_privs, "), "{sandbox}");
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        for line in ["CapPrm:\t0000000000000000", "CapInh:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "{status}");
        }
        assert_eq!(status.contains("Seccomp:\t2"), sandbox.holds("seccomp"), "{status}");
        let again = Sandbox::enter(&[], &[]);
        assert_eq!(again.holds("landlock"), sandbox.holds("landlock"), "an outer one does not forbid an inner one");
    }
}
