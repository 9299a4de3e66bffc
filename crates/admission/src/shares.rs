//! Division of one quota among instances: the fraction of it that each may use.
//!
//! Pure: [`QuotaShares`] gets the heartbeats and the time; the worker's share task does the I/O.
//! `docs/shares.md` describes the protocol, its bounds and what it costs.
//!
//! An *exchange* is: publish a heartbeat, wait until it is durable, read the siblings' heartbeats.
//! Each carries a *claim*, which is never less than what its instance uses. A share is lowered
//! before the heartbeat says so, and raised after the heartbeat has said so, into what the claims
//! of the others leave. So of two who raise at the same time, the one that reads last sees the
//! other, and the sum of all shares does not pass 1 (the floors aside), whatever the order and the
//! delays.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use domain::heartbeat::{EXCHANGE_INTERVAL, Heartbeat, QuotaClaim};

/// Silence after which an instance is taken for dead, by the reader's own clock. Three intervals:
/// two heartbeats may be lost. With the interval in which the last one was read, the share of a
/// dead one is free after 8 s.
pub const EXPIRY: Duration = Duration::from_secs(6);

/// Half-life of a share without an exchange for longer than the expiry.
pub const HALVING: Duration = Duration::from_secs(5);

/// Delay until a changed share is published, ahead of the interval.
const PUBLISH_DELAY: Duration = Duration::from_millis(250);

/// Delay until the next search for room for a larger share, and until a failed exchange is retried.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Longest silence that one gap between two reads counts for. An instance that did not or could not
/// read must not blame others for silence.
const LONGEST_GAP: Duration = EXCHANGE_INTERVAL;

/// Smallest change of a share that is worth an exchange of its own.
const NOTABLE_CHANGE: f64 = 0.01;

/// Fraction that anybody may use at any time, so that newcomers and those who wake up begin at
/// once.
const LARGEST_FLOOR: f64 = 0.01;

/// Largest sum of all floors, as a part of the quota.
const LARGEST_FLOOR_SUM: f64 = 0.05;

/// Returns the floor where so many instances use a deployment, this one included.
pub fn floor(instances: usize) -> f64 {
    LARGEST_FLOOR.min(LARGEST_FLOOR_SUM / instances.max(1) as f64)
}

/// Returns our fair part of a quota, by demands (each a fraction of that quota).
///
/// Where there is enough for all, shares are in proportion to the demands, so that everybody has
/// the same room to grow. Where there is not, small demands are met and the rest is split evenly
/// among those who want more (max-min fairness): in proportion, somebody who needs little would get
/// less than that, come to want everything, get too much, and swing.
pub fn fair_share(own: f64, others: &[f64]) -> f64 {
    let all = own + others.iter().sum::<f64>();
    if all <= 0.0 {
        return 1.0 / (others.len() + 1) as f64;
    }
    if all <= 1.0 {
        return own / all;
    }
    own.min(fair_level(own, others))
}

/// Returns the level up to which demands can be met when they exceed the quota.
fn fair_level(own: f64, others: &[f64]) -> f64 {
    let mut demands: Vec<f64> = others.iter().copied().chain([own]).collect();
    demands.sort_by(f64::total_cmp);
    let mut left = 1.0;
    for (met, demand) in demands.iter().enumerate() {
        let even = left / (demands.len() - met) as f64;
        if *demand >= even {
            return even;
        }
        left -= demand;
    }
    1.0
}

/// Shares of this instance in all its deployments, and what it knows of its siblings.
#[derive(Debug)]
pub struct QuotaShares {
    own: BTreeMap<String, OwnShare>,
    siblings: BTreeMap<Uuid, SiblingWorker>,
    /// Start of the last exchange that succeeded: siblings may have read nothing since.
    exchanged_at: Option<Instant>,
    read_at: Option<Instant>,
    failed_at: Option<Instant>,
}

#[derive(Debug)]
struct OwnShare {
    demand: f64,
    /// Share that the demands, as last read, justify.
    target: f64,
    /// Claim of the last heartbeat that is surely durable.
    claim: f64,
    share: f64,
    instances: usize,
}

#[derive(Debug)]
struct SiblingWorker {
    sequence: u64,
    /// Time by our clock for which its sequence number has not changed.
    silent: Duration,
    quota_claims: BTreeMap<String, QuotaClaim>,
}

