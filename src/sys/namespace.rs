//! A network of one's own for a moment: no interface but a loopback that is down, no rule, no socket of others.

use std::{io, thread};

use nix::sched::{CloneFlags, unshare};

/// Does `work` in a thread that stands in a network namespace of its own, which goes with it. Programs it starts stand
/// there too.
///
/// # Errors
/// When there may be none: it takes CAP_SYS_ADMIN.
pub fn in_fresh_network<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let outcome = scope.spawn(|| unshare(CloneFlags::CLONE_NEWNET).map(|()| work())).join();
        Ok(outcome.map_err(|_| io::Error::other("a thread panicked"))??)
    })
}
