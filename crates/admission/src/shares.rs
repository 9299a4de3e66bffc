//! One quota over many instances: how large a fraction of it each may use.
//!
//! Pure: [`Shares`] is told what was heard and when; the worker's share task does the talking.
//! `docs/shares.md` has the protocol in words, its bounds and what it costs.
//!
//! An *exchange* is: publish a word, wait until it is durable, read the siblings' words. Each word
//! carries a *claim*, which is never less than what its instance uses. A share is lowered before
//! the word says so, and raised after the word has said so, into what the claims of the others
//! leave. So of two who raise at the same time, the one that reads last sees the other, and the sum
//! of all shares does not pass 1 (the floors aside), whatever the order and the delays.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use domain::share::{Part, Word};

/// From one exchange to the next.
pub const BEAT: Duration = Duration::from_secs(2);

/// Who says nothing new for so long is dead, by the reader's own clock. Three beats: two may be
/// lost. With the beat in which the last word was read, a dead one's share is free after 8 s.
pub const EXPIRY: Duration = Duration::from_secs(6);

/// Without an exchange for longer than the expiry, a share halves in each of these.
pub const HALVING: Duration = Duration::from_secs(5);

/// How soon a share that changed is told, ahead of the beat.
const SOON: Duration = Duration::from_millis(250);

/// How soon one looks again for room for a larger share, and tries again what failed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What one gap between two looks at the siblings counts for at the most. Whoever did not look, or
/// could not, has no reason to blame others for silence.
const LONGEST_GAP: Duration = BEAT;

/// A change of a share that is worth an exchange of its own.
const NOTABLE: f64 = 0.01;

/// What anybody may use at any time, so that newcomers and those who wake up begin at once.
const LARGEST_FLOOR: f64 = 0.01;

/// All floors together never come to more than this part of the quota.
const ALL_FLOORS: f64 = 0.05;

/// The floor where so many instances use a deployment, this one included.
pub fn floor(instances: usize) -> f64 {
    LARGEST_FLOOR.min(ALL_FLOORS / instances.max(1) as f64)
}

/// One's own fair part of a quota, by demands (each a fraction of that quota).
///
/// Where there is enough for all, shares are in proportion to the demands, so that everybody has
/// the same room to grow. Where there is not, small demands are met and the rest is split evenly
/// among those who want more: in proportion, somebody who needs little would get less than that,
/// come to want everything, get too much, and swing.
pub fn fair(own: f64, others: &[f64]) -> f64 {
    let all = own + others.iter().sum::<f64>();
    if all <= 0.0 {
        return 1.0 / (others.len() + 1) as f64;
    }
    if all <= 1.0 {
        return own / all;
    }
    own.min(level(own, others))
}

