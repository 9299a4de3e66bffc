//! Audit ledger that every request writes to, in total and for each distinct prompt.
//!
//! It exists to be audited: the sum over the prompts is the total, and a prompt that was billed
//! twice shows. It is made for millions of prompts: one small entry each, spread over shards so
//! that requests rarely wait for each other, and no lock is held across an await. Neighbours:
//! `judge` writes it, `ledger_snapshot` has the shape in which it is read.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::capacity::CapacityDenial;
use super::faults::InjectedFault;
use super::ledger_snapshot::{AnswerUsage, BilledTotals, BillingTier, LedgerSnapshot};

/// Number of shards: two requests seldom meet in one, and with a million prompts one shard is
/// small enough to be listed in a single piece.
const SHARDS: usize = 1_024;

/// Characters of a prompt that are kept so that people can recognise it.
const SAMPLE_CHARS: usize = 80;

/// Counters of one distinct prompt.
#[derive(Debug, Default)]
pub struct PromptEntry {
    pub arrived: u32,
    /// Attempts with a decided outcome, which the RNG is seeded with. Quota refusals do not count,
    /// so that the outcomes of a prompt do not depend on how full the quota was.
    pub decided_attempts: u32,
    pub refused: u32,
    pub faulted: u32,
    pub answered: u32,
    pub billed: u32,
    /// Prompt tokens of all its billed requests.
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    sample: Option<Box<str>>,
}

/// Ledger access for one request: the entry of its prompt and the shard's totals.
pub struct LedgerWriter<'a> {
    pub entry: &'a mut PromptEntry,
    totals: &'a mut LedgerSnapshot,
}

impl LedgerWriter<'_> {
    pub fn refuse(&mut self, denial: CapacityDenial) {
        self.entry.refused += 1;
        let refused = &mut self.totals.refused;
        *match denial {
            CapacityDenial::Tokens { .. } | CapacityDenial::Gateway { .. } => {
                &mut refused.by_tokens
            }
            CapacityDenial::Requests { .. } => &mut refused.by_requests,
            CapacityDenial::Utilization { .. } => &mut refused.by_utilization,
            CapacityDenial::NoFlexRoom => &mut refused.by_flex,
        } += 1;
    }

    pub fn spill(&mut self) {
        self.totals.spilled += 1;
    }

    pub fn admit(&mut self, charge: u64) {
        self.totals.admitted.requests += 1;
        self.totals.admitted.charged_tokens += charge;
    }

    /// Records a fault that the RNG decided.
    pub fn fault(&mut self, fault: InjectedFault) {
        self.entry.decided_attempts += 1;
        self.outage(fault);
    }

    /// Records a fault of the whole deployment, which is not one of the prompt's own attempts.
    pub fn outage(&mut self, fault: InjectedFault) {
        self.entry.faulted += 1;
        self.totals.faults.count(fault);
    }

    pub fn bill(&mut self, usage: &AnswerUsage, tier: BillingTier) {
        self.entry.billed += 1;
        self.entry.prompt_tokens += usage.prompt_tokens;
        self.entry.completion_tokens += usage.completion_tokens;
        let billed = BilledTotals { requests: 1, usage: *usage };
        self.totals.billed.add(&billed);
        self.totals.tiers.tier_mut(tier).add(&billed);
        if self.entry.billed > 1 {
            self.totals.billed_more_than_once.excess_requests += 1;
        }
        if self.entry.billed == 2 {
            self.totals.billed_more_than_once.prompts += 1;
        }
    }
}

#[derive(Debug, Default)]
struct LedgerShard {
    entries: HashMap<u64, PromptEntry>,
    totals: LedgerSnapshot,
}

/// Audit ledger of all requests.
#[derive(Debug)]
pub struct AuditLedger {
    shards: Vec<Mutex<LedgerShard>>,
    /// Requests rejected before their prompt was known, by error code.
    rejected: Mutex<BTreeMap<&'static str, u64>>,
    keep_samples: bool,
}

