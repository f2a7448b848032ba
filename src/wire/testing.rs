//! Packets for the tests of this module, made byte by byte, so that a test can make wrong ones too.

/// A name in wire form, letters as they are.
pub(crate) fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> =
        labels.flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat()).collect();
    wire.push(0);
    wire
}

/// A record, its owner already in wire form.
pub(crate) fn record(owner: &[u8], rtype: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap().to_be_bytes();
    [owner, &rtype.to_be_bytes(), &[0, 1], &ttl.to_be_bytes(), &length, data].concat()
}

/// An OPT record.
pub(crate) fn opt(udp_size: u16, version: u8, flags: u8, options: &[u8]) -> Vec<u8> {
    let length = u16::try_from(options.len()).unwrap().to_be_bytes();
    let [high, low] = udp_size.to_be_bytes();
    [&[0, 0, 41, high, low, 0, version, flags, 0], length.as_slice(), options].concat()
}

/// An EDNS option.
pub(crate) fn option(code: u16, value: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), u16::try_from(value.len()).unwrap().to_be_bytes().as_slice(), value].concat()
}

/// A message: id 0x1234, the flags, one question of class IN, and sections.
pub(crate) fn message(flags: u16, question: (&str, u16), sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34];
    packet.extend_from_slice(&flags.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    for section in sections {
        packet.extend_from_slice(&u16::try_from(section.len()).unwrap().to_be_bytes());
    }
    packet.extend_from_slice(&name(question.0));
    packet.extend_from_slice(&question.1.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet.extend(sections.concat().concat());
    packet
}

/// A query with RD set, and additional records.
pub(crate) fn query(text: &str, qtype: u16, additional: &[Vec<u8>]) -> Vec<u8> {
    message(0x0100, (text, qtype), [&[], &[], additional])
}

/// A response.
pub(crate) fn response(text: &str, qtype: u16, answers: &[Vec<u8>], authorities: &[Vec<u8>]) -> Vec<u8> {
    message(0x8180, (text, qtype), [answers, authorities, &[]])
}

/// The longest name there is: 255 bytes on the wire.
pub(crate) fn longest_name() -> String {
    ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".")
}
