//! Capacity of one deployment: its quota or its bucket, and its flex tier.
//!
//! Pure, as the parts are. A standard deployment is limited by its `quota`; a provisioned one by
//! its `bucket`, and its quota, then unlimited, only keeps the windows for the ledger. Flex
//! calls need room on the tier first and then pass the same quota, as the service documents it.
//! Neighbours: `judge` calls it, `deployments` changes its profile.

use std::time::Duration;

use super::bucket::LeakyBucket;
use super::meter::HeaderStyle;
use super::profile::DeploymentProfile;
use super::quota::ServiceQuota;
use super::quota_status::{QuotaVerdict, QuotaWindow};
use super::rate_report::{RateReport, ReportedEnd};

#[derive(Debug)]
pub struct DeploymentCapacity {
    profile: DeploymentProfile,
    quota: ServiceQuota,
    /// Present for a provisioned deployment.
    bucket: Option<LeakyBucket>,
    window: Duration,
}

/// Capacity that one request claims.
#[derive(Debug, Clone, Copy)]
pub struct CapacityClaim {
    /// Tokens that a quota books: the prompt and the maximum output.
    pub charge: u64,
    /// Tokens that a bucket adds: the same minus cached tokens.
    pub load: u64,
    pub flex: bool,
}

/// Tokens that a request really used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettledUse {
    pub tokens: u64,
    /// The part of them that came from the prompt cache.
    pub cached: u64,
}

/// Reason why a request is refused now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapacityDenial {
    Tokens {
        retry_after: Duration,
    },
    /// A gateway before the service keeps a limit of its own.
    Gateway {
        retry_after: Duration,
    },
    Requests {
        retry_after: Duration,
    },
    Utilization {
        retry_after: Duration,
    },
    NoFlexRoom,
}

/// Capacity status that the response headers report.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CapacityStatus {
    Quota(RateReport),
    /// 1.0 is 100 %.
    Utilization(f64),
    /// Headers are switched off, as behind a gateway that strips them.
    Hidden,
}

impl DeploymentCapacity {
    /// Creates the capacity for a profile that was checked.
    pub fn new(
        now: Duration,
        profile: DeploymentProfile,
        window: Duration,
        slice: Duration,
    ) -> Self {
        let quota = ServiceQuota::new(profile.limits(), window, slice);
        let mut capacity = Self { profile, quota, bucket: None, window };
        capacity.change(now, profile);
        capacity
    }

    pub fn profile(&self) -> &DeploymentProfile {
        &self.profile
    }

    /// Decides one request, books its cost and returns it.
    pub fn admit(&mut self, now: Duration, claim: CapacityClaim) -> Result<u64, CapacityDenial> {
        if claim.flex && !self.profile.flex.is_some_and(|room| room.is_on(now)) {
            self.quota.refuse(now);
            return Err(CapacityDenial::NoFlexRoom);
        }
        let mut cost = claim.charge;
        if let Some(bucket) = &mut self.bucket {
            if let Err(retry_after) = bucket.admit(now, claim.load) {
                self.quota.refuse(now);
                return Err(CapacityDenial::Utilization { retry_after });
            }
            cost = claim.load;
        }
        match self.quota.admit(now, cost) {
            QuotaVerdict::Admitted => Ok(cost),
            QuotaVerdict::TokensFull { retry_after } => Err(CapacityDenial::Tokens { retry_after }),
            QuotaVerdict::RequestsFull { retry_after } => {
                Err(CapacityDenial::Requests { retry_after })
            }
            QuotaVerdict::GatewayFull { retry_after } => {
                Err(CapacityDenial::Gateway { retry_after })
            }
        }
    }

    /// Corrects the estimate to what a request, admitted at `now`, really used: from `at` (its end)
    /// on.
    pub fn settle(&mut self, now: Duration, at: Duration, claim: CapacityClaim, used: SettledUse) {
        match &mut self.bucket {
            Some(bucket) => bucket.settle(at, claim.load, used.tokens - used.cached),
            None => self.quota.settle(now, at, claim.charge, used.tokens),
        }
    }

    /// Returns what the headers of a request report that ended so.
    pub fn report(&mut self, now: Duration, end: ReportedEnd) -> CapacityStatus {
        match &mut self.bucket {
            Some(_) if self.profile.meter.headers == HeaderStyle::None => CapacityStatus::Hidden,
            Some(bucket) => CapacityStatus::Utilization(bucket.utilization(now)),
            None => CapacityStatus::Quota(self.quota.report(now, end)),
        }
    }

