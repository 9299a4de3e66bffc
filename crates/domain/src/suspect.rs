//! Suspicion after a refusal that does not say whose fault it is.

/// Party that is likely at fault when a call is refused. Only what the deployment answers to other
/// jobs can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suspect {
    /// The caller's key or token: 401. A cache that lags behind gives it in passing.
    Identity,
    /// The deployment: it does not exist, or not yet, is retired, or closed to us.
    Deployment,
    /// The job: a model name or a parameter that this deployment does not know.
    Job,
}
