//! Tells systemd that we are well, where it wants to know (`WatchdogSec=`); it starts anew what does not say so.
//!
//! Well is: the runtime turns, since this is a task of it, and every worker of the UDP door answers a question. Silent
//! servers, a full disk or broken files are not what a restart would mend; health tells of those.

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{lasting, listen::Pulse, metrics::Metrics};

/// Times that it is told within the time systemd waits.
const TIMES: u32 = 3;

/// Until `stop`; nothing where nobody wants to know.
pub(super) async fn keep(pulse: Pulse, metrics: Arc<Metrics>, stop: CancellationToken) {
    lasting::task(&metrics, "the watchdog", || tell(&pulse, &stop)).await;
}

async fn tell(pulse: &Pulse, stop: &CancellationToken) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let period = (patience / TIMES).max(Duration::from_millis(1));
    let mut round = interval(period);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(round.tick()).await.is_some() {
        let Some(silent) = stop.run_until_cancelled(pulse.take(period)).await else { return };
        if silent.is_empty() {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("workers {silent:?} do not answer; systemd is not told that we are well");
        }
    }
}
