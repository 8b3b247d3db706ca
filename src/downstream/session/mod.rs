//! One component's connection, from accept to close: a pure machine.
//!
//! It parses what the component sends, judges it as a broker would, and hands whole
//! operations to its trunk; before there is a trunk it asks for one with
//! [`SessionAction::Attach`]. What goes *to* the component is in the trunk's slot, and
//! before that in [`Session::out`].

mod connect;
mod operations;

use std::rc::Rc;
use std::time::Duration;

use self::operations::Then;
use super::pending_input::PendingInput;
use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::net::{Outbox, Partial, Retention};
use crate::proto::connect::{ConnectInfo, IdentityId};
use crate::proto::encode;
use crate::upstream::brokers::roster::Offer;
use crate::upstream::trunk::MoveReason;
use crate::upstream::{Bus, CloseReason, Trunk, Turn};

/// A request to the driver.
#[derive(Debug)]
pub enum SessionAction {
    /// Find out whether the component is one of the bus's identities, and call
    /// [`Session::handle_identified`].
    Identify,
    /// Find or make the trunk for these options, attach the session to it, and call
    /// [`Session::handle_attached`].
    Attach {
        /// The options.
        connect: Rc<ConnectInfo>,
        /// Whether the component sent them, or they are a broker's defaults.
        sent: bool,
    },
    /// Move the session from the trunk that it shares to another one, under these options, and
    /// call [`Session::handle_ready`].
    Move {
        /// The options.
        connect: Rc<ConnectInfo>,
        /// Why.
        why: MoveReason,
    },
    /// Say INFO again: what every broker offers has changed (R17).
    SayInfo,
    /// Flush [`Session::out`] and close. Only sessions without a trunk end this way.
    Close(CloseReason),
}

/// Where a session's operations go: its trunk and its place there.
pub struct Upstream<'a> {
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

/// The most input of an attached component, in bytes, while one of its operations waits for the
/// broker's answer to those before it: each such wait copies what came since.
const GATED_BYTES: usize = 64 * 1024;

/// How long a component that closed its side is waited for where a broker has yet to accept it.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// How long the Ruby server of 2012 waits for CONNECT.
const AUTH_TIMEOUT_OF_2012: Duration = Duration::from_secs(1);

/// The machine. See the module's documentation.
#[derive(Debug)]
pub struct Session {
    stage: Stage,
    partial: Partial,
    pending_input: Option<Box<PendingInput>>,
    /// Output to the component while there is no trunk.
    out: Option<Box<Outbox>>,
    headers: bool,
    /// Operations handled, runs of publishes apart, since it was last asked.
    operations: u32,
    max_control_line: usize,
    /// The offer of the last INFO.
    told: Offer,
    /// The component's own CONNECT, and what goes upstream in its place.
    connect: Option<Rc<ConnectInfo>>,
    upstream_connect: Option<Rc<ConnectInfo>>,
    /// It waits to be identified.
    identifying: Option<Identifying>,
    action: Option<SessionAction>,
    pings: KeepAlive,
    /// Whether its trunk has ever been ready for it.
    begun: bool,
    /// The component closed its side.
    eof: bool,
    /// When a component that closed its side stops waiting for a broker's verdict.
    eof_until: Option<Instant>,
}

/// A session whose component is to be identified.
#[derive(Clone, Copy, Debug)]
struct Identifying {
    /// Whether it sent CONNECT, or a broker's defaults stand in.
    sent: bool,
    /// Whether it had sent one before.
    again: bool,
}

/// Who a component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identified {
    /// An identity of the bus.
    As(IdentityId),
    /// Nobody whom natsmux knows: its own credentials pass through.
    Unknown,
    /// The same, with a signature of the nonce that it was told: on that link alone (R40).
    Relayed,
    /// Somebody who claims to be what it isn't.
    Refused,
}

/// natsmux's own PINGs to the component, as nats-server sends them.
#[derive(Debug)]
struct KeepAlive {
    outstanding: u32,
    next: Instant,
    /// Whether an operation came since the last tick: then the component is alive.
    active: bool,
}

