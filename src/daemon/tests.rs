//! The whole daemon within this process, without signals and sandbox.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    thread,
};

use super::*;
use crate::{
    control::{Reply, Request},
    lasting::injected,
};

const CONFIG: &str = "
[listen]
dns = [\"127.0.0.1:0\"]
admin = \"127.0.0.1:0\"
[upstream]
servers = [\"udp://127.0.0.1:9\"]
[audit]
store = \"off\"
";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A question that is refused without asking anybody.
const QUESTION: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x07connect\x0bngrok-agent\x03com\0\0\x01\0\x01";

/// A daemon whose doors are all open, the gate too.
struct House {
    running: Running,
    _reloader: Reloader,
    metrics: Arc<Metrics>,
    dns: SocketAddr,
    admin: SocketAddr,
    gate: SocketAddr,
    folder: tempfile::TempDir,
}

impl House {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut loaded = crate::config::read_text_alone(CONFIG.to_owned(), Timestamp::now());
        let config = loaded.outcome.take().unwrap_or_else(|| panic!("{}", loaded.problems));
        let mut given = Given::default();
        let doors = Doors::open(&config.listen, &mut given).unwrap();
        let door = crate::listen::open_admin(config.listen.admin, &mut given).unwrap().unwrap();
        let (dns, admin) = (doors.addresses().next().unwrap(), door.local_addr().unwrap());
        let confinement = Confinement::none();
        let metrics = Arc::<Metrics>::default();
        let held = (State::take(&folder.path().join("state")).unwrap(), None, confinement);
        let (running, reloader) = start(None, &loaded, config, held, (doors, Some(door), given), &metrics).unwrap();
        let gate = Gate::open(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let address = gate.addresses().next().unwrap();
        let (gateway, options) = (Arc::clone(&running.gateway), crate::gate::Options::default());
        let house = crate::gate::House { gateway, metrics: Arc::clone(&metrics), options, witness: None };
        drop(gate.serve(house, &Handle::current(), running.stop.clone()).unwrap());
        Self { running, _reloader: reloader, metrics, dns, admin, gate: address, folder }
    }

    /// Comes in by a door, and gives what is heard there.
    fn visit(&self, door: &str) -> io::Result<Vec<u8>> {
        let whole = |address: SocketAddr, said: &[u8]| {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(said)?;
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).map(|_| heard)
        };
        match door {
            "udp" => {
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send_to(QUESTION, self.dns)?;
                let mut heard = [0; 1500];
                socket.recv(&mut heard).map(|length| heard[..length].to_vec())
            }
            "tcp" => {
                let mut stream = TcpStream::connect(self.dns)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(&[&[0, u8::try_from(QUESTION.len()).unwrap()], QUESTION].concat())?;
                let mut heard = [0; 2 + 12];
                stream.read_exact(&mut heard).map(|()| heard[2..].to_vec())
            }
            "admin" => whole(self.admin, b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n"),
            "control" => match control::send(&self.folder.path().join("state/control"), &Request::Flush) {
                Ok(Reply::Flushed) => Ok(b"flushed".to_vec()),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(io::Error::other(error)),
            },
            // Nobody was turned there, so it resets.
            "gate" => match whole(self.gate, b"x") {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(b"reset".to_vec()),
                heard => heard,
            },
            _ => unreachable!("{door}"),
        }
    }

    fn is_served(&self, door: &str) -> bool {
        let heard = self.visit(door).unwrap_or_else(|error| panic!("{door}: {error}"));
        match door {
            "udp" | "tcp" => heard.starts_with(&[0, 7]) && heard[3] & 0xf == 3,
            "admin" => heard.starts_with(b"HTTP/1.1 200 "),
            _ => !heard.is_empty(),
        }
    }

    /// Has a part panic, and waits until that was counted.
    fn shake(&self, part: &'static str, meanwhile: impl FnOnce()) {
        let before = self.metrics.panics.value();
        injected::want(&self.metrics, part);
        meanwhile();
        let began = Instant::now();
        while self.metrics.panics.value() == before {
            assert!(began.elapsed() < PATIENCE, "{part} does not panic");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.metrics.panics.value(), before + 1, "{part} is counted once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_panics_is_counted_and_open_again() {
    let house = House::start();
    for (door, part) in
        [("tcp", "the TCP door"), ("admin", "the admin door"), ("control", "the control socket"), ("gate", "the gate")]
    {
        assert!(house.is_served(door), "{door}");
        for _ in 0..3 {
            house.shake(part, || ());
            assert!(house.is_served(door), "{door}");
        }
    }
    for _ in 0..3 {
        // It looks whether it shall after each round.
        house.shake("a worker", || assert!(house.is_served("udp")));
        assert!(house.is_served("udp"));
    }
    house.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_one_question_connection_or_request_costs_that_one() {
    let house = House::start();
    for (door, part) in [
        ("tcp", "a TCP connection"),
        ("admin", "a request to the admin door"),
        ("control", "a request to the control socket"),
        ("gate", "a connection through the gate"),
    ] {
        house.shake(part, || drop(house.visit(door)));
        assert!(house.is_served(door), "{door}");
    }
    let lost = UdpSocket::bind("127.0.0.1:0").unwrap();
    house.shake("a datagram", || assert!(lost.send_to(QUESTION, house.dns).is_ok()));
    assert!(house.is_served("udp"));
    lost.set_nonblocking(true).unwrap();
    assert!(lost.recv(&mut [0; 1500]).is_err(), "nothing half-done is sent");
    house.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_works_beside_the_doors_goes_on_after_a_panic() {
    let house = House::start();
    house.shake("the learning of ingress addresses", || ());
    let config = crate::config::read_text_alone(CONFIG.to_owned(), Timestamp::now()).outcome.unwrap();
    let mut progress = house.running.ingress.progress();
    progress.mark_unchanged();
    house.running.ingress.follow(terms_by(&config, house.running.gateway.upstream()));
    tokio::time::timeout(PATIENCE, progress.changed()).await.expect("nothing is learned any more").unwrap();
    for part in ["the reading of interfaces", "the watch for loops of a server"] {
        house.shake(part, || ());
        // Twice, since only what was begun again can.
        house.shake(part, || ());
    }
    house.running.stop().await;
}
