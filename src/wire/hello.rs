//! The server name that a TLS client asks for, out of a ClientHello that arrives in pieces of any size.
//!
//! Reads what RFC 8446 sections 4.1.2 and 5.1 and RFC 6066 section 3 say, and nothing of cryptography. Whatever two
//! readers might understand differently is [`Hello::Malformed`]: what passes here must mean the same behind us.

use super::cursor::{Cursor, Malformed};
use crate::name::{DomainName, NameBuffer};

/// Longest handshake message that is read, in bytes after its header. What clients send has some hundred, or a
/// thousand and a half with post-quantum key shares.
pub const MAX_HELLO: usize = 16 << 10;

/// Most bytes that can be needed before a verdict: records of one byte each.
pub const MAX_FLIGHT: usize = (MAX_HELLO + MESSAGE_HEADER) * (RECORD_HEADER + 1);

/// What is known of a connection's first bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use]
pub enum Hello {
    /// Not enough yet to say.
    NeedMore,
    /// A whole ClientHello.
    Complete(ClientHello),
    /// Something else speaks here, or nothing that TLS 1.0 to 1.3 begin with.
    NotTls,
    /// TLS, but not as anybody writes it.
    Malformed,
    /// A handshake message longer than [`MAX_HELLO`].
    TooLong,
}

/// What of a ClientHello matters.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientHello {
    /// The host name asked for.
    pub server_name: Option<DomainName>,
    /// It carries an encrypted ClientHello, real or for show: the name above is the outer one.
    pub encrypted: bool,
}

/// Takes the pieces. Each byte is looked at once, however they are cut.
#[derive(Debug, Default)]
pub struct HelloReader {
    /// The header of the record at hand, as far as it has come.
    header: [u8; RECORD_HEADER],
    header_length: usize,
    /// Bytes of the record at hand that are still to come.
    record_left: usize,
    message: Vec<u8>,
    verdict: Option<Hello>,
}

const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// Content type of records (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// Major version of every record since SSL 3.0.
const MAJOR: u8 = 3;

/// Most bytes of one record.
const MAX_RECORD: usize = 1 << 14;

/// Handshake type of a ClientHello.
const CLIENT_HELLO: u8 = 1;

/// Extensions: server_name (RFC 6066), encrypted_client_hello (RFC 9849).
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// The one kind of server name there is.
const HOST_NAME: u8 = 0;

impl HelloReader {
    /// Takes the next bytes of the connection. Once it is no longer [`Hello::NeedMore`], the verdict stays.
    pub fn take(&mut self, mut bytes: &[u8]) -> Hello {
        loop {
            if let Some(verdict) = &self.verdict {
                return verdict.clone();
            }
            let rest = if self.record_left == 0 { self.take_header(bytes) } else { self.take_payload(bytes) };
            match rest {
                Ok([]) if self.verdict.is_none() => return Hello::NeedMore,
                Ok(rest) => bytes = rest,
                Err(verdict) => self.verdict = Some(verdict),
            }
        }
    }

    /// One byte of a record's header, judged at once, so that whoever speaks something else need not be waited for.
    fn take_header<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Hello> {
        let Some((&byte, rest)) = bytes.split_first() else { return Ok(bytes) };
        let is_first = self.message.is_empty();
        let fits = match self.header_length {
            0 => byte == HANDSHAKE,
            1 => byte == MAJOR,
            _ => true,
        };
        if !fits {
            return Err(if is_first { Hello::NotTls } else { Hello::Malformed });
        }
        if let Some(place) = self.header.get_mut(self.header_length) {
            *place = byte;
        }
        self.header_length += 1;
        if self.header_length == RECORD_HEADER {
            let [.., high, low] = self.header;
            self.record_left = usize::from(u16::from_be_bytes([high, low]));
            self.header_length = 0;
            // An empty record of a handshake is forbidden, and would be a way to send without end.
            if self.record_left == 0 || self.record_left > MAX_RECORD {
                return Err(Hello::Malformed);
            }
        }
        Ok(rest)
    }

