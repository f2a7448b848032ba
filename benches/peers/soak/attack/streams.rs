//! Attacks by connections: to the DNS port and to the admin door.

use std::{
    io::{self, ErrorKind, Read, Write},
    iter,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use super::{Attack, Attacks, Beat};
use crate::{
    question::encode,
    soak::household::{CONNECTIONS, Household},
};

/// Between two connections of each kind that is thrown away.
const PERIOD: Duration = Duration::from_millis(50);

/// Addresses of slow clients; each has as many connections as it may.
const SLOW_CLIENTS: u8 = 5;

/// Slow ones at the admin door, which has 32 places for everybody: the operator needs one.
const SLOW_AT_THE_DOOR: u8 = 8;

/// Between two words of a slow connection.
const PAUSE: Duration = Duration::from_secs(1);

/// To be connected, which the kernel does as long as anybody accepts.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection that says a little at a time, and comes again when it was ended.
struct Creeper {
    attack: Attack,
    source: Ipv4Addr,
    target: SocketAddrV4,
    /// Said one after the other, and again from the start.
    words: Vec<Vec<u8>>,
    stream: Option<TcpStream>,
    said: usize,
    due: Instant,
}

/// Goes on until it is over.
pub(in crate::soak) fn harass(household: &Household, goes_on: impl Fn() -> bool, attacks: &mut Attacks) {
    let (dns, door) = (household.address, household.admin);
    let mut creepers: Vec<_> = creepers(dns, door).collect();
    let (mut beat, mut number) = (Beat::every(PERIOD), 0);
    let junk = [frames_of_nobody(), requests_of_nobody()];
    while goes_on() {
        beat.wait();
        let now = Instant::now();
        creepers.iter_mut().filter(|creeper| creeper.due <= now).for_each(|creeper| creeper.creep(now, attacks));
        let host = (number % 8) as u8;
        let visits = [(Attack::Thrown, dns, 8, &junk[0]), (Attack::Door, door, 9, &junk[1])];
        for (attack, target, network, junk) in visits {
            let Ok(mut stream) = connect(source(network, host), target) else { continue };
            let _ = stream.write_all(&junk[number % junk.len()]);
            attacks.count(attack, 1);
        }
        // This address has all of its connections.
        attacks.count(Attack::Crowd, u64::from(connect(source(7, 0), dns).is_ok()));
        number += 1;
    }
}

/// Not all at the same time: what they take of the daemon should be even.
fn creepers(dns: SocketAddrV4, door: SocketAddrV4) -> impl Iterator<Item = Creeper> {
    let creeper = |attack, source, target, words| Creeper {
        attack,
        source,
        target,
        words,
        stream: None,
        said: 0,
        due: Instant::now(),
    };
    let question = encode("slow.site.example");
    let frame = [&(question.len() as u16).to_be_bytes()[..], &question].concat();
    let bytes: Vec<_> = frame.iter().map(|&byte| vec![byte]).collect();
    let slow = (0..CONNECTIONS).flat_map(|_| 0..SLOW_CLIENTS);
    let slow = slow.map(move |client| creeper(Attack::Slow, source(7, client), dns, bytes.clone()));
    let endless = iter::once(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n".to_vec());
    let endless: Vec<_> = endless.chain((0..99).map(|line| format!("X-{line}: on and on\r\n").into_bytes())).collect();
    let at_the_door = move |host| creeper(Attack::Door, source(10, host), door, endless.clone());
    let all = slow.chain((0..SLOW_AT_THE_DOOR).map(at_the_door));
    all.enumerate().map(|(number, creeper)| {
        let due = creeper.due + Duration::from_millis(47) * number as u32;
        Creeper { due, ..creeper }
    })
}

impl Creeper {
    fn creep(&mut self, now: Instant, attacks: &mut Attacks) {
        self.due = now + PAUSE;
        if self.stream.as_mut().is_some_and(is_ended) {
            (self.stream, self.said) = (None, 0);
        }
        if self.stream.is_none() {
            self.stream = connect(self.source, self.target).ok();
            attacks.count(self.attack, u64::from(self.stream.is_some()));
        }
        if let Some(stream) = &mut self.stream {
            // Whether it was ended is seen the next time.
            let _ = stream.write_all(&self.words[self.said % self.words.len()]);
            self.said += 1;
        }
    }
}

fn is_ended(stream: &mut TcpStream) -> bool {
    loop {
        match stream.read(&mut [0; 512]) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Ok(0) | Err(_) => return true,
        }
    }
}

/// Does not wait for anything afterwards.
fn connect(source: Ipv4Addr, target: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddrV4::new(source, 0).into())?;
    socket.connect_timeout(&target.into(), PATIENCE)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What comes to the DNS port: nothing, half a length, half a question, no length at all, TLS, HTTP, more than there may be.
fn frames_of_nobody() -> Vec<Vec<u8>> {
    let request = b"GET / HTTP/1.1\r\nHost: dns.example\r\n\r\n".to_vec();
    let half = [&[0, 200][..], &encode("half.site.example")].concat();
    vec![Vec::new(), vec![0], half, vec![0, 0], hello(), request, vec![0xff; 600]]
}

/// What comes to the admin door: nothing, half a request, one for somebody else, no HTTP, heads without an end.
fn requests_of_nobody() -> Vec<Vec<u8>> {
    let head = |host: &str, more: &str| format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n{more}").into_bytes();
    let endless = "X-Junk: 0123456789\r\n".repeat(1_000);
    vec![
        Vec::new(),
        head("127.0.0.1", ""),
        head("rebound.example", "\r\n"),
        head("127.0.0.1", &endless),
        head("rebound.example:9053", "Connection: keep-alive\r\n\r\n"),
        hello(),
    ]
}

/// The beginning of a TLS connection.
fn hello() -> Vec<u8> {
    [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 506]].concat()
}

/// An address of 127.66.0.0/16, apart from those of datagrams.
fn source(network: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 66, 240 + network, 1 + host)
}
