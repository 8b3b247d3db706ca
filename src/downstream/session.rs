//! One component's connection, from accept to close: a pure machine.
//!
//! It parses what the component sends, judges it as a broker would, and hands whole
//! operations to its trunk; before there is a trunk it asks for one with
//! [`SessionAction::Attach`]. What goes *to* the component is in the trunk's slot, and
//! before that in [`Session::out`].

use std::time::Instant;

use super::early::Early;
use crate::ledger::SessionId;
use crate::net::{Outbox, Partial, Retention};
use crate::proto::client::{self, ClientFault, ClientLimits, ClientOp, Publish, Scan};
use crate::proto::connect::ConnectInfo;
use crate::proto::encode;
use crate::upstream::roster::Offer;
use crate::upstream::{Bus, CloseReason, Trunk};

/// What only the driver can do for a session.
#[derive(Debug)]
pub enum SessionAction {
    /// Find or make the trunk for these options, attach the session to it, and call
    /// [`Session::handle_attached`].
    Attach {
        /// The options.
        connect: Box<ConnectInfo>,
        /// Whether the component sent them, or they are a broker's defaults.
        sent: bool,
    },
    /// Say INFO again: what every broker offers has changed (R17).
    SayInfo,
    /// Flush [`Session::out`] and close. Only sessions without a trunk end this way.
    Close(CloseReason),
}

/// Where a session's operations go: its trunk and its place there.
pub struct Home<'a> {
    /// The trunk.
    pub trunk: &'a mut Trunk,
    /// The session's place in it.
    pub id: SessionId,
}

#[derive(Debug)]
enum Stage {
    /// No CONNECT yet. Where the broker requires one, until the deadline.
    Greeting { deadline: Option<Instant> },
    /// The driver was asked for a trunk.
    Attaching,
    /// Operations go to the trunk.
    Attached,
    /// Nothing that comes is looked at any more.
    Over,
}

/// The machine. See the module's documentation.
#[derive(Debug)]
pub struct Session {
    stage: Stage,
    partial: Partial,
    early: Option<Box<Early>>,
    out: Outbox,
    headers: bool,
    max_control_line: usize,
    /// What the last INFO said.
    told: Offer,
    connect: Option<Box<ConnectInfo>>,
    action: Option<SessionAction>,
    pings: Pings,
    /// The component closed its side.
    eof: bool,
}

/// natsmux's own PINGs to the component, as nats-server sends them.
#[derive(Debug)]
struct Pings {
    outstanding: u32,
    next: Instant,
    /// Whether an operation came since the last tick: then the component is alive.
    active: bool,
}

impl Session {
    /// A session that has just been accepted and has got the INFO.
    pub fn new(now: Instant, bus: &Bus) -> Self {
        let settings = &bus.settings;
        let must_connect = bus.roster.auth_required();
        Self {
            stage: Stage::Greeting {
                deadline: must_connect.then(|| now + settings.timings.auth_timeout),
            },
            partial: Partial::default(),
            early: None,
            out: Outbox::new(Retention::UntilWritten),
            headers: false,
            max_control_line: settings.limits.max_control_line,
            told: bus.roster.offer(),
            connect: None,
            action: None,
            pings: Pings {
                outstanding: 0,
                next: now + settings.timings.ping_interval,
                active: false,
            },
            eof: false,
        }
    }

    /// Handles bytes that the component sent and returns how many were used. All are, unless
    /// an action is pending, after which the driver calls again with the rest.
    pub fn handle_bytes(
        &mut self,
        input: &[u8],
        mut home: Option<Home<'_>>,
        now: Instant,
        bus: &mut Bus,
    ) -> usize {
        let mut used = 0;
        while used < input.len() && self.is_open(&home) {
            if self.must_wait(&home) {
                self.early(bus).push(&input[used..]);
                return input.len();
            }
            let rest = &input[used..];
            if self.partial.is_empty() {
                let (count, then) = self.consume(rest, &mut home, now, bus);
                used += count;
                if let Then::Unfinished(need) = then {
                    if used < input.len() {
                        self.partial.keep(&input[used..], need);
                    }
                    return input.len();
                }
            } else {
                used += self.partial.fill(rest);
                if self.partial.is_filled() {
                    self.handle_filled(&mut home, now, bus);
                }
            }
            if self.action.is_some() {
                return used;
            }
        }
        input.len()
    }

