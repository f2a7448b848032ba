//! The way of a question that needs no waiting takes no memory: what is blocked for the second time, what is cached, and
//! who may not ask, or asks too often.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "only an allocator can count allocations, and a test that fails should say where"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    net::{Ipv4Addr, UdpSocket},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RData, Record, RecordType, rdata},
};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tunnelwarden::{
    audit::{Filter, Reader, Recorder, Transport},
    cache::{Cache, KeyRef},
    config,
    gateway::{Access, Asker, Clock, Gateway, InForce, Options, Step},
    ingress::Published,
    keeper::{Done, Keeper, Keyed, LONGEST, Leases, Reply, Request},
    metrics::Metrics,
    name::DomainName,
    policy::{Learned, Sighting, Source},
    sys::seqpacket::Channel,
    upstream::{Lanes, Surroundings, Upstream},
    wire::{
        CLASS_IN,
        answer::{Answer, Asked},
    },
};

/// Counts what each thread asks for.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is passed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        unsafe { System.realloc(block, layout, size) }
    }
}

const CONFIG: &str = r#"
[organization]
ingress = ["own.acme.example"]
[[clients]]
name = "watched"
networks = ["10.9.0.0/16"]
mode = "observe"
[[exceptions]]
name = "open.ngrok-agent.com"
networks = ["10.8.0.0/16"]
until = UNTIL
reason = "a test"
"#;

/// Where `connect.ngrok-agent.com` is, as a lookup of the daemon's own found it.
const LEARNED: Ipv4Addr = Ipv4Addr::new(3, 133, 228, 214);

fn learned() -> Published {
    let seen = Timestamp::now();
    let source = Source::Name("connect.ngrok-agent.com".parse().unwrap());
    let sighting = Sighting { source, first: seen, last: seen };
    Arc::new(ArcSwap::from_pointee(Learned::default().followed_by([(LEARNED.into(), sighting)])))
}

/// Often enough that a window of the record, which lets in one attempt a minute, does not matter.
const TIMES: u64 = 1000;

/// A gateway whose upstream says nothing and whose cache holds what the tests ask for.
struct House {
    gateway: Gateway,
    recorder: Recorder,
    runtime: Runtime,
    folder: TempDir,
    _upstream: UdpSocket,
}

impl House {
    fn open() -> Self {
        Self::open_with(None)
    }

    fn open_with(leases: Option<Arc<Leases>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let path = folder.path().join("tunnelwarden.toml");
        let servers = format!("[upstream]\nservers = [\"udp://{}\"]\n", server.local_addr().unwrap());
        let until = Timestamp::now() + Duration::from_hours(24);
        let config = CONFIG.replace("UNTIL", &format!("{until:.0}"));
        fs::write(&path, format!("{config}{servers}")).unwrap();
        let loaded = config::load(Some(&path), Timestamp::now());
        let config = loaded.outcome.unwrap_or_else(|| panic!("{:?}", loaded.problems));
        let runtime = Runtime::new().unwrap();
        let _entered = runtime.enter();
        let metrics: Arc<Metrics> = Arc::default();
        let recorder = Recorder::start(&config.audit, folder.path(), Arc::clone(&metrics)).unwrap();
        let upstream = Upstream::start(
            &config.upstream,
            Surroundings::new(Vec::new(), Lanes::start(0, &metrics).unwrap()),
            Arc::clone(&metrics),
        )
        .unwrap();
        let gateway = Gateway::new(
            InForce { policy: config.policy, learned: learned(), leases, udp_size: 1232, others: config.limits.others },
            Arc::new(upstream),
            Arc::new(Access::new(&config.limits, config.client_networks, Arc::clone(&metrics))),
            Cache::new(&config.cache, Arc::clone(&metrics)),
            recorder.clone(),
            Arc::new(Clock::new(None)),
            metrics,
        );
        let house = Self { gateway, recorder, runtime, folder, _upstream: server };
        house.remember("plain.example", None);
        house.remember("own.acme.example", None);
        house.remember("open.ngrok-agent.com", None);
        house.remember("behind.example", Some("connect.ngrok-agent.com"));
        house.remember_at("hidden.example", None, LEARNED);
        house
    }

    /// Puts an address, perhaps behind an alias, into the cache.
    fn remember(&self, text: &str, alias: Option<&str>) {
        self.remember_at(text, alias, Ipv4Addr::new(192, 0, 2, 1));
    }

    fn remember_at(&self, text: &str, alias: Option<&str>, address: Ipv4Addr) {
        let name = |text| Name::from_ascii(text).unwrap();
        let mut reply = question(text);
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.recursion_available = true;
        if let Some(alias) = alias {
            reply.add_answer(Record::from_rdata(name(text), 3600, RData::CNAME(rdata::CNAME(name(alias)))));
        }
        let address = RData::A(rdata::A(address));
        reply.add_answer(Record::from_rdata(name(alias.unwrap_or(text)), 3600, address));
        let owned: DomainName = text.parse().unwrap();
        let asked = Asked { name: owned.as_name(), qtype: 1, qclass: CLASS_IN, dnssec_ok: false };
        let answer = Answer::read(&reply.to_vec().unwrap(), &asked).unwrap();
        let key = KeyRef { name: owned.as_name(), qtype: 1, dnssec_ok: false, checking_disabled: false };
        self.gateway.cache().insert(&key, Arc::new(answer), Instant::now());
    }

