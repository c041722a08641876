/// Host memory through which this rank and others exchange partial sums, for a device that sends, waits and adds by itself.
///
/// Addresses are this process's and stay valid until the backend is given others. A payload is cut into as few messages as it
/// needs; message number `n` goes through slot `n % 2`. A device raises the abort word when it has waited for too long, and waits
/// for nothing while that is not 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeMemory {
    /// This rank.
    pub rank: usize,
    /// Ranks.
    pub world: usize,
    /// Longest message, bytes, a multiple of 64.
    pub message_bytes: usize,
    /// Address and length of all memory that the device needs access to.
    pub mappings: Vec<(usize, usize)>,
    /// A 32-bit word.
    pub abort: usize,
    /// How a message gets to the others.
    pub passage: Passage,
}

/// How a device's messages get to the other ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Through memory that all of them see.
    Packets(PacketMemory),
    /// By way of a thread that sends on what is announced to it.
    Relayed(RelayMemory),
}

/// Where packets are: 16 bytes that hold a value, a number, a value and the number again. The number is the message's, its low 31
/// bits, with the highest bit set. How values are spread over a message's packets is left to the devices, which are all alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketMemory {
    /// Where this rank writes them, by slot.
    pub sent: [usize; 2],
    /// Where a peer does, by rank and slot; this rank's own are not used.
    pub received: Vec<[usize; 2]>,
    /// Room in a slot, four times a message.
    pub slot_bytes: usize,
}

/// Where messages are put together, announced and found. The word that announces message `n` is `n * announcement_step + bytes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayMemory {
    /// Where a message is put together, by slot.
    pub staged: [usize; 2],
    /// The 64-bit word that announces it, by slot.
    pub tell: [usize; 2],
    /// Factor of a message's number in its announcement.
    pub announcement_step: u64,
    /// Longest message that one word announces to its receiver, bytes.
    pub stripe_above: usize,
    /// Words that announce a longer one, one after the other in memory.
    pub stripes: usize,
    /// By rank; this rank's own is not used.
    pub peers: Vec<PeerMemory>,
}

/// A peer in a [`RelayMemory`], by slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerMemory {
    /// Where its message is found.
    pub received: [usize; 2],
    /// The first of the 64-bit words that announce it.
    pub flag: [usize; 2],
}