impl Session {
    /// A session that has just been accepted and has got the INFO, with this offer.
    pub fn new(told: Offer, cx: &Turn<'_>) -> Self {
        let settings = &cx.bus.settings();
        let must_connect = cx.bus.auth_required();
        let auth_timeout = if cx.bus.roster().are_of_2012() {
            settings.timings.auth_timeout.min(AUTH_TIMEOUT_OF_2012)
        } else {
            settings.timings.auth_timeout
        };
        Self {
            stage: Stage::Greeting {
                deadline: must_connect.then(|| cx.now + auth_timeout),
            },
            partial: Partial::default(),
            pending_input: None,
            out: None,
            headers: false,
            operations: 0,
            max_control_line: settings.limits.max_control_line,
            told,
            connect: None,
            upstream_connect: None,
            identifying: None,
            action: None,
            pings: KeepAlive {
                outstanding: 0,
                next: cx.now + settings.timings.ping_interval,
                active: false,
            },
            eof: false,
            eof_until: None,
            begun: false,
        }
    }

    /// Handles bytes that the component sent and returns how many were used. All are, unless
    /// an action is pending, after which the driver calls again with the rest.
    pub fn handle_bytes(
        &mut self,
        input: &[u8],
        mut upstream: Option<Upstream<'_>>,
        cx: &mut Turn<'_>,
    ) -> usize {
        let mut used = 0;
        while used < input.len() && self.is_open(&upstream) {
            if self.must_wait(&upstream) {
                self.pending_input(cx.bus).push(&input[used..]);
                return input.len();
            }
            let rest = &input[used..];
            if self.partial.is_empty() {
                let (count, then) = self.consume(rest, &mut upstream, cx);
                used += count;
                if let Then::Unfinished(need) = then {
                    if used < input.len() {
                        self.partial.keep(&input[used..], need);
                    }
                    self.bound_unfinished(need, &upstream, cx.bus);
                    return input.len();
                }
            } else {
                used += self.partial.fill(rest);
                if self.partial.is_filled() {
                    self.handle_filled(&mut upstream, cx);
                }
                self.bound_unfinished(None, &upstream, cx.bus);
            }
            if self.action.is_some() {
                return used;
            }
        }
        input.len()
    }

    /// An unfinished frame counts as what is kept while there is no trunk (R21). `need` is its
    /// length, where that is known.
    fn bound_unfinished(
        &mut self,
        need: Option<usize>,
        upstream: &Option<Upstream<'_>>,
        bus: &mut Bus,
    ) {
        let bytes = self.partial.bytes().len();
        let is_bounded = upstream.is_none() && matches!(self.stage, Stage::Greeting { .. });
        if !is_bounded || bytes == 0 {
            let counts_nothing = |pending: &mut Box<PendingInput>| {
                pending.count_unfinished(0);
                pending.is_empty()
            };
            self.pending_input.take_if(counts_nothing);
            return;
        }
        let too_long = need.is_some_and(|need| need > bus.settings().limits.lenient_buffer);
        if too_long || !self.pending_input(bus).count_unfinished(bytes) {
            self.close(CloseReason::EarlyBytesExceeded);
        }
    }

    /// Handles a frame that arrived in several reads, if it is whole now.
    fn handle_filled(&mut self, upstream: &mut Option<Upstream<'_>>, cx: &mut Turn<'_>) {
        let frame = self.partial.take();
        match self.consume(&frame, upstream, cx) {
            (0, Then::Unfinished(need)) => self.partial.restore(frame, need),
            (0, Then::Later) if self.must_wait(upstream) => self.pending_input(cx.bus).push(&frame),
            _ => {}
        }
    }

    /// The driver has attached the session.
    pub fn handle_attached(&mut self, upstream: Upstream<'_>, cx: &mut Turn<'_>) {
        self.stage = Stage::Attached;
        if self.pending_input.is_some() && self.connect.is_some() {
            cx.bus.counters_mut().lenient_connects += 1;
        }
        self.handle_ready(upstream, cx);
    }

    /// The trunk may have become ready: what the component sent before that goes on, in its
    /// order.
    pub fn handle_ready(&mut self, upstream: Upstream<'_>, cx: &mut Turn<'_>) {
        if self.identifying.is_some()
            || !upstream.trunk.is_ready(upstream.id)
            || upstream.trunk.is_ending(upstream.id)
        {
            // `abandon` counts what waits for a session that ends.
            return;
        }
        self.begun = true;
        let (trunk, id) = (upstream.trunk, upstream.id);
        if let Some(mut pending) = self.pending_input.take() {
            let bytes = pending.take();
            let upstream = Upstream {
                trunk: &mut *trunk,
                id,
            };
            let used = self.handle_bytes(&bytes, Some(upstream), cx);
            if used < bytes.len() {
                // Behind an action, with which the driver comes back here.
                self.pending_input(cx.bus).push(&bytes[used..]);
                return;
            }
        }
        // Behind an action, the driver comes back here once the session is where it belongs.
        if self.eof && self.pending_input.is_none() && self.action.is_none() {
            trunk.finish(id, CloseReason::ComponentClosed, cx);
        }
    }

