//! `[listen]`: where we can be asked.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

/// `[listen]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// UDP and TCP. 127.0.0.1:5300 and [::1]:5300.
    pub dns: Vec<SocketAddr>,
    /// Health and metrics over HTTP.
    pub admin: Admin,
    /// The control socket; `control` in the state folder where it is `None`.
    pub socket: Option<PathBuf>,
}

/// `admin`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admin {
    /// No such door.
    Off,
    /// Nobody said: at 127.0.0.1:9053, unless somebody else is there.
    Default,
    /// There.
    At(SocketAddr),
}

impl Admin {
    /// Where the door is to be; `None` for none.
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::Default => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9053))),
            Self::At(address) => Some(address),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dns: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 5300)), SocketAddr::from((Ipv6Addr::LOCALHOST, 5300))],
            admin: Admin::Default,
            socket: None,
        }
    }
}
