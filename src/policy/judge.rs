//! The order of a decision, written once. `explain` walks these same functions with a witness that listens.
//!
//! 1 own ingress, 2 exception, 3 local rules, 4 packs, 5 what the answer holds, 6 pass. The first that applies
//! ends it. Nothing here allocates, locks, or takes longer with more groups or patterns.

use std::net::IpAddr;

use super::{
    Policy, Scope,
    addresses::Network,
    explain::Step,
    groups::GroupId,
    learned::{Learned, Sighting},
    path::Path,
    table::{Found, Record, Table},
    verdict::{Action, Basis, Evidence, Mode, Moment, Reason, RuleId, UnknownOnIngress, Verdict},
};
use crate::name::{DomainName, NameRef};

/// Whoever watches a decision being made. The judge's own watcher does nothing and compiles away.
pub(super) trait Witness {
    /// Wants to see the candidates that cannot win any more, too.
    const CURIOUS: bool;
    /// A step begins.
    fn step(&mut self, step: Step);
    /// What follows is about this part of the answer.
    fn evidence(&mut self, evidence: Evidence);
    /// A pattern matches; `labels` is the length of its name. An inactive one does not count.
    fn candidate(&mut self, table: &Table, record: &Record<'_>, labels: usize, active: bool);
    /// A network holds the address at hand.
    fn network(&mut self, network: &Network, rule: RuleId, active: bool);
    /// The address at hand was learned.
    fn sighting(&mut self, address: IpAddr, sighting: &Sighting, rule: RuleId, active: bool);
    /// Of the candidates of this step, this one counts.
    fn winner(&mut self, found: &Found);
}

/// Watches nothing.
pub(super) struct Nobody;

impl Witness for Nobody {
    const CURIOUS: bool = false;
    fn step(&mut self, _: Step) {}
    fn evidence(&mut self, _: Evidence) {}
    fn candidate(&mut self, _: &Table, _: &Record<'_>, _: usize, _: bool) {}
    fn network(&mut self, _: &Network, _: RuleId, _: bool) {}
    fn sighting(&mut self, _: IpAddr, _: &Sighting, _: RuleId, _: bool) {}
    fn winner(&mut self, _: &Found) {}
}

/// One question.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) group: GroupId,
    pub(super) client: IpAddr,
    pub(super) name: NameRef<'a>,
    pub(super) moment: Moment,
}

impl Policy {
    /// Steps 1 to 4: what the question alone decides. [`Basis::NoMatch`] means that the answer has to be judged.
    pub fn judge_question(&self, group: GroupId, client: IpAddr, name: NameRef<'_>, moment: Moment) -> Verdict {
        self.question(Question { group, client, name, moment }, &mut Nobody)
    }

    /// Step 5: what the answer holds. `aliases` are the targets of CNAME, SVCB and HTTPS records and the names that
    /// DNAMEs made; `addresses` those of A, AAAA and address hints; `learned` where ingresses were found. The verdict
    /// depends on nothing else. Its action is the group's: [`action_at`](Self::action_at) fits it to the question.
    pub fn judge_answer(
        &self,
        group: GroupId,
        aliases: &[DomainName],
        addresses: &[IpAddr],
        learned: &Learned,
    ) -> Verdict {
        self.answer(group, (aliases, addresses), learned, &mut Nobody)
    }

    /// How a refusal of this name is answered: the group's action, but NODATA for NXDOMAIN where something that the
    /// client is allowed lies below, since NXDOMAIN denies that too (RFC 8020).
    pub fn action_at(&self, group: GroupId, client: IpAddr, name: NameRef<'_>, moment: Moment) -> Action {
        self.action(Question { group, client, name, moment }, &Path::new(&self.hashing, name.as_wire()))
    }

    pub(super) fn question<W: Witness>(&self, question: Question<'_>, witness: &mut W) -> Verdict {
        let scope = self.scope(question.group);
        let path = Path::new(&self.hashing, question.name.as_wire());

        // The own ingress may be an alias of a shared endpoint on a shared address: owning the name settles it.
        witness.step(Step::OwnIngress);
        if let Some(own) = self.table(scope.ingress).best(&path, |_| true, witness) {
            witness.winner(&own);
            return Verdict::Allow(Basis::OwnIngress(own.rule.0));
        }

        witness.step(Step::Exception);
        let in_force = |rule| self.is_in_force(rule, question.client, question.moment);
        if let Some(open) = self.exceptions.best(&path, in_force, witness)
            && let Some(exception) = self.exception(open.rule.0)
        {
            witness.winner(&open);
            return Verdict::Allow(Basis::Exception { rule: open.rule.0, until: exception.until });
        }

        match self.rules(scope, &path, witness) {
            Some(found) if found.blocks => {
                let action = self.action(question, &path);
                scope.violation(Reason { rule: found.rule.0, evidence: Evidence::Question, action })
            }
            Some(found) => Verdict::Allow(Basis::Rule(found.rule.0)),
            None => Verdict::Allow(Basis::NoMatch),
        }
    }

