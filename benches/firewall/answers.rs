//! Questions to the daemon, whose answers are in its cache: what a lease adds to one.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    internet::name,
    road::{CLIENT_CPU, RESOLVER, Road, at, pin},
    traffic::percentiles,
};

/// What so many answers came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Of daemon and keeper, for each answer.
    pub(crate) cpu: Duration,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// The names that are asked for, each with one address.
pub(crate) const NAMES: u32 = 500;

/// Names with as many addresses as an answer may open, and how many of them each client asks for.
const FILLING: u32 = 16;
pub(crate) const FILLED: u32 = 125;

/// The `number`th client.
pub(crate) fn client(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 78, 1, 0)) + number)
}

/// Has so many clients hold as many leases as they may; that makes [`FILLING`] times [`FILLED`] for each.
pub(crate) fn fill(road: &Road, clients: u32) -> anyhow::Result<u32> {
    let questions: Vec<_> = (0..FILLED).map(|index| question(&name(NAMES + index, FILLING))).collect();
    for number in 0..clients {
        ask(road, client(number), &questions, 1)?;
    }
    Ok(clients * FILLED * FILLING)
}

/// Each of these clients asks for every name, `times` times, with so many questions on the way.
pub(crate) fn measure(road: &Road, clients: &[Ipv4Addr], times: usize, window: usize) -> anyhow::Result<Cost> {
    let questions: Vec<_> = (0..NAMES).map(|index| question(&name(index, 1))).collect();
    let daemon = road.daemon.as_ref().context("nobody to ask")?;
    let before = daemon.cpu_time();
    let mut delays = Vec::new();
    for &client in clients {
        for _ in 0..times {
            delays.extend(ask(road, client, &questions, window)?);
        }
    }
    let count = u32::try_from(delays.len())?;
    let cpu = (daemon.cpu_time() - before) / count.max(1);
    let [p50, p99] = percentiles(&mut delays);
    Ok(Cost { cpu, p50, p99 })
}

/// Asks all of it from one port; how long each answer took.
fn ask(road: &Road, client: Ipv4Addr, questions: &[Vec<u8>], window: usize) -> anyhow::Result<Vec<Duration>> {
    road.client.inside(|| {
        pin(CLIENT_CPU)?;
        let socket = UdpSocket::bind(at(client, 0))?;
        socket.connect(at(RESOLVER, 53))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut sent = Vec::with_capacity(questions.len());
        let mut delays = Vec::with_capacity(questions.len());
        let mut answer = [0; 1500];
        while delays.len() < questions.len() {
            while sent.len() < questions.len() && sent.len() - delays.len() < window {
                let mut bytes = questions[sent.len()].clone();
                bytes[..2].copy_from_slice(&u16::try_from(sent.len())?.to_be_bytes());
                sent.push(Instant::now());
                socket.send(&bytes)?;
            }
            let length = socket.recv(&mut answer).context("an answer did not come")?;
            let answer = &answer[..length];
            anyhow::ensure!(length > 12 && answer[3] & 15 == 0 && answer[7] > 0, "not the answer: {answer:?}");
            let began = sent.get(usize::from(u16::from_be_bytes([answer[0], answer[1]]))).context("nobody asked")?;
            delays.push(began.elapsed());
        }
        Ok(delays)
    })
}

/// For an IPv4 address, recursion desired.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or_default());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// Opens the site to the client that streams and connects.
pub(crate) fn resolve_site(road: &Road) -> anyhow::Result<()> {
    ask(road, crate::road::CLIENT, &[question("www.example.net")], 1).map(drop)
}
