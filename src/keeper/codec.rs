//! How the parts of a message lie behind one another: numbers in network byte order, addresses behind a byte that says
//! which, texts behind their length. Reading is total: whatever the bytes, the answer is a value or [`Malformed`].

use std::net::{IpAddr, SocketAddr};

/// The bytes are no message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a message of the keeper's")]
pub struct Malformed;

/// A message as it grows.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(super) fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }

    pub(super) fn short(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn number(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn long(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A number that may be missing.
    pub(super) fn maybe(self, value: Option<u64>) -> Self {
        match value {
            Some(value) => self.byte(1).long(value),
            None => self.byte(0),
        }
    }

    pub(super) fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.byte(4).bytes(&v4.octets()),
            IpAddr::V6(v6) => self.byte(6).bytes(&v6.octets()),
        }
    }

    /// `None` is this machine.
    pub(super) fn client(self, client: Option<IpAddr>) -> Self {
        match client {
            Some(address) => self.address(address),
            None => self.byte(0),
        }
    }

    /// Those past `bound` are left out.
    pub(super) fn addresses(self, addresses: &[IpAddr], bound: usize) -> Self {
        let some = addresses.get(..bound).unwrap_or(addresses);
        let writer = self.byte(u8::try_from(some.len()).unwrap_or_default());
        some.iter().fold(writer, |writer, address| writer.address(*address))
    }

    pub(super) fn end(self, end: SocketAddr) -> Self {
        self.address(end.ip()).short(end.port())
    }

    /// What is past `bound` bytes is cut off, between characters.
    pub(super) fn text(self, text: &str, bound: usize) -> Self {
        let text = text.get(..text.floor_char_boundary(bound)).unwrap_or(text);
        self.short(u16::try_from(text.len()).unwrap_or_default()).bytes(text.as_bytes())
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// A message as it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.first_chunk().copied().ok_or(Malformed)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    pub(super) fn short(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn number(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn long(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn maybe(&mut self) -> Result<Option<u64>, Malformed> {
        if self.flag()? { self.long().map(Some) } else { Ok(None) }
    }

    pub(super) fn client(&mut self) -> Result<Option<IpAddr>, Malformed> {
        match self.byte()? {
            0 => Ok(None),
            4 => self.array::<4>().map(|octets| Some(octets.into())),
            6 => self.array::<16>().map(|octets| Some(octets.into())),
            _ => Err(Malformed),
        }
    }

    pub(super) fn address(&mut self) -> Result<IpAddr, Malformed> {
        self.client()?.ok_or(Malformed)
    }

    pub(super) fn addresses(&mut self, bound: usize) -> Result<Vec<IpAddr>, Malformed> {
        let count = usize::from(self.byte()?);
        if count > bound {
            return Err(Malformed);
        }
        (0..count).map(|_| self.address()).collect()
    }

    pub(super) fn end(&mut self) -> Result<SocketAddr, Malformed> {
        Ok(SocketAddr::new(self.address()?, self.short()?))
    }

    pub(super) fn text(&mut self, bound: usize) -> Result<String, Malformed> {
        let length = usize::from(self.short()?);
        let bytes = if length > bound { Err(Malformed) } else { self.take(length) }?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Malformed)
    }

    /// Nothing may be left over.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Malformed> {
        if self.0.is_empty() { Ok(value) } else { Err(Malformed) }
    }
}
