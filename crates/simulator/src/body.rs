//! Answer bodies on their way out: at once, at a pace, broken off, or shard by shard.
//!
//! A body that was handed over whole signs its [`Receipt`] in the books: this is what the ledger
//! calls answered. A truncated body promises its full length, gives half, and ends in an error, on
//! which the connection closes. Neighbours: `service` chooses the kind; hyper pulls the frames.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::books::Books;
use super::stream::Events;

/// The end of a body that breaks off on purpose.
#[derive(Debug, thiserror::Error)]
#[error("this answer is cut off by a simulated fault")]
pub struct CutOff;

/// Where to sign when an answer was handed over whole.
#[derive(Debug)]
pub struct Receipt {
    pub books: Arc<Books>,
    pub key: u64,
}

impl Receipt {
    fn sign(self) {
        self.books.answer(self.key);
    }
}

pub enum Reply {
    Whole { bytes: Bytes, receipt: Option<Receipt> },
    Paced(Box<Paced>),
    Cut(Cut),
    Prompts { books: Arc<Books>, next: usize },
}

impl Reply {
    pub fn plain(bytes: impl Into<Bytes>) -> Self {
        Self::Whole { bytes: bytes.into(), receipt: None }
    }

    /// The first half of a body that would have been `bytes`.
    pub fn half(bytes: Vec<u8>) -> Self {
        let promised = Some(bytes.len() as u64);
        let half = bytes.len() / 2;
        Self::Cut(Cut { rest: Bytes::from(bytes).slice(..half), promised, flushed: false })
    }

    /// The first half of the events; nobody promised how many there would be.
    pub fn half_of_events(events: Events) -> Self {
        let half = events.ends[events.ends.len() / 2];
        let rest = Bytes::from(events.bytes).slice(..half);
        Self::Cut(Cut { rest, promised: None, flushed: false })
    }

    /// Events of which the first is due at once and the last nearly `span` later.
    pub fn paced(events: Events, span: Duration, receipt: Receipt) -> Self {
        if span.is_zero() {
            return Self::Whole { bytes: events.bytes.into(), receipt: Some(receipt) };
        }
        let step = span / events.ends.len() as u32;
        Self::Paced(Box::new(Paced {
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

impl Body for Reply {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        match self.get_mut() {
            Self::Whole { bytes, receipt } => {
                if let Some(receipt) = receipt.take() {
                    receipt.sign();
                }
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Paced(paced) => paced.poll(cx).map(|bytes| Some(Ok(Frame::data(bytes?)))),
            Self::Cut(cut) => cut.poll(cx).map(Some),
            Self::Prompts { books, next } => {
                let lines = books.prompts(*next);
                *next += 1;
                Poll::Ready(lines.map(|lines| Ok(Frame::data(lines.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { bytes, .. } => bytes.is_empty(),
            Self::Paced(paced) => paced.next == paced.ends.len(),
            Self::Cut(_) | Self::Prompts { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { bytes, .. } => SizeHint::with_exact(bytes.len() as u64),
            Self::Cut(Cut { promised: Some(length), .. }) => SizeHint::with_exact(*length),
            Self::Cut(_) | Self::Paced(_) | Self::Prompts { .. } => SizeHint::default(),
        }
    }
}

/// Events that come one after the other.
pub struct Paced {
    bytes: Bytes,
    ends: Vec<usize>,
    next: usize,
    /// When the first event went out.
    start: Option<Instant>,
    step: Duration,
    sleep: Pin<Box<Sleep>>,
    receipt: Option<Receipt>,
}

impl Paced {
    /// All events that are due. Timers are coarser than fast models, so several may be.
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
            receipt.sign();
        }
        Poll::Ready(Some(self.bytes.slice(from..self.ends[due - 1])))
    }
}

/// A body that breaks off.
pub struct Cut {
    rest: Bytes,
    promised: Option<u64>,
    flushed: bool,
}

impl Cut {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame<Bytes>, CutOff>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Frame::data(std::mem::take(&mut self.rest))));
        }
        if !self.flushed {
            // One turn without data makes the connection write out what it has, which it would
            // drop if the error came at once.
            self.flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Err(CutOff))
    }
}