impl QuotaShares {
    /// Creates a newcomer: it asks for as much as anybody, until it knows better, and has the
    /// floor.
    pub fn new(deployments: impl IntoIterator<Item = String>) -> Self {
        let own = || OwnShare { demand: 1.0, target: 0.0, claim: 0.0, share: 0.0, instances: 1 };
        Self {
            own: deployments.into_iter().map(|key| (key, own())).collect(),
            siblings: BTreeMap::new(),
            exchanged_at: None,
            read_at: None,
            failed_at: None,
        }
    }

    /// Sets how much of a deployment this instance could use, as a fraction of its quota.
    pub fn set_demand(&mut self, deployment: &str, demand: f64) {
        if let Some(own) = self.own.get_mut(deployment) {
            own.demand = demand.clamp(0.0, 1.0);
        }
    }

    /// Returns the claims to publish now.
    pub fn quota_claims(&self) -> BTreeMap<String, QuotaClaim> {
        let part = |own: &OwnShare| QuotaClaim { demand: own.demand, claim: own.target };
        self.own.iter().map(|(key, own)| (key.clone(), part(own))).collect()
    }

    /// Reads the siblings' heartbeats without having published one: a newcomer's first read.
    pub fn observe_siblings(&mut self, heartbeats: Vec<Heartbeat>, now: Instant) {
        self.update_siblings(heartbeats, now);
        self.update_targets();
    }

    /// Records an exchange that began at `began`: `published` is durable, `heartbeats` were read
    /// after that.
    pub fn record_exchange(
        &mut self,
        published: &BTreeMap<String, QuotaClaim>,
        heartbeats: Vec<Heartbeat>,
        began: Instant,
        now: Instant,
    ) {
        // After a silence the siblings may have divided what was ours.
        let silent = self.exchanged_at.is_some_and(|at| now > at + EXPIRY);
        let faded = silent.then(|| self.decay_factor(now));
        self.update_siblings(heartbeats, now);
        for (key, own) in &mut self.own {
            own.claim = published.get(key).map_or(0.0, |part| part.claim);
            let claims = sibling_claims(&self.siblings, key).map(|part| part.claim);
            let room = 1.0 - claims.sum::<f64>();
            if let Some(faded) = faded {
                own.share = (own.share * faded).min(room.max(0.0));
            }
            own.share = own.share.max(own.claim.min(room));
        }
        self.exchanged_at = Some(began);
        self.failed_at = None;
        self.update_targets();
    }

    /// Records that an exchange failed; it may have been carried out in part.
    pub fn record_failure(&mut self, now: Instant) {
        self.failed_at = Some(now);
    }

    /// Returns what this instance may use of a deployment now, as a fraction of its quota.
    pub fn fraction(&self, deployment: &str, now: Instant) -> f64 {
        let Some(own) = self.own.get(deployment) else { return 0.0 };
        (own.share * self.decay_factor(now)).max(floor(own.instances))
    }

    /// Returns when the next exchange is due.
    pub fn next_exchange(&self, now: Instant) -> Instant {
        if let Some(failed_at) = self.failed_at {
            return failed_at + RETRY_DELAY;
        }
        let Some((agreed_at, heard_at)) = self.exchanged_at.zip(self.read_at) else { return now };
        let mut due = agreed_at + EXCHANGE_INTERVAL;
        for own in self.own.values() {
            if (own.target - own.claim).abs() > NOTABLE_CHANGE {
                due = due.min(heard_at + PUBLISH_DELAY);
            } else if own.target - own.share > NOTABLE_CHANGE {
                due = due.min(heard_at + RETRY_DELAY);
            }
        }
        let alive = self.siblings.values().filter(|sibling| sibling.is_alive());
        let expiries = alive.map(|sibling| heard_at + EXPIRY.saturating_sub(sibling.silent));
        expiries.min().map_or(due, |first| due.min(first)).max(now)
    }

    /// Counts the siblings that are taken to be alive.
    pub fn siblings(&self) -> usize {
        self.siblings.values().filter(|sibling| sibling.is_alive()).count()
    }