    /// The component closed its side. What it sent is carried out first, unless it waits for
    /// the verdict on its CONNECT and no broker serves: then it has given up waiting. A component
    /// that is gone looks like one that has only closed its side, so no wait is for long.
    pub fn handle_eof(&mut self, upstream: Option<Upstream<'_>>, cx: &mut Turn<'_>) {
        self.eof = true;
        self.eof_until = Some(cx.now + FINISH_WITHIN);
        match upstream {
            Some(upstream) if upstream.trunk.is_ready(upstream.id) => {
                self.handle_ready(upstream, cx)
            }
            Some(upstream)
                if upstream.trunk.is_gated(upstream.id) || cx.bus.roster().serves_newcomers() => {}
            Some(upstream) => upstream
                .trunk
                .close_session(upstream.id, CloseReason::ComponentClosed),
            None => self.close(CloseReason::ComponentClosed),
        }
    }

    /// The session may have to leave a trunk that it shares.
    pub fn handle_crowding(&mut self, upstream: &Upstream<'_>) {
        if self.action.is_none()
            && let Some(why) = upstream.trunk.reason_to_leave(upstream.id)
        {
            let connect = self.upstream_connect.clone().unwrap_or_default();
            self.action = Some(SessionAction::Move { connect, why });
        }
    }

    /// Tells the component in an INFO if the brokers' offer has changed.
    pub fn handle_offer(&mut self, upstream: &Upstream<'_>, bus: &Bus) {
        let mut offer = bus.roster().offer();
        // An account may have a bound of its own, which a broker tells behind CONNECT.
        offer.max_payload = offer.max_payload.min(upstream.trunk.max_payload());
        if offer != self.told && self.action.is_none() && upstream.trunk.takes_info(upstream.id) {
            self.told = offer;
            self.action = Some(SessionAction::SayInfo);
        }
    }

    /// Whether the driver may read although the trunk has no room: to notice that the
    /// component is gone while it waits for a broker's verdict.
    pub fn may_wait_for_more(&self, bus: &Bus) -> bool {
        let kept = self
            .pending_input
            .as_ref()
            .map_or(0, |pending| pending.len());
        let limit = if self.begun {
            GATED_BYTES
        } else {
            bus.settings().limits.lenient_buffer
        };
        kept < limit.min(bus.budgets().input.share().max(4096))
    }

    /// Operations that were handled since the last call, but for publishes that went on in runs.
    pub fn take_operations(&mut self) -> u32 {
        std::mem::take(&mut self.operations)
    }

    /// Returns the component's CONNECT, once it has come.
    pub fn connect(&self) -> Option<&ConnectInfo> {
        self.connect.as_deref()
    }

    /// Whether nothing more is to be read until its component is identified.
    pub fn is_identifying(&self) -> bool {
        self.identifying.is_some()
    }

    /// Whether something waits for [`Session::handle_ready`].
    pub fn has_pending_input(&self) -> bool {
        self.pending_input.is_some() || self.eof
    }

    /// Bytes that the component sent and that were not acted upon: they wait for the trunk,
    /// or for the rest of their frame.
    pub fn unhandled_bytes(&self) -> usize {
        let kept = self
            .pending_input
            .as_ref()
            .map_or(0, |pending| pending.len());
        kept + self.partial.bytes().len()
    }

    /// natsmux shuts down: end the session once what it sent is carried out.
    pub fn handle_drain(&mut self, upstream: Option<Upstream<'_>>, cx: &mut Turn<'_>) {
        match upstream {
            Some(upstream) => upstream.trunk.finish(upstream.id, CloseReason::Drained, cx),
            None => self.close(CloseReason::Drained),
        }
    }

