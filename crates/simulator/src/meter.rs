//! Rules of a token meter, as data: what it counts, when it forgets, and what its headers report.
//!
//! Services differ in all three, and Azure itself did over the years. Neighbours: `token_counter`
//! counts by the rules, `rate_report` reports by them, `spec` reads them from a settings text.

use std::fmt;
use std::time::Duration;

/// Rules by which a deployment's tokens are metered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeterRules {
    pub kind: MeterKind,
    pub counted: CountedTokens,
    pub headers: HeaderStyle,
    /// Tokens a minute that a gateway before the service lets through, by the same estimate.
    pub gateway_tpm: Option<u64>,
    /// Part of the quota in force for now. Only the limit in the headers shows it: what remains is
    /// still told of the whole quota.
    pub cut: f64,
}

/// Time over which a meter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeterKind {
    /// Windows from the simulator's start, one after the other.
    ClockWindow,
    /// A window begins with the first request after the one before.
    FirstRequestWindow,
    /// The last window's length, at any moment.
    SlidingWindow,
    /// A bucket that refills all the time and holds what refills in this span; `None`: in a window.
    TokenBucket { holds: Option<Duration> },
}

/// Tokens that a request counts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountedTokens {
    /// The estimate, when the request arrives.
    Estimate,
    /// The tokens used, when the answer is complete.
    Billed,
    /// The estimate at first, corrected to the tokens used when the answer is complete.
    Corrected,
}

/// Rate-limit headers that answers carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderStyle {
    /// Limit, remaining and reset, on every answer.
    Full,
    /// Limit and remaining.
    Classic,
    /// Remaining alone.
    Remaining,
    /// Limit and remaining; the reset with a 429 only.
    ResetOn429,
    /// Limit, remaining and reset, on successful answers only.
    SuccessOnly,
    /// Limit and remaining, which are read anew only so often.
    Stale {
        every: Duration,
    },
    /// All of them, as -1.
    MinusOne,
    /// All of them, as 0.
    Zero,
    None,
}

impl MeterRules {
    /// Azure's documented rules.
    pub const DOCUMENTED: Self = Self {
        kind: MeterKind::ClockWindow,
        counted: CountedTokens::Estimate,
        headers: HeaderStyle::Full,
        gateway_tpm: None,
        cut: 1.0,
    };

    /// Returns true if the numbers make sense.
    pub fn is_sound(&self) -> bool {
        let holds_nothing = self.kind == MeterKind::TokenBucket { holds: Some(Duration::ZERO) };
        let never_read = self.headers == HeaderStyle::Stale { every: Duration::ZERO };
        self.cut > 0.0
            && self.cut <= 1.0
            && self.gateway_tpm != Some(0)
            && !holds_nothing
            && !never_read
    }

    /// Returns true if answers report a status that is known only when they are complete.
    pub fn reports_at_the_end(&self) -> bool {
        self.counted != CountedTokens::Estimate
    }
}

impl Default for MeterRules {
    fn default() -> Self {
        Self::DOCUMENTED
    }
}

impl fmt::Display for MeterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClockWindow => f.write_str("clock"),
            Self::FirstRequestWindow => f.write_str("first"),
            Self::SlidingWindow => f.write_str("sliding"),
            Self::TokenBucket { holds: None } => f.write_str("bucket"),
            Self::TokenBucket { holds: Some(holds) } => write!(f, "bucket:{}ms", holds.as_millis()),
        }
    }
}

impl fmt::Display for CountedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Estimate => "estimate",
            Self::Billed => "billed",
            Self::Corrected => "corrected",
        })
    }
}

impl fmt::Display for HeaderStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Classic => f.write_str("classic"),
            Self::Remaining => f.write_str("remaining"),
            Self::ResetOn429 => f.write_str("reset-on-429"),
            Self::SuccessOnly => f.write_str("200-only"),
            Self::Stale { every } => write!(f, "stale:{}ms", every.as_millis()),
            Self::MinusOne => f.write_str("minus-one"),
            Self::Zero => f.write_str("zero"),
            Self::None => f.write_str("none"),
        }
    }
}
