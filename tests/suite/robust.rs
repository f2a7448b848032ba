//! Hostile packets, slow clients, full disks, kills: the daemon goes on, and keeps what it has seen.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{DNSClass, RecordType},
};
use nix::sys::signal::Signal;

use crate::support::{
    client::{ask, connect_from, is_met_with_silence, read_frame, receive, write_frame},
    daemon::{Daemon, PATIENCE, binary, wait_for},
    dice::Dice,
    load::upstream_for_all,
    nameserver::Nameserver,
};

const BLOCKED: &str = "connect.ngrok-agent.com";

fn config(server: SocketAddr, more: &str) -> String {
    format!("{more}\n[listen]\nLISTEN\n[upstream]\nservers = [\"udp://{server}\"]\n")
}

fn is_refused(daemon: &Daemon, name: &str) -> bool {
    ask(name, RecordType::A).udp(daemon.dns()).metadata.response_code == ResponseCode::NXDomain
}

/// One of many names that are blocked.
fn numbered(number: u32) -> String {
    format!("connect.n{number}.ngrok-agent.com")
}

fn seeds() -> Vec<Vec<u8>> {
    let asks = [
        ask("www.example.", RecordType::A),
        ask(BLOCKED, RecordType::AAAA).plain(),
        ask("a.very.long.name.with.many.labels.example.", RecordType::TXT).dnssec(),
        ask(BLOCKED, RecordType::ANY).class(DNSClass::CH),
        ask("x.ngrok.io.", RecordType::HTTPS),
    ];
    asks.iter().map(|ask| ask.bytes()).collect()
}

#[test]
fn sixty_thousand_mutated_packets_are_survived_and_every_reply_is_a_message() {
    let upstream = Nameserver::with_address("192.0.2.1".parse().unwrap());
    let daemon = Daemon::start(&config(upstream.address(), ""));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(daemon.dns()).unwrap();
    let (mut dice, seeds) = (Dice(0x5eed), seeds());
    let (mut sent, mut replies, mut memory) = (HashSet::new(), 0, 0);
    for round in 0..1200 {
        for _ in 0..50 {
            let mut packet = seeds[dice.below(seeds.len())].clone();
            dice.mutate(&mut packet);
            sent.extend(packet.first_chunk::<2>().copied());
            socket.send(&packet).unwrap();
        }
        // Once this is answered, everything before it was at least looked at.
        let control = ask(BLOCKED, RecordType::A).bytes();
        socket.send(&control).unwrap();
        loop {
            let reply = receive(&socket, PATIENCE).expect("the daemon is gone");
            let message = Message::from_vec(&reply).unwrap_or_else(|error| panic!("{error}: {}", reply.escape_ascii()));
            assert_eq!(message.metadata.message_type, MessageType::Response);
            if reply[..2] == control[..2] {
                break;
            }
            assert!(sent.contains(&[reply[0], reply[1]]), "an id that nobody used");
            replies += 1;
        }
        if round == 50 {
            memory = daemon.memory();
        }
    }
    assert!(replies > 1000, "{replies} replies: the packets were no questions at all");
    let grown = daemon.memory().saturating_sub(memory);
    assert!(grown < 50 << 20, "{} MiB", grown >> 20);

    for _ in 0..300 {
        let mut stream = TcpStream::connect(daemon.dns()).unwrap();
        let mut packet = seeds[dice.below(seeds.len())].clone();
        dice.mutate(&mut packet);
        write_frame(&mut stream, &packet);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        if let Some(reply) = read_frame(&mut stream) {
            assert_eq!(reply[..2], packet[..2]);
            assert_eq!(Message::from_vec(&reply).unwrap().metadata.message_type, MessageType::Response);
        }
    }
    let mut answer = ask(BLOCKED, RecordType::A).bytes();
    answer[2] |= 0x80;
    assert!(is_met_with_silence(daemon.dns(), &answer), "answers are not answered");
    let (code, log) = daemon.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.lines().count() < 50, "strangers fill the log:\n{log}");
}