    /// Handles a frame that arrived in several reads, if it is whole now.
    fn handle_filled(&mut self, home: &mut Option<Home<'_>>, now: Instant, bus: &mut Bus) {
        let frame = self.partial.take();
        match self.consume(&frame, home, now, bus) {
            (0, Then::Unfinished(need)) => self.partial.restore(frame, need),
            (0, Then::Later) if self.must_wait(home) => self.early(bus).push(&frame),
            _ => {}
        }
    }

    /// The driver has attached the session.
    pub fn handle_attached(&mut self, home: Home<'_>, now: Instant, bus: &mut Bus) {
        self.stage = Stage::Attached;
        if self.early.is_some() && self.connect.is_some() {
            bus.counters.lenient_connects += 1;
        }
        self.handle_ready(home, now, bus);
    }

    /// The trunk may have become ready: what the component sent before that goes on, in its
    /// order.
    pub fn handle_ready(&mut self, home: Home<'_>, now: Instant, bus: &mut Bus) {
        if !home.trunk.is_ready(home.id) {
            return;
        }
        let (trunk, id) = (home.trunk, home.id);
        if let Some(mut early) = self.early.take() {
            let bytes = early.take();
            let home = Home {
                trunk: &mut *trunk,
                id,
            };
            self.handle_bytes(&bytes, Some(home), now, bus);
        }
        if self.eof && self.early.is_none() {
            trunk.finish(id, CloseReason::ComponentClosed, now, bus);
        }
    }

    /// The component closed its side. What it sent is carried out first, unless no broker is
    /// there that could: then it has given up waiting.
    pub fn handle_eof(&mut self, home: Option<Home<'_>>, now: Instant, bus: &mut Bus) {
        self.eof = true;
        match home {
            Some(home) if home.trunk.is_ready(home.id) => self.handle_ready(home, now, bus),
            Some(_) if bus.roster.is_alive() => {}
            Some(home) => home
                .trunk
                .close_session(home.id, CloseReason::ComponentClosed),
            None => self.close(CloseReason::ComponentClosed),
        }
    }

    /// What the brokers offer may have changed.
    pub fn handle_offer(&mut self, home: &Home<'_>, bus: &Bus) {
        let offer = bus.roster.offer();
        if offer != self.told && self.action.is_none() && home.trunk.takes_info(home.id) {
            self.told = offer;
            self.action = Some(SessionAction::SayInfo);
        }
    }

    /// Whether the driver may read although the trunk has no room: to notice that the
    /// component is gone while it waits for a broker's verdict.
    pub fn may_wait_for_more(&self, bus: &Bus) -> bool {
        let kept = self.early.as_ref().map_or(0, |early| early.len());
        kept < bus.settings.limits.lenient_buffer && !bus.budgets.early.is_spent()
    }

    /// The session is over. Publishes that waited for a verdict on its CONNECT, and will not
    /// get one, are counted as refused (R4).
    pub fn abandon(&mut self, bus: &mut Bus) {
        let Some(mut early) = self.early.take() else {
            return;
        };
        let bytes = early.take();
        let limits = self.limits(&None, bus);
        let mut rest = &bytes[..];
        while let Scan::Op { op, len } = client::scan(rest, &limits) {
            rest = &rest[len..];
            if matches!(op, ClientOp::Publish(_)) {
                bus.counters.published += 1;
                bus.counters.refused += 1;
            }
        }
    }

    /// Whether something waits for [`Session::handle_ready`].
    pub fn has_early(&self) -> bool {
        self.early.is_some() || self.eof
    }

