//! The dead-letter subqueue: peeks at messages, and takes them out.
//!
//! A dead letter can be taken out only under its lock, and locks come in order, never by name. So
//! chosen ones are reached by receiving all before them, which are abandoned in the end (a delivery
//! more, meaningless for a dead letter). A link of its own is attached for that and detached again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::connection::AmqpConnector;
use super::management::{ManagementNode, PEEK_PAGE};
use super::message::{self, ReceivedMessage};
use super::receiver::{LockedMessage, MessageReceiver, first_enqueued_of, job_of};
use super::receiving_link::DeliveryDisposition;
use super::sender::JobSender;
use crate::{LockToken, QueueError};
use domain::job::{Amendment, Job};

/// Time without a message after which none is left to lock.
const LAST_WAIT: Duration = Duration::from_secs(1);

pub(super) struct DeadLetterSubqueue {
    connector: Arc<AmqpConnector>,
    path: String,
    patience: Duration,
    management: ManagementNode,
}

impl DeadLetterSubqueue {
    pub(super) fn new(connector: Arc<AmqpConnector>, source: &str, patience: Duration) -> Self {
        let path = format!("{source}/$DeadLetterQueue");
        let management = ManagementNode::new(connector.clone(), &path, patience);
        Self { connector, path, patience, management }
    }

    pub(super) async fn peek(
        &self,
        from: i64,
        count: usize,
    ) -> Result<Vec<ReceivedMessage>, QueueError> {
        Ok(self.management.peek(from, count).await?)
    }

    /// Deletes the dead letters with these numbers, and returns which. With an outbox, only those
    /// that are jobs, and only when they are sent anew: a crash in between leaves two messages of
    /// one job, never none.
    pub(super) async fn take_out(
        &self,
        numbers: &[i64],
        outbox: Option<(&JobSender, &Amendment)>,
    ) -> Result<Vec<i64>, QueueError> {
        if numbers.is_empty() {
            return Ok(Vec::new());
        }
        let inbox =
            MessageReceiver::start(self.connector.clone(), self.path.clone(), self.patience);
        let mut sweep = DeadLetterSweep {
            wanted: numbers.iter().copied().collect(),
            seen: HashSet::new(),
            skipped: Vec::new(),
            done: Vec::new(),
        };
        let swept = self.sweep(&mut sweep, &inbox, outbox).await;
        inbox.close().await;
        // Only now: the link still had credit, and would have been sent them again.
        let released = self.management.settle(&sweep.skipped, &DeliveryDisposition::Abandon).await;
        swept?;
        released?;
        Ok(sweep.done)
    }

    async fn sweep(
        &self,
        sweep: &mut DeadLetterSweep,
        inbox: &MessageReceiver,
        outbox: Option<(&JobSender, &Amendment)>,
    ) -> Result<(), QueueError> {
        while !sweep.wanted.is_empty() {
            let messages = inbox.receive(PEEK_PAGE, LAST_WAIT).await?.take();
            if messages.is_empty() {
                return Ok(());
            }
            let (chosen, is_round) = sweep.choose(messages);
            let (mut numbers, mut locks, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
            for (number, locked) in chosen {
                if let Some((_, amendment)) = outbox {
                    match resubmitted_job(&locked, amendment) {
                        Some(job) => jobs.push(job),
                        None => {
                            sweep.skipped.push(locked.lock);
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
                    sweep.skipped.push(locks.remove(n));
                }
            }
            let others = inbox.settle(locks, DeliveryDisposition::Complete).await?;
            self.management.settle(&others, &DeliveryDisposition::Complete).await?;
            sweep.done.extend(numbers);
            if is_round {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// One pass through the dead letters.
struct DeadLetterSweep {
    wanted: HashSet<i64>,
    seen: HashSet<i64>,
    /// Locks of messages that are not wanted.
    skipped: Vec<LockToken>,
    done: Vec<i64>,
}

impl DeadLetterSweep {
    /// Returns the wanted messages, and whether one was seen before: its lock expired, so all have
    /// been seen by now.
    fn choose(&mut self, messages: Vec<LockedMessage>) -> (Vec<(i64, LockedMessage)>, bool) {
        let mut is_round = false;
        let mut chosen = Vec::new();
        for locked in messages {
            let number = message::sequence_number(&locked.message).unwrap_or_default();
            is_round |= !self.seen.insert(number);
            if self.wanted.remove(&number) {
                chosen.push((number, locked));
            } else {
                self.skipped.push(locked.lock);
            }
        }
        (chosen, is_round)
    }
}

/// Returns the dead letter's job as a new one, if it is a job.
fn resubmitted_job(locked: &LockedMessage, amendment: &Amendment) -> Option<Job> {
    let mut job = job_of(locked).ok()?;
    job.history.first_enqueued = first_enqueued_of(&job, locked);
    job.resubmit(amendment);
    Some(job)
}
