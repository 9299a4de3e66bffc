//! What one deployment can take at the moment: its quota or its bucket, and its flex tier.
//!
//! Pure, as the parts are. A standard deployment is judged by its `quota`; a provisioned one by its
//! `bucket`, and its quota, which is then unlimited, only keeps the windows for the books. Flex
//! calls need room on the tier first and then pass the same quota, as the service documents it.
//! Neighbours: `judge` asks it, `deployments` changes its profile.

use std::time::Duration;

use super::bucket::Bucket;
use super::profile::Profile;
use super::quota::{Quota, Standing, Verdict, Window};

#[derive(Debug)]
pub struct Capacity {
    profile: Profile,
    quota: Quota,
    /// Of a provisioned deployment.
    bucket: Option<Bucket>,
    window: Duration,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// What a quota books: the prompt and the most output.
    pub charge: u64,
    /// What a bucket adds: the same without what is cached.
    pub load: u64,
    pub flex: bool,
}

/// Why a request may not go now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    Tokens { retry_after: Duration },
    Requests { retry_after: Duration },
    Utilization { retry_after: Duration },
    NoFlexRoom,
}

/// What the headers tell of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    Quota(Standing),
    /// 1.0 is 100 %.
    Utilization(f64),
    /// Somebody strips them.
    Hidden,
}

impl Capacity {
    /// For a profile that was checked.
    pub fn new(now: Duration, profile: Profile, window: Duration, slice: Duration) -> Self {
        let quota = Quota::new(profile.limits(), window, slice);
        let mut capacity = Self { profile, quota, bucket: None, window };
        capacity.change(now, profile);
        capacity
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Judges one request and books what it costs, which it returns.
    pub fn admit(&mut self, now: Duration, claim: Claim) -> Result<u64, Denial> {
        if claim.flex && !self.profile.flex.is_some_and(|room| room.is_on(now)) {
            self.quota.refuse(now);
            return Err(Denial::NoFlexRoom);
        }
        let mut cost = claim.charge;
        if let Some(bucket) = &mut self.bucket {
            if let Err(retry_after) = bucket.admit(now, claim.load) {
                self.quota.refuse(now);
                return Err(Denial::Utilization { retry_after });
            }
            cost = claim.load;
        }
        match self.quota.admit(now, cost) {
            Verdict::Admitted => Ok(cost),
            Verdict::TokensFull { retry_after } => Err(Denial::Tokens { retry_after }),
            Verdict::RequestsFull { retry_after } => Err(Denial::Requests { retry_after }),
        }
    }

    /// Says what an admitted request really used, which counts from `at` on: when it is done. Only
    /// buckets care.
    pub fn settle(&mut self, at: Duration, claim: Claim, used: u64) {
        if let Some(bucket) = &mut self.bucket {
            bucket.settle(at, claim.load, used);
        }
    }

    pub fn reading(&mut self, now: Duration) -> Reading {
        match &mut self.bucket {
            _ if !self.profile.rate_headers => Reading::Hidden,
            Some(bucket) => Reading::Utilization(bucket.utilization(now)),
            None => Reading::Quota(self.quota.standing(now)),
        }
    }

    /// The utilisation of a provisioned deployment, whether or not the headers tell it.
    pub fn utilization(&mut self, now: Duration) -> Option<f64> {
        self.bucket.as_mut().map(|bucket| bucket.utilization(now))
    }

    /// Behaves otherwise from now on; what is booked stays booked.
    pub fn change(&mut self, now: Duration, profile: Profile) {
        self.profile = profile;
        self.quota.set_limits(now, profile.limits());
        self.quota.set_others(now, profile.others());
        match (&mut self.bucket, profile.ptu) {
            (Some(bucket), Some(ptu)) => bucket.set_rate(now, ptu),
            (None, Some(ptu)) => self.bucket = Some(Bucket::new(now, ptu, self.window)),
            (_, None) => self.bucket = None,
        }
        if let Some(bucket) = &mut self.bucket {
            bucket.set_others(now, profile.others());
        }
    }

    pub fn windows(&self) -> impl Iterator<Item = &Window> {
        self.quota.windows()
    }

    pub fn forget_windows(&mut self) {
        self.quota.forget_windows();
    }
}

#[cfg(test)]
mod tests {
    use super::super::duty::Duty;
    use super::super::profile::Setting;
    use super::super::settings::Settings;
    use super::*;

    const START: Duration = Duration::ZERO;
    const SECOND: Duration = Duration::from_secs(1);

    fn capacity(settings: &[Setting]) -> Capacity {
        let profile = Settings::default().profile().with(START, settings).unwrap();
        Capacity::new(START, profile, Duration::from_secs(10), SECOND)
    }

    fn claim(charge: u64) -> Claim {
        Claim { charge, load: charge, flex: false }
    }

    #[test]
    fn a_provisioned_deployment_is_judged_by_its_bucket_and_keeps_windows() {
        let mut capacity = capacity(&[Setting::Ptu(Some(6_000))]);
        let cached = Claim { load: 1_100, ..claim(2_000) };
        assert_eq!(capacity.admit(START, cached), Ok(1_100));
        let retry_after = SECOND;
        assert_eq!(capacity.admit(START, claim(1)), Err(Denial::Utilization { retry_after }));
        assert_eq!(capacity.reading(START), Reading::Utilization(1.1));
        capacity.settle(START, cached, 600);
        assert_eq!(capacity.utilization(START), Some(0.6));
        let window = capacity.windows().next().unwrap();
        assert_eq!((window.charged, window.admitted, window.refused), (1_100, 1, 1));
    }

    #[test]
    fn flex_needs_room_and_then_the_same_quota() {
        let flex = Some(Duty { on: SECOND, period: 3 * SECOND });
        let mut capacity = capacity(&[Setting::Tpm(Some(600)), Setting::Flex(flex)]);
        let flex = Claim { flex: true, ..claim(60) };
        assert_eq!(capacity.admit(SECOND, flex), Err(Denial::NoFlexRoom));
        assert_eq!(capacity.admit(SECOND, claim(60)), Ok(60), "the standard tier has room");
        let retry_after = 7 * SECOND;
        assert_eq!(capacity.admit(3 * SECOND, flex), Err(Denial::Tokens { retry_after }));
        assert_eq!(capacity.admit(12 * SECOND, flex), Ok(60));
    }

    #[test]
    fn headers_are_hidden_while_somebody_strips_them() {
        let mut capacity = capacity(&[Setting::RateHeaders(false), Setting::Ptu(Some(60))]);
        assert_eq!(capacity.reading(START), Reading::Hidden);
        assert_eq!(capacity.utilization(START), Some(0.0));
    }

    #[test]
    fn a_deployment_can_become_provisioned_and_standard_again() {
        let mut capacity = capacity(&[Setting::Tpm(Some(60))]);
        let standard = *capacity.profile();
        capacity.change(START, Profile { ptu: Some(6_000), ..standard });
        assert_eq!(capacity.admit(START, claim(500)), Ok(500), "more than its quota was");
        capacity.change(START, standard);
        assert!(matches!(capacity.admit(START, claim(1)), Err(Denial::Tokens { .. })));
    }
}