    /// natsmux shuts down: end the session once what it sent is carried out.
    pub fn handle_drain(&mut self, home: Option<Home<'_>>, now: Instant, bus: &mut Bus) {
        match home {
            Some(home) => home.trunk.finish(home.id, CloseReason::Drained, now, bus),
            None => self.close(CloseReason::Drained),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, home: Option<Home<'_>>, now: Instant, bus: &mut Bus) {
        match (&self.stage, home) {
            (Stage::Greeting { deadline: Some(at) }, _) if *at <= now => {
                self.close(CloseReason::AuthTimeout);
            }
            (Stage::Attached, Some(home)) if self.pings.next <= now => {
                self.tick_pings(home, now, bus);
            }
            _ => {}
        }
    }

    /// When [`Session::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.stage {
            Stage::Greeting { deadline } => deadline,
            Stage::Attached => Some(self.pings.next),
            Stage::Attaching | Stage::Over => None,
        }
    }

    /// The next thing that the driver must do.
    pub fn poll_action(&mut self) -> Option<SessionAction> {
        self.action.take()
    }

    /// What goes to the component while there is no trunk. Attaching takes it along.
    pub fn out(&mut self) -> &mut Outbox {
        &mut self.out
    }

    /// Takes the outbox, to be given to the trunk.
    pub fn take_out(&mut self) -> Outbox {
        std::mem::replace(&mut self.out, Outbox::new(Retention::UntilWritten))
    }

    /// Whether what comes now must wait until the trunk is ready.
    fn must_wait(&self, home: &Option<Home<'_>>) -> bool {
        home.as_ref()
            .is_some_and(|home| !home.trunk.is_ready(home.id))
    }

    fn is_open(&self, home: &Option<Home<'_>>) -> bool {
        let closing = |home: &Home<'_>| home.trunk.is_ending(home.id);
        !matches!(self.stage, Stage::Over) && !home.as_ref().is_some_and(closing)
    }

    /// Handles the whole frames at the start of `bytes` and returns how many bytes they were,
    /// and what is to be done with the rest.
    fn consume(
        &mut self,
        bytes: &[u8],
        home: &mut Option<Home<'_>>,
        now: Instant,
        bus: &mut Bus,
    ) -> (usize, Then) {
        let limits = self.limits(home, bus);
        let mut run = Run::default();
        let mut used = 0;
        loop {
            let scanned = client::scan(&bytes[used..], &limits);
            if let (
                Scan::Op {
                    op: ClientOp::Publish(publish),
                    len,
                },
                Some(home),
            ) = (&scanned, home.as_mut())
                && publish.canonical
                && (publish.header_len.is_none() || self.headers)
            {
                used += len;
                run.messages += 1;
                run.payload_bytes += publish.size;
                if run.is_full(used, bus) {
                    run.flush(bytes, used, home, now, bus);
                }
                continue;
            }
            if let Some(home) = home.as_mut() {
                run.flush(bytes, used, home, now, bus);
            }
            match scanned {
                Scan::Op { op, .. } if self.must_settle(&op, home, now, bus) => {
                    return (used, Then::Later);
                }
                Scan::Op { op, len } => {
                    let frame = &bytes[used..used + len];
                    used += len;
                    run.start = used;
                    self.pings.active = true;
                    self.handle_op(op, frame, home, now, bus);
                    if self.action.is_some() || self.must_wait(home) || !self.is_open(home) {
                        return (used, Then::Later);
                    }
                }
                Scan::Incomplete { need } => {
                    self.pings.active |= used > 0;
                    return (used, Then::Unfinished(need));
                }
                Scan::Fault(fault) => {
                    bus.counters.protocol_errors += 1;
                    self.end(CloseReason::Fault(fault), home, now, bus);
                    return (used, Then::Later);
                }
            }
        }
    }

    fn must_settle(
        &self,
        op: &ClientOp<'_>,
        home: &mut Option<Home<'_>>,
        now: Instant,
        bus: &mut Bus,
    ) -> bool {
        match (op, home) {
            (ClientOp::Subscribe { sid, .. }, Some(home)) => {
                home.trunk.must_settle(home.id, sid, now, bus)
            }
            _ => false,
        }
    }

    fn limits(&self, home: &Option<Home<'_>>, bus: &Bus) -> ClientLimits {
        let of_broker = home.as_ref().map(|home| home.trunk.max_payload());
        ClientLimits {
            max_control_line: self.max_control_line,
            max_payload: of_broker
                .unwrap_or(usize::MAX)
                .min(bus.roster.offer().max_payload),
        }
    }

    fn handle_op(
        &mut self,
        op: ClientOp<'_>,
        frame: &[u8],
        home: &mut Option<Home<'_>>,
        now: Instant,
        bus: &mut Bus,
    ) {
        match (op, home.as_mut()) {
            (ClientOp::Connect { json }, home) => self.handle_connect(json, home, now, bus),
            (ClientOp::Ignored, _) => {}
            (ClientOp::Pong, _) => self.pings.outstanding = 0,
            (op, Some(home)) => self.forward(op, home, now, bus),
            (op, None) => self.handle_before_connect(op, frame, bus),
        }
    }

    fn forward(&mut self, op: ClientOp<'_>, home: &mut Home<'_>, now: Instant, bus: &mut Bus) {
        let (trunk, id) = (&mut *home.trunk, home.id);
        match op {
            ClientOp::Publish(publish) => self.publish(&publish, home, now, bus),
            ClientOp::Subscribe {
                subject,
                queue_group,
                sid,
            } => trunk.subscribe(id, subject, queue_group, sid, now, bus),
            ClientOp::Unsubscribe { sid, max } => trunk.unsubscribe(id, sid, max, now),
            ClientOp::Ping => trunk.ping(id, now, bus),
            ClientOp::Connect { .. } | ClientOp::Pong | ClientOp::Ignored => {}
        }
    }

    /// A publish that can't go on as it came: brought into canonical form, or refused.
    fn publish(&mut self, publish: &Publish<'_>, home: &mut Home<'_>, now: Instant, bus: &mut Bus) {
        if publish.header_len.is_some() && !self.headers {
            bus.counters.protocol_errors += 1;
            let reason = CloseReason::Fault(ClientFault::BadArguments);
            return home.trunk.finish(home.id, reason, now, bus);
        }
        let mut frame = Vec::with_capacity(publish.frame.len());
        publish.encode(&mut frame);
        bus.counters.in_msgs += 1;
        bus.counters.in_bytes += publish.size as u64;
        home.trunk.publish(home.id, &frame, 1, now, bus);
    }

    fn handle_connect(
        &mut self,
        json: &[u8],
        home: Option<&mut Home<'_>>,
        now: Instant,
        bus: &mut Bus,
    ) {
        let mut connect = match &self.connect {
            Some(before) => (**before).clone(),
            None => ConnectInfo::default(),
        };
        let again = self.connect.is_some();
        let refusal = match connect.merge(json) {
            Err(fault) => Some(CloseReason::Fault(fault.into())),
            Ok(()) if connect.is_signed() => Some(CloseReason::Signed),
            Ok(()) => None,
        };
        if let Some(reason) = refusal {
            bus.counters.protocol_errors += 1;
            return match home {
                Some(home) => home.trunk.finish(home.id, reason, now, bus),
                None => self.close(reason),
            };
        }
        self.headers = connect.headers;
        self.connect = Some(Box::new(connect.clone()));
        match home {
            Some(home) => {
                let drop = again && drops_subscriptions(bus, home.trunk);
                home.trunk.reconnect(home.id, connect, drop, now, bus);
            }
            None => self.ask_for_trunk(connect, true, now, bus),
        }
    }

    fn ask_for_trunk(&mut self, connect: ConnectInfo, sent: bool, now: Instant, bus: &Bus) {
        self.stage = Stage::Attaching;
        self.pings.next = now + bus.settings.timings.ping_interval;
        self.action = Some(SessionAction::Attach {
            connect: Box::new(connect),
            sent,
        });
    }

    /// An operation of a session that has sent no CONNECT.
    fn handle_before_connect(&mut self, op: ClientOp<'_>, frame: &[u8], bus: &mut Bus) {
        if !bus.roster.auth_required() {
            if matches!(op, ClientOp::Ping) && self.early.is_none() {
                return self.out.push(encode::PONG);
            }
            if !self.early(bus).keep(frame) {
                return self.close(CloseReason::EarlyBytesExceeded);
            }
            let defaults = ConnectInfo::default();
            self.stage = Stage::Attaching;
            self.action = Some(SessionAction::Attach {
                connect: Box::new(defaults),
                sent: false,
            });
            return;
        }
        if !bus.settings.lenient_connect {
            return self.close(CloseReason::ConnectExpected);
        }
        if !self.early(bus).keep(frame) {
            self.close(CloseReason::EarlyBytesExceeded);
        }
    }

    fn early(&mut self, bus: &Bus) -> &mut Early {
        let limit = bus.settings.limits.lenient_buffer;
        self.early
            .get_or_insert_with(|| Box::new(Early::new(limit, bus.budgets.early.clone())))
    }

    fn tick_pings(&mut self, home: Home<'_>, now: Instant, bus: &mut Bus) {
        self.pings.next = now + bus.settings.timings.ping_interval;
        if !home.trunk.is_ready(home.id) {
            // Between INFO and the first PONG a component hears nothing but +OK or -ERR.
            return;
        }
        if home.trunk.is_parked(home.id) {
            // Its PONG may have come: natsmux doesn't read it (R6).
            return;
        }
        if self.pings.outstanding >= bus.settings.limits.ping_max as u32 {
            bus.counters.stale_sessions += 1;
            home.trunk.close_session(home.id, CloseReason::Stale);
        } else if std::mem::take(&mut self.pings.active) {
            self.pings.outstanding = 0;
        } else {
            self.pings.outstanding += 1;
            home.trunk.ping_component(home.id, bus);
        }
    }

    /// Ends the session for its own fault; what came before is answered first.
    fn end(
        &mut self,
        reason: CloseReason,
        home: &mut Option<Home<'_>>,
        now: Instant,
        bus: &mut Bus,
    ) {
        match home {
            Some(home) => home.trunk.finish(home.id, reason, now, bus),
            None => self.close(reason),
        }
    }

    fn close(&mut self, reason: CloseReason) {
        if matches!(self.stage, Stage::Over) {
            return;
        }
        if let Some(text) = reason.error_text() {
            self.out.push_parts(&[b"-ERR '", text, b"'\r\n"]);
        }
        self.stage = Stage::Over;
        self.action = Some(SessionAction::Close(reason));
    }
}

