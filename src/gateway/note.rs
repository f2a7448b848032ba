//! An attempt whose reply is not known yet.

use crate::{
    audit::{Attempt, Recorder},
    wire::Rcode,
};

/// Recorded with its response code when the reply is known, and without one when the question is dropped before:
/// a client that closes its connection does not thereby leave the record.
#[derive(Debug, Default)]
pub(super) struct Note(Option<(Box<Attempt>, Recorder)>);

impl Note {
    /// `attempt`, to be recorded.
    pub(super) fn new(attempt: Attempt, recorder: Recorder) -> Self {
        Self(Some((Box::new(attempt), recorder)))
    }

    /// The reply is known.
    pub(super) fn settle(&mut self, rcode: Rcode) {
        if let Some((mut attempt, recorder)) = self.0.take() {
            attempt.rcode = Some(rcode.0);
            recorder.record(*attempt);
        }
    }

    /// It is not recorded: another takes its place.
    pub(super) fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Some((attempt, recorder)) = self.0.take() {
            recorder.record(*attempt);
        }
    }
}