/// The level up to which demands can be met when they come to more than the quota.
fn level(own: f64, others: &[f64]) -> f64 {
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

/// This instance's shares of all its deployments, and what it knows of its siblings.
#[derive(Debug)]
pub struct Shares {
    own: BTreeMap<String, Own>,
    siblings: BTreeMap<Uuid, Sibling>,
    /// When the last exchange that succeeded began: since when siblings may have heard nothing.
    agreed_at: Option<Instant>,
    heard_at: Option<Instant>,
    failed_at: Option<Instant>,
}

#[derive(Debug)]
struct Own {
    demand: f64,
    /// What the demands, as last heard, say.
    target: f64,
    /// What the last word that is surely durable said.
    claim: f64,
    share: f64,
    instances: usize,
}

#[derive(Debug)]
struct Sibling {
    beat: u64,
    /// For how long, by our clock, its beat has not been seen to change.
    silent: Duration,
    parts: BTreeMap<String, Part>,
}

impl Shares {
    /// A newcomer's: it asks for as much as anybody, until it knows better, and has the floor.
    pub fn new(deployments: impl IntoIterator<Item = String>) -> Self {
        let own = || Own { demand: 1.0, target: 0.0, claim: 0.0, share: 0.0, instances: 1 };
        Self {
            own: deployments.into_iter().map(|key| (key, own())).collect(),
            siblings: BTreeMap::new(),
            agreed_at: None,
            heard_at: None,
            failed_at: None,
        }
    }

    /// What this instance could use of a deployment, as a fraction of its quota.
    pub fn want(&mut self, deployment: &str, demand: f64) {
        if let Some(own) = self.own.get_mut(deployment) {
            own.demand = demand.clamp(0.0, 1.0);
        }
    }

    /// What to publish now.
    pub fn parts(&self) -> BTreeMap<String, Part> {
        let part = |own: &Own| Part { demand: own.demand, claim: own.target };
        self.own.iter().map(|(key, own)| (key.clone(), part(own))).collect()
    }

    /// Hears the siblings' words without having published one: a newcomer's first look.
    pub fn look(&mut self, words: Vec<Word>, now: Instant) {
        self.hear(words, now);
        self.aim();
    }

    /// Takes note of a whole exchange that began at `began`: `said` is durable, `words` were read
    /// after that.
    pub fn exchanged(
        &mut self,
        said: &BTreeMap<String, Part>,
        words: Vec<Word>,
        began: Instant,
        now: Instant,
    ) {
        // After a silence the siblings may have shared out what was ours.
        let silent = self.agreed_at.is_some_and(|at| now > at + EXPIRY);
        let faded = silent.then(|| self.fading(now));
        self.hear(words, now);
        for (key, own) in &mut self.own {
            own.claim = said.get(key).map_or(0.0, |part| part.claim);
            let claims = others(&self.siblings, key).map(|part| part.claim);
            let room = 1.0 - claims.sum::<f64>();
            if let Some(faded) = faded {
                own.share = (own.share * faded).min(room.max(0.0));
            }
            own.share = own.share.max(own.claim.min(room));
        }
        self.agreed_at = Some(began);
        self.failed_at = None;
        self.aim();
    }

    /// Takes note that an exchange failed; it may have been carried out in part.
    pub fn failed(&mut self, now: Instant) {
        self.failed_at = Some(now);
    }

    /// What this instance may use of a deployment now, as a fraction of its quota.
    pub fn fraction(&self, deployment: &str, now: Instant) -> f64 {
        let Some(own) = self.own.get(deployment) else { return 0.0 };
        (own.share * self.fading(now)).max(floor(own.instances))
    }

    /// When the next exchange is due.
    pub fn next_exchange(&self, now: Instant) -> Instant {
        if let Some(failed_at) = self.failed_at {
            return failed_at + LOOK_AGAIN;
        }
        let Some((agreed_at, heard_at)) = self.agreed_at.zip(self.heard_at) else { return now };
        let mut due = agreed_at + BEAT;
        for own in self.own.values() {
            if (own.target - own.claim).abs() > NOTABLE {
                due = due.min(heard_at + SOON);
            } else if own.target - own.share > NOTABLE {
                due = due.min(heard_at + LOOK_AGAIN);
            }
        }
        let alive = self.siblings.values().filter(|sibling| sibling.is_alive());
        let expiries = alive.map(|sibling| heard_at + EXPIRY.saturating_sub(sibling.silent));
        expiries.min().map_or(due, |first| due.min(first)).max(now)
    }

    /// Siblings that are taken to be alive.
    pub fn siblings(&self) -> usize {
        self.siblings.values().filter(|sibling| sibling.is_alive()).count()
    }

    fn hear(&mut self, words: Vec<Word>, now: Instant) {
        let gap = self.heard_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let gap = gap.min(LONGEST_GAP);
        // Who has taken its word back is gone.
        let known = std::mem::take(&mut self.siblings);
        for word in words.into_iter().filter(Word::is_worker) {
            let unchanged = known.get(&word.instance).filter(|old| old.beat == word.beat);
            let silent = unchanged.map_or(Duration::ZERO, |old| old.silent + gap);
            let sibling = Sibling { beat: word.beat, silent, parts: word.parts };
            self.siblings.insert(word.instance, sibling);
        }
        self.heard_at = Some(now);
    }

    /// Sets the targets by all demands. What is above its target is given up at once.
    fn aim(&mut self) {
        for (key, own) in &mut self.own {
            let demands: Vec<f64> = others(&self.siblings, key).map(|part| part.demand).collect();
            own.instances = demands.len() + 1;
            own.target = if demands.is_empty() { 1.0 } else { fair(own.demand, &demands) };
            own.share = own.share.min(own.target);
        }
    }

    /// What is left of a share for want of an exchange: all of it until the siblings may have given
    /// it away.
    fn fading(&self, now: Instant) -> f64 {
        let Some(agreed_at) = self.agreed_at else { return 1.0 };
        let late = now.saturating_duration_since(agreed_at + EXPIRY);
        0.5_f64.powf(late.as_secs_f64() / HALVING.as_secs_f64())
    }
}

impl Sibling {
    fn is_alive(&self) -> bool {
        self.silent < EXPIRY
    }
}

/// What the living siblings say of one deployment.
fn others<'a>(
    siblings: &'a BTreeMap<Uuid, Sibling>,
    deployment: &'a str,
) -> impl Iterator<Item = &'a Part> {
    let alive = siblings.values().filter(|sibling| sibling.is_alive());
    alive.filter_map(move |sibling| sibling.parts.get(deployment))
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "deployment";

    fn word(instance: u128, beat: u64, demand: f64, claim: f64) -> Word {
        let parts = BTreeMap::from([(D.to_owned(), Part { demand, claim })]);
        Word { instance: Uuid::from_u128(instance), beat, parts, about: serde_json::Value::Null }
    }

    /// One exchange that takes no time.
    fn exchange(shares: &mut Shares, words: &[Word], now: Instant) -> f64 {
        let said = shares.parts();
        shares.exchanged(&said, words.to_vec(), now, now);
        shares.fraction(D, now)
    }

    fn newcomer(words: &[Word], now: Instant) -> Shares {
        let mut shares = Shares::new([D.to_owned()]);
        shares.look(words.to_vec(), now);
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
            let got = fair(own, others);
            assert!((got - expected).abs() < 1e-9, "{own} beside {others:?}: {got}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_worker_has_all_of_it_after_one_exchange() {
        let now = Instant::now();
        let mut shares = newcomer(&[], now);
        assert!(shares.fraction(D, now) <= 0.01, "nothing is said yet");
        assert_eq!(exchange(&mut shares, &[], now), 1.0);
        shares.want(D, 0.0);
        assert_eq!(exchange(&mut shares, &[], now + BEAT), 1.0, "also when it idles");
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_asks_is_no_sibling() {
        let now = Instant::now();
        let asker = Word { parts: BTreeMap::new(), ..word(3, 1, 0.0, 0.0) };
        let mut shares = newcomer(std::slice::from_ref(&asker), now);
        assert_eq!((shares.siblings(), shares.fraction(D, now)), (0, floor(1)));
        assert_eq!(exchange(&mut shares, std::slice::from_ref(&asker), now), 1.0);
        let before = shares.next_exchange(now);
        assert_eq!(exchange(&mut shares, &[], now), 1.0);
        assert_eq!(shares.next_exchange(now), before, "its silence and its leaving change nothing");
        exchange(&mut shares, &[word(1, 1, 1.0, 0.5), asker], now + BEAT);
        assert_eq!((shares.siblings(), shares.parts()[D].claim), (1, 0.5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_waits_until_there_is_room() {
        let now = Instant::now();
        let mut shares = newcomer(&[word(1, 1, 1.0, 1.0)], now);
        assert_eq!(shares.parts()[D].claim, 0.5, "it asks for its half");
        assert_eq!(exchange(&mut shares, &[word(1, 1, 1.0, 1.0)], now), 0.01);
        assert_eq!(exchange(&mut shares, &[word(1, 2, 1.0, 0.75)], now + BEAT), 0.25);
        assert_eq!(exchange(&mut shares, &[word(1, 3, 1.0, 0.5)], now + 2 * BEAT), 0.5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_is_lowered_at_once_and_told_soon() {
        let now = Instant::now();
        let mut shares = newcomer(&[], now);
        exchange(&mut shares, &[], now);
        assert_eq!(exchange(&mut shares, &[word(1, 1, 1.0, 0.5)], now + BEAT), 0.5);
        assert_eq!(shares.next_exchange(now + BEAT), now + BEAT + SOON);
    }

    #[tokio::test(start_paused = true)]
    async fn the_dead_are_known_by_their_silence_and_the_leavers_by_their_absence() {
        let now = Instant::now();
        let (dead, leaver) = (word(1, 7, 1.0, 0.4), word(2, 7, 1.0, 0.3));
        let mut shares = newcomer(&[dead.clone(), leaver.clone()], now);
        exchange(&mut shares, &[dead.clone(), leaver], now);
        exchange(&mut shares, std::slice::from_ref(&dead), now + BEAT);
        assert_eq!(shares.siblings(), 1);
        let mut at = now + BEAT;
        while shares.siblings() > 0 {
            at = shares.next_exchange(at).max(at + Duration::from_millis(1));
            exchange(&mut shares, std::slice::from_ref(&dead), at);
        }
        assert_eq!(at, now + EXPIRY, "it is looked at when it expires, not at the next beat");
        let at = shares.next_exchange(at);
        assert_eq!(exchange(&mut shares, &[dead], at), 1.0);
        assert!(at <= now + EXPIRY + SOON);
    }

    #[tokio::test(start_paused = true)]
    async fn without_the_store_a_share_is_kept_then_halved_down_to_the_floor() {
        let now = Instant::now();
        let mut shares = newcomer(&[], now);
        exchange(&mut shares, &[word(1, 1, 1.0, 0.5)], now);
        exchange(&mut shares, &[word(1, 2, 1.0, 0.5)], now + BEAT);
        let last = now + BEAT;
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
        exchange(&mut shares, &[word(1, 2, 1.0, 0.5)], now + BEAT);
        let back = now + BEAT + EXPIRY + Duration::from_secs(1);
        assert_eq!(exchange(&mut shares, &[word(1, 9, 1.0, 1.0)], back), 0.01);
    }
}
