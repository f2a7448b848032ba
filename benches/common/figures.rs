//! Medians and how sure they are, and numbers for people.

/// A median with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// How a figure stands to its goal, smaller being better.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// The whole interval is within the goal.
    Met,
    /// The goal lies within the interval.
    Included,
    Missed,
}

/// Samples drawn for an interval.
const DRAWS: usize = 2_000;

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len().wrapping_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => f64::NAN,
    }
}

/// The median, and the middle 95 % of the medians of samples drawn from the values (bootstrap).
pub(crate) fn estimate(values: &[f64]) -> Estimate {
    // Fixed, so that the same measurements give the same interval. xorshift64*.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut draw = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize
    };
    let count = values.len().max(1);
    let medians = (0..DRAWS).map(|_| {
        let sample: Vec<f64> = (0..values.len()).filter_map(|_| values.get(draw() % count).copied()).collect();
        median(&sample)
    });
    let mut medians: Vec<f64> = medians.collect();
    medians.sort_by(f64::total_cmp);
    let at = |share: f64| medians.get((DRAWS as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    Estimate { median: median(values), low: at(0.025), high: at(0.975) }
}

impl Estimate {
    pub(crate) fn standing(self, goal: f64) -> Standing {
        if self.high <= goal {
            Standing::Met
        } else if self.low <= goal {
            Standing::Included
        } else {
            Standing::Missed
        }
    }
}

impl Standing {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Included => "met (interval includes it)",
            Self::Missed => "**missed**",
        }
    }
}

/// 1,000,000.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