impl AuditLedger {
    pub fn new(keep_samples: bool) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, rejected: Mutex::default(), keep_samples }
    }

    /// Counts an arrived request and gives `write` access to the entry of its prompt. All that
    /// `write` does is atomic for every reader and writer of this prompt.
    pub fn record_request<T>(
        &self,
        key: u64,
        sample: &str,
        write: impl FnOnce(&mut LedgerWriter<'_>) -> T,
    ) -> T {
        let mut shard = self.shard(key);
        let LedgerShard { entries, totals } = &mut *shard;
        let entry = entries.entry(key).or_insert_with(|| {
            let sample = self.keep_samples.then(|| shortened(sample).into());
            PromptEntry { sample, ..PromptEntry::default() }
        });
        entry.arrived += 1;
        totals.requests += 1;
        write(&mut LedgerWriter { entry, totals })
    }

    /// Counts an answer that was handed over completely.
    pub fn record_answered(&self, key: u64) {
        let mut shard = self.shard(key);
        shard.totals.answered += 1;
        // After a reset the entry may be gone; earlier answers no longer count.
        if let Some(entry) = shard.entries.get_mut(&key) {
            entry.answered += 1;
        }
    }

    /// Counts a request that could never pass.
    pub fn reject(&self, code: &'static str) {
        *locked(&self.rejected).entry(code).or_default() += 1;
    }

    /// Resets all counters to zero, attempts included.
    pub fn reset(&self) {
        for shard in &self.shards {
            *locked(shard) = LedgerShard::default();
        }
        locked(&self.rejected).clear();
    }

    /// Returns the totals; the caller adds the windows.
    pub fn totals(&self) -> LedgerSnapshot {
        let rejected = locked(&self.rejected).clone();
        let mut sum = LedgerSnapshot {
            requests: rejected.values().sum(),
            rejected,
            ..LedgerSnapshot::default()
        };
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
            sum.prompts += shard.entries.len() as u64;
            let again = &totals.billed_more_than_once;
            sum.billed_more_than_once.prompts += again.prompts;
            sum.billed_more_than_once.excess_requests += again.excess_requests;
        }
        sum
    }

    /// Returns the prompts of one shard as JSON lines, or `None` past the last shard. Shard by
    /// shard, so that listing a million prompts delays few requests and takes little memory.
    pub fn prompts(&self, shard: usize) -> Option<Vec<u8>> {
        let shard = locked(self.shards.get(shard)?);
        let mut out = Vec::with_capacity(shard.entries.len() * 256);
        for (key, entry) in &shard.entries {
            let line = PromptLine::new(*key, entry);
            serde_json::to_writer(&mut out, &line).expect("a line has only numbers and strings");
            out.push(b'\n');
        }
        Some(out)
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, LedgerShard> {
        locked(&self.shards[key as usize % SHARDS])
    }
}

/// Locks the mutex and ignores poisoning: each write is a few additions, valid after a panic.
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
    fn new(key: u64, entry: &'a PromptEntry) -> Self {
        Self {
            key: format!("{key:016x}"),
            prompt: entry.sample.as_deref(),
            arrived: entry.arrived,
            refused: entry.refused,
            faulted: entry.faulted,
            answered: entry.answered,
            billed: entry.billed,
            prompt_tokens: entry.prompt_tokens,
            completion_tokens: entry.completion_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger_snapshot::DuplicateBilling;
    use super::*;

    const USAGE: AnswerUsage = AnswerUsage {
        prompt_tokens: 10,
        cached_tokens: 0,
        completion_tokens: 5,
        reasoning_tokens: 0,
    };

    #[test]
    fn what_is_paid_twice_shows_in_the_totals() {
        let books = AuditLedger::new(true);
        for (key, times) in [(1, 1), (2, 2), (3, 4)] {
            for _ in 0..times {
                books.record_request(key, "", |page| page.bill(&USAGE, BillingTier::Standard));
            }
        }
        let totals = books.totals();
        assert_eq!(totals.prompts, 3);
        assert_eq!(totals.billed.requests, 7);
        assert_eq!(totals.billed.usage.prompt_tokens, 70);
        let again = DuplicateBilling { prompts: 2, excess_requests: 4 };
        assert_eq!(totals.billed_more_than_once, again);
    }

    #[test]
    fn the_prompts_add_up_to_the_totals() {
        let books = AuditLedger::new(true);
        for key in 0..1_000 {
            books.record_request(key * 31, "日本語の", |page| {
                page.bill(&USAGE, BillingTier::Standard)
            });
            books.record_answered(key * 31);
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
        let books = AuditLedger::new(false);
        books.record_request(1, "secret", |_| ());
        let line = (0..).find_map(|shard| books.prompts(shard).filter(|line| !line.is_empty()));
        assert!(!String::from_utf8(line.unwrap()).unwrap().contains("secret"));
    }

    #[test]
    fn a_reset_forgets_everything() {
        let books = AuditLedger::new(true);
        books.record_request(1, "", |page| page.bill(&USAGE, BillingTier::Standard));
        books.reject("401");
        books.reset();
        assert_eq!(books.totals(), LedgerSnapshot::default());
    }
}
