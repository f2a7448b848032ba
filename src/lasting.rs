//! What goes on after a panic: a defect costs what was being done, is counted and said, and the rest goes on. So no door
//! closes, and nothing that works beside them ends, without anybody noticing.
//!
//! What is handed to it has to be whole at any time: it is used again. The record's worker, which has to put something in
//! order first, does the same by itself.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{task::JoinError, time::sleep};

use crate::metrics::Metrics;

/// How long a task rests after a panic, so that one that comes back at once is no busy loop.
pub const PAUSE: Duration = Duration::from_millis(100);

/// Runs a task until it ends, anew after each panic. `what` is said of it.
pub async fn task<T: Future>(metrics: &Metrics, what: &'static str, mut begin: impl FnMut() -> T) -> T::Output {
    loop {
        if let Some(output) = once(metrics, what, begin()).await {
            return output;
        }
        tracing::error!("{what} panicked and starts again");
        sleep(PAUSE).await;
    }
}

/// Runs a task that nobody needs again; nothing where it panicked.
pub async fn once<T: Future>(metrics: &Metrics, what: &'static str, task: T) -> Option<T::Output> {
    #[cfg(test)]
    let task = injected::into(metrics, what, task);
    #[cfg(not(test))]
    let _ = what;
    counted(metrics, AssertUnwindSafe(task).catch_unwind().await.ok())
}

/// The same for what waits for nothing.
pub fn call<T>(metrics: &Metrics, work: impl FnOnce() -> T) -> Option<T> {
    counted(metrics, catch_unwind(AssertUnwindSafe(work)).ok())
}

/// What a thread made for a task that waited for it.
pub fn joined<T>(metrics: &Metrics, outcome: Result<T, JoinError>) -> Option<T> {
    if outcome.as_ref().is_err_and(JoinError::is_panic) {
        metrics.panics.increment();
    }
    outcome.ok()
}

fn counted<T>(metrics: &Metrics, outcome: Option<T>) -> Option<T> {
    if outcome.is_none() {
        metrics.panics.increment();
    }
    outcome
}

/// Panics on demand: nothing is known that would make one here.
#[cfg(test)]
pub(crate) mod injected {
    use std::{
        collections::HashMap,
        future::poll_fn,
        pin::pin,
        sync::{Mutex, MutexGuard, PoisonError},
        task::Waker,
    };

    use crate::metrics::Metrics;

    /// Whose counters, and what.
    type Place = (usize, &'static str);

    #[derive(Default)]
    struct Wanted {
        is_wanted: bool,
        waiting: Option<Waker>,
    }

    static WANTED: Mutex<Option<HashMap<Place, Wanted>>> = Mutex::new(None);

    fn place(metrics: &Metrics, what: &'static str) -> Place {
        (std::ptr::from_ref(metrics).addr(), what)
    }

    fn at<T>(place: Place, look: impl FnOnce(&mut Wanted) -> T) -> T {
        let mut wanted: MutexGuard<'_, _> = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
        look(wanted.get_or_insert_default().entry(place).or_default())
    }

    /// Has the next that passes there panic, or the one that waits there now.
    pub(crate) fn want(metrics: &Metrics, what: &'static str) {
        let waiting = at(place(metrics, what), |wanted| {
            wanted.is_wanted = true;
            wanted.waiting.take()
        });
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Panics where that is wanted.
    pub(crate) fn here(metrics: &Metrics, what: &'static str) {
        let is_wanted = at(place(metrics, what), |wanted| std::mem::take(&mut wanted.is_wanted));
        assert!(!is_wanted, "as a test asked");
    }

    /// A task that panics where that is wanted, wherever it waits.
    pub(super) async fn into<T: Future>(metrics: &Metrics, what: &'static str, task: T) -> T::Output {
        let mut task = pin!(task);
        poll_fn(|context| {
            here(metrics, what);
            let polled = task.as_mut().poll(context);
            if polled.is_pending() {
                let is_wanted = at(place(metrics, what), |wanted| {
                    wanted.waiting = Some(context.waker().clone());
                    wanted.is_wanted
                });
                if is_wanted {
                    context.waker().wake_by_ref();
                }
            }
            polled
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_begins_anew_after_each_panic_and_each_is_counted() {
        let (metrics, begun) = (Metrics::default(), AtomicUsize::new(0));
        let ended = task(&metrics, "a task", || async {
            match begun.fetch_add(1, Ordering::Relaxed) {
                ..3 => panic!("as a test asked"),
                times => times,
            }
        });
        assert_eq!((ended.await, metrics.panics.value()), (3, 3));
    }

    #[tokio::test]
    async fn what_is_not_begun_again_is_counted_as_well() {
        let metrics = Metrics::default();
        assert_eq!(once(&metrics, "a task", async { 7 }).await, Some(7));
        assert_eq!(call(&metrics, || 7), Some(7));
        injected::want(&metrics, "a task");
        assert_eq!(once(&metrics, "a task", std::future::pending::<()>()).await, None);
        assert_eq!(call(&metrics, || panic!("as a test asked")), None::<()>);
        assert_eq!(metrics.panics.value(), 2);
    }
}
