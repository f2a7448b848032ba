//! One question, in order: who asks, what the policy says, cache, upstream, what the policy says of the answer,
//! reply, record.
//!
//! Every door ends here, and here alone a verdict becomes a reply. [`Gateway::receive`] does all that needs no
//! waiting, up to a cache hit; [`Gateway::finish`] does the rest. The policy is taken once per question, and swapped
//! whole: cached answers keep facts and are judged afresh for each client, so a reload flushes nothing and what one
//! group may have never leaks to another.

mod admission;
mod clock;
mod limits;
mod note;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;

use note::Note;

pub use admission::{Access, Admission, Permit};
pub use clock::Clock;
pub use limits::{ClientScope, Options, Others};

use crate::{
    audit::{Attempt, Decision, Evidence, Recorder, Transport, Way},
    cache::{self, Cache, Found, KeyRef},
    metrics::Metrics,
    name::NameBuffer,
    policy::{self, Action, Basis, GroupId, Policy, Reason, RuleId, Verdict},
    upstream::{Failure, Query, Upstream},
    wire::{
        CLASS_IN, Header, Rcode,
        answer::{Answer, Asked, BadAnswer},
        ede,
        question::{Peeked, Question, peek},
        reply::{self, Ageing, ExtendedError, Form, Refusal},
        rtype,
    },
};

/// The pipeline. Doors share one.
#[derive(Debug)]
pub struct Gateway {
    in_force: ArcSwap<InForce>,
    upstream: ArcSwap<Upstream>,
    access: Arc<Access>,
    cache: Cache,
    recorder: Recorder,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
}

/// What a reload swaps, whole.
#[derive(Debug)]
pub struct InForce {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Largest datagram we send, in bytes.
    pub udp_size: u16,
    /// What those get who may not ask.
    pub others: Others,
}

/// Who asks, as a door knows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asker {
    /// The client: the peer, or whom a forwarder named in a PROXY header.
    pub client: SocketAddr,
    /// The forwarder that named it.
    pub via: Option<IpAddr>,
    /// What the question came over.
    pub transport: Transport,
}

/// What came of the part of a question that needs no waiting.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// Say nothing.
    Silence,
    /// The reply is in the buffer.
    Reply,
    /// The upstream has to be asked: [`Gateway::finish`] does.
    Wait(Box<Waiting>),
}

/// A question that waits for an upstream. It counts against its client until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    packet: Box<[u8]>,
    asker: Asker,
    group: GroupId,
    in_force: Arc<InForce>,
    pass: Pass,
    note: Note,
    stale: Option<Found>,
    _permit: Permit,
}

/// What the verdict on a question means for its answer.
#[derive(Clone, Copy, Debug)]
struct Pass {
    /// Nothing spoke for the question, so its answer is looked at.
    judged: bool,
    /// An exception let it pass, until then.
    until: Option<Timestamp>,
}

/// A question with everything that deciding and replying need to know of it.
#[derive(Clone, Copy)]
struct Case<'a> {
    question: &'a Question<'a>,
    asker: Asker,
    group: GroupId,
    in_force: &'a InForce,
    limit: usize,
}

impl Gateway {
    /// Puts the pieces together.
    pub fn new(
        in_force: InForce,
        upstream: Arc<Upstream>,
        access: Arc<Access>,
        cache: Cache,
        recorder: Recorder,
        clock: Arc<Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let in_force = ArcSwap::from_pointee(in_force);
        Self { in_force, upstream: ArcSwap::new(upstream), access, cache, recorder, clock, metrics }
    }

    /// Puts another policy in force. Questions under way end under the one they began with.
    pub fn replace(&self, in_force: InForce) {
        self.in_force.store(Arc::new(in_force));
    }

    /// Asks other servers from now on; gives back those asked so far.
    pub fn replace_upstream(&self, upstream: Arc<Upstream>) -> Arc<Upstream> {
        self.upstream.swap(upstream)
    }

    /// The policy and limits in force.
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// Whom we ask.
    pub fn upstream(&self) -> Arc<Upstream> {
        self.upstream.load_full()
    }

