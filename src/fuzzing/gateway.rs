//! A question's ways through the whole of it: missed and from the cache, over UDP and TCP, and step by step by hand.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::runtime::{Builder, Runtime};

use super::packets::is_well_formed;
use crate::{
    audit::{Recorder, Transport},
    cache::Cache,
    config::{self, Config},
    gateway::{Access, Asker, Clock, Gateway, InForce, Step},
    ingress::Published,
    metrics::Metrics,
    name::{DomainName, NameBuffer},
    policy::{Action, Basis, Learned, Moment, Policy, RuleId, Verdict},
    upstream::{Lanes, Outlet, Surroundings, Upstream},
    wire::{
        CLASS_IN, HEADER, Rcode,
        answer::{Answer, Asked},
        ede,
        question::{Peeked, Question, peek},
        reply::{self, Ageing, ExtendedError, Form, Refusal},
        rtype,
    },
};

/// A question with its length in front of it, as over TCP, and what the server says: flags, the counts of three
/// sections, their records. Its id and question are made to fit, since what does not never comes so far. The last byte
/// of the question's id says which client asks.
pub fn fast_against_slow(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk() else { return };
    let (packet, said) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes(*length))));
    let client = Ipv4Addr::new(127, 0, 0, 1 + packet.get(1).map_or(0, |last| last % CLIENTS));
    let said = server_says(packet, said);
    let begun = Instant::now();
    let house = House::open();
    let missed = house.ask(packet, client, Transport::Udp, &said);
    let hit = house.ask(packet, client, Transport::Udp, &said);
    let streamed = house.ask(packet, client, Transport::Tcp, &said);
    let other = House::open().ask(packet, client, Transport::Tcp, &said);
    // What was kept is older by then, and says so.
    if begun.elapsed() >= Duration::from_secs(1) {
        return;
    }
    assert_eq!(missed, by_hand(packet, client, Transport::Udp, &said), "step by step it is another: {packet:02x?}");
    assert_eq!(other, by_hand(packet, client, Transport::Tcp, &said), "over TCP as well");
    let has_failed = |reply: &Option<Vec<u8>>| reply.as_deref().is_some_and(|reply| reply[3] & 0xf == 2);
    if has_failed(&missed) || has_failed(&hit) && said.get(3).is_some_and(|flags| flags & 0xf == 2) {
        // Its reason is told once, or what its records name is refused once; after that, that it failed.
        assert!(has_failed(&hit) && has_failed(&streamed));
    } else {
        assert_eq!((&hit, &streamed), (&missed, &other), "from the cache it is another: {packet:02x?}");
    }
    [missed, hit, streamed, other].iter().flatten().for_each(|reply| is_well_formed(reply));
}

/// Clients 127.0.0.1 and on, each refused in another way; the first as most are, the last one not at all.
const CLIENTS: u8 = 6;
const OBSERVED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

const CONFIG: &str = r#"
[organization]
ingress = ["own.blocked.example"]
[policy]
packs = ["ngrok"]
allow = ["own.blocked.example", ".allowed.blocked.example"]
block = [".blocked.example"]
sinkhole = ["192.0.2.80", "2001:db8::80"]
strip-ech = true
[cache]
size = "1 MiB"
max-ttl = "60s"
[audit]
store = "off"
[[clients]]
name = "nodata"
networks = ["127.0.0.2"]
action = "nodata"
[[clients]]
name = "refused"
networks = ["127.0.0.3"]
action = "refused"
[[clients]]
name = "sinkhole"
networks = ["127.0.0.4"]
action = "sinkhole"
[[clients]]
name = "drop"
networks = ["127.0.0.5"]
action = "drop"
[[clients]]
name = "observed"
networks = ["127.0.0.6"]
mode = "observe"
"#;

/// What all gateways share, made once.
struct Ground {
    config: Config,
    upstream: Arc<Upstream>,
    access: Arc<Access>,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    _runtime: Runtime,
}

