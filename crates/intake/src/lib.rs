//! Files become jobs, in two passes over the input.
//!
//! The first pass ([`check()`]) reads everything and enqueues nothing: one bad line in a million is
//! found before the first token is paid. The second ([`enqueue()`]) streams the jobs to the queue.
//! Both read the input from its start, so input that can be read only once (standard input) is
//! spooled to a file first.
//!
//! Jobs that ended as dead letters enter again through [`dead_letters`]. To learn only the sizes of
//! the jobs there is the second pass without a queue, on all cores: [`count_tokens()`].

mod batch_counts;
mod batch_file;
mod check;
pub mod dead_letters;
mod duplicates;
mod enqueue;
mod fault;
mod sample;
mod source;
mod token_count;

pub use batch_counts::EnqueueCounts;
pub use batch_file::{BatchTerms, JobLine, LineOptions, read_line};
pub use check::{CheckError, CheckReport, check};
pub use enqueue::{EnqueueError, OpenBatch, enqueue};
pub use fault::{InputFault, LineFault};
pub use sample::{SampleError, sample};
pub use source::{InputSource, InputSourceError};
pub use token_count::{JobSize, JobSizes, count_tokens};
