//! Messages to clients: handed out as credit and windows allow, and settled as clients say.

use bytes::BytesMut;
use fe2o3_amqp_types::definitions::Role;
use fe2o3_amqp_types::messaging::{Accepted, DeliveryState, Modified, Rejected, Released};
use fe2o3_amqp_types::performatives::Disposition as Answer;
use tokio::time::Instant;

use crate::connection::{Connection, Late};
use crate::entity::{Millis, Settlement, dead_letter_properties};
use crate::faults::Loss;
use crate::frames::{self, Disposition, Outcome};
use crate::management::{LOCK_LOST, changed_properties};
use crate::namespace::{Address, Namespace};
use crate::session::{Link, Outlet, Session, Unsettled};
use crate::wire::{as_text, entry};

/// Bytes waiting for the socket at which no more are made.
pub const HIGH_WATER: usize = 1 << 20;

/// One message for a link, and whose lock it is under.
struct Outgoing {
    tag: Vec<u8>,
    bytes: bytes::Bytes,
    unsettled: Option<Unsettled>,
}

impl Connection {
    /// Hands out what there is to whoever has credit.
    pub fn pump(&mut self) {
        let now = self.shared.clock.now();
        let mut namespace = self.shared.namespace();
        for session in self.sessions.values_mut() {
            session.flush(&mut self.out);
            let handles: Vec<u32> = session.links.keys().copied().collect();
            for handle in handles {
                let peer_max_frame = self.peer_max_frame;
                self.changed |= pump_link(
                    session,
                    handle,
                    &mut namespace,
                    now,
                    (&mut self.out, peer_max_frame),
                );
            }
        }
    }

    pub(crate) fn settle(&mut self, channel: u16, disposition: &Disposition) {
        let Some(session) = self.sessions.get_mut(&channel) else {
            return;
        };
        if !disposition.from_receiver || disposition.first > disposition.last {
            return;
        }
        let range = disposition.first..=disposition.last;
        let Some(outcome) = &disposition.outcome else {
            if disposition.settled {
                // Forgotten without a word on what became of it: the lock runs out.
                session.unsettled.retain(|delivery, _| !range.contains(delivery));
            }
            return;
        };
        let deliveries: Vec<u32> = session.unsettled.range(range).map(|(id, _)| *id).collect();
        let mut answers: Vec<(u32, bool)> = Vec::with_capacity(deliveries.len());
        let mut faults = self.shared.faults();
        let mut namespace = self.shared.namespace();
        for delivery in deliveries {
            let loss = faults.settlements.next();
            if loss == Some(Loss::Order) {
                continue;
            }
            let Some(unsettled) = session.unsettled.remove(&delivery) else {
                continue;
            };
            let done = apply(&mut namespace, &unsettled, outcome, self.shared.clock.now());
            if loss.is_none() {
                answers.push((delivery, done));
            }
        }
        self.changed = true;
        let delay = faults.settlement_delay;
        drop((faults, namespace));
        if disposition.settled {
            return;
        }
        let mut frames = BytesMut::new();
        for (first, last, done) in runs(&answers) {
            frames::write(&mut frames, channel, &confirmation(first, last, outcome, done), &[]);
        }
        if delay.is_zero() {
            self.out.extend_from_slice(&frames);
        } else {
            self.late.push_back((Instant::now() + delay, Late::Frame(frames.freeze())));
        }
    }
}

/// Tells whether any message was handed out.
fn pump_link(
    session: &mut Session,
    handle: u32,
    namespace: &mut Namespace,
    now: Millis,
    (out, peer_max_frame): (&mut BytesMut, u32),
) -> bool {
    let mut handed_out = false;
    while session.may_send() && out.len() < HIGH_WATER {
        let Some(Link::Out(outlet)) = session.links.get_mut(&handle) else {
            return handed_out;
        };
        if outlet.credit == 0 {
            return handed_out;
        }
        let Some(next) = next_message(outlet, handle, namespace, now) else {
            if outlet.drain {
                session.drained(handle, out);
            }
            return handed_out;
        };
        let delivery = session.send(handle, &next.tag, next.bytes, peer_max_frame);
        if let Some(unsettled) = next.unsettled {
            session.unsettled.insert(delivery, unsettled);
        }
        session.flush(out);
        handed_out = true;
    }
    handed_out
}

