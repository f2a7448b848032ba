//! Socket addresses and control messages as the kernel lays them out in memory, read and written as plain bytes.
//!
//! No pointer is followed here: the system calls fill and read these arrays, everything else is safe code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for a `sockaddr_in6`, the largest address we meet.
pub(super) const NAME: usize = 28;

/// Room for one `in6_pktinfo` control message, the largest we ask for (40 bytes), and one we did not ask for.
pub(super) const CONTROL: usize = 80;

/// A `sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Name(pub(super) [u8; NAME]);

/// A run of control messages.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Control(pub(super) [u8; CONTROL]);

/// The address of ours that a datagram was sent to, and where a reply to it must come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Local {
    /// The address.
    pub ip: IpAddr,
    /// The interface's number; kept for link-local addresses alone, which mean nothing without it. 0 elsewhere.
    pub interface: u32,
}

/// `struct cmsghdr`: a length of the word's size, then level and type (cmsg(3)).
const HEADER: usize = size_of::<usize>() + 8;

impl Name {
    pub(super) const EMPTY: Self = Self([0; NAME]);

    /// The address in it; `None` for other families.
    pub(super) fn read(&self) -> Option<SocketAddr> {
        let family = i32::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let port = u16::from_be_bytes(array(&self.0, 2)?);
        match family {
            libc::AF_INET => Some(SocketAddrV4::new(Ipv4Addr::from(array::<4>(&self.0, 4)?), port).into()),
            libc::AF_INET6 => {
                let flow = u32::from_be_bytes(array(&self.0, 4)?);
                let scope = u32::from_ne_bytes(array(&self.0, 24)?);
                Some(SocketAddrV6::new(Ipv6Addr::from(array::<16>(&self.0, 8)?), port, flow, scope).into())
            }
            _ => None,
        }
    }

    /// Writes an address and tells its length in bytes.
    pub(super) fn write(&mut self, address: SocketAddr) -> usize {
        let mut writer = Writer { bytes: &mut self.0, length: 0 };
        match address {
            SocketAddr::V4(v4) => {
                writer.push(&family(libc::AF_INET));
                writer.push(&v4.port().to_be_bytes());
                writer.push(&v4.ip().octets());
                writer.push(&[0; 8]);
            }
            SocketAddr::V6(v6) => {
                writer.push(&family(libc::AF_INET6));
                writer.push(&v6.port().to_be_bytes());
                writer.push(&v6.flowinfo().to_be_bytes());
                writer.push(&v6.ip().octets());
                writer.push(&v6.scope_id().to_ne_bytes());
            }
        }
        writer.length
    }
}

impl Control {
    pub(super) const EMPTY: Self = Self([0; CONTROL]);

    /// The local address among the first `length` bytes, if the kernel told one that a reply can come from.
    pub(super) fn read(&self, length: usize) -> Option<Local> {
        let mut rest = self.0.get(..length)?;
        loop {
            let total = usize::from_ne_bytes(array(rest, 0)?);
            let level = i32::from_ne_bytes(array(rest, size_of::<usize>())?);
            let kind = i32::from_ne_bytes(array(rest, size_of::<usize>() + 4)?);
            let data = rest.get(HEADER..total)?;
            let local = match (level, kind) {
                // in_pktinfo: interface, our address for replies, the header's destination (ip(7)).
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    Some(Local { ip: Ipv4Addr::from(array::<4>(data, 4)?).into(), interface: 0 })
                }
                // in6_pktinfo: the header's destination, interface (RFC 3542 section 6.1).
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let ip = Ipv6Addr::from(array::<16>(data, 0)?);
                    let interface = u32::from_ne_bytes(array(data, 16)?);
                    Some(Local { ip: ip.into(), interface: if ip.is_unicast_link_local() { interface } else { 0 } })
                }
                _ => None,
            };
            if let Some(local) = local {
                // Nothing can be sent from a group's address; the kernel then chooses.
                return (!local.ip.is_multicast() && !local.ip.is_unspecified()).then_some(local);
            }
            rest = rest.get(total.next_multiple_of(size_of::<usize>())..)?;
        }
    }

    /// Writes the control message that makes a datagram leave from `local` and tells its length in bytes.
    pub(super) fn write(&mut self, local: Local) -> usize {
        let mut writer = Writer { bytes: &mut self.0, length: 0 };
        let mut header = |data: usize, level: i32, kind: i32| {
            writer.push(&(HEADER + data).to_ne_bytes());
            writer.push(&level.to_ne_bytes());
            writer.push(&kind.to_ne_bytes());
        };
        match local.ip {
            IpAddr::V4(v4) => {
                header(12, libc::IPPROTO_IP, libc::IP_PKTINFO);
                writer.push(&0_u32.to_ne_bytes());
                writer.push(&v4.octets());
                writer.push(&[0; 4]);
            }
            IpAddr::V6(v6) => {
                header(20, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
                writer.push(&v6.octets());
                writer.push(&local.interface.to_ne_bytes());
            }
        }
        writer.length.next_multiple_of(size_of::<usize>())
    }
}

