//! `[listen]`.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::set;
use crate::{
    document::{Fault, Table, Value, quoted},
    listen::{Admin, Options},
};

const DNS_PORT: u16 = 53;
const ADMIN_PORT: u16 = 9053;
const EXAMPLE: &str = "dns = [\"127.0.0.1:5300\"]";

pub(super) fn read(root: &mut Table<'_>, base: &Path) -> Options {
    let mut options = Options::default();
    root.table("listen", |table| {
        table.not_in_this_version(&["tls", "https", "quic"]);
        let mut seen = Vec::new();
        set(
            &mut options.dns,
            table.take("dns", |value| value.some_entries(EXAMPLE, |entry| read_door(entry, &mut seen))),
        );
        set(&mut options.admin, table.take("admin", read_admin));
        options.socket = table.take("socket", |value| Some(base.join(value.line()?)));
    });
    options
}

fn read_door(value: &Value<'_>, seen: &mut Vec<SocketAddr>) -> Option<SocketAddr> {
    let address = value.converted(|text| socket_address(text, DNS_PORT))?;
    // Port 0 is another port each time.
    if seen.contains(&address) && address.port() != 0 {
        return value.wrong(format!("{address} is named twice"), None);
    }
    seen.push(address);
    Some(address)
}

fn read_admin(value: &Value<'_>) -> Option<Admin> {
    match value.text()? {
        "off" => Some(Admin::Off),
        _ => value.converted(|text| socket_address(text, ADMIN_PORT)).map(Admin::At),
    }
}

/// An address with or without a port.
fn socket_address(text: &str, port: u16) -> Result<SocketAddr, Fault> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = text.parse().ok().or_else(|| Some(SocketAddr::new(bare.parse::<IpAddr>().ok()?, port)));
    address.ok_or_else(|| {
        let fault = Fault::from(format!("{} is no address to listen at", quoted(text)));
        fault.hint("write an address of this machine and a port, such as \"127.0.0.1:5300\" or \"[::1]:5300\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_port() {
        #[rustfmt::skip]
        let cases = [
            ("127.0.0.1:5300", Some("127.0.0.1:5300")),
            ("127.0.0.1",      Some("127.0.0.1:53")),
            ("[::1]:5300",     Some("[::1]:5300")),
            ("[::]",           Some("[::]:53")),
            ("::1",            Some("[::1]:53")),
            ("localhost:53",   None),
            (":53",            None),
            ("127.0.0.1:",     None),
            ("127.0.0.1:65536", None),
            ("*",              None),
            ("",               None),
        ];
        for (text, expected) in cases {
            let read = socket_address(text, DNS_PORT).ok().map(|address| address.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }
}
