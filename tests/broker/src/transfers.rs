//! Messages from clients: put together, then sent to an entity, to `$cbs` or to `$management`.

use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::definitions::Role;
use fe2o3_amqp_types::messaging::{Accepted, DeliveryState, Rejected};
use fe2o3_amqp_types::performatives::{Disposition, Transfer};
use tokio::time::Instant;

use crate::connection::{Connection, Late};
use crate::entity::Side;
use crate::faults::Loss;
use crate::frames;
use crate::management::{self, Context};
use crate::message;
use crate::namespace::Address;
use crate::request::{Reply, Request};
use crate::session::{Link, Partial};
use crate::wire::{Malformed, Map};

/// Why a message is not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(
        "The received message (delivery-id:{delivery}, size:{size} bytes) exceeds the limit \
         ({limit} bytes) currently allowed on the link."
    )]
    TooLarge { delivery: u32, size: u64, limit: u64 },
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Refused {
    fn condition(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "amqp:link:message-size-exceeded",
            Self::Malformed(_) => "amqp:decode-error",
        }
    }
}

impl Connection {
    pub(crate) fn transfer(&mut self, channel: u16, transfer: &Transfer, payload: &Bytes) {
        let limit = self.shared.max_message_size;
        let Some(session) = self.sessions.get_mut(&channel) else {
            return;
        };
        session.count_incoming(&mut self.out);
        let handle = transfer.handle.0;
        let Some(Link::In(inlet)) = session.links.get_mut(&handle) else {
            return;
        };
        if inlet.partial.is_none() && !inlet.has_credit() {
            session.forget(handle);
            let error = frames::error("amqp:link:transfer-limit-exceeded", "No credit is left.");
            frames::write(&mut self.out, channel, &frames::detach(handle, Some(error)), &[]);
            return;
        }
        let mut partial = inlet.partial.take().unwrap_or_else(|| Partial {
            delivery: transfer.delivery_id.unwrap_or_default(),
            format: transfer.message_format.unwrap_or_default(),
            settled: false,
            size: 0,
            body: BytesMut::new(),
        });
        partial.settled |= transfer.settled.unwrap_or(false);
        partial.size += payload.len() as u64;
        // What is too large is counted and not kept: it is refused at its last transfer.
        if partial.size <= limit {
            partial.body.extend_from_slice(payload);
        }
        if transfer.more && !transfer.aborted {
            inlet.partial = Some(partial);
            return;
        }
        let address = inlet.address.clone();
        session.count_message(handle, &mut self.out);
        if !transfer.aborted {
            self.receive(channel, &address, partial);
        }
    }

    fn receive(&mut self, channel: u16, address: &Address, partial: Partial) {
        let body = partial.body.freeze();
        let limit = self.shared.max_message_size;
        let result = match address {
            _ if partial.size > limit => {
                let (delivery, size) = (partial.delivery, partial.size);
                Err(Refused::TooLarge { delivery, size, limit })
            }
            Address::Entity { path, .. } => self.publish(path, partial.format, &body),
            Address::Cbs => self.put_token(channel, &body).map(|()| true),
            Address::Management { path, side } => {
                self.manage(channel, address, path, *side, &body).map(|()| true)
            }
        };
        self.changed = true;
        let state = match result {
            Ok(true) => DeliveryState::Accepted(Accepted {}),
            Ok(false) => return,
            Err(refused) => DeliveryState::Rejected(Rejected {
                error: Some(frames::error(refused.condition(), refused.to_string())),
            }),
        };
        if !partial.settled {
            let answer = Disposition {
                role: Role::Receiver,
                first: partial.delivery,
                last: None,
                settled: true,
                state: Some(state),
                batchable: false,
            };
            frames::write(&mut self.out, channel, &answer, &[]);
        }
    }

    /// Sends a message or a batch on to its entity; false where the confirmation is to be lost.
    fn publish(&mut self, path: &str, format: u32, body: &Bytes) -> Result<bool, Refused> {
        let messages = message::unpack(format, body)?;
        let loss = self.shared.faults().sends.next();
        if loss == Some(Loss::Order) {
            return Ok(false);
        }
        let now = self.shared.clock.now();
        let mut namespace = self.shared.namespace();
        for message in messages {
            namespace.send(path, message, now);
        }
        Ok(loss.is_none())
    }

    fn put_token(&mut self, channel: u16, body: &Bytes) -> Result<(), Refused> {
        let request = Request::parse(body)?;
        let now = self.shared.clock.now();
        let audience = request.text("name").unwrap_or_default();
        let token = crate::wire::as_text(&request.body).unwrap_or_default();
        let reply = match self.shared.tokens.verify(token, audience, now) {
            Ok(ends) => {
                self.tokens.put(audience, ends);
                self.shared.tokens_taken.fetch_add(1, Ordering::Relaxed);
                let accepted = "Accepted".to_owned();
                Reply { status: 202, description: accepted, ..Reply::ok(Map::new()) }
            }
            Err(error) => Reply::failure(401, "amqp:unauthorized-access", error.to_string()),
        };
        let bytes = reply.encode(request.message_id);
        self.reply(channel, &Address::Cbs, request.reply_to.as_deref(), bytes);
        Ok(())
    }

    fn manage(
        &mut self,
        channel: u16,
        address: &Address,
        path: &str,
        side: Side,
        body: &Bytes,
    ) -> Result<(), Refused> {
        let request = Request::parse(body)?;
        let settles = management::settles(&request);
        let (loss, delay) = {
            let mut faults = self.shared.faults();
            let loss = if settles { faults.settlements.next() } else { None };
            (loss, faults.settlement_delay)
        };
        if loss == Some(Loss::Order) {
            return Ok(());
        }
        let reply = management::answer(
            &request,
            &mut Context {
                namespace: &mut self.shared.namespace(),
                path,
                side,
                now: self.shared.clock.now(),
                max_message_size: self.shared.max_message_size,
            },
        );
        if loss.is_some() {
            return Ok(());
        }
        let bytes = reply.encode(request.message_id);
        let reply_to = request.reply_to;
        if settles && !delay.is_zero() {
            let late = Late::Reply { channel, address: address.clone(), reply_to, bytes };
            self.late.push_back((Instant::now() + delay, late));
        } else {
            self.reply(channel, address, reply_to.as_deref(), bytes);
        }
        Ok(())
    }
}
