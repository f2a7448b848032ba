//! All that stands in the kernel, as a value; its text is what `nft -f` reads.

use std::{fmt, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;

use super::{
    chains::Chains,
    options::{Mode, Options},
    script::{Kind, Script, Set},
    sets,
};
use crate::{
    address::{Family, Range, where_it_holds, within},
    policy::{Binding, Policy},
};

/// A complete ruleset. Two that are equal have the same text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ruleset(Script);

impl Ruleset {
    /// What these options and this policy come to, when the forwarder runs as the user with this number. `None` where
    /// the mode is off.
    pub fn new(options: &Options, policy: &Policy, uid: u32) -> Option<Self> {
        let title = match options.mode {
            Mode::Off => return None,
            Mode::Host => "tunnelwarden on a host",
            Mode::Gateway => "tunnelwarden on a gateway",
        };
        let title = format!(
            "{title}{}. This adds to what is there and is one transaction; load it with: nft -f -",
            if options.strict { ", strict" } else { "" }
        );
        let Chains { counters, chains } = Chains::of(options, uid);
        let sets: Vec<Set> =
            Family::BOTH.into_iter().flat_map(|family| Filled { options, policy, family }.sets()).collect();
        let empty: Vec<_> = sets.iter().filter(|set| set.stays_empty()).map(|set| set.name).collect();
        let chains = chains.into_iter().map(|chain| chain.without_rules_for(&empty)).collect();
        Some(Self(Script { title, sets, counters, chains }))
    }

    /// The types of the dynamic sets. A set cannot change its type, so the table of another mode has to go first.
    pub(super) fn dynamic_types(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.sets.iter().filter_map(|set| match &set.kind {
            Kind::Dynamic { key, .. } | Kind::Noted { key, .. } => Some((set.name, key.as_str())),
            Kind::Fixed { .. } => None,
        })
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Clients who may reach an ingress, since they are observed only, exempt, or have no pack that knows one.
pub fn free_clients(options: &Options, policy: &Policy) -> Vec<RangeInclusive<IpAddr>> {
    let free = Family::BOTH.into_iter().flat_map(|family| Filled { options, policy, family }.free());
    free.map(|range| range.first..=range.last).collect()
}

/// The sets of a family, and what is in them.
struct Filled<'a> {
    options: &'a Options,
    policy: &'a Policy,
    family: Family,
}

impl Filled<'_> {
    fn sets(&self) -> Vec<Set> {
        self.dynamic().into_iter().chain(self.networks()).chain(self.clients()).collect()
    }

    /// What one client resolved opens nothing for another: a gateway's leases begin with the client.
    fn dynamic(&self) -> Vec<Set> {
        let address = self.family.address();
        let lease = match self.options.mode {
            Mode::Off | Mode::Host => address.to_owned(),
            Mode::Gateway => format!("{address} . {address}"),
        };
        let port = format!("{lease} . inet_service");
        let named = |pair| self.family.pick(pair);
        let mut sets = vec![
            Set::dynamic(named(sets::INGRESS), address.to_owned(), sets::MAX_INGRESS),
            Set::dynamic(named(sets::LEASE), lease.clone(), sets::MAX_LEASES),
            Set::dynamic(named(sets::PORT), port, sets::MAX_PORTS),
        ];
        if self.options.mode == Mode::Gateway {
            sets.push(Set::noted(named(sets::PASSED), lease, sets::MAX_PASSED, sets::PASSED_FOR));
        }
        sets
    }

    /// Where packets go.
    fn networks(&self) -> [Set; 6] {
        let Options { own, fixed, ntp, nat64, resolvers, .. } = self.options;
        let resolvers: Vec<IpNet> = resolvers.iter().map(|server| server.ip().to_canonical().into()).collect();
        [
            self.holding(sets::INGRESS_NET, &nat64.with_translated(self.policy.ingress_networks())),
            self.holding(sets::DOH, &nat64.with_translated(self.policy.resolver_networks())),
            self.holding(sets::OWN, &nat64.with_translated(own.iter().copied())),
            self.holding(sets::RESOLVER, &resolvers),
            self.holding(sets::STATIC, &nat64.with_translated(fixed.iter().copied())),
            self.holding(sets::NTP, &nat64.with_translated(ntp.iter().copied())),
        ]
    }

    /// Where packets come from.
    fn clients(&self) -> [Set; 4] {
        [
            self.holding(sets::EXEMPT, &self.options.exempt),
            self.fixed(sets::OBSERVED, self.bound(|binding| binding.is_observed)),
            self.fixed(sets::UNBOUND, self.bound(|binding| !binding.has_ingress)),
            self.fixed(sets::DOH_FREE, self.bound(|binding| !binding.has_resolvers)),
        ]
    }

    fn bound(&self, is_meant: impl Fn(Binding) -> bool) -> Vec<Range> {
        let networks: Vec<IpNet> = self.policy.client_networks().collect();
        let of = |client| is_meant(self.policy.binding(self.policy.group(client)));
        where_it_holds(&networks, self.family, of)
    }

    /// Those of the family to whose packets nothing is refused.
    fn free(&self) -> Vec<Range> {
        let free = self.bound(|binding| binding.is_observed || !binding.has_ingress);
        [free, within(&self.options.exempt, self.family)].concat()
    }

    fn holding(&self, pair: [&'static str; 2], networks: &[IpNet]) -> Set {
        self.fixed(pair, within(networks, self.family))
    }

    fn fixed(&self, pair: [&'static str; 2], ranges: Vec<Range>) -> Set {
        Set::fixed(self.family.pick(pair), self.family, ranges)
    }
}