static GROUND: LazyLock<Ground> = LazyLock::new(|| {
    let loaded = config::read_text_alone(CONFIG.to_owned(), Timestamp::UNIX_EPOCH);
    let config = loaded.outcome.unwrap_or_else(|| panic!("{}", loaded.problems));
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let entered = runtime.enter();
    let metrics: Arc<Metrics> = Arc::default();
    let nowhere = Path::new("/nonexistent");
    let lanes = Arc::new(Lanes::start(0, &metrics).expect("a lane"));
    let (resolv_conf, resolved_conf) = (nowhere.into(), nowhere.into());
    let surroundings = Surroundings { own: Vec::new(), lanes, outlet: Outlet::default(), resolv_conf, resolved_conf };
    let upstream = Upstream::start(&config.upstream, surroundings, Arc::clone(&metrics)).expect("nobody to ask");
    let recorder = Recorder::start(&config.audit, nowhere, Arc::clone(&metrics)).expect("a record of nothing");
    let access = Access::new(&config.limits, config.client_networks.iter().copied(), Arc::clone(&metrics));
    drop(entered);
    Ground { config, upstream: Arc::new(upstream), access: Arc::new(access), recorder, metrics, _runtime: runtime }
});

/// A gateway with an empty cache.
struct House(Gateway);

impl House {
    fn open() -> Self {
        let Ground { config, upstream, access, recorder, metrics, .. } = &*GROUND;
        let in_force = InForce {
            policy: Arc::clone(&config.policy),
            learned: Published::default(),
            leases: None,
            udp_size: UDP_SIZE,
            others: config.limits.others,
        };
        let cache = Cache::new(&config.cache, Arc::clone(metrics));
        let (upstream, access) = (Arc::clone(upstream), Arc::clone(access));
        let clock = Arc::new(Clock::new(None));
        Self(Gateway::new(in_force, upstream, access, cache, recorder.clone(), clock, Arc::clone(metrics)))
    }

    /// Asks, and has the server say this where it has to be asked.
    fn ask(&self, packet: &[u8], client: Ipv4Addr, transport: Transport, said: &[u8]) -> Option<Vec<u8>> {
        let asker = Asker { client: SocketAddr::new(client.into(), 4711), via: None, transport };
        let mut reply = Vec::new();
        match self.0.receive(packet, asker, &mut reply) {
            Step::Silence => None,
            Step::Reply => Some(reply),
            Step::Wait(waiting) => {
                assert!(client == OBSERVED || !is_blocked(packet), "a blocked name is asked for: {packet:02x?}");
                self.0.finish_as(waiting, said)
            }
        }
    }
}

const UDP_SIZE: u16 = 1232;

/// What the server says to whom its question fits.
fn server_says(packet: &[u8], said: &[u8]) -> Vec<u8> {
    let mut buffer = NameBuffer::new();
    let Peeked::Question(question) = peek(packet, &mut buffer) else { return Vec::new() };
    let (flags, counts_and_records) = said.split_at(said.len().min(2));
    let (counts, records) = counts_and_records.split_at(counts_and_records.len().min(6));
    let [high, low] = [0, 1].map(|at| flags.get(at).copied().unwrap_or_default());
    let mut reply = vec![0, 0, 0x80 | high & 0x07, low, 0, 1];
    reply.extend_from_slice(counts);
    reply.resize(HEADER, 0);
    reply.extend_from_slice(question.section);
    reply.extend_from_slice(records);
    reply
}

/// Does the packet ask for a blocked name, as far as its letters go?
fn is_blocked(packet: &[u8]) -> bool {
    let mut buffer = NameBuffer::new();
    let Peeked::Question(question) = peek(packet, &mut buffer) else { return false };
    let is_within = |zone: &str| question.name.is_within(zone.parse::<DomainName>().expect("a name").as_name());
    is_within("blocked.example") && !is_within("own.blocked.example") && !is_within("allowed.blocked.example")
}

