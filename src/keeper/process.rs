//! The keeper's life: one thread that waits for requests, logged packets and changes, and ends with its peer.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::signal::{SigSet, Signal},
};

use super::{
    LONGEST, Terms,
    message::{Reply, Request},
    notice::{Denied, Notice, Trouble, Way},
    owner::clean,
    service::Service,
    tally::{Kind, Tally},
};
use crate::{
    firewall::LOG_GROUP,
    sys::{
        netlink::{LoggedPacket, PacketLog},
        seqpacket::{Channel, timeout},
    },
};

/// The forwarder waits for each reply, so it reads.
const PATIENCE: Duration = Duration::from_secs(1);
/// Requests that are served before others get their turn.
const AT_ONCE: usize = 64;
/// Packets told at once; the ruleset lets through 20 a second of each kind.
const PACKETS: usize = 256;
/// Connections are looked through this long after the first address was denied: many come together.
const GATHER: Duration = Duration::from_millis(200);
const SWEEP: Duration = Duration::from_secs(30);

/// Runs until the forwarder is gone. `terms` reads the configuration, now and at each reload.
///
/// When the forwarder dies, the table stays; when it said goodbye, `on_stop_remove` decides.
///
/// # Errors
/// Why nothing can be enforced; a notice has said so, with words.
pub fn run(
    requests: Channel,
    notices: Channel,
    mut terms: impl FnMut() -> Result<Terms, String>,
) -> Result<(), Trouble> {
    outlive_stop_signals();
    let teller = Teller(notices);
    let started = terms().map_err(|words| (Trouble::Configuration, words));
    match started.and_then(|terms| Service::start(terms, Instant::now())) {
        Ok(service) => Life::begin(service, requests, teller).live(&mut terms),
        Err((trouble, words)) => {
            teller.tell_trouble(trouble, &words);
            Err(trouble)
        }
    }
}

/// Whoever stops the forwarder stops its children too, before it could say goodbye; and whoever has it open its files
/// again may tell all. We end with it anyway.
fn outlive_stop_signals() {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1].into_iter().collect();
    // Where a sandbox forbids it, the table stays whatever `on_stop_remove` says.
    let _ = signals.thread_block();
}

struct Life {
    service: Service,
    requests: Channel,
    teller: Teller,
    log: Option<PacketLog>,
    tally: Tally,
    /// When connections are looked through, and when ended leases are dropped.
    cut_at: Option<Instant>,
    sweep_at: Instant,
    /// Was it told that the table is not as it should be?
    told_lost: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    Wait,
    End,
}

impl Life {
    fn begin(mut service: Service, requests: Channel, teller: Teller) -> Self {
        let log = PacketLog::of(LOG_GROUP).map_err(|error| {
            teller.tell_trouble(Trouble::Unseen, &format!("log group {LOG_GROUP}: {error}"));
        });
        teller.tell(&Notice::Ready(service.protection()));
        let tally = Tally::from(&service.counted());
        let sweep_at = Instant::now() + SWEEP;
        Self { service, requests, teller, log: log.ok(), tally, cut_at: None, sweep_at, told_lost: false }
    }

    fn live(mut self, terms: &mut impl FnMut() -> Result<Terms, String>) -> Result<(), Trouble> {
        loop {
            let has_packets = self.wait().map_err(|_| Trouble::Kernel)?;
            // Before anything is opened: a table that is not there holds nobody back.
            self.restore();
            if self.serve(terms)? == Next::End {
                return Ok(());
            }
            if has_packets {
                self.tell_packets();
            }
            self.keep_time();
        }
    }