fn next_message(
    outlet: &mut Outlet,
    handle: u32,
    namespace: &mut Namespace,
    now: Millis,
) -> Option<Outgoing> {
    let Address::Entity { path, side } = &outlet.address else {
        let bytes = outlet.replies.pop_front()?;
        return Some(Outgoing { tag: vec![0], bytes, unsettled: None });
    };
    let queue = namespace.queue(path)?;
    let delivery = if outlet.settled {
        queue.receive_and_delete(*side, now)?
    } else {
        queue.receive(*side, now)?
    };
    let token = delivery.token;
    let unsettled =
        (!outlet.settled).then(|| Unsettled { handle, path: path.clone(), side: *side, token });
    // The lock token travels as the delivery tag, in the byte order of a .NET Guid.
    Some(Outgoing { tag: token.to_bytes_le().to_vec(), bytes: delivery.encoded, unsettled })
}

/// Settles one delivery as the outcome says; false where its lock was lost.
fn apply(namespace: &mut Namespace, unsettled: &Unsettled, outcome: &Outcome, now: Millis) -> bool {
    let settlement = match outcome {
        Outcome::Accepted => Settlement::Complete,
        Outcome::Released => Settlement::Release,
        Outcome::Modified { undeliverable_here: true, annotations } => {
            Settlement::Defer(changed_properties(annotations))
        }
        Outcome::Modified { annotations, .. } => {
            Settlement::Abandon(changed_properties(annotations))
        }
        Outcome::Rejected { description, info } => {
            // Reason and description are among the error's info, with whatever else is to be set.
            let mut changes = changed_properties(info);
            if entry(info, "DeadLetterErrorDescription").and_then(as_text).is_none() {
                changes.retain(|(name, _)| name != "DeadLetterErrorDescription");
                changes.extend(dead_letter_properties(None, description.as_deref()));
            }
            Settlement::DeadLetter(changes)
        }
    };
    namespace
        .queue(&unsettled.path)
        .is_some_and(|queue| queue.settle(unsettled.side, unsettled.token, settlement, now).is_ok())
}

/// Joins neighbouring deliveries with the same end: first, last, whether it went well.
fn runs(answers: &[(u32, bool)]) -> Vec<(u32, u32, bool)> {
    let mut runs: Vec<(u32, u32, bool)> = Vec::new();
    for &(delivery, done) in answers {
        match runs.last_mut() {
            Some((_, last, same)) if *same == done && last.wrapping_add(1) == delivery => {
                *last = delivery;
            }
            _ => runs.push((delivery, delivery, done)),
        }
    }
    runs
}

/// The answer to a settlement: the same outcome, settled. An error would be raised by the SDKs, so
/// only a lost lock carries one.
fn confirmation(first: u32, last: u32, outcome: &Outcome, done: bool) -> Answer {
    let state = match outcome {
        _ if !done => DeliveryState::Rejected(Rejected {
            error: Some(frames::error(LOCK_LOST, crate::shelf::LockLost.to_string())),
        }),
        Outcome::Accepted => DeliveryState::Accepted(Accepted {}),
        Outcome::Rejected { .. } => DeliveryState::Rejected(Rejected { error: None }),
        Outcome::Released => DeliveryState::Released(Released {}),
        Outcome::Modified { .. } => DeliveryState::Modified(Modified {
            delivery_failed: None,
            undeliverable_here: None,
            message_annotations: None,
        }),
    };
    Answer {
        role: Role::Sender,
        first,
        last: (first != last).then_some(last),
        settled: true,
        state: Some(state),
        batchable: false,
    }
}
