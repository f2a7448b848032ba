//! The whole daemon with upstream servers over TLS and HTTPS: what passes, what is never trusted, and that the bounds
//! of the libraries below do not show.

use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, RecordType,
        rdata::{
            A, NULL,
            opt::{EdnsCode, EdnsOption},
        },
    },
};

use crate::support::{
    client::{ask, receive},
    daemon::{Daemon, PATIENCE, wait_for},
    encrypted::{Authority, Encrypted, Manner, Speech},
};

const BOTH: [Speech; 2] = [Speech::Tls, Speech::Https];

const ZONE: &str = "
example.org. 60 IN A 192.0.2.1
";

/// How the configuration names the server, whose certificate is for `dns.example`.
fn uri(speech: Speech, address: SocketAddr) -> String {
    match speech {
        Speech::Tls => format!("tls://{address}#dns.example"),
        Speech::Https => format!("https://{address}/dns-query#dns.example"),
    }
}

fn configuration(servers: &[String]) -> String {
    format!(
        "[listen]\nLISTEN\n[limits]\nwaiting-per-client = 1000\n[upstream]\ncertificate-authority = \"ca.pem\"\nservers = {servers:?}\n"
    )
}

fn daemon(authority: &Authority, servers: &[String]) -> Daemon {
    Daemon::start_with(&configuration(servers), |folder| fs::write(folder.join("ca.pem"), authority.pem()).unwrap())
}

/// Puts all the questions at once, again where no reply came, and gives the response codes by name.
fn ask_at_once(server: SocketAddr, names: &[String]) -> HashMap<String, ResponseCode> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    let mut heard = HashMap::new();
    let end = Instant::now() + PATIENCE;
    while heard.len() < names.len() {
        assert!(Instant::now() < end, "{} of {} answered", heard.len(), names.len());
        for name in names.iter().filter(|name| !heard.contains_key(*name)) {
            socket.send(&ask(name, RecordType::A).bytes()).unwrap();
        }
        while heard.len() < names.len()
            && let Some(reply) = receive(&socket, Duration::from_secs(3))
        {
            let reply = Message::from_vec(&reply).unwrap();
            heard.insert(reply.queries[0].name().to_string(), reply.metadata.response_code);
        }
    }
    heard
}

fn names(count: usize, first_label: &str) -> Vec<String> {
    (0..count).map(|index| format!("{first_label}{index}.example.")).collect()
}

fn zone_with(names: &[String]) -> String {
    names.iter().map(|name| format!("{name} 60 IN A 192.0.2.2\n")).collect::<String>() + ZONE
}

/// The code of the Extended DNS Error (RFC 8914), if there is one.
fn extended_error(reply: &Message) -> Option<u16> {
    let EdnsOption::Unknown(_, data) = reply.edns.as_ref()?.option(EdnsCode::Unknown(15))? else { return None };
    Some(u16::from_be_bytes([data[0], data[1]]))
}

#[test]
fn all_of_a_question_and_of_its_answer_passes() {
    let authority = Authority::new();
    for speech in BOTH {
        let mut manner = Manner::new(speech, &format!("{ZONE}reply bad.example SOA SERVFAIL\n"));
        // A type nobody knows, and a name that is no host's.
        let odd = Name::from_labels([&b"\x00a.b\xff"[..], &b"Example"[..], &b"ORG"[..]]).unwrap();
        let (host, nobodys) = (Name::from_ascii("example.org.").unwrap(), RecordType::Unknown(65_280));
        let unknown = RData::Unknown { code: nobodys, rdata: NULL::with(vec![1, 2, 3]) };
        manner.zone.add_reply(&host, nobodys, unknown.clone());
        manner.zone.add_reply(&odd, RecordType::A, RData::A(A::new(192, 0, 2, 9)));
        manner.zone.add_extended_error("bad.example", RecordType::SOA, 9);
        let server = Encrypted::start(&authority, manner);
        let daemon = daemon(&authority, &[uri(speech, server.address())]);

        let plain = ask("example.org.", RecordType::A).udp(daemon.dns());
        assert_eq!(plain.answers[0].data, RData::A(A::new(192, 0, 2, 1)), "{speech:?}");
        let odd_type = ask("example.org.", nobodys).udp(daemon.dns());
        assert_eq!(odd_type.answers[0].data, unknown, "{speech:?}");
        let binary = ask(".", RecordType::A).with(|message| {
            message.queries[0].set_name(odd.clone());
            message.metadata.checking_disabled = true;
        });
        let binary = binary.dnssec().udp(daemon.dns());
        assert_eq!(binary.answers[0].data, RData::A(A::new(192, 0, 2, 9)), "{speech:?}");
        let bad = ask("bad.example.", RecordType::SOA).udp(daemon.dns());
        assert_eq!((bad.metadata.response_code, extended_error(&bad)), (ResponseCode::ServFail, Some(9)), "{speech:?}");

        let asked = server.asked();
        let of = |name: &Name| asked.iter().find(|asked| asked.queries[0].name() == name).unwrap();
        let dnssec_ok = |asked: &Message| asked.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let (binary, plain) = (of(&odd), of(&host));
        assert!(binary.metadata.checking_disabled && dnssec_ok(binary), "{speech:?}");
        assert!(!plain.metadata.checking_disabled && !dnssec_ok(plain), "{speech:?}");
    }
}

