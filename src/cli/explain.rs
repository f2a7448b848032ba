//! `tunnelwarden explain`: which step of the order decides a name, which rule in which file and line, and what
//! the client is told. Only shows what the policy says of itself; decides nothing.

use std::{
    fmt,
    io::{self, Write},
    net::IpAddr,
    str::FromStr,
};

use hickory_proto::rr::RecordType;
use serde::{Serialize, Serializer};

use super::Exit;
use crate::{
    ingress::Report,
    name::DomainName,
    policy::{
        Action, Candidate, Conclusion, Decision, Explanation, Fate, Learned, Mode, Moment, Outcome, Policy, Step,
        Walked,
    },
    problem::printable,
};

/// What `explain` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Name that is asked for.
    #[arg(value_name = "NAME", required_unless_present = "learned")]
    pub name: Option<DomainName>,
    /// List the ingress addresses that the daemon has learned, and what it turned away.
    #[arg(long, conflicts_with_all = ["name", "qtype", "client", "answer"])]
    pub learned: bool,
    /// Record type that is asked for; a blocked name is refused whatever it is.
    #[arg(long = "type", value_name = "TYPE", default_value = "A", value_parser = record_type)]
    pub qtype: RecordType,
    /// Address of the client that asks.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub client: IpAddr,
    /// Answer of the upstream, to be judged too, such as 'CNAME x.example, A 192.0.2.1'; for a DNAME the name it makes.
    #[arg(long, value_name = "RECORDS")]
    pub answer: Option<Answer>,
}

/// The part of an upstream's answer that is judged.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Answer {
    /// Targets of CNAME, HTTPS and SVCB, and names that DNAMEs make, in order.
    pub aliases: Vec<DomainName>,
    /// Of A, AAAA and address hints.
    pub addresses: Vec<IpAddr>,
}

/// What a refused client gets.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    /// Response code; `None`: no reply at all.
    pub rcode: Option<&'static str>,
    /// Answer records of a sinkhole.
    pub addresses: Vec<IpAddr>,
    /// Of the records and the SOA, in seconds; `None` where there are none.
    pub ttl: Option<u32>,
    /// Code of the Extended DNS Error (RFC 8914); `None` where there is no reply.
    pub ede: Option<u16>,
    /// Its text.
    pub text: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown<'a> {
    #[serde(serialize_with = "as_text")]
    qtype: RecordType,
    #[serde(flatten)]
    explanation: &'a Explanation,
    refusal: Option<Refusal>,
    /// `None` where the answer does not matter.
    learned: Option<Examined<'a>>,
}

/// Whether step 5 knew what the daemon has learned.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Examined<'a> {
    /// So many addresses.
    Addresses(usize),
    /// The daemon did not tell, and why.
    NotExamined(&'a str),
}

/// Explains, as text or as one JSON object. [`Exit::No`] when the client is refused.
///
/// # Errors
/// Writing to `out` failed.
pub fn run(
    arguments: &Arguments,
    policy: &Policy,
    (moment, heard): (Moment, &Result<Report, String>),
    (json, out): (bool, &mut impl Write),
) -> io::Result<Exit> {
    let answer = arguments.answer.as_ref().map(|answer| (&*answer.aliases, &*answer.addresses));
    let Some(name) = &arguments.name else { return Ok(Exit::Usage) };
    let learned = heard.as_ref().map(Learned::from).unwrap_or_default();
    let explanation = policy.explain(arguments.client, name.as_name(), answer, &learned, moment);
    let refusal = refusal(&explanation, arguments.qtype, policy);
    let examined = match heard {
        _ if explanation.walk.last().is_none_or(|walked| walked.step != Step::Answer) => None,
        Ok(_) => Some(Examined::Addresses(learned.len())),
        Err(why) => Some(Examined::NotExamined(why)),
    };
    if json {
        let (qtype, explanation) = (arguments.qtype, &explanation);
        serde_json::to_writer(&mut *out, &Shown { qtype, explanation, refusal, learned: examined })?;
        writeln!(out)?;
    } else {
        out.write_all(text(&explanation, arguments.qtype, refusal.as_ref(), examined.as_ref()).as_bytes())?;
    }
    Ok(match explanation.conclusion {
        Conclusion::Block => Exit::No,
        Conclusion::Allow | Conclusion::Observe => Exit::Done,
    })
}

