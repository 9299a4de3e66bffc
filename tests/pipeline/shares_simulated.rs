//! The arithmetic of shares in simulated time: instances that join, die, leave and change their
//! minds, clocks that differ, words that are lost, a store that is away, and answers that take long.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::BTreeMap;
use std::time::Duration;

use promptmill::admission::shares::{QuotaShares, fair_share, floor};
use promptmill::heartbeat::{Heartbeat, QuotaClaim, WorkerStatus};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;
use uuid::Uuid;

const D: &str = "deployment";
const STEP_MS: u64 = 50;

/// Events happen in the first part, then all is quiet: an expiry, and four beats to agree.
const EVENTFUL_MS: u64 = 60_000;
/// Two beats are lost and the third is late.
const CUT_OFF_MS: u64 = 4_500;
const QUIET_MS: u64 = 14_000;

#[derive(Debug, Clone)]
enum Event {
    Join {
        demand: f64,
        clock_ahead_s: u64,
    },
    Kill(usize),
    Leave(usize),
    Demand(usize, f64),
    /// Nobody reaches the store for so long.
    Outage {
        ms: u64,
    },
    /// The next words of this one are not heard, or are heard and said to be lost.
    Lose {
        node: usize,
        words: u8,
        landed: bool,
    },
}

/// Where an instance is in its exchange; times are the world's.
enum Doing {
    Waiting,
    Writing {
        began: u64,
        said: BTreeMap<String, QuotaClaim>,
        lands: Option<u64>,
        done: u64,
        ok: bool,
    },
    Reading {
        began: u64,
        said: BTreeMap<String, QuotaClaim>,
        reads: u64,
        done: u64,
        read: Vec<Heartbeat>,
    },
}

struct Node {
    id: Uuid,
    shares: QuotaShares,
    origin: Instant,
    demand: f64,
    beat: u64,
    doing: Doing,
    lose: (u8, bool),
    /// When its last exchange that succeeded began.
    agreed: u64,
}

struct World {
    now: u64,
    /// The longest that a write or a read takes.
    delay_ms: u64,
    away_until: u64,
    store: BTreeMap<Uuid, Heartbeat>,
    nodes: Vec<Node>,
    random: StdRng,
    born: u128,
}

impl Node {
    fn clock(&self, now: u64) -> Instant {
        self.origin + Duration::from_millis(now)
    }

    fn fraction(&self, now: u64) -> f64 {
        self.shares.fraction(D, self.clock(now))
    }
}

impl World {
    fn new(delay_ms: u64, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let (store, nodes) = (BTreeMap::new(), Vec::new());
        Self { now: 0, delay_ms, away_until: 0, store, nodes, random, born: 0 }
    }

    fn happen(&mut self, event: &Event) {
        let at = |node: &usize, nodes: &[Node]| (!nodes.is_empty()).then(|| node % nodes.len());
        match event {
            Event::Join { demand, clock_ahead_s } => self.join(*demand, *clock_ahead_s),
            Event::Kill(node) => {
                if let Some(n) = at(node, &self.nodes) {
                    self.nodes.remove(n);
                }
            }
            Event::Leave(node) => {
                if let Some(n) = at(node, &self.nodes) {
                    let gone = self.nodes.remove(n);
                    self.store.remove(&gone.id);
                }
            }
            Event::Demand(node, demand) => {
                if let Some(n) = at(node, &self.nodes) {
                    self.nodes[n].demand = *demand;
                }
            }
            Event::Outage { ms } => self.away_until = self.now + ms,
            Event::Lose { node, words, landed } => {
                if let Some(n) = at(node, &self.nodes) {
                    self.nodes[n].lose = (*words, *landed);
                }
            }
        }
    }

