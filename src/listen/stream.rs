//! One conversation over a stream (RFC 1035 section 4.2.2, RFC 7766): questions in frames of two-byte length,
//! answered as they get ready and not in order, with a limit to every wait.
//!
//! What a question means is not known here, nor what carries the stream.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// Longest question read, in bytes, as over UDP. Who announces more has nothing to ask.
pub(super) const MAX_QUESTION: usize = 4096;

/// How often patience with an idle client is asked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Replies written in one go, at most.
const WRITTEN_AT_ONCE: usize = 16;

/// Bytes of replies that may wait to be written; then no more are made. A reply has up to 64 KiB, so that a pipeline of
/// them, on every connection a client may have, would be hundreds of megabytes for who asks and does not read.
const MAX_UNWRITTEN: usize = 1 << 17;

/// How much, and how long, one client is borne with.
#[derive(Clone, Copy)]
pub(super) struct Patience<'a> {
    /// Questions that may be open at once, replies not yet written included; then nothing more is read.
    pub(super) pipeline: usize,
    /// How long a question may take to arrive once it has begun.
    pub(super) message: Duration,
    /// How long the client may take to take replies.
    pub(super) write: Duration,
    /// How long there may be no question open; asked again and again, for it shrinks when connections grow scarce.
    pub(super) idle: &'a (dyn Fn() -> Duration + Sync),
}

/// Why a conversation ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
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
    Broken,
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

/// A reply on its way to the writer, with its place and its share of [`MAX_UNWRITTEN`].
type Unwritten = ([OwnedSemaphorePermit; 2], Vec<u8>);

/// Answers what is asked until one of both has enough.
pub(super) async fn converse<R, W, A>(
    frames: Frames<R>,
    writer: W,
    patience: Patience<'_>,
    stop: &CancellationToken,
    answer: impl Fn(Vec<u8>) -> A,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    A: Future<Output = Option<Vec<u8>>>,
{
    let patience = Patience { pipeline: patience.pipeline.max(1), ..patience };
    let (replies, queue) = mpsc::channel(patience.pipeline);
    let writing = write(writer, queue, patience.write);
    let reading = read(frames, replies, patience, stop, answer);
    tokio::pin!(writing);
    tokio::select! {
        failed = &mut writing => failed.err().unwrap_or(End::Closed),
        end = reading => match writing.await {
            Ok(()) => end,
            Err(failed) => failed,
        },
    }
}

/// What is written to a client that has sent all of this already and is answered with its own words, and whether it was
/// a conversation to the end.
#[cfg(any(test, fuzzing))]
pub(crate) async fn echoes(bytes: &[u8]) -> (Vec<u8>, bool) {
    const LONG: Duration = Duration::from_secs(30);
    let patience = Patience { pipeline: 4, message: LONG, write: LONG, idle: &|| LONG };
    let (mut written, stop) = (Vec::new(), CancellationToken::new());
    let end = converse(Frames::new(bytes), &mut written, patience, &stop, async |question| Some(question)).await;
    (written, end == End::Closed)
}

async fn read<R, A>(
    mut frames: Frames<R>,
    replies: mpsc::Sender<Unwritten>,
    patience: Patience<'_>,
    stop: &CancellationToken,
    answer: impl Fn(Vec<u8>) -> A,
) -> End
where
    R: AsyncRead + Unpin,
    A: Future<Output = Option<Vec<u8>>>,
{
    let places = Arc::new(Semaphore::new(patience.pipeline));
    let bytes = Arc::new(Semaphore::new(MAX_UNWRITTEN));
    let mut open = FuturesUnordered::new();
    let hand_over = async |(place, reply): Answered| {
        let Some(reply) = reply else { return true };
        let share = u32::try_from(reply.len()).unwrap_or(u32::MAX);
        // Whoever does not read waits here; how long is the writer's to say, which ends the conversation.
        let Ok(share) = Arc::clone(&bytes).acquire_many_owned(share).await else { return false };
        // There are as many places as the queue has room, so that it never is full.
        replies.try_send(([place, share], reply)).is_ok()
    };
    let end = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break End::Stopped,
            Some(answered) = open.next() => if !hand_over(answered).await { return End::Closed },
            question = frames.question(&places, patience) => match question {
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
            hand_over(answered).await;
        }
    }
    end
}

