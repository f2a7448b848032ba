//! Which host a request may name. A web page can have its reader's browser ask a name of its own that it points at
//! us (DNS rebinding), and would read what we say. It cannot keep that name out of the request.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr},
};

use hyper::{Request, header::HOST, http::uri::Authority};

/// The names that mean us.
#[derive(Clone, Debug)]
pub(super) struct OwnNames {
    machine: Option<String>,
}

impl OwnNames {
    /// `localhost`, and what the machine is called now. Addresses are fine without being asked for: nobody can point one
    /// somewhere else.
    pub(super) fn read() -> Self {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
        Self { machine: name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()) }
    }

    /// Does a request name us? One that names nobody can only be HTTP/1.0, which no browser speaks and some health
    /// checkers do.
    pub(super) fn are_meant<B>(&self, request: &Request<B>) -> bool {
        let mut hosts = request.headers().get_all(HOST).iter();
        let header = hosts.next();
        if hosts.next().is_some() {
            return false;
        }
        let header_fits = header.is_none_or(|value| value.to_str().is_ok_and(|text| self.fits(text)));
        let target_fits = request.uri().authority().is_none_or(|authority| self.fits(authority.as_str()));
        header_fits && target_fits
    }

    fn fits(&self, text: &str) -> bool {
        let Ok(authority) = text.parse::<Authority>() else { return false };
        let host = authority.host();
        if host.parse::<IpAddr>().is_ok() || is_v6_in_brackets(host) {
            return true;
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        host.eq_ignore_ascii_case("localhost")
            || self.machine.as_ref().is_some_and(|machine| host.eq_ignore_ascii_case(machine))
    }
}

fn is_v6_in_brackets(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    bare.is_some_and(|bare| bare.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_the_machines_own_name_are_us_and_nobody_else_is() {
        #[rustfmt::skip]
        let cases = [
            ("127.0.0.1",            true),
            ("127.0.0.1:9053",       true),
            ("192.0.2.7:9053",       true),
            ("[::1]:9053",           true),
            ("[2001:db8::1]",        true),
            ("localhost",            true),
            ("LocalHost.:9053",      true),
            ("Gate-1:9053",          true),
            ("gate-1.",              true),
            ("gate-1.evil.example",  false),
            ("evil.example:9053",    false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("127.0.0.1@evil.example", false),
            ("notlocalhost",         false),
            ("[evil.example]",       false),
            ("127.0.0.1, localhost", false),
            ("",                     false),
        ];
        let names = OwnNames { machine: Some("gate-1".into()) };
        for (host, expected) in cases {
            assert_eq!(names.are_meant(&Request::builder().header(HOST, host).body(()).unwrap()), expected, "{host}");
        }
    }

    #[test]
    fn a_request_that_names_two_hosts_or_another_in_its_target_is_not_for_us() {
        let names = OwnNames { machine: None };
        let request = |uri: &str, hosts: &[&str]| {
            let request = Request::builder().uri(uri);
            hosts.iter().fold(request, |request, host| request.header(HOST, *host)).body(()).unwrap()
        };
        assert!(names.are_meant(&request("/livez", &[])), "HTTP/1.0");
        assert!(names.are_meant(&request("http://127.0.0.1/livez", &["127.0.0.1"])));
        assert!(!names.are_meant(&request("/livez", &["127.0.0.1", "evil.example"])));
        assert!(!names.are_meant(&request("http://evil.example/livez", &["127.0.0.1"])));
        assert!(!names.are_meant(&request("http://127.0.0.1/livez", &["evil.example"])));
    }
}
