//! A TLS connection to an ingress address: may it go on, and to which name?
//!
//! The same total order as for a question, over the server name: own ingress, exception, local rules, packs. Where none of
//! them speaks of the name, the address that the client chose does, and then what we find at the name. That address
//! decides nothing else: where a connection goes is looked up anew.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use jiff::Timestamp;

use super::{Gateway, InForce};
use crate::{
    audit::{Attempt, Decision, Evidence, Process, Transport, UNREADABLE, Way},
    name::DomainName,
    policy::{self, Basis, GroupId, Reason, RuleId, Verdict},
    wire::hello::ClientHello,
};

/// A connection as it came.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Who dials.
    pub client: SocketAddr,
    /// What it dialled.
    pub destination: SocketAddr,
    /// By which process, where that is known.
    pub process: Option<Process>,
}

/// What a connection passes by, for as long as that holds.
#[derive(Debug)]
pub struct Ticket {
    arrival: Arrival,
    hello: ClientHello,
    name: DomainName,
    pass: Pass,
    found: Found,
    in_force: Arc<InForce>,
}

/// What was found at the name.
#[derive(Debug, Default)]
struct Found {
    aliases: Vec<DomainName>,
    addresses: Vec<IpAddr>,
}

/// Why it may go on, so far.
#[derive(Debug)]
struct Pass {
    note: Option<(Decision, RuleId, Option<Evidence>)>,
    /// Nothing spoke for the name, so what is found there is looked at.
    judged: bool,
    /// It ends, by itself, some time.
    ends: bool,
}

/// Why it may not. Where nothing readable was said, there may be no rule that speaks of it.
#[derive(Debug)]
struct Refusal {
    rule: Option<RuleId>,
    evidence: Option<Evidence>,
}

impl Gateway {
    /// May a connection with this hello go on? `None` is no, and on record; as is what passes and has to be.
    pub fn admit(&self, arrival: Arrival, hello: ClientHello) -> Option<Ticket> {
        let in_force = self.in_force();
        let judged = self.judge_hello(&in_force, &arrival, &hello);
        match (judged, hello.server_name.clone()) {
            (Ok(pass), Some(name)) => {
                if let Some((decision, rule, evidence)) = &pass.note {
                    let rule = Arc::clone(&in_force.policy.rule(*rule).label);
                    self.put_down(&in_force, &arrival, Some(&name), *decision, rule, evidence.clone());
                }
                Some(Ticket { arrival, hello, name, pass, found: Found::default(), in_force })
            }
            (Ok(_), None) => None,
            (Err(refusal), name) => {
                self.put_down_refusal(&in_force, &arrival, name.as_ref(), refusal);
                None
            }
        }
    }

    /// Puts on record what says nothing that can be judged, and is refused for it.
    pub fn refuse_unreadable(&self, arrival: &Arrival) {
        let in_force = self.in_force();
        let group = in_force.policy.group(arrival.client.ip());
        self.put_down_refusal(&in_force, arrival, None, refusal_by_address(&in_force, group, arrival));
    }

    /// This was found at the name: is it still admitted? A no is on record.
    pub fn admits_found(&self, ticket: &mut Ticket, aliases: Vec<DomainName>, addresses: Vec<IpAddr>) -> bool {
        ticket.found = Found { aliases, addresses };
        let refusal = self.judge_found(ticket).err();
        self.is_clean(ticket, refusal)
    }

    /// Does what it passes by still hold? Looks closer only where the policy was swapped or time can end it. A no is on
    /// record.
    pub fn still_admits(&self, ticket: &mut Ticket) -> bool {
        let in_force = self.in_force();
        if Arc::ptr_eq(&in_force, &ticket.in_force) && !ticket.pass.ends {
            return true;
        }
        let judged = self.judge_hello(&in_force, &ticket.arrival, &ticket.hello);
        ticket.in_force = in_force;
        let refusal = match judged {
            Ok(pass) => {
                ticket.pass = pass;
                self.judge_found(ticket).err()
            }
            Err(refusal) => Some(refusal),
        };
        self.is_clean(ticket, refusal)
    }

