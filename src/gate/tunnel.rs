//! Bytes both ways between a client and the server it was let through to, until one of them, the policy, the time or a
//! stop ends it.

use std::{
    io,
    net::Shutdown,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{Inside, dial::Server, visit::reset};
use crate::{
    gateway::Ticket,
    metrics::Counter,
    sys::splice::{Pipe, Pipes, wake_at},
};

/// Bytes moved at once where there is no pipe to be had.
const COPY: usize = 16 << 10;

/// What a fast sender is let gather before it is read again: 128 KiB, and how long at most.
const GATHERED: usize = 128 << 10;
const GATHERING: Duration = Duration::from_millis(1);

/// Who has sent so much, never less than [`GATHERED`] at a time, is fast: some Gbit/s.
const FAST: usize = 1 << 20;

/// When a silent peer is asked whether it is there, how often, and how often in vain.
const ALIVE: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(15);
const ASK_TIMES: u32 = 4;

/// A pipe that goes back where it is from, whatever becomes of who has it.
struct Lent<'p> {
    pipes: &'p Pipes,
    pipe: Option<Pipe>,
}

/// When a sender is read again. Each time costs a switch from one process to another, twice with who reads behind us; so
/// a fast sender is read when much has come. Slow ones, and what is small, never wait; the last bytes of a fast one may,
/// for [`GATHERING`].
struct Pace<'s> {
    from: &'s TcpStream,
    /// Bytes that came without a smaller portion in between.
    run: usize,
    gathers: bool,
}

/// How one round of moving ended.
enum Round {
    /// There is nothing more to be read for now, after so many bytes.
    Dry(usize),
    /// The sender has ended its half.
    End,
    /// The kernel does not splice these sockets.
    Unspliceable,
}

/// Carries until the end, and ends both sides: by a reset, unless both have closed.
pub(super) async fn carry(inside: &Inside, client: TcpStream, server: Server<'_>, ticket: Ticket) {
    let keepalive = TcpKeepalive::new().with_time(ALIVE).with_interval(ASK_AGAIN).with_retries(ASK_TIMES);
    for stream in [&client, &server.stream] {
        // Without it a peer that vanished is found out by the idle time.
        let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
    }
    // The server's was made so.
    let _ = client.set_nodelay(true);
    let moved = AtomicU64::new(0);
    let is_closed = tokio::select! {
        ended = both_ways(&client, &server.stream, &inside.pipes, &moved) => ended.is_ok(),
        why = watch(inside, ticket, &moved) => {
            why.increment();
            false
        }
    };
    if !is_closed {
        reset(&client);
        reset(&server.stream);
    }
}

/// Returns when it has to be cut, with what counts that.
async fn watch<'i>(inside: &'i Inside, mut ticket: Ticket, moved: &AtomicU64) -> &'i Counter {
    let house = &inside.house;
    let metrics = &house.metrics;
    let mut look = interval(house.options.recheck);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = (0, Instant::now());
    loop {
        tokio::select! {
            () = inside.cut.cancelled() => return &metrics.gate_cut_stop,
            _ = look.tick() => {}
        }
        if !house.gateway.still_admits(&mut ticket) {
            return &metrics.gate_cut_policy;
        }
        let now = moved.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() >= house.options.idle {
            return &metrics.gate_cut_idle;
        }
    }
}

async fn both_ways(client: &TcpStream, server: &TcpStream, pipes: &Pipes, moved: &AtomicU64) -> io::Result<()> {
    tokio::try_join!(one_way(client, server, pipes, moved), one_way(server, client, pipes, moved)).map(drop)
}