    /// How much memory is asked for while `client` asks for the same name again and again.
    fn allocations(&self, client: &str, text: &str) -> u64 {
        let packet = question(text).to_vec().unwrap();
        let asker = Asker { client: format!("{client}:5353").parse().unwrap(), via: None, transport: Transport::Udp };
        let mut reply = Vec::with_capacity(512);
        let mut ask = || match self.gateway.receive(&packet, asker, &mut reply) {
            Step::Reply => assert!(reply.len() > packet.len() / 2),
            step @ (Step::Silence | Step::Wait(_)) => panic!("{text}: {step:?}"),
        };
        // What a thread needs once: its place in the counters, its part in reading what is swapped, a new fold.
        ask();
        let before = ASKED.get();
        (0..TIMES).for_each(|_| ask());
        ASKED.get() - before
    }

    /// How often the record says that it was tried.
    fn recorded(&self, text: &str) -> u64 {
        self.runtime.block_on(self.recorder.flush());
        let filter = Filter { name: Some(text.parse().unwrap()), ..Filter::default() };
        let rows = Reader::open(&self.folder.path().join("attempts.db")).unwrap().newest(&filter, 10).unwrap();
        rows.iter().map(|row| row.count).sum()
    }
}

fn question(text: &str) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(text).unwrap(), RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.edns = Some(edns);
    message
}

#[test]
fn a_blocked_question_that_repeats_takes_no_memory_and_is_recorded_each_time() {
    let house = House::open();
    assert_eq!(house.allocations("10.1.2.3", "connect.ngrok-agent.com"), 0);
    assert_eq!(house.recorded("connect.ngrok-agent.com"), 1 + TIMES);
}

#[test]
fn a_question_blocked_for_its_answer_takes_no_memory_and_is_recorded_each_time() {
    let house = House::open();
    for name in ["behind.example", "hidden.example"] {
        assert_eq!(house.allocations("10.1.2.3", name), 0, "{name}");
        assert_eq!(house.recorded(name), 1 + TIMES, "{name}");
    }
}

#[test]
fn a_cached_question_takes_no_memory() {
    let house = House::open();
    assert_eq!(house.allocations("10.1.2.3", "plain.example"), 0);
    assert_eq!(house.recorded("plain.example"), 0);
}

/// Leases of a keeper that opens whatever it is asked to, and tells in the end how often that was.
fn leases() -> (Arc<Leases>, JoinHandle<u64>) {
    let (requests, its_requests) = Channel::pair().unwrap();
    let (notices, _its_notices) = Channel::pair().unwrap();
    let keeper = thread::spawn(move || {
        let (mut asked, mut room) = (0, [0; LONGEST]);
        while let Ok(Some(length)) = its_requests.receive(&mut room, None) {
            let (number, _) = Request::decode(&room[..length]).unwrap();
            let done = Reply::Done(Done::default()).encode(number);
            its_requests.send(&done, Instant::now() + Duration::from_secs(5)).unwrap();
            asked += 1;
        }
        asked
    });
    (Arc::new(Leases::new(Arc::new(Keeper::over(requests, notices).0), Keyed::ByClient)), keeper)
}

#[test]
fn a_cached_question_whose_addresses_are_open_takes_no_memory() {
    let (leases, keeper) = leases();
    let house = House::open_with(Some(leases));
    assert_eq!(house.allocations("10.1.2.3", "plain.example"), 0);
    drop(house);
    assert_eq!(keeper.join().unwrap(), 1);
}

#[test]
fn a_cached_question_that_is_recorded_takes_no_memory() {
    let house = House::open();
    for (client, name) in [("10.1.2.3", "own.acme.example"), ("10.8.0.1", "open.ngrok-agent.com")] {
        assert_eq!(house.allocations(client, name), 0, "{name}");
        assert_eq!(house.recorded(name), 1 + TIMES, "{name}");
    }
}

#[test]
fn a_question_that_is_only_observed_takes_no_memory() {
    let house = House::open();
    house.remember("connect.ngrok-agent.com", None);
    assert_eq!(house.allocations("10.9.0.1", "connect.ngrok-agent.com"), 0);
    assert_eq!(house.recorded("connect.ngrok-agent.com"), 1 + TIMES);
}

#[test]
fn those_who_may_not_ask_take_no_memory() {
    let house = House::open();
    assert_eq!(house.allocations("203.0.113.9", "plain.example"), 0);
}

#[test]
fn those_who_ask_too_often_take_no_memory() {
    let house = House::open();
    house.gateway.access().replace(&Options { rate: 1, slip: 1, ..Options::default() }, []);
    assert_eq!(house.allocations("10.1.2.3", "plain.example"), 0);
}