#[test]
fn slow_and_greedy_streams_are_bounded_do_not_touch_datagrams_and_leave_nothing_behind() {
    let upstream = upstream_for_all();
    let daemon = Daemon::start(&config(upstream.address(), ""));
    // Whatever is opened at the first question is open now.
    assert!(is_refused(&daemon, BLOCKED));
    let before = daemon.descriptors();
    let mut slow = Vec::new();
    for client in ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"] {
        for _ in 0..50 {
            let mut stream = connect_from(client, daemon.dns());
            stream.write_all(&[0]).unwrap();
            slow.push(stream);
        }
    }
    // The first ones are closed for their slowness when a busy machine takes seconds to open them all.
    wait_for("many connections at once", || (daemon.descriptors() >= before + 100).then_some(()));
    let mut one_too_many = connect_from("127.0.0.5", daemon.dns());
    one_too_many.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let closed = one_too_many.read(&mut [0; 1]);
    let is_closed = match &closed {
        Ok(length) => *length == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    assert!(is_closed, "{closed:?}");
    for number in 0..40 {
        assert!(is_refused(&daemon, &numbered(number)));
    }
    drop((slow, one_too_many));
    wait_for("descriptors", || (daemon.descriptors() <= before + 2).then_some(()));
}

/// Sets how many file descriptors a running process may have (prlimit(1), util-linux).
fn allow_descriptors(daemon: &Daemon, limit: &str) {
    let arguments = ["--pid".to_owned(), daemon.pid().to_string(), format!("--nofile={limit}:")];
    assert!(Command::new("prlimit").args(arguments).status().unwrap().success());
}

