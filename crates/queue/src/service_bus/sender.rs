//! Sends jobs into the queue: packed into batches as large as the link takes, many in flight at
//! once.
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

use super::connection::{AmqpConnector, RetryBudget};
use super::error::{BrokerError, TransportError};
use super::live_connection::AmqpConnection;
use super::message::{BATCH_FORMAT, EncodedMessage, bytes_of};
use crate::QueueError;
use domain::job::Job;

/// Batches that are in flight at once.
const WINDOW: usize = 8;

/// No batch is larger, whatever single messages may be.
const LARGEST_BATCH: usize = 1 << 20;

/// Bytes left free in every message: for what the service adds, and a second attempt to send it.
const MARGIN: usize = 512;

/// Bytes left free in a job's first message besides: for what history adds to its later ones.
const ROOM_FOR_HISTORY: usize = 512;

/// Time after which a confirmation counts as lost.
const CONFIRM_WAIT: Duration = Duration::from_secs(10);

type SendConfirmation = DeliveryFut<Result<Outcome, SendError>>;

pub(super) struct JobSender {
    connector: Arc<AmqpConnector>,
    target: String,
    patience: Duration,
    /// Taken out while it is used, so that a cancelled send leaves no half-used link.
    link: Mutex<Option<(Arc<AmqpConnection>, Sender)>>,
}

impl JobSender {
    pub(super) fn new(connector: Arc<AmqpConnector>, target: String, patience: Duration) -> Self {
        Self { connector, target, patience, link: Mutex::default() }
    }

    /// Sends all jobs, or none of them if some are too large.
    pub(super) async fn send(&self, jobs: Vec<Job>) -> Result<(), QueueError> {
        self.send_all(jobs, ROOM_FOR_HISTORY).await
    }

    async fn send_all(&self, jobs: Vec<Job>, room: usize) -> Result<(), QueueError> {
        let encoded: Result<Vec<_>, _> = jobs.iter().map(EncodedMessage::new).collect();
        let encoded = encoded.map_err(|error| QueueError::Refused(error.into()))?;
        let mut patience = RetryBudget::new(self.patience);
        let limit = loop {
            if let Some(limit) = patience.run(self.size_limit()).await {
                break limit?.saturating_sub(room);
            }
        };
        let too_large =
            |(n, message): (usize, &EncodedMessage)| (message.size > limit).then_some(n);
        let positions: Vec<_> = encoded.iter().enumerate().filter_map(too_large).collect();
        if !positions.is_empty() {
            return Err(QueueError::TooLarge { positions, limit });
        }
        let mut waiting = UnconfirmedJobs { jobs, encoded };
        let mut patience = RetryBudget::new(self.patience);
        loop {
            if let Some(sent) = patience.run(self.send_unconfirmed(&mut waiting)).await {
                return Ok(sent?);
            }
        }
    }

    /// Sends further messages of jobs; the largest go without the text of their last error. Returns
    /// the positions of those that are too large all the same: other programs leave no margin.
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

    /// Sends all, or none and returns the positions of those that are too large.
    async fn send_unless_too_large(&self, jobs: &[Job]) -> Result<Vec<usize>, QueueError> {
        match self.send_all(jobs.to_vec(), 0).await {
            Ok(()) => Ok(Vec::new()),
            Err(QueueError::TooLarge { positions, .. }) => Ok(positions),
            Err(error) => Err(error),
        }
    }

    async fn size_limit(&self) -> Result<usize, BrokerError> {
        let mut slot = self.link.lock().await;
        let (live, sender) = self.take_link(&mut slot).await?;
        let limit = limit_of(&sender);
        *slot = Some((live, sender));
        Ok(limit)
    }