    fn join(&mut self, demand: f64, clock_ahead_s: u64) {
        if self.nodes.len() == 10 {
            return;
        }
        self.born += 1;
        let origin = Instant::now() + Duration::from_secs(clock_ahead_s);
        let mut shares = QuotaShares::new([D.to_owned()]);
        let words = self.store.values().cloned().collect();
        shares.observe_siblings(words, origin + Duration::from_millis(self.now));
        let id = Uuid::from_u128(self.born);
        let (doing, lose) = (Doing::Waiting, (0, false));
        self.nodes.push(Node {
            id,
            shares,
            origin,
            demand,
            beat: 0,
            doing,
            lose,
            agreed: self.now,
        });
    }

    fn step(&mut self) {
        self.now += STEP_MS;
        let mut nodes = std::mem::take(&mut self.nodes);
        nodes.iter_mut().for_each(|node| self.turn(node));
        self.nodes = nodes;
    }

    fn later(&mut self) -> u64 {
        self.now + self.random.random_range(0..=self.delay_ms)
    }

    fn turn(&mut self, node: &mut Node) {
        let (now, clock) = (self.now, node.clock(self.now));
        let away = now < self.away_until;
        node.doing = match std::mem::replace(&mut node.doing, Doing::Waiting) {
            Doing::Waiting if node.shares.next_exchange(clock) <= clock => {
                node.shares.set_demand(D, node.demand);
                node.beat += 1;
                let done = self.later();
                let lost = node.lose.0 > 0;
                node.lose.0 = node.lose.0.saturating_sub(1);
                let lands =
                    (!away && (!lost || node.lose.1)).then(|| self.random.random_range(now..=done));
                Doing::Writing {
                    began: now,
                    said: node.shares.quota_claims(),
                    lands,
                    done,
                    ok: !away && !lost,
                }
            }
            Doing::Writing { began, said, mut lands, done, ok } => {
                if lands.is_some_and(|at| at <= now) {
                    lands = None;
                    let (instance, beat, parts) = (node.id, node.beat, said.clone());
                    let status = WorkerStatus::default();
                    self.store.insert(
                        node.id,
                        Heartbeat { instance, sequence: beat, quota_claims: parts, status },
                    );
                }
                if done > now {
                    Doing::Writing { began, said, lands, done, ok }
                } else if !ok {
                    node.shares.record_failure(clock);
                    Doing::Waiting
                } else {
                    let done = self.later();
                    let reads = self.random.random_range(now..=done);
                    Doing::Reading { began, said, reads, done, read: Vec::new() }
                }
            }
            Doing::Reading { began, said, mut reads, done, mut read } => {
                if reads <= now {
                    reads = u64::MAX;
                    read = self.store.values().filter(|w| w.instance != node.id).cloned().collect();
                }
                if done > now {
                    Doing::Reading { began, said, reads, done, read }
                } else {
                    if away {
                        node.shares.record_failure(clock);
                    } else {
                        node.agreed = began;
                        node.shares.record_exchange(&said, read, node.clock(began), clock);
                    }
                    Doing::Waiting
                }
            }
            waiting @ Doing::Waiting => waiting,
        };
    }

    /// What those have who were cut off for so long that others may have shared it out.
    fn cut_off(&self) -> f64 {
        let silent = self.nodes.iter().filter(|node| self.now - node.agreed > CUT_OFF_MS);
        silent.map(|node| node.fraction(self.now)).sum()
    }

    fn sum(&self) -> f64 {
        self.nodes.iter().map(|node| node.fraction(self.now)).sum()
    }

    /// What each has is what is fair by the demands of all.
    fn is_settled(&self) -> Result<(), String> {
        for (n, node) in self.nodes.iter().enumerate() {
            let others = self.nodes.iter().enumerate().filter(|(m, _)| *m != n);
            let others: Vec<f64> = others.map(|(_, other)| other.demand).collect();
            let alone = others.is_empty();
            let fair = if alone { 1.0 } else { fair_share(node.demand, &others) };
            let (has, floor) = (node.fraction(self.now), floor(self.nodes.len()));
            if (has - fair.max(floor)).abs() > 0.021 {
                return Err(format!("{n} of {} has {has}, not {fair}", self.nodes.len()));
            }
        }
        Ok(())
    }
}