    /// Who may ask, and how much of us one may have.
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// Everything up to a cache hit, synchronously: no task, no lock that a writer can hold long.
    /// `reply` is cleared first; what it holds after [`Step::Reply`] is a whole DNS message, without a length prefix.
    pub fn receive(&self, packet: &[u8], asker: Asker, reply: &mut Vec<u8>) -> Step {
        reply.clear();
        match asker.transport {
            Transport::Udp => self.metrics.questions_udp.increment(),
            Transport::Tcp | Transport::Tls | Transport::Https => self.metrics.questions_tcp.increment(),
        }
        let mut buffer = NameBuffer::new();
        let peeked = peek(packet, &mut buffer);
        if let Peeked::Silence(_) = peeked {
            self.metrics.scraps.increment();
            return Step::Silence;
        }
        let admission = self.access.admits(asker.via.unwrap_or_else(|| asker.client.ip()));
        match peeked {
            Peeked::Silence(_) => Step::Silence,
            Peeked::Question(question) => self.take(packet, &question, asker, admission, reply),
            Peeked::Fault { header, .. } if admission == Admission::Refused => self.turn_away(header, None, reply),
            Peeked::Fault { header, rcode } => {
                self.metrics.malformed.increment();
                reply::fault(header, rcode, reply);
                Step::Reply
            }
        }
    }

    /// Asks the upstream, judges the answer and gives the reply; `None` is silence.
    pub async fn finish(&self, waiting: Box<Waiting>) -> Option<Vec<u8>> {
        let mut waiting = waiting;
        let query = {
            let mut buffer = NameBuffer::new();
            let Peeked::Question(question) = peek(&waiting.packet, &mut buffer) else { return None };
            query_of(&question)
        };
        let upstream = self.upstream.load_full();
        let result = upstream.ask(&query).await;

        let mut buffer = NameBuffer::new();
        let Peeked::Question(question) = peek(&waiting.packet, &mut buffer) else { return None };
        let in_force = Arc::clone(&waiting.in_force);
        let case = Case::new(&question, waiting.asker, waiting.group, &in_force);
        let key = key_of(&question);
        let outcome = match result {
            Ok(said) => Answer::read(&said.packet, &asked_of(&question)).map_err(Trouble::Answer),
            Err(failure) => Err(Trouble::Upstream(failure)),
        };
        let mut reply = Vec::with_capacity(512);
        let step = match outcome {
            Ok(answer) => {
                let found = Found { answer: self.keep(&key, answer), age: 0, fresh: true };
                self.deliver(&case, &found, waiting.pass, &mut waiting.note, &mut reply)
            }
            Err(trouble) => {
                self.remember(&key, trouble);
                match waiting.stale.take() {
                    Some(stale) => self.deliver(&case, &stale, waiting.pass, &mut waiting.note, &mut reply),
                    None => self.fail(&case, trouble, &mut waiting.note, &mut reply),
                }
            }
        };
        matches!(step, Step::Reply).then_some(reply)
    }

    /// A readable question: who asks, what the policy says of the name, what may be wrong behind it, the cache.
    fn take(
        &self,
        packet: &[u8],
        question: &Question<'_>,
        asker: Asker,
        admission: Admission,
        reply: &mut Vec<u8>,
    ) -> Step {
        if self.upstream.load().is_canary(question.name) {
            return self.refuse_canary(question, reply);
        }
        if admission == Admission::Refused {
            return self.turn_away(question.header, Some(question), reply);
        }
        let asker = believe(asker, admission, question);
        let in_force = self.in_force.load_full();
        let group = in_force.policy.group(asker.client.ip());
        let case = Case::new(question, asker, group, &in_force);
        let moment = self.clock.moment(Timestamp::now());
        let (pass, note) = match in_force.policy.judge_question(group, asker.client.ip(), question.name, moment) {
            Verdict::Block(reason) => return self.refuse(&case, reason, None, reply),
            Verdict::Observe(reason) => {
                (Pass::UNJUDGED, self.note(&case, Decision::Observed, reason.rule, None))
            }
            Verdict::Allow(Basis::OwnIngress(rule)) => {
                (Pass::UNJUDGED, self.note(&case, Decision::AllowedOwn, rule, None))
            }
            Verdict::Allow(Basis::Exception { rule, until }) => {
                let pass = Pass { until: Some(until), ..Pass::UNJUDGED };
                (pass, self.note(&case, Decision::AllowedException, rule, None))
            }
            Verdict::Allow(Basis::Rule(_)) => (Pass::UNJUDGED, Note::none()),
            Verdict::Allow(Basis::NoMatch) => (Pass { judged: true, until: None }, Note::none()),
        };
        if let Some(rcode) = fault_of(question) {
            return self.say_error(&case, rcode, None, note, reply);
        }
        self.look_up(packet, &case, &in_force, pass, note, reply)
    }

