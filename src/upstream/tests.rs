//! The whole of it against scripted servers on loopback.

#![allow(clippy::indexing_slicing, reason = "a test that indexes wrongly fails")]

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    pin::pin,
    sync::{Arc, Condvar, Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use futures_util::future::{FutureExt as _, join_all};
use tokio::time::{sleep, timeout};

use super::*;

#[path = "../../tests/suite/support/nameserver.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the suite, where all of it is used and public")]
mod nameserver;

use nameserver::{Nameserver, Say};

const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const POISON: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);

fn query(name: &str) -> Query {
    Query { name: name.parse().unwrap(), qtype: 1, dnssec_ok: false, checking_disabled: false }
}

fn nowhere() -> Surroundings {
    let lanes = Arc::new(Lanes::start(0, &Arc::default()).unwrap());
    let [resolv_conf, resolved_conf] = ["/nonexistent".into(), "/nonexistent".into()];
    Surroundings { own: Vec::new(), lanes, outlet: Outlet::default(), resolv_conf, resolved_conf }
}

fn upstream(servers: &[Server]) -> Arc<Upstream> {
    let options = Options { servers: servers.into(), ..Options::default() };
    Arc::new(Upstream::start(&options, nowhere(), Arc::default()).unwrap())
}

fn udp(servers: &[&Nameserver]) -> Arc<Upstream> {
    upstream(&servers.iter().map(|server| Server::Udp(server.address())).collect::<Vec<_>>())
}

/// The address at the end of a reply made by [`nameserver::Asked::address`]; the OPT record after it left out.
fn address(reply: &Reply) -> Ipv4Addr {
    let end = reply.packet.len() - if reply.packet[11] > 0 { 11 } else { 0 };
    Ipv4Addr::from(<[u8; 4]>::try_from(&reply.packet[end - 4..end]).unwrap())
}

async fn ask(upstream: &Upstream, name: &str) -> Result<Ipv4Addr, Failure> {
    upstream.ask(&query(name)).await.map(|reply| address(&reply))
}

/// Waits for what has to come.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let watched = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(Duration::from_secs(20), watched).await.is_ok(), "{what}");
}

fn state(upstream: &Upstream, server: SocketAddr) -> State {
    let health = upstream.health();
    health.iter().find(|health| health.server == Server::Udp(server)).unwrap().state
}

#[tokio::test]
async fn a_reply_is_given_as_it_was_sent() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&sent);
    let server = Nameserver::start(move |asked| {
        // NXDOMAIN with flags and a record of a type nobody knows.
        let mut reply = asked.reply_with(3, &[vec![0xc0, 12, 0xff, 0x01, 0, 1, 0, 0, 0, 9, 0, 3, 1, 2, 3]]);
        reply[3] |= 0x30;
        if asked.name == "gone.example" {
            *keep.lock().unwrap() = reply.clone();
        }
        vec![Say::Here(reply)]
    });
    let asked = Query { dnssec_ok: true, checking_disabled: true, qtype: 0xff01, ..query("gone.example") };
    for kind in [Server::Udp, Server::Tcp] {
        let reply = upstream(&[kind(server.address())]).ask(&asked).await.unwrap();
        assert_eq!(*reply.packet, *sent.lock().unwrap());
        assert_eq!(reply.server, server.address());
    }
    let packet = &server.asked()[0].packet;
    assert_eq!(*packet, asked.to_packet(u16::from_be_bytes([packet[0], packet[1]]), true));
}

#[tokio::test]
async fn a_lookup_of_our_own_is_sent_before_anything_is_waited_for() {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let held = Arc::clone(&gate);
    let server = Nameserver::start(move |asked| {
        let _open = held.1.wait_while(held.0.lock().unwrap(), |open| !*open).unwrap();
        vec![Say::Here(asked.address(HERE))]
    });
    let upstream = udp(&[&server]);
    let mut asking = pin!(upstream.look_up(query("own.example")));
    assert!((&mut asking).now_or_never().is_none());
    assert_eq!(upstream.context.metrics.upstream_queries_udp.value(), 1);
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    assert_eq!(address(&asking.await.unwrap()), HERE);
}

