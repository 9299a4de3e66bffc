//! Open files of the process: each call in flight takes a connection, and shells allow 1,024 of them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

/// Enough for the most calls that are ever in flight at some deployments.
const WANTED: u64 = 16_384;

/// Raises the limit of open files as far as the system lets us, and as is wanted.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(WANTED).min(WANTED);
    if limit.current.is_none_or(|current| current >= most) {
        return;
    }
    let raised = Rlimit { current: Some(most), maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        debug!(%error, "the limit of open files stays as it is");
    }
}
