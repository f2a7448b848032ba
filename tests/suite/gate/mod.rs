//! The gate behind a real redirect: who gets through, where to, and how the others are told.

mod bed;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use bed::{Bed, OTHER, OWN, OWN_V6, SHARED, SHARED_V6, banner, hello, process, until};
use jiff::Timestamp;
use ring::digest::{Context, SHA256};
use tunnelwarden::gate::Options;

use crate::support::bed::possible;

const ACME: &str = "[organization]\ningress = [\"connect.acme.example\"]";

const RESET: &str = "ConnectionReset after []";

/// Quick where something is waited for in any case; what a busy machine may need is the gate's own.
fn options() -> Options {
    Options { recheck: Duration::from_millis(50), drain: Duration::from_millis(100), ..Options::default() }
}

/// The same, where a hello is waited for in vain.
fn hasty() -> Options {
    Options { patience: Duration::from_secs(1), ..options() }
}

fn shared() -> SocketAddr {
    SocketAddr::new(SHARED.parse().unwrap(), 443)
}

fn reach(bed: &Bed, name: &str) -> Result<String, String> {
    bed.clients.reach(SHARED, vec![hello(name)]).map(|address| address.to_string())
}

#[test]
fn the_own_ingress_is_reached_where_the_gate_finds_it_and_not_where_the_client_dialled() {
    if !possible("gate::the_own_ingress_is_reached_where_the_gate_finds_it_and_not_where_the_client_dialled") {
        return;
    }
    let bed = Bed::new(ACME, options());
    assert_eq!(reach(&bed, "Connect.acme.example"), Ok(OWN.to_owned()));
    let over_v6 = bed.clients.reach(SHARED_V6, vec![hello("six.connect.acme.example")]);
    assert_eq!(over_v6, Ok(OWN_V6.parse().unwrap()));
    assert_eq!(bed.clients.reach(SHARED_V6, vec![hello("connect.acme.example")]), Ok(OWN.parse().unwrap()));
    let in_pieces = hello("connect.acme.example").chunks(1).map(<[u8]>::to_vec).collect();
    assert_eq!(bed.clients.reach(SHARED, in_pieces), Ok(OWN.parse().unwrap()), "in segments of one byte");
    assert_eq!(reach(&bed, "inside.connect.acme.example"), Err(RESET.to_owned()), "a private address");
    assert_eq!(reach(&bed, "down.connect.acme.example"), Err(RESET.to_owned()), "nobody answers there");
    assert_eq!((bed.metrics.gate_unresolved.value(), bed.metrics.gate_unreachable.value()), (1, 1));
    let record = bed.attempts();
    let own = record.iter().find(|record| record.question.name.as_deref() == Some("connect.acme.example")).unwrap();
    assert_eq!((own.way.as_str(), own.decision.as_str(), own.count), ("tls-gate", "allowed-own", 2));
    assert_eq!((own.destination, own.rule.as_str()), (Some(shared()), "organization.ingress"));
    assert_eq!(own.process, Some(process()));
}

#[test]
fn what_the_policy_does_not_let_pass_is_told_so_and_nobody_is_asked_for_it() {
    if !possible("gate::what_the_policy_does_not_let_pass_is_told_so_and_nobody_is_asked_for_it") {
        return;
    }
    let bed = Bed::new(ACME, options());
    let refused = "received fatal alert: UnrecognizedName";
    let told =
        |name: &str| bed.clients.shake_hands(SHARED, name).to_lowercase().replace("unrecognised", "unrecognized");
    for name in ["connect.ngrok-agent.com", "korgn.su.lennut.com", "web.example", "192.0.2.1"] {
        assert_eq!(told(name), refused.to_lowercase(), "{name}");
    }
    assert_eq!(bed.looked_up(), Vec::<String>::new());
    #[rustfmt::skip]
    assert_eq!(bed.record(), [
        "blocked connect.ngrok-agent.com ngrok/connect",
        "blocked korgn.su.lennut.com ngrok/disguise",
        "blocked web.example ngrok/connect",
        "blocked 3.125.1.1:443 ngrok/connect",
    ]);
    assert_eq!(bed.metrics.gate_refused.value(), 4);
}

