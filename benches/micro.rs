//! What single steps of a question cost: reading it, judging it, finding and writing its answer, recording it.
//! For comparing two versions of a step on one machine; what a question costs in all is `peers`' business.

#![allow(clippy::expect_used, reason = "a bench that cannot begin ends with a message")]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use divan::{Bencher, black_box};
use jiff::Timestamp;
use std::time::Instant;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tunnelwarden::{
    audit::{Attempt, Decision, Recorder, Transport, Way},
    cache::{Cache, KeyRef},
    config::{self, Config},
    gateway::{self, Access, Admission, Asker, Clock, Gateway, InForce, Step},
    ingress::Published,
    metrics::Metrics,
    name::{DomainName, NameBuffer},
    policy::{Learned, Moment, Policy, Sighting, Source},
    upstream::{Lanes, Surroundings, Upstream},
    wire::{
        CLASS_IN,
        answer::{Answer, Asked},
        question::{Peeked, peek},
        reply::{self, Ageing},
    },
};

const BLOCKED: &str = "connect.eu.ngrok-agent.com";
const ALLOWED: &str = "www.site.example";
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A.
const A: u16 = 1;

/// Attempts recorded without a pause: fewer than the record's queue holds.
const BURST: u32 = 1_000;
const BURSTS: u32 = 50;

fn main() {
    divan::main();
}

#[divan::bench(sample_size = 100)]
fn peek_a_question(bencher: Bencher<'_, '_>) {
    let packet = question(ALLOWED);
    bencher.bench_local(|| {
        let mut buffer = NameBuffer::default();
        matches!(peek(black_box(&packet), &mut buffer), Peeked::Question(_))
    });
}

#[divan::bench(args = [BLOCKED, ALLOWED], sample_size = 100)]
fn judge_a_question(bencher: Bencher<'_, '_>, name: &str) {
    let policy = shipped_policy();
    let (name, moment) = (name_of(name), Moment { time: Timestamp::now(), trusted: true });
    let group = policy.group(CLIENT);
    bencher.bench_local(|| policy.judge_question(group, CLIENT, black_box(name.as_name()), moment));
}

/// A name that a million others stand beside in a list, another each time: no cache of the CPU holds them all.
#[divan::bench(sample_size = 100)]
fn judge_a_listed_name(bencher: Bencher<'_, '_>) {
    judge_by_a_long_list(bencher, "list");
}

/// The same for names that are below what the list has, and not in it.
#[divan::bench(sample_size = 100)]
fn judge_a_name_that_is_not_listed(bencher: Bencher<'_, '_>) {
    judge_by_a_long_list(bencher, "other");
}

/// Reading a list of a million names and making a policy of it.
#[divan::bench(sample_size = 1, sample_count = 5)]
fn load_a_long_list(bencher: Bencher<'_, '_>) {
    let dir = tempfile::tempdir().expect("a folder can be made");
    write_long_list(&dir);
    bencher.bench_local(|| load(&dir).policy.summary().patterns);
}

/// Beside so many learned ingress addresses.
#[divan::bench(args = [0, 1000], sample_size = 100)]
fn judge_an_answer(bencher: Bencher<'_, '_>, count: u32) {
    let (policy, answer, learned) = (shipped_policy(), answer(), learned(count));
    let group = policy.group(CLIENT);
    bencher
        .bench_local(|| policy.judge_answer(group, black_box(answer.aliases()), answer.addresses(), &learned.load()));
}

/// Whether a client may ask so often: without a rate, with one, and with one that many others share the table of.
#[divan::bench(args = [(0, 1), (1_000_000, 1), (1_000_000, 100_000), (1, 100_000)], sample_size = 1_000)]
fn pace_a_client(bencher: Bencher<'_, '_>, (rate, clients): (u32, u32)) {
    let options = gateway::Options { rate, ..gateway::Options::default() };
    let access = Access::new(&options, [], Arc::default());
    let mut next = (0..clients).cycle();
    bencher.bench_local(|| {
        let client = Ipv4Addr::from(0x0a00_0000 + next.next().unwrap_or_default().wrapping_mul(7_919) % (1 << 24));
        let asker = Asker { client: SocketAddr::new(client.into(), 40_000), via: None, transport: Transport::Udp };
        access.pace(black_box(&asker), Admission::Allowed)
    });
}

