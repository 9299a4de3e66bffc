//! What the service does with a call, as far as it is documented and admission goes by it: it counts
//! charges in a minute that begins at a moment which nobody tells, and says what is left.
//!
//! Pure. (Azure docs, "quota": a counter of estimated tokens that is reset each minute; what remains
//! and when it is reset stands in the headers of every response.) Requests a minute are judged in slices
//! of 1 or 10 s, by the same page: here in the shorter ones, in whole requests whose sum keeps the rate.
//! Nobody else uses the quota, nothing fails, and provisioned deployments have no limit that could be
//! known before.

use std::time::Duration;

use admission::deployment::{Limits, Service};
use domain::headers::RateHeaders;

pub const MINUTE: Duration = Duration::from_secs(60);

/// One quota at the service.
#[derive(Debug, Clone)]
pub struct Counter {
    /// Tokens a minute; `None`: none that we know of.
    tpm: Option<u64>,
    rpm: Option<u64>,
    /// How far its minute is when we begin.
    phase: Duration,
    /// The minute that is open, and what is booked in it.
    minute: u64,
    booked: u64,
    /// The second that is open, and the requests in it.
    second: u64,
    taken: u64,
}

impl Counter {
    pub fn new(limits: &Limits, phase: Duration) -> Self {
        let is_metered = limits.service != Service::Provisioned;
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

    /// Books a call that arrives so long after the beginning, and says what its response tells.
    ///
    /// # Errors
    /// How long to wait, where the minute or the second has no room for it.
    pub fn book(&mut self, at: Duration, charge: u64) -> (Result<(), Duration>, RateHeaders) {
        let since = at + self.phase;
        let minute = (since.as_nanos() / MINUTE.as_nanos()) as u64;
        if minute != self.minute {
            (self.minute, self.booked) = (minute, 0);
        }
        let next = Duration::from_nanos_u128(MINUTE.as_nanos() * u128::from(minute + 1)) - since;
        let verdict = match (self.request(since), self.tpm) {
            (Err(wait), _) => Err(wait),
            (Ok(()), Some(tpm)) if self.booked + charge > tpm => Err(next),
            _ => {
                self.booked += charge;
                Ok(())
            }
        };
        let left = self.tpm.map(|tpm| tpm - self.booked.min(tpm));
        let told = RateHeaders {
            limit_tokens: self.tpm,
            limit_requests: self.rpm,
            // 0 is what gateways say that know nothing.
            remaining_tokens: left.filter(|left| *left > 0),
            reset_tokens: left.map(|_| Duration::from_secs(next.as_secs_f64().ceil() as u64)),
            utilisation: None,
        };
        (verdict, told)
    }

    fn request(&mut self, since: Duration) -> Result<(), Duration> {
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
        // Of any minute's seconds one takes a request.
        let free = (second + 1..=second + MINUTE.as_secs()).find(|second| allowed(*second) > 0);
        Err(Duration::from_secs(free.unwrap_or(second + 1)) - since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_are_counted_in_the_services_own_minute() {
        let limits = Limits { tpm: Some(1_000), ..Limits::default() };
        let mut counter = Counter::new(&limits, Duration::from_secs(40));
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
        let limits = Limits { rpm: Some(90), ..Limits::default() };
        let mut counter = Counter::new(&limits, Duration::ZERO);
        let asked = (0..6_000).map(|n| Duration::from_millis(n * 10));
        let admitted = asked.filter(|at| counter.book(*at, 1).0.is_ok());
        assert_eq!(admitted.count(), 90);
        let slow = Limits { rpm: Some(6), ..Limits::default() };
        let mut counter = Counter::new(&slow, Duration::ZERO);
        let at = Duration::from_millis(2_500);
        assert_eq!(counter.book(at, 1).0, Err(Duration::from_millis(6_500)), "one in ten seconds");
    }
}
