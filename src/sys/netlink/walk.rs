//! Every reader of the kernel's messages on the same bytes, for the fuzzers.

#![allow(clippy::expect_used, reason = "what does not hold has to be seen")]

use super::{
    elements, flows,
    message::{Attributes, Messages},
    packets, sockets, tables,
    tables::NFGENMSG,
};

/// Deeper than anything is nested that is read.
const DEPTH: usize = 4;

/// Reads a datagram as each of them does. Panics where a reader leaves the bytes, or a message or attribute is counted
/// twice.
pub(crate) fn walk(bytes: &[u8]) {
    let mut room = bytes.len();
    for message in Messages(bytes) {
        is_within(message.body, bytes);
        // A header is 16 bytes: so many messages, and no more, fit.
        room = room.checked_sub(16 + message.body.len()).expect("messages do not overlap");
        let _ = (message.error(), message.is_end_of_dump());
        for size in [0, NFGENMSG] {
            look_into(message.attributes(size), message.body, DEPTH);
        }
        let list = message.attributes(NFGENMSG).within(3);
        for element in list.filter_map(|(kind, value)| elements::read(kind, Attributes(value))) {
            assert!(element.key.as_bytes().len() <= 36);
        }
        let _ = (flows::read(&message), sockets::read(&message), tables::read_table(&message));
        if let Some((Some(packet), _)) = packets::read(&message) {
            assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4());
        }
    }
}

fn look_into(attributes: Attributes<'_>, outer: &[u8], depth: usize) {
    let mut room = outer.len();
    for (kind, value) in attributes {
        is_within(value, outer);
        room = room.checked_sub(4 + value.len()).expect("attributes do not overlap");
        let _ = (attributes.number(kind), attributes.long_number(kind));
        let text = attributes.text(kind).expect("it is there");
        assert!(!text.contains('\0'));
        if depth > 0 {
            look_into(Attributes(value), value, depth - 1);
        }
    }
}

fn is_within(inner: &[u8], outer: &[u8]) {
    let (inner, outer) = (inner.as_ptr_range(), outer.as_ptr_range());
    assert!(outer.start <= inner.start && inner.end <= outer.end);
}
