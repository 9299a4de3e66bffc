//! What is fit to be logged at all, whatever level is asked for.

use tracing::{Level, Metadata};

/// Shows whole WebSocket frames at trace level: tokens, keys' signatures and prompts among them.
const FRAMES: &str = "tungstenite";

/// False for what would tell a secret. Everything else that our dependencies log was found to tell
/// none, at any level.
pub fn tells_no_secret(metadata: &Metadata<'_>) -> bool {
    !(*metadata.level() == Level::TRACE && metadata.target().starts_with(FRAMES))
}