    /// From the cache, or to be waited for.
    fn look_up(
        &self,
        packet: &[u8],
        case: &Case<'_>,
        in_force: &Arc<InForce>,
        pass: Pass,
        mut note: Note,
        reply: &mut Vec<u8>,
    ) -> Step {
        let (key, now) = (key_of(case.question), Instant::now());
        let found = self.cache.find(&key, now);
        // Just after a failure a stale answer is as good as it gets, without asking again.
        let failure = if found.as_ref().is_some_and(|found| found.fresh) { None } else { self.cache.find_failure(&key, now) };
        match (&found, failure) {
            (Some(found), failure) if found.fresh || failure.is_some() => {
                return self.deliver(case, found, pass, &mut note, reply);
            }
            (None, Some(failure)) => {
                let error = failure.error.map(|code| ExtendedError { code, text: b"failed a moment ago" });
                return self.say_error(case, failure.rcode, error, note, reply);
            }
            (Some(_) | None, _) => {}
        }
        let Some(permit) = self.access.wait(&case.asker) else {
            // Silence for a datagram: whoever has so many questions waiting is not helped by more packets, and a
            // forged sender even less (DNSBomb, CVE-2024-33655).
            return match case.asker.transport {
                Transport::Udp => Step::Silence,
                Transport::Tcp | Transport::Tls | Transport::Https => {
                    self.say_error(case, Rcode::SERVFAIL, None, note, reply)
                }
            };
        };
        Step::Wait(Box::new(Waiting {
            packet: packet.into(),
            asker: case.asker,
            group: case.group,
            in_force: Arc::clone(in_force),
            pass,
            note,
            stale: found,
            _permit: permit,
        }))
    }

    /// An answer goes out, unless the policy says of it what it did not say of the question.
    fn deliver(&self, case: &Case<'_>, found: &Found, pass: Pass, note: &mut Note, reply: &mut Vec<u8>) -> Step {
        let policy = &case.in_force.policy;
        if pass.judged {
            match policy.judge_answer(case.group, found.answer.aliases(), found.answer.addresses()) {
                Verdict::Block(reason) => {
                    let (client, name) = (case.asker.client.ip(), case.question.name);
                    let moment = self.clock.moment(Timestamp::now());
                    // What was matched lies in the answer; how to refuse depends on the question.
                    let reason = Reason { action: policy.action_at(case.group, client, name, moment), ..reason };
                    return self.refuse(case, reason, Some(&found.answer), reply);
                }
                Verdict::Observe(reason) => {
                    let evidence = evidence_of(&reason, Some(&found.answer));
                    *note = self.note(case, Decision::Observed, reason.rule, evidence);
                }
                Verdict::Allow(_) => {}
            }
        }
        if !found.fresh {
            self.metrics.stale_answers.increment();
        }
        let left = pass.until.map_or(u32::MAX, seconds_until);
        let ageing = Ageing { seconds: found.age, at_most: self.cache.max_ttl().min(left), stale: !found.fresh };
        let question = case.question;
        if policy.strip_ech() && found.answer.has_ech() && !question.dnssec_ok() {
            match found.answer.without_ech(&asked_of(question)) {
                Ok(stripped) => reply::answer(question, &stripped, ageing, case.limit, reply),
                Err(error) => return self.fail(case, Trouble::Answer(error), note, reply),
            }
        } else {
            reply::answer(question, &found.answer, ageing, case.limit, reply);
        }
        note.settle(found.answer.rcode());
        Step::Reply
    }