/// Runs the events, and fails if the sum of the shares in force passes its bound or if the shares
/// are not fair in the end. `cut_off`: somebody may be cut off from a store that others reach.
fn run(
    events: &BTreeMap<u64, Event>,
    delay_ms: u64,
    seed: u64,
    cut_off: bool,
) -> Result<(), TestCaseError> {
    let mut world = World::new(delay_ms, seed);
    while world.now < EVENTFUL_MS + QUIET_MS {
        let due = events.range(world.now..world.now + STEP_MS);
        due.for_each(|(_, event)| world.happen(event));
        world.step();
        let cut_off = if cut_off { world.cut_off() } else { 0.0 };
        let bound = 1.0 + world.nodes.len() as f64 * floor(1) + cut_off;
        let sum = world.sum();
        prop_assert!(sum <= bound + 1e-9, "{sum} > {bound} at {} ms", world.now);
        // Some that are dead may still be counted.
        let floor = floor(world.born as usize);
        prop_assert!(world.nodes.iter().all(|node| node.fraction(world.now) >= floor));
    }
    world.is_settled().map_err(TestCaseError::fail)
}

fn demand() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(1.0), Just(1.0), 0.0..1.0]
}

fn change() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (demand(), 0_u64..100_000_000)
            .prop_map(|(demand, clock_ahead_s)| Event::Join { demand, clock_ahead_s }),
        2 => (0_usize..10).prop_map(Event::Kill),
        1 => (0_usize..10).prop_map(Event::Leave),
        4 => (0_usize..10, demand()).prop_map(|(node, demand)| Event::Demand(node, demand)),
    ]
}

fn outage() -> impl Strategy<Value = Event> {
    (100_u64..15_000).prop_map(|ms| Event::Outage { ms })
}

fn lost_words() -> impl Strategy<Value = Event> {
    (0_usize..10, 1_u8..4, any::<bool>()).prop_map(|(node, words, landed)| Event::Lose {
        node,
        words,
        landed,
    })
}

fn events(kind: impl Strategy<Value = Event>) -> impl Strategy<Value = BTreeMap<u64, Event>> {
    // All outages are over when the quiet begins.
    proptest::collection::btree_map(0..EVENTFUL_MS - 15_000, kind, 1..30)
}

proptest! {
    #[test]
    fn shares_never_pass_the_whole_whatever_the_delays(
        events in events(change()), delay_ms in 0_u64..1_000, seed: u64,
    ) {
        run(&events, delay_ms, seed, false)?;
    }

    #[test]
    fn nor_when_the_store_is_away(
        events in events(prop_oneof![3 => change(), 1 => outage()]), delay_ms in 0_u64..200, seed: u64,
    ) {
        run(&events, delay_ms, seed, false)?;
    }

    #[test]
    fn nor_when_words_are_lost_except_by_what_one_who_is_cut_off_still_has(
        events in events(prop_oneof![3 => change(), 2 => lost_words()]), delay_ms in 0_u64..200, seed: u64,
    ) {
        run(&events, delay_ms, seed, true)?;
    }

    #[test]
    fn a_dead_ones_share_is_in_use_again_within_ten_seconds_and_a_newcomer_soon_has_its_own(
        instances in 2_u64..10, killed_after_ms in 0_u64..4_000, delay_ms in 0_u64..200, seed: u64,
    ) {
        let mut world = World::new(delay_ms, seed);
        (0..instances).for_each(|n| world.join(1.0, 1_000 * n));
        let until = |world: &mut World, end: u64| while world.now < end { world.step() };
        until(&mut world, 12_000 + killed_after_ms);
        world.is_settled().map_err(TestCaseError::fail)?;
        world.happen(&Event::Kill(seed as usize));
        let end = world.now + 10_000;
        until(&mut world, end);
        world.is_settled().map_err(TestCaseError::fail)?;
        // The dead one's word is still there, and the newcomer has to find out that it is old.
        world.join(1.0, 0);
        until(&mut world, end + 9_000);
        world.is_settled().map_err(TestCaseError::fail)?;
    }
}
