//! On a gateway: how other people's forward rules see what is turned to the gate.
//!
//! What is turned to a door of ours never comes to the forward hook, so that somebody's rule there against a client or
//! an address would hold no more. Therefore the first packet of a client to an ingress address is let through that
//! hook. If it comes to the end, nobody minded: the pair is noted, and the packet dropped all the same. The client
//! sends it again a second later, and now it is turned to the gate. Nothing is open for it, whether we live or not.

use super::{chains::Writer, options::Mode, script::Chain, sets};
use crate::address::Family;

/// What opens a connection, and nothing else.
const OPENING: &str = "tcp flags & (fin | syn | rst | ack) == syn";
const NOT_OPENING: &str = "tcp flags & (fin | syn | rst | ack) != syn";

/// After everybody else's filters, whose drop is final at once and whose accept is not.
const LATE: &str = "1000";

impl Writer<'_> {
    /// What becomes of TLS to an ingress: where it is turned to, or the chain that knows whether it may be already.
    /// `None`: there is no gate in the family, and the filter refuses.
    pub(super) fn turn_to_gate(&self, family: Family) -> Option<String> {
        let door = self.options.gate_door(family)?;
        Some(match self.options.mode {
            Mode::Off | Mode::Host => self.to(family, door),
            Mode::Gateway => "goto gate".to_owned(),
        })
    }

    /// The chains beside `turn` and `egress`; on a host there are none.
    pub(super) fn passing(&self) -> Vec<Chain> {
        match self.options.mode {
            Mode::Off | Mode::Host => Vec::new(),
            Mode::Gateway => vec![self.gate(), self.late(), self.retry()],
        }
    }

    fn gate(&self) -> Chain {
        let mut chain = Chain::new("gate", "what other people's forward rules let pass before.");
        for (family, door) in self.doors() {
            let (header, to, passed) = (family.header(), self.to(family, door), family.pick(sets::PASSED));
            chain.why("A connection from before is ended there.");
            chain.rule(format!("meta nfproto {} {NOT_OPENING} {to}", family.protocol()));
            chain.rule(format!("{header} saddr . {header} daddr @{passed} tcp dport 443 {to}"));
            chain
                .why("The rest goes on to those rules, with its address as it is: whoever would rewrite that after us");
            chain.why("would lead it round them and round the gate.");
            chain.rule(format!("dnat {header} to {header} daddr"));
        }
        chain
    }

    /// In `egress`, and only for those who are refused: what goes on to other people's rules. The chain `late` takes
    /// all of it.
    pub(super) fn let_on(&self, chain: &mut Chain, family: Family, set: &str) {
        if self.options.mode == Mode::Gateway && self.options.gate_door(family).is_some() {
            let header = family.header();
            chain.rule(format!("{header} daddr @{set} tcp dport 443 {OPENING} ct state new accept"));
        }
    }

    fn late(&self) -> Chain {
        let base = format!("type filter hook forward priority {LATE}");
        let mut chain = Chain::base("late", &base, "what others let pass on its way to an ingress. It ends here.");
        self.only_clients(&mut chain);
        self.not_for_the_gate(&mut chain);
        for (family, _) in self.doors() {
            for set in [sets::INGRESS, sets::INGRESS_NET] {
                let (header, set) = (family.header(), family.pick(set));
                chain.rule(format!("{header} daddr @{set} tcp dport 443 {OPENING} goto retry"));
            }
        }
        chain
    }

    fn retry(&self) -> Chain {
        let mut chain = Chain::new("retry", "the client sends it again, and the gate has it.");
        for (family, _) in self.doors() {
            let (header, passed) = (family.header(), family.pick(sets::PASSED));
            chain.rule(format!("add @{passed} {{ {header} saddr . {header} daddr }}"));
        }
        chain.why("A rule of its own: also where the set is full.");
        chain.rule("drop");
        chain
    }

    fn doors(&self) -> impl Iterator<Item = (Family, std::net::SocketAddr)> {
        Family::BOTH.into_iter().filter_map(|family| Some((family, self.options.gate_door(family)?)))
    }
}
