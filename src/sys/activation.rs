//! Sockets that systemd opened before it started us (sd_listen_fds(3)).

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// All of them; none where nobody passes any. Programs that we start do not get them.
///
/// To be called once, before anything is opened: what is passed is known by its number alone.
///
/// # Errors
/// When the variables that tell of them make no sense.
pub fn passed() -> io::Result<Vec<OwnedFd>> {
    let numbers = sd_notify::listen_fds()?;
    // SAFETY: they are open, as closing them at exec was just asked for; the variables name this process, and so nobody
    // else here has them.
    #[expect(unsafe_code, reason = "std takes a passed descriptor in no other way")]
    let owned = |number| unsafe { OwnedFd::from_raw_fd(number) };
    Ok(numbers.map(owned).collect())
}