#[divan::bench(sample_size = 100)]
fn read_an_answer(bencher: Bencher<'_, '_>) {
    let (name, packet) = (name_of(ALLOWED), answer_packet());
    bencher.bench_local(|| Answer::read(black_box(&packet), &asked(&name)));
}

#[divan::bench(sample_size = 100)]
fn find_an_answer_and_write_it(bencher: Bencher<'_, '_>) {
    let (name, cache) = (name_of(ALLOWED), filled_cache());
    let packet = question(ALLOWED);
    let mut buffer = NameBuffer::default();
    let Peeked::Question(question) = peek(&packet, &mut buffer) else { return };
    let mut out = Vec::with_capacity(512);
    bencher.bench_local(|| {
        out.clear();
        let found = cache.find(black_box(&key(&name)), Instant::now()).expect("it was put in");
        let ageing = Ageing { seconds: found.age, at_most: u32::MAX, stale: false };
        reply::answer(&question, &found.answer, ageing, 512, &mut out);
        out.len()
    });
}

#[divan::bench(sample_size = BURST, sample_count = BURSTS)]
fn record_an_attempt(bencher: Bencher<'_, '_>) {
    let place = Place::new();
    let attempt = attempt();
    bencher.with_inputs(|| attempt.clone()).bench_local_values(|attempt| place.recorder.record(attempt));
}

/// From the bytes of a question to the bytes of the reply, all but the socket.
#[divan::bench(args = [(BLOCKED, 0), (ALLOWED, 0), (ALLOWED, 1000)], sample_size = BURST, sample_count = BURSTS)]
fn answer_a_question(bencher: Bencher<'_, '_>, (name, count): (&str, u32)) {
    let place = Place::beside(learned(count));
    let packet = question(name);
    let asker = Asker { client: SocketAddr::new(CLIENT, 40_000), via: None, transport: Transport::Udp };
    let mut out = Vec::with_capacity(512);
    bencher.bench_local(|| {
        out.clear();
        matches!(place.gateway.receive(black_box(&packet), asker, &mut out), Step::Reply)
    });
}

/// A gateway with a record in a folder of its own, and one answer in its cache.
struct Place {
    gateway: Gateway,
    recorder: Recorder,
    // Last, so that they outlive what uses them.
    _runtime: Runtime,
    _dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self::beside(Published::default())
    }

    fn beside(learned: Published) -> Self {
        let dir = tempfile::tempdir().expect("a folder can be made");
        let config = shipped_config(&dir);
        let runtime = Runtime::new().expect("a runtime can be made");
        let _inside = runtime.enter();
        let metrics = Arc::new(Metrics::default());
        let recorder = Recorder::start(&config.audit, dir.path(), Arc::clone(&metrics)).expect("the folder is ours");
        let surroundings = Surroundings::new(Vec::new(), Lanes::start(0, &metrics).expect("a thread can be started"));
        let upstream = Upstream::start(&config.upstream, surroundings, Arc::clone(&metrics)).expect("it is not us");
        let access = Access::new(&config.limits, [], Arc::clone(&metrics));
        let (udp_size, others) = (config.limits.udp_size, config.limits.others);
        let gateway = Gateway::new(
            InForce { policy: config.policy, learned, leases: None, udp_size, others },
            Arc::new(upstream),
            Arc::new(access),
            filled_cache(),
            recorder.clone(),
            Arc::new(Clock::new(None)),
            metrics,
        );
        Self { gateway, recorder, _runtime: runtime, _dir: dir }
    }
}

fn shipped_policy() -> Arc<Policy> {
    shipped_config(&tempfile::tempdir().expect("a folder can be made")).policy
}

const LISTED: u32 = 1_000_000;

fn listed_name(number: u32, zone: &str) -> String {
    format!("{:08x}.{zone}{}.example", number.wrapping_mul(0x9e37_79b1), number % 997)
}

fn write_long_list(dir: &TempDir) {
    let pack =
        "name = \"long\"\nversion = \"1\"\n[[rules]]\nid = \"list\"\nreason = \"bench\"\nlists = [\"names.txt\"]\n";
    let names: String = (0..LISTED).map(|number| format!("||{}^\n", listed_name(number, "list"))).collect();
    fs::write(dir.path().join("long.toml"), pack).expect("the folder is ours");
    fs::write(dir.path().join("names.txt"), names).expect("the folder is ours");
    let config = "[upstream]\nservers = [\"udp://127.0.0.1:9\"]\n[policy]\npacks = [\"./long.toml\"]\n";
    fs::write(dir.path().join("tunnelwarden.toml"), config).expect("the folder is ours");
}

