//! One question has one answer: asked of upstream or found in the cache, over datagrams or TCP, with the calls that
//! carry many datagrams at once or without them. Thousands of generated questions are compared byte for byte.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::unix::process::CommandExt as _,
    process::Command,
    thread,
};

use socket2::{Domain, Socket, Type};

use crate::support::{
    client::{read_frame, receive, write_frame},
    daemon::{Daemon, PATIENCE, command},
    nameserver::{Asked, Nameserver, Say},
};

const QUESTIONS: u16 = 6_000;

const SEED: u64 = 0x7475_6e6e_656c;

/// Questions of one client on the way at once.
const WINDOW: usize = 32;

/// The id of the last question, which is answered whatever else is not.
const CONTROL: u16 = u16::MAX;

/// Clients 127.0.0.1 and on, each in a group that is refused in another way; the first has what is said for all, the
/// fifth is met with silence.
const CLIENTS: u8 = 6;
const SILENCED: u8 = 5;

const CONFIG: &str = r#"
[organization]
ingress = ["own.acme.example"]
contact = "netsec@acme.example"
[policy]
packs = ["./pack.toml"]
allow = [".allowed.blocked.example"]
block = [".local.example"]
sinkhole = ["192.0.2.80", "2001:db8::80"]
[cache]
# All that the upstream says lives longer, so no TTL changes while the test runs.
max-ttl = "60s"
[limits]
pipeline = 64
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
name = "observe"
networks = ["127.0.0.6"]
mode = "observe"
[[exceptions]]
name = ".excepted.example"
networks = ["127.0.0.1", "127.0.0.2"]
until = 2099-12-24T18:00:00Z
reason = "vendor support"
"#;

const PACK: &str = r#"
name = "pack"
version = "1"
[[rules]]
id = "names"
reason = "a tunnel"
block = [".blocked.example", ".excepted.example"]
[[rules]]
id = "addresses"
reason = "its addresses"
networks = ["198.51.100.0/24", "2001:db8:51::/48"]
"#;

/// Domains, by what comes of a question for a name in them.
const BLOCKED: &str = "blocked.example";
const LOCAL: &str = "local.example";
const EXCEPTED: &str = "excepted.example";
const ALIAS: &str = "alias.example";
const ADDRESS: &str = "address.example";
const DOMAINS: [&str; 12] = [
    BLOCKED,
    LOCAL,
    EXCEPTED,
    ALIAS,
    ADDRESS,
    "own.acme.example",
    "allowed.blocked.example",
    "plain.example",
    "long.example",
    "cut.example",
    "gone.example",
    "empty.example",
];

const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const ANY: u16 = 255;

/// One question as it is sent, with what is known of its answer.
struct Case {
    packet: Vec<u8>,
    client: u8,
    /// The largest datagram it may be answered with, in bytes.
    limit: usize,
    is_silent: bool,
}

/// The replies, by id.
type Replies = HashMap<u16, Vec<u8>>;

