//! Jobs on their way into the queue: packed into batches as large as the link takes, many under
//! way at once.
//!
//! A send whose confirmation is lost is sent again. Duplicate detection on the queue drops the
//! second copy; where it is off, the copy says that it may be one (`look_up`), so that no result is
//! paid for twice.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::link::SendError;
use fe2o3_amqp::link::delivery::DeliveryFut;
use fe2o3_amqp::types::messaging::{Batch, Data, Message, MessageId, Outcome, Properties};
use fe2o3_amqp::types::primitives::Binary;
use fe2o3_amqp::{Sendable, Sender};
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::connection::{Connector, Live, Patience};
use super::fault::{Fault, Trouble};
use super::message::{BATCH_FORMAT, Encoded, bytes_of};
use crate::QueueError;
use domain::job::Job;

/// Batches that are on their way at once.
const WINDOW: usize = 8;

/// No batch is larger, whatever single messages may be.
const LARGEST_BATCH: usize = 1 << 20;

/// Left free in every message: what the service adds, and a second try of the same message.
const MARGIN: usize = 512;

/// Left free in a job's first message besides: what its history adds to those that follow.
const ROOM_FOR_HISTORY: usize = 512;

/// After this long a confirmation was lost.
const CONFIRM_WAIT: Duration = Duration::from_secs(10);

type Confirmation = DeliveryFut<Result<Outcome, SendError>>;

pub(super) struct Outbox {
    connector: Arc<Connector>,
    target: String,
    patience: Duration,
    /// Taken out while it is used, so that a send that was broken off leaves no half-used link.
    link: Mutex<Option<(Arc<Live>, Sender)>>,
}

impl Outbox {
    pub(super) fn new(connector: Arc<Connector>, target: String, patience: Duration) -> Self {
        Self { connector, target, patience, link: Mutex::default() }
    }

    /// Sends all jobs, or none of them if some are too large.
    pub(super) async fn send(&self, jobs: Vec<Job>) -> Result<(), QueueError> {
        self.send_all(jobs, ROOM_FOR_HISTORY).await
    }

    async fn send_all(&self, jobs: Vec<Job>, room: usize) -> Result<(), QueueError> {
        let encoded: Result<Vec<_>, _> = jobs.iter().map(Encoded::new).collect();
        let encoded = encoded.map_err(|error| QueueError::Refused(error.into()))?;
        let mut patience = Patience::new(self.patience);
        let limit = loop {
            if let Some(limit) = patience.bear(self.limit()).await {
                break limit?.saturating_sub(room);
            }
        };
        let too_large = |(n, message): (usize, &Encoded)| (message.size > limit).then_some(n);
        let positions: Vec<_> = encoded.iter().enumerate().filter_map(too_large).collect();
        if !positions.is_empty() {
            return Err(QueueError::TooLarge { positions, limit });
        }
        let mut waiting = Waiting { jobs, encoded };
        let mut patience = Patience::new(self.patience);
        loop {
            if let Some(sent) = patience.bear(self.send_waiting(&mut waiting)).await {
                return Ok(sent?);
            }
        }
    }

    /// Sends further messages of jobs; the largest go without the text of their last error. Returns
    /// the places of those that are too large all the same: other programs leave no margin.
    pub(super) async fn send_again(&self, mut jobs: Vec<Job>) -> Result<Vec<usize>, QueueError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let too_large = self.send_unless_too_large(&jobs).await?;
        if too_large.is_empty() {
            return Ok(Vec::new());
        }
        for n in too_large {
            jobs[n].history.last_error = None;
        }
        let too_large = self.send_unless_too_large(&jobs).await?;
        if !too_large.is_empty() {
            for n in too_large.iter().rev() {
                jobs.remove(*n);
            }
            self.send_all(jobs, 0).await?;
        }
        Ok(too_large)
    }

    /// Sends all, or none and tells which are too large.
    async fn send_unless_too_large(&self, jobs: &[Job]) -> Result<Vec<usize>, QueueError> {
        match self.send_all(jobs.to_vec(), 0).await {
            Ok(()) => Ok(Vec::new()),
            Err(QueueError::TooLarge { positions, .. }) => Ok(positions),
            Err(error) => Err(error),
        }
    }

    async fn limit(&self) -> Result<usize, Fault> {
        let mut slot = self.link.lock().await;
        let (live, sender) = self.take(&mut slot).await?;
        let limit = limit_of(&sender);
        *slot = Some((live, sender));
        Ok(limit)
    }

    /// Sends what still waits; what was confirmed does not wait any more when this fails.
    async fn send_waiting(&self, waiting: &mut Waiting) -> Result<(), Fault> {
        let mut slot = self.link.lock().await;
        let (live, mut sender) = self.take(&mut slot).await?;
        let batches = batches(&waiting.encoded, limit_of(&sender).min(LARGEST_BATCH));
        let mut sent = 0;
        let mut confirmed = 0;
        let mut under_way: VecDeque<(usize, Confirmation)> = VecDeque::new();
        let sending = async {
            for batch in batches {
                sent = batch.end;
                let confirmation = put(&mut sender, &waiting.encoded[batch]).await?;
                under_way.push_back((sent, confirmation));
                if under_way.len() == WINDOW {
                    let (end, confirmation) = under_way.pop_front().expect("it is full");
                    confirm(confirmation).await?;
                    confirmed = end;
                }
            }
            for (end, confirmation) in under_way.drain(..) {
                confirm(confirmation).await?;
                confirmed = end;
            }
            Ok(())
        };
        let result: Result<(), Fault> = live.step(sending).await;
        match &result {
            Ok(()) => *slot = Some((live, sender)),
            Err(fault) => {
                if fault.is_of_token() {
                    live.end();
                }
                waiting.keep(confirmed, sent)?;
            }
        }
        result
    }

    async fn take(
        &self,
        slot: &mut Option<(Arc<Live>, Sender)>,
    ) -> Result<(Arc<Live>, Sender), Fault> {
        if let Some(open) = slot.take().filter(|(live, _)| !live.is_ended()) {
            return Ok(open);
        }
        let attach = |live: Arc<Live>| -> BoxFuture<'static, _> {
            let target = self.target.clone();
            Box::pin(async move {
                let mut session = live.session().await;
                let name = format!("send-{}", Uuid::new_v4());
                Ok(Sender::attach(&mut session, name, target).await?)
            })
        };
        self.connector.attach(attach).await
    }
}

