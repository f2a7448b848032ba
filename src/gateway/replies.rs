//! What goes out where no answer does: refusals, errors, and what is put on record of a question.

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;

use super::{Admission, Asker, Case, Gateway, Others, Step, note::Note};
use crate::{
    audit::{Attempt, Decision, Evidence, Likeness, Process, Transport, Way},
    cache::{self, KeyRef},
    policy::{self, Action, Reason, RuleId},
    upstream::Failure,
    wire::{
        Header, Rcode,
        answer::{Answer, BadAnswer},
        ede,
        question::Question,
        reply::{self, ExtendedError, Form, Refusal},
    },
};

/// Why there is no answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    Upstream(Failure),
    Answer(BadAnswer),
}

impl Trouble {
    fn ede(self) -> u16 {
        match self {
            Self::Upstream(failure) => failure.ede(),
            Self::Answer(_) => ede::OTHER,
        }
    }

    /// Would asking again at once find the same?
    fn is_lasting(self) -> bool {
        match self {
            Self::Upstream(Failure::Silent | Failure::Network | Failure::Loop) | Self::Answer(_) => true,
            // Nothing was asked, so nothing is known.
            Self::Upstream(Failure::NoServer | Failure::Overloaded | Failure::Stopped) => false,
        }
    }
}

impl Gateway {
    /// The one place where a verdict becomes a refusal. It is recorded before it leaves.
    pub(super) fn refuse(&self, case: &Case<'_>, reason: Reason, answer: Option<&Answer>, reply: &mut Vec<u8>) -> Step {
        self.metrics.blocked.increment();
        let policy = &case.in_force.policy;
        let (form, rcode) = match reason.action {
            Action::Nxdomain => (Some(Form::Nxdomain), Some(Rcode::NXDOMAIN)),
            Action::Nodata => (Some(Form::Nodata), Some(Rcode::NOERROR)),
            Action::Refused => (Some(Form::Refused), Some(Rcode::REFUSED)),
            Action::Sinkhole => (Some(Form::Sinkhole(policy.sinkhole())), Some(Rcode::NOERROR)),
            Action::Drop => (None, None),
        };
        self.tell(case, Decision::Blocked, reason.rule, Some(reason.action), rcode, || evidence_of(&reason, answer));
        let Some(form) = form else { return Step::Silence };
        let refusal = Refusal { form, ttl: policy.block_ttl(), text: policy.refusal_text(reason.rule) };
        reply::refusal(case.question, &refusal, case.limit, reply);
        Step::Reply
    }

    /// Counts a reply by the response code in its header, which is in the fourth byte (RFC 1035, section 4.1.1).
    pub(super) fn count(&self, step: &Step, reply: &[u8]) {
        let (Step::Reply, Some(flags)) = (step, reply.get(3)) else { return };
        let counter = match Rcode(u16::from(flags & 0x0f)) {
            Rcode::NOERROR => &self.metrics.responses_noerror,
            Rcode::NXDOMAIN => &self.metrics.responses_nxdomain,
            Rcode::SERVFAIL => &self.metrics.responses_servfail,
            Rcode::REFUSED => &self.metrics.responses_refused,
            _ => &self.metrics.responses_other,
        };
        counter.increment();
    }

    /// SERVFAIL with the reason.
    pub(super) fn fail(&self, case: &Case<'_>, trouble: Trouble, note: &mut Note, reply: &mut Vec<u8>) -> Step {
        let text = match trouble {
            Trouble::Upstream(failure) => failure.to_string(),
            Trouble::Answer(error) => format!("upstream sent a {error}"),
        };
        let error = ExtendedError { code: trouble.ede(), text: text.as_bytes() };
        reply::error(case.question, Rcode::SERVFAIL, Some(error), case.limit, reply);
        note.settle(self, case, Some(Rcode::SERVFAIL));
        Step::Reply
    }

    /// Keeps a failure for a moment, so that impatient clients do not make it worse (RFC 9520).
    pub(super) fn remember(&self, key: &KeyRef<'_>, trouble: Trouble) {
        self.metrics.failures.increment();
        if trouble.is_lasting() {
            let failure = cache::Failure { rcode: Rcode::SERVFAIL, error: Some(trouble.ede()) };
            self.cache.insert_failure(key, failure, Instant::now());
        }
    }

    pub(super) fn say_error(
        &self,
        case: &Case<'_>,
        rcode: Rcode,
        error: Option<ExtendedError<'_>>,
        note: &mut Note,
        reply: &mut Vec<u8>,
    ) -> Step {
        reply::error(case.question, rcode, error, case.limit, reply);
        note.settle(self, case, Some(rcode));
        Step::Reply
    }

