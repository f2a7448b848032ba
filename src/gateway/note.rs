//! What is to be recorded of a question that is not refused, once its reply is known.

use super::{Case, Gateway};
use crate::{
    audit::{Attempt, Decision, Evidence, Recorder},
    policy::RuleId,
    wire::Rcode,
};

/// It goes with the question: borrowed from it as long as nothing is waited for, with what it needs from then on.
#[derive(Debug, Default)]
pub(super) enum Note {
    /// Nothing is recorded.
    #[default]
    Nothing,
    /// This is, as soon as the reply is known.
    Mark {
        /// What was decided.
        decision: Decision,
        /// By which rule.
        rule: RuleId,
        /// What the rule matched, if not the question's name.
        evidence: Option<Evidence>,
    },
    /// So is this, whatever becomes of the question.
    Kept(Kept),
}

/// Recorded with its response code when the reply is known, and without one when the question is dropped before:
/// a client that closes its connection does not thereby leave the record.
#[derive(Debug)]
pub(super) struct Kept(Option<(Box<Attempt>, Recorder)>);

impl Note {
    /// The same, for a question that has to wait.
    pub(super) fn keep(self, gateway: &Gateway, case: &Case<'_>) -> Self {
        match self {
            Self::Mark { decision, rule, evidence } => {
                let attempt = case.attempt(decision, rule, evidence);
                Self::Kept(Kept(Some((Box::new(attempt), gateway.recorder.clone()))))
            }
            Self::Nothing | Self::Kept(_) => self,
        }
    }

    /// What is replied is known; `None` is silence.
    pub(super) fn settle(&mut self, gateway: &Gateway, case: &Case<'_>, rcode: Option<Rcode>) {
        match std::mem::take(self) {
            Self::Nothing => {}
            Self::Mark { decision, rule, evidence } => gateway.tell(case, decision, rule, None, rcode, || evidence),
            Self::Kept(mut kept) => kept.settle(rcode),
        }
    }

    /// It is not recorded: another takes its place.
    pub(super) fn forget(self) {
        if let Self::Kept(mut kept) = self {
            kept.0 = None;
        }
    }
}

impl Kept {
    fn settle(&mut self, rcode: Option<Rcode>) {
        if let Some((mut attempt, recorder)) = self.0.take() {
            attempt.rcode = rcode.map(|rcode| rcode.0);
            recorder.record(*attempt);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.settle(None);
    }
}
