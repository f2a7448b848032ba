//! A client: questions as hickory-proto writes them, or any bytes; over datagrams and TCP.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{DNSClass, Name, RecordType},
};
use socket2::{Domain, Socket, Type};

use super::daemon::PATIENCE;

/// A question to be asked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The message, ready to be changed.
    pub message: Message,
}

/// A question for `name` and `rtype` with EDNS, as `dig` asks it.
pub fn ask(name: &str, rtype: RecordType) -> Ask {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    // Not `from_utf8`, which would fold case.
    let name = Name::from_ascii(name).unwrap();
    message.add_query(Query::query(name, rtype));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.edns = Some(edns);
    Ask { message }
}

impl Ask {
    /// Of another class.
    pub fn class(mut self, class: DNSClass) -> Self {
        self.message.queries[0].set_query_class(class);
        self
    }

    /// Without EDNS.
    pub fn plain(mut self) -> Self {
        self.message.edns = None;
        self
    }

    /// With DO.
    pub fn dnssec(mut self) -> Self {
        self.message.edns.as_mut().unwrap().set_dnssec_ok(true);
        self
    }

    /// With the message changed in some other way.
    pub fn with(mut self, change: impl FnOnce(&mut Message)) -> Self {
        change(&mut self.message);
        self
    }

    /// The packet.
    pub fn bytes(&self) -> Vec<u8> {
        self.message.to_vec().unwrap()
    }

    /// Over a datagram.
    pub fn udp(&self, server: SocketAddr) -> Message {
        let reply = send_udp(server, &self.bytes()).expect("no reply came");
        self.check(&reply)
    }

    /// Over TCP.
    pub fn tcp(&self, server: SocketAddr) -> Message {
        let reply = send_tcp(server, &self.bytes()).expect("no reply came");
        self.check(&reply)
    }

    /// What every reply owes its question: id, QR, the question byte for byte.
    pub fn check(&self, reply: &[u8]) -> Message {
        let asked = self.bytes();
        let question_end = asked.iter().skip(12).position(|&byte| byte == 0).map_or(12, |end| 12 + end + 5);
        assert_eq!(reply[..2], asked[..2], "the id is kept");
        assert_eq!(reply[12..question_end], asked[12..question_end], "the question is kept, case and all");
        let message = Message::from_vec(reply).unwrap();
        assert_eq!(message.metadata.message_type, MessageType::Response);
        message
    }
}

/// The reply to any bytes, or none within a second.
pub fn send_udp(server: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let local = match (server.ip().is_loopback(), server.is_ipv4()) {
        (true, true) => "127.0.0.1:0",
        (true, false) => "[::1]:0",
        (false, true) => "0.0.0.0:0",
        (false, false) => "[::]:0",
    };
    let socket = UdpSocket::bind(local).unwrap();
    socket.connect(server).unwrap();
    socket.send(packet).unwrap();
    receive(&socket, PATIENCE)
}

/// Is there no reply to these bytes? A question that is answered is sent behind them: once its answer is there and
/// nothing else came before, nothing will.
pub fn is_met_with_silence(server: SocketAddr, packet: &[u8]) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.send(packet).unwrap();
    let control = ask("connect.ngrok-agent.com", RecordType::A).bytes();
    socket.send(&control).unwrap();
    let first = receive(&socket, PATIENCE).expect("the daemon is gone");
    first[..2] == control[..2]
}

/// One datagram, or none in time.
pub fn receive(socket: &UdpSocket, patience: Duration) -> Option<Vec<u8>> {
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// The reply to any bytes over TCP, framed.
pub fn send_tcp(server: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(server).unwrap();
    write_frame(&mut stream, packet);
    read_frame(&mut stream)
}

/// A connection from one of the many addresses of loopback, with a small window.
pub fn connect_from(client: &str, server: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(client.parse::<IpAddr>().unwrap(), 0).into()).unwrap();
    // Before connecting, so that the window stays as small.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.into()).unwrap();
    socket.into()
}

/// Writes a message behind its length.
pub fn write_frame(stream: &mut TcpStream, packet: &[u8]) {
    let mut framed = u16::try_from(packet.len()).unwrap().to_be_bytes().to_vec();
    framed.extend(packet);
    stream.write_all(&framed).unwrap();
}

/// Reads a message behind its length; `None` when the connection ends or nothing comes.
pub fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}
