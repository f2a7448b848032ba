//! Whether every worker still answers. Asked now and then by who has to know; between, it costs a worker a look at two
//! numbers.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::House;
use crate::{
    audit::Transport,
    gateway::{Asker, Step},
    upstream::Lane,
};

/// How often it is looked whether a worker has answered.
const LOOK: Duration = Duration::from_millis(10);

/// For the root in class CH: judged like every question, refused by us, recorded and passed on nowhere.
const QUESTION: &[u8] = b"\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x01\0\x03";

/// Of all workers.
#[derive(Clone, Debug)]
pub struct Pulse(Vec<Arc<Beat>>);

/// Of one.
#[derive(Debug)]
pub(super) struct Beat {
    lane: Arc<Lane>,
    wanted: AtomicU64,
    given: AtomicU64,
}

impl Pulse {
    pub(super) fn of(beats: impl IntoIterator<Item = Arc<Beat>>) -> Self {
        Self(beats.into_iter().collect())
    }

    /// Has every worker answer a question of ours, by the way that those of clients go. The numbers of those that did not
    /// within `patience`.
    pub async fn take(&self, patience: Duration) -> Vec<usize> {
        self.0.iter().for_each(|beat| beat.want());
        let deadline = Instant::now() + patience;
        loop {
            let waiting = self.0.iter().enumerate().filter(|(_, beat)| beat.is_wanted());
            let silent: Vec<_> = waiting.map(|(number, _)| number).collect();
            if silent.is_empty() || Instant::now() >= deadline {
                return silent;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Beat {
    pub(super) fn of(lane: Arc<Lane>) -> Self {
        Self { lane, wanted: AtomicU64::default(), given: AtomicU64::default() }
    }

    fn want(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        self.lane.wake();
    }

    fn is_wanted(&self) -> bool {
        self.given.load(Ordering::Relaxed) != self.wanted.load(Ordering::Relaxed)
    }

    /// Answers, where that is wanted.
    pub(super) fn give(&self, house: &House) {
        let wanted = self.wanted.load(Ordering::Relaxed);
        if self.given.load(Ordering::Relaxed) != wanted && answers(house) {
            self.given.store(wanted, Ordering::Relaxed);
        }
    }
}

fn answers(house: &House) -> bool {
    let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut reply = Vec::new();
    let step = house.gateway.receive(QUESTION, Asker { client, via: None, transport: Transport::Udp }, &mut reply);
    // Silence is one, too: other programs may have used up the rate of our address.
    matches!(step, Step::Reply | Step::Silence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Lanes;

    #[tokio::test]
    async fn a_worker_that_does_not_answer_is_named() {
        let lanes = Lanes::start(2, &Arc::default()).unwrap();
        let beats = [0, 1].map(|number| Arc::new(Beat::of(Arc::clone(lanes.ear(number).unwrap().lane()))));
        let pulse = Pulse::of(beats.clone());
        let first = Arc::clone(&beats[0]);
        let answering = tokio::task::spawn(async move {
            while !first.is_wanted() {
                tokio::task::yield_now().await;
            }
            first.given.store(1, Ordering::Relaxed);
        });
        assert_eq!(pulse.take(Duration::from_millis(50)).await, [1]);
        answering.await.unwrap();
    }
}