    /// Until something is to be done. Are there logged packets?
    fn wait(&self) -> io::Result<bool> {
        let log = self.log.as_ref().map(|log| log.as_fd());
        let fds = [log, Some(self.requests.as_fd()), self.service.watched()];
        let mut fds: Vec<_> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let until = [self.cut_at, self.service.mend_at()].into_iter().flatten().fold(self.sweep_at, Instant::min);
        match poll(&mut fds, timeout(Some(until))) {
            Ok(_) => Ok(log.is_some() && fds.first().and_then(PollFd::any) == Some(true)),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn restore(&mut self) {
        match self.service.restore_if_changed() {
            Ok(true) => {
                self.teller.tell(&Notice::Restored);
                self.teller.tell(&Notice::Ready(self.service.protection()));
                self.told_lost = false;
            }
            Ok(false) => {}
            Err((trouble, words)) => self.teller.tell_trouble(trouble, &words),
        }
        // A change of the sets may have found it gone, or put it back.
        let is_lost = self.service.mend_at().is_some();
        if is_lost != self.told_lost {
            let notice = if is_lost { Notice::Lost } else { Notice::Ready(self.service.protection()) };
            if self.teller.tell(&notice) {
                self.told_lost = is_lost;
            }
        }
    }

    /// Serves what waits. What is no request ends this, and never the table.
    fn serve(&mut self, terms: &mut impl FnMut() -> Result<Terms, String>) -> Result<Next, Trouble> {
        let mut room = [0; LONGEST];
        for _ in 0..AT_ONCE {
            let (length, socket) = match self.requests.receive_with(&mut room, Some(Instant::now())) {
                Ok(Some(received)) => received,
                Ok(None) => return Ok(Next::End),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(Next::Wait),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(self.malformed()),
                Err(_) => return Ok(Next::End),
            };
            let message = room.get(..length).unwrap_or_default();
            let (number, request) = Request::decode(message).map_err(|_| self.malformed())?;
            if self.carry_out((number, request, socket), terms) == Next::End {
                return Ok(Next::End);
            }
        }
        Ok(Next::Wait)
    }

    fn malformed(&self) -> Trouble {
        self.teller.tell_trouble(Trouble::Message, "the table stays");
        Trouble::Message
    }

    fn carry_out(
        &mut self,
        (number, request, socket): (u32, Request, Option<OwnedFd>),
        terms: &mut impl FnMut() -> Result<Terms, String>,
    ) -> Next {
        let (is_last, is_reload) = (request == Request::Bye, request == Request::Reload);
        if is_last && let Err((trouble, words)) = self.service.stop() {
            self.teller.tell_trouble(trouble, &words);
        }
        let (reply, trouble) = self.service.answer(request, socket, terms);
        if let Some((trouble, words)) = trouble {
            self.teller.tell_trouble(trouble, &words);
        }
        if is_reload && matches!(reply, Reply::Done(_)) {
            self.teller.tell(&Notice::Ready(self.service.protection()));
        }
        let sent = self.requests.send(&reply.encode(number), Instant::now() + PATIENCE);
        if is_last || sent.is_err() { Next::End } else { Next::Wait }
    }

    /// Tells of the packets that were logged, and with the first of each kind, how many more were not.
    fn tell_packets(&mut self) {
        let Some(log) = &mut self.log else { return };
        let counted = self.service.counted();
        let packets: Vec<_> = match log.read(PACKETS) {
            Ok(packets) => packets.iter().filter_map(denied).collect(),
            Err(error) => {
                self.log = None;
                return self.teller.tell_trouble(Trouble::Unseen, &error.to_string());
            }
        };
        let mut kinds: HashMap<Kind, u64> = HashMap::new();
        for packet in &packets {
            *kinds.entry((packet.way, packet.observed)).or_default() += 1;
        }
        for packet in packets {
            let kind = (packet.way, packet.observed);
            let of_kind = kinds.remove(&kind);
            let suppressed =
                of_kind.zip(counted.get(&kind)).map(|(told, counted)| self.tally.suppressed(kind, *counted, told));
            self.tell_denied(packet, suppressed.unwrap_or_default());
        }
    }

    fn tell_denied(&mut self, denied: Denied, suppressed: u64) {
        let denied = Denied { suppressed: u32::try_from(suppressed).unwrap_or(u32::MAX), ..denied };
        if self.teller.tell(&Notice::Denied(denied)) {
            self.service.count_untold(suppressed);
        } else {
            self.tally.take_back((denied.way, denied.observed), suppressed + 1);
        }
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        match self.cut_at {
            None if self.service.has_uncut() => self.cut_at = Some(now + GATHER),
            Some(at) if at <= now => {
                self.cut_at = None;
                if let Some((trouble, words)) = self.service.cut_denied() {
                    self.teller.tell_trouble(trouble, &words);
                }
            }
            None | Some(_) => {}
        }
        if self.sweep_at <= now {
            self.sweep_at = now + SWEEP;
            self.service.expire(now);
        }
    }
}

/// The way to the forwarder's ear. It never waits: who does not listen misses something, and that is counted.
struct Teller(Channel);

impl Teller {
    /// Was there room for it?
    fn tell(&self, notice: &Notice) -> bool {
        self.0.send(&notice.encode(), Instant::now()).is_ok()
    }

    fn tell_trouble(&self, trouble: Trouble, words: &str) {
        self.tell(&Notice::Trouble { trouble, words: clean(words.trim().as_bytes()) });
    }
}

fn denied(packet: &LoggedPacket) -> Option<Denied> {
    let (way, observed) = Way::of_prefix(&packet.prefix)?;
    let LoggedPacket { protocol, source, destination, user, .. } = *packet;
    Some(Denied { way, observed, protocol, source, destination, user, suppressed: 0 })
}
