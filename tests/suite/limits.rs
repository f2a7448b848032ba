//! Who asks more often than it may: what it gets over datagrams and streams, and what is said of it.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Instant,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};

use crate::support::{
    client::{ask, read_frame, receive, write_frame},
    daemon::{Daemon, PATIENCE},
};

const BLOCKED: &str = "connect.ngrok-agent.com";

/// Questions of a burst, and how many of them are within the rate at once.
const BURST: u16 = 60;
const RATE: usize = 5;

fn config(limits: &str) -> String {
    format!(
        "[limits]\n{limits}\n[listen]\ndns = [\"127.0.0.1:0\", \"[::1]:0\"]\nadmin = \"off\"\n\
         [upstream]\nservers = [\"udp://127.0.0.1:9\"]\n"
    )
}

fn numbered(id: u16) -> Vec<u8> {
    ask(BLOCKED, RecordType::A).with(|message| message.metadata.id = id).bytes()
}

/// What came back of a burst from one socket, up to the last question but one: that or the last is answered where each
/// second slips.
fn burst(server: SocketAddr) -> Vec<Message> {
    let socket = UdpSocket::bind(SocketAddr::new(server.ip(), 0)).unwrap();
    socket.connect(server).unwrap();
    (1..=BURST).for_each(|id| assert!(socket.send(&numbered(id)).is_ok()));
    let mut replies: Vec<Message> = Vec::new();
    while replies.last().is_none_or(|reply| reply.metadata.id < BURST - 1) {
        replies.push(Message::from_vec(&receive(&socket, PATIENCE).expect("the daemon is gone")).unwrap());
    }
    replies
}

/// The reply to one question over a stream.
fn streamed(stream: &mut TcpStream) -> ResponseCode {
    write_frame(stream, &numbered(7));
    Message::from_vec(&read_frame(stream).expect("a stream is always answered")).unwrap().metadata.response_code
}

#[test]
fn who_asks_too_often_is_sent_to_tcp_now_and_then_has_a_share_of_its_own_there_and_is_said_in_one_line() {
    let daemon = Daemon::start(&config(&format!("rate = {RATE}\nslip = 2")));
    for &server in &daemon.addresses {
        let began = Instant::now();
        let replies = burst(server);
        let most = RATE + 1 + usize::try_from(began.elapsed().as_secs()).unwrap().saturating_add(1) * RATE;
        let (advice, answers): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.metadata.truncation);
        assert!((RATE..=most).contains(&answers.len()), "{server}: {} answers", answers.len());
        assert!(answers.iter().all(|reply| reply.metadata.response_code == ResponseCode::NXDomain));
        assert!(advice.iter().all(|reply| reply.answers.is_empty() && reply.authorities.is_empty()));
        let over = usize::from(BURST) - answers.len();
        assert!(advice.len().abs_diff(over / 2) <= 1 + answers.len() - RATE, "{server}: {} of {over}", advice.len());
        // What anybody sent in its name has not used up its streams.
        let mut stream = TcpStream::connect(server).unwrap();
        assert_eq!(streamed(&mut stream), ResponseCode::NXDomain, "{server}");
        let told = (0..10_000).find(|_| streamed(&mut stream) == ResponseCode::Refused);
        assert!(told >= Some(RATE - 1), "{server}: {told:?}");
    }
    let (code, log) = daemon.stop();
    assert_eq!(code, Some(0), "{log}");
    let lines: Vec<_> = log.lines().filter(|line| line.contains("limits: ")).collect();
    let [line] = lines[..] else { panic!("one line:\n{log}") };
    for said in ["met with silence (rate)", "sent to TCP (rate, slip)", "2 questions over the rate refused"] {
        assert!(line.contains(said), "{said}: {line}");
    }
}

#[test]
fn a_forwarder_has_a_rate_of_its_own_and_is_told_and_a_reload_changes_both() {
    let limits = |more: &str| config(&format!("forwarders = [\"127.0.0.1\"]\nrate = 1\n{more}"));
    let daemon = Daemon::start(&limits(""));
    let reply = || ask(BLOCKED, RecordType::A).udp(daemon.dns()).metadata.response_code;
    let reload = |config: &str| {
        daemon.rewrite(config);
        let output = daemon.command(&["reload"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    assert!((0..BURST).all(|_| reply() == ResponseCode::NXDomain), "no rate holds a forwarder by default");
    reload(&limits("rate-per-forwarder = 1"));
    assert!(
        (0..10_000).any(|_| reply() == ResponseCode::Refused),
        "and it hears so, for silence would look like death"
    );
    reload(&config("rate = 0"));
    assert!((0..BURST).all(|_| reply() == ResponseCode::NXDomain), "without a rate");
    reload(&config("rate = 1\nslip = 1"));
    let is_cut = || ask(BLOCKED, RecordType::A).udp(daemon.dns()).metadata.truncation;
    assert!((0..10_000).any(|_| is_cut()), "who is no forwarder any more is a client");
}