    fn take_payload<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Hello> {
        // Up to the message's own header first, then up to its end: what is too long is not kept.
        let wanted = self.wanted().saturating_sub(self.message.len());
        let (piece, rest) = bytes.split_at(bytes.len().min(self.record_left).min(wanted));
        self.message.extend_from_slice(piece);
        self.record_left -= piece.len();
        if self.message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Hello::Malformed);
        }
        if self.wanted() > MESSAGE_HEADER + MAX_HELLO {
            return Err(Hello::TooLong);
        }
        if self.message.len() >= MESSAGE_HEADER && self.message.len() == self.wanted() {
            // Nothing may follow in the same record: the next message depends on the server's answer.
            let is_alone = self.record_left == 0;
            let read = self.message.get(MESSAGE_HEADER..).filter(|_| is_alone).map(read_client_hello);
            return Err(read.and_then(Result::ok).map_or(Hello::Malformed, Hello::Complete));
        }
        Ok(rest)
    }

    /// How long the message is, its header included; only the header while that has not come.
    fn wanted(&self) -> usize {
        let length = self.message.get(1..MESSAGE_HEADER).unwrap_or_default();
        MESSAGE_HEADER + length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    }
}

fn read_client_hello(body: &[u8]) -> Result<ClientHello, Malformed> {
    let mut hello = Cursor::new(body, 0);
    // Version and random.
    hello.take(2 + 32)?;
    let session = hello.byte()?;
    let session = hello.take(usize::from(session))?;
    let suites = hello.number()?;
    let suites = hello.take(usize::from(suites))?;
    let methods = hello.byte()?;
    let methods = hello.take(usize::from(methods))?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || methods.is_empty() {
        return Err(Malformed);
    }
    let mut found = ClientHello { server_name: None, encrypted: false };
    // Before TLS 1.2 there may be no extensions at all.
    if !hello.is_at_end() {
        let length = hello.number()?;
        let extensions = hello.take(usize::from(length))?;
        read_extensions(extensions, &mut found)?;
    }
    if hello.is_at_end() { Ok(found) } else { Err(Malformed) }
}

fn read_extensions(extensions: &[u8], found: &mut ClientHello) -> Result<(), Malformed> {
    let mut rest = Cursor::new(extensions, 0);
    while !rest.is_at_end() {
        let (kind, length) = (rest.number()?, rest.number()?);
        let content = rest.take(usize::from(length))?;
        match kind {
            // No extension may come twice (RFC 8446 section 4.2): one reader takes the first, another the last.
            SERVER_NAME if found.server_name.is_some() => return Err(Malformed),
            SERVER_NAME => found.server_name = Some(read_server_name(content)?),
            ENCRYPTED_CLIENT_HELLO => found.encrypted = true,
            _ => {}
        }
    }
    Ok(())
}

/// A list with exactly one host name. Other kinds were never defined, and have no length to be passed over by.
fn read_server_name(content: &[u8]) -> Result<DomainName, Malformed> {
    let mut list = Cursor::new(content, 0);
    let length = list.number()?;
    let kind = list.byte()?;
    let name_length = list.number()?;
    let name = list.take(usize::from(name_length))?;
    let is_one = kind == HOST_NAME && list.is_at_end() && usize::from(length) + 2 == content.len();
    if is_one { host_name(name) } else { Err(Malformed) }
}

