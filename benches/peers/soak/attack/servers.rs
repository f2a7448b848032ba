//! The servers of zones that the household should not have: one that never answers, one that says that it is alive and
//! nothing else, one that damages what it says.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::Context;

use super::{Attack, Attacks, Beat};
use crate::{dice::Dice, server::free_address, stand_in::answer};

/// Between two looks at the sockets.
const PERIOD: Duration = Duration::from_millis(2);

/// More than the daemon takes of a datagram.
const TOO_LARGE: usize = 8_000;

/// Room for an answer before it is damaged.
const ROOM: usize = 1_500;

/// All three, bound from the start, so that nobody is told that a port is closed.
#[derive(Debug)]
pub(in crate::soak) struct Servers {
    /// Nobody reads it: what is too much the kernel throws away.
    dead: UdpSocket,
    mute: UdpSocket,
    damaging: UdpSocket,
    damaging_over_tcp: TcpListener,
}

/// A connection to the damaging one, and what has come of a question.
struct Line {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Servers {
    pub(in crate::soak) fn open() -> anyhow::Result<Self> {
        let bind = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot open a server's socket")?;
            socket.set_nonblocking(true)?;
            anyhow::Ok(socket)
        };
        let both = free_address()?;
        let (damaging, listener) = (UdpSocket::bind(both)?, TcpListener::bind(both)?);
        damaging.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        Ok(Self { dead: bind()?, mute: bind()?, damaging, damaging_over_tcp: listener })
    }

    /// The dead one, the mute one, the damaging one.
    pub(in crate::soak) fn addresses(&self) -> anyhow::Result<[SocketAddrV4; 3]> {
        let port = |socket: &UdpSocket| Ok::<_, std::io::Error>(socket.local_addr()?.port());
        let ports = [port(&self.dead)?, port(&self.mute)?, port(&self.damaging)?];
        Ok(ports.map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)))
    }

    /// Goes on until it is over.
    pub(in crate::soak) fn serve(&self, goes_on: impl Fn() -> bool, attacks: &mut Attacks) {
        let (mut dice, mut beat, mut lines) = (Dice(0xda4a), Beat::every(PERIOD), Vec::new());
        while goes_on() {
            beat.wait();
            self.say_that_it_is_alive();
            self.damage(&mut dice, attacks);
            while let Ok((stream, _)) = self.damaging_over_tcp.accept() {
                if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_ok() {
                    lines.push(Line { stream, unread: Vec::new() });
                }
            }
            lines.retain_mut(|line| line.serve(&mut dice, attacks).is_some());
        }
    }

    fn say_that_it_is_alive(&self) {
        let mut bytes = [0; ROOM];
        while let Ok((length, peer)) = self.mute.recv_from(&mut bytes) {
            if is_probe(&bytes[..length])
                && let Some(length) = answer(&mut bytes, length)
            {
                let _ = self.mute.send_to(&bytes[..length], peer);
            }
        }
    }

    fn damage(&self, dice: &mut Dice, attacks: &mut Attacks) {
        let mut bytes = [0; ROOM];
        while let Ok((length, peer)) = self.damaging.recv_from(&mut bytes) {
            let is_probe = is_probe(&bytes[..length]);
            let Some(length) = answer(&mut bytes, length) else { continue };
            let mut reply = bytes[..length].to_vec();
            // Who is taken for dead is asked no more.
            if !is_probe && damage_datagram(&mut reply, dice) {
                attacks.count(Attack::Damaged, 1);
            }
            let _ = self.damaging.send_to(&reply, peer);
        }
    }
}

impl Line {
    /// `None` is the end.
    fn serve(&mut self, dice: &mut Dice, attacks: &mut Attacks) -> Option<()> {
        let mut bytes = [0; ROOM];
        match self.stream.read(&mut bytes) {
            Ok(0) => return None,
            Ok(length) => self.unread.extend(&bytes[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        while let Some(&[high, low]) = self.unread.get(..2) {
            let end = 2 + usize::from(u16::from_be_bytes([high, low]));
            let Some(question) = self.unread.get(2..end) else { break };
            let length = question.len().min(ROOM);
            bytes[..length].copy_from_slice(&question[..length]);
            self.unread.drain(..end);
            let length = answer(&mut bytes, length)?;
            let mut reply = bytes[..length].to_vec();
            if damage_frame(&mut reply, dice) {
                attacks.count(Attack::Damaged, 1);
            }
            let frame = [&u16::try_from(reply.len()).ok()?.to_be_bytes()[..], &reply].concat();
            self.stream.write_all(&frame).ok()?;
        }
        Some(())
    }
}

/// NS of the root: is anybody there?
fn is_probe(question: &[u8]) -> bool {
    question.get(12..15) == Some(&[0, 0, 2])
}

/// Most of them. True where it was.
fn damage_datagram(reply: &mut Vec<u8>, dice: &mut Dice) -> bool {
    match dice.below(10) {
        0..4 => dice.mutate(reply),
        // Somebody else's id: a guess, as it seems.
        4 | 5 => reply[0] ^= 1,
        6 => reply.resize(TOO_LARGE, 0),
        // Cut off, so that it is asked for again over TCP.
        7 => reply[2] |= 2,
        _ => return false,
    }
    true
}

/// Seldom, or the server would be left alone for its failures and damage no more.
fn damage_frame(reply: &mut Vec<u8>, dice: &mut Dice) -> bool {
    match dice.below(20) {
        0 => dice.mutate(reply),
        1 => reply[0] ^= 1,
        // Nearly as much as a frame holds.
        2 | 3 => swell(reply),
        _ => return false,
    }
    true
}

/// Has a reply name some thousand addresses, and nothing else.
fn swell(reply: &mut Vec<u8>) {
    const RECORDS: u16 = 4_000;
    let Some(name) = reply.get(12..).and_then(|rest| rest.iter().position(|&byte| byte == 0)) else { return };
    reply.truncate(12 + name + 5);
    for number in 0..RECORDS {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 10, 0]);
        reply.extend(number.to_be_bytes());
    }
    reply[6..8].copy_from_slice(&RECORDS.to_be_bytes());
    reply[8..12].fill(0);
}