    /// The one place where a verdict becomes a refusal. It is recorded before it leaves.
    fn refuse(&self, case: &Case<'_>, reason: Reason, answer: Option<&Answer>, reply: &mut Vec<u8>) -> Step {
        self.metrics.blocked.increment();
        let policy = &case.in_force.policy;
        let (form, rcode) = match reason.action {
            Action::Nxdomain => (Some(Form::Nxdomain), Some(Rcode::NXDOMAIN)),
            Action::Nodata => (Some(Form::Nodata), Some(Rcode::NOERROR)),
            Action::Refused => (Some(Form::Refused), Some(Rcode::REFUSED)),
            Action::Sinkhole => (Some(Form::Sinkhole(policy.sinkhole())), Some(Rcode::NOERROR)),
            Action::Drop => (None, None),
        };
        let evidence = evidence_of(&reason, answer);
        let mut attempt = self.attempt(case, Decision::Blocked, reason.rule, evidence);
        attempt.action = Some(reason.action);
        attempt.rcode = rcode.map(|rcode| rcode.0);
        self.recorder.record(attempt);
        let Some(form) = form else { return Step::Silence };
        let refusal = Refusal { form, ttl: policy.block_ttl(), text: policy.refusal_text(reason.rule) };
        reply::refusal(case.question, &refusal, case.limit, reply);
        Step::Reply
    }

    /// SERVFAIL with the reason.
    fn fail(&self, case: &Case<'_>, trouble: Trouble, note: &mut Note, reply: &mut Vec<u8>) -> Step {
        let text = match trouble {
            Trouble::Upstream(failure) => failure.to_string(),
            Trouble::Answer(error) => format!("upstream sent a {error}"),
        };
        let error = ExtendedError { code: trouble.ede(), text: text.as_bytes() };
        reply::error(case.question, Rcode::SERVFAIL, Some(error), case.limit, reply);
        note.settle(Rcode::SERVFAIL);
        Step::Reply
    }

    /// Keeps a failure for a moment, so that impatient clients do not make it worse (RFC 9520).
    fn remember(&self, key: &KeyRef<'_>, trouble: Trouble) {
        self.metrics.failures.increment();
        if trouble.is_lasting() {
            let failure = cache::Failure { rcode: Rcode::SERVFAIL, error: Some(trouble.ede()) };
            self.cache.insert_failure(key, failure, Instant::now());
        }
    }

    fn say_error(
        &self,
        case: &Case<'_>,
        rcode: Rcode,
        error: Option<ExtendedError<'_>>,
        mut note: Note,
        reply: &mut Vec<u8>,
    ) -> Step {
        reply::error(case.question, rcode, error, case.limit, reply);
        note.settle(rcode);
        Step::Reply
    }

