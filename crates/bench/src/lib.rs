//! Benchmark: the throughput and latency of a deployment under honest load.
//!
//! ```text
//! load_shapes (when) ─┐
//! sizes (how big) ────┼─▶ drive ─▶ call ─▶ model ─▶ sample ─▶ tally ─▶ report ─▶ text, HTML
//! prompts (what) ─────┘       stream_timer times the answer        stats: intervals, knee
//! ```
//!
//! `pipeline` measures the whole pipeline instead: queue, worker and store.
//!
//! Latencies count from the *intended* start: if the client or the service made a request wait,
//! that wait is in its figures (no coordinated omission). `load_shapes`, `sizes`, `tally`, `stats`
//! and `knee` are pure. `docs/bench.md` has the method and the definitions.

mod call;
pub mod compare;
mod counts;
mod csv;
mod drive;
mod html;
mod knee;
pub mod load_shapes;
mod pacer;
pub mod pipeline;
mod prompts;
pub mod report;
pub mod sizes;
mod stats;
mod stream_timer;
pub mod sweep;
mod tally;
mod text;
pub mod trace;

pub use call::{RequestSample, RetryPolicy, SampleStatus};
pub use counts::Slo;
pub use drive::Bench;
pub use load_shapes::LoadPhase;
pub use prompts::{PromptGenerator, PromptStyle};
pub use tally::LiveStats;