/// What one message may weigh on this link.
fn limit_of(sender: &Sender) -> usize {
    let limit = sender.max_message_size().filter(|limit| *limit > 0);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    limit.saturating_sub(MARGIN)
}

/// What is not confirmed yet.
struct Waiting {
    jobs: Vec<Job>,
    encoded: Vec<Encoded>,
}

impl Waiting {
    /// Lets go what was confirmed; marks what was sent and may have arrived.
    fn keep(&mut self, confirmed: usize, sent: usize) -> Result<(), Fault> {
        for n in confirmed..sent {
            self.jobs[n].look_up = true;
            self.encoded[n] = Encoded::new(&self.jobs[n]).map_err(Fault::last)?;
        }
        self.jobs.drain(..confirmed);
        self.encoded.drain(..confirmed);
        Ok(())
    }
}

/// Ranges of messages that fit into one batch each; a message over `limit` goes alone.
fn batches(messages: &[Encoded], limit: usize) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut size = 0;
    for (n, message) in messages.iter().enumerate() {
        size += message.size_in_batch();
        match batches.last_mut().filter(|_| size <= limit) {
            Some(batch) => batch.end = n + 1,
            None => {
                size = message.size_in_batch();
                batches.push(n..n + 1);
            }
        }
    }
    batches
}

async fn put(sender: &mut Sender, messages: &[Encoded]) -> Result<Confirmation, Fault> {
    if let [alone] = messages {
        return Ok(sender.send_batchable(alone.message.clone()).await?);
    }
    let whole = |encoded: &Encoded| bytes_of(&encoded.message).map(|m| Data(Binary::from(m)));
    let sections: Result<Vec<_>, _> = messages.iter().map(whole).collect();
    let sections: Batch<Data> = sections.map_err(Fault::last)?.into();
    let first_id = messages.first().and_then(|first| first.message.properties.clone());
    let id: Option<MessageId> = first_id.and_then(|properties| properties.message_id);
    let properties = Properties { message_id: id, ..Properties::default() };
    let envelope = Message::builder().properties(properties).body(sections).build();
    let envelope = Sendable::builder().message(envelope).message_format(BATCH_FORMAT).build();
    Ok(sender.send_batchable(envelope).await?)
}

async fn confirm(confirmation: Confirmation) -> Result<(), Fault> {
    let outcome = tokio::time::timeout(CONFIRM_WAIT, confirmation).await;
    match outcome.map_err(|_| Trouble::NoAnswer(CONFIRM_WAIT))?? {
        Outcome::Accepted(_) => Ok(()),
        Outcome::Rejected(rejected) => Err(match rejected.error {
            Some(error) => error.into(),
            None => Trouble::Unreadable("send").into(),
        }),
        _ => Err(Trouble::Unreadable("send").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(size: usize) -> Encoded {
        let message = Message::builder().body(Data(Binary::from(Vec::new()))).build();
        Encoded { message, size }
    }

    #[test]
    fn batches_are_filled_up_to_the_limit_and_no_further() {
        let messages: Vec<_> = [92, 92, 92, 500, 1, 1].map(message).into();
        assert_eq!(batches(&messages, 200), [0..2, 2..3, 3..4, 4..6]);
        assert!(batches(&[], 200).is_empty());
    }
}