/// What is to be done with the bytes behind those that were handled.
enum Then {
    /// They are the beginning of a frame of this length, if it is known.
    Unfinished(Option<usize>),
    /// Nothing now: the session waits for something, or is over.
    Later,
}

/// A run of publishes that goes on as one slice of the read buffer.
#[derive(Default)]
struct Run {
    start: usize,
    messages: u64,
    payload_bytes: usize,
}

impl Run {
    /// Whether a fence is due behind it (R7).
    fn is_full(&self, end: usize, bus: &Bus) -> bool {
        let limits = &bus.settings.limits;
        self.messages >= limits.fence_messages as u64 || end - self.start >= limits.fence_bytes
    }

    fn flush(
        &mut self,
        bytes: &[u8],
        end: usize,
        home: &mut Home<'_>,
        now: Instant,
        bus: &mut Bus,
    ) {
        if self.messages > 0 {
            let frames = &bytes[self.start..end];
            bus.counters.in_msgs += self.messages;
            bus.counters.in_bytes += self.payload_bytes as u64;
            home.trunk.publish(home.id, frames, self.messages, now, bus);
            self.messages = 0;
            self.payload_bytes = 0;
        }
        self.start = end;
    }
}

/// nats-server 2.12.8, 2.14 and later drop a connection's subscriptions at a second CONNECT.
fn drops_subscriptions(bus: &Bus, trunk: &Trunk) -> bool {
    let broker = trunk.broker().unwrap_or(bus.roster.current());
    let info = bus.roster.broker(broker).info();
    info.is_some_and(|info| {
        let version = info.version_numbers();
        version >= [2, 14, 0] || ([2, 12, 8]..[2, 13, 0]).contains(&version)
    })
}