/// Moves what `from` says until its end, and then ends that half of `to`. A pipe is held only while there is something to
/// move, so that idle connections need none.
async fn one_way(from: &TcpStream, to: &TcpStream, pipes: &Pipes, moved: &AtomicU64) -> io::Result<()> {
    let (mut splices, mut pace) = (true, Pace::new(from));
    loop {
        pace.readable().await?;
        let pipe = if splices { pipes.take() } else { None };
        let round = match pipe {
            Some(pipe) => splice(from, to, Lent { pipes, pipe: Some(pipe) }, moved).await?,
            None => copy(from, to, moved).await?,
        };
        match round {
            Round::Dry(taken) => pace.note(taken),
            Round::End => break,
            Round::Unspliceable => splices = false,
        }
    }
    SockRef::from(to).shutdown(Shutdown::Write)
}

async fn splice(from: &TcpStream, to: &TcpStream, mut lent: Lent<'_>, moved: &AtomicU64) -> io::Result<Round> {
    let Some(pipe) = &mut lent.pipe else { return Ok(Round::Unspliceable) };
    let mut all = 0;
    loop {
        match from.try_io(Interest::READABLE, || pipe.fill(from)) {
            Ok(0) => return Ok(Round::End),
            Ok(taken) => {
                all += taken;
                moved.fetch_add(taken as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Round::Dry(all)),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(Round::Unspliceable),
            Err(error) => return Err(error),
        }
        while pipe.held() > 0 {
            to.writable().await?;
            match to.try_io(Interest::WRITABLE, || pipe.empty(to)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        // Two fast ends would otherwise keep the thread from everybody else.
        tokio::task::consume_budget().await;
    }
}

async fn copy(from: &TcpStream, to: &TcpStream, moved: &AtomicU64) -> io::Result<Round> {
    let (mut buffer, mut all) = (vec![0; COPY], 0);
    loop {
        let length = match from.try_read(&mut buffer) {
            Ok(0) => return Ok(Round::End),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Round::Dry(all)),
            Err(error) => return Err(error),
        };
        all += length;
        moved.fetch_add(length as u64, Ordering::Relaxed);
        let mut left = buffer.get(..length).unwrap_or_default();
        while !left.is_empty() {
            to.writable().await?;
            match to.try_write(left) {
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        tokio::task::consume_budget().await;
    }
}

impl<'s> Pace<'s> {
    fn new(from: &'s TcpStream) -> Self {
        Self { from, run: 0, gathers: false }
    }

    async fn readable(&mut self) -> io::Result<()> {
        if self.gathers {
            match timeout(GATHERING, self.from.readable()).await {
                Ok(readable) => return readable,
                // What has come so far makes it readable with this.
                Err(_) => self.note(0),
            }
        }
        self.from.readable().await
    }

    /// So much came until there was nothing more.
    fn note(&mut self, taken: usize) {
        self.run = if taken < GATHERED { 0 } else { self.run.saturating_add(taken) };
        let gathers = self.run >= FAST;
        let least = if gathers { GATHERED } else { 1 };
        if gathers != self.gathers && wake_at(self.from, least as i32).is_ok() {
            self.gathers = gathers;
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.pipes.give_back(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, net::TcpListener};

    use super::*;

    #[tokio::test]
    async fn a_fast_sender_is_let_gather_and_its_last_bytes_do_not_wait_for_more() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let from = listener.accept().unwrap().0;
        from.set_nonblocking(true).unwrap();
        let from = TcpStream::from_std(from).unwrap();
        let mut pace = Pace::new(&from);
        let drain = || while from.try_read(&mut [0; 64]).is_ok() {};
        // Slow: one byte is enough. Loopback delivers before write returns.
        sender.write_all(b"a").unwrap();
        pace.readable().await.unwrap();
        drain();
        pace.note(FAST);
        assert!(pace.gathers);
        // One byte is not enough, until patience ends.
        let began = Instant::now();
        sender.write_all(b"b").unwrap();
        pace.readable().await.unwrap();
        assert!(began.elapsed() >= GATHERING && !pace.gathers);
        drain();
        // Much is, at once.
        pace.note(FAST);
        sender.write_all(&[b'c'; GATHERED]).unwrap();
        pace.readable().await.unwrap();
        assert!(pace.gathers);
        pace.note(GATHERED - 1);
        assert!(!pace.gathers);
    }
}
