/// Host memory through which this rank and others exchange partial sums, for a device that stages, waits and adds by itself.
///
/// Addresses are this process's and stay valid until the backend is given others. Message number `n` goes through slot
/// `n % 2`; the word that announces it is `n * announcement_step + bytes`. A device raises the abort word when it has waited
/// for too long, and waits for nothing while that is not 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeMemory {
    /// This rank.
    pub rank: usize,
    /// Ranks.
    pub world: usize,
    /// Longest message, bytes.
    pub message_bytes: usize,
    /// Address and length of all memory that the device needs access to.
    pub mappings: Vec<(usize, usize)>,
    /// Where a message is put together.
    pub staged: [usize; 2],
    /// A 32-bit word.
    pub abort: usize,
    /// Factor of a message's number in its announcement.
    pub announcement_step: u64,
    /// By rank; this rank's own is not used.
    pub peers: Vec<PeerMemory>,
}

/// A peer in an [`ExchangeMemory`], by slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerMemory {
    /// Where its message is found.
    pub received: [usize; 2],
    /// The 64-bit word that announces it.
    pub flag: [usize; 2],
    /// The 64-bit word that announces this rank's message to it.
    pub tell: [usize; 2],
}
