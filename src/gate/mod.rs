//! The gate: a door to which the ruleset redirects TLS connections to ingress addresses. It reads the server name, asks
//! the gateway, and lets through or refuses.
//!
//! | file | does |
//! |---|---|
//! | `visit` | one connection: who, what name, may it, and how it is told |
//! | `dial` | where that name is, asked by ourselves |
//! | `tunnel` | bytes both ways, until somebody ends it |
//!
//! It is no relay: what comes without having been redirected is reset, and where a connection goes is never what the
//! client chose. Nothing of it is logged, since strangers make it happen: it is counted, and what breaks a rule is in the
//! record.

mod dial;
mod tunnel;
mod visit;

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener as Listener},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::dial::Dialled;
use crate::{
    audit::Process,
    gateway::{Gateway, Permit},
    lasting,
    metrics::Metrics,
    sys::splice::Pipes,
};

/// How much the gate takes on, and how long it waits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Connections, in all; fewer where so many would take more than a quarter of the files we may have open. 4,096.
    pub connections: usize,
    /// The same for one client address; the addresses of a v6 /64 have 16 times as many together, and a quarter of all at
    /// most. 256.
    pub per_client: usize,
    /// Connections that may be without a whole hello at once; a sixteenth of them a client's, a quarter a v6 /64's. 1,024.
    pub hellos: usize,
    /// Pipes, in all, for bytes that stay within the kernel; without one they are copied. 256: with 128 KiB and more in
    /// each, that is what one user may have.
    pub pipes: usize,
    /// How long a hello may take to arrive. 5 s.
    pub patience: Duration,
    /// How long a server may take to be found, and again to be reached. 5 s.
    pub dial: Duration,
    /// How often it is asked whether a connection may still be. 2 s.
    pub recheck: Duration,
    /// How long a connection may stand without a byte. 2 h.
    pub idle: Duration,
    /// How long what is open may go on after a stop. 1 s.
    pub drain: Duration,
}

/// Bound, not yet served.
#[derive(Debug)]
pub struct Gate {
    listeners: Vec<(SocketAddr, Listener)>,
}

/// An address that the gate cannot have.
#[derive(Debug, Error)]
#[error("cannot open the gate at {address}")]
pub struct OpenError {
    /// Which.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

impl fmt::Debug for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("House").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A gate that is being served.
#[derive(Debug)]
pub struct Serving {
    drain: Duration,
    cut: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Finds the process that has a client's socket to a destination. It may block for some milliseconds.
pub type Witness = Arc<dyn Fn(SocketAddr, SocketAddr) -> Option<Process> + Send + Sync>;

/// What the gate works with.
#[derive(Clone)]
pub struct House {
    /// Who judges.
    pub gateway: Arc<Gateway>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Bounds and patience.
    pub options: Options,
    /// Who knows the processes of this machine, where clients are some.
    pub witness: Option<Witness>,
}

/// The same, with what all visits share.
struct Inside {
    house: House,
    pipes: Pipes,
    /// Our ends of connections to servers.
    dialled: Dialled,
    /// Ends what is open.
    cut: CancellationToken,
}

/// What is said of it where it panics.
const DOOR: &str = "the gate";
const VISIT: &str = "a connection through the gate";

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 1024;

/// How long accepting rests after an error that would come back at once.
const PAUSE: Duration = Duration::from_millis(100);

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 4096,
            per_client: 256,
            hellos: 1024,
            pipes: 256,
            patience: Duration::from_secs(5),
            dial: Duration::from_secs(5),
            recheck: Duration::from_secs(2),
            idle: Duration::from_hours(2),
            drain: Duration::from_secs(1),
        }
    }
}

impl Gate {
    /// Binds every address, or none. A redirected connection arrives at the address of the interface that it came in by,
    /// or at loopback where it was made here.
    ///
    /// # Errors
    /// For the first address that cannot be bound.
    pub fn open(addresses: &[SocketAddr]) -> Result<Self, OpenError> {
        let bound = addresses.iter().map(|&address| bind(address).map_err(|source| OpenError { address, source }));
        Ok(Self { listeners: bound.collect::<Result<_, _>>()? })
    }

    /// Where it is; port 0 has become the port that was given.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|(address, _)| *address)
    }

    /// Takes connections until `stop` is cancelled.
    ///
    /// # Errors
    /// When a socket cannot be handed to the runtime.
    pub fn serve(self, house: House, runtime: &Handle, stop: CancellationToken) -> io::Result<Serving> {
        let Options { pipes, drain, .. } = house.options;
        let (pipes, cut) = (Pipes::new(pipes), CancellationToken::new());
        let inside = Arc::new(Inside { house, pipes, dialled: Dialled::default(), cut: cut.clone() });
        let tasks = TaskTracker::new();
        let _runtime = runtime.enter();
        for (_, listener) in self.listeners {
            let listener = TcpListener::from_std(listener)?;
            tasks.spawn(keep_accepting(listener, Arc::clone(&inside), stop.clone(), tasks.clone()));
        }
        Ok(Serving { drain, cut, stop, tasks })
    }
}

impl Serving {
    /// Returns once the gate is closed: after `stop` was cancelled and what was open then has ended or been cut.
    pub async fn stopped(self) {
        self.stop.cancelled().await;
        self.tasks.close();
        if time::timeout(self.drain, self.tasks.wait()).await.is_err() {
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<(SocketAddr, Listener)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = Listener::from(socket);
    Ok((listener.local_addr()?, listener))
}

async fn keep_accepting(listener: TcpListener, inside: Arc<Inside>, stop: CancellationToken, tasks: TaskTracker) {
    lasting::task(&inside.house.metrics, DOOR, || accept(&listener, &inside, &stop, &tasks)).await;
}

async fn accept(listener: &TcpListener, inside: &Arc<Inside>, stop: &CancellationToken, tasks: &TaskTracker) {
    let house = &inside.house;
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, client)) => {
                let Options { connections, per_client, .. } = house.options;
                match house.gateway.access().pass(client.ip(), connections, per_client) {
                    Some(permit) => drop(tasks.spawn(take_in(Arc::clone(inside), stream, client, permit))),
                    None => {
                        house.metrics.gate_full.increment();
                        visit::reset(&stream);
                    }
                }
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

async fn take_in(inside: Arc<Inside>, stream: TcpStream, client: SocketAddr, permit: Permit) {
    let _ = lasting::once(&inside.house.metrics, VISIT, visit::serve(&inside, stream, client)).await;
    drop(permit);
}