#[test]
fn a_reply_that_cannot_be_decoded_fails_its_question_and_is_no_reason_to_doubt_the_server() {
    let authority = Authority::new();
    let mut manner = Manner::new(Speech::Https, ZONE);
    // An address of three bytes.
    let short = RData::Unknown { code: RecordType::A, rdata: NULL::with(vec![192, 0, 2]) };
    manner.zone.add_reply(&Name::from_ascii("short.example.").unwrap(), RecordType::A, short);
    let server = Encrypted::start(&authority, manner);
    let daemon = daemon(&authority, &[uri(Speech::Https, server.address())]);
    for (name, expected) in [("short.example.", ResponseCode::ServFail), ("example.org.", ResponseCode::NoError)] {
        let reply = ask(name, RecordType::A).udp(daemon.dns());
        assert_eq!(reply.metadata.response_code, expected, "{name}");
    }
    let probes = server.asked().iter().filter(|asked| asked.queries[0].name().is_root()).count();
    assert_eq!(probes, 0, "it answers, so nobody has to find out");
}

#[test]
fn three_hundred_questions_at_once_are_answered_over_one_server() {
    let authority = Authority::new();
    for speech in BOTH {
        let names = names(300, "together");
        let mut manner = Manner::new(speech, &zone_with(&names));
        // All 300 are held until the last has come: on eight connections at most, that is more than 32 on one. Over
        // TLS this server works off a connection question by question, so it must not wait for the next.
        manner.together = if speech == Speech::Https { 300 } else { 1 };
        let server = Encrypted::start(&authority, manner);
        let daemon = daemon(&authority, &[uri(speech, server.address())]);
        let heard = ask_at_once(daemon.dns(), &names);
        assert!(heard.values().all(|code| *code == ResponseCode::NoError), "{speech:?}: {heard:?}");
        assert!(server.connections() <= 8, "{speech:?}: {}", server.connections());
    }
}

#[test]
fn a_certificate_for_another_name_is_not_trusted_and_nothing_is_asked_in_the_clear() {
    let authority = Authority::new();
    for speech in BOTH {
        let manner = Manner { certificate: "other.example", ..Manner::new(speech, ZONE) };
        let server = Encrypted::start(&authority, manner);
        let datagrams = UdpSocket::bind(server.address()).unwrap();
        let daemon = daemon(&authority, &[uri(speech, server.address())]);
        let reply = ask("example.org.", RecordType::A).udp(daemon.dns());
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{speech:?}");
        assert_eq!(extended_error(&reply), Some(23), "{speech:?}: network error");
        assert!(server.asked().is_empty(), "{speech:?}");
        datagrams.set_nonblocking(true).unwrap();
        assert_eq!(datagrams.recv(&mut [0; 512]).unwrap_err().kind(), ErrorKind::WouldBlock, "{speech:?}");
    }
}

#[test]
fn an_authority_is_trusted_once_the_file_names_it() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for speech in BOTH {
        let server = Encrypted::start(&authority, Manner::new(speech, ZONE));
        let daemon = daemon(&stranger, &[uri(speech, server.address())]);
        let code = || ask("example.org.", RecordType::A).udp(daemon.dns()).metadata.response_code;
        assert_eq!(code(), ResponseCode::ServFail, "{speech:?}");
        assert!(server.asked().is_empty(), "{speech:?}");
        fs::write(daemon.folder().join("ca.pem"), stranger.pem() + &authority.pem()).unwrap();
        let reload = daemon.command(&["reload"]);
        assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
        wait_for("the new authority is trusted", || (code() == ResponseCode::NoError).then_some(()));
    }
}

