//! The forwarder's side: one question at a time, each with a deadline, and an ear for what the keeper says unasked.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    path::Path,
    process::{Child, Command},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Counts, Done, LONGEST, Notice, Process, Protection, Refusal, Reply, Request, Trouble,
    message::{DENIED_AT_ONCE, PERMITTED_AT_ONCE},
};
use crate::sys::seqpacket::Channel;

/// An answer waits no longer for its lease.
const PATIENCE: Duration = Duration::from_millis(500);
/// Nor so long, as long as the keeper is known to be silent: who waits here keeps others from being answered.
const BRIEF: Duration = Duration::from_millis(5);
/// Somebody waits for a refusal; that it names the process is worth no more.
const SHORT_PATIENCE: Duration = Duration::from_millis(10);
/// A ruleset with long lists takes its time.
const LONG_PATIENCE: Duration = Duration::from_secs(30);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The keeper has ended. The table stays, but nothing in it changes any more.
    #[error("the keeper has ended")]
    Gone,
    /// It did not answer in time.
    #[error("the keeper did not answer in time")]
    Late,
    /// It would not.
    #[error("the keeper refused")]
    Refused(#[source] Refusal),
    /// It could not begin.
    #[error("{trouble}: {words}")]
    Unable {
        /// Why.
        trouble: Trouble,
        /// More of it.
        words: String,
    },
    /// The system failed.
    #[error("no way to the keeper")]
    System(#[from] io::Error),
}

/// The keeper, as others see it.
#[derive(Debug)]
pub struct Keeper {
    /// Taken out by who asks.
    line: Mutex<Option<Line>>,
    free: Condvar,
    child: Option<Mutex<Child>>,
    /// The latest [`Done::epoch`].
    epoch: AtomicU32,
    /// Was the latest question not answered in time?
    is_silent: AtomicBool,
    standing: Mutex<Standing>,
}

/// How the table stands, as far as was heard.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Nothing was heard yet.
    #[default]
    Unknown,
    /// It is in force.
    Held(Protection),
    /// Somebody else changed it, and it could not be put back so far.
    Lost,
    /// It was taken away on request.
    Removed,
    /// The keeper has ended: the table is as it was, and nothing in it changes any more.
    Unattended,
}

#[derive(Debug)]
struct Line {
    channel: Channel,
    number: u32,
}

/// What the keeper says unasked.
#[derive(Debug)]
pub struct Notices(Channel);

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "not heard of yet",
            Self::Held(Protection::Owned) => "in force, and nobody else can change it",
            Self::Held(Protection::Watched) => {
                "in force; what others change is put back (this kernel has no owners of tables, or another loaded it)"
            }
            Self::Lost => "not in force: somebody else changed it, and it cannot be put back; it is tried again",
            Self::Removed => "taken away on request",
            Self::Unattended => "as it was left: its keeper has ended",
        })
    }
}

impl Keeper {
    /// Starts a program that calls [`super::run`] with what it finds as its standard input and output, and waits until
    /// the table stands.
    ///
    /// # Errors
    /// Why it does not.
    pub fn start(mut program: Command) -> Result<(Self, Notices), KeeperError> {
        let (requests, their_requests) = Channel::pair()?;
        let (notices, their_notices) = Channel::pair()?;
        let child = program.stdin(their_requests).stdout(their_notices).spawn()?;
        // The command keeps their ends, and while one is open here nobody hears that the keeper is gone.
        drop(program);
        let (keeper, notices) = Self::over(requests, notices);
        keeper.stands(Standing::Held(notices.begin()?));
        Ok((Self { child: Some(Mutex::new(child)), ..keeper }, notices))
    }

    /// Speaks to the keeper that answers at a path: systemd runs one for each who connects. It is handed the way for its
    /// notices, and waited for until the table stands.
    ///
    /// # Errors
    /// Why it does not.
    pub fn at(path: &Path) -> Result<(Self, Notices), KeeperError> {
        let requests = Channel::connect(path)?;
        let (notices, their_notices) = Channel::pair()?;
        requests.send_end(their_notices, Instant::now() + PATIENCE)?;
        let (keeper, notices) = Self::over(requests, notices);
        keeper.stands(Standing::Held(notices.begin()?));
        Ok((keeper, notices))
    }

    /// Speaks to a keeper that is started otherwise.
    pub fn over(requests: Channel, notices: Channel) -> (Self, Notices) {
        let line = Mutex::new(Some(Line { channel: requests, number: 0 }));
        let (free, epoch, is_silent, standing) = Default::default();
        (Self { line, free, child: None, epoch, is_silent, standing }, Notices(notices))
    }

    /// Opens addresses to the client that an answer names them to; `None` is this machine. Some may have to stay as
    /// they are, as denied ones and our own: how many.
    ///
    /// # Errors
    /// When the kernel does not have them: then the answer must not go out.
    pub fn permit(
        &self,
        client: Option<IpAddr>,
        addresses: &[IpAddr],
        lifetime: Duration,
    ) -> Result<Done, KeeperError> {
        let lifetime = seconds(lifetime);
        self.in_parts(addresses, PERMITTED_AT_ONCE, |addresses| Request::Permit { client, addresses, lifetime })
    }