/// What the client is told, or under `observe` would be; `None` where nothing is refused.
pub fn refusal(explanation: &Explanation, qtype: RecordType, policy: &Policy) -> Option<Refusal> {
    let action = explanation.action?;
    let wanted = |address: &&IpAddr| match address {
        IpAddr::V4(_) => qtype == RecordType::A,
        IpAddr::V6(_) => qtype == RecordType::AAAA,
    };
    let (rcode, ede) = match action {
        Action::Nxdomain => (Some("NXDOMAIN"), Some(15)),
        Action::Nodata => (Some("NOERROR"), Some(15)),
        Action::Refused => (Some("REFUSED"), Some(15)),
        Action::Sinkhole => (Some("NOERROR"), Some(4)),
        Action::Drop => (None, None),
    };
    let has_records = !matches!(action, Action::Refused | Action::Drop);
    let sinkhole = if action == Action::Sinkhole { policy.sinkhole() } else { &[] };
    Some(Refusal {
        rcode,
        addresses: sinkhole.iter().filter(wanted).copied().collect(),
        ttl: has_records.then(|| policy.block_ttl()),
        ede,
        text: ede.and(explanation.refusal_text.clone()),
    })
}

/// The explanation for a reader: what was decided, each step, and what the client is told. Safe for a terminal.
fn text(
    explanation: &Explanation,
    qtype: RecordType,
    refusal: Option<&Refusal>,
    learned: Option<&Examined<'_>>,
) -> String {
    let mut lines = vec![headline(explanation, qtype), String::new()];
    for walked in &explanation.walk {
        lines.push(step_line(walked));
        for candidate in &walked.candidates {
            lines.extend(candidate_lines(candidate));
        }
    }
    // Step 5 is the last that is walked.
    lines.extend(learned.map(|learned| match learned {
        Examined::Addresses(count) => format!("      learned ingress addresses: {count}"),
        Examined::NotExamined(why) => format!("      learned ingress addresses: not examined: {}", printable(why)),
    }));
    if explanation.decided_by == Step::Pass {
        lines.push(format!("  {} {:<12} passes", Step::Pass as u8, step_name(Step::Pass)));
    }
    lines.extend([String::new(), closing(explanation, refusal), String::new()]);
    lines.join("\n")
}

fn headline(explanation: &Explanation, qtype: RecordType) -> String {
    let group =
        explanation.group.as_deref().map_or("default group".into(), |name| format!("group {}", printable(name)));
    let mode = match explanation.mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    };
    let conclusion = match explanation.conclusion {
        Conclusion::Allow => "allowed",
        Conclusion::Observe => "allowed but recorded",
        Conclusion::Block => "blocked",
    };
    let by = explanation.rule.as_deref().map_or(String::new(), |rule| format!(" by {}", printable(rule)));
    let step = explanation.decided_by;
    let asked = format!("{} {qtype} for {} ({group}, mode {mode})", explanation.name, explanation.client);
    format!("{asked}: {conclusion}{by}, step {} ({})", step as u8, step_name(step))
}

fn step_line(walked: &Walked) -> String {
    let outcome = match walked.outcome {
        Outcome::Decided => "decides",
        Outcome::Nothing => "does not apply",
        Outcome::NotExamined => "not examined: no answer given (--answer 'CNAME x, A y')",
    };
    format!("  {} {:<12} {outcome}", walked.step as u8, step_name(walked.step))
}

fn step_name(step: Step) -> &'static str {
    match step {
        Step::OwnIngress => "own ingress",
        Step::Exception => "exceptions",
        Step::LocalRules => "local rules",
        Step::Packs => "packs",
        Step::Answer => "answer",
        Step::Pass => "otherwise",
    }
}