    /// No broker has served for `reveal_outage_after`: the component is let go, without a word
    /// (R37).
    pub fn handle_outage(&mut self, upstream: Option<Upstream<'_>>, bus: &mut Bus) {
        match upstream {
            Some(upstream) => upstream.trunk.reveal_outage(upstream.id, bus),
            None => self.close(CloseReason::Outage),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, upstream: Option<Upstream<'_>>, cx: &mut Turn<'_>) {
        let mut upstream = upstream;
        if self.eof_until.is_some_and(|until| until <= cx.now) {
            self.eof_until = None;
            if let Some(upstream) = &mut upstream
                && !upstream.trunk.is_ready(upstream.id)
            {
                let reason = CloseReason::ComponentClosed;
                return upstream.trunk.close_session(upstream.id, reason);
            }
        }
        match (&self.stage, upstream) {
            (Stage::Greeting { deadline: Some(at) }, _) if *at <= cx.now => {
                self.close(if cx.bus.roster().are_of_2012() {
                    CloseReason::AuthTimeoutOf2012
                } else {
                    CloseReason::AuthTimeout
                });
            }
            (Stage::Greeting { deadline: None }, _) if self.pings.next <= cx.now => {
                self.tick_first_pings(cx);
            }
            (Stage::Attached, Some(upstream)) if self.pings.next <= cx.now => {
                self.tick_pings(upstream, cx);
            }
            _ => {}
        }
    }

    /// When [`Session::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = match self.stage {
            Stage::Greeting { deadline } => Some(deadline.unwrap_or(self.pings.next)),
            Stage::Attached => Some(self.pings.next),
            Stage::Attaching | Stage::Over => None,
        };
        due.into_iter().chain(self.eof_until).min()
    }

    /// The next thing that the driver must do.
    pub fn poll_action(&mut self) -> Option<SessionAction> {
        self.action.take()
    }

    /// Returns the output to the component while there is no trunk. Attaching takes it along.
    pub fn out(&mut self) -> &mut Outbox {
        let empty = || Box::new(Outbox::new(Retention::UntilWritten));
        self.out.get_or_insert_with(empty)
    }

    /// Takes the outbox, to be given to the trunk.
    pub fn take_out(&mut self) -> Outbox {
        let out = self.out.take().map(|out| *out);
        out.unwrap_or_else(|| Outbox::new(Retention::UntilWritten))
    }

    /// Whether what comes now must wait until the trunk is ready.
    fn must_wait(&self, upstream: &Option<Upstream<'_>>) -> bool {
        let is_unready = |upstream: &Upstream<'_>| !upstream.trunk.is_ready(upstream.id);
        self.identifying.is_some() || upstream.as_ref().is_some_and(is_unready)
    }

    fn is_open(&self, upstream: &Option<Upstream<'_>>) -> bool {
        let closing = |upstream: &Upstream<'_>| upstream.trunk.is_ending(upstream.id);
        !matches!(self.stage, Stage::Over) && !upstream.as_ref().is_some_and(closing)
    }

    /// Where nothing asks for a CONNECT, one that never comes is no reason to keep a dead
    /// connection.
    fn tick_first_pings(&mut self, cx: &mut Turn<'_>) {
        self.pings.next = cx.now + cx.bus.settings().timings.ping_interval;
        if self.pings.outstanding >= cx.bus.settings().limits.ping_max as u32 {
            cx.bus.counters_mut().stale_sessions += 1;
            return self.close(CloseReason::Stale);
        }
        self.pings.outstanding += 1;
        self.out().push(encode::PING);
    }

    fn tick_pings(&mut self, upstream: Upstream<'_>, cx: &mut Turn<'_>) {
        self.pings.next = cx.now + cx.bus.settings().timings.ping_interval;
        if !upstream.trunk.is_ready(upstream.id) {
            // Between INFO and the first PONG a component hears nothing but +OK or -ERR.
            return;
        }
        if self.eof || upstream.trunk.is_parked(upstream.id) {
            // Its PONG may have come, or can't: natsmux doesn't read it (R6).
            return;
        }
        if self.pings.outstanding >= cx.bus.settings().limits.ping_max as u32 {
            cx.bus.counters_mut().stale_sessions += 1;
            upstream
                .trunk
                .close_session(upstream.id, CloseReason::Stale);
        } else if std::mem::take(&mut self.pings.active) {
            self.pings.outstanding = 0;
        } else {
            self.pings.outstanding += 1;
            upstream.trunk.ping_component(upstream.id, cx.bus);
        }
    }

    /// Ends the session for its own fault; what came before is answered first.
    fn end(&mut self, reason: CloseReason, upstream: &mut Option<Upstream<'_>>, cx: &mut Turn<'_>) {
        match upstream {
            Some(upstream) => upstream.trunk.finish(upstream.id, reason, cx),
            None => self.close(reason),
        }
    }

    fn close(&mut self, reason: CloseReason) {
        if matches!(self.stage, Stage::Over) {
            return;
        }
        if let Some(text) = reason.error_text() {
            self.out().push_parts(&[b"-ERR '", text, b"'\r\n"]);
        }
        self.stage = Stage::Over;
        self.action = Some(SessionAction::Close(reason));
    }
}
