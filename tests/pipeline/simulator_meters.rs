//! The simulator's meters beside the documented one: other windows, other counts, other headers, and
//! a gateway in front. All in simulated time.

use std::time::Duration;

use promptmill::simulator::quota::ServiceQuota;
use promptmill::simulator::quota_status::{QuotaLimits, QuotaVerdict};
use promptmill::simulator::rate_report::{RateReport, ReportedEnd};
use promptmill::simulator::{CountedTokens, HeaderStyle, MeterKind, MeterRules};

const SECOND: Duration = Duration::from_secs(1);

fn metered(rules: MeterRules) -> ServiceQuota {
    let limits = QuotaLimits { tpm: Some(1_000), rpm: None };
    let mut quota = ServiceQuota::new(limits, Duration::from_secs(60), SECOND);
    quota.set_rules(Duration::ZERO, rules);
    quota
}

#[test]
fn windows_from_the_first_request_are_listed_one_after_the_other() {
    let kind = MeterKind::FirstRequestWindow;
    let mut quota = metered(MeterRules { kind, ..MeterRules::DOCUMENTED });
    assert_eq!(quota.admit(SECOND * 50, 900), QuotaVerdict::Admitted);
    let full = QuotaVerdict::TokensFull { retry_after: SECOND * 30 };
    assert_eq!(quota.admit(SECOND * 80, 200), full);
    assert_eq!(quota.admit(SECOND * 110, 1_000), QuotaVerdict::Admitted);
    assert_eq!(quota.admit(SECOND * 400, 10), QuotaVerdict::Admitted);
    let seen: Vec<_> = quota.windows().map(|w| (w.index, w.charged, w.refused)).collect();
    assert_eq!(seen, [(0, 900, 1), (1, 1_000, 0), (2, 10, 0)]);
}

#[test]
fn tokens_that_are_counted_when_used_are_refused_only_once_they_are_gone() {
    let counted = CountedTokens::Billed;
    let mut quota = metered(MeterRules { counted, ..MeterRules::DOCUMENTED });
    for _ in 0..3 {
        assert_eq!(quota.admit(SECOND, 900), QuotaVerdict::Admitted, "nothing is used yet");
        quota.settle(SECOND, SECOND * 5, 900, 400);
    }
    assert_eq!(quota.status(SECOND * 4).remaining_tokens, Some(1_000));
    assert_eq!(quota.status(SECOND * 5).remaining_tokens, Some(0));
    assert!(matches!(quota.admit(SECOND * 6, 1), QuotaVerdict::TokensFull { .. }));
    assert_eq!(quota.windows().next().map(|w| w.charged), Some(1_200));
}

#[test]
fn an_estimate_is_corrected_when_the_answer_is_complete() {
    let counted = CountedTokens::Corrected;
    let mut quota = metered(MeterRules { counted, ..MeterRules::DOCUMENTED });
    assert_eq!(quota.admit(SECOND, 900), QuotaVerdict::Admitted);
    quota.settle(SECOND, SECOND * 5, 900, 400);
    assert!(matches!(quota.admit(SECOND * 2, 200), QuotaVerdict::TokensFull { .. }));
    assert_eq!(quota.admit(SECOND * 5, 600), QuotaVerdict::Admitted);
    quota.settle(SECOND * 5, SECOND * 70, 600, 100);
    assert_eq!(quota.status(SECOND * 71).remaining_tokens, Some(1_000), "of the window before");
    assert_eq!(quota.windows().next().map(|w| w.charged), Some(1_000));
}

#[test]
fn a_gateway_keeps_its_own_limit_and_says_nothing_of_the_services() {
    let gateway_tpm = Some(500);
    let mut quota = metered(MeterRules { gateway_tpm, ..MeterRules::DOCUMENTED });
    assert_eq!(quota.admit(SECOND * 10, 400), QuotaVerdict::Admitted);
    let told = quota.report(SECOND * 10, ReportedEnd::Success);
    assert_eq!((told.limit_tokens, told.remaining_tokens), (Some(1_000), Some(600)));
    let retry_after = SECOND * 59;
    assert_eq!(quota.admit(SECOND * 11, 200), QuotaVerdict::GatewayFull { retry_after });
    let told = quota.report(SECOND * 11, ReportedEnd::ThrottledByGateway);
    assert_eq!(told, RateReport::default());
    assert_eq!(quota.admit(SECOND * 70, 500), QuotaVerdict::Admitted);
}

#[test]
fn stale_headers_tell_what_was_read_a_while_ago() {
    let headers = HeaderStyle::Stale { every: SECOND * 5 };
    let mut quota = metered(MeterRules { headers, ..MeterRules::DOCUMENTED });
    let mut told = |at, charge| {
        quota.admit(at, charge);
        quota.report(at, ReportedEnd::Success).remaining_tokens
    };
    assert_eq!(told(SECOND, 100), Some(900));
    assert_eq!(told(SECOND * 5, 100), Some(900));
    assert_eq!(told(SECOND * 6, 100), Some(700));
}

#[test]
fn a_cut_refuses_what_remains_by_the_headers() {
    let mut quota = metered(MeterRules { cut: 0.5, ..MeterRules::DOCUMENTED });
    assert_eq!(quota.admit(SECOND, 450), QuotaVerdict::Admitted);
    assert_eq!(quota.status(SECOND).remaining_tokens, Some(550));
    assert!(matches!(quota.admit(SECOND, 100), QuotaVerdict::TokensFull { .. }));
    quota.set_rules(SECOND * 2, MeterRules::DOCUMENTED);
    assert_eq!(quota.admit(SECOND * 2, 550), QuotaVerdict::Admitted);
}