#[test]
fn a_miss_a_hit_tcp_and_single_datagrams_give_the_same_answer_byte_for_byte() {
    let mut dice = Dice(SEED);
    let cases: Vec<_> = (0..QUESTIONS).map(|number| Case::draw(number, &mut dice)).collect();
    let upstream = Nameserver::start(say);
    let start = |change: fn(&mut Command)| start(upstream.address(), change);
    let (plain, streamed, single) = (start(|_| {}), start(|_| {}), start(forbid_batched_calls));
    assert_eq!(filters(&single), filters(&plain) + 1, "its own and one more");

    let missed = over_udp(plain.dns(), &cases);
    let asked = upstream.asked().len();
    assert!(asked > usize::from(QUESTIONS) / 4, "only {asked} questions missed the cache");
    let hit = over_udp(plain.dns(), &cases);
    assert_eq!(upstream.asked().len(), asked, "the second time everything is in the cache");
    let streamed_missed = over_tcp(streamed.dns(), &cases);
    let streamed_hit = over_tcp(plain.dns(), &cases);
    let (single_missed, single_hit) = (over_udp(single.dns(), &cases), over_udp(single.dns(), &cases));

    for (id, case) in (0..).zip(&cases) {
        let shown = format!("question {id} of 127.0.0.{}: {}", case.client, hex(&case.packet));
        let first = missed.get(&id);
        assert_eq!(first.is_none(), case.is_silent, "silence, {shown}");
        let same = |others: [(&str, &Replies); 3]| {
            for (what, replies) in others {
                let (first, other) = (first.map(|reply| hex(reply)), replies.get(&id).map(|reply| hex(reply)));
                assert_eq!(first, other, "missed, and {what}; {shown}");
            }
        };
        same([("hit", &hit), ("missed, single calls", &single_missed), ("hit, single calls", &single_hit)]);
        let (over_tcp, again) = (streamed_missed.get(&id), streamed_hit.get(&id));
        assert_eq!(over_tcp.map(|reply| hex(reply)), again.map(|reply| hex(reply)), "missed and hit over TCP; {shown}");
        match (first, over_tcp) {
            (None, None) => {}
            (Some(datagram), Some(frame)) if frame.len() <= case.limit => {
                assert_eq!(hex(datagram), hex(frame), "UDP and TCP; {shown}");
            }
            // What does not fit is cut, or loses an explanation.
            (Some(datagram), Some(frame)) => {
                assert!(datagram.len() <= case.limit && datagram[..2] == frame[..2], "cut, {shown}");
            }
            (datagram, frame) => panic!("UDP {datagram:02x?}, TCP {frame:02x?}, {shown}"),
        }
    }
    assert_mixed(&cases, &missed);
    for daemon in [plain, streamed, single] {
        assert_eq!(daemon.stop().0, Some(0));
    }
}

/// Of every kind of reply there were enough.
fn assert_mixed(cases: &[Case], replies: &Replies) {
    let mut counts = BTreeMap::<String, usize>::new();
    counts.insert("silence".to_owned(), cases.iter().filter(|case| case.is_silent).count());
    for reply in replies.values() {
        *counts.entry(format!("rcode {}", reply[3] & 15)).or_default() += 1;
        *counts.entry("cut".to_owned()).or_default() += usize::from(reply[2] & 2 != 0);
        *counts.entry("answers".to_owned()).or_default() += usize::from(reply[7] > 0);
        *counts.entry("two records or more".to_owned()).or_default() += usize::from(reply[7] > 1);
        *counts.entry("authority".to_owned()).or_default() += usize::from(reply[9] > 0);
        *counts.entry("edns".to_owned()).or_default() += usize::from(reply[11] > 0);
    }
    let kinds = ["silence", "cut", "answers", "two records or more", "authority", "edns"].map(str::to_owned);
    // NOERROR or BADVERS, whose lower bits are the same; FORMERR, NXDOMAIN, NOTIMP, REFUSED.
    let codes = [0, 1, 3, 4, 5].map(|code| format!("rcode {code}"));
    for kind in kinds.iter().chain(&codes) {
        assert!(counts.get(kind).is_some_and(|&count| count >= 50), "too little of {kind}: {counts:?}");
    }
}

#[test]
fn the_filter_takes_the_batched_calls_away_and_no_other() {
    let call = |number| {
        // SAFETY: there is no such descriptor, so the kernel looks at nothing else.
        #[expect(unsafe_code, reason = "a bare system call")]
        unsafe {
            libc::syscall(number, -1, 0, 0, 0, 0)
        };
        std::io::Error::last_os_error().raw_os_error()
    };
    let calls = [libc::SYS_recvmmsg, libc::SYS_sendmmsg, libc::SYS_recvmsg, libc::SYS_sendmsg];
    // A filter holds for the thread that installs it.
    let filtered = thread::spawn(move || {
        filter_this_thread().unwrap();
        calls.map(call)
    });
    assert_eq!(calls.map(call), [Some(libc::EBADF); 4]);
    let expected = [libc::ENOSYS, libc::ENOSYS, libc::EBADF, libc::EBADF].map(Some);
    assert_eq!(filtered.join().unwrap(), expected);
}

// -- daemons

fn start(upstream: SocketAddr, change: impl Fn(&mut Command)) -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    let listen = "[listen]\ndns = [\"127.0.0.1:0\"]\nadmin = \"off\"";
    let config = format!("{listen}\n[upstream]\nservers = [\"udp://{upstream}\"]\n{CONFIG}");
    std::fs::write(folder.path().join("tunnelwarden.toml"), config).unwrap();
    std::fs::write(folder.path().join("pack.toml"), PACK).unwrap();
    let mut serve = command(folder.path(), &["serve"]);
    change(&mut serve);
    Daemon::launch(folder, serve)
}

