//! One question, in order: who asks, what the policy says, cache, upstream, what the policy says of the answer,
//! reply, record.
//!
//! Every door ends here, and here alone a verdict becomes a reply. [`Gateway::receive`] does all that needs no
//! waiting, up to a cache hit; [`Gateway::finish`] and [`Gateway::finish_then`] do the rest. The policy is swapped whole; cached answers keep facts
//! and are judged afresh for each client, so a reload flushes nothing and what one group may have never leaks to another.

mod admission;
mod clock;
mod limits;
mod note;
mod opening;
mod passage;
mod rate;
mod replies;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;

use note::Note;
use opening::UNOPENED;
use replies::{Trouble, evidence_of};

pub use admission::{Access, Admission, Permit};
pub use clock::Clock;
pub use limits::{ClientScope, Options, Others};
pub use passage::{Arrival, Ticket};
pub use rate::Pace;

use crate::{
    audit::{Decision, Recorder, Transport},
    cache::{self, Cache, Found, KeyRef},
    ingress::Published,
    keeper::Leases,
    metrics::Metrics,
    name::{DomainName, NameBuffer, NameRef},
    policy::{Basis, GroupId, Moment, Policy, Reason, RuleId, Verdict},
    upstream::{self, Failure, Lane, Query, Upstream},
    wire::{
        CLASS_IN, Header, Rcode,
        answer::{Answer, Asked},
        question::{Peeked, Question, peek},
        reply::{self, Ageing, ExtendedError},
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
    scout: OnceLock<Scout>,
}

/// A name that nobody can guess, and whether it was asked for here.
#[derive(Debug)]
struct Scout {
    name: DomainName,
    came: AtomicBool,
}

/// What a reload swaps, whole.
#[derive(Debug)]
pub struct InForce {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Where ingresses were found. It follows by itself, and is the same after a reload.
    pub learned: Published,
    /// What opens addresses for those who ask; `None` without a firewall.
    pub leases: Option<Arc<Leases>>,
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
    in_force: Arc<InForce>,
    pass: Pass,
    stale: Option<Found>,
    since: Instant,
    _permit: Permit,
}

/// What the verdict on a question means for its answer.
#[derive(Debug, Default)]
struct Pass {
    /// Nothing spoke for the question, so its answer is looked at.
    judged: bool,
    /// An exception let it pass, until then.
    until: Option<Timestamp>,
    /// A rule allowed it, and may open ports.
    allowed_by: Option<RuleId>,
    /// What is recorded of it.
    note: Note,
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
        Self {
            in_force,
            upstream: ArcSwap::new(upstream),
            access,
            cache,
            recorder,
            clock,
            metrics,
            scout: OnceLock::new(),
        }
    }

    /// Puts another policy in force, for questions that wait for an upstream too.
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

    /// From now on a question for this name is refused and noted: who sent it wants to know whether it comes here. The
    /// first such name counts.
    pub fn expect_scout(&self, name: DomainName) {
        let _ = self.scout.set(Scout { name, came: AtomicBool::new(false) });
    }

    /// Was the expected name asked for?
    pub fn scout_came(&self) -> bool {
        self.scout.get().is_some_and(|scout| scout.came.load(Ordering::Relaxed))
    }

    /// What is remembered.
    pub fn cache(&self) -> &Cache {
        &self.cache
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
        let step = match peeked {
            Peeked::Silence(_) => Step::Silence,
            Peeked::Question(question) => self.take(packet, &question, asker, admission, reply),
            Peeked::Fault { header, rcode } => self.take_faulty(header, rcode, asker, admission, reply),
        };
        self.count(&step, reply);
        step
    }

    /// Asks the upstream, judges the answer and gives the reply; `None` is silence.
    pub async fn finish(&self, waiting: Box<Waiting>) -> Option<Vec<u8>> {
        let query = query_of(&question_in(&waiting.packet, &mut NameBuffer::new())?);
        let upstream = self.upstream.load_full();
        let said = upstream.ask(&query).await;
        let mut reply = Vec::with_capacity(512);
        matches!(self.conclude(*waiting, said, &mut reply), Some(Step::Reply)).then_some(reply)
    }

    /// The same with a reply that is here already.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn finish_as(&self, waiting: Box<Waiting>, said: &[u8]) -> Option<Vec<u8>> {
        let server = SocketAddr::from(([192, 0, 2, 53], 53));
        let mut reply = Vec::with_capacity(512);
        let said = Arc::new(upstream::Reply { packet: said.into(), server });
        matches!(self.conclude(*waiting, Ok(said), &mut reply), Some(Step::Reply)).then_some(reply)
    }

    /// The same without a task: `then` is given the reply, soon, and by whoever hears the lane or by another thread
    /// that others wait for. It is dropped uncalled where that panics.
    pub fn finish_then(
        self: &Arc<Self>,
        waiting: Box<Waiting>,
        lane: &Lane,
        then: impl FnOnce(Option<&[u8]>) + Send + 'static,
    ) {
        let query = question_in(&waiting.packet, &mut NameBuffer::new()).map(|question| query_of(&question));
        let Some(query) = query else { return then(None) };
        let upstream = self.upstream.load_full();
        // A server set that was swapped meanwhile ends with its last question.
        let (gateway, held) = (Arc::clone(self), Arc::clone(&upstream));
        upstream.ask_then(query, lane, move |said| {
            let mut reply = Vec::with_capacity(512);
            let step = gateway.conclude(*waiting, said, &mut reply);
            then(matches!(step, Some(Step::Reply)).then_some(&reply));
            drop(held);
        });
    }

    /// What the upstream said, if anything, becomes a reply.
    fn conclude(
        &self,
        waiting: Waiting,
        said: Result<Arc<upstream::Reply>, Failure>,
        reply: &mut Vec<u8>,
    ) -> Option<Step> {
        let since = waiting.since;
        let step = self.conclude_uncounted(waiting, said, reply)?;
        self.metrics.waits.observe(since.elapsed());
        self.count(&step, reply);
        Some(step)
    }

    fn conclude_uncounted(
        &self,
        waiting: Waiting,
        said: Result<Arc<upstream::Reply>, Failure>,
        reply: &mut Vec<u8>,
    ) -> Option<Step> {
        let Waiting { packet, asker, in_force: before, pass, stale, since: _, _permit } = waiting;
        let mut buffer = NameBuffer::new();
        let question = question_in(&packet, &mut buffer)?;
        let in_force = self.in_force.load();
        let case = Case::new(&question, asker, &in_force);
        let mut pass = if Arc::ptr_eq(&in_force, &before) {
            pass
        } else {
            // The policy was swapped meanwhile: what it says now counts, and is what is recorded.
            pass.note.forget();
            match self.judge(&case) {
                Ok(pass) => pass,
                Err(reason) => return Some(self.refuse(&case, reason, None, reply)),
            }
        };
        let key = key_of(&question);
        let answer = match said {
            Ok(said) => Answer::read(&said.packet, &asked_of(&question)).map_err(Trouble::Answer),
            Err(failure) => Err(Trouble::Upstream(failure)),
        };
        let found = match answer {
            Ok(answer) => {
                let fresh = Found { answer: self.keep(&key, answer), age: 0, fresh: true };
                // A resolver that is cut off from the world says SERVFAIL, which is no more of an answer than silence
                // (RFC 8767).
                let is_none = matches!(fresh.answer.rcode(), Rcode::SERVFAIL | Rcode::REFUSED);
                stale.filter(|_| is_none).unwrap_or(fresh)
            }
            Err(trouble) => {
                self.remember(&key, trouble);
                match stale {
                    Some(stale) => stale,
                    None => return Some(self.fail(&case, trouble, &mut pass.note, reply)),
                }
            }
        };
        Some(self.deliver(&case, &found, &mut pass, reply))
    }

    /// A query whose question cannot be read.
    fn take_faulty(
        &self,
        header: Header,
        rcode: Rcode,
        asker: Asker,
        admission: Admission,
        reply: &mut Vec<u8>,
    ) -> Step {
        if let Pace::Over { .. } = self.access.pace(&asker, admission) {
            return self.say_too_many(header, None, (&asker, admission), false, reply);
        }
        if admission == Admission::Refused {
            return self.turn_away(header, None, reply);
        }
        self.metrics.malformed.increment();
        reply::fault(header, rcode, reply);
        Step::Reply
    }

    /// A readable question: who asks, how often, what the policy says of the name, what may be wrong behind it, the cache.
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
        if self.is_scout(question.name) {
            return self.refuse_own(question, reply);
        }
        let asker = believe(asker, admission, question);
        if let Pace::Over { slips } = self.access.pace(&asker, admission) {
            return self.say_too_many(question.header, Some(question), (&asker, admission), slips, reply);
        }
        if admission == Admission::Refused {
            return self.turn_away(question.header, Some(question), reply);
        }
        let in_force = self.in_force.load();
        let case = Case::new(question, asker, &in_force);
        let mut pass = match self.judge(&case) {
            Ok(pass) => pass,
            Err(reason) => return self.refuse(&case, reason, None, reply),
        };
        match fault_of(question) {
            Some(rcode) => self.say_error(&case, rcode, None, &mut pass.note, reply),
            None => self.look_up(packet, &case, &in_force, pass, reply),
        }
    }

    fn is_scout(&self, name: NameRef<'_>) -> bool {
        let scout = self.scout.get().filter(|scout| scout.name.as_name() == name);
        scout.inspect(|scout| scout.came.store(true, Ordering::Relaxed)).is_some()
    }

    /// What the policy says of the question: how its answer is to be treated, or why there will be none.
    fn judge(&self, case: &Case<'_>) -> Result<Pass, Reason> {
        let moment = self.moment(&case.in_force.policy);
        let noted = |decision, rule| Pass { note: Note::Mark { decision, rule, evidence: None }, ..Pass::default() };
        match case.in_force.policy.judge_question(case.group, case.asker.client.ip(), case.question.name, moment) {
            Verdict::Block(reason) => Err(reason),
            Verdict::Observe(reason) => Ok(noted(Decision::Observed, reason.rule)),
            Verdict::Allow(Basis::OwnIngress(rule)) => Ok(noted(Decision::AllowedOwn, rule)),
            Verdict::Allow(Basis::Exception { rule, until }) => {
                Ok(Pass { until: Some(until), ..noted(Decision::AllowedException, rule) })
            }
            Verdict::Allow(Basis::Rule(rule)) => Ok(Pass { allowed_by: Some(rule), ..Pass::default() }),
            Verdict::Allow(Basis::NoMatch) => Ok(Pass { judged: true, ..Pass::default() }),
        }
    }

    /// When it is judged. The clock is not looked at where nothing depends on it.
    fn moment(&self, policy: &Policy) -> Moment {
        if policy.has_exceptions() {
            self.clock.moment(Timestamp::now())
        } else {
            Moment { time: Timestamp::UNIX_EPOCH, trusted: false }
        }
    }

    /// From the cache, or to be waited for.
    fn look_up(
        &self,
        packet: &[u8],
        case: &Case<'_>,
        in_force: &Arc<InForce>,
        mut pass: Pass,
        reply: &mut Vec<u8>,
    ) -> Step {
        let (key, now) = (key_of(case.question), Instant::now());
        let found = self.cache.find(&key, now);
        // Just after a failure a stale answer is as good as it gets, without asking again.
        let failure =
            if found.as_ref().is_some_and(|found| found.fresh) { None } else { self.cache.find_failure(&key, now) };
        match (&found, failure) {
            (Some(found), failure) if found.fresh || failure.is_some() => {
                return self.deliver(case, found, &mut pass, reply);
            }
            (None, Some(failure)) => {
                let error = failure.error.map(|code| ExtendedError { code, text: b"failed a moment ago" });
                return self.say_error(case, failure.rcode, error, &mut pass.note, reply);
            }
            (Some(_) | None, _) => {}
        }
        let Some(permit) = self.access.wait(&case.asker) else {
            // Silence for a datagram: whoever has so many questions waiting is not helped by more packets, and a
            // forged sender even less (DNSBomb, CVE-2024-33655).
            return match case.asker.transport {
                Transport::Udp => {
                    pass.note.settle(self, case, None);
                    Step::Silence
                }
                Transport::Tcp | Transport::Tls | Transport::Https => {
                    self.say_error(case, Rcode::SERVFAIL, None, &mut pass.note, reply)
                }
            };
        };
        pass.note = pass.note.keep(self, case);
        Step::Wait(Box::new(Waiting {
            packet: packet.into(),
            asker: case.asker,
            in_force: Arc::clone(in_force),
            pass,
            stale: found,
            since: now,
            _permit: permit,
        }))
    }

    /// An answer goes out, unless the policy says of it what it did not say of the question.
    fn deliver(&self, case: &Case<'_>, found: &Found, pass: &mut Pass, reply: &mut Vec<u8>) -> Step {
        let policy = &case.in_force.policy;
        if pass.judged {
            let (aliases, addresses) = (found.answer.aliases(), found.answer.addresses());
            match policy.judge_answer(case.group, aliases, addresses, &case.in_force.learned.load()) {
                Verdict::Block(reason) => {
                    let (client, name) = (case.asker.client.ip(), case.question.name);
                    let moment = self.moment(policy);
                    // What was matched lies in the answer; how to refuse depends on the question.
                    let reason = Reason { action: policy.action_at(case.group, client, name, moment), ..reason };
                    return self.refuse(case, reason, Some(&found.answer), reply);
                }
                Verdict::Observe(reason) => {
                    let evidence = evidence_of(&reason, Some(&found.answer));
                    pass.note = Note::Mark { decision: Decision::Observed, rule: reason.rule, evidence };
                }
                Verdict::Allow(_) => {}
            }
        }
        if !found.fresh {
            self.metrics.stale_answers.increment();
        }
        let left = pass.until.map_or(u32::MAX, seconds_until);
        let at_most = self.cache.max_ttl().min(left);
        let question = case.question;
        let Ok(opened) = self.open(case, found, pass, at_most) else {
            return self.say_error(case, Rcode::SERVFAIL, Some(UNOPENED), &mut pass.note, reply);
        };
        let ageing = Ageing { seconds: found.age, at_most: at_most.min(opened), stale: !found.fresh };
        if policy.strip_ech() && found.answer.has_ech() && !question.dnssec_ok() {
            match found.answer.without_ech(&asked_of(question)) {
                Ok(stripped) => reply::answer(question, &stripped, ageing, case.limit, reply),
                Err(error) => return self.fail(case, Trouble::Answer(error), &mut pass.note, reply),
            }
        } else {
            reply::answer(question, &found.answer, ageing, case.limit, reply);
        }
        pass.note.settle(self, case, Some(found.answer.rcode()));
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
}

impl<'a> Case<'a> {
    fn new(question: &'a Question<'a>, asker: Asker, in_force: &'a InForce) -> Self {
        let group = in_force.policy.group(asker.client.ip());
        let limit = match asker.transport {
            Transport::Udp => question.udp_limit(in_force.udp_size),
            Transport::Tcp | Transport::Tls | Transport::Https => usize::from(u16::MAX),
        };
        Self { question, asker, group, in_force, limit }
    }
}

/// The question in a packet that was found readable before.
fn question_in<'a>(packet: &'a [u8], buffer: &'a mut NameBuffer) -> Option<Question<'a>> {
    match peek(packet, buffer) {
        Peeked::Question(question) => Some(question),
        Peeked::Fault { .. } | Peeked::Silence(_) => None,
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
