//! Why a name is decided as it is: the judge's own walk with a witness that writes down each step.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use super::{
    Policy,
    addresses::Network,
    judge::{Question, Witness},
    learned::{Learned, Sighting},
    rule::Origin,
    table::{Found, Record, Table},
    verdict::{Action, Basis, Evidence, Mode, Moment, RuleId, Verdict},
};
use crate::name::{DomainName, NameRef};

/// A step of the order, with its number in the documentation.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The name is an own ingress or below one.
    OwnIngress = 1,
    /// A dated exception.
    Exception,
    /// `allow` and `block` of the configuration.
    LocalRules,
    /// The active packs.
    Packs,
    /// Aliases and addresses of the answer.
    Answer,
    /// Nothing applied.
    Pass,
}

/// A decision with everything that led to it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// The name that was asked about.
    pub name: DomainName,
    /// For which client.
    pub client: IpAddr,
    /// The client's group; `None` for the default.
    pub group: Option<String>,
    /// The group's mode.
    pub mode: Mode,
    /// What was decided.
    pub conclusion: Conclusion,
    /// The step that decided it.
    pub decided_by: Step,
    /// The rule that decided it.
    pub rule: Option<String>,
    /// That rule's reason.
    pub reason: Option<String>,
    /// How a refusal is answered; for `observe`, how it would be.
    pub action: Option<Action>,
    /// Text of the Extended DNS Error.
    pub refusal_text: Option<String>,
    /// When the exception that allowed it ends.
    pub until: Option<Timestamp>,
    /// Each step that was reached, in order.
    pub walk: Vec<Walked>,
    /// The verdict itself.
    #[serde(skip)]
    pub verdict: Verdict,
}

/// A verdict without its reason.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// Answered.
    Allow,
    /// Answered and recorded.
    Observe,
    /// Refused.
    Block,
}

/// One step and what it came to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Walked {
    /// Which.
    pub step: Step,
    /// What came of it.
    pub outcome: Outcome,
    /// What matched, the most specific first.
    pub candidates: Vec<Candidate>,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It decided.
    Decided,
    /// Nothing in it applied.
    Nothing,
    /// Not looked at, since no answer was given.
    NotExamined,
}

/// A pattern or network that matched.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Candidate {
    /// Its rule.
    pub rule: String,
    /// What it wants.
    pub decision: Decision,
    /// The pattern or network as it is understood.
    pub pattern: String,
    /// Where it was read.
    pub origin: Option<Origin>,
    /// The rule's reason.
    pub reason: String,
    /// The alias or address that it matched; `None` for the question's name.
    pub evidence: Option<String>,
    /// What became of it.
    pub fate: Fate,
    #[serde(skip)]
    found: Option<Found>,
}

/// What a pattern wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Let it pass.
    Allow,
    /// Refuse it.
    Block,
}

/// What became of a candidate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It counts.
    Wins,
    /// A more specific one counts.
    LessSpecific,
    /// Another one as specific counts: one that blocks, or stands earlier.
    Tie,
    /// Its pack is not active for this client's group.
    PackNotActive,
    /// The exception has ended.
    Ended,
    /// The exception is for other clients.
    OtherClients,
    /// The clock is behind a time that was seen before: no exception is in force.
    ClockNotTrusted,
}

impl Policy {
    /// Decides on a name, and on its answer where one is given as aliases and addresses, and tells each step. `learned`
    /// is where ingresses were found.
    pub fn explain(
        &self,
        client: IpAddr,
        name: NameRef<'_>,
        answer: Option<(&[DomainName], &[IpAddr])>,
        learned: &Learned,
        moment: Moment,
    ) -> Explanation {
        let question = Question { group: self.group(client), client, name, moment };
        let aliases = answer.map_or(&[][..], |(aliases, _)| aliases);
        let mut recorder = Recorder { policy: self, question, aliases, evidence: None, walk: Vec::new() };
        let mut verdict = self.question(question, &mut recorder);
        if verdict == Verdict::Allow(Basis::NoMatch) {
            match answer {
                Some(answer) => verdict = self.answer(question.group, answer, learned, &mut recorder),
                None => recorder.begin(Step::Answer, Outcome::NotExamined),
            }
        }
        let walk = recorder.finish(verdict);
        self.explanation(question, verdict, walk)
    }

    fn explanation(&self, question: Question<'_>, verdict: Verdict, walk: Vec<Walked>) -> Explanation {
        let (conclusion, rule, refused) = match verdict {
            Verdict::Allow(Basis::NoMatch) => (Conclusion::Allow, None, None),
            Verdict::Allow(Basis::OwnIngress(rule) | Basis::Rule(rule) | Basis::Exception { rule, .. }) => {
                (Conclusion::Allow, Some(rule), None)
            }
            Verdict::Observe(reason) => (Conclusion::Observe, Some(reason.rule), Some(reason)),
            Verdict::Block(reason) => (Conclusion::Block, Some(reason.rule), Some(reason)),
        };
        let until = if let Verdict::Allow(Basis::Exception { until, .. }) = verdict { Some(until) } else { None };
        let last = walk.last().filter(|walked| walked.outcome == Outcome::Decided);
        let Question { group, client, name, moment } = question;
        Explanation {
            name: name.to_owned(),
            client: client.to_canonical(),
            group: self.group_name(group).map(str::to_owned),
            mode: self.scope(group).mode,
            conclusion,
            decided_by: last.map_or(Step::Pass, |walked| walked.step),
            rule: rule.map(|rule| self.rule(rule).label.to_string()),
            reason: rule.map(|rule| self.rule(rule).reason.to_string()),
            action: refused.map(|_| self.action_at(group, client, name, moment)),
            refusal_text: refused.map(|reason| self.refusal_text(reason.rule).to_owned()),
            until,
            walk,
            verdict,
        }
    }
}

