//! One connection: who comes, what server name it asks for, whether it may, and how it is told.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

use super::{
    House, Inside,
    dial::{self, Server},
    tunnel,
};
use crate::{
    audit::Process,
    gateway::{Admission, Arrival, Ticket},
    lasting,
    sys::redirect::{canonical, original_destination},
    wire::hello::{ClientHello, Hello, HelloReader},
};

/// A fatal alert `unrecognized_name` (RFC 6066 section 3) in a record of TLS 1.2, which every client reads before the
/// version is settled. It says to a person that the name is the matter.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// How long a client may take to read that and close, and how much it may still send.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: usize = 1 << 16;

/// How a connection ended before it was let through.
pub(super) enum Turned {
    /// It said what it wanted, in TLS, so it can be told in TLS.
    Told,
    /// Nothing that could be answered.
    Reset,
}

/// What came first, and the bytes it came in.
struct Introduction {
    hello: Hello,
    bytes: Vec<u8>,
}

/// A connection, from its arrival to its end.
pub(super) async fn serve(inside: &Inside, mut stream: TcpStream, client: SocketAddr) {
    let passed = tokio::select! {
        passed = introduce(inside, &mut stream, canonical(client)) => passed,
        () = inside.cut.cancelled() => Err(Turned::Reset),
    };
    match passed {
        Ok((ticket, server)) => {
            inside.house.metrics.gate_passed.increment();
            tunnel::carry(inside, stream, server, ticket).await;
        }
        Err(Turned::Told) => say_farewell(stream).await,
        Err(Turned::Reset) => reset(&stream),
    }
}

/// Everything up to the server's side of the connection, which has got what the client said so far.
async fn introduce<'i>(
    inside: &'i Inside,
    stream: &mut TcpStream,
    client: SocketAddr,
) -> Result<(Ticket, Server<'i>), Turned> {
    let house = &inside.house;
    let metrics = &house.metrics;
    let destination = destination_of(stream).inspect_err(|_| metrics.gate_direct.increment())?;
    if house.gateway.access().admits(client.ip()) == Admission::Refused {
        metrics.gate_stranger.increment();
        return Err(Turned::Reset);
    }
    let (arrival, Introduction { hello, bytes }) = hear(inside, stream, client, destination).await?;
    if inside.dialled.holds(client) {
        metrics.gate_loop.increment();
        return Err(Turned::Reset);
    }
    let hello = readable(house, &arrival, hello)?;
    let refused = || {
        metrics.gate_refused.increment();
        Turned::Told
    };
    let mut ticket = house.gateway.admit(arrival, hello).ok_or_else(refused)?;
    let found = dial::find(house, &ticket).await.inspect_err(|_| metrics.gate_unresolved.increment())?;
    if !house.gateway.admits_found(&mut ticket, found.aliases, found.addresses) {
        return Err(refused());
    }
    let server = dial::reach(inside, &found.servers, &bytes).await;
    let server = server.inspect_err(|_| metrics.gate_unreachable.increment())?;
    Ok((ticket, server))
}

/// What the client dialled. Nothing but a redirect leads here rightly: whoever dials the gate itself is reset.
fn destination_of(stream: &TcpStream) -> Result<SocketAddr, Turned> {
    let local = stream.local_addr().map_err(|_| Turned::Reset)?;
    let destination = original_destination(stream, local).map_err(|_| Turned::Reset)?;
    if destination == canonical(local) { Err(Turned::Reset) } else { Ok(destination) }
}

/// Reads until it is clear what speaks, within the bounds on time and on who may be without a hello at once.
async fn hear(
    inside: &Inside,
    stream: &mut TcpStream,
    client: SocketAddr,
    destination: SocketAddr,
) -> Result<(Arrival, Introduction), Turned> {
    let house = &inside.house;
    let Some(_place) = house.gateway.access().hear(client.ip(), house.options.hellos) else {
        house.metrics.gate_full.increment();
        return Err(Turned::Reset);
    };
    // Now, while it waits for us: a process that has got its refusal may be gone.
    let arrival = Arrival { client, destination, process: process_of(house, client, destination).await };
    match time::timeout(house.options.patience, read_hello(stream)).await {
        Ok(Some(introduction)) => Ok((arrival, introduction)),
        Ok(None) => {
            house.metrics.gate_gone.increment();
            Err(Turned::Reset)
        }
        Err(_) => {
            house.metrics.gate_slow.increment();
            house.gateway.refuse_unreadable(&arrival);
            Err(Turned::Reset)
        }
    }
}

async fn process_of(house: &House, client: SocketAddr, destination: SocketAddr) -> Option<Process> {
    let witness = house.witness.clone()?;
    let found = tokio::task::spawn_blocking(move || witness(client, destination)).await;
    lasting::joined(&house.metrics, found).flatten()
}

/// `None` when the client went before it was clear.
async fn read_hello(stream: &mut TcpStream) -> Option<Introduction> {
    let (mut reader, mut bytes) = (HelloReader::default(), Vec::new());
    loop {
        let mut piece = [0; 2048];
        let length = stream.read(&mut piece).await.ok().filter(|length| *length > 0)?;
        let piece = piece.get(..length)?;
        // The reader has its own end (`MAX_FLIGHT`), and with it this has.
        bytes.extend_from_slice(piece);
        let hello = reader.take(piece);
        if hello != Hello::NeedMore {
            return Some(Introduction { hello, bytes });
        }
    }
}

fn readable(house: &House, arrival: &Arrival, hello: Hello) -> Result<ClientHello, Turned> {
    match hello {
        Hello::Complete(hello) => Ok(hello),
        Hello::NeedMore | Hello::NotTls | Hello::Malformed | Hello::TooLong => {
            house.metrics.gate_unreadable.increment();
            house.gateway.refuse_unreadable(arrival);
            Err(Turned::Reset)
        }
    }
}

/// The alert, and then an end that lets it be read: a reset would take it out of the client's hands.
async fn say_farewell(mut stream: TcpStream) {
    let farewell = async {
        stream.write_all(&UNRECOGNIZED_NAME).await?;
        stream.shutdown().await?;
        let mut left = FAREWELL_BYTES;
        let mut piece = [0; 2048];
        while left > 0 {
            let length = stream.read(&mut piece).await?;
            if length == 0 {
                break;
            }
            left = left.saturating_sub(length);
        }
        std::io::Result::Ok(())
    };
    // However it ends, the connection does.
    let _ = time::timeout(FAREWELL, farewell).await;
}

/// Has a connection end with a reset, once it is dropped.
pub(super) fn reset(stream: &TcpStream) {
    // Should that fail, it is closed all the same.
    let _ = stream.set_zero_linger();
}
