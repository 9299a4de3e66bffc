//! The books that requests write to, in total and for each distinct prompt.
//!
//! They exist to be audited: the sum over the prompts is the total, and a prompt that was billed
//! twice says so. They are made for millions of prompts: one small line each, spread over shards so
//! that requests rarely wait for each other, and no lock is held across an await. Neighbours:
//! `judge` writes them, `ledger` has the shape in which they are read.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::capacity::Denial;
use super::faults::Fault;
use super::ledger::{Billed, Ledger, Tier, Usage};

/// So many that two requests seldom meet in one, and that one of them is small enough to be listed
/// in a single piece when there are a million prompts.
const SHARDS: usize = 1_024;

/// Characters of a prompt that are kept for people to know it by.
const SAMPLE_CHARS: usize = 80;

/// One distinct prompt.
#[derive(Debug, Default)]
pub struct Line {
    pub arrived: u32,
    /// Fates that were decided: what the dice count as attempts. Refusals decide none, so that the
    /// fates of a prompt do not depend on how full the quota was.
    pub fates: u32,
    pub refused: u32,
    pub faulted: u32,
    pub answered: u32,
    pub billed: u32,
    /// Of all its billed requests.
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    sample: Option<Box<str>>,
}

/// The books' open page for one request: its prompt's line and the totals to add to.
pub struct Page<'a> {
    pub line: &'a mut Line,
    totals: &'a mut Ledger,
}

impl Page<'_> {
    pub fn refuse(&mut self, denial: Denial) {
        self.line.refused += 1;
        let refused = &mut self.totals.refused;
        *match denial {
            Denial::Tokens { .. } => &mut refused.by_tokens,
            Denial::Requests { .. } => &mut refused.by_requests,
            Denial::Utilization { .. } => &mut refused.by_utilization,
            Denial::NoFlexRoom => &mut refused.by_flex,
        } += 1;
    }

    pub fn spill(&mut self) {
        self.totals.spilled += 1;
    }

    pub fn admit(&mut self, charge: u64) {
        self.totals.admitted.requests += 1;
        self.totals.admitted.charged_tokens += charge;
    }

    /// A fault that the dice decided.
    pub fn fault(&mut self, fault: Fault) {
        self.line.fates += 1;
        self.outage(fault);
    }

    /// A fault of the whole deployment, which leaves the prompt's own fates to come.
    pub fn outage(&mut self, fault: Fault) {
        self.line.faulted += 1;
        self.totals.faults.count(fault);
    }

    pub fn bill(&mut self, usage: &Usage, tier: Tier) {
        self.line.billed += 1;
        self.line.prompt_tokens += usage.prompt_tokens;
        self.line.completion_tokens += usage.completion_tokens;
        let billed = Billed { requests: 1, usage: *usage };
        self.totals.billed.add(&billed);
        self.totals.tiers.of(tier).add(&billed);
        if self.line.billed > 1 {
            self.totals.billed_more_than_once.excess_requests += 1;
        }
        if self.line.billed == 2 {
            self.totals.billed_more_than_once.prompts += 1;
        }
    }
}

#[derive(Debug, Default)]
struct Shard {
    lines: HashMap<u64, Line>,
    totals: Ledger,
}

/// The books that requests write to.
#[derive(Debug)]
pub struct Books {
    shards: Vec<Mutex<Shard>>,
    /// Refused before a prompt could be told.
    rejected: Mutex<BTreeMap<&'static str, u64>>,
    keep_samples: bool,
}