struct Recorder<'a> {
    policy: &'a Policy,
    question: Question<'a>,
    aliases: &'a [DomainName],
    /// Set from step 5 on.
    evidence: Option<Evidence>,
    walk: Vec<Walked>,
}

impl Recorder<'_> {
    fn begin(&mut self, step: Step, outcome: Outcome) {
        self.walk.push(Walked { step, outcome, candidates: Vec::new() });
    }

    fn add(&mut self, rule: RuleId, candidate: Candidate) {
        let text = self.policy.rule(rule);
        let evidence = match self.evidence {
            None | Some(Evidence::Question) => None,
            Some(Evidence::Alias(index)) => self.aliases.get(index).map(ToString::to_string),
            Some(Evidence::Address(address)) => Some(address.to_string()),
        };
        if let Some(walked) = self.walk.last_mut() {
            let (label, reason) = (text.label.to_string(), text.reason.to_string());
            walked.candidates.push(Candidate { rule: label, reason, evidence, ..candidate });
        }
    }

    /// What holds an address, or is one.
    fn add_address(&mut self, rule: RuleId, active: bool, pattern: String, origin: Option<Origin>) {
        let decided = self.walk.last().is_some_and(|walked| {
            walked.candidates.iter().any(|other| other.found.is_none() && other.fate == Fate::Wins)
        });
        let fate = match (active, decided) {
            (false, _) => Fate::PackNotActive,
            (true, true) => Fate::LessSpecific,
            (true, false) => Fate::Wins,
        };
        let (decision, evidence, found) = (Decision::Block, None, None);
        let (text, reason) = (String::new(), String::new());
        self.add(rule, Candidate { rule: text, reason, decision, pattern, origin, evidence, fate, found });
    }

    /// Why a pattern that matches does not count.
    fn inactive(&self, rule: RuleId) -> Fate {
        let Some(exception) = self.policy.exception(rule) else { return Fate::PackNotActive };
        if !exception.is_for(self.question.client) {
            Fate::OtherClients
        } else if exception.until <= self.question.moment.time {
            Fate::Ended
        } else {
            Fate::ClockNotTrusted
        }
    }

    fn finish(mut self, verdict: Verdict) -> Vec<Walked> {
        if let Some(last) = self.walk.last_mut()
            && verdict != Verdict::Allow(Basis::NoMatch)
        {
            last.outcome = Outcome::Decided;
        }
        for walked in &mut self.walk {
            // Stable: aliases and addresses stay in the order in which they were looked at.
            if walked.step != Step::Answer {
                walked.candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.found));
            }
        }
        self.walk
    }
}

impl Witness for Recorder<'_> {
    const CURIOUS: bool = true;

    fn step(&mut self, step: Step) {
        // The steps an alias goes through are part of step 5.
        if self.evidence.is_none() {
            self.begin(step, Outcome::Nothing);
        }
    }

    fn evidence(&mut self, evidence: Evidence) {
        self.evidence = Some(evidence);
    }

    fn candidate(&mut self, table: &Table, record: &Record<'_>, labels: usize, active: bool) {
        let candidate = Candidate {
            rule: String::new(),
            reason: String::new(),
            decision: if record.blocks() { Decision::Block } else { Decision::Allow },
            pattern: record.pattern().map(|pattern| pattern.to_string()).unwrap_or_default(),
            origin: table.origin(record),
            evidence: None,
            fate: if active { Fate::LessSpecific } else { self.inactive(record.rule) },
            found: Some(record.found(labels)),
        };
        self.add(record.rule, candidate);
    }

    fn network(&mut self, network: &Network, rule: RuleId, active: bool) {
        let origin = network.rules.iter().find(|(other, _)| *other == rule).map(|(_, origin)| origin.clone());
        self.add_address(rule, active, network.network.to_string(), origin);
    }

    fn sighting(&mut self, address: IpAddr, sighting: &Sighting, rule: RuleId, active: bool) {
        let Sighting { source, first, last } = sighting;
        let pattern = format!("{address}, learned from {source}, seen {first:.0} to {last:.0},");
        let origin = self.policy.rule(rule).place.clone().map(Origin::Place);
        self.add_address(rule, active, pattern, origin);
    }

    fn winner(&mut self, found: &Found) {
        let candidates = self.walk.last_mut().map(|walked| &mut walked.candidates);
        for candidate in candidates.into_iter().flatten() {
            match candidate.found {
                Some(own) if own == *found => candidate.fate = Fate::Wins,
                Some(own) if own.rank == found.rank && candidate.fate == Fate::LessSpecific => {
                    candidate.fate = Fate::Tie
                }
                Some(_) | None => {}
            }
        }
    }
}
