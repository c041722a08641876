/// Every frame begins with these.
const MAGIC: [u8; 4] = *b"TLF1";
/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 32;

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Word: the flag; the payload follows.
    Message,
    /// Word: the number of the last message taken.
    Credit,
    /// The sender ended in good order.
    Closed,
    /// The sender ended after an error.
    Failed,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Message, Self::Credit, Self::Closed, Self::Failed];
}

/// What comes before a payload: magic (4 bytes), kind (1), rank (1), nothing (2), epoch (8), word (8), CRC-32 of the payload
/// (4) and of the 28 bytes before (4). Little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) from: usize,
    pub(super) epoch: u64,
    pub(super) word: u64,
    pub(super) checksum: u32,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind as u8;
        bytes[5] = self.from as u8;
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.word.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.checksum.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..28]);
        bytes[28..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, &'static str> {
        let word32 = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let word64 = |at: usize| u64::from(word32(at)) | u64::from(word32(at + 4)) << 32;
        if bytes[..4] != MAGIC {
            return Err("a frame begins with other bytes than it should");
        }
        if crc32fast::hash(&bytes[..28]) != word32(28) {
            return Err("a frame header's checksum is wrong");
        }
        let kind = *Kind::ALL.get(usize::from(bytes[4])).ok_or("a frame of no known kind")?;
        Ok(Self { kind, from: bytes[5].into(), epoch: word64(8), word: word64(16), checksum: word32(24) })
    }

    /// Bytes that follow the header.
    pub(super) fn payload_bytes(&self) -> usize {
        match self.kind {
            Kind::Message => crate::flag::Flag(self.word).bytes(),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_gives_back_what_it_was_made_of(kind in 0usize..4, from in 0usize..4, words: (u64, u64, u32)) {
            let (epoch, word, checksum) = words;
            let header = Header { kind: Kind::ALL[kind], from, epoch, word, checksum };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn a_changed_bit_is_noticed(word: u64, bit in 0usize..HEADER_BYTES * 8) {
            let header = Header { kind: Kind::Message, from: 1, epoch: 7, word, checksum: 9 };
            let mut bytes = header.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::decode(&bytes).is_err());
        }
    }
}
