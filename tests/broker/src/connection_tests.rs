//! One connection fed frame by frame, for what clients don't show: windows, drains, held-back
//! confirmations, the end of a token.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::definitions::{ReceiverSettleMode, Role, SenderSettleMode};
use fe2o3_amqp_types::messaging::{Accepted, DeliveryState, Source, Target};
use fe2o3_amqp_types::performatives::{Attach, Begin, Disposition, Flow};
use serde::Serialize;
use tokio::time::advance;

use crate::Settings;
use crate::connection::Connection;
use crate::entity::QueueSettings;
use crate::frames::{self, Outcome, Performative};
use crate::message::{Message, tests::encoded};
use crate::shared::Shared;

const CHANNEL: u16 = 0;
const HANDLE: u32 = 7;

struct Fixture {
    shared: Arc<Shared>,
    connection: Connection,
}

impl Fixture {
    /// A session with this window and one receiver on `jobs`, which holds `messages`.
    fn new(window: u32, messages: &[Bytes]) -> Self {
        let settings = Settings {
            queues: vec![QueueSettings::new("jobs")],
            check_tokens: false,
            ..Settings::default()
        };
        let shared = Arc::new(Shared::new(&settings));
        for message in messages {
            let message = Message::parse(message).unwrap();
            shared.namespace().send("jobs", message, shared.clock.now());
        }
        let connection = Connection::new(Arc::clone(&shared));
        let mut fixture = Self { shared, connection };
        fixture.take(&begin(window));
        fixture.take(&attach("jobs"));
        fixture.said();
        fixture
    }

    fn take(&mut self, performative: &impl Serialize) {
        let mut bytes = BytesMut::new();
        frames::write(&mut bytes, CHANNEL, performative, &[]);
        let frame = frames::next_frame(&mut bytes).unwrap().unwrap();
        self.connection.take(&frame).unwrap();
        self.connection.pump();
    }

    /// What the broker has said since last asked.
    fn said(&mut self) -> Vec<Performative> {
        let mut said = Vec::new();
        while let Some(frame) = frames::next_frame(&mut self.connection.out).unwrap() {
            said.push(frames::read(&frame.body).unwrap());
        }
        said
    }

    fn transfers(&mut self) -> usize {
        let said = self.said();
        said.iter().filter(|said| matches!(said, Performative::Transfer(..))).count()
    }
}

fn begin(window: u32) -> Begin {
    Begin {
        remote_channel: None,
        next_outgoing_id: 1,
        incoming_window: window,
        outgoing_window: window,
        handle_max: 255.into(),
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

fn attach(queue: &str) -> Attach {
    Attach {
        name: "receiver".to_owned(),
        handle: HANDLE.into(),
        role: Role::Receiver,
        snd_settle_mode: SenderSettleMode::Unsettled,
        rcv_settle_mode: ReceiverSettleMode::Second,
        source: Some(Box::new(Source::builder().address(queue).build())),
        target: Some(Box::new(Target::default().into())),
        unsettled: None,
        incomplete_unsettled: false,
        initial_delivery_count: None,
        max_message_size: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

fn flow(next_incoming: u32, window: u32, credit: u32, drain: bool) -> Flow {
    Flow {
        next_incoming_id: Some(next_incoming),
        incoming_window: window,
        next_outgoing_id: 1,
        outgoing_window: 100,
        handle: Some(HANDLE.into()),
        delivery_count: Some(0),
        link_credit: Some(credit),
        available: None,
        drain,
        echo: false,
        properties: None,
    }
}

fn complete(first: u32, last: u32) -> Disposition {
    Disposition {
        role: Role::Receiver,
        first,
        last: Some(last),
        settled: false,
        state: Some(DeliveryState::Accepted(Accepted {})),
        batchable: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_window_stops_a_message_in_the_middle() {
    let large = encoded(Some("large"), &[7; 150_000]);
    let mut fixture = Fixture::new(2, &[large, encoded(Some("next"), b"x")]);
    fixture.take(&flow(1, 2, 10, false));
    assert_eq!(fixture.transfers(), 2, "of the three that the first message needs");
    fixture.take(&flow(3, 1, 10, false));
    assert_eq!(fixture.transfers(), 1);
    assert_eq!(fixture.shared.namespace().queue("jobs").unwrap().counts(0).locked, 1);
    fixture.take(&flow(4, 5, 10, false));
    assert_eq!(fixture.transfers(), 1, "the second message");
}

#[tokio::test(start_paused = true)]
async fn credit_is_never_exceeded_and_a_drain_ends_it() {
    let messages: Vec<Bytes> = (0..5).map(|id| encoded(Some(&id.to_string()), b"x")).collect();
    let mut fixture = Fixture::new(100, &messages);
    fixture.take(&flow(1, 100, 3, false));
    assert_eq!(fixture.transfers(), 3);
    // The client counts from before the three came: two more are open, and they are all.
    fixture.take(&flow(1, 100, 50, true));
    let said = fixture.said();
    let Some(Performative::Flow(answer)) = said.last() else {
        panic!("a drain is answered by a flow: {said:?}");
    };
    assert_eq!(said.len(), 3);
    assert_eq!((answer.delivery_count, answer.link_credit), (Some(50), Some(0)));
}

#[tokio::test(start_paused = true)]
async fn confirmations_join_neighbours_and_wait_as_long_as_the_test_wants() {
    let messages: Vec<Bytes> = (0..3).map(|id| encoded(Some(&id.to_string()), b"x")).collect();
    let mut fixture = Fixture::new(100, &messages);
    fixture.take(&flow(1, 100, 3, false));
    fixture.said();
    fixture.shared.faults().settlement_delay = Duration::from_secs(3);
    fixture.take(&complete(1, 3));
    assert_eq!(fixture.shared.namespace().queue("jobs").unwrap().counts(0).completed, 3);
    assert!(fixture.said().is_empty());
    advance(Duration::from_millis(2_999)).await;
    fixture.connection.tick();
    assert!(fixture.said().is_empty());
    advance(Duration::from_millis(1)).await;
    fixture.connection.tick();
    let said = fixture.said();
    let [Performative::Disposition(answer)] = said.as_slice() else {
        panic!("one answer for all three: {said:?}");
    };
    assert_eq!((answer.first, answer.last, answer.settled), (1, 3, true));
    assert_eq!(answer.outcome, Some(Outcome::Accepted));
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_ran_out_is_told_by_a_rejection() {
    let mut fixture = Fixture::new(100, &[encoded(Some("a"), b"x")]);
    fixture.take(&flow(1, 100, 1, false));
    fixture.said();
    advance(Duration::from_secs(61)).await;
    fixture.take(&complete(1, 1));
    let said = fixture.said();
    assert!(
        matches!(
            said.as_slice(),
            [Performative::Disposition(answer)]
                if matches!(answer.outcome, Some(Outcome::Rejected { .. }))
        ),
        "{said:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_link_goes_with_its_token() {
    let mut fixture = Fixture::new(100, &[]);
    let end = fixture.shared.clock.now() + 60_000;
    fixture.connection.tokens.put("sb://localhost/jobs", end);
    advance(Duration::from_secs(59)).await;
    fixture.connection.tick();
    assert!(fixture.said().is_empty());
    advance(Duration::from_secs(1)).await;
    fixture.connection.tick();
    let said = fixture.said();
    assert!(matches!(said.as_slice(), [Performative::Detach(_)]), "{said:?}");
}
