//! Number of messages in a queue.

use serde::Serialize;

/// Number of messages in a queue, by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct QueueDepth {
    /// Ready to be handed out.
    pub active: u64,
    /// Handed out and locked. 0 where the backend counts these as active.
    pub locked: u64,
    /// Not handed out before a set time.
    pub scheduled: u64,
    pub dead_letters: u64,
}

impl QueueDepth {
    /// Returns the messages that still need work.
    pub fn pending(self) -> u64 {
        self.active + self.locked + self.scheduled
    }
}
