//! Rate-limit headers of one response, as numbers.
//!
//! Pure, for the HTTP side (`head`) and for simulated time alike.

use std::time::Duration;

use super::meter::{HeaderStyle, MeterRules};
use super::quota_status::QuotaStatus;

/// Ending of a request, as far as its headers depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportedEnd {
    Success,
    /// A 429 of the service's own meter.
    Throttled,
    /// A 429 of a gateway before it, which knows nothing of the service's meter.
    ThrottledByGateway,
    Failure,
}

/// Numbers in the headers; `None` where a header is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateReport {
    pub limit_tokens: Option<i64>,
    pub remaining_tokens: Option<i64>,
    /// Whole seconds, rounded up.
    pub reset_tokens: Option<i64>,
    pub limit_requests: Option<i64>,
    pub remaining_requests: Option<i64>,
    pub reset_requests: Option<i64>,
}

impl RateReport {
    /// Reports a status by the meter's rules.
    pub fn of(rules: &MeterRules, status: &QuotaStatus, end: ReportedEnd) -> Self {
        let QuotaStatus { limits, remaining_tokens, remaining_requests, .. } = *status;
        let whole = Self {
            limit_tokens: limits.tpm.map(|tpm| signed(cut(tpm, rules.cut))),
            remaining_tokens: remaining_tokens.map(signed),
            reset_tokens: limits.tpm.map(|_| seconds(status.reset_tokens)),
            limit_requests: limits.rpm.map(signed),
            remaining_requests: remaining_requests.map(signed),
            reset_requests: limits.rpm.map(|_| seconds(status.reset_requests)),
        };
        let classic = Self { reset_tokens: None, reset_requests: None, ..whole };
        if end == ReportedEnd::ThrottledByGateway {
            return Self::default();
        }
        match rules.headers {
            HeaderStyle::Full => whole,
            HeaderStyle::Classic | HeaderStyle::Stale { .. } => classic,
            HeaderStyle::Remaining => Self { limit_tokens: None, limit_requests: None, ..classic },
            HeaderStyle::ResetOn429 if end == ReportedEnd::Throttled => whole,
            HeaderStyle::ResetOn429 => classic,
            HeaderStyle::SuccessOnly if end == ReportedEnd::Success => whole,
            HeaderStyle::SuccessOnly | HeaderStyle::None => Self::default(),
            HeaderStyle::MinusOne => whole.map(-1),
            HeaderStyle::Zero => whole.map(0),
        }
    }

    /// Replaces every number that is there.
    fn map(self, number: i64) -> Self {
        let each = |value: Option<i64>| value.map(|_| number);
        Self {
            limit_tokens: each(self.limit_tokens),
            remaining_tokens: each(self.remaining_tokens),
            reset_tokens: each(self.reset_tokens),
            limit_requests: each(self.limit_requests),
            remaining_requests: each(self.remaining_requests),
            reset_requests: each(self.reset_requests),
        }
    }
}

/// Returns the part of a quota that is in force.
pub fn cut(tokens: u64, part: f64) -> u64 {
    (tokens as f64 * part) as u64
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(span: Duration) -> i64 {
    signed(span.as_secs() + u64::from(span.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::super::quota_status::QuotaLimits;
    use super::*;

    fn report(headers: HeaderStyle, end: ReportedEnd) -> RateReport {
        let status = QuotaStatus {
            limits: QuotaLimits { tpm: Some(1_000), rpm: None },
            remaining_tokens: Some(400),
            remaining_requests: None,
            reset_tokens: Duration::from_millis(20_500),
            reset_requests: Duration::ZERO,
        };
        RateReport::of(&MeterRules { headers, ..MeterRules::DOCUMENTED }, &status, end)
    }

    #[test]
    fn each_style_leaves_out_what_it_does_not_know() {
        let numbers = |style, end| {
            let RateReport { limit_tokens, remaining_tokens, reset_tokens, .. } =
                report(style, end);
            (limit_tokens, remaining_tokens, reset_tokens)
        };
        let (all, some) = ((Some(1_000), Some(400), Some(21)), (Some(1_000), Some(400), None));
        let nothing = (None, None, None);
        for (style, success, throttled) in [
            (HeaderStyle::Full, all, all),
            (HeaderStyle::Classic, some, some),
            (HeaderStyle::Remaining, (None, Some(400), None), (None, Some(400), None)),
            (HeaderStyle::ResetOn429, some, all),
            (HeaderStyle::SuccessOnly, all, nothing),
            (HeaderStyle::MinusOne, (Some(-1), Some(-1), Some(-1)), (Some(-1), Some(-1), Some(-1))),
            (HeaderStyle::None, nothing, nothing),
        ] {
            assert_eq!(numbers(style, ReportedEnd::Success), success, "{style}");
            assert_eq!(numbers(style, ReportedEnd::Throttled), throttled, "{style}");
            assert_eq!(numbers(style, ReportedEnd::ThrottledByGateway), nothing, "{style}");
        }
    }

    #[test]
    fn a_limit_that_nobody_set_is_in_no_header() {
        let told = report(HeaderStyle::Zero, ReportedEnd::Success);
        assert_eq!((told.limit_tokens, told.limit_requests), (Some(0), None));
    }

    #[test]
    fn a_cut_shows_in_the_limit_alone() {
        let rules = MeterRules { cut: 0.5, ..MeterRules::DOCUMENTED };
        let status = QuotaStatus {
            limits: QuotaLimits { tpm: Some(1_000), rpm: None },
            remaining_tokens: Some(900),
            remaining_requests: None,
            reset_tokens: Duration::ZERO,
            reset_requests: Duration::ZERO,
        };
        let told = RateReport::of(&rules, &status, ReportedEnd::Success);
        assert_eq!((told.limit_tokens, told.remaining_tokens), (Some(500), Some(900)));
    }
}
