//! Questions over TCP and TLS: framed, pipelined, answers in any order (RFC 7766, RFC 7858).
//!
//! hickory's `DnsExchange` is not used here: it takes 32 questions at a time and says Busy to the next, looks
//! through all of them for every packet, drops a reply whose records it cannot decode, and sends no server name,
//! by which some servers tell their customers apart. With TLS below, this file needs no other line than with TCP.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    connections::{Ledger, Line, Lost, Question, STALL},
    vitals::Vitals,
};
use crate::wire::query::{self, Fit};

/// Asks what comes in and hands out what comes back, until there is nothing to ask for a while.
///
/// # Errors
/// When the connection breaks, stalls, or says something nobody asked for.
pub(super) async fn converse(
    stream: impl AsyncRead + AsyncWrite,
    line: &Line,
    questions: &mut mpsc::Receiver<Question>,
    ledger: &mut Ledger,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut sent_all = true;
    let mut progress = Instant::now();
    loop {
        let end = progress + if ledger.is_empty() { line.idle() } else { STALL };
        // Each branch can be dropped at any time without losing bytes.
        tokio::select! {
            question = questions.recv(), if !ledger.is_full() => {
                let Some(question) = question else { return Ok(()) };
                if ledger.is_empty() {
                    progress = Instant::now();
                }
                write(question, ledger, &mut output);
                sent_all = false;
            }
            sent = send(&mut writer, &output), if !sent_all => match sent? {
                0 => sent_all = true,
                sent => drop(output.drain(..sent)),
            },
            read = reader.read_buf(&mut input) => {
                if read? == 0 {
                    return if ledger.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                }
                while let Some(packet) = next_frame(&mut input) {
                    deliver(packet, ledger, &line.vitals)?;
                    progress = Instant::now();
                }
            }
            () = sleep_until(end) => {
                return if ledger.is_empty() { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) };
            }
        }
    }
}

/// Sends some of it; once there is nothing left, what TLS keeps back.
async fn send(writer: &mut (impl AsyncWrite + Unpin), output: &[u8]) -> io::Result<usize> {
    if output.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    match writer.write(output).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        sent => Ok(sent),
    }
}

fn write(question: Question, ledger: &mut Ledger, output: &mut Vec<u8>) {
    let (query, edns) = (question.query.clone(), question.edns);
    let packet = query.to_packet(ledger.enter(question), edns);
    // A name is at most 255 bytes, so the length always fits.
    output.extend(u16::try_from(packet.len()).unwrap_or_default().to_be_bytes());
    output.extend(packet);
}

/// A reply nobody asked for means that the two ends no longer agree: the connection is of no more use.
fn deliver(packet: Vec<u8>, ledger: &mut Ledger, vitals: &Vitals) -> io::Result<()> {
    let near_miss = || {
        vitals.metrics().upstream_near_misses.increment();
        io::Error::from(io::ErrorKind::InvalidData)
    };
    let id = query::id(&packet).ok_or_else(near_miss)?;
    let outcome = match ledger.query(id).ok_or_else(near_miss)?.fit(id, &packet) {
        Fit::Reply => Ok(packet),
        Fit::Bare => Err(Lost::Bare),
        Fit::NearMiss => return Err(near_miss()),
    };
    ledger.settle(id, outcome, vitals);
    Ok(())
}

/// Takes the first whole message off the front (RFC 1035 section 4.2.2).
fn next_frame(input: &mut Vec<u8>) -> Option<Vec<u8>> {
    let &[high, low] = input.first_chunk()?;
    let end = 2 + usize::from(u16::from_be_bytes([high, low]));
    let packet = input.get(2..end)?.to_vec();
    input.drain(..end);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_off_whole_and_in_order() {
        let mut input = vec![0, 2, 7, 8, 0, 0, 0, 3, 1];
        assert_eq!(next_frame(&mut input), Some(vec![7, 8]));
        assert_eq!(next_frame(&mut input), Some(vec![]));
        assert_eq!(next_frame(&mut input), None);
        input.extend([2, 3]);
        assert_eq!(next_frame(&mut input), Some(vec![1, 2, 3]));
        assert_eq!((next_frame(&mut input), input.len()), (None, 0));
    }
}
