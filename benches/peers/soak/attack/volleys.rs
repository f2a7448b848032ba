//! Attacks by datagrams: a few of each kind at a time, one kind after the other.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::Context;

use super::{Attack, Attacks, Beat};
use crate::{
    dice::Dice,
    kernel::{BATCH, Packet, receive, send},
    question::{BLOCKED, encode},
    soak::household::{DAMAGED, DEAD, MUTE},
};

/// All kinds have had their turn once.
const ROUND: Duration = Duration::from_millis(10);

/// One kind.
struct Volley {
    attack: Attack,
    /// So many at a time.
    size: usize,
    /// The datagram of this number.
    write: fn(u64, &mut Dice) -> (Ipv4Addr, Vec<u8>),
}

/// Some 7,000 a second, of which 3,000 are the flood, half as much again as `rate` allows.
const VOLLEYS: [Volley; 7] = [
    Volley { attack: Attack::Mutated, size: 10, write: mutated },
    Volley { attack: Attack::Torture, size: 10, write: torture },
    Volley { attack: Attack::Dead, size: 1, write: dead },
    Volley { attack: Attack::Damaged, size: 3, write: damaged },
    Volley { attack: Attack::Refused, size: 10, write: refused },
    Volley { attack: Attack::Unasked, size: 5, write: unasked },
    Volley { attack: Attack::Flood, size: 30, write: flood },
];

/// Goes on until it is over.
pub(in crate::soak) fn fire(
    target: SocketAddrV4,
    goes_on: impl Fn() -> bool,
    attacks: &mut Attacks,
) -> anyhow::Result<()> {
    // Bound to no address, so that datagrams can leave from any of the loopback network; one for each kind, so that it is
    // known what a reply is to.
    let open = |_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a socket to attack from");
    let sockets = VOLLEYS.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let (mut dice, mut packets, mut number) = (Dice(0x50a6), vec![Packet::new(); BATCH], 0);
    let mut beat = Beat::every(ROUND / VOLLEYS.len() as u32);
    while goes_on() {
        for (Volley { attack, size, write }, socket) in VOLLEYS.iter().zip(&sockets) {
            for packet in &mut packets[..*size] {
                let (source, bytes) = write(number, &mut dice);
                (packet.source, packet.peer, packet.length) = (source, target, bytes.len());
                packet.bytes[..bytes.len()].copy_from_slice(&bytes);
                number += 1;
            }
            let sent = send(socket, &mut packets[..*size]).unwrap_or(0) as u64;
            // Where the answer is damaged, that is what counts.
            attacks.count(*attack, if *attack == Attack::Damaged { 0 } else { sent });
            // Nobody waits for these, but what is not taken would pile up.
            while let Ok(received) = receive(socket, &mut packets, false) {
                attacks.heard += if *attack == Attack::Unasked { received as u64 } else { 0 };
            }
            beat.wait();
        }
    }
    Ok(())
}

/// A question with an id by chance.
fn ask(name: &str, dice: &mut Dice) -> Vec<u8> {
    let mut question = encode(name);
    question[..2].fill_with(|| dice.below(256) as u8);
    question
}

/// An OPT record: 1232 bytes, and DNSSEC.
const EDNS: [u8; 11] = [0, 0, 41, 4, 0xd0, 0, 0, 0x80, 0, 0, 0];

fn mutated(number: u64, dice: &mut Dice) -> (Ipv4Addr, Vec<u8>) {
    let name = match number % 3 {
        0 => format!("n{}.site.example", number % 1000),
        1 => format!("mutant-{}.{}", number % 1000, BLOCKED[1]),
        _ => format!("m{number}.mutant.example"),
    };
    let mut question = ask(&name, dice);
    if number.is_multiple_of(2) {
        question[11] = 1;
        question.extend(EDNS);
    }
    dice.mutate(&mut question);
    (source(1, number % 16), question)
}

fn torture(number: u64, dice: &mut Dice) -> (Ipv4Addr, Vec<u8>) {
    (source(16 + number % 200, number / 200), ask(&format!("u{number:x}.torture.example"), dice))
}

/// From one address for either zone: each may have so many waiting.
fn dead(number: u64, dice: &mut Dice) -> (Ipv4Addr, Vec<u8>) {
    let zone = if number.is_multiple_of(2) { DEAD } else { MUTE };
    (source(2, number % 2), ask(&format!("d{number}.{zone}"), dice))
}

fn damaged(number: u64, dice: &mut Dice) -> (Ipv4Addr, Vec<u8>) {
    (source(3, number % 8), ask(&format!("b{number}.{DAMAGED}"), dice))
}

fn refused(number: u64, dice: &mut Dice) -> (Ipv4Addr, Vec<u8>) {
    let source = Ipv4Addr::from(0x7f46_0000 + (number % (1 << 21)) as u32);
    (source, ask(&format!("r{number:x}.{}", BLOCKED[2]), dice))
}

/// By turns an answer, and what is shorter than a header.
fn unasked(number: u64, dice: &mut Dice) -> (Ipv4Addr, Vec<u8>) {
    let mut packet = ask("n1.site.example", dice);
    if number.is_multiple_of(2) {
        packet[2] |= 0x80;
    } else {
        packet.truncate(dice.below(12));
    }
    (source(4, number % 4), packet)
}

fn flood(number: u64, dice: &mut Dice) -> (Ipv4Addr, Vec<u8>) {
    (source(5, 0), ask(&format!("n{}.site.example", number % 1000), dice))
}

/// An address of 127.66.0.0/16.
fn source(network: u64, host: u64) -> Ipv4Addr {
    Ipv4Addr::new(127, 66, network as u8, (1 + host % 250) as u8)
}
