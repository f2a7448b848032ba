//! What is thought of one server: pure, so that the order of the servers and the end of patience can be tested
//! by table. Nothing here waits or logs; what a change means is done in `server`.

use std::time::Duration;

use super::State;

/// One server's record.
#[derive(Debug)]
pub(super) struct Health {
    state: State,
    round_trip: Option<Duration>,
}

/// Shortest and longest time before the next server is asked too.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(800));

/// The same while nothing is known of the server.
const FIRST_PATIENCE: Duration = Duration::from_millis(400);

impl Health {
    pub(super) fn new() -> Self {
        Self { state: State::Up, round_trip: None }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// A reply came, however late. Gives the state before where that changed.
    pub(super) fn answered(&mut self, took: Duration) -> Option<State> {
        self.smooth(took);
        match self.state {
            State::Suspect | State::Down => Some(std::mem::replace(&mut self.state, State::Up)),
            State::Up | State::Looping => None,
        }
    }

    /// A question has waited longer than [`patience`](Self::patience), or was refused by the network.
    /// True when the server becomes suspect: a probe has to tell a slow name from a dead server.
    pub(super) fn late(&mut self) -> bool {
        // What is lost has no time. A third of the patience moves it back in the order without trying our patience more.
        self.smooth((self.patience() / 3).max(self.round_trip.unwrap_or_default()));
        let news = self.state == State::Up;
        if news {
            self.state = State::Suspect;
        }
        news
    }

    /// A probe was not answered. True when the server goes down by it.
    pub(super) fn probe_failed(&mut self) -> bool {
        let down = self.state == State::Suspect;
        if down {
            self.state = State::Down;
        }
        down
    }

    /// A canary came back, or did not any more. True when that is news.
    pub(super) fn set_looping(&mut self, looping: bool) -> bool {
        let news = (self.state == State::Looping) != looping;
        if news {
            self.state = if looping { State::Looping } else { State::Up };
        }
        news
    }

    /// How long to wait for a reply before the next server is asked too.
    pub(super) fn patience(&self) -> Duration {
        let (shortest, longest) = PATIENCE;
        self.round_trip.map_or(FIRST_PATIENCE, |round_trip| (3 * round_trip).clamp(shortest, longest))
    }

    /// Where it stands in the order: the smaller, the earlier. A server nothing is known of comes first, to be known.
    pub(super) fn rank(&self) -> (State, Duration) {
        (self.state, self.round_trip.unwrap_or_default())
    }

    /// Another one was preferred: what is known gets old, so that a server that became faster is tried again.
    pub(super) fn passed_over(&mut self) {
        self.round_trip = self.round_trip.map(|round_trip| round_trip - round_trip / 64);
    }

    fn smooth(&mut self, took: Duration) {
        self.round_trip = Some(self.round_trip.map_or(took, |before| (before * 7 + took) / 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn patience_is_three_round_trips_within_its_bounds() {
        let mut health = Health::new();
        assert_eq!(health.patience(), 400 * MS);
        for (round_trip, patience) in [(1, 200), (100, 300), (2000, 800)] {
            health.round_trip = Some(round_trip * MS);
            assert_eq!(health.patience(), patience * MS, "{round_trip} ms");
        }
    }

    #[test]
    fn a_server_goes_down_only_after_a_late_reply_and_a_failed_probe_and_one_reply_brings_it_back() {
        let mut health = Health::new();
        assert!(!health.probe_failed(), "a probe alone takes nothing down");
        assert!(health.late() && health.state() == State::Suspect);
        assert!(!health.late(), "one probe is enough");
        assert!(health.probe_failed() && health.state() == State::Down);
        assert!(!health.probe_failed());
        assert_eq!(health.answered(MS), Some(State::Down));
        assert_eq!((health.state(), health.answered(MS)), (State::Up, None));
    }

    #[test]
    fn a_looping_server_is_not_redeemed_by_a_reply() {
        let mut health = Health::new();
        assert!(health.set_looping(true) && !health.set_looping(true));
        health.answered(MS);
        assert_eq!(health.state(), State::Looping);
        assert!(health.set_looping(false));
        assert_eq!(health.state(), State::Up);
    }

    #[test]
    fn the_unknown_then_the_faster_come_first_and_the_ailing_last() {
        let health = |state, round_trip: Option<Duration>| Health { state, round_trip };
        let order = [
            health(State::Up, None),
            health(State::Up, Some(5 * MS)),
            health(State::Up, Some(9 * MS)),
            health(State::Suspect, Some(MS)),
            health(State::Down, None),
            health(State::Looping, None),
        ];
        assert!(order.is_sorted_by_key(Health::rank));
    }

    #[test]
    fn a_server_that_is_passed_over_is_tried_again_after_a_while() {
        let mut slow = Health { state: State::Up, round_trip: Some(80 * MS) };
        let fast = Health { state: State::Up, round_trip: Some(10 * MS) };
        let mut times = 0;
        while slow.rank() > fast.rank() {
            slow.passed_over();
            times += 1;
        }
        assert!((100..200).contains(&times), "{times}");
    }
}