    /// Sends the unconfirmed messages; those confirmed before an error are removed.
    async fn send_unconfirmed(&self, waiting: &mut UnconfirmedJobs) -> Result<(), BrokerError> {
        let mut slot = self.link.lock().await;
        let (live, mut sender) = self.take_link(&mut slot).await?;
        let batches = batches(&waiting.encoded, limit_of(&sender).min(LARGEST_BATCH));
        let mut sent = 0;
        let mut confirmed = 0;
        let mut under_way: VecDeque<(usize, SendConfirmation)> = VecDeque::new();
        let sending = async {
            for batch in batches {
                sent = batch.end;
                let confirmation = send_batch(&mut sender, &waiting.encoded[batch]).await?;
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
        let result: Result<(), BrokerError> = live.run_while_alive(sending).await;
        match &result {
            Ok(()) => *slot = Some((live, sender)),
            Err(fault) => {
                if fault.is_token_expired() {
                    live.end();
                }
                waiting.retain_unconfirmed(confirmed, sent)?;
            }
        }
        result
    }

    async fn take_link(
        &self,
        slot: &mut Option<(Arc<AmqpConnection>, Sender)>,
    ) -> Result<(Arc<AmqpConnection>, Sender), BrokerError> {
        if let Some(open) = slot.take().filter(|(live, _)| !live.is_ended()) {
            return Ok(open);
        }
        let attach = |live: Arc<AmqpConnection>| -> BoxFuture<'static, _> {
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

/// Returns the size limit of one message on this link.
fn limit_of(sender: &Sender) -> usize {
    let limit = sender.max_message_size().filter(|limit| *limit > 0);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    limit.saturating_sub(MARGIN)
}

/// Jobs whose send is not confirmed yet.
struct UnconfirmedJobs {
    jobs: Vec<Job>,
    encoded: Vec<EncodedMessage>,
}

impl UnconfirmedJobs {
    /// Removes the confirmed jobs; marks those that were sent and may have arrived.
    fn retain_unconfirmed(&mut self, confirmed: usize, sent: usize) -> Result<(), BrokerError> {
        for n in confirmed..sent {
            self.jobs[n].may_have_outcome = true;
            self.encoded[n] = EncodedMessage::new(&self.jobs[n]).map_err(BrokerError::permanent)?;
        }
        self.jobs.drain(..confirmed);
        self.encoded.drain(..confirmed);
        Ok(())
    }
}

/// Ranges of messages that fit into one batch each; a message over `limit` goes alone.
fn batches(messages: &[EncodedMessage], limit: usize) -> Vec<Range<usize>> {
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

async fn send_batch(
    sender: &mut Sender,
    messages: &[EncodedMessage],
) -> Result<SendConfirmation, BrokerError> {
    if let [alone] = messages {
        return Ok(sender.send_batchable(alone.message.clone()).await?);
    }
    let whole =
        |encoded: &EncodedMessage| bytes_of(&encoded.message).map(|m| Data(Binary::from(m)));
    let sections: Result<Vec<_>, _> = messages.iter().map(whole).collect();
    let sections: Batch<Data> = sections.map_err(BrokerError::permanent)?.into();
    let first_id = messages.first().and_then(|first| first.message.properties.clone());
    let id: Option<MessageId> = first_id.and_then(|properties| properties.message_id);
    let properties = Properties { message_id: id, ..Properties::default() };
    let envelope = Message::builder().properties(properties).body(sections).build();
    let envelope = Sendable::builder().message(envelope).message_format(BATCH_FORMAT).build();
    Ok(sender.send_batchable(envelope).await?)
}

async fn confirm(confirmation: SendConfirmation) -> Result<(), BrokerError> {
    let outcome = tokio::time::timeout(CONFIRM_WAIT, confirmation).await;
    match outcome.map_err(|_| TransportError::NoAnswer(CONFIRM_WAIT))?? {
        Outcome::Accepted(_) => Ok(()),
        Outcome::Rejected(rejected) => Err(match rejected.error {
            Some(error) => error.into(),
            None => TransportError::Unreadable("send").into(),
        }),
        _ => Err(TransportError::Unreadable("send").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(size: usize) -> EncodedMessage {
        let message = Message::builder().body(Data(Binary::from(Vec::new()))).build();
        EncodedMessage { message, size }
    }

    #[test]
    fn batches_are_filled_up_to_the_limit_and_no_further() {
        let messages: Vec<_> = [92, 92, 92, 500, 1, 1].map(message).into();
        assert_eq!(batches(&messages, 200), [0..2, 2..3, 3..4, 4..6]);
        assert!(batches(&[], 200).is_empty());
    }
}