fn candidate_lines(candidate: &Candidate) -> [String; 2] {
    let decision = match candidate.decision {
        Decision::Allow => "allow",
        Decision::Block => "block",
    };
    let fate = match candidate.fate {
        Fate::Wins => "counts",
        Fate::LessSpecific => "loses: less specific",
        Fate::Tie => "loses a tie: block wins over allow, then the first",
        Fate::PackNotActive => "does not count: pack not active for this client",
        Fate::Ended => "does not count: has ended",
        Fate::OtherClients => "does not count: for other clients",
        Fate::ClockNotTrusted => "does not count: the clock is behind a time seen before",
    };
    let evidence = candidate.evidence.as_deref().map_or(String::new(), |what| format!(" on {what}"));
    let origin = candidate.origin.as_ref().map_or(String::new(), |origin| format!("{origin}: "));
    let rule = printable(&candidate.rule);
    let first = format!("      {rule} {decision} {}{evidence}: {fate}", candidate.pattern);
    [first, format!("        {origin}{}", printable(&candidate.reason))]
}

fn closing(explanation: &Explanation, refusal: Option<&Refusal>) -> String {
    let Some(refusal) = refusal else {
        return match explanation.until {
            Some(until) => format!("The client is told what the upstream answers, with no TTL past {until}."),
            None => "The client is told what the upstream answers.".into(),
        };
    };
    match explanation.conclusion {
        Conclusion::Observe => {
            let otherwise = match explanation.mode {
                Mode::Observe => "under enforce",
                Mode::Enforce => "with unknown-on-ingress = \"refuse\"",
            };
            format!("The client is told what the upstream answers; {otherwise} it would be told {refusal}.")
        }
        Conclusion::Allow | Conclusion::Block => format!("The client is told {refusal}."),
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rcode) = self.rcode else { return f.write_str("nothing") };
        f.write_str(rcode)?;
        match (self.ttl, self.addresses.as_slice()) {
            (None, _) => {}
            (Some(ttl), []) => write!(f, " without records, SOA and TTL {ttl} s")?,
            (Some(ttl), addresses) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                write!(f, " with {}, TTL {ttl} s", addresses.join(", "))?;
            }
        }
        match (self.ede, &self.text) {
            (Some(code), Some(text)) => write!(f, ", EDE {code} \"{text}\""),
            (Some(_) | None, _) => Ok(()),
        }
    }
}

impl FromStr for Answer {
    type Err = String;

    /// Records separated by commas: a type, then its data as in a zone file.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut answer = Self::default();
        for record in text.split(',') {
            let words: Vec<&str> = record.split_whitespace().collect();
            let [kind, data @ ..] = words.as_slice() else { return Err("an empty record".into()) };
            match (kind.to_ascii_uppercase().as_str(), data) {
                ("CNAME" | "DNAME", [target]) => answer.aliases.push(name(target)?),
                ("A", [address]) => answer.add_address(address, false)?,
                ("AAAA", [address]) => answer.add_address(address, true)?,
                ("HTTPS" | "SVCB", [priority, target, parameters @ ..]) if priority.parse::<u16>().is_ok() => {
                    answer.add_service(target, parameters)?;
                }
                ("HTTPS" | "SVCB", [target]) => answer.add_service(target, &[])?,
                ("CNAME" | "DNAME" | "A" | "AAAA" | "HTTPS" | "SVCB", _) => {
                    return Err(format!("{:?} is no record: wanted is a type and its data", record.trim()));
                }
                _ => return Err(format!("{kind:?} is not judged; CNAME, DNAME, HTTPS, SVCB, A and AAAA are")),
            }
        }
        Ok(answer)
    }
}

impl Answer {
    fn add_address(&mut self, text: &str, v6: bool) -> Result<(), String> {
        let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is no address"))?;
        if address.is_ipv6() != v6 {
            return Err(format!("{address} is not an address of that type"));
        }
        self.addresses.push(address);
        Ok(())
    }

