//! Other people's rules that stand in our way. They are left alone: what we redirect to ourselves comes in through the
//! input hook, and where somebody else closes that, only its owner can open it. So it is said, with the line to add.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::TABLE;

/// A chain of somebody else's that turns away whatever none of its rules takes, redirected packets among it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Obstacle {
    family: String,
    table: String,
    chain: String,
}

/// One object of `nft -j list ruleset`.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Listed {
    Chain(Chain),
    Rule(Rule),
    #[serde(other)]
    Else,
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

#[derive(Deserialize)]
struct Rule {
    family: String,
    table: String,
    chain: String,
    expr: Vec<Value>,
}

/// What of a ruleset, as `nft -j list ruleset` prints it, turns redirected packets away: chains at the input hook that
/// drop or reject what is left over and have no rule for what was redirected. Empty where the text is no such listing.
pub fn obstacles(listing: &str) -> Vec<Obstacle> {
    let listed: Value = serde_json::from_str(listing).unwrap_or_default();
    let objects = listed.get("nftables").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let objects: Vec<Listed> = objects.iter().filter_map(|object| Listed::deserialize(object).ok()).collect();
    let rules: Vec<&Rule> = objects.iter().filter_map(Listed::rule).collect();
    let chains = objects.iter().filter_map(Listed::chain).filter(|chain| chain.is_foreign_input());
    let closed = chains.filter(|chain| {
        let own: Vec<_> = rules.iter().filter(|rule| rule.is_in(chain)).collect();
        let is_closed = chain.policy.as_deref() == Some("drop") || own.iter().any(|rule| rule.turns_all_away());
        is_closed && !own.iter().any(|rule| rule.takes_redirected())
    });
    closed.map(Obstacle::from).collect()
}

impl Listed {
    fn chain(&self) -> Option<&Chain> {
        match self {
            Self::Chain(chain) => Some(chain),
            Self::Rule(_) | Self::Else => None,
        }
    }

    fn rule(&self) -> Option<&Rule> {
        match self {
            Self::Rule(rule) => Some(rule),
            Self::Chain(_) | Self::Else => None,
        }
    }
}

impl Chain {
    fn is_foreign_input(&self) -> bool {
        let is_ip = matches!(self.family.as_str(), "ip" | "ip6" | "inet");
        is_ip && self.hook.as_deref() == Some("input") && self.table != TABLE
    }
}

impl Rule {
    fn is_in(&self, chain: &Chain) -> bool {
        (&self.family, &self.table, &self.chain) == (&chain.family, &chain.table, &chain.name)
    }

    /// Drops or rejects without asking what it is.
    fn turns_all_away(&self) -> bool {
        let says = |words: &[&str]| self.expr.iter().any(|part| words.iter().any(|word| part.get(word).is_some()));
        says(&["drop", "reject"]) && !says(&["match", "limit", "vmap", "xt"])
    }

    /// Accepts, or hands on to whoever may, what was redirected. (`xt` is how old iptables rules are listed.)
    fn takes_redirected(&self) -> bool {
        let text = Value::from(self.expr.clone()).to_string();
        (text.contains(r#""key":"status""#) && text.contains("dnat") && text.contains("accept"))
            || text.contains("ctstate DNAT")
    }
}

impl From<&Chain> for Obstacle {
    fn from(chain: &Chain) -> Self {
        Self { family: chain.family.clone(), table: chain.table.clone(), chain: chain.name.clone() }
    }
}

impl Obstacle {
    /// The command that opens it for what comes from an interface.
    pub fn remedy(&self, lan: &str) -> String {
        let Self { family, table, chain } = self;
        match (family.as_str(), chain.as_str()) {
            // iptables and ufw own these: a rule put there behind their back would be gone at their next reload.
            ("ip", "INPUT") => format!("iptables -I INPUT -i {lan} -m conntrack --ctstate DNAT -j ACCEPT"),
            ("ip6", "INPUT") => format!("ip6tables -I INPUT -i {lan} -m conntrack --ctstate DNAT -j ACCEPT"),
            _ => format!("nft insert rule {family} {table} {chain} iifname {lan:?} ct status dnat accept"),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} of table {} {}", self.chain, self.family, self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(chains: &[&str]) -> String {
        format!(r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6"}}}}, {}]}}"#, chains.join(", "))
    }

    fn chain(family: &str, table: &str, name: &str, policy: &str) -> String {
        format!(
            r#"{{"chain": {{"family": "{family}", "table": "{table}", "name": "{name}", "handle": 1, "type": "filter",
                "hook": "input", "prio": 0, "policy": "{policy}"}}}}"#
        )
    }

    fn rule(table: &str, chain: &str, expr: &str) -> String {
        format!(
            r#"{{"rule": {{"family": "ip", "table": "{table}", "chain": "{chain}", "handle": 3, "expr": [{expr}]}}}}"#
        )
    }

    #[test]
    fn a_chain_that_closes_and_has_no_rule_for_what_was_redirected_is_in_the_way() {
        const ON_LAN: &str = r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lan0"}}"#;
        const DNAT: &str = r#"{"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}"#;
        let dnat = format!(r#"{DNAT}, {{"accept": null}}"#);
        let reject = r#"{"counter": {"packets": 1, "bytes": 2}}, {"reject": {"type": "icmpx"}}"#;
        let on_lan = format!(r#"{ON_LAN}, {{"drop": null}}"#);
        #[rustfmt::skip]
        let cases: &[(&str, &str, &[&str], bool)] = &[
            ("filter",  "drop",   &[],                 true),
            ("filter",  "drop",   &[&on_lan],          true),
            ("filter",  "drop",   &[&dnat],            false),
            ("filter",  "accept", &[],                 false),
            ("filter",  "accept", &[&on_lan],          false),
            ("filter",  "accept", &[reject],           true),
            ("filter",  "accept", &[&dnat, reject],    false),
            (TABLE,     "drop",   &[],                 false),
        ];
        for &(table, policy, rules, expected) in cases {
            let mut objects = vec![chain("ip", table, "INPUT", policy)];
            objects.extend(rules.iter().map(|expr| rule(table, "INPUT", expr)));
            let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
            assert_eq!(!obstacles(&listing(&objects)).is_empty(), expected, "{table} {policy} {rules:?}");
        }
        assert_eq!(obstacles("no listing"), []);
    }

    #[test]
    fn the_remedy_is_a_line_for_whoever_owns_the_chain() {
        let all = [chain("ip", "filter", "INPUT", "drop"), chain("inet", "mine", "in", "drop")];
        let found = obstacles(&listing(&[&all[0], &all[1]]));
        let remedies: Vec<_> = found.iter().map(|obstacle| obstacle.remedy("lan0")).collect();
        assert_eq!(
            remedies,
            [
                "iptables -I INPUT -i lan0 -m conntrack --ctstate DNAT -j ACCEPT",
                "nft insert rule inet mine in iifname \"lan0\" ct status dnat accept",
            ]
        );
    }
}
