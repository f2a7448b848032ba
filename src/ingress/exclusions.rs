//! Who is never taken for an ingress, whatever a vendor's zone or list says; and whom the gate never dials.

use std::net::IpAddr;

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use serde::{Deserialize, Serialize};

use crate::{
    address::is_public,
    metrics::{Counter, Metrics},
    policy::Policy,
    sys::interfaces::Interfaces,
};

/// Why an address was found and not learned.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Private, loopback, link-local, multicast, reserved, for documentation: not global unicast.
    NotGlobal,
    /// It is this machine's.
    Own,
    /// It stands in a network of this machine's interfaces.
    OnLink,
    /// It is an upstream server's.
    Upstream,
    /// It is one of `[organization] addresses`.
    Organization,
    /// It is in one of the networks of `[firewall] static`.
    Static,
    /// It is in one of the networks of `[firewall] exempt`.
    Exempt,
    /// Half of the Internet depends on it, or any number of sites share it.
    Shared,
    /// Its source has as many as one may have, or all together have.
    Crowded,
}

/// Addresses and networks that are never learned, nor dialled for a client, as they are at one moment.
#[derive(Debug)]
pub struct Exclusions<'p> {
    policy: &'p Policy,
    networks: JointPrefixMap<IpNet, Refusal>,
}

impl<'p> Exclusions<'p> {
    /// `policy` says how addresses are read.
    pub fn new(policy: &'p Policy, interfaces: &Interfaces, upstream: impl Iterator<Item = IpAddr>) -> Self {
        let mut exclusions = Self { policy, networks: JointPrefixMap::new() };
        exclusions.add(interfaces.networks.iter().copied(), Refusal::OnLink);
        exclusions.add(interfaces.addresses.iter().copied().map(IpNet::from), Refusal::Own);
        exclusions.add(upstream.map(|address| address.to_canonical().into()), Refusal::Upstream);
        exclusions
    }

    /// Adds networks of another kind.
    pub(super) fn add(&mut self, networks: impl Iterator<Item = IpNet>, refusal: Refusal) {
        for network in networks {
            self.networks.insert(network, refusal);
        }
    }

    /// The form in which an address is learned: the IPv4 address that it carries, or itself.
    ///
    /// # Errors
    /// Why it is not; a single reading of it that is excluded suffices.
    pub fn admit(&self, address: IpAddr) -> Result<IpAddr, Refusal> {
        let mut learned = None;
        for reading in self.policy.readings(address) {
            if let Some((_, refusal)) = self.networks.get_lpm(&IpNet::from(reading)) {
                return Err(*refusal);
            }
            // The carried one decides: what carries it is nobody's.
            if learned.is_none() && !is_public(reading) {
                return Err(Refusal::NotGlobal);
            }
            learned.get_or_insert(reading);
        }
        learned.ok_or(Refusal::NotGlobal)
    }
}

