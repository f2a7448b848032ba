//! What a policy says to a packet filter, which sees addresses and ports and no names.

use ipnet::IpNet;

use super::{GroupId, Mode, Policy};

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

impl Policy {
    /// What a packet filter does with the clients of a group.
    pub fn binding(&self, group: GroupId) -> Binding {
        let scope = self.scope(group);
        let learned = self.sources.values().flatten();
        let mut ingresses =
            learned.chain(self.networks.iter().flat_map(|network| network.rules.iter().map(|(rule, _)| rule)));
        Binding {
            is_observed: scope.mode == Mode::Observe,
            has_ingress: ingresses.any(|&rule| self.is_active(scope, rule)),
            has_resolvers: self.on_ports.iter().any(|&(_, rule)| self.is_active(scope, rule)),
        }
    }

    /// The networks of all client groups; the default group's clients are between them.
    pub fn client_networks(&self) -> impl Iterator<Item = IpNet> {
        self.groups.networks()
    }

    /// Networks of packs that are ingresses on all ports.
    pub fn ingress_networks(&self) -> impl Iterator<Item = IpNet> {
        self.networks.iter().map(|network| network.network)
    }

    /// Networks of packs that are resolvers over HTTPS.
    pub fn resolver_networks(&self) -> impl Iterator<Item = IpNet> {
        self.on_ports.iter().map(|(network, _)| *network)
    }

    /// The ports that some allowing rule opens, in order, each once.
    pub fn allowed_ports(&self) -> Vec<u16> {
        // A rule with networks says where it refuses.
        let refuses = |id| self.on_ports.iter().any(|(_, rule)| rule.0 == id);
        let allowing = (0..).zip(&self.rules).filter(|&(id, _)| !refuses(id));
        let mut ports: Vec<u16> = allowing.flat_map(|(_, rule)| rule.ports.iter().copied()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}
