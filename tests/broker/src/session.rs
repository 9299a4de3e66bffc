//! One AMQP session: its windows, its links, its deliveries in progress.
//!
//! Knows numbers and frames, no entities. What a message means is decided by `connection`.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::definitions::SenderSettleMode;
use fe2o3_amqp_types::performatives::{Begin, Flow, Transfer};
use uuid::Uuid;

use crate::entity::Side;
use crate::frames;
use crate::namespace::Address;

/// Transfers a client may have under way towards us.
const WINDOW: u32 = 5_000;
/// Messages a client may send on one link before it hears of new credit.
const SEND_CREDIT: u32 = 1_000;

#[derive(Debug)]
pub struct Session {
    pub channel: u16,
    next_incoming: u32,
    incoming_window: u32,
    next_outgoing: u32,
    peer_window: u32,
    next_delivery: u32,
    pub links: HashMap<u32, Link>,
    /// Deliveries that the client has not settled.
    pub unsettled: BTreeMap<u32, Unsettled>,
    /// Transfers that wait for the client's window to open.
    outbox: VecDeque<(Transfer, Bytes)>,
}

#[derive(Debug)]
pub struct Unsettled {
    pub handle: u32,
    pub path: String,
    pub side: Side,
    pub token: Uuid,
}

#[derive(Debug)]
pub enum Link {
    /// The client sends.
    In(Inlet),
    /// The client receives.
    Out(Outlet),
}

#[derive(Debug)]
pub struct Inlet {
    pub address: Address,
    credit: u32,
    delivery_count: u32,
    pub partial: Option<Partial>,
}

/// A message whose transfers are still coming in.
#[derive(Debug)]
pub struct Partial {
    pub delivery: u32,
    pub format: u32,
    pub settled: bool,
    /// What has come, kept or not.
    pub size: u64,
    pub body: BytesMut,
}

#[derive(Debug)]
pub struct Outlet {
    pub address: Address,
    /// The client's own name for its end: replies are addressed to it.
    pub target: Option<String>,
    pub credit: u32,
    delivery_count: u32,
    pub drain: bool,
    /// Whether messages are gone as soon as they are sent (receive-and-delete).
    pub settled: bool,
    /// Replies that wait for credit.
    pub replies: VecDeque<Bytes>,
}

impl Inlet {
    pub fn new(address: Address) -> Self {
        Self { address, credit: 0, delivery_count: 0, partial: None }
    }

    /// Whether the client may begin a message now.
    pub fn has_credit(&self) -> bool {
        self.credit > 0
    }
}

impl Outlet {
    pub fn new(address: Address, target: Option<String>, mode: &SenderSettleMode) -> Self {
        Self {
            address,
            target,
            credit: 0,
            delivery_count: 0,
            drain: false,
            settled: *mode == SenderSettleMode::Settled,
            replies: VecDeque::new(),
        }
    }

    /// Takes the client's credit; what we have sent since it counted is no longer open.
    pub fn flow(&mut self, flow: &Flow) {
        let seen = flow.delivery_count.unwrap_or(0);
        let limit = seen.wrapping_add(flow.link_credit.unwrap_or(0));
        let open = limit.wrapping_sub(self.delivery_count);
        // A client that cut its credit may have counted before our latest transfers.
        self.credit = if open > u32::MAX / 2 { 0 } else { open };
        self.drain = flow.drain;
    }
}

impl Session {
    /// Opens the session that the client began, and answers.
    pub fn begin(channel: u16, begin: &Begin, out: &mut BytesMut) -> Self {
        let session = Self {
            channel,
            next_incoming: begin.next_outgoing_id,
            incoming_window: WINDOW,
            next_outgoing: 1,
            peer_window: begin.incoming_window,
            next_delivery: 1,
            links: HashMap::new(),
            unsettled: BTreeMap::new(),
            outbox: VecDeque::new(),
        };
        let answer = Begin {
            remote_channel: Some(channel),
            next_outgoing_id: session.next_outgoing,
            incoming_window: WINDOW,
            outgoing_window: WINDOW,
            handle_max: u32::from(u16::MAX).into(),
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        };
        frames::write(out, channel, &answer, &[]);
        session
    }

    /// Takes what a flow says about the session; link fields are the link's.
    pub fn flow(&mut self, flow: &Flow) {
        let seen = flow.next_incoming_id.unwrap_or(1);
        let in_flight = self.next_outgoing.wrapping_sub(seen);
        self.peer_window = flow.incoming_window.saturating_sub(in_flight);
    }

