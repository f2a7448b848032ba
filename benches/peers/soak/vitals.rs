//! What a process takes of the machine over time, and whether that is flat.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{Check, row};
use crate::machine::{descriptors, resident, threads};

/// Between two samples. What comes and goes within seconds is met at its greatest by many samples only.
const PERIOD: Duration = Duration::from_millis(100);

/// Before anything is measured. The record keeps an attempt open for 60 seconds, and what that takes of memory is at
/// its greatest only when the second such window has ended; cache and store are full long before.
pub(super) const WARM_UP: Duration = Duration::from_secs(130);

/// Growth of memory that counts as none, over all that is measured: so many bytes, or this part of it.
const GROWTH: f64 = 4e6;
const GROWTH_PART: f64 = 0.05;

/// More open descriptors that count as none, of a few hundred: sockets come and go. One that is lost with each reload
/// makes more within a minute.
const SPARE_DESCRIPTORS: u64 = 8;

/// Rows of the table.
const ROWS: usize = 12;

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Seconds since the beginning of what is measured; below 0 in the warm-up.
    at: f64,
    memory: u64,
    descriptors: u64,
    threads: u64,
}

/// All samples of a run.
#[derive(Debug)]
pub(super) struct Vitals {
    time: f64,
    samples: Vec<Sample>,
}

impl Vitals {
    /// Watches a process for so long after the warm-up, or until `over`, which it sets at the end.
    pub(super) fn watch(pid: u32, time: Duration, over: &AtomicBool) -> Self {
        let (began, mut samples) = (Instant::now(), Vec::<Sample>::new());
        let mut told = Duration::ZERO;
        let whole = WARM_UP + time;
        while began.elapsed() < whole && !over.load(Ordering::Relaxed) {
            let at = began.elapsed();
            let (memory, descriptors, threads) = (resident(pid), descriptors(pid), threads(pid));
            samples.push(Sample { at: at.as_secs_f64() - WARM_UP.as_secs_f64(), memory, descriptors, threads });
            if at >= told {
                eprintln!("  {} s: {:.1} MB, {descriptors} descriptors", at.as_secs(), megabytes(memory));
                told += whole / ROWS as u32;
            }
            thread::sleep(PERIOD);
        }
        over.store(true, Ordering::Relaxed);
        Self { time: time.as_secs_f64(), samples }
    }

    /// Mean memory, and the median of descriptors and threads, of each twelfth of the run.
    pub(super) fn table(&self) -> String {
        let warm_up = -WARM_UP.as_secs_f64() / self.time;
        let mut text = row(["until, s", "MB", "descriptors", "threads"].map(str::to_owned));
        for number in 0..ROWS {
            let part = |number: usize| warm_up + (1.0 - warm_up) * number as f64 / ROWS as f64;
            let (from, to) = (part(number), part(number + 1));
            let memory = mean(&self.between(from, to), |sample| sample.memory as f64);
            text += &row([
                format!("{:.0}", to * self.time),
                format!("{:.1}", memory / 1e6),
                self.median(from, to, |sample| sample.descriptors).to_string(),
                self.median(from, to, |sample| sample.threads).to_string(),
            ]);
        }
        text
    }

    pub(super) fn checks(&self) -> Vec<Check> {
        let steady = self.between(0.0, 1.0);
        let growth = slope(&steady) * self.time;
        let allowed = GROWTH.max(GROWTH_PART * mean(&steady, |sample| sample.memory as f64));
        let memory = format!(
            "memory changed by {:+.2} MB in {:.0} s after the warm-up, at most {:.2} MB",
            growth / 1e6,
            self.time,
            allowed / 1e6
        );
        let no_more = |what: &str, of: fn(&Sample) -> u64, spare| {
            let (second, last) = (self.median(0.25, 0.5, of), self.median(0.75, 1.0, of));
            let what = format!("{last} {what} in the last quarter, {second} in the second");
            Check::new(what, last <= second + spare && last > 0)
        };
        // A process that is gone has no memory, and a run that was cut short proves nothing.
        let is_whole = self.samples.iter().all(|sample| sample.memory > 0)
            && self.samples.last().is_some_and(|last| last.at > 0.95 * self.time);
        vec![
            Check::new(format!("{} samples over the whole time", self.samples.len()), is_whole),
            Check::new(memory, growth < allowed),
            no_more("descriptors", |sample| sample.descriptors, SPARE_DESCRIPTORS),
            no_more("threads", |sample| sample.threads, 0),
        ]
    }

    fn between(&self, from: f64, to: f64) -> Vec<Sample> {
        let within = |sample: &&Sample| (from * self.time..to * self.time).contains(&sample.at);
        self.samples.iter().filter(within).copied().collect()
    }

    /// What half of the samples do not exceed. More would be chance: while a reload has two sets of servers at once, and
    /// attackers keep both of them busy, there are some hundred sockets more, give or take dozens.
    fn median(&self, from: f64, to: f64, of: impl Fn(&Sample) -> u64) -> u64 {
        let mut values: Vec<_> = self.between(from, to).iter().map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    }
}

/// Bytes of memory for each second, by least squares.
fn slope(samples: &[Sample]) -> f64 {
    let (middle, level) = (mean(samples, |sample| sample.at), mean(samples, |sample| sample.memory as f64));
    let spread: f64 = samples.iter().map(|sample| (sample.at - middle).powi(2)).sum();
    let lean: f64 = samples.iter().map(|sample| (sample.at - middle) * (sample.memory as f64 - level)).sum();
    lean / spread
}

fn mean(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    samples.iter().map(of).sum::<f64>() / samples.len() as f64
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