#[test]
fn what_is_no_tls_and_what_was_not_redirected_is_reset() {
    if !possible("gate::what_is_no_tls_and_what_was_not_redirected_is_reset") {
        return;
    }
    let bed = Bed::new(ACME, hasty());
    let say = |text: &str| bed.clients.reach(SHARED, vec![text.as_bytes().to_vec()]).unwrap_err();
    assert_eq!(say("SSH-2.0-OpenSSH_9.2\r\n"), RESET);
    assert_eq!(say("CONNECT connect.acme.example:443 HTTP/1.1\r\n\r\n"), RESET);
    let began = Instant::now();
    assert_eq!(say(""), RESET);
    assert!(began.elapsed() >= hasty().patience, "silence is borne so long");
    let half = hello("connect.acme.example")[..40].to_vec();
    assert_eq!(bed.clients.reach(SHARED, vec![half]).unwrap_err(), RESET);
    assert!(bed.clients.is_reset(bed.gate), "dialled by itself");
    drop(bed.clients.dial(shared(), Vec::new()));
    until("who goes before it speaks is counted", || bed.metrics.gate_gone.value() == 1);
    let metrics = &bed.metrics;
    assert_eq!((metrics.gate_unreadable.value(), metrics.gate_slow.value(), metrics.gate_direct.value()), (2, 2, 1));
    assert_eq!(bed.record(), ["blocked 3.125.1.1:443 ngrok/connect"], "all of it is one attempt");
    assert_eq!(bed.attempts()[0].count, 4);
}

#[test]
fn unknown_names_follow_unknown_on_ingress_and_what_is_found_at_them_is_judged() {
    if !possible("gate::unknown_names_follow_unknown_on_ingress_and_what_is_found_at_them_is_judged") {
        return;
    }
    let observe = format!("{ACME}\n[policy]\nunknown-on-ingress = \"observe\"");
    let bed = Bed::new(&observe, options());
    assert_eq!(reach(&bed, "web.example"), Ok(OTHER.to_owned()));
    assert!(bed.clients.shake_hands(SHARED, "alias.example").contains("alert"), "an alias of a blocked name");
    #[rustfmt::skip]
    assert_eq!(bed.record(), [
        "observed web.example ngrok/connect",
        "observed alias.example ngrok/connect",
        "blocked alias.example ngrok/tunnel",
    ]);
    bed.reload(&format!("{ACME}\n[policy]\nmode = \"observe\""));
    assert_eq!(reach(&bed, "connect.ngrok-agent.com"), Ok(OWN.to_owned()), "observed, it passes, to where it is");
    assert_eq!(bed.record().last().unwrap(), "observed connect.ngrok-agent.com ngrok/connect");
    assert!(bed.clients.shake_hands(SHARED, "192.0.2.1").contains("alert"), "without a name there is nowhere to go");
}

#[test]
fn each_group_has_its_own_ingress_and_exceptions_are_for_their_clients() {
    if !possible("gate::each_group_has_its_own_ingress_and_exceptions_are_for_their_clients") {
        return;
    }
    let config = format!(
        "{ACME}\n[[clients]]\nname = \"guests\"\nnetworks = [\"10.9.0.3\"]\ningress = [\"six.connect.acme.example\"]\n\
         [[exceptions]]\nname = \"connect.ngrok-agent.com\"\nnetworks = [\"10.9.0.3\"]\n\
         until = 2999-01-01T00:00:00Z\nreason = \"vendor\""
    );
    let bed = Bed::new(&config, options());
    let reach = |source: &str, name: &str| bed.clients.reach_from(source, SHARED, hello(name)).map(|to| to.to_string());
    let alert = || Err(format!("closed after {ALERT:?}"));
    assert_eq!(reach("10.9.0.2", "connect.acme.example"), Ok(OWN.to_owned()));
    assert_eq!(reach("10.9.0.3", "connect.acme.example"), alert());
    assert_eq!(reach("10.9.0.3", "six.connect.acme.example"), Ok(OWN_V6.to_owned()), "over the other family");
    assert_eq!(reach("10.9.0.3", "connect.ngrok-agent.com"), Ok(OWN.to_owned()));
    assert_eq!(reach("10.9.0.2", "connect.ngrok-agent.com"), alert());
    let guests = bed.attempts().into_iter().filter(|record| record.group.as_deref() == Some("guests"));
    let decisions: Vec<_> = guests.map(|record| record.decision.to_string()).collect();
    assert_eq!(decisions, ["blocked", "allowed-own", "allowed-exception"]);
}