impl Books {
    pub fn new(keep_samples: bool) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, rejected: Mutex::default(), keep_samples }
    }

    /// Opens the page of a prompt for a request that has arrived. Whatever `write` does happens at
    /// once for everybody who reads or writes this prompt.
    pub fn arrive<T>(&self, key: u64, sample: &str, write: impl FnOnce(&mut Page<'_>) -> T) -> T {
        let mut shard = self.shard(key);
        let Shard { lines, totals } = &mut *shard;
        let line = lines.entry(key).or_insert_with(|| {
            let sample = self.keep_samples.then(|| shortened(sample).into());
            Line { sample, ..Line::default() }
        });
        line.arrived += 1;
        totals.requests += 1;
        write(&mut Page { line, totals })
    }

    /// Counts an answer that was handed over whole.
    pub fn answer(&self, key: u64) {
        let mut shard = self.shard(key);
        shard.totals.answered += 1;
        // After a reset the line may be gone; what was answered before it is not of interest.
        if let Some(line) = shard.lines.get_mut(&key) {
            line.answered += 1;
        }
    }

    /// Counts a request that could never pass.
    pub fn reject(&self, code: &'static str) {
        *locked(&self.rejected).entry(code).or_default() += 1;
    }

    /// Everything starts again at zero, attempts included.
    pub fn reset(&self) {
        for shard in &self.shards {
            *locked(shard) = Shard::default();
        }
        locked(&self.rejected).clear();
    }

    /// The sums; the windows are the caller's to add.
    pub fn totals(&self) -> Ledger {
        let rejected = locked(&self.rejected).clone();
        let mut sum = Ledger { requests: rejected.values().sum(), rejected, ..Ledger::default() };
        for shard in &self.shards {
            let shard = locked(shard);
            let totals = &shard.totals;
            sum.requests += totals.requests;
            sum.admitted.requests += totals.admitted.requests;
            sum.admitted.charged_tokens += totals.admitted.charged_tokens;
            sum.refused.by_tokens += totals.refused.by_tokens;
            sum.refused.by_requests += totals.refused.by_requests;
            sum.refused.by_utilization += totals.refused.by_utilization;
            sum.refused.by_flex += totals.refused.by_flex;
            sum.spilled += totals.spilled;
            sum.answered += totals.answered;
            sum.billed.add(&totals.billed);
            sum.tiers.add(&totals.tiers);
            sum.faults.add(&totals.faults);
            sum.prompts += shard.lines.len() as u64;
            let again = &totals.billed_more_than_once;
            sum.billed_more_than_once.prompts += again.prompts;
            sum.billed_more_than_once.excess_requests += again.excess_requests;
        }
        sum
    }

    /// The prompts of one shard as JSON lines, or `None` behind the last shard. Shard by shard, so
    /// that listing a million prompts holds up few requests and little memory.
    pub fn prompts(&self, shard: usize) -> Option<Vec<u8>> {
        let shard = locked(self.shards.get(shard)?);
        let mut out = Vec::with_capacity(shard.lines.len() * 256);
        for (key, line) in &shard.lines {
            let line = PromptLine::new(*key, line);
            serde_json::to_writer(&mut out, &line).expect("a line has only numbers and strings");
            out.push(b'\n');
        }
        Some(out)
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard> {
        locked(&self.shards[key as usize % SHARDS])
    }
}

/// The books stay readable after a panic: each write is a few additions.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shortened(text: &str) -> &str {
    text.char_indices().nth(SAMPLE_CHARS).map_or(text, |(end, _)| &text[..end])
}

/// One line of `GET /ledger?prompts=true`.
#[derive(Serialize)]
struct PromptLine<'a> {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    arrived: u32,
    refused: u32,
    faulted: u32,
    answered: u32,
    billed: u32,
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl<'a> PromptLine<'a> {
    fn new(key: u64, line: &'a Line) -> Self {
        Self {
            key: format!("{key:016x}"),
            prompt: line.sample.as_deref(),
            arrived: line.arrived,
            refused: line.refused,
            faulted: line.faulted,
            answered: line.answered,
            billed: line.billed,
            prompt_tokens: line.prompt_tokens,
            completion_tokens: line.completion_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::BilledAgain;
    use super::*;

    const USAGE: Usage =
        Usage { prompt_tokens: 10, cached_tokens: 0, completion_tokens: 5, reasoning_tokens: 0 };

    #[test]
    fn what_is_paid_twice_shows_in_the_totals() {
        let books = Books::new(true);
        for (key, times) in [(1, 1), (2, 2), (3, 4)] {
            for _ in 0..times {
                books.arrive(key, "", |page| page.bill(&USAGE, Tier::Standard));
            }
        }
        let totals = books.totals();
        assert_eq!(totals.prompts, 3);
        assert_eq!(totals.billed.requests, 7);
        assert_eq!(totals.billed.usage.prompt_tokens, 70);
        let again = BilledAgain { prompts: 2, excess_requests: 4 };
        assert_eq!(totals.billed_more_than_once, again);
    }

    #[test]
    fn the_prompts_add_up_to_the_totals() {
        let books = Books::new(true);
        for key in 0..1_000 {
            books.arrive(key * 31, "日本語の", |page| page.bill(&USAGE, Tier::Standard));
            books.answer(key * 31);
        }
        let lines: Vec<u8> = (0..).map_while(|shard| books.prompts(shard)).flatten().collect();
        let lines: Vec<serde_json::Value> = String::from_utf8(lines)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 1_000);
        let sum = |field: &str| lines.iter().filter_map(|line| line[field].as_u64()).sum::<u64>();
        let totals = books.totals();
        assert_eq!(sum("billed"), totals.billed.requests);
        assert_eq!(sum("answered"), totals.answered);
        assert_eq!(sum("prompt_tokens"), totals.billed.usage.prompt_tokens);
        assert_eq!(lines[0]["prompt"], "日本語の");
    }

    #[test]
    fn samples_are_short_and_can_be_left_out() {
        assert_eq!(shortened(&"é".repeat(100)), "é".repeat(80));
        let books = Books::new(false);
        books.arrive(1, "secret", |_| ());
        let line = (0..).find_map(|shard| books.prompts(shard).filter(|line| !line.is_empty()));
        assert!(!String::from_utf8(line.unwrap()).unwrap().contains("secret"));
    }

    #[test]
    fn a_reset_forgets_everything() {
        let books = Books::new(true);
        books.arrive(1, "", |page| page.bill(&USAGE, Tier::Standard));
        books.reject("401");
        books.reset();
        assert_eq!(books.totals(), Ledger::default());
    }
}
