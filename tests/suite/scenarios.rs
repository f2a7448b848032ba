//! Plays the files of `scenarios/`: question, what the upstream says, what the client must hear. Their format is
//! in `scenarios/README.md`; a DNS person can write one without Rust.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use hickory_proto::{
    op::Message,
    rr::{
        DNSClass, Record, RecordType,
        rdata::opt::{ClientSubnet, EdnsCode, EdnsOption},
    },
};

use crate::support::{
    client::{Ask, ask, receive, send_tcp},
    daemon::{Daemon, PATIENCE},
    upstream::{Upstream, Zone, rcode_named, record},
};

#[test]
fn every_scenario_plays_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/scenarios");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "scenario"));
    paths.sort();
    assert!(!paths.is_empty());
    let mut failures = String::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| play(&text))) {
            let cause = cause.downcast_ref::<String>().cloned().unwrap_or_else(|| "see above".to_owned());
            let _ = writeln!(failures, "{name}: {cause}\n");
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// A file cut at its `===` lines.
struct Step<'a> {
    /// Line of the `===`, from 1.
    line: usize,
    title: &'a str,
    body: Vec<(usize, &'a str)>,
}

fn play(text: &str) {
    let steps = steps(text);
    let body = |title: &str| {
        let found = steps.iter().find(|step| step.title == title);
        found.map(|step| step.body.iter().map(|(_, line)| *line).collect::<Vec<_>>().join("\n")).unwrap_or_default()
    };
    let upstream = Upstream::of(Zone::parse(&body("upstream")));
    let mut config = body("config");
    if !config.contains("[listen]") {
        config.push_str("\n[listen]\nLISTEN\n");
    }
    let _ = write!(config, "\n[upstream]\nservers = [\"{}\"]\n", upstream.uri());
    let packs: Vec<_> =
        steps.iter().filter_map(|step| step.title.strip_prefix("pack ").map(|name| (name, step))).collect();
    let daemon = Daemon::start_with(&config, |folder| {
        fs::create_dir(folder.join("policies")).unwrap();
        for (name, step) in packs {
            let text: Vec<_> = step.body.iter().map(|(_, line)| *line).collect();
            fs::write(folder.join("policies").join(format!("{name}.toml")), text.join("\n")).unwrap();
        }
    });
    let mut seen = Seen::default();
    for step in steps {
        if let Some(question) = step.title.strip_prefix("ask ") {
            check(&step, question, &daemon, &upstream, &mut seen);
        }
    }
}

fn steps(text: &str) -> Vec<Step<'_>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(title) = line.strip_prefix("=== ") {
            steps.push(Step { line: index + 1, title: title.trim(), body: Vec::new() });
        } else if let Some(step) = steps.last_mut() {
            step.body.push((index + 1, line));
        }
    }
    steps
}

/// How much of the upstream's and the record's lists earlier steps have accounted for.
#[derive(Default)]
struct Seen {
    asked: usize,
    recorded: usize,
}

fn check(step: &Step<'_>, question: &str, daemon: &Daemon, upstream: &Upstream, seen: &mut Seen) {
    let asking = Asking::parse(question);
    let reply = asking.send(daemon.dns());
    let mut unexpected: Vec<String> = reply.iter().flat_map(|reply| reply.answers.iter().map(shown)).collect();
    for (line, expectation) in &step.body {
        let expectation = expectation.trim();
        if expectation.is_empty() || expectation.starts_with(';') {
            continue;
        }
        let fits = meets(expectation, reply.as_ref(), &mut unexpected, daemon, upstream, seen);
        if let Err(found) = fits {
            panic!("line {line}, {question:?}: expected {expectation:?}, but {found}");
        }
    }
    let lists = step.body.iter().any(|(_, line)| line.trim_start().starts_with("answer"));
    assert!(!lists || unexpected.is_empty(), "line {}, {question:?}: also answered {unexpected:?}", step.line);
}

