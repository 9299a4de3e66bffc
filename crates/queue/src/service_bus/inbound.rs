//! The receiving link itself: attaching it, what it says, and how deliveries end on it.

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

use super::connection::Live;
use super::fault::Fault;
use super::message::{self, Received};
use crate::DeadLetterReason;

const DEAD_LETTER: &str = "com.microsoft:dead-letter";

/// How a delivery ends.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    Complete,
    Abandon,
    DeadLetter(DeadLetterReason),
}

/// The link's state.
pub(super) enum Link {
    /// Nobody has asked for messages yet, so those who only send need no right to receive.
    Unused,
    Attaching(AbortOnDropHandle<Result<(Arc<Live>, Receiver), Fault>>),
    Up(Arc<Live>, Box<Receiver>),
}

/// What the link has to say.
pub(super) enum News {
    Attached(Arc<Live>, Box<Receiver>),
    Message(DeliveryInfo, Box<Received>),
    /// A message that is not even one by AMQP's rules.
    Broken(DeliveryInfo),
    Lost(Fault),
}

impl Link {
    /// Waits for what comes next; may be dropped at any time without losing anything.
    pub(super) async fn next(&mut self) -> News {
        match self {
            Self::Unused => std::future::pending().await,
            Self::Attaching(attaching) => match attaching.await {
                Ok(Ok((live, receiver))) => News::Attached(live, Box::new(receiver)),
                Ok(Err(fault)) => News::Lost(fault),
                Err(stopped) => News::Lost(Fault::passing(stopped)),
            },
            Self::Up(live, receiver) => match receiver.recv::<Body<Value>>().await {
                Ok(delivery) => {
                    let (info, message) = delivery.into_parts();
                    News::Message(info, Box::new(message))
                }
                Err(RecvError::MessageDecode(error)) => News::Broken(error.info),
                Err(error) => {
                    let fault = Fault::from(error);
                    if fault.is_of_token() {
                        live.end();
                    }
                    News::Lost(fault)
                }
            },
        }
    }

    /// Gives deliveries back unread, which costs no delivery count.
    pub(super) async fn release(&self, infos: Vec<DeliveryInfo>) -> Result<(), Fault> {
        match self {
            Self::Up(_, receiver) => Ok(receiver.release_all(infos).await?),
            Self::Unused | Self::Attaching(_) => Ok(()),
        }
    }
}

/// One receiving link.
pub(super) async fn attach(live: &Live, source: String) -> Result<Receiver, Fault> {
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

pub(super) async fn set_credit(receiver: &mut Receiver, credit: usize) -> Result<(), Fault> {
    Ok(receiver.set_credit(u32::try_from(credit).unwrap_or(u32::MAX)).await?)
}

/// Sends the verdict on its way; whether it arrived shows only by a redelivery.
pub(super) async fn dispose(
    receiver: &Receiver,
    infos: Vec<DeliveryInfo>,
    verdict: Verdict,
) -> Result<(), Fault> {
    let done = match verdict {
        Verdict::Complete => receiver.accept_all(infos).await,
        Verdict::Abandon => {
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
        Verdict::DeadLetter(reason) => receiver.reject_all(infos, dead_letter(reason)).await,
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