    /// Who may not ask is told so, or nothing.
    pub(super) fn turn_away(&self, header: Header, question: Option<&Question<'_>>, reply: &mut Vec<u8>) -> Step {
        self.metrics.turned_away.increment();
        match (self.in_force.load().others, question) {
            (Others::Silence, _) => return Step::Silence,
            (Others::Refused, Some(question)) => {
                let error = ExtendedError { code: ede::PROHIBITED, text: b"not a client of this resolver" };
                reply::error(question, Rcode::REFUSED, Some(error), question.udp_limit(0), reply);
            }
            (Others::Refused, None) => reply::fault(header, Rcode::REFUSED, reply),
        }
        Step::Reply
    }

    /// Who asks more often than it may. A datagram's sender may be forged, so it mostly gets silence, and now and then the
    /// advice to come over TCP: who is real does, and has a share of its own there. Who does not forge is told: a stream's
    /// peer, and a forwarder, which would take silence for our death.
    pub(super) fn say_too_many(
        &self,
        header: Header,
        question: Option<&Question<'_>>,
        (asker, admission): (&Asker, Admission),
        slips: bool,
        reply: &mut Vec<u8>,
    ) -> Step {
        let is_forged_easily = asker.transport == Transport::Udp && admission != Admission::Forwarder;
        match question {
            Some(question) if is_forged_easily && slips && admission == Admission::Allowed => {
                self.metrics.over_rate_truncated.increment();
                reply::truncated(question, reply);
            }
            Some(_) | None if is_forged_easily || admission == Admission::Refused => {
                self.metrics.over_rate_silent.increment();
                return Step::Silence;
            }
            Some(question) => {
                self.metrics.over_rate_refused.increment();
                let error = ExtendedError { code: ede::OTHER, text: b"too many questions a second" };
                reply::error(question, Rcode::REFUSED, Some(error), question.udp_limit(0), reply);
            }
            None => {
                self.metrics.over_rate_refused.increment();
                reply::fault(header, Rcode::REFUSED, reply);
            }
        }
        Step::Reply
    }

    /// Our own question came back: whoever passed it on would pass on everything.
    pub(super) fn refuse_canary(&self, question: &Question<'_>, reply: &mut Vec<u8>) -> Step {
        self.upstream.load().canary_seen(question.name);
        self.refuse_own(question, reply)
    }

    /// A question of our own that goes no further.
    pub(super) fn refuse_own(&self, question: &Question<'_>, reply: &mut Vec<u8>) -> Step {
        reply::error(question, Rcode::REFUSED, None, question.udp_limit(0), reply);
        Step::Reply
    }

    /// Puts on record what was decided. What repeats costs a look and an addition.
    pub(super) fn tell(
        &self,
        case: &Case<'_>,
        decision: Decision,
        rule: RuleId,
        action: Option<Action>,
        rcode: Option<Rcode>,
        evidence: impl FnOnce() -> Option<Evidence>,
    ) {
        let time = Timestamp::now();
        let likeness = Likeness {
            client: case.asker.client.ip(),
            name: Some(case.question.name),
            destination: None,
            rule: &case.in_force.policy.rule(rule).label,
            decision,
            way: Way::Dns,
        };
        if !self.recorder.repeats(&likeness, time) {
            let rcode = rcode.map(|rcode| rcode.0);
            self.recorder.record(Attempt { time, action, rcode, ..case.attempt(decision, rule, evidence()) });
        }
    }
}

impl Case<'_> {
    /// What is recorded of it now, but for action and response code.
    /// The process that asks, where that is one of this machine's and the firewall's keeper finds it.
    fn process(&self) -> Option<Process> {
        let Case { asker, in_force, .. } = self;
        let protocol = match asker.transport {
            Transport::Udp => libc::IPPROTO_UDP,
            Transport::Tcp | Transport::Tls | Transport::Https => libc::IPPROTO_TCP,
        };
        let leases = in_force.leases.as_ref().filter(|_| asker.via.is_none())?;
        leases.process_of(u8::try_from(protocol).ok()?, asker.client, None).map(Process::from)
    }

    pub(super) fn attempt(&self, decision: Decision, rule: RuleId, evidence: Option<Evidence>) -> Attempt {
        let Case { question, asker, group, in_force, .. } = self;
        Attempt {
            time: Timestamp::now(),
            decision,
            way: Way::Dns,
            client: asker.client,
            via: asker.via,
            group: in_force.policy.group_name(*group).map(str::to_owned),
            transport: Some(asker.transport),
            protocol: None,
            name: Some(question.name.to_owned()),
            qtype: Some(question.qtype),
            qclass: Some(question.qclass),
            destination: None,
            process: self.process(),
            rule: Arc::clone(&in_force.policy.rule(rule).label),
            evidence,
            action: None,
            rcode: None,
        }
    }
}

pub(super) fn evidence_of(reason: &Reason, answer: Option<&Answer>) -> Option<Evidence> {
    match reason.evidence {
        policy::Evidence::Question => None,
        policy::Evidence::Alias(index) => answer?.aliases().get(index).cloned().map(Evidence::Alias),
        policy::Evidence::Address(address) => Some(Evidence::Address(address)),
    }
}