impl Refusal {
    /// The same in words.
    pub fn why(self) -> &'static str {
        match self {
            Self::NotGlobal => "no global unicast address",
            Self::Own => "this machine's own",
            Self::OnLink => "in a network of this machine's interfaces",
            Self::Upstream => "an upstream server's",
            Self::Organization => "one of [organization] addresses",
            Self::Static => "in [firewall] static",
            Self::Exempt => "in [firewall] exempt",
            Self::Shared => "shared by too many",
            Self::Crowded => "more than one source, or all together, may have",
        }
    }

    /// Where it is counted.
    pub(super) fn counter(self, metrics: &Metrics) -> &Counter {
        match self {
            Self::NotGlobal => &metrics.ingress_not_global,
            Self::Own => &metrics.ingress_own,
            Self::OnLink => &metrics.ingress_on_link,
            Self::Upstream => &metrics.ingress_upstream,
            Self::Organization => &metrics.ingress_organization,
            Self::Static => &metrics.ingress_static,
            Self::Exempt => &metrics.ingress_exempt,
            Self::Shared => &metrics.ingress_shared,
            Self::Crowded => &metrics.ingress_crowded,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        policy::{compile, plan::Plan},
        problem::{Located, Place, SourceFile},
    };

    fn policy() -> Policy {
        let source = SourceFile { path: "x".into(), text: "x = 1\n".into() };
        let place = Place::new(std::sync::Arc::new(source), 0..1);
        let nat64 = vec![Located { value: "2001:db8:64::/96".parse().unwrap(), place }];
        let (policy, problems) = compile(&Plan { nat64, ..Plan::default() }, Timestamp::UNIX_EPOCH);
        policy.unwrap_or_else(|| panic!("{problems}"))
    }

    #[test]
    fn only_global_unicast_addresses_that_are_nobody_elses_are_learned() {
        let policy = policy();
        let interfaces = Interfaces {
            addresses: vec!["5.9.1.2".parse().unwrap(), "2a01:4f8:1::2".parse().unwrap()],
            networks: vec!["5.9.1.0/26".parse().unwrap(), "2a01:4f8:1::/64".parse().unwrap()],
            ..Interfaces::default()
        };
        let upstream = ["62.1.2.3", "::ffff:62.1.2.4", "2a00:b::53"].map(|text| text.parse().unwrap());
        let mut exclusions = Exclusions::new(&policy, &interfaces, upstream.into_iter());
        let network = |text: &str| std::iter::once(text.parse().unwrap());
        exclusions.add(network("84.1.0.0/16"), Refusal::Organization);
        exclusions.add(network("8.8.8.8/32"), Refusal::Shared);
        exclusions.add(network("84.2.0.0/16"), Refusal::Static);
        exclusions.add(network("84.3.0.0/16"), Refusal::Exempt);
        #[rustfmt::skip]
        let cases: &[(&str, Result<&str, Refusal>)] = &[
            ("3.133.228.214",               Ok("3.133.228.214")),
            ("::ffff:3.133.228.214",        Ok("3.133.228.214")),
            ("64:ff9b::3.133.228.214",      Ok("3.133.228.214")),
            ("2001:db8:64::3.133.228.214",  Ok("3.133.228.214")),
            ("2002:385:e4d6::1",            Ok("3.133.228.214")),
            ("2a05:d014:21b::6e74",         Ok("2a05:d014:21b::6e74")),
            ("0.0.0.0",                     Err(Refusal::NotGlobal)),
            ("10.1.2.3",                    Err(Refusal::NotGlobal)),
            ("64:ff9b::10.1.2.3",           Err(Refusal::NotGlobal)),
            ("2002:a01:203::1",             Err(Refusal::NotGlobal)),
            ("fe80::1",                     Err(Refusal::NotGlobal)),
            ("5.9.1.2",                     Err(Refusal::Own)),
            ("2a01:4f8:1::2",               Err(Refusal::Own)),
            ("5.9.1.63",                    Err(Refusal::OnLink)),
            ("64:ff9b::5.9.1.63",           Err(Refusal::OnLink)),
            ("5.9.1.64",                    Ok("5.9.1.64")),
            ("2a01:4f8:1::3",               Err(Refusal::OnLink)),
            ("62.1.2.3",                    Err(Refusal::Upstream)),
            ("62.1.2.4",                    Err(Refusal::Upstream)),
            ("2a00:b::53",                  Err(Refusal::Upstream)),
            ("84.1.2.3",                    Err(Refusal::Organization)),
            ("84.2.0.1",                    Err(Refusal::Static)),
            ("64:ff9b::84.3.0.1",           Err(Refusal::Exempt)),
            ("8.8.8.8",                     Err(Refusal::Shared)),
            ("2002:808:808::1",             Err(Refusal::Shared)),
            ("8.8.8.9",                     Ok("8.8.8.9")),
        ];
        for (address, expected) in cases {
            let admitted = exclusions.admit(address.parse().unwrap());
            assert_eq!(admitted, expected.map(|text| text.parse().unwrap()), "{address}");
        }
    }
}
