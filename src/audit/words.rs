//! Numbers of the protocol as the words that people search for; unknown ones in the form of RFC 3597 section 5.
//!
//! From the IANA registry "Domain Name System (DNS) Parameters".

use crate::policy::Action;

/// A question's type: `AAAA`, or `TYPE65280` for one without a name here.
pub(super) fn type_text(qtype: u16) -> String {
    let word = match qtype {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        10 => "NULL",
        12 => "PTR",
        13 => "HINFO",
        15 => "MX",
        16 => "TXT",
        17 => "RP",
        28 => "AAAA",
        29 => "LOC",
        33 => "SRV",
        35 => "NAPTR",
        36 => "KX",
        37 => "CERT",
        39 => "DNAME",
        43 => "DS",
        44 => "SSHFP",
        46 => "RRSIG",
        47 => "NSEC",
        48 => "DNSKEY",
        50 => "NSEC3",
        51 => "NSEC3PARAM",
        52 => "TLSA",
        53 => "SMIMEA",
        59 => "CDS",
        60 => "CDNSKEY",
        61 => "OPENPGPKEY",
        62 => "CSYNC",
        63 => "ZONEMD",
        64 => "SVCB",
        65 => "HTTPS",
        99 => "SPF",
        249 => "TKEY",
        250 => "TSIG",
        251 => "IXFR",
        252 => "AXFR",
        255 => "ANY",
        256 => "URI",
        257 => "CAA",
        _ => return format!("TYPE{qtype}"),
    };
    word.to_owned()
}

/// A question's class: `IN`, or `CLASS5` for one without a name.
pub(super) fn class_text(qclass: u16) -> String {
    let word = match qclass {
        1 => "IN",
        3 => "CH",
        4 => "HS",
        254 => "NONE",
        255 => "ANY",
        _ => return format!("CLASS{qclass}"),
    };
    word.to_owned()
}

/// A response code: `NXDOMAIN`, or `RCODE77` for one without a name.
pub(super) fn rcode_text(rcode: u16) -> String {
    let word = match rcode {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        16 => "BADVERS",
        _ => return format!("RCODE{rcode}"),
    };
    word.to_owned()
}

/// A protocol of IP: `icmp`, or its number. From the IANA registry "Assigned Internet Protocol Numbers".
pub(super) fn protocol_text(protocol: u8) -> String {
    let word = match protocol {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        47 => "gre",
        50 => "esp",
        58 => "icmpv6",
        132 => "sctp",
        _ => return protocol.to_string(),
    };
    word.to_owned()
}

/// How a question was refused, in the words of `[policy] action`.
pub(super) fn action_text(action: Action) -> &'static str {
    match action {
        Action::Nxdomain => "nxdomain",
        Action::Nodata => "nodata",
        Action::Refused => "refused",
        Action::Sinkhole => "sinkhole",
        Action::Drop => "drop",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_words_and_unknown_ones_their_rfc_3597_form() {
        assert_eq!([1, 28, 65, 255, 65280].map(type_text), ["A", "AAAA", "HTTPS", "ANY", "TYPE65280"]);
        assert_eq!([1, 3, 5].map(class_text), ["IN", "CH", "CLASS5"]);
        assert_eq!([1, 47, 253].map(protocol_text), ["icmp", "gre", "253"]);
        assert_eq!([0, 3, 5, 77].map(rcode_text), ["NOERROR", "NXDOMAIN", "REFUSED", "RCODE77"]);
    }

    #[test]
    fn an_actions_word_is_the_configurations() {
        for action in [Action::Nxdomain, Action::Nodata, Action::Refused, Action::Sinkhole, Action::Drop] {
            assert_eq!(serde_json::to_value(action).unwrap(), action_text(action));
        }
    }
}
