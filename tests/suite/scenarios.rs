//! Plays the files of `scenarios/`: question, what the upstream says, what the client must hear. Their format is
//! in `scenarios/README.md`; a DNS person can write one without Rust.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Mutex,
    thread,
    time::Duration,
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
    upstream::{Upstream, Zone, name_of, rcode_named, record, type_name},
};

#[test]
fn every_scenario_plays_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/scenarios");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "scenario"));
    paths.sort();
    assert!(!paths.is_empty());
    let (waiting, failures) = (Mutex::new(paths), Mutex::new(String::new()));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(path) = { waiting.lock().unwrap().pop() } {
                    let text = fs::read_to_string(&path).unwrap();
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    if let Err(cause) = catch_unwind(AssertUnwindSafe(|| play(&text))) {
                        let cause = cause.downcast_ref::<String>().cloned().unwrap_or_else(|| "see above".to_owned());
                        let _ = writeln!(failures.lock().unwrap(), "{name}: {cause}\n");
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
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
    assert!(text.starts_with("; "), "a scenario opens with the sentence it proves");
    let text = &dated(text);
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
    // The daemon's own lookups come first, so that what comes later is the clients'.
    daemon.first_round();
    let mut seen = Seen { asked: upstream.asked_by_anybody().len(), ..Seen::default() };
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

/// `{now+90s}` and `{now-1h}` as times in UTC, for exceptions.
fn dated(text: &str) -> String {
    let mut dated = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{now") {
        let (span, after) = after.split_once('}').unwrap();
        let span: jiff::Span = span.trim_start_matches('+').parse().unwrap();
        let _ = write!(dated, "{before}{}", jiff::Timestamp::now().checked_add(span).unwrap());
        rest = after;
    }
    dated + rest
}

/// How much of the upstream's and the record's lists earlier steps have accounted for.
#[derive(Default)]
struct Seen {
    asked: usize,
    recorded: Vec<String>,
}

fn check(step: &Step<'_>, question: &str, daemon: &Daemon, upstream: &Upstream, seen: &mut Seen) {
    let mut asking = Asking::parse(question);
    if step.body.iter().any(|(_, line)| line.trim() == "silence") {
        asking.patience = Duration::from_millis(300);
    }
    let heard = asking.send(daemon.dns());
    let reply = heard.as_ref().map(|bytes| asking.ask.check(bytes));
    let size = heard.map_or(0, |bytes| bytes.len());
    let mut unexpected: Vec<String> = reply.iter().flat_map(|reply| reply.answers.iter().map(shown)).collect();
    for (line, expectation) in &step.body {
        let expectation = expectation.trim();
        if expectation.is_empty() || expectation.starts_with(';') {
            continue;
        }
        let fits = match expectation.strip_prefix("size <=") {
            Some(most) => hold(size <= most.trim().parse().unwrap(), || format!("it is {size}")),
            None => meets(expectation, reply.as_ref(), &mut unexpected, daemon, upstream, seen),
        };
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
            let at = unexpected.iter().position(|found| found.eq_ignore_ascii_case(&wanted));
            unexpected.remove(at.ok_or_else(|| format!("the answer has {unexpected:?}"))?);
            Ok(())
        }
        "authority" => section(rest, reply.map(|reply| &reply.authorities)),
        "additional" => section(rest, reply.map(|reply| &reply.additionals)),
        "ttl" => {
            let ttls: Vec<_> = reply
                .into_iter()
                .flat_map(|reply| reply.answers.iter().chain(&reply.authorities))
                .map(|record| record.ttl)
                .collect();
            let fits = |ttl: u32| match rest.strip_prefix("<=") {
                Some(most) => ttl <= most.trim().parse().unwrap(),
                None => ttl == rest.parse::<u32>().unwrap(),
            };
            hold(!ttls.is_empty() && ttls.iter().all(|&ttl| fits(ttl)), || format!("they are {ttls:?}"))
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
            let asked = upstream.asked_by_anybody();
            let new: Vec<_> =
                asked[seen.asked..].iter().map(|(name, rtype)| format!("{} {rtype}", name.to_lowercase())).collect();
            seen.asked = asked.len();
            hold(if rest == "nothing" { new.is_empty() } else { new == rest.split(", ").collect::<Vec<_>>() }, || {
                format!("it was asked {new:?}")
            })
        }
        "heard" => {
            let messages = upstream.messages();
            let last = messages.last().ok_or("it was asked nothing")?;
            rest.split_whitespace().try_for_each(|flag| hold(has_flag(last, flag), || format!("{flag} is not so")))
        }
        "recorded" => {
            let mut new: Vec<_> = daemon.attempts().iter().map(recorded).collect();
            let all = new.clone();
            for old in &seen.recorded {
                new.extract_if(.., |one| one == old).for_each(drop);
            }
            seen.recorded = all;
            hold(if rest == "nothing" { new.is_empty() } else { new == [rest] }, || format!("on record is {new:?}"))
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

/// `NAME TYPE`, or `nothing`.
fn section(expected: &str, records: Option<&Vec<Record>>) -> Result<(), String> {
    let shown = |record: &Record| format!("{} {}", record.name, record.record_type());
    let found: Vec<_> = records.into_iter().flatten().map(shown).collect();
    hold(if expected == "nothing" { found.is_empty() } else { found.iter().any(|one| one == expected) }, || {
        format!("it has {found:?}")
    })
}

fn hold(holds: bool, found: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(found()) }
}

/// `aa`, `ad`, `cd`, `ra`, `rd`, `tc`, `do`, `edns`, `ecs`, `options`; with a `-` in front, not.
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
        "ecs" => reply.edns.as_ref().is_some_and(|edns| edns.option(EdnsCode::Subnet).is_some()),
        "options" => reply.edns.as_ref().is_some_and(|edns| !edns.options().as_ref().is_empty()),
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
    format!("{} {} {}", record.name, type_name(record.record_type()), record.data)
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
    /// How long an answer may take that is overtaken by another.
    patience: Duration,
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
        let put = ask(".", rtype).with(|message| {
            message.queries[0].set_name(name_of(name));
        });
        let mut asking = Self { ask: put, is_tcp: false, from: "127.0.0.1".to_owned(), patience: PATIENCE };
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

    fn send(&self, server: SocketAddr) -> Option<Vec<u8>> {
        if self.is_tcp {
            return send_tcp(server, &self.ask.bytes());
        }
        let socket = UdpSocket::bind((self.from.as_str(), 0)).unwrap();
        socket.connect(server).unwrap();
        socket.send(&self.ask.bytes()).unwrap();
        // A second question, answered by nothing but its own header, tells when the first stays unanswered.
        let control = [0xab, 0xcd, 0x10, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        socket.send(&control).unwrap();
        let reply = receive(&socket, PATIENCE).expect("the daemon is gone");
        // It may overtake an answer that had to be fetched.
        if reply[..2] == control[..2] { receive(&socket, self.patience) } else { Some(reply) }
    }
}
