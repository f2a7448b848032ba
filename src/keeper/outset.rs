//! The rules before there is a forwarder: what a keeper does first, by a process that then ends.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    Terms,
    kernel::Failed,
    message::{DENIED_AT_ONCE, Reply, Request},
    notice::Trouble,
    service::Service,
};

/// Puts the rules in force, and in them what an earlier forwarder had learned. They stay.
///
/// # Errors
/// What is not in force, in words.
pub fn set_up(terms: Terms, learned: &[IpAddr], lifetime: Duration) -> Result<(), String> {
    let words = |(trouble, words): Failed| format!("{trouble}: {words}");
    let mut service = Service::start(terms, Instant::now()).map_err(words)?;
    let lifetime = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    for addresses in learned.chunks(DENIED_AT_ONCE) {
        let request = Request::Deny { addresses: addresses.to_vec(), lifetime };
        let (reply, trouble) = service.answer(request, None, || Err(String::new()));
        if let Reply::Refused(refusal) = reply {
            return Err(words(trouble.unwrap_or((Trouble::Kernel, refusal.to_string()))));
        }
    }
    Ok(())
}
