//! Simulated quota of the service, as far as it is documented and admission depends on it: it
//! counts charges in a minute with an unknown beginning, and reports what is left.
//!
//! Pure. (Azure docs, "quota": a counter of estimated tokens that is reset each minute; what
//! remains and when it is reset are in the headers of every response.) Requests a minute are judged
//! in slices of 1 or 10 s, by the same page: here in the shorter ones, in whole requests whose sum
//! keeps the rate. Nobody else uses the quota, nothing fails, and provisioned deployments have no
//! token limit that could be known before.

use std::time::Duration;

use admission::deployment::DeploymentLimits;
use domain::deployment::ServiceKind;
use domain::headers::RateHeaders;

pub const MINUTE: Duration = Duration::from_secs(60);

/// One quota at the service.
#[derive(Debug, Clone)]
pub struct QuotaCounter {
    /// Tokens a minute; `None`: no known limit.
    tpm: Option<u64>,
    rpm: Option<u64>,
    /// Time into the service's minute at the start of the run.
    phase: Duration,
    /// Index of the open minute, and the tokens booked in it.
    minute: u64,
    booked: u64,
    /// Index of the open second, and the requests in it.
    second: u64,
    taken: u64,
}

impl QuotaCounter {
    pub fn new(limits: &DeploymentLimits, phase: Duration) -> Self {
        let is_metered = limits.service != ServiceKind::Provisioned;
        Self {
            tpm: limits.tpm.filter(|_| is_metered),
            rpm: limits.rpm,
            phase,
            minute: 0,
            booked: 0,
            second: 0,
            taken: 0,
        }
    }

    /// Books a call that arrives `at` this time of the run, and returns its rate limit headers.
    ///
    /// # Errors
    /// If the minute or the second has no room for it: how long to wait.
    pub fn book(&mut self, at: Duration, charge: u64) -> (Result<(), Duration>, RateHeaders) {
        let since = at + self.phase;
        let minute = (since.as_nanos() / MINUTE.as_nanos()) as u64;
        if minute != self.minute {
            (self.minute, self.booked) = (minute, 0);
        }
        let next = Duration::from_nanos_u128(MINUTE.as_nanos() * u128::from(minute + 1)) - since;
        let verdict = match (self.take_request(since), self.tpm) {
            (Err(wait), _) => Err(wait),
            (Ok(()), Some(tpm)) if self.booked + charge > tpm => Err(next),
            _ => {
                self.booked += charge;
                Ok(())
            }
        };
        let left = self.tpm.map(|tpm| tpm - self.booked.min(tpm));
        let headers = RateHeaders {
            limit_tokens: self.tpm,
            limit_requests: self.rpm,
            // Gateways that know nothing report 0.
            remaining_tokens: left.filter(|left| *left > 0),
            reset_tokens: left.map(|_| Duration::from_secs(next.as_secs_f64().ceil() as u64)),
            utilisation: None,
        };
        (verdict, headers)
    }

    fn take_request(&mut self, since: Duration) -> Result<(), Duration> {
        let Some(rpm) = self.rpm else { return Ok(()) };
        let until = |second: u64| rpm * second / MINUTE.as_secs();
        let allowed = |second: u64| until(second + 1) - until(second);
        let second = since.as_secs();
        if second != self.second {
            (self.second, self.taken) = (second, 0);
        }
        if self.taken < allowed(second) {
            self.taken += 1;
            return Ok(());
        }
        // Every minute has a second that takes a request.
        let free = (second + 1..=second + MINUTE.as_secs()).find(|second| allowed(*second) > 0);
        Err(Duration::from_secs(free.unwrap_or(second + 1)) - since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_are_counted_in_the_services_own_minute() {
        let limits = DeploymentLimits { tpm: Some(1_000), ..DeploymentLimits::default() };
        let mut counter = QuotaCounter::new(&limits, Duration::from_secs(40));
        let (verdict, told) = counter.book(Duration::ZERO, 600);
        assert_eq!(verdict, Ok(()));
        assert_eq!(told.remaining_tokens, Some(400));
        assert_eq!(told.reset_tokens, Some(Duration::from_secs(20)));
        let late = Duration::from_secs(19);
        assert_eq!(counter.book(late, 401).0, Err(Duration::from_secs(1)));
        assert_eq!(counter.book(Duration::from_secs(20), 1_000).0, Ok(()), "another minute");
    }

    #[test]
    fn requests_are_judged_by_the_second_and_their_sum_is_the_minutes() {
        let limits = DeploymentLimits { rpm: Some(90), ..DeploymentLimits::default() };
        let mut counter = QuotaCounter::new(&limits, Duration::ZERO);
        let asked = (0..6_000).map(|n| Duration::from_millis(n * 10));
        let admitted = asked.filter(|at| counter.book(*at, 1).0.is_ok());
        assert_eq!(admitted.count(), 90);
        let slow = DeploymentLimits { rpm: Some(6), ..DeploymentLimits::default() };
        let mut counter = QuotaCounter::new(&slow, Duration::ZERO);
        let at = Duration::from_millis(2_500);
        assert_eq!(counter.book(at, 1).0, Err(Duration::from_millis(6_500)), "one in ten seconds");
    }
}
