//! The TCP door: who is let in, and what becomes of a connection.

use std::{io, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    House,
    introduction::{Introduction, introduce},
    stream::{End, Frames, Patience, converse},
};
use crate::{audit::Transport, lasting};

/// What is said of it where it panics.
const DOOR: &str = "the TCP door";
const CONNECTION: &str = "a TCP connection";

/// How long a connection may stand without a question.
const IDLE: Duration = Duration::from_secs(10);

/// The same while more than half of all connections are taken.
const IDLE_WHEN_CROWDED: Duration = Duration::from_secs(2);

/// How long a question may take to arrive once it has begun.
const MESSAGE: Duration = Duration::from_secs(5);

/// How long a client may take to take replies.
const WRITE: Duration = Duration::from_secs(5);

/// How long accepting rests after an error that would come back at once, such as a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until told to stop; each is a task of `tasks`.
pub(super) fn serve(
    listener: std::net::TcpListener,
    house: House,
    runtime: &Handle,
    stop: CancellationToken,
    tasks: &TaskTracker,
) -> io::Result<()> {
    let _runtime = runtime.enter();
    let listener = TcpListener::from_std(listener)?;
    let connections = tasks.clone();
    tasks.spawn(async move {
        lasting::task(&house.metrics, DOOR, || accept(&listener, &house, &stop, &connections)).await;
    });
    Ok(())
}

async fn accept(listener: &TcpListener, house: &House, stop: &CancellationToken, tasks: &TaskTracker) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                let Some(permit) = house.access.connect(peer.ip()) else { continue };
                house.metrics.connections_accepted.increment();
                let (house, stop) = (house.clone(), stop.clone());
                tasks.spawn(async move {
                    let served = serve_one(&house, stream, &stop);
                    if let Some(end) = lasting::once(&house.metrics, CONNECTION, served).await {
                        count(&house, end);
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                house.metrics.accept_errors.increment();
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    stop.run_until_cancelled(time::sleep(PAUSE)).await;
                }
            }
        }
    }
}

async fn serve_one(house: &House, mut stream: TcpStream, stop: &CancellationToken) -> End {
    let peer = match stream.set_nodelay(true).and_then(|()| stream.peer_addr()) {
        Ok(peer) => peer,
        Err(_) => return End::Broken,
    };
    let idle = || if house.access.is_crowded() { IDLE_WHEN_CROWDED } else { IDLE };
    let patience = Patience { pipeline: house.access.limits().pipeline, message: MESSAGE, write: WRITE, idle: &idle };
    let (reader, writer) = stream.split();
    let mut frames = Frames::new(reader);
    let asker = loop {
        match introduce(&house.access, peer, Transport::Tcp, frames.unused()) {
            Introduction::Complete(asker, length) => {
                frames.skip(length);
                break asker;
            }
            Introduction::Incomplete => {}
            Introduction::Malformed => return End::Malformed,
        }
        match stop.run_until_cancelled(frames.more(MESSAGE)).await {
            Some(Ok(())) => {}
            Some(Err(end)) => return end,
            None => return End::Stopped,
        }
    };
    converse(frames, writer, patience, stop, |question| house.answer(question, asker)).await
}

fn count(house: &House, end: End) {
    let metrics = &house.metrics;
    match end {
        End::Closed | End::Stopped | End::Broken => {}
        End::Idle => metrics.connections_idle.increment(),
        End::Slow => metrics.connections_slow.increment(),
        End::NotReading => metrics.connections_not_reading.increment(),
        End::Malformed => metrics.connections_malformed.increment(),
    }
}
