//! What other people's rules still decide, although the gate takes connections that they were made for.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    guarded::{Guarded, Mode, Rules},
    ways::{DEFAULT, OWN},
};
use crate::support::bed::{Bed, Family, Host, Outcome, Vantage};

/// What somebody may do with a packet, and what its client sees of that.
const VERDICTS: [(&str, Outcome); 2] = [("drop", Outcome::Silent), ("reject with tcp reset", Outcome::Refused)];

/// How long what others let pass once may pass without them; twice over for a slow machine.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// By address, the one of the own ingress too. On a host it holds for the gate's own connection.
pub fn another_tables_drop_rule_still_holds(mode: Mode) {
    let guarded = Guarded::by(mode, Rules::default());
    let addresses = [Host::Web, Host::Shared].map(|host| Family::BOTH.map(|family| host.address(family)));
    for (verdict, seen) in VERDICTS {
        let rule = |[v4, v6]: [_; 2]| format!("ip daddr {v4} {verdict}\nip6 daddr {v6} {verdict}\n");
        somebody(&guarded.bed, hook(mode), &addresses.map(rule).concat());
        guarded.bed.forget();
        for family in Family::BOTH {
            let [web, own] = guarded.job().inside(|prober| {
                ["www.example.net", OWN].map(|name| prober.by_name(Host::PublicResolver.at(family, 53), name))
            });
            assert_eq!(web, seen, "{family:?}, {verdict}");
            assert!(own == seen || mode == Mode::Host && own != Outcome::Reached(Host::Shared), "{family:?}: {own:?}");
        }
        assert_eq!(guarded.bed.arrivals(Host::Shared), [], "{verdict}");
    }
    somebody(&guarded.bed, hook(mode), "");
    for family in Family::BOTH {
        assert_eq!(own_ingress(guarded.job(), family), Outcome::Reached(Host::Shared), "{family:?}");
    }
}

/// On an appliance: on a host the gate connects for everybody.
pub fn another_tables_rule_holds_for_its_client_and_for_no_other(mode: Mode) {
    if mode == Mode::Host {
        return;
    }
    let guarded = Guarded::by(mode, Rules::default());
    let (client, neighbour) = (guarded.bed.client(), guarded.bed.neighbour());
    let refuse = |who: Vantage<'_>, verdict: &str| {
        let [v4, v6] = Family::BOTH.map(|family| who.address(family));
        somebody(&guarded.bed, hook(mode), &format!("ip saddr {v4} {verdict}\nip6 saddr {v6} {verdict}\n"));
    };
    for (verdict, seen) in VERDICTS {
        refuse(client, verdict);
        for family in Family::BOTH {
            let both = [client, neighbour].map(|who| own_ingress(who, family));
            assert_eq!(both, [seen, Outcome::Reached(Host::Shared)], "{family:?}, {verdict}");
        }
    }
    // Who has passed by then is known for a while, and asked again after it.
    refuse(neighbour, "reject with tcp reset");
    let until = Instant::now() + FORGOTTEN;
    for family in Family::BOTH {
        assert_eq!(own_ingress(client, family), Outcome::Reached(Host::Shared), "{family:?}");
        while own_ingress(neighbour, family) != Outcome::Refused {
            assert!(Instant::now() < until, "{family:?}: a rule of somebody's that was added later never holds");
            thread::sleep(Duration::from_millis(500));
        }
    }
}

/// On an appliance: whoever has TLS go to a proxy of theirs leads it round neither the gate nor the rules before it.
pub fn another_tables_rewriting_leads_nobody_round_the_gate(mode: Mode) {
    if mode == Mode::Host {
        return;
    }
    let guarded = Guarded::by(mode, Rules::default());
    let [v4, v6] = Family::BOTH.map(|family| Host::Unnamed.at(family, 443));
    let to_proxy = format!(
        "chain p {{ type nat hook prerouting priority -100; policy accept;\n\
         tcp dport 443 dnat ip to {v4}\ntcp dport 443 dnat ip6 to {v6}\n}}\n"
    );
    table(&guarded.bed, &to_proxy);
    for family in Family::BOTH {
        let outcomes = guarded.job().inside(|prober| {
            let foreign = prober.tls(Host::Foreign.at(family, 443), Some(DEFAULT));
            (foreign, prober.tls(Host::Shared.at(family, 443), Some(OWN)))
        });
        assert_eq!(outcomes, (Outcome::Alert(112), Outcome::Reached(Host::Shared)), "{family:?}");
        guarded.job().inside(|prober| prober.tcp(Host::Web.at(family, 443)));
        assert!(guarded.bed.arrivals(Host::Web).is_empty(), "{family:?}: nothing was rewritten");
    }
}

fn own_ingress(who: Vantage<'_>, family: Family) -> Outcome {
    who.inside(|prober| prober.tls(Host::Shared.at(family, 443), Some(OWN)))
}

fn hook(mode: Mode) -> &'static str {
    match mode {
        Mode::Host => "output",
        Mode::Gateway => "forward",
    }
}

/// Somebody's filter, in place of the one they had.
fn somebody(bed: &Bed, hook: &str, rules: &str) {
    table(bed, &format!("chain c {{ type filter hook {hook} priority 0; policy accept;\n{rules}}}\n"));
}

fn table(bed: &Bed, chains: &str) {
    let empty = "table inet somebody\ndelete table inet somebody\n";
    bed.appliance().must(&["nft", "-f", "-"], &format!("{empty}table inet somebody {{\n{chains}}}\n"));
}
