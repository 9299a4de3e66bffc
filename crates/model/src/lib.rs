//! Model call: one HTTP request to one OpenAI-compatible endpoint, and the verdict on its result.
//!
//! No retry and no waiting here: the worker decides from the [`verdict`]. Azure's deployments path,
//! Azure's `/openai/v1`, an API Management gateway and any OpenAI-compatible server differ in data
//! only ([`endpoint`]). What comes back is unpacked, decoded and checked once, here (`reply_text`,
//! `usage`, `answer`), so that no later stage meets what it can't store.

mod answer;
mod body;
mod client;
pub mod endpoint;
#[cfg_attr(not(feature = "entra"), path = "no_entra.rs")]
pub mod entra;
mod error_body;
mod lenient;
mod refusal;
mod reply_text;
mod response;
mod stream;
mod usage;
pub mod verdict;
mod wait;

pub use client::{CallResult, CallTimeouts, ChunkObserver, ModelClient, ModelClientError};
pub use response::{ModelResponse, RawResponse, ServiceTier};