/// Does the reply, what the upstream was asked or what is on record meet an expectation?
fn meets(
    expectation: &str,
    reply: Option<&Message>,
    unexpected: &mut Vec<String>,
    daemon: &Daemon,
    upstream: &Upstream,
    seen: &mut Seen,
) -> Result<(), String> {
    let (word, rest) = expectation.split_once(' ').unwrap_or((expectation, ""));
    let rest = rest.trim();
    match word {
        "silence" => reply.map_or(Ok(()), |reply| Err(format!("got {}", reply.metadata.response_code))),
        "answer" if rest == "nothing" => hold(unexpected.is_empty(), || format!("got {unexpected:?}")),
        "answer" => {
            let wanted = shown(&record(&with_ttl(rest)));
            let at = unexpected.iter().position(|found| *found == wanted);
            unexpected.remove(at.ok_or_else(|| format!("the answer has {unexpected:?}"))?);
            Ok(())
        }
        "authority" => {
            let found: Vec<_> = reply
                .into_iter()
                .flat_map(|reply| &reply.authorities)
                .map(|record| format!("{} {}", record.name, record.record_type()))
                .collect();
            hold(if rest == "nothing" { found.is_empty() } else { found.iter().any(|one| one == rest) }, || {
                format!("it has {found:?}")
            })
        }
        "additional" => hold(reply.is_some_and(|reply| reply.additionals.is_empty()), || "there is some".to_owned()),
        "ttl" => {
            let ttls: Vec<_> = reply
                .into_iter()
                .flat_map(|reply| reply.answers.iter().chain(&reply.authorities))
                .map(|record| record.ttl)
                .collect();
            let most: u32 = rest.trim_start_matches("<=").trim().parse().unwrap();
            hold(!ttls.is_empty() && ttls.iter().all(|&ttl| ttl <= most), || format!("they are {ttls:?}"))
        }
        "ede" => {
            let found = extended_errors(reply);
            let (code, text) = rest.split_once(' ').unwrap_or((rest, ""));
            let fits = |(found_code, found_text): &(u16, String)| {
                found_code.to_string() == code && found_text.contains(text.trim_matches('"'))
            };
            hold(if rest == "nothing" { found.is_empty() } else { found.iter().any(fits) }, || {
                format!("there is {found:?}")
            })
        }
        "upstream" => {
            let asked = upstream.asked();
            let new: Vec<_> =
                asked[seen.asked..].iter().map(|(name, rtype)| format!("{} {rtype}", name.to_lowercase())).collect();
            seen.asked = asked.len();
            hold(if rest == "nothing" { new.is_empty() } else { new == [rest.to_owned()] }, || {
                format!("it was asked {new:?}")
            })
        }
        "recorded" => {
            let attempts = daemon.attempts();
            let new: Vec<_> = attempts[seen.recorded..].iter().map(recorded).collect();
            seen.recorded = attempts.len();
            hold(
                if rest == "nothing" {
                    new.is_empty()
                } else {
                    new.iter().any(|one| one.starts_with(rest)) && new.len() == 1
                },
                || format!("on record is {new:?}"),
            )
        }
        rcode => {
            let Some(reply) = reply else { return Err("there was no reply".to_owned()) };
            hold(reply.metadata.response_code == rcode_named(rcode), || {
                format!("got {}", reply.metadata.response_code)
            })?;
            rest.split_whitespace().try_for_each(|flag| hold(has_flag(reply, flag), || format!("{flag} is not so")))
        }
    }
}

fn hold(holds: bool, found: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(found()) }
}

/// `aa`, `ad`, `cd`, `ra`, `rd`, `tc`, `do`, `edns`; with a `-` in front, not.
fn has_flag(reply: &Message, flag: &str) -> bool {
    let (wanted, name) = flag.strip_prefix('-').map_or((true, flag), |name| (false, name));
    let header = &reply.metadata;
    let is = match name {
        "aa" => header.authoritative,
        "ad" => header.authentic_data,
        "cd" => header.checking_disabled,
        "ra" => header.recursion_available,
        "rd" => header.recursion_desired,
        "tc" => header.truncation,
        "edns" => reply.edns.is_some(),
        "do" => reply.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
        other => panic!("not a flag: {other}"),
    };
    is == wanted
}

/// `decision rule name evidence`.
fn recorded(attempt: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    let evidence = attempt["evidence"].as_object().and_then(|evidence| evidence.values().next()).map(text);
    let [decision, rule, name] = [&attempt["decision"], &attempt["rule"], &attempt["question"]["name"]].map(text);
    format!("{decision} {rule} {name} {}", evidence.unwrap_or_default()).trim_end().to_owned()
}

