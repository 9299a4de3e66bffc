//! The dead-letter side: looking at it, and taking messages out of it.
//!
//! A dead letter can be taken out only by whoever has locked it, and locks are given out in order,
//! never by name. So chosen ones are come to by receiving all before them, which are given back in
//! the end (a delivery more, which has no meaning for a dead letter). A link of its own is attached for that and detached again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::connection::Connector;
use super::inbound::Verdict;
use super::management::{Management, PAGE};
use super::message::{self, Received};
use super::receiver::{Inbox, Locked};
use super::sender::Outbox;
use super::{first_enqueued_of, job_of};
use crate::{LockToken, QueueError};
use domain::job::{Amendment, Job};

/// After this long without a message there is none that could be locked.
const LAST_WAIT: Duration = Duration::from_secs(1);

pub(super) struct DeadSide {
    connector: Arc<Connector>,
    path: String,
    patience: Duration,
    management: Management,
}

impl DeadSide {
    pub(super) fn new(connector: Arc<Connector>, source: &str, patience: Duration) -> Self {
        let path = format!("{source}/$DeadLetterQueue");
        let management = Management::new(connector.clone(), &path, patience);
        Self { connector, path, patience, management }
    }

    pub(super) async fn peek(&self, from: i64, count: usize) -> Result<Vec<Received>, QueueError> {
        Ok(self.management.peek(from, count).await?)
    }

    /// Deletes the dead letters with these numbers, and tells which. With an outbox, only those that
    /// are jobs, and only when they are sent anew: a crash in between leaves two messages of one job,
    /// never none.
    pub(super) async fn take_out(
        &self,
        numbers: &[i64],
        outbox: Option<(&Outbox, &Amendment)>,
    ) -> Result<Vec<i64>, QueueError> {
        if numbers.is_empty() {
            return Ok(Vec::new());
        }
        let inbox = Inbox::start(self.connector.clone(), self.path.clone(), self.patience);
        let mut sweep = Sweep {
            wanted: numbers.iter().copied().collect(),
            seen: HashSet::new(),
            passed: Vec::new(),
            done: Vec::new(),
        };
        let swept = self.sweep(&mut sweep, &inbox, outbox).await;
        inbox.close().await;
        // Only now: the link still had credit, and would have been sent them again.
        let released = self.management.settle(&sweep.passed, &Verdict::Abandon).await;
        swept?;
        released?;
        Ok(sweep.done)
    }

    async fn sweep(
        &self,
        sweep: &mut Sweep,
        inbox: &Inbox,
        outbox: Option<(&Outbox, &Amendment)>,
    ) -> Result<(), QueueError> {
        while !sweep.wanted.is_empty() {
            let messages = inbox.receive(PAGE, LAST_WAIT).await?.take();
            if messages.is_empty() {
                return Ok(());
            }
            let (chosen, is_round) = sweep.choose(messages);
            let (mut numbers, mut locks, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
            for (number, locked) in chosen {
                if let Some((_, amendment)) = outbox {
                    match anew(&locked, amendment) {
                        Some(job) => jobs.push(job),
                        None => {
                            sweep.passed.push(locked.lock);
                            continue;
                        }
                    }
                }
                numbers.push(number);
                locks.push(locked.lock);
            }
            if let Some((outbox, _)) = outbox {
                for n in outbox.send_again(jobs).await?.into_iter().rev() {
                    numbers.remove(n);
                    sweep.passed.push(locks.remove(n));
                }
            }
            let others = inbox.settle(locks, Verdict::Complete).await?;
            self.management.settle(&others, &Verdict::Complete).await?;
            sweep.done.extend(numbers);
            if is_round {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// One way through the dead letters.
struct Sweep {
    wanted: HashSet<i64>,
    seen: HashSet<i64>,
    /// Locked on the way and not wanted.
    passed: Vec<LockToken>,
    done: Vec<i64>,
}

impl Sweep {
    /// Those that are wanted, and whether one was seen before: its lock ran out, so all have been
    /// seen by now.
    fn choose(&mut self, messages: Vec<Locked>) -> (Vec<(i64, Locked)>, bool) {
        let mut is_round = false;
        let mut chosen = Vec::new();
        for locked in messages {
            let number = message::sequence_number(&locked.message).unwrap_or_default();
            is_round |= !self.seen.insert(number);
            if self.wanted.remove(&number) {
                chosen.push((number, locked));
            } else {
                self.passed.push(locked.lock);
            }
        }
        (chosen, is_round)
    }
}

/// The dead letter's job as a new one, if it is a job.
fn anew(locked: &Locked, amendment: &Amendment) -> Option<Job> {
    let mut job = job_of(locked).ok()?;
    job.history.first_enqueued = first_enqueued_of(&job, locked);
    job.begin_anew(amendment);
    Some(job)
}
