//! Which ways round stay open in a setup, in a line each: for `check`'s summary. All of them, and what stops each, are
//! in `docs/evasions.md`.

/// What stands behind the resolver.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Enforcement {
    /// Nothing: who does not ask is not refused.
    Resolver,
    /// The firewall of this machine.
    Host {
        /// Only addresses that were resolved here are reached.
        strict: bool,
    },
    /// The firewall of a gateway.
    Gateway {
        /// As for a host.
        strict: bool,
    },
}

/// The ways that stay open, given what stands behind the resolver and the front resolvers, as they are shown.
pub(super) fn open_ways(enforcement: Enforcement, forwarders: &str) -> Vec<String> {
    let mut ways: Vec<String> = match enforcement {
        Enforcement::Resolver => vec![OWN_RESOLVERS, OWN_ADDRESSES],
        Enforcement::Host { strict } => {
            [PRIVILEGED_JOBS, BRIDGED].into_iter().chain(unknown_addresses(strict)).collect()
        }
        Enforcement::Gateway { strict } => [OTHER_PATHS].into_iter().chain(unknown_addresses(strict)).collect(),
    }
    .into_iter()
    .chain([PROXIES])
    .map(str::to_owned)
    .collect();
    if !forwarders.is_empty() {
        let how = "count as one client, unless it sends PROXY v2 or a whole client subnet; its cache answers for all";
        ways.push(format!("clients behind {forwarders} {how}"));
    }
    ways
}

fn unknown_addresses(strict: bool) -> Option<&'static str> {
    (!strict).then_some(UNKNOWN_ADDRESSES)
}

// Each fits on a line as it is shown.
const OWN_RESOLVERS: &str =
    "agents with a resolver of their own; the official one asks 8.8.8.8, and Google over HTTPS: close ports 53 and 853";
const OWN_ADDRESSES: &str =
    "a hosts file, a raw address, ssh -R to an address: pair this with a firewall that denies by default";
const PROXIES: &str = "names that a proxy looks up: let only the proxy out, and give it `tunnelwarden export squid`";
const PRIVILEGED_JOBS: &str =
    "jobs with root or CAP_NET_ADMIN, who can take the firewall away, or CAP_NET_RAW, who send round it";
const BRIDGED: &str =
    "containers and guests behind a bridge, whose packets are not this machine's output: gateway mode sees them";
const OTHER_PATHS: &str = "clients with another way out than this gateway: a second uplink, a mobile network, a VPN";
const UNKNOWN_ADDRESSES: &str =
    "a relay at an address that nobody resolved here or learned: recorded, and refused only with `strict`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setup_says_what_it_leaves_open_and_nothing_that_it_closes() {
        #[rustfmt::skip]
        let cases: &[(Enforcement, &[&str])] = &[
            (Enforcement::Resolver,                  &[OWN_RESOLVERS, OWN_ADDRESSES, PROXIES]),
            (Enforcement::Host { strict: false },    &[PRIVILEGED_JOBS, BRIDGED, UNKNOWN_ADDRESSES, PROXIES]),
            (Enforcement::Host { strict: true },     &[PRIVILEGED_JOBS, BRIDGED, PROXIES]),
            (Enforcement::Gateway { strict: false }, &[OTHER_PATHS, UNKNOWN_ADDRESSES, PROXIES]),
            (Enforcement::Gateway { strict: true },  &[OTHER_PATHS, PROXIES]),
        ];
        for (enforcement, expected) in cases {
            assert_eq!(open_ways(*enforcement, ""), *expected, "{enforcement:?}");
            let told = open_ways(*enforcement, "10.0.0.53");
            assert_eq!(told.len(), expected.len() + 1);
            assert!(told.last().is_some_and(|line| line.starts_with("clients behind 10.0.0.53 count as one")));
        }
    }
}
