//! What stands at both ends of the comparison: the bare echo that is the unit of cost, and the fast upstream that
//! knows every name. Both run as processes of their own, so that their CPU time is told apart.

use std::{
    io::{self, Read, Write},
    net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    thread,
};

use anyhow::Context;
use socket2::{Domain, SockRef, Socket, Type};

use crate::kernel::{BATCH, Packet, receive, send};

/// One receive and one send for each datagram, the reply bit set, nothing else: what the kernel alone costs. Each of
/// the workers has a socket of its own; the kernel spreads the clients over them.
pub(crate) fn echo(address: SocketAddrV4, workers: usize) -> anyhow::Result<()> {
    let sockets = (0..workers).map(|_| shared_socket(address)).collect::<io::Result<Vec<_>>>();
    let sockets = sockets.with_context(|| format!("cannot listen on {address}"))?;
    thread::scope(|scope| sockets.iter().for_each(|socket| drop(scope.spawn(|| echo_on(socket)))));
    Ok(())
}

fn shared_socket(address: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn echo_on(socket: &UdpSocket) {
    let mut bytes = [0; 2048];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut bytes) else { continue };
        bytes[2] |= 0x80;
        // Whoever is gone does not miss it.
        let _ = socket.send_to(&bytes[..length], peer);
    }
}

/// Room for questions that arrive while somebody else has the CPU, in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Answers every question for an address with one, and every other with an empty answer.
pub(crate) fn upstream(address: SocketAddrV4) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    // What the kernel drops here is asked for again a fifth of a second later, which is nobody's fault but ours. The system
    // may give less.
    let _ = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve_stream(stream));
        }
    });
    let mut packets = vec![Packet::new(); BATCH];
    loop {
        let Ok(received) = receive(&socket, &mut packets, true) else { continue };
        let mut answered = 0;
        for index in 0..received {
            let packet = &mut packets[index];
            if let Some(length) = answer(&mut packet.bytes, packet.length) {
                packet.length = length;
                packets.swap(answered, index);
                answered += 1;
            }
        }
        let mut rest = &mut packets[..answered];
        while !rest.is_empty() {
            let sent = send(&socket, rest).unwrap_or(1).max(1);
            rest = &mut rest[sent..];
        }
    }
}

fn serve_stream(mut stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut bytes = [0; 2048];
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        let length = usize::from(u16::from_be_bytes(length)).min(512);
        stream.read_exact(&mut bytes[..length]).ok()?;
        let length = answer(&mut bytes, length)?;
        // In one piece: the second of two would wait until the first is acknowledged.
        let reply = [&(length as u16).to_be_bytes()[..], &bytes[..length]].concat();
        stream.write_all(&reply).ok()?;
    }
}

/// 198.51.100.1, for a day, so that nothing ends during a run.
const ADDRESS: [u8; 16] = [0xc0, 12, 0, 1, 0, 1, 0, 1, 0x51, 0x80, 0, 4, 198, 51, 100, 1];

/// An SOA of the root, so that what is not there is not asked again at once.
const AUTHORITY: [u8; 33] = [
    0, 0, 6, 0, 1, 0, 1, 0x51, 0x80, 0, 22, 0, 0, 0, 0, 0, 1, 0, 1, 0x51, 0x80, 0, 1, 0x51, 0x80, 0, 1, 0x51, 0x80, 0,
    1, 0x51, 0x80,
];

/// An OPT record: EDNS is answered with EDNS.
const EDNS: [u8; 11] = [0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0];

/// Turns a question into its answer in place; `None` where it is none.
pub(crate) fn answer(bytes: &mut [u8], length: usize) -> Option<usize> {
    let question = bytes.get(..length)?;
    if length < 17 || question[2] & 0x80 != 0 || question[4..6] != [0, 1] {
        return None;
    }
    let has_edns = question[10..12] != [0, 0];
    let mut end = 12;
    while *question.get(end)? != 0 {
        end += 1 + usize::from(question[end]);
    }
    let qtype = question.get(end + 1..end + 3)? == [0, 1];
    end += 5;
    let mut put = |record: &[u8]| {
        bytes.get_mut(end..end + record.len())?.copy_from_slice(record);
        end += record.len();
        Some(())
    };
    put(if qtype { &ADDRESS } else { &AUTHORITY })?;
    if has_edns {
        put(&EDNS)?;
    }
    bytes[2] = 0x80 | (bytes[2] & 1);
    bytes[3] = 0x80;
    bytes[6..12].copy_from_slice(&[0, u8::from(qtype), 0, u8::from(!qtype), 0, u8::from(has_edns)]);
    Some(end)
}