#[test]
fn an_exception_that_ends_and_a_reload_that_blocks_cut_what_they_let_through() {
    if !possible("gate::an_exception_that_ends_and_a_reload_that_blocks_cut_what_they_let_through") {
        return;
    }
    let bed = Bed::new(ACME, options());
    let until = Timestamp::from_second(Timestamp::now().as_second() + 5).unwrap();
    bed.reload(&format!(
        "{ACME}\n[[exceptions]]\nname = \"connect.ngrok-agent.com\"\nnetworks = [\"10.9.0.0/24\"]\nuntil = {until}\nreason = \"vendor\""
    ));
    let pass = |name: &str| {
        let mut stream = bed.clients.dial(shared(), vec![hello(name)]);
        assert_eq!(banner(&mut stream), Ok(OWN.to_owned()), "{name}");
        stream
    };
    let (mut excepted, mut own) = (pass("connect.ngrok-agent.com"), pass("connect.acme.example"));
    let cut = banner(&mut excepted);
    assert!(Timestamp::now() >= until, "not before it ends");
    assert_eq!(cut, Err(RESET.to_owned()));
    own.write_all(b"still here\n").unwrap();
    assert_eq!(banner(&mut own), Ok("still here".to_owned()), "others go on");
    bed.reload("[organization]\ningress = [\"connect.other.example\"]");
    assert_eq!(banner(&mut own), Err(RESET.to_owned()));
    assert_eq!(bed.metrics.gate_cut_policy.value(), 2);
    let record = bed.record();
    assert_eq!(
        record[2..],
        ["blocked connect.ngrok-agent.com ngrok/connect", "blocked connect.acme.example ngrok/connect"]
    );
}

#[test]
fn one_client_cannot_take_all_and_a_stop_ends_what_is_open() {
    if !possible("gate::one_client_cannot_take_all_and_a_stop_ends_what_is_open") {
        return;
    }
    let mut bed = Bed::new(ACME, Options { per_client: 2, ..options() });
    let dial = |bed: &Bed| bed.clients.dial(shared(), vec![hello("connect.acme.example")]);
    let mut held = [dial(&bed), dial(&bed)];
    assert!(held.iter_mut().all(|stream| banner(stream) == Ok(OWN.to_owned())));
    assert!(bed.clients.is_reset(shared()));
    assert_eq!(bed.metrics.gate_full.value(), 1);
    let [first, mut second] = held;
    first.shutdown(Shutdown::Both).unwrap();
    drop(first);
    until("the place is given back", || bed.clients.reach(SHARED, vec![hello("connect.acme.example")]).is_ok());
    bed.stop();
    assert_eq!(banner(&mut second), Err(RESET.to_owned()));
    assert!(bed.metrics.gate_cut_stop.value() >= 1);
}

#[test]
fn a_hundred_megabytes_come_back_as_they_went_and_a_half_that_is_closed_ends_only_itself() {
    if !possible("gate::a_hundred_megabytes_come_back_as_they_went_and_a_half_that_is_closed_ends_only_itself") {
        return;
    }
    carry_a_hundred_megabytes(options());
}

#[test]
fn a_connection_of_our_own_that_comes_back_is_ended_and_not_made_again_and_again() {
    if !possible("gate::a_connection_of_our_own_that_comes_back_is_ended_and_not_made_again_and_again") {
        return;
    }
    let bed = Bed::new(ACME, options());
    bed.lead_back();
    assert_eq!(reach(&bed, "connect.acme.example"), Err(RESET.to_owned()));
    assert_eq!((bed.metrics.gate_loop.value(), bed.metrics.gate_passed.value()), (1, 1));
}

#[test]
fn without_pipes_bytes_are_copied_and_are_the_same() {
    if !possible("gate::without_pipes_bytes_are_copied_and_are_the_same") {
        return;
    }
    carry_a_hundred_megabytes(Options { pipes: 0, ..options() });
}