    pub(super) fn answer<W: Witness>(
        &self,
        group: GroupId,
        (aliases, addresses): (&[DomainName], &[IpAddr]),
        learned: &Learned,
        witness: &mut W,
    ) -> Verdict {
        let scope = self.scope(group);
        witness.step(Step::Answer);
        for (index, alias) in aliases.iter().enumerate() {
            let evidence = Evidence::Alias(index);
            witness.evidence(evidence);
            // Only steps 3 and 4: an own ingress or an exception inside a stranger's chain pardons nothing.
            if let Some(found) = self.rules(scope, &Path::new(&self.hashing, alias.as_wire()), witness)
                && found.blocks
            {
                return scope.violation(Reason { rule: found.rule.0, evidence, action: scope.action });
            }
        }
        for &address in addresses {
            let evidence = Evidence::Address(address);
            witness.evidence(evidence);
            if let Some(rule) = self.network_rule(scope, address, witness) {
                return scope.violation(Reason { rule, evidence, action: scope.action });
            }
        }
        // After all networks: what only records must not hide what refuses.
        for &address in addresses.iter().filter(|_| !learned.is_empty()) {
            let evidence = Evidence::Address(address);
            witness.evidence(evidence);
            if let Some(rule) = self.learned_rule(scope, address, learned, witness) {
                let reason = Reason { rule, evidence, action: scope.action };
                return match self.unknown_on_ingress {
                    UnknownOnIngress::Refuse => scope.violation(reason),
                    UnknownOnIngress::Observe => Verdict::Observe(reason),
                };
            }
        }
        Verdict::Allow(Basis::NoMatch)
    }

    pub(super) fn rules<W: Witness>(&self, scope: &Scope, path: &Path<'_>, witness: &mut W) -> Option<Found> {
        witness.step(Step::LocalRules);
        let allowed = self.table(scope.allow).best(path, |_| true, witness);
        let local = allowed.max(self.table(scope.block).best(path, |_| true, witness));
        let found = local.or_else(|| {
            witness.step(Step::Packs);
            self.pack_patterns.best(path, |rule| self.is_active(scope, rule), witness)
        });
        found.inspect(|found| witness.winner(found))
    }

    fn network_rule<W: Witness>(&self, scope: &Scope, address: IpAddr, witness: &mut W) -> Option<RuleId> {
        let mut decided = None;
        for network in self.networks.holding(address) {
            for &(rule, _) in &network.rules {
                let active = self.is_active(scope, rule);
                witness.network(network, rule, active);
                decided = decided.or(active.then_some(rule));
            }
            if decided.is_some() && !W::CURIOUS {
                break;
            }
        }
        decided
    }

    fn learned_rule<W: Witness>(
        &self,
        scope: &Scope,
        address: IpAddr,
        learned: &Learned,
        witness: &mut W,
    ) -> Option<RuleId> {
        let mut decided = None;
        for address in self.readings(address) {
            for sighting in learned.at(address) {
                for &rule in self.sources.get(&sighting.source).into_iter().flatten() {
                    let active = self.is_active(scope, rule);
                    witness.sighting(address, sighting, rule, active);
                    decided = decided.or(active.then_some(rule));
                }
            }
        }
        decided
    }

    fn action(&self, question: Question<'_>, path: &Path<'_>) -> Action {
        let scope = self.scope(question.group);
        let shelters = || {
            self.table(scope.ingress).has_allowed_below(path, |_| true)
                || self.table(scope.allow).has_allowed_below(path, |_| true)
                || self.pack_patterns.has_allowed_below(path, |rule| self.is_active(scope, rule))
                || self
                    .exceptions
                    .has_allowed_below(path, |rule| self.is_in_force(rule, question.client, question.moment))
        };
        match scope.action {
            Action::Nxdomain if shelters() => Action::Nodata,
            action @ (Action::Nxdomain | Action::Nodata | Action::Refused | Action::Sinkhole | Action::Drop) => action,
        }
    }

    fn is_in_force(&self, rule: RuleId, client: IpAddr, moment: Moment) -> bool {
        // A clock that went back must not revive what has ended.
        moment.trusted
            && self.exception(rule).is_some_and(|exception| moment.time < exception.until && exception.is_for(client))
    }
}

impl Scope {
    fn violation(&self, reason: Reason) -> Verdict {
        match self.mode {
            Mode::Enforce => Verdict::Block(reason),
            Mode::Observe => Verdict::Observe(reason),
        }
    }
}