    fn update_siblings(&mut self, heartbeats: Vec<Heartbeat>, now: Instant) {
        let gap = self.read_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let gap = gap.min(LONGEST_GAP);
        // A sibling that has deleted its heartbeat is gone.
        let known = std::mem::take(&mut self.siblings);
        for heartbeat in heartbeats.into_iter().filter(Heartbeat::is_worker) {
            let unchanged =
                known.get(&heartbeat.instance).filter(|old| old.sequence == heartbeat.sequence);
            let silent = unchanged.map_or(Duration::ZERO, |old| old.silent + gap);
            let sibling = SiblingWorker {
                sequence: heartbeat.sequence,
                silent,
                quota_claims: heartbeat.quota_claims,
            };
            self.siblings.insert(heartbeat.instance, sibling);
        }
        self.read_at = Some(now);
    }

    /// Sets the targets by all demands. A share above its target is lowered at once.
    fn update_targets(&mut self) {
        for (key, own) in &mut self.own {
            let demands: Vec<f64> =
                sibling_claims(&self.siblings, key).map(|part| part.demand).collect();
            own.instances = demands.len() + 1;
            own.target = if demands.is_empty() { 1.0 } else { fair_share(own.demand, &demands) };
            own.share = own.share.min(own.target);
        }
    }

    /// Returns the part of a share that is left without an exchange: all of it until the siblings
    /// may have given it away.
    fn decay_factor(&self, now: Instant) -> f64 {
        let Some(agreed_at) = self.exchanged_at else { return 1.0 };
        let late = now.saturating_duration_since(agreed_at + EXPIRY);
        0.5_f64.powf(late.as_secs_f64() / HALVING.as_secs_f64())
    }
}

impl SiblingWorker {
    fn is_alive(&self) -> bool {
        self.silent < EXPIRY
    }
}