#[tokio::test]
async fn equal_questions_in_flight_are_one_and_outlive_whoever_leaves() {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let held = Arc::clone(&gate);
    let server = Nameserver::start(move |asked| {
        let _open = held.1.wait_while(held.0.lock().unwrap(), |open| !*open && asked.name == "same.example").unwrap();
        vec![Say::Here(asked.address(HERE))]
    });
    let upstream = udp(&[&server]);
    let mut asking: Vec<_> = (0..200)
        .map(|_| {
            let upstream = Arc::clone(&upstream);
            tokio::spawn(async move { ask(&upstream, "same.example").await })
        })
        .collect();
    eventually("all are on board", || upstream.context.metrics.upstream_merged.value() == 199).await;
    // The first one started the query.
    let first = asking.remove(0);
    first.abort();
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    for answer in join_all(asking).await {
        assert_eq!(answer.unwrap(), Ok(HERE));
    }
    let sent = server.asked();
    assert!(sent.len() <= 3 && !sent.is_empty(), "the query and its repetitions at most: {}", sent.len());
    assert!(upstream.in_flight.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_and_ids_cannot_be_guessed() {
    let server = Nameserver::with_address(HERE);
    let upstream = udp(&[&server]);
    for batch in 0..300 {
        let names: Vec<_> = (0..10).map(|index| format!("n{index}.b{batch}.example")).collect();
        let answers = join_all(names.iter().map(|name| ask(&upstream, name))).await;
        assert!(answers.iter().all(|answer| *answer == Ok(HERE)));
    }
    let asked = server.asked();
    let mut by_port: HashMap<u16, usize> = HashMap::new();
    for asked in &asked {
        *by_port.entry(asked.from.port()).or_default() += 1;
    }
    let (lowest, highest) = (by_port.keys().min().unwrap(), by_port.keys().max().unwrap());
    println!("{} questions, {} ports, {lowest} to {highest}", asked.len(), by_port.len());
    assert!(by_port.len() >= 500 && highest - lowest >= 16_000);
    // Five to a socket; the kernel may give out a port twice.
    assert!(by_port.values().filter(|asked| **asked > 5).count() * 20 <= by_port.len(), "{by_port:?}");
    // 3,000 draws from 65,536 give about 2,932 different ones.
    let ids: HashSet<u16> = asked.iter().map(nameserver::Asked::id).collect();
    assert!(ids.len() * 100 >= 2_932 * 95, "{} ids", ids.len());
    for bit in 0..16 {
        let set = asked.iter().filter(|asked| asked.id() >> bit & 1 == 1).count() * 100 / asked.len();
        assert!((45..=55).contains(&set), "bit {bit}: {set} %");
    }
}

#[tokio::test]
async fn whatever_is_not_the_reply_moves_the_question_to_tcp_and_is_never_believed() {
    type Forge = fn(&mut Vec<u8>);
    #[rustfmt::skip]
    let cases: [(&str, Forge); 8] = [
        ("another id",       |packet| packet[1] ^= 1),
        ("not a reply",      |packet| packet[2] &= 0x7f),
        ("opcode NOTIFY",    |packet| packet[2] |= 0x20),
        ("another name",     |packet| packet[13] ^= 1),
        ("another type",     |packet| packet[12 + 16] ^= 1),
        ("another class",    |packet| packet[12 + 18] ^= 2),
        ("no question",      |packet| packet[5] = 0),
        ("a header alone",   |packet| packet.truncate(12)),
    ];
    for (case, forge) in cases {
        let server = Nameserver::start(move |asked| {
            let mut forged = asked.address(POISON);
            forge(&mut forged);
            let good = Say::Here(asked.address(HERE));
            if asked.tcp { vec![good] } else { vec![Say::Here(forged), Say::Here(asked.address(POISON)), good] }
        });
        let upstream = udp(&[&server]);
        assert_eq!(ask(&upstream, "www.example.org").await, Ok(HERE), "{case}");
        let over: Vec<_> = server.asked().iter().map(|asked| asked.tcp).collect();
        assert_eq!(over, [false, true], "{case}");
        assert!(upstream.context.metrics.upstream_near_misses.value() > 0, "{case}");
    }
}

#[tokio::test]
async fn a_reply_from_elsewhere_is_not_even_seen_and_a_doubled_one_is_harmless() {
    let server = Nameserver::start(|asked| {
        let good = || Say::Here(asked.address(HERE));
        vec![Say::Elsewhere(asked.address(POISON)), good(), good()]
    });
    let upstream = udp(&[&server]);
    for index in 0..20 {
        assert_eq!(ask(&upstream, &format!("n{index}.example")).await, Ok(HERE));
    }
    assert!(server.asked().iter().all(|asked| !asked.tcp));
    assert_eq!(upstream.context.metrics.upstream_near_misses.value(), 0);
}

#[tokio::test]
async fn a_cut_reply_is_asked_for_again_over_tcp() {
    let server = Nameserver::start(|asked| {
        let mut reply = asked.address(HERE);
        if !asked.tcp {
            reply = asked.reply(0);
            reply[2] |= 0x02;
        }
        vec![Say::Here(reply)]
    });
    let upstream = udp(&[&server]);
    assert_eq!(ask(&upstream, "big.example").await, Ok(HERE));
    assert_eq!(server.asked().iter().map(|asked| asked.tcp).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_server_without_edns_is_asked_without_and_remembered() {
    for bare in [false, true] {
        let server = Nameserver::start(move |asked| {
            if !asked.has_edns() {
                return vec![Say::Here(asked.address(HERE))];
            }
            let mut reply = asked.reply(1);
            reply.truncate(if bare { 12 } else { reply.len() - 11 });
            reply[11] = 0;
            reply[5] = u8::from(!bare);
            vec![Say::Here(reply)]
        });
        let upstream = udp(&[&server]);
        assert_eq!(ask(&upstream, "a.example").await, Ok(HERE));
        assert_eq!(ask(&upstream, "b.example").await, Ok(HERE));
        let asked = server.asked();
        let plain: Vec<_> = asked.iter().filter(|asked| !asked.has_edns()).map(|asked| &*asked.name).collect();
        assert_eq!(plain, ["a.example", "b.example"]);
        assert!(asked.len() <= 3, "{}", asked.len());
    }
}

#[tokio::test]
async fn losing_one_of_two_servers_costs_no_answer() {
    for killed in [false, true] {
        let (first, second) = (Nameserver::with_address(HERE), Nameserver::with_address(HERE));
        let upstream = udp(&[&first, &second]);
        let mut first = Some(first);
        let dead = first.as_ref().unwrap().address();
        let (mut asked, begun) = (0, Instant::now());
        // The dead one is found out when its turn comes.
        while asked < 60 || state(&upstream, dead) != State::Down {
            if asked == 20 && killed {
                first = None;
            } else if asked == 20 {
                first.as_ref().unwrap().set_silent(true);
            }
            // In time: what comes later than that is a failure.
            assert_eq!(ask(&upstream, &format!("n{asked}.example")).await, Ok(HERE), "{asked}");
            asked += 1;
            assert!(begun.elapsed() < Duration::from_secs(60), "it is never found out");
        }
        // Nobody has to ask for its return to be noticed.
        let begun = Instant::now();
        let first = first.unwrap_or_else(|| Nameserver::start_at(dead, |asked| vec![Say::Here(asked.address(HERE))]));
        first.set_silent(false);
        eventually("it is back", || state(&upstream, dead) == State::Up).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn with_every_server_silent_the_question_fails_in_time_and_heals_after() {
    let servers = [Nameserver::with_address(HERE), Nameserver::with_address(HERE)];
    let upstream = udp(&[&servers[0], &servers[1]]);
    assert_eq!(ask(&upstream, "before.example").await, Ok(HERE));
    servers.iter().for_each(|server| server.set_silent(true));
    for name in ["a.example", "b.example"] {
        let begun = Instant::now();
        assert_eq!(ask(&upstream, name).await, Err(Failure::Silent));
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        let packets = servers.iter().flat_map(Nameserver::asked).filter(|asked| asked.name == name).count();
        assert!((2..=8).contains(&packets), "{packets} packets");
    }
    eventually("both are down", || servers.iter().all(|server| state(&upstream, server.address()) == State::Down))
        .await;
    servers.iter().for_each(|server| server.set_silent(false));
    let begun = Instant::now();
    assert_eq!(ask(&upstream, "after.example").await, Ok(HERE), "a live question finds out first");
    eventually("both are up", || servers.iter().all(|server| state(&upstream, server.address()) == State::Up)).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn one_lost_datagram_costs_no_answer_even_with_one_server() {
    let seen = Mutex::new(HashSet::new());
    let server = Nameserver::start(move |asked| {
        let lost = seen.lock().unwrap().insert(asked.name.clone());
        if lost { Vec::new() } else { vec![Say::Here(asked.address(HERE))] }
    });
    let upstream = udp(&[&server]);
    assert_eq!(ask(&upstream, "a.example").await, Ok(HERE));
}

#[tokio::test]
async fn where_nobody_listens_the_failure_comes_at_once() {
    let server = Nameserver::with_address(HERE);
    let gone = server.address();
    drop(server);
    for kind in [Server::Udp(gone), Server::Tcp(gone)] {
        let upstream = upstream(&[kind]);
        let begun = Instant::now();
        assert_eq!(ask(&upstream, "a.example").await, Err(Failure::Network));
        assert!(begun.elapsed() < race::LONGEST, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn trouble_of_one_server_is_passed_on_only_when_nobody_knows_better() {
    for rcode in [2, 4, 5] {
        let trouble = Nameserver::start(move |asked| vec![Say::Here(asked.reply(rcode))]);
        let good = Nameserver::with_address(HERE);
        let both = udp(&[&trouble, &good]);
        for index in 0..4 {
            assert_eq!(ask(&both, &format!("n{index}.example")).await, Ok(HERE), "{rcode}");
        }
        let begun = Instant::now();
        let reply = udp(&[&trouble]).ask(&query("a.example")).await.unwrap();
        assert_eq!(crate::wire::query::rcode(&reply.packet), rcode);
        assert!(begun.elapsed() < race::LONGEST, "{:?}", begun.elapsed());
    }
}

/// Referrals that lead to other referrals, failures, cuts and forgeries: none of it makes us ask for long, or for anything
/// else.
#[tokio::test]
async fn whatever_servers_say_a_question_costs_few_packets_and_no_referral_is_followed() {
    type Answer = fn(&nameserver::Asked) -> Vec<Say>;
    let referral: Answer = |asked| {
        let mut reply = asked.reply(0);
        if reply[11] > 0 {
            reply.truncate(reply.len() - 11);
        }
        (reply[9], reply[11]) = (1, 0);
        reply.extend(b"\xc0\x0c\0\x02\0\x01\0\0\0\x3c\0\x0a\x02ns\x04else\0\0");
        vec![Say::Here(reply)]
    };
    let cut: Answer = |asked| {
        let mut reply = asked.reply(0);
        reply[2] |= 0x02;
        vec![Say::Here(reply)]
    };
    let forged: Answer = |asked| {
        let mut reply = asked.address(POISON);
        reply[1] ^= 1;
        vec![Say::Here(reply)]
    };
    let bare: Answer = |asked| vec![Say::Here(asked.reply(1)[..12].to_vec())];
    let failing: Answer = |asked| vec![Say::Here(asked.reply(2))];
    for (case, answer) in [
        ("referral", referral),
        ("cut", cut),
        ("forged", forged),
        ("bare", bare),
        ("failing", failing),
        ("silent", |_| vec![]),
    ] {
        let servers = [(); 4].map(|()| Nameserver::start(answer));
        let upstream = udp(&servers.each_ref());
        let _ = upstream.ask(&query("www.example")).await;
        let asked: Vec<_> = servers.iter().flat_map(Nameserver::asked).map(|asked| asked.name).collect();
        assert!(asked.iter().all(|name| name == "www.example"), "{case}: {asked:?}");
        assert!((1..=8).contains(&asked.len()), "{case}: {} packets", asked.len());
    }
}

#[tokio::test]
async fn trouble_does_not_wait_for_a_server_that_is_silent() {
    let trouble = Nameserver::start(|asked| vec![Say::Here(asked.reply(2))]);
    let silent = Nameserver::with_address(HERE);
    silent.set_silent(true);
    let both = udp(&[&trouble, &silent]);
    let begun = Instant::now();
    let reply = both.ask(&query("a.example")).await.unwrap();
    assert_eq!(crate::wire::query::rcode(&reply.packet), 2);
    assert!(begun.elapsed() < race::LONGEST, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_zones_names_go_to_its_servers_and_to_nobody_else() {
    let [default, corp, lab] = [1, 2, 3].map(|last| Nameserver::with_address(Ipv4Addr::new(192, 0, 2, last)));
    let zone = |zone: &str, server: &Nameserver| Zone {
        zones: vec![zone.parse().unwrap()],
        servers: vec![Server::Udp(server.address())],
    };
    let options = Options {
        servers: vec![Server::Udp(default.address())],
        zones: vec![zone("corp.example", &corp), zone("lab.corp.example", &lab)],
        ..Options::default()
    };
    let upstream = Upstream::start(&options, nowhere(), Arc::default()).unwrap();
    #[rustfmt::skip]
    let cases = [
        ("corp.example",       2),
        ("www.corp.example",   2),
        ("lab.corp.example",   3),
        ("x.lab.corp.example", 3),
        ("notcorp.example",    1),
        ("example",            1),
        (".",                  1),
    ];
    for (name, last) in cases {
        assert_eq!(ask(&upstream, name).await, Ok(Ipv4Addr::new(192, 0, 2, last)), "{name}");
    }
    drop(corp);
    assert_eq!(ask(&upstream, "other.corp.example").await, Err(Failure::Network));
    assert!(default.asked().iter().all(|asked| !asked.name.ends_with(".corp.example")));
}

/// A server at port 53 is out of a test's reach, so what is followed is looked at and not asked.
#[tokio::test]
async fn resolv_conf_is_followed_however_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    let own = vec!["127.0.0.1:53".parse().unwrap()];
    let surroundings = Surroundings { own, resolv_conf: path.clone(), ..nowhere() };
    let upstream = Upstream::start(&Options::default(), surroundings, Arc::default()).unwrap();
    assert_eq!(ask(&upstream, "a.example").await, Err(Failure::NoServer));
    let names = || upstream.health().iter().map(|health| health.server.to_string()).collect::<Vec<_>>();
    let renamed = |text: &str| {
        fs::write(folder.path().join("new"), text).unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
    };
    let linked = |text: &str| {
        fs::write(folder.path().join("target"), text).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(Path::new("target"), &path).unwrap();
    };
    fs::write(&path, "nameserver 127.0.0.2\n").unwrap();
    eventually("it appears", || names() == ["udp://127.0.0.2"]).await;
    renamed("nameserver 127.0.0.3\nnameserver 127.0.0.1\n");
    eventually("it is replaced, and we are left out", || names() == ["udp://127.0.0.3"]).await;
    linked("nameserver 127.0.0.4\n");
    eventually("it becomes a link", || names() == ["udp://127.0.0.4"]).await;
    fs::write(folder.path().join("target"), "nameserver 127.0.0.5\n").unwrap();
    eventually("the link's target changes", || names() == ["udp://127.0.0.5"]).await;
    fs::write(&path, "garbage\u{0}\n").unwrap();
    eventually("it is broken", || names().is_empty()).await;
    fs::write(&path, "nameserver 127.0.0.5\n").unwrap();
    eventually("it is mended", || names() == ["udp://127.0.0.5"]).await;
}

#[tokio::test]
async fn a_configured_server_that_is_ourselves_is_refused() {
    let own: SocketAddr = "127.0.0.1:5300".parse().unwrap();
    let options = Options { servers: vec![Server::Udp(own)], ..Options::default() };
    let surroundings = Surroundings { own: vec!["0.0.0.0:5300".parse().unwrap()], ..nowhere() };
    let error = Upstream::start(&options, surroundings, Arc::default()).unwrap_err().to_string();
    assert_eq!(error, "upstream server udp://127.0.0.1:5300 is this daemon itself: it listens on 0.0.0.0:5300");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_sends_our_questions_back_is_found_and_not_asked() {
    let door: Arc<OnceLock<Arc<Upstream>>> = Arc::default();
    let back = Arc::clone(&door);
    // Everything it is asked it asks us, as a forwarder whose upstream we are.
    let looping = Nameserver::start(move |asked| {
        let name: DomainName = asked.name.parse().unwrap();
        let upstream = back.wait();
        if upstream.is_canary(name.as_name()) {
            upstream.canary_seen(name.as_name());
        }
        vec![Say::Here(asked.reply(5))]
    });
    let good = Nameserver::with_address(HERE);
    let both = udp(&[&looping, &good]);
    assert!(door.set(Arc::clone(&both)).is_ok());
    eventually("the loop is found", || state(&both, looping.address()) == State::Looping).await;
    assert_eq!(state(&both, good.address()), State::Up);
    let before = looping.asked().len();
    for index in 0..10 {
        assert_eq!(ask(&both, &format!("n{index}.example")).await, Ok(HERE));
    }
    assert_eq!(looping.asked().len(), before);
    assert_eq!(both.context.metrics.upstream_loops.value(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tcp_many_questions_share_few_connections_and_any_order_will_do() {
    // Two at a time, the later one first.
    let waiting = Mutex::new(HashMap::new());
    let server = Nameserver::start(move |asked| {
        let mut waiting = waiting.lock().unwrap();
        match waiting.remove(&asked.from) {
            _ if asked.name.starts_with("single") => vec![Say::Here(asked.address(HERE))],
            Some(earlier) => vec![Say::Here(asked.address(HERE)), Say::Here(earlier)],
            None => {
                waiting.insert(asked.from, asked.address(HERE));
                Vec::new()
            }
        }
    });
    let upstream = upstream(&[Server::Tcp(server.address())]);
    eventually("the canary is out", || upstream.context.metrics.upstream_queries_tcp.value() > 0).await;
    let names: Vec<_> = (0..1000).map(|index| format!("n{index}.example")).collect();
    let answers = join_all(names.iter().map(|name| ask(&upstream, name))).await;
    let answered = answers.iter().filter(|answer| **answer == Ok(HERE)).count();
    assert!(answered >= 990, "{answered} of 1,000; each connection may keep one back");
    let connections: HashSet<_> = server.asked().iter().map(|asked| asked.from).collect();
    assert!(connections.len() <= 8, "{} connections", connections.len());
}

#[tokio::test]
async fn a_connection_that_was_closed_is_made_anew() {
    let server = Nameserver::start(|asked| {
        let mut said = vec![Say::Here(asked.address(HERE))];
        if asked.name.starts_with("last") {
            said.push(Say::HangUp);
        }
        said
    });
    let upstream = upstream(&[Server::Tcp(server.address())]);
    for name in ["a.example", "last.example", "b.example", "last.b.example", "c.example"] {
        assert_eq!(ask(&upstream, name).await, Ok(HERE), "{name}");
    }
}

#[tokio::test]
async fn past_the_bound_a_question_is_turned_away() {
    let server = Nameserver::with_address(HERE);
    let upstream = udp(&[&server]);
    let all = Arc::clone(&upstream.in_flight.places).acquire_many_owned(u32::try_from(PLACES).unwrap()).await.unwrap();
    assert_eq!(ask(&upstream, "a.example").await, Err(Failure::Overloaded));
    assert_eq!(upstream.context.metrics.upstream_over_questions.value(), 1);
    drop(all);
    assert_eq!(ask(&upstream, "a.example").await, Ok(HERE));
}

#[tokio::test]
async fn few_descriptors_suffice_for_a_few_questions_and_the_rest_is_turned_away() {
    let server = Nameserver::start(|asked| {
        let mut reply = asked.address(HERE);
        if !asked.tcp && asked.name.starts_with("big") {
            reply[2] |= 0x02;
        }
        vec![Say::Here(reply)]
    });
    let upstream = udp(&[&server]);
    let sockets = &upstream.context.udp_sockets;
    sockets.forget_permits(sockets.available_permits().saturating_sub(4));
    for index in 0..40 {
        let name = if index % 4 == 0 { format!("big{index}.example") } else { format!("n{index}.example") };
        assert_eq!(ask(&upstream, &name).await, Ok(HERE), "{index}");
    }
    server.set_silent(true);
    let names: Vec<_> = (0..40).map(|index| format!("x{index}.example")).collect();
    let outcomes = join_all(names.iter().map(|name| ask(&upstream, name))).await;
    assert!(outcomes.contains(&Err(Failure::Overloaded)), "{outcomes:?}");
    assert!(upstream.context.metrics.upstream_over_sockets.value() > 0);
}

#[tokio::test]
async fn few_sockets_carry_many_questions_from_ever_new_ports_and_close_when_they_are_old() {
    let server = Nameserver::with_address(HERE);
    let upstream = udp(&[&server]);
    let left = || upstream.context.udp_sockets.available_permits();
    let all = left();
    for index in 0..700 {
        assert_eq!(ask(&upstream, &format!("n{index}.example")).await, Ok(HERE));
        assert!(all - left() <= 70, "{} sockets after {index} questions", all - left());
    }
    let ports: HashSet<u16> = server.asked().iter().map(|asked| asked.from.port()).collect();
    assert!(ports.len() >= 130, "five questions to a port, but for one given out twice: {}", ports.len());
    server.set_silent(true);
    assert_eq!(ask(&upstream, "silent.example").await, Err(Failure::Silent));
    eventually("all are closed", || left() == all).await;
}

#[tokio::test]
async fn a_reply_that_comes_after_the_end_of_patience_counts() {
    let seen = Mutex::new(HashSet::new());
    let server = Nameserver::start(move |asked| {
        // To the first of its packets, and to no repetition.
        if !seen.lock().unwrap().insert(asked.name.clone()) {
            return Vec::new();
        }
        std::thread::sleep(Duration::from_millis(600));
        vec![Say::Here(asked.address(HERE))]
    });
    let upstream = udp(&[&server]);
    assert_eq!(ask(&upstream, "slow.example").await, Ok(HERE));
    assert!(upstream.context.metrics.upstream_late.value() > 0);
}

#[tokio::test]
async fn what_is_asked_through_a_callers_lane_is_told_when_the_caller_hears_it_and_a_reload_leaves_the_lane() {
    let server = Nameserver::with_address(HERE);
    let lanes = Arc::new(Lanes::start(1, &Arc::default()).unwrap());
    let mut ear = lanes.ear(0).unwrap();
    assert!(lanes.ear(1).is_none());
    assert_eq!(ear.patience(), None, "nothing is expected");
    for name in ["before.example", "after.example"] {
        let options = Options { servers: vec![Server::Udp(server.address())], ..Options::default() };
        let surroundings = Surroundings { lanes: Arc::clone(&lanes), ..nowhere() };
        let upstream = Upstream::start(&options, surroundings, Arc::default()).unwrap();
        let (told, heard) = mpsc::channel();
        let lane = Arc::clone(ear.lane());
        upstream.ask_then(query(name), &lane, move |said| told.send((said, thread::current().id())).unwrap());
        eventually("it is asked", || server.asked().iter().any(|asked| asked.name == name)).await;
        assert!(ear.is_waited_for() && heard.try_recv().is_err());
        while ear.is_waited_for() {
            ear.hear(Some(Duration::from_secs(5)));
        }
        let (said, by) = heard.try_recv().unwrap();
        assert_eq!((address(&said.unwrap()), by), (HERE, thread::current().id()));
        upstream.stop().await;
        assert_eq!(ear.patience(), None, "its sockets are closed");
    }
}

#[tokio::test]
async fn a_stop_fails_what_waits_and_leaves_no_task() {
    let server = Nameserver::with_address(HERE);
    server.set_silent(true);
    let upstream = udp(&[&server]);
    let waiting = tokio::spawn({
        let upstream = Arc::clone(&upstream);
        async move { ask(&upstream, "a.example").await }
    });
    eventually("it is asked", || !server.asked().is_empty()).await;
    upstream.stop().await;
    assert_eq!(waiting.await.unwrap(), Err(Failure::Stopped));
    assert!(upstream.context.tasks.is_empty());
    assert_eq!(ask(&upstream, "b.example").await, Err(Failure::Stopped));
}