/// Fills an array from the front; what does not fit is left out, and the arrays here fit.
struct Writer<'a> {
    bytes: &'a mut [u8],
    length: usize,
}

impl Writer<'_> {
    fn push(&mut self, part: &[u8]) {
        let end = self.length + part.len();
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(part);
            self.length = end;
        }
    }
}

fn family(family: i32) -> [u8; 2] {
    // AF_INET and AF_INET6 are 2 and 10.
    u16::try_from(family).unwrap_or_default().to_ne_bytes()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_was_written_is_read_back_with_its_scope() {
        let addresses: [SocketAddr; 4] = [
            "192.0.2.1:53".parse().unwrap(),
            "[2001:db8::1]:5300".parse().unwrap(),
            SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 7, 3).into(),
            "0.0.0.0:0".parse().unwrap(),
        ];
        for (address, length) in addresses.into_iter().zip([16, 28, 28, 16]) {
            let mut name = Name::EMPTY;
            assert_eq!((name.write(address), name.read()), (length, Some(address)));
        }
        assert_eq!(Name::EMPTY.read(), None);
    }

    #[test]
    fn an_address_is_laid_out_as_libc_has_it() {
        assert_eq!(size_of::<libc::sockaddr_in6>(), NAME);
        assert_eq!(size_of::<libc::sockaddr_in>(), 16);
        assert_eq!(std::mem::offset_of!(libc::sockaddr_in6, sin6_scope_id), 24);
        assert_eq!(std::mem::offset_of!(libc::in6_pktinfo, ipi6_ifindex), 16);
        assert_eq!(std::mem::offset_of!(libc::in_pktinfo, ipi_spec_dst), 4);
        assert_eq!(std::mem::offset_of!(libc::cmsghdr, cmsg_level), size_of::<usize>());
        assert_eq!(size_of::<libc::cmsghdr>(), HEADER);
    }

    #[test]
    fn a_local_address_is_read_where_the_kernel_put_it() {
        let mut control = Control::EMPTY;
        let v6 = Local { ip: "2001:db8::1".parse().unwrap(), interface: 0 };
        let length = control.write(v6);
        assert_eq!((length, control.read(length)), (40, Some(v6)));

        let link_local = Local { ip: "fe80::1".parse().unwrap(), interface: 4 };
        let length = control.write(link_local);
        assert_eq!(control.read(length), Some(link_local));

        for unusable in ["ff02::1", "::"] {
            let length = control.write(Local { ip: unusable.parse().unwrap(), interface: 4 });
            assert_eq!(control.read(length), None, "{unusable}");
        }

        let v4 = Local { ip: "127.0.0.2".parse().unwrap(), interface: 0 };
        let length = control.write(v4);
        assert_eq!((length, control.read(length)), (32, Some(v4)));
    }

    #[test]
    fn another_control_message_in_front_is_passed_over() {
        let mut first = Control::EMPTY;
        let local = Local { ip: "127.0.0.2".parse().unwrap(), interface: 0 };
        let length = first.write(local);
        let mut both = Control::EMPTY;
        let mut writer = Writer { bytes: &mut both.0, length: 0 };
        writer.push(&(HEADER + 4).to_ne_bytes());
        writer.push(&libc::SOL_SOCKET.to_ne_bytes());
        writer.push(&libc::SO_TIMESTAMP.to_ne_bytes());
        writer.push(&[0; 8]);
        writer.push(&first.0[..length]);
        let length = writer.length;
        assert_eq!(both.read(length), Some(local));
    }

    #[test]
    fn broken_control_messages_are_no_address_and_no_endless_loop() {
        for total in [0, 1, HEADER - 1, HEADER, HEADER + 1, 40, CONTROL + 1, usize::MAX - 3] {
            let mut control = Control::EMPTY;
            control.0[..size_of::<usize>()].copy_from_slice(&total.to_ne_bytes());
            for length in 0..=CONTROL {
                assert_eq!(control.read(length), None, "{total} {length}");
            }
        }
        assert_eq!(Control::EMPTY.read(CONTROL + 1), None);
    }
}