#[test]
fn without_descriptors_datagrams_are_answered_and_accepting_rests_until_there_are_some() {
    let upstream = upstream_for_all();
    let daemon = Daemon::start(&config(upstream.address(), ""));
    assert!(is_refused(&daemon, BLOCKED));
    assert_eq!(ask("warm.example", RecordType::A).udp(daemon.dns()).metadata.response_code, ResponseCode::NoError);
    allow_descriptors(&daemon, "3");
    let mut stream = TcpStream::connect(daemon.dns()).unwrap();
    write_frame(&mut stream, &ask(BLOCKED, RecordType::A).bytes());
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let before = daemon.ticks();
    let read = stream.read(&mut [0; 1]).map_err(|error| error.kind());
    assert!(matches!(read, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "nobody accepts: {read:?}");
    // A hundred ticks are a second on one processor; spinning would take them all.
    let used = daemon.ticks() - before;
    assert!(used < 40, "{used} ticks in a second of rest");
    for number in 0..50 {
        assert!(is_refused(&daemon, &numbered(number)));
    }
    assert_eq!(ask("warm.example", RecordType::A).udp(daemon.dns()).metadata.response_code, ResponseCode::NoError);
    allow_descriptors(&daemon, "1024");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let reply = Message::from_vec(&read_frame(&mut stream).expect("accepted once there are descriptors")).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn a_stream_that_is_never_read_from_is_closed() {
    let upstream = upstream_for_all();
    let daemon = Daemon::start(&config(upstream.address(), ""));
    let mut stream = connect_from("127.0.0.2", daemon.dns());
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let packet = ask(BLOCKED, RecordType::A).bytes();
    let mut frame = u16::try_from(packet.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(packet);
    let many = frame.repeat(200);
    wait_for("the daemon to close", || match stream.write(&many) {
        Ok(_) => None,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(_) => Some(()),
    });
    assert!(is_refused(&daemon, BLOCKED));
}

#[test]
fn sinks_that_cannot_be_written_stop_nobody_and_are_said_once() {
    let upstream = upstream_for_all();
    let sinks = "[[audit.sinks]]\nkind = \"file\"\npath = \"/dev/full\"\n\
                 [[audit.sinks]]\nkind = \"file\"\npath = \"logs/attempts.jsonl\"\n";
    let daemon = Daemon::start_with(&config(upstream.address(), sinks), |folder| {
        fs::create_dir(folder.join("logs")).unwrap();
    });
    assert!(is_refused(&daemon, BLOCKED));
    fs::remove_dir_all(daemon.folder().join("logs")).unwrap();
    daemon.signal(Signal::SIGHUP);
    let failures = |what: &str| {
        let log = daemon.log();
        log.lines().filter(|line| line.contains(what) && line.contains("fails:")).count()
    };
    for number in 0..200 {
        assert!(is_refused(&daemon, &numbered(number)));
    }
    wait_for("the log says so", || (failures("/dev/full") > 0 && failures("attempts.jsonl") > 0).then_some(()));
    for number in 200..300 {
        assert!(is_refused(&daemon, &numbered(number)));
    }
    assert_eq!(daemon.attempts().len(), 301, "the store has them all");
    assert_eq!((failures("/dev/full"), failures("attempts.jsonl")), (1, 1), "{}", daemon.log());
    assert_eq!(daemon.stop().0, Some(0));
}

#[test]
fn a_store_that_turns_to_garbage_or_goes_stops_nobody() {
    let upstream = upstream_for_all();
    let daemon = Daemon::start(&config(upstream.address(), ""));
    assert!(is_refused(&daemon, BLOCKED));
    assert_eq!(daemon.attempts().len(), 1);
    let store = daemon.folder().join("state/attempts.db");
    for garbage in [true, false] {
        if garbage {
            fs::write(&store, "garbage ".repeat(10_000)).unwrap();
        } else {
            fs::remove_file(&store).unwrap();
        }
        for number in 0..100 {
            assert!(is_refused(&daemon, &format!("connect.{garbage}{number}.ngrok-agent.com")));
        }
        let _ = daemon.command(&["attempts"]);
    }
    let (code, log) = daemon.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.lines().count() < 50, "{log}");
}

#[test]
fn a_stop_answers_what_waits_and_ends_well() {
    let upstream = upstream_for_all();
    let daemon = Daemon::start(&config(upstream.address(), ""));
    upstream.silence(true);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(daemon.dns()).unwrap();
    for number in 0..5 {
        socket.send(&ask(&format!("u{number}.example"), RecordType::A).bytes()).unwrap();
    }
    let mut stream = TcpStream::connect(daemon.dns()).unwrap();
    write_frame(&mut stream, &ask("t.example", RecordType::A).bytes());
    wait_for("all at the server", || {
        let names: BTreeSet<_> = upstream.asked().into_iter().map(|(name, _)| name).collect();
        (names.len() == 6).then_some(())
    });
    let began = Instant::now();
    let (code, log) = daemon.stop();
    assert!(code == Some(0) && began.elapsed() < Duration::from_secs(6), "{code:?} {:?}\n{log}", began.elapsed());
    let replies = (0..5).map(|_| receive(&socket, Duration::from_secs(1)));
    for reply in replies.chain([read_frame(&mut stream)]) {
        let reply = Message::from_vec(&reply.expect("a question was forgotten")).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }
}

#[test]
fn a_kill_loses_no_attempt_older_than_a_second_and_leaves_whole_lines_and_the_right_modes() {
    let upstream = upstream_for_all();
    let folder = tempfile::tempdir().unwrap();
    let sink = "[[audit.sinks]]\nkind = \"file\"\npath = \"state/attempts.jsonl\"\n";
    let text = config(upstream.address(), sink).replace("LISTEN", "dns = [\"127.0.0.1:0\"]\nadmin = \"off\"");
    let path = folder.path().join("tunnelwarden.toml");
    fs::write(&path, text).unwrap();
    fs::create_dir(folder.path().join("state")).unwrap();
    // A stricter umask must not keep the group from reading.
    let mut command = Command::new("sh");
    command.args(["-c", r#"umask 077; exec "$0" serve --config "$1" --state-dir "$2""#, binary()]);
    command.arg(path).arg(folder.path().join("state"));
    let mut daemon = Daemon::launch(folder, command);
    for number in 0..500 {
        assert!(is_refused(&daemon, &numbered(number)));
    }
    thread::sleep(Duration::from_secs(1));
    let state = daemon.folder().join("state");
    for file in ["attempts.db", "attempts.db-wal", "attempts.db-shm", "attempts.jsonl"] {
        let mode = fs::metadata(state.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640, "{file}");
    }
    for number in 500..700 {
        let _ = is_refused(&daemon, &numbered(number));
    }
    daemon.crash_and_restart();
    let names: HashSet<_> = daemon.attempts().iter().map(|one| one["question"]["name"].to_string()).collect();
    let missing: Vec<_> =
        (0..500).map(|number| format!("\"{}\"", numbered(number))).filter(|name| !names.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let lines = fs::read_to_string(state.join("attempts.jsonl")).unwrap();
    let whole = lines.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count();
    assert!(whole >= 500 && whole + 1 >= lines.lines().count(), "at most the last line was cut short");
}