fn extended_errors(reply: Option<&Message>) -> Vec<(u16, String)> {
    let options = reply.and_then(|reply| reply.edns.as_ref()).map(|edns| edns.options().as_ref().to_vec());
    let errors = options.unwrap_or_default().into_iter().filter_map(|(code, option)| match (code, option) {
        (EdnsCode::Unknown(15), EdnsOption::Unknown(_, bytes)) => {
            Some((u16::from_be_bytes([bytes[0], bytes[1]]), String::from_utf8_lossy(&bytes[2..]).into_owned()))
        }
        _ => None,
    });
    errors.collect()
}

/// Without the TTL, which ages while we look.
fn shown(record: &Record) -> String {
    format!("{} {} {}", record.name, record.record_type(), record.data)
}

/// A record in a scenario has no TTL and no class: `name TYPE data`.
fn with_ttl(line: &str) -> String {
    let (name, rest) = line.split_once(' ').unwrap();
    format!("{name} 60 IN {}", rest.trim())
}

/// A question with how it is put.
struct Asking {
    ask: Ask,
    is_tcp: bool,
    from: String,
}

impl Asking {
    /// `NAME TYPE`, then any of `+tcp +norec +cd +ad +do +noedns bufsize=N class=CH from=127.0.0.2 ecs=ADDRESS`.
    fn parse(text: &str) -> Self {
        let mut words = text.split_whitespace();
        let (name, rtype) = (words.next().unwrap(), words.next().unwrap());
        let rtype = rtype
            .strip_prefix("TYPE")
            .and_then(|number| number.parse().ok())
            .map_or_else(|| rtype.parse().unwrap(), |number: u16| RecordType::from(number));
        let mut asking = Self { ask: ask(name, rtype), is_tcp: false, from: "127.0.0.1".to_owned() };
        for word in words {
            asking = asking.apply(word);
        }
        asking
    }

    fn apply(mut self, word: &str) -> Self {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        self.ask = match key {
            "+tcp" => {
                self.is_tcp = true;
                self.ask
            }
            "from" => {
                value.clone_into(&mut self.from);
                self.ask
            }
            "+norec" => self.ask.with(|message| message.metadata.recursion_desired = false),
            "+cd" => self.ask.with(|message| message.metadata.checking_disabled = true),
            "+ad" => self.ask.with(|message| message.metadata.authentic_data = true),
            "+do" => self.ask.dnssec(),
            "+noedns" => self.ask.plain(),
            "bufsize" => self.ask.with(|message| {
                message.edns.as_mut().unwrap().set_max_payload(value.parse().unwrap());
            }),
            "class" => self.ask.class(value.parse::<DNSClass>().unwrap()),
            "ecs" => self.ask.with(|message| {
                let address: std::net::IpAddr = value.parse().unwrap();
                let length = if address.is_ipv4() { 32 } else { 128 };
                let subnet = EdnsOption::Subnet(ClientSubnet::new(address, length, 0));
                message.edns.as_mut().unwrap().options_mut().insert(subnet);
            }),
            other => panic!("not a way to ask: {other}"),
        };
        self
    }

    fn send(&self, server: SocketAddr) -> Option<Message> {
        if self.is_tcp {
            return send_tcp(server, &self.ask.bytes()).map(|reply| Message::from_vec(&reply).unwrap());
        }
        let socket = UdpSocket::bind((self.from.as_str(), 0)).unwrap();
        socket.connect(server).unwrap();
        socket.send(&self.ask.bytes()).unwrap();
        // A second question, answered by nothing but its own header, tells when the first stays unanswered.
        let control = [0xab, 0xcd, 0x10, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        socket.send(&control).unwrap();
        loop {
            let reply = receive(&socket, PATIENCE).expect("the daemon is gone");
            if reply[..2] != control[..2] {
                return Some(Message::from_vec(&reply).unwrap());
            }
            // It may overtake an answer that had to be fetched.
            if let Some(reply) = receive(&socket, std::time::Duration::from_millis(500)) {
                return Some(Message::from_vec(&reply).unwrap());
            }
            return None;
        }
    }
}