/// The same with nothing but the pieces: read, judge, read what was said, judge that, write.
fn by_hand(packet: &[u8], client: Ipv4Addr, transport: Transport, said: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = NameBuffer::new();
    let mut out = Vec::new();
    match peek(packet, &mut buffer) {
        Peeked::Silence(_) => None,
        Peeked::Fault { header, rcode } => {
            reply::fault(header, rcode, &mut out);
            Some(out)
        }
        Peeked::Question(question) => {
            let limit = match transport {
                Transport::Udp => question.udp_limit(UDP_SIZE),
                Transport::Tcp | Transport::Tls | Transport::Https => usize::from(u16::MAX),
            };
            let reply = answer_to(&question, client, limit, said)?;
            // Whether hickory can read it depends on what the server put into it.
            assert!(reply.len() <= limit && reply[..2] == packet[..2]);
            assert_eq!(&reply[HEADER..HEADER + question.section.len()], question.section);
            Some(reply)
        }
    }
}

fn answer_to(question: &Question<'_>, client: Ipv4Addr, limit: usize, said: &[u8]) -> Option<Vec<u8>> {
    let policy = &GROUND.config.policy;
    let moment = Moment { time: Timestamp::UNIX_EPOCH, trusted: false };
    let (client, group) = (client.into(), policy.group(client.into()));
    let mut out = Vec::new();
    let judged = match policy.judge_question(group, client, question.name, moment) {
        Verdict::Block(reason) => return refusal(question, policy, (reason.action, reason.rule), limit),
        Verdict::Allow(basis) => basis == Basis::NoMatch,
        Verdict::Observe(_) => false,
    };
    if let Some(rcode) = what_is_wrong(question) {
        reply::error(question, rcode, None, limit, &mut out);
        return Some(out);
    }
    let (qtype, dnssec_ok) = (question.qtype, question.dnssec_ok());
    let asked = Asked { name: question.name, qtype, qclass: CLASS_IN, dnssec_ok };
    let answer = match Answer::read(said, &asked) {
        Ok(answer) => answer,
        Err(error) => {
            let text = format!("upstream sent a {error}");
            let error = ExtendedError { code: ede::OTHER, text: text.as_bytes() };
            reply::error(question, Rcode::SERVFAIL, Some(error), limit, &mut out);
            return Some(out);
        }
    };
    if judged
        && let Verdict::Block(reason) =
            policy.judge_answer(group, answer.aliases(), answer.addresses(), &Learned::default())
    {
        let action = policy.action_at(group, client, question.name, moment);
        return refusal(question, policy, (action, reason.rule), limit);
    }
    let answer = if answer.has_ech() && !dnssec_ok { answer.without_ech(&asked).expect("as asked") } else { answer };
    let ageing = Ageing { seconds: 0, at_most: 60, stale: false };
    reply::answer(question, &answer, ageing, limit, &mut out);
    Some(out)
}

fn refusal(
    question: &Question<'_>,
    policy: &Policy,
    (action, rule): (Action, RuleId),
    limit: usize,
) -> Option<Vec<u8>> {
    let form = match action {
        Action::Nxdomain => Form::Nxdomain,
        Action::Nodata => Form::Nodata,
        Action::Refused => Form::Refused,
        Action::Sinkhole => Form::Sinkhole(policy.sinkhole()),
        Action::Drop => return None,
    };
    let mut out = Vec::new();
    let refusal = Refusal { form, ttl: policy.block_ttl(), text: policy.refusal_text(rule) };
    reply::refusal(question, &refusal, limit, &mut out);
    Some(out)
}

/// What keeps it from being asked.
fn what_is_wrong(question: &Question<'_>) -> Option<Rcode> {
    let of_type = || match question.qtype {
        rtype::OPT => Some(Rcode::FORMERR),
        rtype::IXFR | rtype::AXFR => Some(Rcode::REFUSED),
        _ => None,
    };
    let of_class = || (question.qclass != CLASS_IN).then_some(Rcode::REFUSED);
    question.fault.or_else(of_class).or_else(of_type)
}