    /// Who may not ask is told so, or nothing.
    fn turn_away(&self, header: Header, question: Option<&Question<'_>>, reply: &mut Vec<u8>) -> Step {
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

    /// Our own question came back: whoever passed it on would pass on everything.
    fn refuse_canary(&self, question: &Question<'_>, reply: &mut Vec<u8>) -> Step {
        self.upstream.load().canary_seen(question.name);
        reply::error(question, Rcode::REFUSED, None, question.udp_limit(0), reply);
        Step::Reply
    }

    fn keep(&self, key: &KeyRef<'_>, answer: Answer) -> Arc<Answer> {
        let answer = Arc::new(answer);
        if answer.rcode() == Rcode::SERVFAIL {
            let failure = cache::Failure { rcode: Rcode::SERVFAIL, error: None };
            self.cache.insert_failure(key, failure, Instant::now());
        } else {
            self.cache.insert(key, Arc::clone(&answer), Instant::now());
        }
        answer
    }

    /// An attempt that is recorded once its reply is known.
    fn note(&self, case: &Case<'_>, decision: Decision, rule: RuleId, evidence: Option<Evidence>) -> Note {
        Note::new(self.attempt(case, decision, rule, evidence), self.recorder.clone())
    }

    fn attempt(&self, case: &Case<'_>, decision: Decision, rule: RuleId, evidence: Option<Evidence>) -> Attempt {
        let Case { question, asker, group, in_force, .. } = case;
        Attempt {
            time: Timestamp::now(),
            decision,
            way: Way::Dns,
            client: asker.client,
            via: asker.via,
            group: in_force.policy.group_name(*group).map(str::to_owned),
            transport: asker.transport,
            name: question.name.to_owned(),
            qtype: question.qtype,
            qclass: question.qclass,
            rule: in_force.policy.rule(rule).label.to_string(),
            evidence,
            action: None,
            rcode: None,
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug)]
enum Trouble {
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

impl Pass {
    /// Something spoke for the question, or observes it: the answer does not matter.
    const UNJUDGED: Self = Self { judged: false, until: None };
}

impl<'a> Case<'a> {
    fn new(question: &'a Question<'a>, asker: Asker, group: GroupId, in_force: &'a InForce) -> Self {
        let limit = match asker.transport {
            Transport::Udp => question.udp_limit(in_force.udp_size),
            Transport::Tcp | Transport::Tls | Transport::Https => usize::from(u16::MAX),
        };
        Self { question, asker, group, in_force, limit }
    }
}

/// A forwarder, and nobody else, may say for which host it asks (RFC 7871, a full-length address). The option goes no further.
fn believe(asker: Asker, admission: Admission, question: &Question<'_>) -> Asker {
    let named = question.edns.and_then(|edns| edns.client_subnet);
    match (admission, asker.via, named) {
        (Admission::Forwarder, None, Some(client)) => {
            Asker { client: SocketAddr::new(client.to_canonical(), 0), via: Some(asker.client.ip()), ..asker }
        }
        _ => asker,
    }
}

/// What keeps a question that is not blocked from being asked.
fn fault_of(question: &Question<'_>) -> Option<Rcode> {
    match question.qtype {
        _ if question.fault.is_some() => question.fault,
        _ if question.qclass != CLASS_IN => Some(Rcode::REFUSED),
        // An OPT record cannot be asked for, and zones are not transferred through a forwarder.
        rtype::OPT => Some(Rcode::FORMERR),
        rtype::IXFR | rtype::AXFR => Some(Rcode::REFUSED),
        _ => None,
    }
}

fn evidence_of(reason: &Reason, answer: Option<&Answer>) -> Option<Evidence> {
    match reason.evidence {
        policy::Evidence::Question => None,
        policy::Evidence::Alias(index) => answer?.aliases().get(index).cloned().map(Evidence::Alias),
        policy::Evidence::Address(address) => Some(Evidence::Address(address)),
    }
}

fn key_of<'a>(question: &Question<'a>) -> KeyRef<'a> {
    let dnssec_ok = question.dnssec_ok();
    let checking_disabled = question.header.checking_disabled;
    KeyRef { name: question.name, qtype: question.qtype, dnssec_ok, checking_disabled }
}

fn asked_of<'a>(question: &Question<'a>) -> Asked<'a> {
    Asked { name: question.name, qtype: question.qtype, qclass: CLASS_IN, dnssec_ok: question.dnssec_ok() }
}

fn query_of(question: &Question<'_>) -> Query {
    let key = key_of(question);
    let KeyRef { name, qtype, dnssec_ok, checking_disabled } = key;
    Query { name: name.to_owned(), qtype, dnssec_ok, checking_disabled }
}

fn seconds_until(end: Timestamp) -> u32 {
    let left = end.as_second().saturating_sub(Timestamp::now().as_second());
    u32::try_from(left.max(0)).unwrap_or(u32::MAX)
}
