//! The addresses of one name: A and AAAA, at the end of its own alias chain.

use std::{net::IpAddr, time::Duration};

use thiserror::Error;

use crate::{
    name::DomainName,
    upstream::{Failure, Query, Upstream},
    wire::{
        CLASS_IN, Rcode,
        answer::{Answer, Asked, BadAnswer},
        rtype,
    },
};

/// What a lookup brought.
#[derive(Debug)]
pub struct Looked {
    /// What was looked up.
    pub name: DomainName,
    /// Whatever one of the two questions brought, though the other failed.
    pub addresses: Vec<IpAddr>,
    /// The aliases on the way there.
    pub aliases: Vec<DomainName>,
    /// How long that holds, or why one of the two has no answer.
    pub outcome: Result<Duration, NoAnswer>,
}

/// Why a question has no answer.
#[derive(Debug, Error)]
pub enum NoAnswer {
    /// Nobody answered.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// What came is none.
    #[error(transparent)]
    Bad(#[from] BadAnswer),
    /// The server says that it cannot.
    #[error("the upstream server says code {0}")]
    Trouble(u16),
    /// The server cut its answer even over TCP.
    #[error("the upstream server cut its answer")]
    Cut,
}

/// Asks for both, of the servers that our own questions go to.
pub async fn look_up(upstream: &Upstream, name: DomainName) -> Looked {
    let (v4, v6) = tokio::join!(ask(upstream, &name, rtype::A), ask(upstream, &name, rtype::AAAA));
    let answers = [&v4, &v6].into_iter().flatten();
    let aliases = answers.clone().flat_map(Answer::aliases).cloned().collect();
    let addresses = answers.flat_map(Answer::addresses).copied().collect();
    let ttl = |answer: &Answer| Duration::from_secs(answer.ttl().unwrap_or_default().into());
    let outcome = v4.and_then(|v4| Ok(ttl(&v4).min(ttl(&v6?))));
    Looked { name, addresses, aliases, outcome }
}

async fn ask(upstream: &Upstream, name: &DomainName, qtype: u16) -> Result<Answer, NoAnswer> {
    let query = Query { name: name.clone(), qtype, dnssec_ok: false, checking_disabled: false };
    let reply = upstream.look_up(query).await?;
    let asked = Asked { name: name.as_name(), qtype, qclass: CLASS_IN, dnssec_ok: false };
    let answer = Answer::read(&reply.packet, &asked)?;
    match answer.rcode() {
        _ if answer.is_truncated() => Err(NoAnswer::Cut),
        Rcode::NOERROR | Rcode::NXDOMAIN => Ok(answer),
        other => Err(NoAnswer::Trouble(other.0)),
    }
}
