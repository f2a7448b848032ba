//! Which rights (capabilities) this process has, and giving up all but a few.
//!
//! To be called before there are threads: the kernel keeps rights for each thread on its own.

use std::io;

use nix::{
    errno::Errno,
    sys::prctl::{set_dumpable, set_keepcaps, set_no_new_privs},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

/// A right of capabilities(7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Right {
    /// Look past the modes of files and folders.
    DacReadSearch = 2,
    /// Listen on ports below 1024.
    NetBindService = 10,
    /// Change the packet filter.
    NetAdmin = 12,
    /// Look into other users' processes.
    SysPtrace = 19,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words for each kind.
const VERSION: u32 = 0x2008_0522;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Header {
    version: u32,
    process: i32,
}

/// `struct __user_cap_data_struct`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

static OURSELVES: Header = Header { version: VERSION, process: 0 };

/// Has this thread a right?
///
/// # Errors
/// When a sandbox forbids to ask.
pub fn has(right: Right) -> io::Result<bool> {
    Ok(bits(read()?.map(|word| word.effective)) & bit(right) != 0)
}

/// Becomes another user without other groups, and gives up every right but those to `keep`. There is no way back.
///
/// # Errors
/// When it may not, or has not what it is to keep.
pub fn become_user(user: u32, group: u32, keep: &[Right]) -> io::Result<()> {
    forbid_others(keep)?;
    set_keepcaps(true)?;
    setgroups(&[])?;
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    write(keep, 0)?;
    seal()
}

/// Stays the user it is, but gives up every right but those to `keep`. Programs it starts have these too.
///
/// # Errors
/// When it has not what it is to keep.
pub fn keep_only(keep: &[Right]) -> io::Result<()> {
    forbid_others(keep)?;
    write(keep, mask(keep))?;
    for right in keep {
        control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, u32::from(*right as u8))?;
    }
    seal()
}

/// Stays the user it is, with no right but those to `keep`, which programs it starts do not have, and there is no way to
/// gain one. Who looks into us still may: a core dump of a forwarder that guards nothing is its operator's.
///
/// # Errors
/// When it has not what it is to keep.
pub fn give_up(keep: &[Right]) -> io::Result<()> {
    forbid_others(keep)?;
    // An outer sandbox may forbid to change what needs no change.
    let words = read()?;
    if bits(words.map(|word| word.permitted | word.inheritable)) != mask(keep) {
        write(keep, 0)?;
    }
    set_no_new_privs()?;
    Ok(())
}

/// The names of the rights this thread has.
///
/// # Errors
/// When a sandbox forbids to ask.
pub fn held() -> io::Result<Vec<String>> {
    let held = bits(read()?.map(|word| word.permitted));
    Ok((0..u64::BITS).filter(|number| held & 1 << number != 0).map(name).collect())
}

fn name(number: u32) -> String {
    let known = [Right::DacReadSearch, Right::NetBindService, Right::NetAdmin, Right::SysPtrace];
    match known.into_iter().find(|right| u32::from(*right as u8) == number) {
        Some(Right::DacReadSearch) => "CAP_DAC_READ_SEARCH".to_owned(),
        Some(Right::NetBindService) => "CAP_NET_BIND_SERVICE".to_owned(),
        Some(Right::NetAdmin) => "CAP_NET_ADMIN".to_owned(),
        Some(Right::SysPtrace) => "CAP_SYS_PTRACE".to_owned(),
        None => format!("capability {number}"),
    }
}

/// Programs that this thread starts have a right, too, if it has it. Root's have it anyway; another user's have not where
/// it came from our own file (capabilities(7), "File capabilities").
///
/// # Errors
/// When a sandbox forbids it.
pub fn hand_on(right: Right) -> io::Result<()> {
    if Uid::effective().is_root() || !has(right)? {
        return Ok(());
    }
    let mut words = read()?;
    words.iter_mut().zip(halves(bit(right))).for_each(|(word, half)| word.inheritable |= half);
    set(words)?;
    control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, u32::from(right as u8))
}

/// No program that is started gains a right, and nobody of the same user looks into us.
fn seal() -> io::Result<()> {
    set_no_new_privs()?;
    set_dumpable(false)?;
    Ok(())
}