#[test]
fn without_a_name_the_certificate_has_to_be_for_the_address() {
    let authority = Authority::new();
    for (certificate, expected) in [("127.0.0.1", ResponseCode::NoError), ("dns.example", ResponseCode::ServFail)] {
        for speech in BOTH {
            let server = Encrypted::start(&authority, Manner { certificate, ..Manner::new(speech, ZONE) });
            let uri = uri(speech, server.address());
            let daemon = daemon(&authority, &[uri.split('#').next().unwrap().to_owned()]);
            let reply = ask("example.org.", RecordType::A).udp(daemon.dns());
            assert_eq!(reply.metadata.response_code, expected, "{speech:?}, {certificate}");
        }
    }
}

#[test]
fn a_server_that_was_killed_is_asked_again_within_ten_seconds_of_its_return() {
    let authority = Authority::new();
    for speech in BOTH {
        let manner = Manner::new(speech, ZONE);
        let server = Encrypted::start(&authority, manner.clone());
        let address = server.address();
        let daemon = daemon(&authority, &[uri(speech, address)]);
        let mut asked = 0;
        let mut code = || {
            asked += 1;
            ask(&format!("n{asked}.example.org."), RecordType::A).udp(daemon.dns()).metadata.response_code
        };
        assert_eq!(code(), ResponseCode::NXDomain, "{speech:?}");
        drop(server);
        wait_for("its absence is noticed", || (code() == ResponseCode::ServFail).then_some(()));
        for _ in 0..5 {
            assert_eq!(code(), ResponseCode::ServFail, "{speech:?}");
        }
        let _server = Encrypted::start_at(address, &authority, manner);
        let back = Instant::now();
        wait_for("its return is noticed", || (code() == ResponseCode::NXDomain).then_some(()));
        assert!(back.elapsed() < Duration::from_secs(10), "{speech:?}: {:?}", back.elapsed());
    }
}

#[test]
fn connections_that_the_server_closed_for_being_idle_cost_no_answer() {
    let authority = Authority::new();
    for speech in BOTH {
        let (first, second) = (names(60, "a"), names(60, "b"));
        let mut manner = Manner::new(speech, &zone_with(&[first.as_slice(), &second].concat()));
        // Longer than a busy machine takes for the names.
        manner.idle = Duration::from_secs(2);
        let server = Encrypted::start(&authority, manner);
        let daemon = daemon(&authority, &[uri(speech, server.address())]);
        for names in [first, second] {
            let heard = ask_at_once(daemon.dns(), &names);
            assert!(heard.values().all(|code| *code == ResponseCode::NoError), "{speech:?}: {heard:?}");
            wait_for("the server hangs up", || (server.connections() == 0).then_some(()));
        }
        let single = ask("example.org.", RecordType::A).udp(daemon.dns());
        assert_eq!(single.metadata.response_code, ResponseCode::NoError, "{speech:?}");
    }
}

#[test]
fn encrypted_servers_stand_in_for_each_other_and_serve_zones() {
    let authority = Authority::new();
    let [tls, https] = BOTH.map(|speech| Encrypted::start(&authority, Manner::new(speech, ZONE)));
    let gone = Encrypted::start(&authority, Manner::new(Speech::Tls, ZONE));
    let servers = [uri(Speech::Tls, gone.address()), uri(Speech::Https, https.address())];
    drop(gone);
    let zone = format!(
        "{}[[upstream.zones]]\nzones = [\"corp.test\"]\nservers = [{:?}]\n",
        configuration(&servers),
        uri(Speech::Tls, tls.address())
    );
    let daemon = Daemon::start_with(&zone, |folder| fs::write(folder.join("ca.pem"), authority.pem()).unwrap());
    for index in 0..10 {
        let name = format!("n{index}.example.org.");
        let reply = ask(&name, RecordType::A).udp(daemon.dns());
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    let reply = ask("www.corp.test.", RecordType::A).udp(daemon.dns());
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    let corp = Name::from_ascii("www.corp.test.").unwrap();
    assert!(tls.asked().iter().any(|asked| *asked.queries[0].name() == corp));
    assert!(https.asked().iter().all(|asked| *asked.queries[0].name() != corp), "it left its zone");
}
