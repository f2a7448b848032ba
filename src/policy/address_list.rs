//! A file of addresses that a vendor publishes, as JSON of any shape: what counts is every text in it that is an
//! address, with a port behind it or not. Nobody promises a shape, and nothing else in it is believed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde_json::Value;
use thiserror::Error;

/// Most addresses of one file.
pub const MAX_LISTED: usize = 4096;

/// Why a file is no list of addresses.
#[derive(Debug, Error)]
pub enum NoAddressList {
    /// It is not JSON.
    #[error("it is no JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// It names whole networks, and a vendor's file must not refuse those.
    #[error("{0} is a network, and only single addresses are taken")]
    Network(IpNet),
    /// There is no address in it.
    #[error("there is no address in it")]
    Empty,
    /// More than [`MAX_LISTED`].
    #[error("there are more than {MAX_LISTED} addresses in it")]
    TooMany,
}

/// The addresses in a file, each once, in order.
///
/// # Errors
/// [`NoAddressList`].
pub fn parse(bytes: &[u8]) -> Result<Vec<IpAddr>, NoAddressList> {
    let mut addresses = BTreeSet::new();
    // The depth is bounded by the parser.
    collect(&serde_json::from_slice(bytes)?, &mut addresses)?;
    match addresses.len() {
        0 => Err(NoAddressList::Empty),
        1..=MAX_LISTED => Ok(addresses.into_iter().collect()),
        _ => Err(NoAddressList::TooMany),
    }
}

fn collect(value: &Value, addresses: &mut BTreeSet<IpAddr>) -> Result<(), NoAddressList> {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        Value::String(text) => {
            addresses.extend(address(text)?);
            Ok(())
        }
        Value::Array(entries) => entries.iter().try_for_each(|entry| collect(entry, addresses)),
        Value::Object(fields) => fields.iter().try_for_each(|(key, field)| {
            addresses.extend(address(key)?);
            collect(field, addresses)
        }),
    }
}

fn address(text: &str) -> Result<Option<IpAddr>, NoAddressList> {
    if let Ok(network) = text.parse::<IpNet>() {
        let is_one = network.prefix_len() == network.max_prefix_len();
        return if is_one { Ok(Some(network.addr())) } else { Err(NoAddressList::Network(network)) };
    }
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    Ok(text.parse().or_else(|_| with_port()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_that_is_an_address_counts_whatever_the_shape() {
        #[rustfmt::skip]
        let cases: &[(&str, &[&str])] = &[
            (r#"["3.5.7.9", "3.5.7.9", "2a05:d014::1"]"#,                         &["3.5.7.9", "2a05:d014::1"]),
            (r#"{"us": {"ips": ["3.5.7.9:443"], "v": 2}, "eu": "3.5.7.10/32"}"#,  &["3.5.7.9", "3.5.7.10"]),
            (r#"{"3.5.7.9": "tunnel.us.ngrok.com", "at": "2026-11-23"}"#,         &["3.5.7.9"]),
            (r#"{"a": [{"data": "[2a05:d014::1]:443", "TTL": 60}]}"#,             &["2a05:d014::1"]),
        ];
        for (text, expected) in cases {
            let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(parse(text.as_bytes()).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_list_of_addresses_says_why() {
        let many = |count: usize| {
            let texts: Vec<_> = (0..count).map(|index| format!("\"3.{}.{}.1\"", index / 256, index % 256)).collect();
            format!("[{}]", texts.join(","))
        };
        assert_eq!(parse(many(MAX_LISTED).as_bytes()).unwrap().len(), MAX_LISTED);
        #[rustfmt::skip]
        let cases = [
            ("3.5.7.9\n".to_owned(),        "it is no JSON: trailing characters"),
            ("[\"ngrok.com\"]".to_owned(),  "there is no address in it"),
            ("[\"3.0.0.0/8\"]".to_owned(),  "3.0.0.0/8 is a network"),
            (many(MAX_LISTED + 1),          "there are more than 4096 addresses in it"),
            ("[".repeat(100_000),           "it is no JSON: recursion limit exceeded"),
        ];
        for (text, expected) in cases {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
