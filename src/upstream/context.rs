//! What everything in `upstream` shares: counters, the bound on sockets and what makes them, whom we trust, the lanes, and
//! the tasks a stop ends.

use std::{fs, sync::Arc};

use nix::sys::resource::{Resource, getrlimit};
use rustls::RootCertStore;
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Authorities, Lanes, Outlet, Surroundings};
use crate::{lasting, metrics::Metrics};

/// Shared by all servers.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) metrics: Arc<Metrics>,
    /// One permit for each UDP socket towards a server.
    pub(super) udp_sockets: Arc<Semaphore>,
    /// One permit for each connection: apart, so that a cut reply can be asked for again when datagrams have taken
    /// all of theirs.
    pub(super) tcp_sockets: Arc<Semaphore>,
    /// Who vouches for encrypted servers.
    pub(super) trusted: Arc<RootCertStore>,
    pub(super) lanes: Arc<Lanes>,
    pub(super) outlet: Outlet,
    pub(super) tasks: TaskTracker,
    pub(super) stopped: CancellationToken,
    runtime: Handle,
}

/// Most sockets towards servers, where the system allows more.
const MAX_SOCKETS: usize = 8192;

/// Fewest, so that a narrow limit still lets us work.
const MIN_SOCKETS: usize = 16;

impl Context {
    pub(super) fn new(authorities: &Authorities, surroundings: &Surroundings, metrics: Arc<Metrics>) -> Self {
        let sockets = socket_bound(descriptors_left());
        let for_tcp = sockets / 4;
        Self {
            lanes: Arc::clone(&surroundings.lanes),
            outlet: surroundings.outlet.clone(),
            metrics,
            udp_sockets: Arc::new(Semaphore::new(sockets - for_tcp)),
            tcp_sockets: Arc::new(Semaphore::new(for_tcp)),
            trusted: authorities.with_public(),
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
            runtime: Handle::current(),
        }
    }

    /// Runs a task until it is done or everything is stopped. May be called from any thread. What it leaves behind where
    /// it panics is dropped, and who waits for that sees it; one that nobody would miss is [`kept`](Self::keep).
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let (stopped, metrics) = (self.stopped.clone(), Arc::clone(&self.metrics));
        let task = async move {
            let _ = stopped.run_until_cancelled_owned(lasting::once(&metrics, TASK, task)).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// The same for one that begins anew after a panic.
    pub(super) fn keep<T>(&self, what: &'static str, begin: impl FnMut() -> T + Send + 'static)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let metrics = Arc::clone(&self.metrics);
        self.spawn(async move { lasting::task(&metrics, what, begin).await });
    }
}

/// What is said of any task where it panics.
const TASK: &str = "a task of the upstream servers";

/// A quarter of what is left: clients' connections, the store and files need the rest.
fn socket_bound(descriptors_left: Option<usize>) -> usize {
    descriptors_left.map_or(MAX_SOCKETS / 8, |left| (left / 4).clamp(MIN_SOCKETS, MAX_SOCKETS))
}

/// How many descriptors this process may still open, where the system tells.
fn descriptors_left() -> Option<usize> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(usize::try_from(soft).unwrap_or(usize::MAX).saturating_sub(open))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_a_quarter_of_the_descriptors_left() {
        for (left, bound) in [(Some(1000), 250), (Some(10), 16), (Some(usize::MAX), 8192), (None, 1024)] {
            assert_eq!(socket_bound(left), bound, "{left:?}");
        }
    }
}