/// Returns the claims of the living siblings on one deployment.
fn sibling_claims<'a>(
    siblings: &'a BTreeMap<Uuid, SiblingWorker>,
    deployment: &'a str,
) -> impl Iterator<Item = &'a QuotaClaim> {
    let alive = siblings.values().filter(|sibling| sibling.is_alive());
    alive.filter_map(move |sibling| sibling.quota_claims.get(deployment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::heartbeat::WorkerStatus;

    const D: &str = "deployment";

    fn word(instance: u128, beat: u64, demand: f64, claim: f64) -> Heartbeat {
        let parts = BTreeMap::from([(D.to_owned(), QuotaClaim { demand, claim })]);
        Heartbeat {
            instance: Uuid::from_u128(instance),
            sequence: beat,
            quota_claims: parts,
            status: WorkerStatus::default(),
        }
    }

    /// One exchange that takes no time.
    fn exchange(shares: &mut QuotaShares, words: &[Heartbeat], now: Instant) -> f64 {
        let said = shares.quota_claims();
        shares.record_exchange(&said, words.to_vec(), now, now);
        shares.fraction(D, now)
    }

    fn newcomer(words: &[Heartbeat], now: Instant) -> QuotaShares {
        let mut shares = QuotaShares::new([D.to_owned()]);
        shares.observe_siblings(words.to_vec(), now);
        shares
    }

    #[test]
    fn small_demands_are_met_and_the_rest_is_split_evenly() {
        for (own, others, expected) in [
            (1.0, &[][..], 1.0),
            (0.2, &[0.3], 0.4),
            (0.0, &[0.3], 0.0),
            (0.0, &[0.0, 0.0, 0.0], 0.25),
            (1.0, &[1.0, 1.0, 1.0], 0.25),
            (1.0, &[0.1, 1.0], 0.45),
            (0.1, &[1.0, 1.0], 0.1),
            (0.5, &[1.0, 0.2], 0.4),
        ] {
            let got = fair_share(own, others);
            assert!((got - expected).abs() < 1e-9, "{own} beside {others:?}: {got}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_worker_has_all_of_it_after_one_exchange() {
        let now = Instant::now();
        let mut shares = newcomer(&[], now);
        assert!(shares.fraction(D, now) <= 0.01, "nothing is said yet");
        assert_eq!(exchange(&mut shares, &[], now), 1.0);
        shares.set_demand(D, 0.0);
        assert_eq!(exchange(&mut shares, &[], now + EXCHANGE_INTERVAL), 1.0, "also when it idles");
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_asks_is_no_sibling() {
        let now = Instant::now();
        let asker = Heartbeat { quota_claims: BTreeMap::new(), ..word(3, 1, 0.0, 0.0) };
        let mut shares = newcomer(std::slice::from_ref(&asker), now);
        assert_eq!((shares.siblings(), shares.fraction(D, now)), (0, floor(1)));
        assert_eq!(exchange(&mut shares, std::slice::from_ref(&asker), now), 1.0);
        let before = shares.next_exchange(now);
        assert_eq!(exchange(&mut shares, &[], now), 1.0);
        assert_eq!(shares.next_exchange(now), before, "its silence and its leaving change nothing");
        exchange(&mut shares, &[word(1, 1, 1.0, 0.5), asker], now + EXCHANGE_INTERVAL);
        assert_eq!((shares.siblings(), shares.quota_claims()[D].claim), (1, 0.5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_waits_until_there_is_room() {
        let now = Instant::now();
        let mut shares = newcomer(&[word(1, 1, 1.0, 1.0)], now);
        assert_eq!(shares.quota_claims()[D].claim, 0.5, "it asks for its half");
        assert_eq!(exchange(&mut shares, &[word(1, 1, 1.0, 1.0)], now), 0.01);
        assert_eq!(exchange(&mut shares, &[word(1, 2, 1.0, 0.75)], now + EXCHANGE_INTERVAL), 0.25);
        assert_eq!(
            exchange(&mut shares, &[word(1, 3, 1.0, 0.5)], now + 2 * EXCHANGE_INTERVAL),
            0.5
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_is_lowered_at_once_and_told_soon() {
        let now = Instant::now();
        let mut shares = newcomer(&[], now);
        exchange(&mut shares, &[], now);
        assert_eq!(exchange(&mut shares, &[word(1, 1, 1.0, 0.5)], now + EXCHANGE_INTERVAL), 0.5);
        assert_eq!(
            shares.next_exchange(now + EXCHANGE_INTERVAL),
            now + EXCHANGE_INTERVAL + PUBLISH_DELAY
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_dead_are_known_by_their_silence_and_the_leavers_by_their_absence() {
        let now = Instant::now();
        let (dead, leaver) = (word(1, 7, 1.0, 0.4), word(2, 7, 1.0, 0.3));
        let mut shares = newcomer(&[dead.clone(), leaver.clone()], now);
        exchange(&mut shares, &[dead.clone(), leaver], now);
        exchange(&mut shares, std::slice::from_ref(&dead), now + EXCHANGE_INTERVAL);
        assert_eq!(shares.siblings(), 1);
        let mut at = now + EXCHANGE_INTERVAL;
        while shares.siblings() > 0 {
            at = shares.next_exchange(at).max(at + Duration::from_millis(1));
            exchange(&mut shares, std::slice::from_ref(&dead), at);
        }
        assert_eq!(at, now + EXPIRY, "it is looked at when it expires, not at the next beat");
        let at = shares.next_exchange(at);
        assert_eq!(exchange(&mut shares, &[dead], at), 1.0);
        assert!(at <= now + EXPIRY + PUBLISH_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn without_the_store_a_share_is_kept_then_halved_down_to_the_floor() {
        let now = Instant::now();
        let mut shares = newcomer(&[], now);
        exchange(&mut shares, &[word(1, 1, 1.0, 0.5)], now);
        exchange(&mut shares, &[word(1, 2, 1.0, 0.5)], now + EXCHANGE_INTERVAL);
        let last = now + EXCHANGE_INTERVAL;
        assert_eq!(shares.fraction(D, last + EXPIRY), 0.5);
        assert_eq!(shares.fraction(D, last + EXPIRY + HALVING), 0.25);
        assert_eq!(shares.fraction(D, last + Duration::from_secs(3_600)), 0.01);
        // The sibling was away as well, and still holds its half: we get ours back.
        let back = last + Duration::from_secs(60);
        assert_eq!(exchange(&mut shares, &[word(1, 2, 1.0, 0.5)], back), 0.5);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_to_siblings_that_shared_it_out_begins_anew() {
        let now = Instant::now();
        let mut shares = newcomer(&[], now);
        exchange(&mut shares, &[word(1, 1, 1.0, 0.5)], now);
        exchange(&mut shares, &[word(1, 2, 1.0, 0.5)], now + EXCHANGE_INTERVAL);
        let back = now + EXCHANGE_INTERVAL + EXPIRY + Duration::from_secs(1);
        assert_eq!(exchange(&mut shares, &[word(1, 9, 1.0, 1.0)], back), 0.01);
    }
}
