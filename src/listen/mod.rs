//! The doors: datagrams, TCP. Each ends in the same gateway call.
//!
//! [`Doors::open`] binds everything before anything is served; [`Doors::serve`] answers until it is told to
//! stop and then lets what waits finish. The admin door's socket is bound here too, and served by `admin`. What systemd
//! has bound already is [`Given`].

mod given;
mod introduction;
mod open;
mod options;
mod pulse;
mod stream;
mod tcp;
mod udp;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use given::Given;
pub use open::{Doors, OpenError, open_admin};
pub use options::{Admin, Options};
pub use pulse::Pulse;
#[cfg(any(test, fuzzing))]
pub(crate) use stream::echoes;

use crate::{
    gateway::{Access, Asker, Gateway, Step},
    lasting,
    metrics::Metrics,
    upstream::Lanes,
};

/// How long a stop waits for questions that are being answered.
pub const DRAIN: Duration = Duration::from_secs(5);

/// How often the networks of our interfaces are read again.
const LINKS_AGE: Duration = Duration::from_secs(30);

/// What every door works with.
#[derive(Clone, Debug)]
pub struct House {
    /// Where every question goes.
    pub gateway: Arc<Gateway>,
    /// Who may ask, and how much.
    pub access: Arc<Access>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Doors that are being served.
#[derive(Debug)]
pub struct Serving {
    stop: CancellationToken,
    tasks: TaskTracker,
    workers: udp::Workers,
}

impl Doors {
    /// Where we can be asked, UDP and TCP; port 0 has become the port that was given.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.entries.iter().map(|entry| entry.address)
    }

    /// Default addresses that this machine does not have and that are therefore left out.
    pub fn skipped(&self) -> &[SocketAddr] {
        &self.skipped
    }

    /// Answers until `stop` is cancelled. Each [worker](Self::workers) asks upstreams through the lane of its number.
    ///
    /// # Errors
    /// When a thread cannot be started or a socket not be handed to the runtime.
    pub fn serve(
        self,
        house: House,
        lanes: &Lanes,
        runtime: &Handle,
        stop: CancellationToken,
    ) -> std::io::Result<Serving> {
        let tasks = TaskTracker::new();
        let mut datagrams = Vec::new();
        for entry in self.entries {
            tcp::serve(entry.tcp, house.clone(), runtime, stop.clone(), &tasks)?;
            datagrams.push(entry.udp);
        }
        tasks.spawn_on(keep_links(house.clone(), stop.clone()), runtime);
        let workers = udp::serve(datagrams, house, lanes, &tasks)?;
        Ok(Serving { stop, tasks, workers })
    }
}

impl Serving {
    /// Tells whether the workers still answer.
    pub fn pulse(&self) -> Pulse {
        self.workers.pulse()
    }

    /// Returns once the doors are closed: after `stop` was cancelled and what waited then is answered, within
    /// [`DRAIN`]. Tells whether everything was.
    pub async fn stopped(self) -> bool {
        self.stop.cancelled().await;
        let began = Instant::now();
        self.workers.stop().await;
        self.tasks.close();
        time::timeout(DRAIN.saturating_sub(began.elapsed()), self.tasks.wait()).await.is_ok()
    }
}

impl House {
    /// The whole way of one question that came over a stream.
    async fn answer(&self, packet: Vec<u8>, asker: Asker) -> Option<Vec<u8>> {
        let mut reply = Vec::new();
        match self.gateway.receive(&packet, asker, &mut reply) {
            Step::Silence => None,
            Step::Reply => Some(reply),
            Step::Wait(waiting) => self.gateway.finish(waiting).await,
        }
    }
}

async fn keep_links(house: House, stop: CancellationToken) {
    lasting::task(&house.metrics, "the reading of interfaces", || read_links(&house.access, &stop)).await;
}

async fn read_links(access: &Access, stop: &CancellationToken) {
    while stop.run_until_cancelled(time::sleep(LINKS_AGE)).await.is_some() {
        if let Err(error) = access.refresh_links() {
            tracing::debug!(%error, "cannot read the interfaces");
        }
    }
}