    fn judge_hello(&self, in_force: &InForce, arrival: &Arrival, hello: &ClientHello) -> Result<Pass, Refusal> {
        let InForce { policy, learned, .. } = in_force;
        let client = arrival.client.ip();
        let group = policy.group(client);
        let by_address = || Err(refusal_by_address(in_force, group, arrival));
        let Some(name) = &hello.server_name else { return by_address() };
        let noted = |decision, rule| Pass { note: Some((decision, rule, None)), judged: false, ends: false };
        match policy.judge_question(group, client, name.as_name(), self.moment(policy)) {
            Verdict::Block(reason) => Err(Refusal { rule: Some(reason.rule), evidence: None }),
            Verdict::Observe(reason) => Ok(noted(Decision::Observed, reason.rule)),
            Verdict::Allow(Basis::OwnIngress(rule)) => Ok(noted(Decision::AllowedOwn, rule)),
            Verdict::Allow(Basis::Exception { rule, .. }) => {
                Ok(Pass { ends: true, ..noted(Decision::AllowedException, rule) })
            }
            Verdict::Allow(Basis::Rule(_)) => Ok(Pass { note: None, judged: false, ends: false }),
            // Whoever hides the name behind this one may mean any.
            Verdict::Allow(Basis::NoMatch) if hello.encrypted => by_address(),
            Verdict::Allow(Basis::NoMatch) => {
                let address = [arrival.destination.ip()];
                let note = match policy.judge_answer(group, &[], &address, &learned.load()) {
                    Verdict::Block(reason) => return Err(Refusal::by(&reason, &[])),
                    Verdict::Observe(reason) => Some((Decision::Observed, reason.rule, evidence_of(&reason, &[]))),
                    Verdict::Allow(_) => None,
                };
                Ok(Pass { note, judged: true, ends: false })
            }
        }
    }

    /// What an answer for the name holds, where nothing spoke for the name itself.
    fn judge_found(&self, ticket: &Ticket) -> Result<(), Refusal> {
        if !ticket.pass.judged {
            return Ok(());
        }
        let (InForce { policy, learned, .. }, Found { aliases, addresses }) = (&*ticket.in_force, &ticket.found);
        let group = policy.group(ticket.arrival.client.ip());
        match policy.judge_answer(group, aliases, addresses, &learned.load()) {
            Verdict::Block(reason) => Err(Refusal::by(&reason, aliases)),
            Verdict::Observe(reason) => {
                // The address that was dialled may have been noted already: then this is the same attempt.
                if ticket.pass.note.is_none() {
                    let rule = Arc::clone(&policy.rule(reason.rule).label);
                    let evidence = evidence_of(&reason, aliases);
                    let name = Some(&ticket.name);
                    self.put_down(&ticket.in_force, &ticket.arrival, name, Decision::Observed, rule, evidence);
                }
                Ok(())
            }
            Verdict::Allow(_) => Ok(()),
        }
    }

    /// Puts a refusal down, if there is one.
    fn is_clean(&self, ticket: &Ticket, refusal: Option<Refusal>) -> bool {
        let Some(refusal) = refusal else { return true };
        self.put_down_refusal(&ticket.in_force, &ticket.arrival, Some(&ticket.name), refusal);
        false
    }

    fn put_down_refusal(&self, in_force: &InForce, arrival: &Arrival, name: Option<&DomainName>, refusal: Refusal) {
        let rule = refusal.rule.map(|rule| Arc::clone(&in_force.policy.rule(rule).label));
        let rule = rule.unwrap_or_else(|| UNREADABLE.into());
        self.put_down(in_force, arrival, name, Decision::Blocked, rule, refusal.evidence);
    }

    fn put_down(
        &self,
        in_force: &InForce,
        arrival: &Arrival,
        name: Option<&DomainName>,
        decision: Decision,
        rule: Arc<str>,
        evidence: Option<Evidence>,
    ) {
        let group = in_force.policy.group(arrival.client.ip());
        self.recorder.record(Attempt {
            time: Timestamp::now(),
            decision,
            way: Way::TlsGate,
            client: arrival.client,
            via: None,
            group: in_force.policy.group_name(group).map(str::to_owned),
            transport: Some(Transport::Tcp),
            protocol: None,
            name: name.cloned(),
            qtype: None,
            qclass: None,
            destination: Some(arrival.destination),
            process: arrival.process.clone(),
            rule,
            evidence,
            action: None,
            rcode: None,
        });
    }
}

impl Ticket {
    /// The name whose servers it may reach.
    pub fn name(&self) -> &DomainName {
        &self.name
    }

    /// Who dials, and what it dialled.
    pub fn arrival(&self) -> &Arrival {
        &self.arrival
    }
}

impl Refusal {
    fn by(reason: &Reason, aliases: &[DomainName]) -> Self {
        Self { rule: Some(reason.rule), evidence: evidence_of(reason, aliases) }
    }
}

/// What says no name that could speak for it is refused for the address; that a group only observes or that unknown names
/// are only recorded makes no difference, since there is nothing to look up.
fn refusal_by_address(in_force: &InForce, group: GroupId, arrival: &Arrival) -> Refusal {
    let address = [arrival.destination.ip()];
    match in_force.policy.judge_answer(group, &[], &address, &in_force.learned.load()) {
        Verdict::Block(reason) | Verdict::Observe(reason) => Refusal::by(&reason, &[]),
        Verdict::Allow(_) => Refusal { rule: None, evidence: None },
    }
}

fn evidence_of(reason: &Reason, aliases: &[DomainName]) -> Option<Evidence> {
    match reason.evidence {
        policy::Evidence::Question => None,
        policy::Evidence::Alias(index) => aliases.get(index).cloned().map(Evidence::Alias),
        policy::Evidence::Address(address) => Some(Evidence::Address(address)),
    }
}
