//! One connection's state: what it does with each frame.
//!
//! Synchronous: frames in, bytes appended to `out`. Reading, writing and waiting are in `serve`;
//! messages to and from entities are in `transfers` and `deliveries`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::definitions::{Error, Role};
use fe2o3_amqp_types::messaging::TargetArchetype;
use fe2o3_amqp_types::performatives::{Attach, Detach, Flow, Open};
use tokio::time::Instant;

use crate::cbs::Tokens;
use crate::entity::{Millis, Side};
use crate::faults::Order;
use crate::frames::{self, Frame, MAX_FRAME, Performative};
use crate::management::NOT_FOUND;
use crate::namespace::Address;
use crate::session::{Inlet, Link, Outlet, Session};
use crate::shared::Shared;
use crate::wire::Malformed;

const UNAUTHORIZED: &str = "amqp:unauthorized-access";

#[derive(Debug)]
pub struct Connection {
    pub(crate) shared: Arc<Shared>,
    /// Bytes to be written.
    pub out: BytesMut,
    /// What the settlement delay holds back, in order of time.
    pub(crate) late: VecDeque<(Instant, Late)>,
    pub(crate) peer_max_frame: u32,
    /// The silence the peer bears.
    pub peer_idle: Option<Duration>,
    pub(crate) sessions: HashMap<u16, Session>,
    pub(crate) tokens: Tokens,
    /// Both sides have said close: nothing more is to come.
    pub closed: bool,
    /// Something happened that other connections' receivers may wait for.
    pub(crate) changed: bool,
}

/// A confirmation held back.
#[derive(Debug)]
pub(crate) enum Late {
    Frame(Bytes),
    Reply { channel: u16, address: Address, reply_to: Option<String>, bytes: Bytes },
}