#[test]
fn a_connection_without_a_byte_is_ended_and_hellos_are_not_waited_for_without_end() {
    if !possible("gate::a_connection_without_a_byte_is_ended_and_hellos_are_not_waited_for_without_end") {
        return;
    }
    let bed = Bed::new(ACME, Options { idle: Duration::from_secs(2), hellos: 1, ..hasty() });
    let mut idle = bed.clients.dial(shared(), vec![hello("connect.acme.example")]);
    assert_eq!(banner(&mut idle), Ok(OWN.to_owned()));
    assert_eq!(banner(&mut idle), Err(RESET.to_owned()));
    assert_eq!(bed.metrics.gate_cut_idle.value(), 1);
    let mut first = bed.clients.dial(shared(), vec![vec![22]]);
    until("the second is turned away", || bed.clients.is_reset(shared()) && bed.metrics.gate_full.value() > 0);
    assert_eq!(banner(&mut first), Err(RESET.to_owned()));
}

#[test]
fn a_name_that_hides_another_passes_only_where_it_would_anyway() {
    if !possible("gate::a_name_that_hides_another_passes_only_where_it_would_anyway") {
        return;
    }
    let bed = Bed::new(&format!("{ACME}\n[policy]\nunknown-on-ingress = \"observe\""), options());
    let reach = |name: &str| bed.clients.reach(SHARED, vec![hiding(hello(name))]).map(|address| address.to_string());
    assert_eq!(reach("connect.acme.example"), Ok(OWN.to_owned()));
    assert_eq!(reach("web.example"), Err(format!("closed after {ALERT:?}")));
    assert_eq!(bed.clients.reach(SHARED, vec![hello("web.example")]).map(|to| to.to_string()), Ok(OTHER.to_owned()));
}

/// The alert that a refused client reads: unrecognized_name.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The same hello with an encrypted one in it.
fn hiding(mut hello: Vec<u8>) -> Vec<u8> {
    let add = |hello: &mut Vec<u8>, at: usize| {
        let length = u16::from_be_bytes([hello[at], hello[at + 1]]) + 8;
        hello[at..at + 2].copy_from_slice(&length.to_be_bytes());
    };
    let suites = 5 + 4 + 2 + 32 + 1 + usize::from(hello[5 + 4 + 2 + 32]);
    let methods = suites + 2 + usize::from(u16::from_be_bytes([hello[suites], hello[suites + 1]]));
    let extensions = methods + 1 + usize::from(hello[methods]);
    // The record's length, the message's (its upper byte is 0), and that of all extensions.
    [3, 7, extensions].into_iter().for_each(|at| add(&mut hello, at));
    hello.extend([0xfe, 0x0d, 0, 4, 1, 2, 3, 4]);
    hello
}

fn carry_a_hundred_megabytes(options: Options) {
    let way = if options.pipes == 0 { "copied" } else { "spliced" };
    let bed = Bed::new(ACME, options);
    let mut stream = bed.clients.dial(shared(), vec![hello("connect.acme.example")]);
    assert_eq!(banner(&mut stream), Ok(OWN.to_owned()));
    let began = Instant::now();
    let sender = stream.try_clone().unwrap();
    let sent = thread::spawn(move || send(sender, 100));
    let mut received = Context::new(&SHA256);
    let (mut buffer, mut length) = (vec![0; 1 << 16], 0);
    loop {
        let read = stream.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        received.update(&buffer[..read]);
        length += read;
    }
    assert_eq!(length, 100 << 20);
    assert_eq!(received.finish().as_ref(), sent.join().unwrap().as_ref());
    println!("measured: 100 MiB there and back, {way}, in {:?}", began.elapsed());
}

/// Sends so many megabytes of noise, then closes that half; gives their hash.
fn send(mut stream: TcpStream, megabytes: usize) -> ring::digest::Digest {
    let mut state = 1_u64;
    let block: Vec<u8> = (0..1 << 17)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()
        })
        .collect();
    let mut hash = Context::new(&SHA256);
    for number in 0..megabytes {
        let block = &block[number..];
        hash.update(block);
        stream.write_all(block).unwrap();
        let rest = &block[..number];
        hash.update(rest);
        stream.write_all(rest).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    hash.finish()
}