/// Has the command run where recvmmsg and sendmmsg are not implemented, as in some sandboxes.
fn forbid_batched_calls(command: &mut Command) {
    // SAFETY: between fork and exec two system calls are made, of data on the stack.
    #[expect(unsafe_code, reason = "the child has to bind itself before it becomes the daemon")]
    unsafe {
        command.pre_exec(filter_this_thread);
    }
}

fn filter_this_thread() -> std::io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let equals = |call: libc::c_long, jt: u8, jf: u8| {
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        libc::sock_filter { code, jt, jf, k: call as u32 }
    };
    // The number of the call is the first field of what the filter is shown (seccomp(2)). Calls of another
    // architecture are not looked for: nobody is to be kept from anything here.
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        equals(libc::SYS_recvmmsg, 1, 0),
        equals(libc::SYS_sendmmsg, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives until the calls return; the kernel copies it.
    #[expect(unsafe_code, reason = "prctl has no face in std")]
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
    };
    if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn filters(daemon: &Daemon) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")).unwrap();
    line.trim().parse().unwrap()
}

// -- clients

fn over_udp(server: SocketAddr, cases: &[Case]) -> Replies {
    every_client(cases, |own, client| {
        let socket = UdpSocket::bind((client, 0)).unwrap();
        socket.connect(server).unwrap();
        let heard = || receive(&socket, PATIENCE).expect("a reply is missing");
        let send = |packet: &[u8]| assert_eq!(socket.send(packet).unwrap(), packet.len());
        converse(own, send, heard)
    })
}

fn over_tcp(server: SocketAddr, cases: &[Case]) -> Replies {
    every_client(cases, |own, client| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(client, 0).into()).unwrap();
        socket.connect(&server.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let heard = || read_frame(&mut stream).expect("a reply is missing");
        converse(own, |packet| write_frame(&mut writer, packet), heard)
    })
}