impl Connection {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            out: BytesMut::new(),
            late: VecDeque::new(),
            peer_max_frame: MAX_FRAME,
            peer_idle: None,
            sessions: HashMap::new(),
            tokens: Tokens::default(),
            closed: false,
            changed: false,
        }
    }

    pub fn take(&mut self, frame: &Frame) -> Result<(), Malformed> {
        let channel = frame.channel;
        match frames::read(&frame.body)? {
            Performative::Heartbeat => {}
            Performative::Open(open) => self.open(&open),
            Performative::Begin(begin) => {
                let session = Session::begin(channel, &begin, &mut self.out);
                self.sessions.insert(channel, session);
            }
            Performative::Attach(attach) => self.attach(channel, *attach),
            Performative::Flow(flow) => self.flow(channel, &flow),
            Performative::Transfer(transfer, payload) => {
                self.transfer(channel, &transfer, &payload);
            }
            Performative::Disposition(disposition) => self.settle(channel, &disposition),
            Performative::Detach(detach) => self.detach(channel, &detach),
            Performative::End => {
                if self.sessions.remove(&channel).is_some() {
                    frames::write(&mut self.out, channel, &frames::end(), &[]);
                }
            }
            Performative::Close => {
                frames::write(&mut self.out, 0, &frames::close(None), &[]);
                self.closed = true;
            }
        }
        Ok(())
    }

    /// Whether queues changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn open(&mut self, open: &Open) {
        self.peer_max_frame = open.max_frame_size.0.max(512);
        self.peer_idle = open.idle_time_out.map(|idle| Duration::from_millis(u64::from(idle)));
        let idle = u32::try_from(self.shared.idle_timeout.as_millis()).unwrap_or(u32::MAX);
        let answer = Open {
            container_id: "service-bus-broker".to_owned(),
            hostname: None,
            max_frame_size: MAX_FRAME.into(),
            channel_max: 4_999.into(),
            idle_time_out: Some(idle),
            outgoing_locales: None,
            incoming_locales: None,
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        };
        frames::write(&mut self.out, 0, &answer, &[]);
    }

    fn attach(&mut self, channel: u16, attach: Attach) {
        let client_sends = attach.role == Role::Sender;
        let target = attach.target.as_deref().map(|TargetArchetype::Target(target)| target);
        let target = target.and_then(|target| target.address.clone());
        let source = attach.source.as_deref().and_then(|source| source.address.clone());
        let own = if client_sends { target.as_ref() } else { source.as_ref() };
        let address = Address::parse(own.map_or("", |address| address));
        let refusal = self.refusal(&address, client_sends);
        let Some(session) = self.sessions.get_mut(&channel) else {
            return;
        };
        let handle = attach.handle.0;
        let refused = refusal.is_some();
        let link = if client_sends {
            Link::In(Inlet::new(address))
        } else {
            Link::Out(Outlet::new(address, target, &attach.snd_settle_mode))
        };
        let answer = Attach {
            role: if client_sends { Role::Receiver } else { Role::Sender },
            // A link that is refused is answered without its node, then detached.
            source: attach.source.filter(|_| !refused || client_sends),
            target: attach.target.filter(|_| !refused || !client_sends),
            unsettled: None,
            incomplete_unsettled: false,
            initial_delivery_count: (!client_sends).then_some(0),
            max_message_size: Some(self.shared.max_message_size),
            offered_capabilities: None,
            desired_capabilities: None,
            ..attach
        };
        frames::write(&mut self.out, channel, &answer, &[]);
        if let Some(error) = refusal {
            frames::write(&mut self.out, channel, &frames::detach(handle, Some(error)), &[]);
            return;
        }
        session.links.insert(handle, link);
        session.grant(handle, &mut self.out);
    }

    /// Why a link to this address can't be had.
    fn refusal(&self, address: &Address, client_sends: bool) -> Option<Error> {
        let (path, resource) = (address.path()?, address.resource()?);
        if self.shared.tokens.check && !self.tokens.allow(&resource, self.shared.clock.now()) {
            let claim = if client_sends { "Send" } else { "Listen" };
            let text =
                format!("Unauthorized access. '{claim}' claim(s) are required for '{resource}'.");
            return Some(frames::error(UNAUTHORIZED, text));
        }
        let mut namespace = self.shared.namespace();
        let known = match address {
            Address::Entity { .. } if client_sends => namespace.accepts_sends(path),
            Address::Entity { .. } => namespace.queue(path).is_some(),
            Address::Cbs | Address::Management { .. } => {
                namespace.accepts_sends(path) || namespace.queue(path).is_some()
            }
        };
        if !known {
            let text = format!("The messaging entity '{path}' could not be found.");
            return Some(frames::error(NOT_FOUND, text));
        }
        let to_dead_letters =
            client_sends && matches!(address, Address::Entity { side: Side::DeadLetter, .. });
        to_dead_letters
            .then(|| frames::error("amqp:not-allowed", "Dead letters can't be sent to directly."))
    }

    fn flow(&mut self, channel: u16, flow: &Flow) {
        let Some(session) = self.sessions.get_mut(&channel) else {
            return;
        };
        session.flow(flow);
        if let Some(handle) = &flow.handle
            && let Some(Link::Out(outlet)) = session.links.get_mut(&handle.0)
        {
            outlet.flow(flow);
        } else if flow.echo {
            let answer = session.session_flow();
            frames::write(&mut self.out, channel, &answer, &[]);
        }
    }

    fn detach(&mut self, channel: u16, detach: &Detach) {
        let Some(session) = self.sessions.get_mut(&channel) else {
            return;
        };
        // A link that is unknown was detached by us, and this is the client's answer.
        if session.forget(detach.handle.0).is_some() {
            let answer = Detach { error: None, ..detach.clone() };
            frames::write(&mut self.out, channel, &answer, &[]);
        }
    }

    /// Does what a test ordered; `Drop` is for whoever holds the socket.
    pub fn obey(&mut self, order: &Order) {
        match order {
            Order::Drop => {}
            Order::Detach { path, condition } => {
                let error = frames::error(condition, "Detached because a test asked for it.");
                self.detach_where(
                    &error,
                    |address| matches!(address, Address::Entity { path: own, .. } if own == path),
                );
            }
            Order::ExpireTokens => {
                self.tokens.forget_all();
                self.detach_unauthorized(|_| false);
            }
        }
    }

    /// Lets happen what time brings: tokens end, held-back confirmations go out.
    pub fn tick(&mut self) {
        let now = self.shared.clock.now();
        if self.tokens.next_end().is_some_and(|end| end <= now) {
            self.tokens.forget_ended(now);
            self.shared.tokens_ended.fetch_add(1, Ordering::Relaxed);
            let tokens = std::mem::take(&mut self.tokens);
            self.detach_unauthorized(|resource| tokens.allow(resource, now));
            self.tokens = tokens;
        }
        while self.late.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            match self.late.pop_front() {
                Some((_, Late::Frame(frame))) => self.out.extend_from_slice(&frame),
                Some((_, Late::Reply { channel, address, reply_to, bytes })) => {
                    self.reply(channel, &address, reply_to.as_deref(), bytes);
                }
                None => break,
            }
        }
    }

    /// When `tick` or a queue has something to do next.
    pub fn next_event(&self) -> Option<Instant> {
        let clock = &self.shared.clock;
        let queues = self.next_queue_event();
        let times = queues.into_iter().chain(self.tokens.next_end()).map(|at| clock.instant(at));
        times.chain(self.late.front().map(|(due, _)| *due)).min()
    }

    fn next_queue_event(&self) -> Option<Millis> {
        let mut namespace = self.shared.namespace();
        self.sessions
            .values()
            .flat_map(|session| session.links.values())
            .filter_map(|link| match link {
                Link::Out(outlet) if outlet.credit > 0 => outlet.address.path(),
                _ => None,
            })
            .filter_map(|path| namespace.queue(path)?.next_event())
            .min()
    }

    fn detach_unauthorized(&mut self, allowed: impl Fn(&str) -> bool) {
        let error = frames::error(UNAUTHORIZED, "ExpiredToken: the token is expired.");
        self.detach_where(&error, |address| {
            address.resource().is_some_and(|resource| !allowed(&resource))
        });
    }

    fn detach_where(&mut self, error: &Error, chosen: impl Fn(&Address) -> bool) {
        for session in self.sessions.values_mut() {
            let handles: Vec<u32> = session
                .links
                .iter()
                .filter(|(_, link)| match link {
                    Link::In(inlet) => chosen(&inlet.address),
                    Link::Out(outlet) => chosen(&outlet.address),
                })
                .map(|(handle, _)| *handle)
                .collect();
            for handle in handles {
                session.forget(handle);
                let detach = frames::detach(handle, Some(error.clone()));
                frames::write(&mut self.out, session.channel, &detach, &[]);
            }
        }
    }

    /// Puts a reply on the link that its request asked for.
    pub(crate) fn reply(
        &mut self,
        channel: u16,
        address: &Address,
        reply_to: Option<&str>,
        bytes: Bytes,
    ) {
        let mut candidates: Vec<(bool, bool, &mut Outlet)> = self
            .sessions
            .values_mut()
            .flat_map(|session| {
                let same_session = session.channel == channel;
                session.links.values_mut().filter_map(move |link| match link {
                    Link::Out(outlet) if outlet.address == *address => {
                        let named = outlet.target.as_deref() == reply_to;
                        Some((named, same_session, outlet))
                    }
                    _ => None,
                })
            })
            .collect();
        // Some clients leave reply-to out or name it differently: then any link to the node does.
        candidates.sort_by_key(|(named, same_session, _)| (!named, !same_session));
        if let Some((_, _, outlet)) = candidates.into_iter().next() {
            outlet.replies.push_back(bytes);
        }
    }
}
