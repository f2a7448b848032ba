//! Numbers and names as they lie in the blocks of lists and tables: no longer than they need to be.

/// Appends a number, seven bits a byte, the low ones first.
pub(super) fn push_number(block: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        block.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    block.push(value as u8);
}

/// Takes the number that the bytes begin with.
pub(super) fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0;
    for shift in (0..32).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Length of the name in wire form that the bytes begin with, the root label included.
pub(super) fn wire_length(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&length) = bytes.get(at)
        && length > 0
    {
        at += 1 + usize::from(length);
    }
    at + 1
}
