//! What a client sends and takes through the appliance.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use socket2::SockRef;

use crate::{
    internet::{PING, STREAM, hello},
    machine::own_cpu_time,
    road::{ARRIVAL, CLIENT, CLIENT_CPU, Road, SITE, at, pin},
};

/// Connections made one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SetUp {
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// Nothing counts before a stream has found its pace.
const WARM_UP: Duration = Duration::from_millis(200);

/// Small, as a voice's or a game's.
const DATAGRAM: [u8; 64] = [b'd'; 64];

/// Datagrams between two looks at the clock.
const BURST: usize = 64;

/// How many bytes a second one connection takes from the server at `to`.
pub(crate) fn stream(road: &Road, to: Ipv4Addr, time: Duration) -> anyhow::Result<f64> {
    road.client.inside(|| {
        pin(CLIENT_CPU)?;
        let mut stream = connect(to, &said(STREAM)?)?;
        let mut bytes = vec![0; 256 << 10];
        take_for(&mut stream, &mut bytes, WARM_UP)?;
        let began = Instant::now();
        let taken = take_for(&mut stream, &mut bytes, time)?;
        Ok(taken as f64 / began.elapsed().as_secs_f64())
    })
}

fn take_for(stream: &mut TcpStream, bytes: &mut [u8], time: Duration) -> anyhow::Result<usize> {
    let (end, mut taken) = (Instant::now() + time, 0);
    while Instant::now() < end {
        let length = stream.read(bytes).context("a stream broke off")?;
        anyhow::ensure!(length > 0, "a stream ended");
        taken += length;
    }
    Ok(taken)
}

/// Connects, says hello, waits for the server's first byte and hangs up, so many times. The rate is that of all but the
/// slowest hundredth: what the machine held up for others is not the appliance's.
pub(crate) fn set_up(road: &Road, to: Ipv4Addr, times: usize) -> anyhow::Result<SetUp> {
    road.client.inside(|| {
        pin(CLIENT_CPU)?;
        // The first one's way is longer: neighbours are looked for, and names.
        let said = said(PING)?;
        ping(to, &said)?;
        let mut delays = (0..times).map(|_| ping(to, &said)).collect::<anyhow::Result<Vec<_>>>()?;
        let [p50, p99] = percentiles(&mut delays);
        let quick = &delays[..times - times / 100];
        let whole: Duration = quick.iter().sum();
        Ok(SetUp { per_second: quick.len() as f64 / whole.as_secs_f64(), p50, p99 })
    })
}

fn ping(to: Ipv4Addr, said: &[u8]) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut stream = connect(to, said)?;
    stream.read_exact(&mut [0]).context("no first byte")?;
    Ok(began.elapsed())
}

/// The median and what 99 of 100 stay below; puts them in order.
pub(crate) fn percentiles(delays: &mut [Duration]) -> [Duration; 2] {
    delays.sort_unstable();
    [50, 99].map(|share| delays.get(delays.len() * share / 100).copied().unwrap_or_default())
}

/// What is said first, made before time is taken.
fn said(wish: u8) -> anyhow::Result<Vec<u8>> {
    Ok([hello()?, vec![wish]].concat())
}

/// A connection that ends with a reset, so that no port of the client's waits for anything afterwards.
fn connect(to: Ipv4Addr, said: &[u8]) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(at(to, 443)).context("cannot connect")?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_nodelay(true)?;
    stream.write_all(said)?;
    Ok(stream)
}

/// How many small datagrams of one flow arrive in a second of CPU time, sent as fast as they leave. Nobody reads them:
/// who sends one carries it all the way, and a reader would only be in the way.
pub(crate) fn datagrams(road: &Road, time: Duration) -> anyhow::Result<f64> {
    let server = road.internet.inside(|| UdpSocket::bind(at(SITE, 0)))?;
    let client = road.client.inside(|| UdpSocket::bind(at(CLIENT, 0)))?;
    client.connect(server.local_addr()?)?;
    // A flow that both have spoken in.
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    }
    client.send(b"?")?;
    let (_, peer) = server.recv_from(&mut [0; 64]).context("a datagram did not arrive")?;
    server.send_to(b"!", peer)?;
    client.recv(&mut [0; 64]).context("a datagram did not come back")?;
    let arrived = || road.internet.inside(packets_in);
    let before = arrived()?;
    let took = road.client.inside(|| -> anyhow::Result<Duration> {
        pin(CLIENT_CPU)?;
        let (began, before) = (Instant::now(), own_cpu_time());
        while began.elapsed() < time {
            (0..BURST).for_each(|_| drop(client.send(&DATAGRAM)));
        }
        Ok(own_cpu_time() - before)
    })?;
    Ok((arrived()? - before) as f64 / took.as_secs_f64())
}

/// Packets that have come to the internet of the calling thread.
fn packets_in() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(ARRIVAL)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).context("nothing counts packets")
}
