//! How much a deployment gives under honest load: the benchmark.
//!
//! ```text
//! shapes (when) ─┐
//! sizes (how big)─┼─▶ drive ─▶ call ─▶ model ─▶ Sample ─▶ tally ─▶ report ─▶ text, HTML
//! prompts (what) ─┘            watch sees the answer come in       stats: intervals, knee
//! ```
//!
//! `pipeline` measures the whole of it instead: queue, worker and store.
//!
//! Latencies count from the *intended* start: a request that had to wait because the client or the
//! service was slow has that wait in its figures (no coordinated omission). `shapes`, `sizes`,
//! `tally`, `stats` and `knee` are pure. `docs/bench.md` has the method and the definitions.

mod call;
pub mod compare;
mod csv;
mod drive;
mod html;
mod knee;
mod pacer;
pub mod pipeline;
mod prompts;
pub mod report;
pub mod shapes;
pub mod sizes;
mod stats;
pub mod sweep;
mod tally;
mod text;
pub mod trace;
mod watch;

pub use call::{Ending, Retry, Sample};
pub use drive::{Bench, Phase};
pub use prompts::{Prompts, Style};
pub use tally::{Live, Slo};
