use std::fmt;

/// Bits of a flag that hold the payload's length.
const BYTES_BITS: u32 = 23;
/// Bits of a flag below the sequence number: the length, and one for the operation.
const TAG_BITS: u32 = BYTES_BITS + 1;
/// A slot's length must fit its flag.
pub(crate) const SLOT_BYTES_MAX: usize = 1 << (BYTES_BITS - 1);
/// Sequence numbers end here, after some years of exchanges; they are never used twice.
pub(crate) const SEQ_MAX: u64 = (1 << (64 - TAG_BITS)) - 1;

/// What a message is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Reduce,
    Gather,
}

/// What announces a message: one word, so that it is there or not. From the top: 40 bits of sequence number, one bit of
/// operation, 23 bits of length. A receiver knows all of these beforehand and waits for exactly that word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flag(pub(crate) u64);

impl Flag {
    pub(crate) fn new(seq: u64, operation: Operation, bytes: usize) -> Self {
        debug_assert!(seq <= SEQ_MAX && bytes <= SLOT_BYTES_MAX);
        let operation = match operation {
            Operation::Reduce => 0,
            Operation::Gather => 1,
        };
        Self(seq << TAG_BITS | operation << BYTES_BITS | bytes as u64)
    }

    pub(crate) fn seq(self) -> u64 {
        self.0 >> TAG_BITS
    }

    pub(crate) fn operation(self) -> Operation {
        if self.0 >> BYTES_BITS & 1 == 0 { Operation::Reduce } else { Operation::Gather }
    }

    /// Length of the payload.
    pub(crate) fn bytes(self) -> usize {
        (self.0 & ((1 << BYTES_BITS) - 1)) as usize
    }

    /// Which of the two slots the message goes through.
    pub(crate) fn slot(self) -> usize {
        slot_of(self.seq())
    }
}

/// Which of the two slots the message with this number goes through.
pub(crate) fn slot_of(seq: u64) -> usize {
    (seq & 1) as usize
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = match self.operation() {
            Operation::Reduce => "all-reduce",
            Operation::Gather => "all-gather",
        };
        write!(f, "message {} ({operation}, {} bytes)", self.seq(), self.bytes())
    }
}

impl fmt::Debug for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_gives_back_what_it_was_made_of() {
        for seq in [0, 1, 2, 255, 256, SEQ_MAX - 1, SEQ_MAX] {
            for operation in [Operation::Reduce, Operation::Gather] {
                for bytes in [0, 4, 11_520, SLOT_BYTES_MAX] {
                    let flag = Flag::new(seq, operation, bytes);
                    assert_eq!((flag.seq(), flag.operation(), flag.bytes()), (seq, operation, bytes));
                }
            }
        }
    }
}
