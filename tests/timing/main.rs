//! What is measured by the clock.

mod bench;
mod quota;
mod scale;
mod shares;
