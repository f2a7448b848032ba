//! Questions without pause, over datagrams and TCP, while something else goes on; every one must get its answer.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{RData, Record, RecordType, rdata::A},
};

use super::{
    client::{ask, read_frame, receive, write_frame},
    daemon::wait_for,
    upstream::Upstream,
};

/// What [`upstream_for_all`] says.
pub const ADDRESS: RData = RData::A(A::new(192, 0, 2, 1));

/// An upstream that knows every name.
pub fn upstream_for_all() -> Upstream {
    Upstream::start(|question, _| Some(address_of(question, 60).to_vec().unwrap()))
}

/// The reply with [`ADDRESS`] to a question for one.
pub fn address_of(question: &Message, ttl: u32) -> Message {
    let query = question.queries[0].clone();
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    if query.query_type() == RecordType::A {
        reply.answers.push(Record::from_rdata(query.name().clone(), ttl, ADDRESS));
    }
    reply.add_query(query);
    reply
}

/// Threads that ask, one each way. Names are new each time, and every fourth is one that is blocked.
pub struct Load {
    done: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Begins.
    pub fn on(server: SocketAddr) -> Self {
        let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect(server).unwrap();
        let over_udp = move |packet: &[u8]| {
            udp.send(packet).unwrap();
            receive(&udp, Duration::from_secs(5))
        };
        let mut tcp = TcpStream::connect(server).unwrap();
        let over_tcp = move |packet: &[u8]| {
            write_frame(&mut tcp, packet);
            read_frame(&mut tcp)
        };
        let threads = vec![
            thread::spawn({
                let (done, asked) = (Arc::clone(&done), Arc::clone(&asked));
                move || run("u", over_udp, &done, &asked)
            }),
            thread::spawn({
                let (done, asked) = (Arc::clone(&done), Arc::clone(&asked));
                move || run("t", over_tcp, &done, &asked)
            }),
        ];
        Self { done, asked, threads }
    }

    /// Waits until so many more questions were answered.
    pub fn go_on_for(&self, count: usize) {
        let end = self.asked.load(Ordering::Relaxed) + count;
        wait_for("answers", || {
            let is_over = self.threads.iter().any(JoinHandle::is_finished);
            (is_over || self.asked.load(Ordering::Relaxed) >= end).then_some(())
        });
    }

    /// Ends; what went wrong, and how many were asked.
    pub fn end(self) -> (Vec<String>, usize) {
        self.done.store(true, Ordering::Relaxed);
        let wrong = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (wrong, self.asked.load(Ordering::Relaxed))
    }
}

fn run(
    way: &str,
    mut exchange: impl FnMut(&[u8]) -> Option<Vec<u8>>,
    done: &AtomicBool,
    asked: &AtomicUsize,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for number in 0.. {
        if done.load(Ordering::Relaxed) || wrong.len() > 10 {
            break;
        }
        let is_blocked = number % 4 == 0;
        let name = format!("connect.{way}{number}.{}", if is_blocked { "ngrok-agent.com" } else { "example" });
        let question = ask(&name, RecordType::A);
        let reply = exchange(&question.bytes()).map(|reply| Message::from_vec(&reply).unwrap());
        asked.fetch_add(1, Ordering::Relaxed);
        let is_right = reply.as_ref().is_some_and(|reply| {
            let (rcode, has_address) = (reply.metadata.response_code, reply.answers.iter().any(|a| a.data == ADDRESS));
            reply.metadata.id == question.message.metadata.id
                && if is_blocked {
                    rcode == ResponseCode::NXDomain
                } else {
                    rcode == ResponseCode::NoError && has_address
                }
        });
        if !is_right {
            wrong.push(format!("{name}: {reply:?}"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    wrong
}
