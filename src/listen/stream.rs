//! One conversation over a stream (RFC 1035 section 4.2.2, RFC 7766): questions in frames of two-byte length,
//! answered as they get ready and not in order, with a limit to every wait.
//!
//! What a question means is not known here, nor what carries the stream.

use std::{io, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// Longest question read, in bytes, as over UDP. Who announces more has nothing to ask.
pub(super) const MAX_QUESTION: usize = 4096;

/// How long a question may take to arrive once it has begun.
const MESSAGE: Duration = Duration::from_secs(5);

/// How long the client may take to take a reply.
const WRITE: Duration = Duration::from_secs(5);

/// How often patience with an idle client is looked at again, for it shrinks when connections grow scarce.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Replies written in one go, at most.
const WRITTEN_AT_ONCE: usize = 16;

/// Why a conversation ended.
#[derive(Debug)]
pub(super) enum End {
    /// The client closed it.
    Closed,
    /// We are stopping.
    Stopped,
    /// Nothing was asked for too long.
    Idle,
    /// A question did not arrive in time.
    Slow,
    /// The client did not take its replies.
    NotReading,
    /// Not a frame, or not one we read.
    Malformed,
    /// The connection failed.
    Broken(io::Error),
}

/// What is read of a stream and not yet used.
#[derive(Debug)]
pub(super) struct Frames<R> {
    reader: R,
    buffer: Vec<u8>,
    /// When the message that stands first in `buffer` began, or when the last one was taken out.
    since: Instant,
}

/// A reply, with the place among the open questions that it holds until it is written.
type Answered = (OwnedSemaphorePermit, Option<Vec<u8>>);

/// Answers what is asked until one of both has enough. At most `pipeline` questions are open at once, written
/// replies not counted; then nothing more is read.
pub(super) async fn converse<R, W, A>(
    frames: Frames<R>,
    writer: W,
    pipeline: usize,
    patience: impl Fn() -> Duration,
    stop: &CancellationToken,
    answer: impl Fn(Vec<u8>) -> A,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    A: Future<Output = Option<Vec<u8>>>,
{
    let (replies, queue) = mpsc::channel(pipeline.max(1));
    let writing = write(writer, queue);
    let reading = read(frames, replies, pipeline.max(1), patience, stop, answer);
    tokio::pin!(writing);
    tokio::select! {
        failed = &mut writing => failed.err().unwrap_or(End::Closed),
        end = reading => match writing.await {
            Ok(()) => end,
            Err(failed) => failed,
        },
    }
}

async fn read<R, A>(
    mut frames: Frames<R>,
    replies: mpsc::Sender<(OwnedSemaphorePermit, Vec<u8>)>,
    pipeline: usize,
    patience: impl Fn() -> Duration,
    stop: &CancellationToken,
    answer: impl Fn(Vec<u8>) -> A,
) -> End
where
    R: AsyncRead + Unpin,
    A: Future<Output = Option<Vec<u8>>>,
{
    let places = Arc::new(Semaphore::new(pipeline));
    let mut open = FuturesUnordered::new();
    // There are as many places as the queue has room, so that it never is full.
    let hand_over = |(place, reply): Answered| reply.is_none_or(|reply| replies.try_send((place, reply)).is_ok());
    let end = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break End::Stopped,
            Some(answered) = open.next() => if !hand_over(answered) { return End::Closed },
            question = frames.question(&places, pipeline, &patience) => match question {
                Ok((place, question)) => {
                    let answer = answer(question);
                    open.push(async { (place, answer.await) });
                }
                Err(end) => break end,
            },
        }
    };
    if matches!(end, End::Closed | End::Stopped) {
        // Who closed its own half may still want to hear.
        while let Some(answered) = open.next().await {
            hand_over(answered);
        }
    }
    end
}

async fn write<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queue: mpsc::Receiver<(OwnedSemaphorePermit, Vec<u8>)>,
) -> Result<(), End> {
    let (mut batch, mut bytes) = (Vec::new(), Vec::new());
    while queue.recv_many(&mut batch, WRITTEN_AT_ONCE).await > 0 {
        bytes.clear();
        for (_, reply) in &batch {
            // A reply is a DNS message and so fits its length.
            let Ok(length) = u16::try_from(reply.len()) else { continue };
            bytes.extend(length.to_be_bytes());
            bytes.extend(reply);
        }
        timeout(WRITE, writer.write_all(&bytes)).await.map_err(|_| End::NotReading)?.map_err(End::Broken)?;
        batch.clear();
    }
    timeout(WRITE, writer.shutdown()).await.map_err(|_| End::NotReading)?.map_err(End::Broken)
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), since: Instant::now() }
    }

    /// What was read and not yet used.
    pub(super) fn unused(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes away what stands in front of the first frame.
    pub(super) fn skip(&mut self, length: usize) {
        self.buffer.drain(..length.min(self.buffer.len()));
    }

    /// Waits until more has been read, at most until a message that began may take.
    pub(super) async fn more(&mut self) -> Result<(), End> {
        let began = self.since;
        self.fill(began + MESSAGE).await?.ok_or(End::Slow)
    }

    /// The next question, with a place for it. Loses nothing when dropped before it is ready.
    async fn question(
        &mut self,
        places: &Arc<Semaphore>,
        pipeline: usize,
        patience: &impl Fn() -> Duration,
    ) -> Result<(OwnedSemaphorePermit, Vec<u8>), End> {
        let place = match Arc::clone(places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                let place = Arc::clone(places).acquire_owned().await.map_err(|_| End::Closed)?;
                // It was us who did not read.
                self.since = Instant::now();
                place
            }
        };
        loop {
            if let Some(question) = self.take()? {
                return Ok((place, question));
            }
            if !self.buffer.is_empty() {
                self.more().await?;
                continue;
            }
            let is_alone = places.available_permits() + 1 == pipeline;
            if !is_alone {
                self.since = Instant::now();
            } else if self.since.elapsed() >= patience() {
                return Err(End::Idle);
            }
            let look_again = (self.since + patience()).min(Instant::now() + LOOK_AGAIN);
            self.fill(look_again).await?;
        }
    }

    /// The first frame, once it is there whole.
    fn take(&mut self) -> Result<Option<Vec<u8>>, End> {
        let Some(prefix) = self.buffer.first_chunk() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*prefix));
        if length == 0 || length > MAX_QUESTION {
            return Err(End::Malformed);
        }
        let Some(question) = self.buffer.get(2..2 + length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.skip(2 + length);
        self.since = Instant::now();
        Ok(Some(question))
    }

    /// Reads once; `None` when the deadline came first.
    async fn fill(&mut self, deadline: Instant) -> Result<Option<()>, End> {
        self.buffer.reserve(1024);
        let is_first = self.buffer.is_empty();
        match timeout_at(deadline, self.reader.read_buf(&mut self.buffer)).await {
            Err(_) => Ok(None),
            Ok(Err(error)) => Err(End::Broken(error)),
            Ok(Ok(0)) if is_first => Err(End::Closed),
            Ok(Ok(0)) => Err(End::Malformed),
            Ok(Ok(_)) => {
                if is_first {
                    self.since = Instant::now();
                }
                Ok(Some(()))
            }
        }
    }
}