/// Takes rights out of reach for good, as far as this process may do that; without the right to, it has none to regain.
fn forbid_others(keep: &[Right]) -> io::Result<()> {
    for number in 0..64 {
        if mask(keep) & 1 << number != 0 {
            continue;
        }
        match control(libc::PR_CAPBSET_DROP, number, 0) {
            Ok(()) => {}
            // Past the last right there is; no right to.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn bit(right: Right) -> u64 {
    1 << right as u8
}

fn mask(rights: &[Right]) -> u64 {
    rights.iter().fold(0, |mask, right| mask | bit(*right))
}

fn bits([low, high]: [u32; 2]) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn halves(mask: u64) -> [u32; 2] {
    [mask, mask >> 32].map(|half| u32::try_from(half & u64::from(u32::MAX)).unwrap_or_default())
}

fn read() -> io::Result<[Word; 2]> {
    let mut words = [Word::default(); 2];
    // SAFETY: the header is valid for reads, and version 3 writes two words.
    #[allow(unsafe_code, reason = "no face for capget in std, nix or libc")]
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const OURSELVES, words.as_mut_ptr()) };
    Errno::result(result)?;
    Ok(words)
}

fn write(rights: &[Right], inheritable: u64) -> io::Result<()> {
    let ([low, high], [low_inheritable, high_inheritable]) = (halves(mask(rights)), halves(inheritable));
    let word = |rights, inheritable| Word { effective: rights, permitted: rights, inheritable };
    set([word(low, low_inheritable), word(high, high_inheritable)])
}

fn set(words: [Word; 2]) -> io::Result<()> {
    // SAFETY: header and two words, as version 3 has them, are valid for reads.
    #[allow(unsafe_code, reason = "no face for capset in std, nix or libc")]
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const OURSELVES, words.as_ptr()) };
    Errno::result(result)?;
    Ok(())
}

fn control(option: i32, first: impl TryInto<libc::c_ulong>, second: u32) -> io::Result<()> {
    let first: libc::c_ulong = first.try_into().unwrap_or_default();
    let none: libc::c_ulong = 0;
    // SAFETY: the options used take numbers alone.
    #[allow(unsafe_code, reason = "no face for these options in nix")]
    let result = unsafe { libc::prctl(option, first, libc::c_ulong::from(second), none, none) };
    Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        process::{Command, Stdio},
    };

    use nix::sys::prctl::{get_dumpable, get_no_new_privs};

    use super::*;

    /// Runs one test of this file again, in a process of its own.
    fn alone(test: &str) -> bool {
        const ALONE: &str = "TUNNELWARDEN_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            return true;
        }
        if !Uid::effective().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this has to run: as root");
            eprintln!("SKIPPED: not root");
            return false;
        }
        let name = format!("sys::rights::tests::{test}");
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", &name, "--nocapture"]).env(ALONE, "1").stdin(Stdio::null());
        assert!(again.status().unwrap().success(), "{name}");
        false
    }

    #[test]
    fn another_user_has_what_was_kept_and_nothing_else() {
        if alone("another_user_has_what_was_kept_and_nothing_else") {
            become_user(65534, 65534, &[Right::NetBindService]).unwrap();
            assert!(has(Right::NetBindService).unwrap() && !has(Right::NetAdmin).unwrap());
            assert_eq!((Uid::current().as_raw(), Gid::effective().as_raw()), (65534, 65534));
            assert!(nix::unistd::getgroups().unwrap().is_empty());
            assert!(get_no_new_privs().unwrap() && !get_dumpable().unwrap());
            File::open("/etc/shadow").unwrap_err();
            nix::unistd::setuid(Uid::from_raw(0)).unwrap_err();
            become_user(0, 0, &[]).unwrap_err();
        }
    }

    #[test]
    fn a_program_has_no_more_than_what_was_kept() {
        if alone("a_program_has_no_more_than_what_was_kept") {
            keep_only(&[Right::NetAdmin]).unwrap();
            assert!(has(Right::NetAdmin).unwrap() && !has(Right::NetBindService).unwrap());
            let status = Command::new("cat").arg("/proc/self/status").output().unwrap();
            let text = String::from_utf8(status.stdout).unwrap();
            assert!(text.contains("CapPrm:\t0000000000001000\nCapEff:\t0000000000001000"), "{text}");
        }
    }
}
