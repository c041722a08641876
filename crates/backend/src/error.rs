/// Why a backend could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Memory could not be had.
    #[error("could not allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// For what.
        what: String,
        /// How much.
        bytes: usize,
    },
    /// A source of weights failed.
    #[error("reading {what}: {source}")]
    Read {
        /// Which rows.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The device failed.
    #[error("{doing}: {reason}")]
    Device {
        /// What was being done.
        doing: String,
        /// What the driver said.
        reason: String,
    },
    /// Shapes do not fit each other: a bug of the caller.
    #[error("shapes do not fit: {0}")]
    Shape(String),
    /// The instruction set or device asked for is not there.
    #[error("{0}")]
    Unsupported(String),
}