fn load(dir: &TempDir) -> Config {
    let loaded = config::load(Some(&dir.path().join("tunnelwarden.toml")), Timestamp::now());
    loaded.outcome.expect("what the bench wrote is valid")
}

fn judge_by_a_long_list(bencher: Bencher<'_, '_>, zone: &str) {
    let dir = tempfile::tempdir().expect("a folder can be made");
    write_long_list(&dir);
    let policy = load(&dir).policy;
    let moment = Moment { time: Timestamp::now(), trusted: true };
    let group = policy.group(CLIENT);
    let names: Vec<_> = (0..LISTED).step_by(10).map(|number| name_of(&listed_name(number, zone))).collect();
    let mut next = names.iter().cycle();
    bencher.bench_local(|| {
        let name = next.next().expect("it goes round");
        policy.judge_question(group, CLIENT, black_box(name.as_name()), moment)
    });
}

/// The default packs, and an upstream that is nobody: nothing here is asked of it but a canary.
fn shipped_config(dir: &TempDir) -> Config {
    let path = dir.path().join("tunnelwarden.toml");
    fs::write(&path, "[upstream]\nservers = [\"udp://127.0.0.1:9\"]\n").expect("the folder is ours");
    config::load(Some(&path), Timestamp::now()).outcome.expect("the defaults are valid")
}

/// So many addresses of a name of the default packs; the answers here have none of them.
fn learned(count: u32) -> Published {
    let (source, seen) = (Source::Name(name_of("connect.ngrok-agent.com")), Timestamp::now());
    let sighting = Sighting { source, first: seen, last: seen };
    let addresses = (0..count).map(|index| IpAddr::from(Ipv4Addr::from(0x0384_0000 + index * 97)));
    let learned = Learned::default().followed_by(addresses.map(|address| (address, sighting.clone())));
    Arc::new(ArcSwap::from_pointee(learned))
}

fn filled_cache() -> Cache {
    let cache = Cache::new(&tunnelwarden::cache::Options::default(), Arc::new(Metrics::default()));
    cache.insert(&key(&name_of(ALLOWED)), Arc::new(answer()), Instant::now());
    cache
}

fn answer() -> Answer {
    Answer::read(&answer_packet(), &asked(&name_of(ALLOWED))).expect("it is well-formed")
}

fn attempt() -> Attempt {
    Attempt {
        time: Timestamp::now(),
        decision: Decision::Blocked,
        way: Way::Dns,
        client: SocketAddr::new(CLIENT, 40_000),
        via: None,
        group: None,
        transport: Some(Transport::Udp),
        protocol: None,
        name: Some(name_of(BLOCKED)),
        qtype: Some(A),
        qclass: Some(CLASS_IN),
        destination: None,
        process: None,
        rule: "ngrok/connect".into(),
        evidence: None,
        action: None,
        rcode: None,
    }
}

fn name_of(text: &str) -> DomainName {
    text.parse().expect("it is a name")
}

fn key(name: &DomainName) -> KeyRef<'_> {
    KeyRef { name: name.as_name(), qtype: A, dnssec_ok: false, checking_disabled: false }
}

fn asked(name: &DomainName) -> Asked<'_> {
    Asked { name: name.as_name(), qtype: A, qclass: CLASS_IN, dnssec_ok: false }
}

/// Recursion desired, no EDNS.
fn question(name: &str) -> Vec<u8> {
    let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    [&header[..], name_of(name).as_wire(), &[0, 1, 0, 1]].concat()
}

/// An alias within the zone and its address, for a day.
fn answer_packet() -> Vec<u8> {
    let mut packet = question(ALLOWED);
    packet.splice(2..8, [0x81, 0x80, 0, 1, 0, 2]);
    // www -> edge.site.example: the owner is the question's name, "site.example" is 4 bytes further on.
    packet.extend([0xc0, 12, 0, 5, 0, 1, 0, 1, 0x51, 0x80, 0, 7, 4, b'e', b'd', b'g', b'e', 0xc0, 16]);
    let target = packet.len() - 7;
    packet.extend([0xc0, target as u8, 0, 1, 0, 1, 0, 1, 0x51, 0x80, 0, 4, 198, 51, 100, 1]);
    packet
}