/// All clients at once, each with its own questions.
fn every_client(cases: &[Case], ask: impl Fn(&[&Case], IpAddr) -> Replies + Sync) -> Replies {
    let ask = &ask;
    thread::scope(|scope| {
        let one = |client| {
            let own: Vec<_> = cases.iter().filter(|case| case.client == client).collect();
            scope.spawn(move || ask(&own, Ipv4Addr::new(127, 0, 0, client).into()))
        };
        let threads: Vec<_> = (1..=CLIENTS).map(one).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Asks everything, a few questions at a time; the replies come in any order.
fn converse(cases: &[&Case], mut send: impl FnMut(&[u8]), mut receive: impl FnMut() -> Vec<u8>) -> Replies {
    let mut replies = Replies::new();
    let mut wanted = 0;
    let mut hear = |replies: &mut Replies| {
        let reply = receive();
        let id = u16::from_be_bytes([reply[0], reply[1]]);
        assert!(replies.insert(id, reply).is_none(), "two replies to question {id}");
    };
    for case in cases {
        send(&case.packet);
        wanted += usize::from(!case.is_silent);
        while wanted >= replies.len() + WINDOW {
            hear(&mut replies);
        }
    }
    // An operation that nobody knows is answered at once; what is met with silence would have been before.
    send(&[&CONTROL.to_be_bytes()[..], &[0x78, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat());
    while replies.len() <= wanted || !replies.contains_key(&CONTROL) {
        hear(&mut replies);
    }
    replies.remove(&CONTROL);
    replies
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// -- questions

/// Numbers that are the same in each run (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % end as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// What is wrong with a question.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Fault {
    None,
    /// Behind the question, which can be read.
    Behind,
    /// There is no question to be read.
    Question,
    /// It is no question at all.
    Scrap,
}

impl Case {
    fn draw(number: u16, dice: &mut Dice) -> Self {
        let client = 1 + dice.below(usize::from(CLIENTS)) as u8;
        let domain = dice.of(&DOMAINS);
        // Some ask what another one has asked before, with another type, class, case or size.
        let named = if dice.chance(10) { dice.below(usize::from(number) + 1) as u16 } else { number };
        let depth = if dice.chance(5) { dice.below(3) + 1 } else { 0 };
        let name = format!("q{named}.{}{domain}", "a-rather-long-label-that-fills-the-packet.".repeat(depth));
        let name = if dice.chance(30) { mixed_case(&name, dice) } else { name };
        let qtype = match dice.below(10) {
            0..5 => A,
            5 => AAAA,
            6 => TXT,
            7 => dice.of(&[2, CNAME, SOA, 12, 15, 33, 43, 64, 65, 257]),
            8 => dice.of(&[ANY, 65_280, 0, 99, OPT, 250, 251, 252]),
            _ => dice.below(1 << 16) as u16,
        };
        let qclass: u16 = if dice.chance(94) { 1 } else { dice.of(&[0, 3, 4, 254, 255, 65_535]) };
        let flags = [dice.of(&[0, 1, 1, 1]), dice.of(&[0, 0, 0, 0x10, 0x20, 0x30])];
        let mut packet = number.to_be_bytes().to_vec();
        packet.extend(flags);
        packet.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        packet.extend(wire_name(&name));
        packet.extend([qtype.to_be_bytes(), qclass.to_be_bytes()].concat());
        let question = packet.len();
        let size = dice.chance(75).then(|| dice.of(&[0, 511, 512, 600, 900, 1232, 1400, 4096, 65_535_u16]));
        if let Some(size) = size {
            packet[11] = 1;
            packet.extend(opt(size, 0, dice));
        }
        let fault = if dice.chance(20) { spoil(&mut packet, question, dice) } else { Fault::None };
        let limit = size.map_or(512, |size| usize::from(size.clamp(512, 1232)));
        let is_refused_by_name = [BLOCKED, LOCAL, EXCEPTED].contains(&domain);
        let is_asked = fault == Fault::None && qclass == 1 && ![OPT, 251, 252].contains(&qtype);
        let is_refused_by_answer = domain == ALIAS || domain == ADDRESS && [A, AAAA].contains(&qtype);
        let is_silenced = match fault {
            Fault::None | Fault::Behind => is_refused_by_name || is_asked && is_refused_by_answer,
            Fault::Question => false,
            Fault::Scrap => true,
        };
        let is_silent = fault == Fault::Scrap || client == SILENCED && is_silenced;
        Self { packet, client, limit, is_silent }
    }
}

fn mixed_case(name: &str, dice: &mut Dice) -> String {
    name.chars().map(|c| if dice.chance(50) { c.to_ascii_uppercase() } else { c }).collect()
}

fn wire_name(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    labels.chain([0]).collect()
}

/// An OPT record, perhaps with DO, with flags and options that nobody knows, or with a client subnet.
fn opt(size: u16, version: u8, dice: &mut Dice) -> Vec<u8> {
    let options = match dice.below(10) {
        0 => [0xfd, 0xe9, 0, 3, 1, 2, 3].repeat(dice.below(20)),
        // A cookie, padding, and a request for the server's name.
        1 => vec![0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 12, 0, 2, 0, 0, 0, 3, 0, 0],
        2 => vec![0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2],
        3 => vec![0, 8, 0, 8, 0, 1, 32, 0, 192, 0, 2, 9],
        _ => Vec::new(),
    };
    let flags = [dice.of(&[0, 0, 0x80, 0x80, 0x40]), dice.of(&[0, 0, 0, 1])];
    let length = (options.len() as u16).to_be_bytes();
    [&[0, 0, 41][..], &size.to_be_bytes(), &[0, version], &flags, &length, &options].concat()
}

/// Makes something wrong with a packet whose question ends at `end`.
fn spoil(packet: &mut Vec<u8>, end: usize, dice: &mut Dice) -> Fault {
    match dice.below(14) {
        0 => packet[2] |= dice.of(&[1, 2, 3, 4, 5, 6, 9, 15]) << 3,
        1 => packet[5] = dice.of(&[0, 2, 7]),
        2 => packet.truncate(12 + dice.below(end - 12)),
        3 => packet[12] = dice.of(&[0xc0, 0x40, 0x80, 0xff]),
        4 => {
            packet.extend(vec![0; 1 + dice.below(40)]);
            return Fault::Behind;
        }
        5 => {
            packet[11] += 1;
            return Fault::Behind;
        }
        6 => {
            packet.extend([opt(1232, 0, dice), opt(1232, 0, dice)].concat());
            packet[11] += 2;
            return Fault::Behind;
        }
        7 => {
            packet.truncate(end);
            packet[11] = 1;
            packet.extend(opt(1232, dice.of(&[1, 9, 255]), dice));
            return Fault::Behind;
        }
        8 => {
            packet[dice.of(&[7, 9])] = 1;
            return Fault::Behind;
        }
        9 => {
            // An option longer than its record, and a client subnet with bits beyond its prefix.
            let options = dice.of(&[&[0, 3, 0, 9, 1][..], &[0, 8, 0, 7, 0, 1, 20, 0, 192, 0, 255]]);
            packet.truncate(end);
            packet[11] = 1;
            packet.extend([&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, options.len() as u8][..], options].concat());
            return Fault::Behind;
        }
        10 => {
            packet.truncate(end);
            packet[11] = 1;
            // 65 options, one more than are looked at.
            packet.extend([&[0, 0, 41, 4, 208, 0, 0, 0, 0, 1, 4][..], &[0xfd, 0xe9, 0, 0].repeat(65)].concat());
            return Fault::Behind;
        }
        11 => {
            // A signature by nobody (TSIG is type 250) is passed over.
            packet[11] += 1;
            packet.extend([0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 2, 7, 7]);
            return Fault::None;
        }
        12 => {
            packet[2] |= 0x80;
            return Fault::Scrap;
        }
        _ => {
            packet.truncate(2 + dice.below(10));
            return Fault::Scrap;
        }
    }
    Fault::Question
}

// -- upstream

/// What the upstream says of a name, by its domain. All of it lives for a day.
fn say(asked: &Asked) -> Vec<Say> {
    let of = |domain: &str| asked.name.ends_with(domain);
    if asked.name == "." || !of(".example") {
        return vec![Say::Here(asked.reply(0))];
    }
    if of(".cut.example") && !asked.tcp {
        let mut reply = asked.reply(0);
        reply[2] |= 2;
        return vec![Say::Here(reply)];
    }
    let mut answers = Vec::new();
    let mut owner = vec![0xc0, 12];
    if of(".alias.example") || of(".own.acme.example") {
        let target = wire_name(&format!("x.{BLOCKED}"));
        answers.push(record(&owner, CNAME, &target));
        owner = target;
    }
    let net = if of(".address.example") { 100 } else { 7 };
    let count = if of(".long.example") { 1 + asked.name.len() % 60 } else { 1 };
    let text = |length: usize| [vec![length as u8], vec![b't'; length]].concat();
    match asked.qtype {
        _ if of(".gone.example") || of(".empty.example") => {}
        A => answers.extend((0..count).map(|host| record(&owner, A, &[198, 51, net, host as u8]))),
        AAAA => {
            let address =
                |host| [0x20, 1, 0xd, 0xb8, 0, if net == 100 { 0x51 } else { 7 }, 0, 0, 0, 0, 0, 0, 0, 0, 0, host];
            answers.extend((0..count).map(|host| record(&owner, AAAA, &address(host as u8))));
        }
        TXT if of(".cut.example") => answers.extend((0..8).map(|part| record(&owner, TXT, &text(180 + part)))),
        TXT => answers.push(record(&owner, TXT, &text(200))),
        65_280.. => answers.push(record(&owner, asked.qtype, &[1, 2, 3, 4])),
        _ => {}
    }
    let rcode = if of(".gone.example") { 3 } else { 0 };
    let mut reply = asked.reply_with(rcode, &answers);
    let has_alias = owner != [0xc0, 12];
    if answers.len() == usize::from(has_alias) && !(has_alias && [CNAME, ANY].contains(&asked.qtype)) {
        // An SOA in front of the OPT record, so that what is not there is remembered.
        let opt = if asked.has_edns() { reply.split_off(reply.len() - 11) } else { Vec::new() };
        let numbers = [1_u32, 3600, 600, 86_400, 86_400].map(u32::to_be_bytes).concat();
        reply.extend(record(&wire_name("example"), SOA, &[&[0, 0][..], &numbers].concat()));
        reply.extend(opt);
        reply[9] = 1;
    }
    vec![Say::Here(reply)]
}

fn record(owner: &[u8], rtype: u16, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_be_bytes();
    [owner, &rtype.to_be_bytes(), &[0, 1], &86_400_u32.to_be_bytes(), &length, data].concat()
}
