//! The receiving link: attaching it, its events, and the disposition of its deliveries.

use std::sync::Arc;

use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::types::definitions::{
    Error as AmqpError, ErrorCondition, Fields, ReceiverSettleMode, SenderSettleMode,
};
use fe2o3_amqp::types::messaging::{Body, Modified};
use fe2o3_amqp::types::primitives::{Symbol, Value};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::error::BrokerError;
use super::live_connection::AmqpConnection;
use super::message::{self, ReceivedMessage};
use crate::DeadLetterReason;

const DEAD_LETTER: &str = "com.microsoft:dead-letter";

/// Disposition of a delivery.
#[derive(Debug, Clone)]
pub(super) enum DeliveryDisposition {
    Complete,
    Abandon,
    DeadLetter(DeadLetterReason),
}

/// The link's state.
pub(super) enum ReceivingLink {
    /// No receive was requested yet, so a process that only sends needs no right to receive.
    Unused,
    Attaching(AbortOnDropHandle<Result<(Arc<AmqpConnection>, Receiver), BrokerError>>),
    Up(Arc<AmqpConnection>, Box<Receiver>),
}

/// Event of the link.
pub(super) enum LinkEvent {
    Attached(Arc<AmqpConnection>, Box<Receiver>),
    Message(DeliveryInfo, Box<ReceivedMessage>),
    /// A message that AMQP's own rules forbid.
    Malformed(DeliveryInfo),
    Lost(BrokerError),
}

impl ReceivingLink {
    /// Waits for the next event; may be dropped at any time without losing anything.
    pub(super) async fn next(&mut self) -> LinkEvent {
        match self {
            Self::Unused => std::future::pending().await,
            Self::Attaching(attaching) => match attaching.await {
                Ok(Ok((live, receiver))) => LinkEvent::Attached(live, Box::new(receiver)),
                Ok(Err(fault)) => LinkEvent::Lost(fault),
                Err(stopped) => LinkEvent::Lost(BrokerError::transient(stopped)),
            },
            Self::Up(live, receiver) => match receiver.recv::<Body<Value>>().await {
                Ok(delivery) => {
                    let (info, message) = delivery.into_parts();
                    LinkEvent::Message(info, Box::new(message))
                }
                Err(RecvError::MessageDecode(error)) => LinkEvent::Malformed(error.info),
                Err(error) => {
                    let fault = BrokerError::from(error);
                    if fault.is_token_expired() {
                        live.end();
                    }
                    LinkEvent::Lost(fault)
                }
            },
        }
    }

    /// Releases deliveries unread, which costs no delivery count.
    pub(super) async fn release(&self, infos: Vec<DeliveryInfo>) -> Result<(), BrokerError> {
        match self {
            Self::Up(_, receiver) => Ok(receiver.release_all(infos).await?),
            Self::Unused | Self::Attaching(_) => Ok(()),
        }
    }
}

/// Attaches a receiving link.
pub(super) async fn attach(live: &AmqpConnection, source: String) -> Result<Receiver, BrokerError> {
    let mut session = live.session().await;
    let receiver = Receiver::builder()
        .name(format!("receive-{}", Uuid::new_v4()))
        .source(source)
        // Only then are deliveries locked, and not deleted as they are handed out.
        .receiver_settle_mode(ReceiverSettleMode::Second)
        .sender_settle_mode(SenderSettleMode::Unsettled)
        .credit_mode(CreditMode::Manual)
        .attach(&mut session)
        .await?;
    Ok(receiver)
}

pub(super) async fn set_credit(receiver: &mut Receiver, credit: usize) -> Result<(), BrokerError> {
    Ok(receiver.set_credit(u32::try_from(credit).unwrap_or(u32::MAX)).await?)
}

/// Sends the disposition; only a redelivery shows that it did not arrive.
pub(super) async fn dispose(
    receiver: &Receiver,
    infos: Vec<DeliveryInfo>,
    verdict: DeliveryDisposition,
) -> Result<(), BrokerError> {
    let done = match verdict {
        DeliveryDisposition::Complete => receiver.accept_all(infos).await,
        DeliveryDisposition::Abandon => {
            receiver
                .modify_all(
                    infos,
                    Modified {
                        delivery_failed: None,
                        undeliverable_here: None,
                        message_annotations: None,
                    },
                )
                .await
        }
        DeliveryDisposition::DeadLetter(reason) => {
            receiver.reject_all(infos, dead_letter(reason)).await
        }
    };
    Ok(done?)
}

fn dead_letter(reason: DeadLetterReason) -> AmqpError {
    let mut info = Fields::new();
    info.insert(Symbol::from(message::REASON), Value::String(reason.reason));
    info.insert(Symbol::from(message::DESCRIPTION), Value::String(reason.description));
    AmqpError {
        condition: ErrorCondition::Custom(Symbol::from(DEAD_LETTER)),
        description: None,
        info: Some(Box::new(info)),
    }
}