    /// Opens one port of ingress addresses to a client, because an allowing rule names it.
    ///
    /// # Errors
    /// As with [`Self::permit`].
    pub fn permit_port(
        &self,
        client: Option<IpAddr>,
        addresses: &[IpAddr],
        port: u16,
        lifetime: Duration,
    ) -> Result<Done, KeeperError> {
        let lifetime = seconds(lifetime);
        let request = |addresses| Request::PermitPort { client, addresses, port, lifetime };
        self.in_parts(addresses, PERMITTED_AT_ONCE, request)
    }

    /// Makes addresses ones of ingresses, however many; the number of those that may not be.
    ///
    /// # Errors
    /// When the kernel does not have them all.
    pub fn deny(&self, addresses: &[IpAddr], lifetime: Duration) -> Result<u8, KeeperError> {
        let lifetime = seconds(lifetime);
        let done = self.in_parts(addresses, DENIED_AT_ONCE, |addresses| Request::Deny { addresses, lifetime })?;
        Ok(done.skipped)
    }

    /// Takes that back.
    ///
    /// # Errors
    /// When the kernel still has some.
    pub fn forget(&self, addresses: &[IpAddr]) -> Result<u8, KeeperError> {
        self.in_parts(addresses, DENIED_AT_ONCE, |addresses| Request::Forget { addresses }).map(|done| done.skipped)
    }

    /// Closes an address to a client.
    ///
    /// # Errors
    /// When the kernel still has it.
    pub fn release(&self, client: Option<IpAddr>, address: IpAddr) -> Result<(), KeeperError> {
        self.done(&Request::Release { client, address }).map(drop)
    }

    /// The same, and ends the connections that are there.
    ///
    /// # Errors
    /// When some are left.
    pub fn cut(&self, client: Option<IpAddr>, address: IpAddr) -> Result<(), KeeperError> {
        self.done(&Request::Cut { client, address }).map(drop)
    }

    /// Has a socket of ours marked, so that the rules know it. Nothing may have been sent from it yet.
    ///
    /// # Errors
    /// When it is not: what it sends would be turned back to us.
    pub fn mark(&self, socket: BorrowedFd<'_>) -> Result<(), KeeperError> {
        match self.ask_with(&Request::Mark, Some(socket), PATIENCE)? {
            Reply::Done(_) => Ok(()),
            Reply::Refused(refusal) => Err(KeeperError::Refused(refusal)),
            Reply::Counts(_) | Reply::Process(_) => Err(KeeperError::Gone),
        }
    }

    /// How much there is of everything.
    ///
    /// # Errors
    /// When the keeper does not say.
    pub fn counts(&self) -> Result<Counts, KeeperError> {
        match self.ask(&Request::Count, PATIENCE)? {
            Reply::Counts(counts) => Ok(counts),
            Reply::Refused(refusal) => Err(KeeperError::Refused(refusal)),
            Reply::Done(_) | Reply::Process(_) => Err(KeeperError::Gone),
        }
    }