async fn write<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queue: mpsc::Receiver<Unwritten>,
    patience: Duration,
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
        timeout(patience, writer.write_all(&bytes)).await.map_err(|_| End::NotReading)?.map_err(|_| End::Broken)?;
        batch.clear();
    }
    timeout(patience, writer.shutdown()).await.map_err(|_| End::NotReading)?.map_err(|_| End::Broken)
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

    /// Waits until more of a message has been read, which may take `message` as a whole.
    pub(super) async fn more(&mut self, message: Duration) -> Result<(), End> {
        self.fill(self.since + message).await?.ok_or(End::Slow)
    }

    /// The next question, with a place for it. Loses nothing when dropped before it is ready.
    async fn question(
        &mut self,
        places: &Arc<Semaphore>,
        patience: Patience<'_>,
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
                self.more(patience.message).await?;
                continue;
            }
            let is_alone = places.available_permits() + 1 == patience.pipeline;
            if !is_alone {
                self.since = Instant::now();
            } else if self.since.elapsed() >= (patience.idle)() {
                return Err(End::Idle);
            }
            let look_again = (self.since + (patience.idle)()).min(Instant::now() + LOOK_AGAIN);
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
            Ok(Err(_)) => Err(End::Broken),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::{
        io::{DuplexStream, duplex, split},
        sync::Notify,
        task::JoinHandle,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(40);

    fn short() -> Duration {
        SHORT
    }

    fn long() -> Duration {
        LONG
    }

    const PATIENT: Patience<'static> = Patience { pipeline: 4, message: LONG, write: LONG, idle: &long };

    fn frame(question: &[u8]) -> Vec<u8> {
        let length = u16::try_from(question.len()).unwrap().to_be_bytes();
        [&length, question].concat()
    }

    /// A conversation whose answers are what `answer` makes of the questions.
    fn with<A>(
        patience: Patience<'static>,
        stop: &CancellationToken,
        answer: impl Fn(Vec<u8>) -> A + Send + 'static,
    ) -> (DuplexStream, JoinHandle<End>)
    where
        A: Future<Output = Option<Vec<u8>>> + Send + 'static,
    {
        let (client, server) = duplex(256);
        let stop = stop.clone();
        let conversation = tokio::spawn(async move {
            let (reader, writer) = split(server);
            converse(Frames::new(reader), writer, patience, &stop, answer).await
        });
        (client, conversation)
    }

    fn echo(patience: Patience<'static>) -> (DuplexStream, JoinHandle<End>) {
        with(patience, &CancellationToken::new(), async |question| Some(question))
    }

    async fn hear(client: &mut DuplexStream) -> Vec<u8> {
        let mut reply = vec![0; usize::from(client.read_u16().await.unwrap())];
        client.read_exact(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test]
    async fn questions_in_one_segment_and_in_single_bytes_are_answered_alike() {
        for size in [1, 3, 200] {
            let (mut client, conversation) = echo(PATIENT);
            let segments = [frame(b"one"), frame(b"two"), frame(&[7; 150])].concat();
            for part in segments.chunks(size) {
                client.write_all(part).await.unwrap();
            }
            for expected in [b"one".to_vec(), b"two".to_vec(), vec![7; 150]] {
                assert_eq!(hear(&mut client).await, expected);
            }
            drop(client);
            assert_eq!(conversation.await.unwrap(), End::Closed);
        }
    }

    #[tokio::test]
    async fn a_quick_answer_does_not_wait_for_a_slow_one() {
        let (release, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let slow = Arc::clone(&release);
        let (mut client, _conversation) = with(PATIENT, &stop, move |question| {
            let slow = Arc::clone(&slow);
            async move {
                if question == b"slow" {
                    slow.notified().await;
                }
                Some(question)
            }
        });
        client.write_all(&[frame(b"slow"), frame(b"quick")].concat()).await.unwrap();
        assert_eq!(hear(&mut client).await, b"quick");
        release.notify_one();
        assert_eq!(hear(&mut client).await, b"slow");
    }

    #[tokio::test]
    async fn no_more_questions_are_open_at_once_than_may_be() {
        let (asked, mut asks) = mpsc::unbounded_channel();
        let (release, stop) = (Arc::new(Semaphore::new(0)), CancellationToken::new());
        let held = Arc::clone(&release);
        let (mut client, conversation) = with(Patience { pipeline: 2, ..PATIENT }, &stop, move |question| {
            asked.send(question.clone()).unwrap();
            let held = Arc::clone(&held);
            async move {
                held.acquire().await.unwrap().forget();
                Some(question)
            }
        });
        client.write_all(&[frame(b"1"), frame(b"2"), frame(b"3")].concat()).await.unwrap();
        assert_eq!((asks.recv().await, asks.recv().await), (Some(b"1".to_vec()), Some(b"2".to_vec())));
        tokio::task::yield_now().await;
        assert!(asks.try_recv().is_err(), "the third has to wait");
        release.add_permits(1);
        assert_eq!(asks.recv().await, Some(b"3".to_vec()));
        release.add_permits(2);
        for _ in 0..3 {
            hear(&mut client).await;
        }
        drop(client);
        assert_eq!(conversation.await.unwrap(), End::Closed);
    }

    #[tokio::test]
    async fn silence_frees_the_place_of_its_question() {
        let stop = CancellationToken::new();
        let (mut client, _conversation) =
            with(Patience { pipeline: 1, ..PATIENT }, &stop, async |question: Vec<u8>| {
                (question == b"last").then_some(question)
            });
        client.write_all(&[frame(b"a"), frame(b"b"), frame(b"last")].concat()).await.unwrap();
        assert_eq!(hear(&mut client).await, b"last");
    }

    #[tokio::test]
    async fn what_is_no_frame_ends_the_conversation() {
        for bytes in [vec![0, 0], frame(&vec![1; MAX_QUESTION + 1])[..100].to_vec(), vec![0xff; 2]] {
            let (mut client, conversation) = echo(PATIENT);
            client.write_all(&bytes).await.unwrap();
            assert_eq!(conversation.await.unwrap(), End::Malformed, "{:?}", &bytes[..2]);
        }
        let (mut client, conversation) = echo(PATIENT);
        client.write_all(b"\0\x09cut").await.unwrap();
        drop(client);
        assert_eq!(conversation.await.unwrap(), End::Malformed);
    }

    #[tokio::test]
    async fn who_asks_nothing_is_left() {
        let (mut client, conversation) = echo(Patience { idle: &short, ..PATIENT });
        client.write_all(&frame(b"one")).await.unwrap();
        assert_eq!(hear(&mut client).await, b"one");
        assert_eq!(conversation.await.unwrap(), End::Idle);
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0, "the client is told");
    }

    #[tokio::test]
    async fn a_client_that_waits_for_its_answer_is_not_idle() {
        let stop = CancellationToken::new();
        let (mut client, conversation) = with(Patience { idle: &short, ..PATIENT }, &stop, async |question| {
            tokio::time::sleep(SHORT * 4).await;
            Some(question)
        });
        client.write_all(&frame(b"patience")).await.unwrap();
        assert_eq!(hear(&mut client).await, b"patience");
        assert_eq!(conversation.await.unwrap(), End::Idle);
    }

    #[tokio::test]
    async fn a_question_that_trickles_in_does_not_buy_time_with_every_byte() {
        let (mut client, mut conversation) = echo(Patience { message: SHORT * 2, ..PATIENT });
        client.write_all(&[0, 200]).await.unwrap();
        let trickle = async {
            while client.write_all(&[1]).await.is_ok() {
                tokio::time::sleep(SHORT / 10).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = &mut conversation => assert_eq!(end.unwrap(), End::Slow),
            () = trickle => {}
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_left() {
        let (mut client, conversation) = echo(Patience { write: SHORT, ..PATIENT });
        // More than the pipe holds in either direction; the conversation ends in the middle.
        let asking = async { while client.write_all(&frame(&[1; 200])).await.is_ok() {} };
        let ((), end) = tokio::join!(asking, conversation);
        assert_eq!(end.unwrap(), End::NotReading);
    }

    #[tokio::test]
    async fn large_replies_that_nobody_reads_are_not_made() {
        const LARGE: usize = 60_000;
        let (made, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let counted = Arc::clone(&made);
        let (mut client, conversation) = with(Patience { pipeline: 64, ..PATIENT }, &stop, move |_| {
            let counted = Arc::clone(&counted);
            async move {
                counted.fetch_add(1, Ordering::Relaxed);
                Some(vec![0; LARGE])
            }
        });
        client.write_all(&frame(b"?").repeat(64)).await.unwrap();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        // What waits, and one more that waits for room.
        let unread = made.load(Ordering::Relaxed);
        assert!(unread * LARGE <= MAX_UNWRITTEN + LARGE, "{unread} replies");
        for _ in 0..64 {
            assert_eq!(hear(&mut client).await.len(), LARGE);
        }
        drop(client);
        assert_eq!(conversation.await.unwrap(), End::Closed);
    }

    #[tokio::test]
    async fn who_closes_one_half_still_hears_the_answers() {
        let (release, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let held = Arc::clone(&release);
        let (mut client, conversation) = with(PATIENT, &stop, move |question| {
            let held = Arc::clone(&held);
            async move {
                held.notified().await;
                Some(question)
            }
        });
        client.write_all(&frame(b"bye")).await.unwrap();
        client.shutdown().await.unwrap();
        release.notify_one();
        assert_eq!(hear(&mut client).await, b"bye");
        assert_eq!(conversation.await.unwrap(), End::Closed);
    }

    #[tokio::test]
    async fn a_stop_lets_open_questions_finish() {
        let (asked, release, stop) = (Arc::new(Notify::new()), Arc::new(Notify::new()), CancellationToken::new());
        let (told, held) = (Arc::clone(&asked), Arc::clone(&release));
        let (mut client, conversation) = with(PATIENT, &stop, move |question| {
            told.notify_one();
            let held = Arc::clone(&held);
            async move {
                held.notified().await;
                Some(question)
            }
        });
        client.write_all(&frame(b"open")).await.unwrap();
        asked.notified().await;
        stop.cancel();
        release.notify_one();
        assert_eq!(hear(&mut client).await, b"open");
        assert_eq!(conversation.await.unwrap(), End::Stopped);
    }

    #[tokio::test]
    async fn what_stands_before_the_first_frame_can_be_taken_away() {
        let (mut client, server) = duplex(256);
        client.write_all(&[b"header".as_slice(), &frame(b"first")].concat()).await.unwrap();
        let (reader, writer) = split(server);
        let mut frames = Frames::new(reader);
        assert_eq!(frames.unused(), b"");
        while frames.unused().len() < 6 {
            frames.more(LONG).await.unwrap();
        }
        frames.skip(6);
        let stop = CancellationToken::new();
        let conversation = converse(frames, writer, PATIENT, &stop, async |question| Some(question));
        let (end, ()) = tokio::join!(conversation, async {
            assert_eq!(hear(&mut client).await, b"first");
            drop(client);
        });
        assert!(matches!(end, End::Closed | End::Broken), "{end:?}");
    }
}
