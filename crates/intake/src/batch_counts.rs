//! Counts the jobs of a batch: distinct ones, over all inputs that were enqueued into it.
//!
//! Not every queue reports which jobs it had already, so the batch remembers its inputs instead. An
//! input that is given again, whole or after an interruption, is known and counts nothing; one that
//! starts with a known input (a file that was appended to) replaces it. Of any other input, jobs
//! that have an outcome, or that the queue reported as present, are not counted.
//!
//! Limits, all of which make the count too high, so that the batch stays short of `done`: jobs that
//! two different inputs share, that still wait in a queue that drops duplicates silently; jobs
//! shared with an input whose enqueue was interrupted; and inputs further back than [`REMEMBERED`].
//! One enqueue at a time may write to a batch.

use super::check::CheckReport;
use store::{Batch, EnqueuedInput};

/// Inputs that a batch remembers: some 150 bytes each, in a document of at most 2 MB.
const REMEMBERED: usize = 1_000;

/// Result of an enqueue.
#[derive(Debug, Clone, Copy, Default)]
pub struct EnqueueCounts {
    /// Jobs of the input.
    pub jobs: u64,
    /// Jobs that were in the queue already.
    pub waiting: u64,
    /// Jobs that have their outcome already.
    pub known: u64,
    pub prompt_tokens: u64,
}

/// Input that is being added to a batch.
pub(super) struct PendingInput {
    fingerprint: String,
    lines: u64,
    /// It was given before, if perhaps not to its end.
    is_known: bool,
}

/// Formats a fingerprint as it is stored.
pub(super) fn fingerprint(digest: u64) -> String {
    format!("{digest:016x}")
}

/// Counts an input in before its first job is sent: killed at any moment, it is known next time.
pub(super) fn begin(batch: &mut Batch, checked: &CheckReport) -> PendingInput {
    let (fingerprint, lines) = (fingerprint(checked.fingerprint), checked.lines);
    let is_known = batch.inputs.iter().any(|input| input.fingerprint == fingerprint);
    if !is_known {
        batch.jobs += checked.jobs;
        batch.inputs.push(EnqueuedInput {
            fingerprint: fingerprint.clone(),
            lines,
            jobs: checked.jobs,
            counted: checked.jobs,
            prompt_tokens: 0,
        });
    }
    PendingInput { fingerprint, lines, is_known }
}

impl PendingInput {
    /// Returns the known inputs that this one may start with: lines and fingerprint.
    pub(super) fn possible_prefixes(&self, batch: &Batch) -> Vec<(u64, String)> {
        let shorter = batch.inputs.iter().filter(|input| input.lines < self.lines);
        shorter.map(|input| (input.lines, input.fingerprint.clone())).collect()
    }

    /// Settles the count when all jobs are sent.
    pub(super) fn settle(self, batch: &mut Batch, sent: &EnqueueCounts, starts_with: &[String]) {
        let (parts, mut inputs): (Vec<_>, Vec<_>) = std::mem::take(&mut batch.inputs)
            .into_iter()
            .partition(|input| starts_with.contains(&input.fingerprint));
        let in_parts = parts.iter().map(|part| part.jobs).max().unwrap_or(0);
        let parts_counted: u64 = parts.iter().map(|part| part.counted).sum();
        let parts_tokens: u64 = parts.iter().map(|part| part.prompt_tokens).sum();
        // The second time, jobs that exist already may be this input's own.
        let there = if self.is_known { 0 } else { sent.known + sent.waiting };
        let own = inputs.iter_mut().find(|input| input.fingerprint == self.fingerprint);
        if let Some(own) = own {
            let before = parts_counted + own.counted;
            if !self.is_known || !parts.is_empty() {
                own.counted = parts_counted + sent.jobs.saturating_sub(there.max(in_parts));
            }
            batch.jobs = (batch.jobs + own.counted).saturating_sub(before);
            let tokens = batch.prompt_tokens + sent.prompt_tokens;
            batch.prompt_tokens = tokens.saturating_sub(parts_tokens + own.prompt_tokens);
            own.prompt_tokens = sent.prompt_tokens;
        }
        inputs.drain(..inputs.len().saturating_sub(REMEMBERED));
        batch.inputs = inputs;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{BatchSenders, BatchState};

    struct Night(Batch);

    impl Night {
        fn new() -> Self {
            Self(Batch {
                id: "night".parse().unwrap(),
                state: BatchState::Enqueuing,
                reason: None,
                jobs: 0,
                prompt_tokens: 0,
                inputs: Vec::new(),
                senders: BatchSenders::One,
                created_at: "2026-11-23T16:00:00Z".parse().unwrap(),
            })
        }

        fn begin(&mut self, name: u64, jobs: u64) -> PendingInput {
            let fault_lines = tempfile::spooled_tempfile_in(0, std::env::temp_dir());
            let checked = CheckReport {
                jobs,
                lines: jobs,
                faults: 0,
                first_faults: Vec::new(),
                notes: Vec::new(),
                models: Default::default(),
                fingerprint: name,
                fault_lines,
                repeated: Vec::new(),
            };
            begin(&mut self.0, &checked)
        }

        /// Enqueues an input of which the queue or the store has `there`; tells the batch's count.
        fn enqueue(&mut self, name: u64, jobs: u64, there: u64, starts_with: &[u64]) -> u64 {
            let given = self.begin(name, jobs);
            let starts_with: Vec<_> = starts_with.iter().map(|name| fingerprint(*name)).collect();
            let sent = EnqueueCounts { jobs, waiting: there, known: 0, prompt_tokens: 10 * jobs };
            given.settle(&mut self.0, &sent, &starts_with);
            self.0.jobs
        }
    }

    #[test]
    fn an_input_counts_once_however_often_it_is_given() {
        let mut night = Night::new();
        drop(night.begin(1, 100));
        assert_eq!(night.0.jobs, 100, "killed before its end");
        assert_eq!(night.enqueue(1, 100, 40, &[]), 100);
        assert_eq!(night.enqueue(1, 100, 0, &[]), 100, "a silent queue");
        assert_eq!((night.0.prompt_tokens, night.0.inputs.len()), (1_000, 1));
    }

    #[test]
    fn inputs_add_up_without_what_is_there() {
        let mut night = Night::new();
        assert_eq!(night.enqueue(1, 100, 0, &[]), 100);
        assert_eq!(night.enqueue(2, 50, 20, &[]), 130);
        assert_eq!(night.enqueue(2, 50, 50, &[]), 130);
    }

    #[test]
    fn an_input_that_grew_takes_the_place_of_what_it_was() {
        let mut night = Night::new();
        night.enqueue(1, 100, 0, &[]);
        night.enqueue(2, 50, 20, &[]);
        assert_eq!(night.enqueue(3, 60, 0, &[2]), 140, "ten were appended");
        drop(night.begin(4, 70));
        assert_eq!(night.enqueue(4, 70, 33, &[3]), 150, "ten more, interrupted meanwhile");
        assert_eq!(night.enqueue(4, 70, 70, &[]), 150);
        assert_eq!((night.0.prompt_tokens, night.0.inputs.len()), (1_700, 2));
    }
}
