use std::time::Duration;

/// How long each wait of the control plane may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// How often the coordinator asks whether a worker is there.
    pub ping: Duration,
    /// Who has said nothing for so long is taken for lost. Requests must fail within 5 s of a failure: it stays well below.
    pub silence: Duration,
    /// From the connection to the end of the handshake.
    pub handshake: Duration,
    /// Loading a shard; progress is told meanwhile.
    pub load: Duration,
    /// Reaching the other ranks.
    pub connect: Duration,
    /// Finishing the plans under way at the end.
    pub drain: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            ping: Duration::from_millis(500),
            silence: Duration::from_millis(3500),
            handshake: Duration::from_secs(5),
            load: Duration::from_secs(3600),
            connect: Duration::from_secs(30),
            drain: Duration::from_secs(2),
        }
    }
}