    /// Whose a socket of this machine is; `None` where it is gone. `protocol` is 6 or 17.
    ///
    /// # Errors
    /// When the keeper does not say.
    pub fn process(&self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Result<Option<Process>, KeeperError> {
        match self.ask(&Request::Process { protocol, local, remote }, SHORT_PATIENCE)? {
            Reply::Process(process) => Ok(process),
            Reply::Refused(refusal) => Err(KeeperError::Refused(refusal)),
            Reply::Done(_) | Reply::Counts(_) => Err(KeeperError::Gone),
        }
    }

    /// Has the configuration read again. A notice says how the table stands then.
    ///
    /// # Errors
    /// When it is not good; what is in force stays, and a notice says why.
    pub fn reload(&self) -> Result<(), KeeperError> {
        self.done_within(&Request::Reload, LONG_PATIENCE).map(drop)
    }

    /// Has the table taken away. [`Self::reload`] brings it back.
    ///
    /// # Errors
    /// When it is still there.
    pub fn remove(&self) -> Result<(), KeeperError> {
        self.done_within(&Request::Remove, LONG_PATIENCE)?;
        self.stands(Standing::Removed);
        Ok(())
    }

    /// Says that we stop on purpose, and waits for the keeper's end.
    ///
    /// # Errors
    /// When it was gone before.
    pub fn say_bye(&self) -> Result<(), KeeperError> {
        self.done_within(&Request::Bye, LONG_PATIENCE)?;
        if let Some(child) = &self.child {
            child.lock().unwrap_or_else(PoisonError::into_inner).wait()?;
        }
        Ok(())
    }

    /// Another number than before where something was closed for another reason than time.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// How the table stands.
    pub fn standing(&self) -> Standing {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how it stands from now on.
    pub fn stands(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    fn in_parts(
        &self,
        addresses: &[IpAddr],
        size: usize,
        request: impl Fn(Vec<IpAddr>) -> Request,
    ) -> Result<Done, KeeperError> {
        let mut all = Done { epoch: self.epoch(), ..Done::default() };
        for part in addresses.chunks(size) {
            let done = self.done(&request(part.to_vec()))?;
            let (skipped, evicted) = (all.skipped.saturating_add(done.skipped), all.evicted || done.evicted);
            all = Done { skipped, evicted, ..done };
        }
        Ok(all)
    }

    fn done(&self, request: &Request) -> Result<Done, KeeperError> {
        self.done_within(request, PATIENCE)
    }

    fn done_within(&self, request: &Request, patience: Duration) -> Result<Done, KeeperError> {
        match self.ask(request, patience)? {
            Reply::Done(done) => Ok(done),
            Reply::Refused(refusal) => Err(KeeperError::Refused(refusal)),
            Reply::Counts(_) | Reply::Process(_) => Err(KeeperError::Gone),
        }
    }

    fn ask(&self, request: &Request, patience: Duration) -> Result<Reply, KeeperError> {
        self.ask_with(request, None, patience)
    }

    fn ask_with(
        &self,
        request: &Request,
        socket: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> Result<Reply, KeeperError> {
        let is_brief = patience <= PATIENCE && self.is_silent.load(Ordering::Relaxed);
        let deadline = Instant::now() + if is_brief { patience.min(BRIEF) } else { patience };
        let outcome = self.take_line(deadline).and_then(|mut line| {
            let outcome = line.ask(request, socket, deadline);
            // Before the next one asks: replies are believed in their order.
            if let Ok(Reply::Done(done)) = &outcome {
                self.epoch.store(done.epoch, Ordering::Relaxed);
            }
            self.line().replace(line);
            self.free.notify_one();
            outcome
        });
        match outcome {
            Err(KeeperError::Late) if patience >= PATIENCE => self.is_silent.store(true, Ordering::Relaxed),
            // One that has little time says nothing of the keeper.
            Err(KeeperError::Late) => {}
            Ok(_) | Err(_) => self.is_silent.store(false, Ordering::Relaxed),
        }
        outcome
    }

    /// Who waits for others waits no longer than for the keeper itself.
    fn take_line(&self, deadline: Instant) -> Result<Line, KeeperError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.free.wait_timeout_while(self.line(), left, |line| line.is_none());
        let (mut line, _) = waited.unwrap_or_else(PoisonError::into_inner);
        line.take().ok_or(KeeperError::Late)
    }

    fn line(&self) -> MutexGuard<'_, Option<Line>> {
        // It is whole after each statement.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn ask(
        &mut self,
        request: &Request,
        socket: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<Reply, KeeperError> {
        self.number = self.number.wrapping_add(1);
        self.channel.send_with(&request.encode(self.number), socket, deadline).map_err(failure)?;
        let mut room = [0; LONGEST];
        loop {
            let length = self.channel.receive(&mut room, Some(deadline)).map_err(failure)?.ok_or(KeeperError::Gone)?;
            let (number, reply) =
                Reply::decode(room.get(..length).unwrap_or_default()).map_err(|_| KeeperError::Gone)?;
            // Others answer what nobody waits for any more.
            if number == self.number {
                return Ok(reply);
            }
        }
    }
}

impl Notices {
    /// The next one; `None` when the keeper is gone. Waits.
    ///
    /// # Errors
    /// When the socket broke, or at the deadline.
    pub fn next(&self, deadline: Option<Instant>) -> Result<Option<Notice>, KeeperError> {
        let mut room = [0; LONGEST];
        let Some(length) = self.0.receive(&mut room, deadline).map_err(failure)? else { return Ok(None) };
        Notice::decode(room.get(..length).unwrap_or_default()).map(Some).map_err(|_| KeeperError::Gone)
    }

    /// Waits until the table stands, or is known not to.
    ///
    /// # Errors
    /// Why it does not.
    pub fn begin(&self) -> Result<Protection, KeeperError> {
        let deadline = Some(Instant::now() + LONG_PATIENCE);
        loop {
            match self.next(deadline)? {
                Some(Notice::Ready(protection)) => return Ok(protection),
                Some(
                    Notice::Trouble { trouble: Trouble::Unseen, .. }
                    | Notice::Denied(_)
                    | Notice::Restored
                    | Notice::Lost,
                ) => {}
                Some(Notice::Trouble { trouble, words }) => return Err(KeeperError::Unable { trouble, words }),
                None => return Err(KeeperError::Gone),
            }
        }
    }
}

fn seconds(lifetime: Duration) -> u32 {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)
}

fn failure(error: io::Error) -> KeeperError {
    if error.kind() == io::ErrorKind::TimedOut {
        KeeperError::Late
    } else if [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&error.kind()) {
        KeeperError::Gone
    } else {
        KeeperError::System(error)
    }
}
