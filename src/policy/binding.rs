//! What a policy says to a packet filter, which sees addresses and ports and no names.

use ipnet::IpNet;

use super::{GroupId, Mode, Policy, Scope};

/// What holds for the packets of a group's clients.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Binding {
    /// Its packets are recorded and pass.
    pub is_observed: bool,
    /// A pack of the group says where an ingress is.
    pub has_ingress: bool,
    /// A pack of the group says where resolvers over HTTPS are.
    pub has_resolvers: bool,
}

/// A pack's network, and on which ports it counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counted<'p> {
    /// The network.
    pub network: IpNet,
    /// The rule's `ports`; none for all of them.
    pub ports: &'p [u16],
}

impl Policy {
    /// What a packet filter does with the clients of a group.
    pub fn binding(&self, group: GroupId) -> Binding {
        let scope = self.scope(group);
        let learned = self.sources.values().flatten().any(|&rule| self.is_active(scope, rule));
        Binding {
            is_observed: scope.mode == Mode::Observe,
            has_ingress: learned || self.has_network(scope, |ports| ports.is_empty()),
            has_resolvers: self.has_network(scope, |ports| !ports.is_empty()),
        }
    }

    /// The networks of all client groups; between them the default group's clients are.
    pub fn client_networks(&self) -> impl Iterator<Item = IpNet> {
        self.groups.networks()
    }

    /// Every network of every pack, once for each rule that names it.
    pub fn counted_networks(&self) -> impl Iterator<Item = Counted<'_>> {
        self.networks.iter().flat_map(|network| {
            let rules = network.rules.iter();
            rules.map(|(rule, _)| Counted { network: network.network, ports: &self.rule(*rule).ports })
        })
    }

    /// The ports that some allowing rule names, in order, each once.
    pub fn allowed_ports(&self) -> Vec<u16> {
        let networks: Vec<_> = self.networks.iter().flat_map(|network| &network.rules).map(|(rule, _)| rule.0).collect();
        // A rule with networks says where it refuses, not what it opens.
        let allowing = (0..).zip(&self.rules).filter(|(id, _)| !networks.contains(id));
        let mut ports: Vec<u16> = allowing.flat_map(|(_, rule)| rule.ports.iter().copied()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    fn has_network(&self, scope: &Scope, is_meant: impl Fn(&[u16]) -> bool) -> bool {
        let mut rules = self.networks.iter().flat_map(|network| &network.rules);
        rules.any(|&(rule, _)| self.is_active(scope, rule) && is_meant(&self.rule(rule).ports))
    }
}
