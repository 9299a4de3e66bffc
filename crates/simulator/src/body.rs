//! Response bodies: at once, paced, truncated, or shard by shard.
//!
//! A body that was handed over completely records its [`DeliveryReceipt`], which the ledger counts
//! as answered. A truncated body announces its full length, sends half, and ends in an error that
//! closes the connection. Neighbours: `service` chooses the kind; hyper pulls the frames.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::audit_ledger::AuditLedger;
use super::stream::SseEvents;

/// Error that ends a deliberately truncated body.
#[derive(Debug, thiserror::Error)]
#[error("this answer is cut off by a simulated fault")]
pub struct CutOff;

/// Receipt that records in the ledger that an answer was handed over completely.
#[derive(Debug)]
pub struct DeliveryReceipt {
    pub ledger: Arc<AuditLedger>,
    pub key: u64,
}

impl DeliveryReceipt {
    fn record(self) {
        self.ledger.record_answered(self.key);
    }
}

pub enum ReplyBody {
    Whole { bytes: Bytes, receipt: Option<DeliveryReceipt> },
    Paced(Box<PacedEvents>),
    Truncated(TruncatedBody),
    Prompts { ledger: Arc<AuditLedger>, next: usize },
}

impl ReplyBody {
    pub fn plain(bytes: impl Into<Bytes>) -> Self {
        Self::Whole { bytes: bytes.into(), receipt: None }
    }

    /// Returns the first half of `bytes`, announced with their full length.
    pub fn half(bytes: Vec<u8>) -> Self {
        let promised = Some(bytes.len() as u64);
        let half = bytes.len() / 2;
        Self::Truncated(TruncatedBody {
            rest: Bytes::from(bytes).slice(..half),
            content_length: promised,
            flushed: false,
        })
    }

    /// Returns the first half of the events, without an announced length.
    pub fn half_of_events(events: SseEvents) -> Self {
        let half = events.ends[events.ends.len() / 2];
        let rest = Bytes::from(events.bytes).slice(..half);
        Self::Truncated(TruncatedBody { rest, content_length: None, flushed: false })
    }

    /// Paces the events: the first is due at once, the last nearly `span` later.
    pub fn paced(events: SseEvents, span: Duration, receipt: DeliveryReceipt) -> Self {
        if span.is_zero() {
            return Self::Whole { bytes: events.bytes.into(), receipt: Some(receipt) };
        }
        let step = span / events.ends.len() as u32;
        Self::Paced(Box::new(PacedEvents {
            bytes: events.bytes.into(),
            ends: events.ends,
            next: 0,
            start: None,
            step,
            sleep: Box::pin(sleep_until(Instant::now())),
            receipt: Some(receipt),
        }))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        match self.get_mut() {
            Self::Whole { bytes, receipt } => {
                if let Some(receipt) = receipt.take() {
                    receipt.record();
                }
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Paced(paced) => paced.poll(cx).map(|bytes| Some(Ok(Frame::data(bytes?)))),
            Self::Truncated(cut) => cut.poll(cx).map(Some),
            Self::Prompts { ledger, next } => {
                let lines = ledger.prompts(*next);
                *next += 1;
                Poll::Ready(lines.map(|lines| Ok(Frame::data(lines.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { bytes, .. } => bytes.is_empty(),
            Self::Paced(paced) => paced.next == paced.ends.len(),
            Self::Truncated(_) | Self::Prompts { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { bytes, .. } => SizeHint::with_exact(bytes.len() as u64),
            Self::Truncated(TruncatedBody { content_length: Some(length), .. }) => {
                SizeHint::with_exact(*length)
            }
            Self::Truncated(_) | Self::Paced(_) | Self::Prompts { .. } => SizeHint::default(),
        }
    }
}

/// Events that are sent one after the other at fixed steps.
pub struct PacedEvents {
    bytes: Bytes,
    ends: Vec<usize>,
    next: usize,
    /// Time at which the first event was sent.
    start: Option<Instant>,
    step: Duration,
    sleep: Pin<Box<Sleep>>,
    receipt: Option<DeliveryReceipt>,
}

impl PacedEvents {
    /// Returns all events that are due; several, if the timer is coarser than the step.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.next == self.ends.len() {
            return Poll::Ready(None);
        }
        let start = *self.start.get_or_insert_with(Instant::now);
        let due_at = start + self.step * self.next as u32;
        if Instant::now() < due_at {
            self.sleep.as_mut().reset(due_at);
            ready!(self.sleep.as_mut().poll(cx));
        }
        let elapsed = start.elapsed().as_nanos();
        let due = 1 + (elapsed / self.step.as_nanos().max(1)) as usize;
        let due = due.clamp(self.next + 1, self.ends.len());
        let from = if self.next == 0 { 0 } else { self.ends[self.next - 1] };
        self.next = due;
        if due == self.ends.len()
            && let Some(receipt) = self.receipt.take()
        {
            receipt.record();
        }
        Poll::Ready(Some(self.bytes.slice(from..self.ends[due - 1])))
    }
}

/// Truncated body.
pub struct TruncatedBody {
    rest: Bytes,
    content_length: Option<u64>,
    flushed: bool,
}

impl TruncatedBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame<Bytes>, CutOff>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Frame::data(std::mem::take(&mut self.rest))));
        }
        if !self.flushed {
            // One poll without data makes the connection flush its buffer, which it would drop if
            // the error came at once.
            self.flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Err(CutOff))
    }
}
