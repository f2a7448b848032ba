//! A place in a packet that only moves forward and never past the end.

use crate::name::NameBuffer;

/// The packet, and how far it has been read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'p> {
    packet: &'p [u8],
    at: usize,
}

/// The packet ends too early, or holds something that no packet may hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Malformed;

impl<'p> Cursor<'p> {
    pub(super) fn new(packet: &'p [u8], at: usize) -> Self {
        Self { packet, at }
    }

    /// How far it has been read, in bytes from the front of the packet.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.packet.len()
    }

    /// Everything not yet read.
    pub(super) fn rest(&self) -> &'p [u8] {
        self.packet.get(self.at..).unwrap_or_default()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'p [u8], Malformed> {
        let end = self.at.checked_add(length).ok_or(Malformed)?;
        let bytes = self.packet.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(bytes)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        let &byte = self.packet.get(self.at).ok_or(Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    pub(super) fn number(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?.first_chunk().ok_or(Malformed)?;
        Ok(u16::from_be_bytes(*bytes))
    }

    pub(super) fn long_number(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?.first_chunk().ok_or(Malformed)?;
        Ok(u32::from_be_bytes(*bytes))
    }

    /// Reads a name that may hold no pointer into `buffer`, in lower case.
    pub(super) fn plain_name(&mut self, buffer: &mut NameBuffer) -> Result<(), Malformed> {
        // A pointer has a length past what a label may have.
        let length = buffer.take_wire(self.rest()).map_err(|_| Malformed)?;
        self.take(length).map(drop)
    }

    /// Passes over a name without following its pointer: at most one step a label.
    pub(super) fn skip_name(&mut self) -> Result<(), Malformed> {
        loop {
            match self.byte()? {
                0 => return Ok(()),
                length @ 1..=63 => self.take(usize::from(length)).map(drop)?,
                192..=255 => return self.byte().map(drop),
                64..=191 => return Err(Malformed),
            }
        }
    }
}