    /// A target of `.` is the owner itself (RFC 9460 section 2.5), which is no alias.
    fn add_service(&mut self, target: &str, parameters: &[&str]) -> Result<(), String> {
        if target != "." {
            self.aliases.push(name(target)?);
        }
        for parameter in parameters {
            match parameter.split_once('=') {
                Some(("ipv4hint", address)) => self.add_address(address, false)?,
                Some(("ipv6hint", address)) => self.add_address(address, true)?,
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}

fn name(text: &str) -> Result<DomainName, String> {
    text.parse().map_err(|error| format!("{text:?} is no name: {error}"))
}

fn record_type(text: &str) -> Result<RecordType, String> {
    let upper = text.to_ascii_uppercase();
    // RFC 3597 section 5: TYPE65.
    if let Ok(number) = upper.strip_prefix("TYPE").unwrap_or(&upper).parse::<u16>() {
        return Ok(RecordType::from(number));
    }
    RecordType::from_str(&upper).map_err(|_| "a type is written as AAAA or TYPE28".to_owned())
}

fn as_text<S: Serializer>(value: &RecordType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;

    use super::*;
    use crate::{
        policy::{
            compile,
            plan::{Exception, Group, Pack, PackRule, Plan},
        },
        problem::{Located, Place, SourceFile},
    };

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// A value read from `file`, which holds nothing else.
    fn at(file: &str, text: &str) -> Located<String> {
        let source = SourceFile { path: file.into(), text: format!("block = [\"{text}\"]\n") };
        Located { value: text.into(), place: Place::new(Arc::new(source), 9..11 + text.len()) }
    }

    fn policy() -> Policy {
        let rule = PackRule {
            id: at("ngrok.toml", "connect"),
            reason: "ngrok agent ingress".into(),
            block: vec![at("ngrok.toml", "connect.*.ngrok-agent.com")],
            allow: vec![at("ngrok.toml", ".ngrok-agent.com")],
            lists: Vec::new(),
            networks: vec![at("ngrok.toml", "net").map(|_| "198.51.100.0/24".parse().unwrap())],
            regions: Vec::new(),
            resolve: Vec::new(),
            address_lists: Vec::new(),
            ports: Vec::new(),
            source: None,
        };
        let pack = Pack { name: at("ngrok.toml", "ngrok"), version: "1".into(), description: None, rules: vec![rule] };
        let watched = Group {
            name: at("w.toml", "watched"),
            networks: vec![at("w.toml", "10.0.0.0/8").map(|text| text.parse().unwrap())],
            mode: Some(Mode::Observe),
            action: None,
            packs: None,
            ingress: None,
            allow: None,
            block: None,
        };
        let exception = Exception {
            name: at("w.toml", "connect.eu.ngrok-agent.com"),
            networks: vec![at("w.toml", "192.0.2.7/32").map(|text| text.parse().unwrap())],
            until: at("w.toml", "2026-12-24T18:00:00Z").map(|text| text.parse().unwrap()),
            reason: "vendor\u{1b} support".into(),
        };
        let mut plan =
            Plan { packs: vec![pack], groups: vec![watched], exceptions: vec![exception], ..Plan::default() };
        (plan.defaults.packs, plan.defaults.block_ttl) = (vec![0], 60);
        plan.organization.contact = Some("netsec@acme.example".into());
        let (policy, problems) = compile(&plan, moment().time);
        policy.unwrap_or_else(|| panic!("{problems}"))
    }

    fn moment() -> Moment {
        Moment { time: "2026-11-25T12:00:00Z".parse().unwrap(), trusted: true }
    }

    fn explained(arguments: &[&str], json: bool) -> (Exit, String) {
        let line = Line::try_parse_from([&["explain"], arguments].concat()).unwrap();
        let mut out = Vec::new();
        let heard = Err("no daemon answers".to_owned());
        let exit = run(&line.arguments, &policy(), (moment(), &heard), (json, &mut out)).unwrap();
        (exit, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_refusal_is_told_step_by_step_with_rule_file_and_line() {
        let (exit, text) =
            explained(&["Connect.EU.ngrok-agent.com", "--client", "192.0.2.1", "--type", "https"], false);
        let expected = "\
connect.eu.ngrok-agent.com HTTPS for 192.0.2.1 (default group, mode enforce): blocked by ngrok/connect, step 4 (packs)

  1 own ingress  does not apply
  2 exceptions   does not apply
      exceptions allow connect.eu.ngrok-agent.com: does not count: for other clients
        w.toml:1:10: vendor\\u{1b} support
  3 local rules  does not apply
  4 packs        decides
      ngrok/connect block connect.*.ngrok-agent.com: counts
        ngrok.toml:1:10: ngrok agent ingress
      ngrok/connect allow .ngrok-agent.com: loses: less specific
        ngrok.toml:1:10: ngrok agent ingress

The client is told NXDOMAIN without records, SOA and TTL 60 s, EDE 15 \"ngrok/connect: ngrok agent ingress; contact netsec@acme.example\".
";
        assert_eq!(text, expected);
        assert_eq!(exit, Exit::No);
    }

    #[test]
    fn what_passes_without_an_answer_says_that_step_five_was_not_examined() {
        let (exit, text) = explained(&["my.example.net"], false);
        assert!(text.contains("  5 answer       not examined: no answer given"), "{text}");
        assert!(text.contains("  6 otherwise    passes"), "{text}");
        assert_eq!(exit, Exit::Done);
        let (exit, text) = explained(&["my.example.net", "--answer", "A 192.0.2.1"], false);
        assert!(text.contains("  5 answer       does not apply"), "{text}");
        assert_eq!(exit, Exit::Done);
    }

    #[test]
    fn an_answer_decides_where_the_name_does_not() {
        let answer = "CNAME connect.us.ngrok-agent.com, A 198.51.100.1";
        let (exit, text) = explained(&["my.example.net", "--answer", answer], false);
        assert!(text.contains("connect.*.ngrok-agent.com on connect.us.ngrok-agent.com: counts"), "{text}");
        assert_eq!(exit, Exit::No);
        let (exit, text) = explained(&["my.example.net", "--answer", "aaaa 64:ff9b::198.51.100.1"], false);
        assert!(text.contains("198.51.100.0/24 on 64:ff9b::c633:6401: counts"), "{text}");
        assert_eq!(exit, Exit::No);
    }

    #[test]
    fn only_a_refusal_under_enforce_is_a_no() {
        let (exit, text) = explained(&["connect.us.ngrok-agent.com", "--client", "10.1.1.1"], false);
        assert!(text.contains("(group watched, mode observe): allowed but recorded by ngrok/connect"), "{text}");
        assert!(text.contains("under enforce it would be told NXDOMAIN"), "{text}");
        assert_eq!(exit, Exit::Done);
        let (exit, text) = explained(&["connect.eu.ngrok-agent.com", "--client", "192.0.2.7"], false);
        assert!(text.contains("no TTL past 2026-12-24T18:00:00Z"), "{text}");
        assert_eq!(exit, Exit::Done);
    }

    #[test]
    fn json_holds_what_the_text_does() {
        let (exit, text) = explained(&["connect.us.ngrok-agent.com"], true);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(exit, Exit::No);
        #[rustfmt::skip]
        let cases = [
            ("/name",                              "connect.us.ngrok-agent.com"),
            ("/qtype",                             "A"),
            ("/conclusion",                        "block"),
            ("/decided-by",                        "packs"),
            ("/rule",                              "ngrok/connect"),
            ("/refusal/rcode",                     "NXDOMAIN"),
            ("/walk/3/candidates/0/origin",        "ngrok.toml:1:10"),
            ("/walk/3/candidates/0/fate",          "wins"),
        ];
        for (pointer, expected) in cases {
            assert_eq!(value.pointer(pointer).and_then(|value| value.as_str()), Some(expected), "{pointer} in {text}");
        }
    }

    #[test]
    fn an_answer_is_read_record_by_record() {
        let answer: Answer =
            "cname X.example., https 1 svc.example alpn=h2 ipv4hint=192.0.2.9, SVCB ., AAAA ::1".parse().unwrap();
        let aliases: Vec<_> = answer.aliases.iter().map(ToString::to_string).collect();
        assert_eq!(aliases, ["x.example", "svc.example"]);
        assert_eq!(answer.addresses, ["192.0.2.9".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        for broken in ["", "A", "A ::1", "AAAA 192.0.2.1", "CNAME a..b", "MX 10 a.example", "CNAME a b", "A 192.0.2.1,"]
        {
            assert!(broken.parse::<Answer>().is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_name_that_is_no_name_is_wrong_usage() {
        for arguments in [&["a..b"][..], &["a.example", "--type", "NOPE"], &["a.example", "--client", "10.0.0.0/8"]] {
            let error = Line::try_parse_from([&["explain"], arguments].concat()).err().unwrap();
            assert_eq!(error.exit_code(), Exit::Usage as i32, "{arguments:?}");
        }
    }
}
