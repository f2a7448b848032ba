//! How many refused packets nobody was told of: the kernel counts every one and logs a few. Pure.

use std::collections::HashMap;

use super::notice::Way;

/// Packets of one kind, and whether they were let through.
pub(super) type Kind = (Way, bool);

/// What each kind's counter stood at when everything up to there had been told or said to be suppressed.
#[derive(Debug, Default)]
pub(super) struct Tally(HashMap<Kind, u64>);

impl Tally {
    /// Begins with what was counted before our time.
    pub(super) fn from(counted: &HashMap<Kind, u64>) -> Self {
        Self(counted.clone())
    }

    /// Of a kind that is at `counted`, so many are told now: how many more there were. The counter has to be read before
    /// the packets are: one that comes between is told, and counted the next time.
    pub(super) fn suppressed(&mut self, kind: Kind, counted: u64, told: u64) -> u64 {
        let accounted = self.0.entry(kind).or_default();
        if counted < *accounted {
            // The table was made anew.
            *accounted = counted.saturating_sub(told);
        }
        let suppressed = (counted - *accounted).saturating_sub(told);
        *accounted += told + suppressed;
        suppressed
    }

    /// So many could not be told after all: the next one says so.
    pub(super) fn take_back(&mut self, kind: Kind, untold: u64) {
        let accounted = self.0.entry(kind).or_default();
        *accounted = accounted.saturating_sub(untold);
    }
}

/// The kind that a counter of the ruleset counts.
pub(super) fn kind_of_counter(name: &str) -> Option<Kind> {
    let (word, observed) = match name {
        "foreign_dns" => ("dns", false),
        "unresolved" => ("unresolved", false),
        name => match name.strip_prefix("observed_") {
            Some(word) => (word, true),
            None => (name.strip_prefix("denied_")?, false),
        },
    };
    Way::of_word(word).map(|way| (way, observed))
}

/// The sum of the counters of each kind.
pub(super) fn sums(counters: impl IntoIterator<Item = (String, u64)>) -> HashMap<Kind, u64> {
    let mut sums = HashMap::new();
    for (name, packets) in counters {
        if let Some(kind) = kind_of_counter(&name) {
            *sums.entry(kind).or_default() += packets;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = (Way::Address, false);

    #[test]
    fn what_was_counted_and_not_told_is_suppressed_once() {
        let mut tally = Tally::from(&HashMap::from([(KIND, 100)]));
        #[rustfmt::skip]
        let table = [
            // counted  told  suppressed
            (101,       1,    0),
            (150,       9,    40),
            (150,       1,    0),   // counted after the counter was read
            (151,       0,    0),
            (160,       1,    8),
            (3,         1,    0),   // made anew
            (10,        1,    6),
        ];
        for (counted, told, expected) in table {
            assert_eq!(tally.suppressed(KIND, counted, told), expected, "{counted} {told}");
        }
        tally.take_back(KIND, 7);
        assert_eq!(tally.suppressed(KIND, 11, 1), 7);
    }

    #[test]
    fn the_ruleset_s_counters_are_known() {
        let counters = ["denied_dns", "foreign_dns", "observed_gate", "unresolved", "observed_unresolved", "other"];
        let sums = sums(counters.map(|name| (name.to_owned(), 2)));
        let expected = [
            ((Way::Dns, false), 4),
            ((Way::Gate, true), 2),
            ((Way::Unresolved, false), 2),
            ((Way::Unresolved, true), 2),
        ];
        assert_eq!(sums, HashMap::from(expected));
    }
}
