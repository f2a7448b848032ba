//! Headers and attributes of netlink, written and read as plain bytes.
//!
//! Lengths that do not fit end the walk: whatever the bytes, nothing is read past them.

use std::ops::ControlFlow;

/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// `struct nlattr`: length, type.
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_TYPE_MASK`: the two upper bits say "nested" and "network byte order".
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// Messages on their way to the kernel, one after the other.
#[derive(Debug, Default)]
pub(super) struct Request {
    bytes: Vec<u8>,
    /// Where the last message begins.
    start: usize,
    /// Sequence number of the first message, and how many there are.
    first: u32,
    count: u32,
}

impl Request {
    /// Numbers its messages from `first`.
    pub(super) fn numbered(first: u32) -> Self {
        Self { bytes: Vec::with_capacity(512), first, ..Self::default() }
    }

    /// Begins another message.
    pub(super) fn message(&mut self, kind: u16, flags: i32) -> &mut Self {
        self.start = self.bytes.len();
        let sequence = self.first.wrapping_add(self.count);
        self.count += 1;
        let flags = u16::try_from(flags).unwrap_or_default();
        let none = 0_u32.to_ne_bytes();
        self.push(&[&none[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &sequence.to_ne_bytes(), &none].concat())
    }

    /// Adds bytes to the last message: its fixed part.
    pub(super) fn push(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let length = u32::try_from(self.bytes.len() - self.start).unwrap_or(u32::MAX);
        self.write(self.start, &length.to_ne_bytes());
        self
    }

    /// Adds an attribute to the last message.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        let mut header = [0; ATTRIBUTE_HEADER];
        let (size, name) = header.split_at_mut(2);
        size.copy_from_slice(&length.to_ne_bytes());
        name.copy_from_slice(&kind.to_ne_bytes());
        self.push(&header).push(value)
    }

    /// Adds a text that ends with a zero byte.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Adds an attribute that holds what `fill` adds.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        self.write(at, &length.to_ne_bytes());
        self
    }

    fn write(&mut self, at: usize, value: &[u8]) {
        if let Some(room) = self.bytes.get_mut(at..at + value.len()) {
            room.copy_from_slice(value);
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many messages there are.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Is a message an answer to one of these?
    pub(super) fn is_answered_by(&self, message: &Message<'_>) -> bool {
        message.sequence.wrapping_sub(self.first) < self.count
    }
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Message<'b> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// Whom it answers, or who caused it.
    pub(super) port: u32,
    pub(super) body: &'b [u8],
}

impl Message<'_> {
    /// The error in an `NLMSG_ERROR`, 0 in an acknowledgement; `None` in other messages.
    pub(super) fn error(&self) -> Option<i32> {
        let known = i32::from(self.kind) == libc::NLMSG_ERROR;
        known.then(|| number::<4>(self.body).map_or(libc::EBADMSG, |bytes| i32::from_ne_bytes(bytes).wrapping_neg()))
    }

    pub(super) fn is_end_of_dump(&self) -> bool {
        i32::from(self.kind) == libc::NLMSG_DONE
    }

    /// What follows the fixed part of `size` bytes.
    pub(super) fn attributes(&self, size: usize) -> Attributes<'_> {
        Attributes(self.body.get(size..).unwrap_or_default())
    }
}

/// The messages of one datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Messages<'b>(pub(super) &'b [u8]);

impl<'b> Iterator for Messages<'b> {
    type Item = Message<'b>;

    fn next(&mut self) -> Option<Message<'b>> {
        let length = usize::try_from(u32::from_ne_bytes(number(self.0)?)).ok()?;
        let body = self.0.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes(number(self.0.get(4..)?)?),
            flags: u16::from_ne_bytes(number(self.0.get(6..)?)?),
            sequence: u32::from_ne_bytes(number(self.0.get(8..)?)?),
            port: u32::from_ne_bytes(number(self.0.get(12..)?)?),
            body,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// A run of attributes: each one's type and value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'b>(pub(super) &'b [u8]);

impl<'b> Iterator for Attributes<'b> {
    type Item = (u16, &'b [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(number(self.0)?));
        let kind = u16::from_ne_bytes(number(self.0.get(2..)?)?) & TYPE_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'b> Attributes<'b> {
    /// The value of the first attribute of a type.
    pub(super) fn value(mut self, kind: u16) -> Option<&'b [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The attributes within the first attribute of a type; none where it is missing.
    pub(super) fn within(self, kind: u16) -> Attributes<'b> {
        Attributes(self.value(kind).unwrap_or_default())
    }

    /// A number in network byte order.
    pub(super) fn number(self, kind: u16) -> Option<u32> {
        self.value(kind).and_then(number).map(u32::from_be_bytes)
    }

    /// A long number in network byte order.
    pub(super) fn long_number(self, kind: u16) -> Option<u64> {
        self.value(kind).and_then(number).map(u64::from_be_bytes)
    }

    /// A text up to its zero byte; what is not UTF-8 is replaced.
    pub(super) fn text(self, kind: u16) -> Option<String> {
        let bytes = self.value(kind)?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(bytes.get(..end)?).into_owned())
    }
}

/// The first bytes, where there are that many.
pub(super) fn number<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

/// What a reader of messages wants next.
pub(super) type Next = ControlFlow<()>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut request = Request::numbered(7);
        request.message(3, libc::NLM_F_ACK).push(&[1, 0, 0, 0]).text(1, "table").nest(2, |inner| {
            inner.attribute(9, &5_u32.to_be_bytes()).attribute(10, &6_u64.to_be_bytes());
        });
        request.message(4, 0).push(&[2, 0, 0, 0]);
        let messages: Vec<_> = Messages(request.bytes()).collect();
        assert_eq!(
            messages.iter().map(|message| (message.kind, message.sequence)).collect::<Vec<_>>(),
            [(3, 7), (4, 8)]
        );
        let attributes = messages[0].attributes(4);
        assert_eq!(attributes.text(1).unwrap(), "table");
        assert_eq!(attributes.within(2).number(9), Some(5));
        assert_eq!(attributes.within(2).long_number(10), Some(6));
        assert_eq!(attributes.value(3), None);
        assert!(messages.iter().all(|message| request.is_answered_by(message)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_walk_panic_or_run_forever(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for message in Messages(&bytes) {
                let _ = (message.error(), message.is_end_of_dump());
                for (_, value) in message.attributes(4) {
                    prop_assert!(Attributes(value).count() <= bytes.len());
                }
                let _ = (message.attributes(4).text(1), message.attributes(4).number(2));
            }
        }
    }
}
