//! What people ask: results, and what it all came to.

pub mod results;
