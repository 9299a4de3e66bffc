//! What the service does with a call, as far as it is documented and admission goes by it: it counts
//! charges in a minute that begins at a moment which nobody tells, and says what is left.
//!
//! Pure. (Azure docs, "quota": a counter of estimated tokens that is reset each minute; what remains
//! and when it is reset stands in the headers of every response.) Requests are not refused here: they
//! are paced below the rate that the service's slices of 1 or 10 s allow. Nobody else uses the quota,
//! nothing fails, and provisioned deployments have no limit that could be known before.

use std::time::Duration;

use crate::admission::deployment::{Limits, Service};
use crate::model::headers::RateHeaders;

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
        }
    }

    /// Books a call that arrives so long after the beginning, and says what its response tells.
    ///
    /// # Errors
    /// How long to wait, where the minute has no room for it.
    pub fn book(&mut self, at: Duration, charge: u64) -> (Result<(), Duration>, RateHeaders) {
        let since = at + self.phase;
        let minute = (since.as_nanos() / MINUTE.as_nanos()) as u64;
        if minute != self.minute {
            (self.minute, self.booked) = (minute, 0);
        }
        let next = Duration::from_nanos_u128(MINUTE.as_nanos() * u128::from(minute + 1)) - since;
        let verdict = match self.tpm {
            Some(tpm) if self.booked + charge > tpm => Err(next),
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
}