    /// Counts a transfer of the client's, and opens the window again in good time.
    pub fn count_incoming(&mut self, out: &mut BytesMut) {
        self.next_incoming = self.next_incoming.wrapping_add(1);
        self.incoming_window = self.incoming_window.saturating_sub(1);
        if self.incoming_window <= WINDOW / 2 {
            self.incoming_window = WINDOW;
            let flow = self.session_flow();
            frames::write(out, self.channel, &flow, &[]);
        }
    }

    pub fn session_flow(&self) -> Flow {
        Flow {
            next_incoming_id: Some(self.next_incoming),
            incoming_window: self.incoming_window,
            next_outgoing_id: self.next_outgoing,
            outgoing_window: WINDOW,
            handle: None,
            delivery_count: None,
            link_credit: None,
            available: None,
            drain: false,
            echo: false,
            properties: None,
        }
    }

    /// Gives a sending client credit for a new link, or again when half of it is used.
    pub fn grant(&mut self, handle: u32, out: &mut BytesMut) {
        let flow = self.session_flow();
        let Some(Link::In(inlet)) = self.links.get_mut(&handle) else {
            return;
        };
        if inlet.credit > SEND_CREDIT / 2 {
            return;
        }
        inlet.credit = SEND_CREDIT;
        let flow = Flow {
            handle: Some(handle.into()),
            delivery_count: Some(inlet.delivery_count),
            link_credit: Some(inlet.credit),
            ..flow
        };
        frames::write(out, self.channel, &flow, &[]);
    }

    /// Counts a whole message of the client's.
    pub fn count_message(&mut self, handle: u32, out: &mut BytesMut) {
        if let Some(Link::In(inlet)) = self.links.get_mut(&handle) {
            inlet.delivery_count = inlet.delivery_count.wrapping_add(1);
            inlet.credit = inlet.credit.saturating_sub(1);
        }
        self.grant(handle, out);
    }

    /// Whether the client's window lets a new message begin.
    pub fn may_send(&self) -> bool {
        self.outbox.is_empty() && self.peer_window > 0
    }

    /// Puts one message on its way: cut into transfers, sent as far as the window goes. Tells the
    /// delivery's number.
    pub fn send(&mut self, handle: u32, tag: &[u8], bytes: Bytes, peer_max_frame: u32) -> u32 {
        let delivery = self.next_delivery;
        self.next_delivery = delivery.wrapping_add(1);
        let mut settled = true;
        if let Some(Link::Out(outlet)) = self.links.get_mut(&handle) {
            outlet.credit = outlet.credit.saturating_sub(1);
            outlet.delivery_count = outlet.delivery_count.wrapping_add(1);
            settled = outlet.settled || !matches!(outlet.address, Address::Entity { .. });
        }
        let mut rest = bytes;
        let mut first = true;
        loop {
            let part = rest.split_to(rest.len().min(frames::payload_room(peer_max_frame)));
            let transfer = Transfer {
                handle: handle.into(),
                delivery_id: first.then_some(delivery),
                delivery_tag: first.then(|| tag.to_vec().into()),
                message_format: first.then_some(0),
                settled: Some(settled),
                more: !rest.is_empty(),
                rcv_settle_mode: None,
                state: None,
                resume: false,
                aborted: false,
                batchable: true,
            };
            self.outbox.push_back((transfer, part));
            if rest.is_empty() {
                return delivery;
            }
            first = false;
        }
    }

    /// Writes waiting transfers while the window is open.
    pub fn flush(&mut self, out: &mut BytesMut) {
        while self.peer_window > 0
            && let Some((transfer, payload)) = self.outbox.pop_front()
        {
            self.peer_window -= 1;
            self.next_outgoing = self.next_outgoing.wrapping_add(1);
            frames::write(out, self.channel, &transfer, &payload);
        }
    }

    /// Answers a drain: all credit counts as used.
    pub fn drained(&mut self, handle: u32, out: &mut BytesMut) {
        let flow = self.session_flow();
        let Some(Link::Out(outlet)) = self.links.get_mut(&handle) else {
            return;
        };
        outlet.delivery_count = outlet.delivery_count.wrapping_add(outlet.credit);
        outlet.credit = 0;
        outlet.drain = false;
        let flow = Flow {
            handle: Some(handle.into()),
            delivery_count: Some(outlet.delivery_count),
            link_credit: Some(0),
            available: Some(0),
            drain: true,
            ..flow
        };
        frames::write(out, self.channel, &flow, &[]);
    }

    /// Forgets a link. Its locked messages stay locked until their time is up, as on the service.
    pub fn forget(&mut self, handle: u32) -> Option<Link> {
        self.outbox.retain(|(transfer, _)| transfer.handle != handle.into());
        self.unsettled.retain(|_, unsettled| unsettled.handle != handle);
        self.links.remove(&handle)
    }
}