/// Letters, digits, hyphens and underscores between dots. An address is no name (RFC 6066 section 3), and neither is
/// anything that has to be escaped.
fn host_name(text: &[u8]) -> Result<DomainName, Malformed> {
    let text = text.strip_suffix(b".").unwrap_or(text);
    let mut buffer = NameBuffer::new();
    buffer.clear();
    for label in text.split(|byte| *byte == b'.') {
        let is_plain = label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !is_plain {
            return Err(Malformed);
        }
        buffer.push_label(label).map_err(|_| Malformed)?;
    }
    let last = text.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
    // No top-level domain is a number, every v4 address ends in one.
    if last.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    Ok(buffer.close().map_err(|_| Malformed)?.name().to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};

    use super::*;

    /// What rustls sends first when it wants to speak to `name`.
    fn flight(name: &str, change: impl FnOnce(&mut ClientConfig)) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        change(&mut config);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut flight = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut flight).unwrap();
        }
        flight
    }

    fn read(pieces: &[&[u8]]) -> Hello {
        let mut reader = HelloReader::default();
        pieces.iter().map(|piece| reader.take(piece)).last().unwrap_or(Hello::NeedMore)
    }

    fn named(name: &str) -> Hello {
        Hello::Complete(ClientHello { server_name: Some(name.parse().unwrap()), encrypted: false })
    }

    /// A message in records of `size` bytes.
    fn in_records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |piece: &[u8]| {
            let mut record = vec![HANDSHAKE, 3, 1];
            record.extend(u16::try_from(piece.len()).unwrap().to_be_bytes());
            record.extend(piece);
            record
        };
        message.chunks(size).flat_map(record).collect()
    }

    /// A ClientHello with these extensions.
    fn message(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        let mut all = Vec::new();
        for (kind, content) in extensions {
            all.extend(kind.to_be_bytes());
            all.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
            all.extend(content);
        }
        body.extend(u16::try_from(all.len()).unwrap().to_be_bytes());
        body.extend(all);
        let mut message = vec![CLIENT_HELLO];
        message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
        message.extend(body);
        message
    }

    fn server_name(names: &[&[u8]]) -> (u16, Vec<u8>) {
        let mut list = Vec::new();
        for name in names {
            list.push(HOST_NAME);
            list.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
            list.extend(*name);
        }
        let mut content = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
        content.extend(list);
        (SERVER_NAME, content)
    }

    /// What it is about, the names in the list, what is made of it.
    type NameCase<'a> = (&'a str, &'a [&'a [u8]], Option<&'a str>);

    fn of(extensions: &[(u16, Vec<u8>)]) -> Hello {
        read(&[&in_records(&message(extensions), MAX_RECORD)])
    }

    #[test]
    fn a_name_that_rustls_asks_for_is_read() {
        assert_eq!(read(&[&flight("Connect.acme.example", |_| {})]), named("connect.acme.example"));
        let without = ClientHello { server_name: None, encrypted: false };
        assert_eq!(read(&[&flight("192.0.2.1", |_| {})]), Hello::Complete(without.clone()));
        assert_eq!(read(&[&flight("a.example", |config| config.enable_sni = false)]), Hello::Complete(without));
        let long = flight("a.example", |config| config.alpn_protocols = vec![vec![b'x'; 250]; 50]);
        assert!(long.len() > 12_000);
        assert_eq!(read(&[&long]), named("a.example"));
    }

    #[test]
    fn the_size_of_records_and_segments_does_not_matter() {
        let flight = flight("connect.acme.example", |_| {});
        for size in [1, 2, 7, 100, MAX_RECORD] {
            let records = in_records(&flight[RECORD_HEADER..], size);
            assert!(records.len() <= MAX_FLIGHT);
            for segment in [1, 3, 1460, records.len()] {
                let pieces: Vec<_> = records.chunks(segment).collect();
                assert_eq!(read(&pieces), named("connect.acme.example"), "records of {size}, segments of {segment}");
            }
        }
    }

    #[test]
    fn what_is_no_clean_hello_is_told_apart() {
        let text = |text: &str| read(&[text.as_bytes()]);
        assert_eq!(text("SSH-2.0-OpenSSH_9.2\r\n"), Hello::NotTls);
        assert_eq!(text("CONNECT connect.ngrok-agent.com:443 HTTP/1.1\r\n\r\n"), Hello::NotTls);
        assert_eq!(read(&[&[0x80, 0x2e, 1, 3, 1]]), Hello::NotTls, "SSL 2.0");
        assert_eq!(read(&[&[HANDSHAKE, 3, 1, 0, 0]]), Hello::Malformed, "an empty record");
        assert_eq!(read(&[&[HANDSHAKE, 3, 1, 0x40, 1]]), Hello::Malformed, "an overlong record");
        assert_eq!(read(&[&[HANDSHAKE, 3, 1, 0, 1, 2]]), Hello::Malformed, "a ServerHello");
        assert_eq!(read(&[&[HANDSHAKE, 3, 1, 0, 1, 1, 21]]), Hello::Malformed, "an alert in between");
        assert_eq!(read(&[&[HANDSHAKE, 3, 1, 1, 0, 1, 0, 0x40, 1]]), Hello::TooLong);
        assert_eq!(read(&[&[HANDSHAKE, 3, 1, 1, 0, 1, 0xff, 0xff, 0xff]]), Hello::TooLong);
        let mut followed = message(&[server_name(&[b"a.example"])]);
        followed.push(1);
        assert_eq!(read(&[&in_records(&followed, MAX_RECORD)]), Hello::Malformed, "another message in its record");
    }

    #[test]
    fn a_server_name_is_one_plain_host_name() {
        #[rustfmt::skip]
        let cases: &[NameCase<'_>] = &[
            ("plain",          &[b"connect.acme.example"],    Some("connect.acme.example")),
            ("case and dot",   &[b"Connect.ACME.example."],   Some("connect.acme.example")),
            ("underscore",     &[b"_a.b-c.example"],          Some("_a.b-c.example")),
            ("not IDNA, yet a name that a server may have", &[b"xn--a.example"], Some(r"xn--a.example")),
            ("two names",      &[b"a.example", b"b.example"], None),
            ("none",           &[],                           None),
            ("empty",          &[b""],                        None),
            ("a dot",          &[b"."],                       None),
            ("two dots",       &[b"a..example"],              None),
            ("zero byte",      &[b"a.example\0.b.example"],   None),
            ("escape",         &[b"a\\.example"],             None),
            ("star",           &[b"*.example"],               None),
            ("space",          &[b"a.example "],              None),
            ("utf-8",          &["ä.example".as_bytes()],     None),
            ("v4 address",     &[b"192.0.2.1"],               None),
            ("v6 address",     &[b"2001:db8::1"],             None),
            ("long label",     &[&[b'a'; 64]],                None),
            ("long name",      &[&[b"a.".as_slice(); 128].concat()], None),
        ];
        for (case, names, expected) in cases {
            let found = of(&[server_name(names)]);
            let found = match found {
                Hello::Complete(hello) => hello.server_name.map(|name| name.to_string()),
                Hello::Malformed => None,
                Hello::NeedMore | Hello::NotTls | Hello::TooLong => panic!("{case}: {found:?}"),
            };
            assert_eq!(found.as_deref(), *expected, "{case}");
        }
        let twice = [server_name(&[b"a.example"]), server_name(&[b"a.example"])];
        assert_eq!(of(&twice), Hello::Malformed);
        let (kind, mut content) = server_name(&[b"a.example"]);
        content.push(0);
        assert_eq!(of(&[(kind, content)]), Hello::Malformed, "bytes behind the list");
    }

    #[test]
    fn an_encrypted_hello_is_told_of_with_its_outer_name() {
        let expected = ClientHello { server_name: "a.example".parse().ok(), encrypted: true };
        let extensions = [(ENCRYPTED_CLIENT_HELLO, vec![0; 200]), server_name(&[b"a.example"]), (0x0a0a, vec![])];
        assert_eq!(of(&extensions), Hello::Complete(expected));
    }

    #[test]
    fn lengths_that_do_not_fit_are_malformed() {
        let good = message(&[server_name(&[b"a.example"])]);
        for cut in MESSAGE_HEADER..good.len() - 1 {
            let mut short = good[..cut].to_vec();
            let length = u32::try_from(cut - MESSAGE_HEADER).unwrap().to_be_bytes();
            short[1..MESSAGE_HEADER].copy_from_slice(&length[1..]);
            let read = read(&[&in_records(&short, MAX_RECORD)]);
            let ends_before_extensions = cut == MESSAGE_HEADER + 2 + 32 + 1 + 4 + 2;
            assert_eq!(matches!(read, Hello::Malformed), !ends_before_extensions, "{cut}: {read:?}");
        }
    }

    proptest! {
        #[test]
        fn no_prefix_of_a_good_hello_is_misjudged(size in 1_usize..600, cut in 0_usize..1200, segment in 1_usize..700) {
            let records = in_records(&flight("connect.acme.example", |_| {})[RECORD_HEADER..], size);
            let cut = cut % records.len();
            let pieces: Vec<_> = records[..cut].chunks(segment).collect();
            prop_assert_eq!(read(&pieces), Hello::NeedMore);
        }

        #[test]
        fn nothing_makes_it_panic_and_a_verdict_stays(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            is_like_tls: bool,
            change in 0_usize..400,
            to: u8,
        ) {
            if is_like_tls {
                bytes = in_records(&message(&[server_name(&[b"a.example"]), (0x10, bytes)]), 90);
                let place = change % bytes.len();
                bytes[place] = to;
            }
            let whole = read(&[&bytes]);
            let pieces: Vec<_> = bytes.chunks(1).collect();
            prop_assert_eq!(&read(&pieces), &whole, "cut differently, it is the same");
            if whole != Hello::NeedMore {
                let mut reader = HelloReader::default();
                let _ = reader.take(&bytes);
                prop_assert_eq!(reader.take(b"more"), whole);
            }
        }
    }
}
