//! The internet: an upstream server that makes up its answers, and one server of streams at every address. Their
//! threads end with the bench.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};

use crate::road::{INGRESS, SERVER_CPU, SITE, UPSTREAM, pin};

/// The own ingress.
pub(crate) const OWN: &str = "connect.acme.example";

/// What a client wants, said behind its hello: one byte, or bytes until it goes.
pub(crate) const PING: u8 = b'p';
pub(crate) const STREAM: u8 = b's';

/// An answer holds for the whole run.
const TTL: u32 = 86_400;

/// Who says nothing is given up, so that one lost client does not hold the others up.
const SILENCE: Duration = Duration::from_secs(5);

/// The first bytes of a TLS client that wants the own ingress; a new connection's each time, always of this length.
pub(crate) fn hello() -> anyhow::Result<Vec<u8>> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut bytes = Vec::new();
    ClientConnection::new(Arc::new(config), ServerName::try_from(OWN)?)?.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// A name that leads to so many addresses of its own, at most 16.
pub(crate) fn name(index: u32, addresses: u32) -> String {
    format!("n{index}x{addresses}.example.net")
}

/// Begins to serve in the network of the calling thread.
pub(crate) fn serve() -> anyhow::Result<()> {
    let upstream = UdpSocket::bind((UPSTREAM, 53))?;
    let streams = TcpListener::bind(("0.0.0.0", 443))?;
    let skipped = hello()?.len();
    thread::spawn(move || answer_all(&upstream));
    thread::spawn(move || {
        let _ = pin(SERVER_CPU);
        streams.incoming().flatten().for_each(|stream| drop(take(stream, skipped)));
    });
    Ok(())
}

/// Answers the quick ones at once: a thread for each would cost more than what is measured.
fn take(mut stream: TcpStream, skipped: usize) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    let mut said = vec![0; skipped + 1];
    stream.read_exact(&mut said)?;
    if said.last() == Some(&PING) {
        return stream.write_all(&[PING]);
    }
    thread::spawn(move || {
        let bytes = vec![STREAM; 256 << 10];
        while stream.write_all(&bytes).is_ok() {}
    });
    Ok(())
}

fn answer_all(socket: &UdpSocket) {
    let mut bytes = [0; 1500];
    while let Ok((length, peer)) = socket.recv_from(&mut bytes) {
        if let Some(answer) = answer(&bytes[..length]) {
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// `None` where it is no question.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let first = *question.get(HEADER)?;
    let label = std::str::from_utf8(question.get(HEADER + 1..HEADER + 1 + usize::from(first))?).ok()?;
    let name_end = HEADER + question.get(HEADER..)?.iter().position(|byte| *byte == 0)?;
    let end = name_end + 5;
    let is_v4 = question.get(name_end + 1..name_end + 3)? == [0, 1];
    let addresses = if is_v4 { addresses_of(label) } else { Vec::new() };
    let mut answer = question.get(..end)?.to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..HEADER].copy_from_slice(&[0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
    if addresses.is_empty() {
        // Without a record of the zone nobody may remember that there is nothing (RFC 2308 section 5).
        answer[9] = 1;
        answer.extend([0xc0, HEADER as u8, 0, 6, 0, 1]);
        answer.extend(TTL.to_be_bytes());
        answer.extend([0, 22, 0, 0]);
        (0..5).for_each(|_| answer.extend(TTL.to_be_bytes()));
    }
    for address in addresses {
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1]);
        answer.extend(TTL.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

fn addresses_of(label: &str) -> Vec<Ipv4Addr> {
    let label = label.to_ascii_lowercase();
    let numbered = label.strip_prefix('n').and_then(|rest| rest.split_once('x'));
    match numbered.and_then(|(index, count)| Some((index.parse::<u32>().ok()?, count.parse::<u32>().ok()?))) {
        Some((index, count)) => (0..count).map(|nth| made_up(index * 16 + nth)).collect(),
        None if label == "www" => vec![SITE],
        None => vec![INGRESS],
    }
}

/// Global addresses without number that nobody serves.
pub(crate) fn made_up(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(5, 0, 0, 0)) + number)
}