    /// Returns the utilisation of a provisioned deployment, even if the headers are off.
    pub fn utilization(&mut self, now: Duration) -> Option<f64> {
        self.bucket.as_mut().map(|bucket| bucket.utilization(now))
    }

    /// Applies a new profile from now on; existing bookings stay.
    pub fn change(&mut self, now: Duration, profile: DeploymentProfile) {
        self.profile = profile;
        self.quota.set_limits(now, profile.limits());
        self.quota.set_rules(now, profile.meter);
        self.quota.set_foreign_traffic(now, profile.foreign_traffic());
        match (&mut self.bucket, profile.ptu) {
            (Some(bucket), Some(ptu)) => bucket.set_rate(now, ptu),
            (None, Some(ptu)) => self.bucket = Some(LeakyBucket::new(now, ptu, self.window)),
            (_, None) => self.bucket = None,
        }
        if let Some(bucket) = &mut self.bucket {
            bucket.set_foreign_traffic(now, profile.foreign_traffic());
        }
    }

    pub fn windows(&self) -> impl Iterator<Item = &QuotaWindow> {
        self.quota.windows()
    }

    pub fn clear_windows(&mut self) {
        self.quota.clear_windows();
    }
}

#[cfg(test)]
mod tests {
    use super::super::duty_cycle::DutyCycle;
    use super::super::profile::ProfileSetting;
    use super::super::settings::SimulatorSettings;
    use super::*;

    const START: Duration = Duration::ZERO;
    const SECOND: Duration = Duration::from_secs(1);

    fn capacity(settings: &[ProfileSetting]) -> DeploymentCapacity {
        let profile = SimulatorSettings::default().profile().with(START, settings).unwrap();
        DeploymentCapacity::new(START, profile, Duration::from_secs(10), SECOND)
    }

    fn claim(charge: u64) -> CapacityClaim {
        CapacityClaim { charge, load: charge, flex: false }
    }

    #[test]
    fn a_provisioned_deployment_is_judged_by_its_bucket_and_keeps_windows() {
        let mut capacity = capacity(&[ProfileSetting::Ptu(Some(6_000))]);
        let cached = CapacityClaim { load: 1_100, ..claim(2_000) };
        assert_eq!(capacity.admit(START, cached), Ok(1_100));
        let retry_after = SECOND;
        assert_eq!(
            capacity.admit(START, claim(1)),
            Err(CapacityDenial::Utilization { retry_after })
        );
        let success = ReportedEnd::Success;
        assert_eq!(capacity.report(START, success), CapacityStatus::Utilization(1.1));
        let used = SettledUse { tokens: 1_500, cached: 900 };
        capacity.settle(START, START, cached, used);
        assert_eq!(capacity.utilization(START), Some(0.6));
        let window = capacity.windows().next().unwrap();
        assert_eq!((window.charged, window.admitted, window.refused), (1_100, 1, 1));
    }

    #[test]
    fn flex_needs_room_and_then_the_same_quota() {
        let flex = Some(DutyCycle { on: SECOND, period: 3 * SECOND });
        let mut capacity = capacity(&[ProfileSetting::Tpm(Some(600)), ProfileSetting::Flex(flex)]);
        let flex = CapacityClaim { flex: true, ..claim(60) };
        assert_eq!(capacity.admit(SECOND, flex), Err(CapacityDenial::NoFlexRoom));
        assert_eq!(capacity.admit(SECOND, claim(60)), Ok(60), "the standard tier has room");
        let retry_after = 7 * SECOND;
        assert_eq!(capacity.admit(3 * SECOND, flex), Err(CapacityDenial::Tokens { retry_after }));
        assert_eq!(capacity.admit(12 * SECOND, flex), Ok(60));
    }

    #[test]
    fn headers_are_hidden_while_somebody_strips_them() {
        let mut capacity = capacity(&[
            ProfileSetting::RateHeaders(HeaderStyle::None),
            ProfileSetting::Ptu(Some(60)),
        ]);
        assert_eq!(capacity.report(START, ReportedEnd::Success), CapacityStatus::Hidden);
        assert_eq!(capacity.utilization(START), Some(0.0));
    }

    #[test]
    fn a_deployment_can_become_provisioned_and_standard_again() {
        let mut capacity = capacity(&[ProfileSetting::Tpm(Some(60))]);
        let standard = *capacity.profile();
        capacity.change(START, DeploymentProfile { ptu: Some(6_000), ..standard });
        assert_eq!(capacity.admit(START, claim(500)), Ok(500), "more than its quota was");
        capacity.change(START, standard);
        assert!(matches!(capacity.admit(START, claim(1)), Err(CapacityDenial::Tokens { .. })));
    }
}
