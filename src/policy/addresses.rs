//! Addresses of answers: networks that count as an ingress.

use std::net::IpAddr;

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use super::{rule::Origin, verdict::RuleId};
use crate::address::Carriers;

/// Networks, each with the rules that name it, and how addresses are decoded before they are compared.
#[derive(Debug)]
pub(super) struct Networks {
    by_prefix: JointPrefixMap<IpNet, u32>,
    pub(super) networks: Vec<Network>,
    pub(super) carriers: Carriers,
}

/// One network.
#[derive(Debug)]
pub(super) struct Network {
    /// Itself, in canonical form.
    pub(super) network: IpNet,
    /// Which rules name it, and where.
    pub(super) rules: Vec<(RuleId, Origin)>,
    /// The next wider network that holds it.
    wider: Option<u32>,
}

impl Networks {
    /// No network yet.
    pub(super) fn new(carriers: Carriers) -> Self {
        Self { by_prefix: JointPrefixMap::new(), networks: Vec::new(), carriers }
    }

    /// Adds a network in canonical form; [`link`](Self::link) must follow the last.
    pub(super) fn insert(&mut self, network: IpNet, rule: RuleId, origin: Origin) {
        let next = u32::try_from(self.networks.len()).unwrap_or(u32::MAX);
        let place = *self.by_prefix.entry(network).or_insert(next);
        if place == next {
            self.networks.push(Network { network, rules: Vec::new(), wider: None });
        }
        if let Some(network) = self.networks.get_mut(place as usize) {
            network.rules.push((rule, origin));
        }
    }

    /// Lets each network know the wider one that holds it, so that judging walks up without allocating.
    pub(super) fn link(&mut self) {
        for network in &mut self.networks {
            let wider = network.network.supernet().and_then(|above| self.by_prefix.get_lpm(&above));
            network.wider = wider.map(|(_, &place)| place);
        }
    }

    /// Every network.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Network> {
        self.networks.iter()
    }

    /// The networks that hold an address or the one it carries, the decoded address and the narrowest first.
    pub(super) fn holding(&self, address: IpAddr) -> impl Iterator<Item = &Network> {
        self.carriers.readings(address).flat_map(|address| {
            let first = self.by_prefix.get_lpm(&IpNet::from(address)).map(|(_, &place)| place);
            let at = |place: Option<u32>| place.and_then(|place| self.networks.get(place as usize));
            std::iter::successors(at(first), move |network| at(network.wider))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_networks_are_met_from_the_narrowest_outwards() {
        let mut networks = Networks::new(Carriers::default());
        for (rule, text) in (0..).zip(["198.51.0.0/16", "198.51.100.7/32", "198.51.100.0/24", "0.0.0.0/0"]) {
            let origin = Origin::Line { path: "x".into(), line: 1 };
            networks.insert(text.parse().unwrap(), RuleId(rule), origin);
        }
        networks.link();
        let met = |text: &str| -> Vec<u32> {
            networks
                .holding(text.parse().unwrap())
                .flat_map(|network| network.rules.iter().map(|(rule, _)| rule.0))
                .collect()
        };
        assert_eq!(met("198.51.100.7"), [1, 2, 0, 3]);
        assert_eq!(met("64:ff9b::198.51.100.8"), [2, 0, 3]);
        assert_eq!(met("192.0.2.1"), [3]);
        assert_eq!(met("2001:db8::1"), [] as [u32; 0]);
    }
}
