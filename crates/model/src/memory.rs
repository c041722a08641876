//! What a model needs in memory, and what fits.

mod available;
mod plan;
mod table;
mod weights;
mod working;

pub use available::{available_memory, available_memory_below};
pub use plan::{Computing, MemoryError, MemoryPlan, MemoryRequest, plan_memory};
pub use table::{MemoryLine, MemoryTable, human};
pub use weights::{BytesPerToken, bytes_per_token};
pub use working::DeviceWork;

#[cfg(test)]
mod tests;
