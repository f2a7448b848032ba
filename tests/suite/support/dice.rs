//! Chance that is the same in every run.

/// A reproducible source of numbers (Marsaglia's xorshift).
pub struct Dice(pub u64);

impl Dice {
    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    /// Some bytes changed, cut off, put in or appended.
    pub fn mutate(&mut self, packet: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let byte = u8::try_from(self.below(256)).unwrap();
            let at = self.below(packet.len().max(1));
            match self.below(6) {
                0 => packet.truncate(at),
                1 => packet.insert(at.min(packet.len()), byte),
                2 => packet.extend(std::iter::repeat_n(byte, self.below(40))),
                // Counts and flags more often than chance has it.
                3 if packet.len() > 12 => packet[2 + at % 10] = byte,
                _ if at < packet.len() => packet[at] = byte,
                _ => {}
            }
        }
    }
}
