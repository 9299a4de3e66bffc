//! Log filter: drops what may never be logged, at any level.

use tracing::{Level, Metadata};

/// Target that logs whole WebSocket frames at trace level, with tokens, key signatures and prompts.
const FRAMES: &str = "tungstenite";

/// Returns false for events that would reveal a secret. All else that our dependencies log was
/// found to reveal none, at any level.
pub fn is_safe_to_log(metadata: &Metadata<'_>) -> bool {
    !(*metadata.level() == Level::TRACE && metadata.target().starts_with(FRAMES))
}
