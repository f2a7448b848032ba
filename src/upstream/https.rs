//! Questions over HTTPS: HTTP/2, one POST for each (RFC 8484), by hickory.
//!
//! The layer that is used is hickory's `ConnectionProvider` and `DnsExchange`, below its resolver: the resolver turns
//! NXDOMAIN and SERVFAIL into errors and loses what else the reply said. What comes back here are the server's bytes.
//! HTTP/2 says which reply belongs to which question, so ids are 0, as RFC 8484 section 4.1 wants, and are
//! compared all the same, with the whole question.
//!
//! hickory's bounds: its queue of 32 is of no effect, since every question goes through a sender of its own; how
//! many requests a server takes at a time, and that more of them wait, is HTTP/2's matter. Ours is the
//! ledger's. It says nothing when an idle connection ends; the next question finds out and is asked again on a new one.
//! What remains: a reply that it cannot decode is lost, there is no padding, and none but the default port is named in
//! the request's authority.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hickory_proto::op::{DnsRequest, DnsResponse, Message};
use hickory_resolver::{
    ConnectionProvider, PoolContext, TlsConfig,
    config::{ConnectionConfig, ResolverOpts},
    net::{
        DnsHandle, NetError,
        runtime::{RuntimeProvider, TokioRuntimeProvider, iocompat::AsyncIoTokioAsStd},
        xfer::{DnsExchange, FirstAnswer},
    },
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    Outlet,
    connections::{Ledger, Line, Lost, Question, STALL},
    vitals::Vitals,
};
use crate::wire::query::Fit;

/// A connection. It ends when dropped.
pub(super) struct Session {
    exchange: DnsExchange<Runtime>,
    /// Holds hickory's tasks, which would end without it.
    _runtime: Runtime,
}

/// hickory's own, but for whose the sockets are.
#[derive(Clone)]
struct Runtime {
    tokio: TokioRuntimeProvider,
    outlet: Outlet,
}

/// How long a request may take: longer than anybody waits, since a late reply still tells of the server.
const REQUEST: Duration = Duration::from_secs(5);

/// A connection to the server that can prove this name. Takes as long as it takes.
pub(super) async fn connect(
    outlet: &Outlet,
    server: SocketAddr,
    (name, path): (&ServerName<'static>, &Arc<str>),
    tls: &ClientConfig,
) -> io::Result<Session> {
    let mut connection = ConnectionConfig::https(name.to_str().into(), Some(Arc::clone(path)));
    connection.port = server.port();
    let mut options = ResolverOpts::default();
    options.timeout = REQUEST;
    let context = PoolContext::new(options, TlsConfig { config: tls.clone() });
    let runtime = Runtime { tokio: TokioRuntimeProvider::new(), outlet: outlet.clone() };
    let connecting = runtime.new_connection(server.ip(), &connection, &context).map_err(io::Error::other)?;
    let exchange = connecting.await.map_err(io::Error::other)?;
    Ok(Session { exchange, _runtime: runtime })
}

impl RuntimeProvider for Runtime {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = <TokioRuntimeProvider as RuntimeProvider>::Udp;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    /// How long it may take is bounded by who waits for it.
    fn connect_tcp(
        &self,
        server: SocketAddr,
        _: Option<SocketAddr>,
        _: Option<Duration>,
    ) -> Pin<Box<dyn Future<Output = io::Result<Self::Tcp>> + Send>> {
        let outlet = self.outlet.clone();
        Box::pin(async move { outlet.tcp(server).await.map(AsyncIoTokioAsStd) })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<Self::Udp>> + Send>> {
        self.tokio.bind_udp(local, server)
    }
}

/// Asks what comes in and hands out what comes back, until there is nothing to ask for a while.
///
/// # Errors
/// When the connection breaks or stalls.
pub(super) async fn converse(
    session: &Session,
    line: &Line,
    questions: &mut mpsc::Receiver<Question>,
    ledger: &mut Ledger,
) -> io::Result<()> {
    let mut out = FuturesUnordered::new();
    let mut progress = Instant::now();
    loop {
        let end = progress + if ledger.is_empty() { line.idle() } else { STALL };
        tokio::select! {
            question = questions.recv(), if !ledger.is_full() => {
                let Some(question) = question else { return Ok(()) };
                if ledger.is_empty() {
                    progress = Instant::now();
                }
                let packet = question.query.to_packet(0, question.edns);
                let id = ledger.enter(question);
                match Message::from_vec(&packet) {
                    Ok(message) => {
                        let reply = session.exchange.send(DnsRequest::from(message)).first_answer();
                        out.push(async move { (id, reply.await) });
                    }
                    Err(_) => ledger.settle(id, Err(Lost::Unreadable), &line.vitals),
                }
            }
            Some((id, outcome)) = out.next() => {
                // What hickory gives up is no sign of life.
                if !matches!(outcome, Err(NetError::Timeout)) {
                    progress = Instant::now();
                }
                deliver(id, outcome, ledger, &line.vitals)?;
            }
            () = sleep_until(end) => {
                return if ledger.is_empty() { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) };
            }
        }
    }
}

/// Tells trouble with one question from trouble with the connection.
fn deliver(id: u16, outcome: Result<DnsResponse, NetError>, ledger: &mut Ledger, vitals: &Vitals) -> io::Result<()> {
    let Some(query) = ledger.query(id) else { return Ok(()) };
    let outcome = match outcome {
        Ok(response) => {
            let packet = response.into_buffer();
            match query.fit(0, &packet) {
                Fit::Reply => Ok(packet),
                Fit::Bare => Err(Lost::Bare),
                Fit::NearMiss => {
                    vitals.metrics().upstream_near_misses.increment();
                    Err(Lost::Broken)
                }
            }
        }
        Err(NetError::Proto(_) | NetError::RequestTooLarge) => Err(Lost::Unreadable),
        Err(NetError::H2(error)) if error.is_reset() => Err(Lost::Broken),
        Err(NetError::Timeout) => Err(Lost::Broken),
        // A status other than success, or another type of content.
        Err(NetError::Msg(text)) => {
            vitals.trouble(&io::Error::other(text));
            Err(Lost::Broken)
        }
        Err(error) => return Err(io::Error::other(error)),
    };
    ledger.settle(id, outcome, vitals);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{name::DomainName, wire::query::Query};

    fn any_query() -> impl Strategy<Value = Query> {
        let label = prop::collection::vec(any::<u8>(), 1..64);
        let labels = prop::collection::vec(label, 0..4);
        (labels, any::<u16>(), any::<bool>(), any::<bool>()).prop_filter_map(
            "a name is at most 255 bytes",
            |(labels, qtype, dnssec_ok, checking_disabled)| {
                let mut wire = Vec::new();
                for label in labels {
                    wire.push(u8::try_from(label.len()).ok()?);
                    wire.extend(label);
                }
                wire.push(0);
                let name = DomainName::from_wire(&wire).ok()?;
                Some(Query { name, qtype, dnssec_ok, checking_disabled })
            },
        )
    }

    proptest! {
        /// hickory decodes the packet and encodes it again.
        #[test]
        fn what_hickory_sends_is_what_we_wrote(query in any_query(), edns in any::<bool>()) {
            let packet = query.to_packet(0, edns);
            prop_assert_eq!(Message::from_vec(&packet).unwrap().to_vec().unwrap(), packet);
        }
    }
}
