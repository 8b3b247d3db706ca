//! CONNECT, what comes before it (R21), and what waits for its verdict.

use std::rc::Rc;

use super::{Identified, Identifying, Session, SessionAction, Stage, Upstream};
use crate::downstream::pending_input::PendingInput;
use crate::proto::client::{self, ClientOp, Scan};
use crate::proto::connect::ConnectInfo;
use crate::proto::encode;
use crate::upstream::trunk::MoveReason;
use crate::upstream::{Bus, CloseReason, Trunk, Turn};

/// The answer of the server of 2012 to a CONNECT that it can't read.
const INVALID_CONFIG: &[u8] =
    b"-ERR 'Invalid config, valid JSON required for connection configuration'\r\n";

/// The answer to a component that isn't who it claims to be: a broker's.
const REFUSED: &[u8] = b"Authorization Violation";

impl Session {
    pub(super) fn handle_connect(
        &mut self,
        json: &[u8],
        upstream: Option<&mut Upstream<'_>>,
        cx: &mut Turn<'_>,
    ) {
        let mut connect = match &self.connect {
            Some(before) => (**before).clone(),
            None => ConnectInfo::default(),
        };
        let again = self.connect.is_some();
        let refusal = match connect.merge(json) {
            // The server of 2012 stays open.
            Err(_) if cx.bus.roster().are_of_2012() => {
                return match upstream {
                    Some(upstream) => upstream.trunk.tell(upstream.id, INVALID_CONFIG, cx.bus),
                    None => self.out().push(INVALID_CONFIG),
                };
            }
            Err(fault) => Some(CloseReason::Fault(fault.into())),
            Ok(()) => None,
        };
        if let Some(reason) = refusal {
            cx.bus.counters_mut().protocol_errors += 1;
            return match upstream {
                Some(upstream) => upstream.trunk.finish(upstream.id, reason, cx),
                None => self.close(reason),
            };
        }
        self.headers = connect.headers;
        self.connect = Some(cx.bus.share_connect(connect));
        self.identify(Identifying { sent: true, again }, upstream, cx);
    }

    /// Goes on as whoever the component is: at once, where the bus knows no identities.
    fn identify(
        &mut self,
        identifying: Identifying,
        upstream: Option<&mut Upstream<'_>>,
        cx: &mut Turn<'_>,
    ) {
        self.identifying = Some(identifying);
        let connect = self.connect.as_ref();
        let is_signed = connect.is_some_and(|connect| connect.is_signed());
        if cx.bus.identities().is_empty() && !is_signed {
            return self.go_on_as(Identified::Unknown, upstream, cx);
        }
        if upstream.is_none() {
            self.stage = Stage::Attaching;
        }
        self.action = Some(SessionAction::Identify);
    }

    /// The driver has found out who the component is.
    pub fn handle_identified(
        &mut self,
        identified: Identified,
        mut upstream: Option<Upstream<'_>>,
        cx: &mut Turn<'_>,
    ) {
        self.go_on_as(identified, upstream.as_mut(), cx);
        // Behind an action, the driver comes back to that.
        if let Some(upstream) = upstream
            && self.action.is_none()
        {
            self.handle_ready(upstream, cx);
        }
    }

    fn go_on_as(
        &mut self,
        identified: Identified,
        upstream: Option<&mut Upstream<'_>>,
        cx: &mut Turn<'_>,
    ) {
        let Some(Identifying { sent, again }) = self.identifying.take() else {
            return;
        };
        if matches!(self.stage, Stage::Over) {
            return;
        }
        let own = match &self.connect {
            Some(own) => Rc::clone(own),
            None => cx.bus.share_connect(ConnectInfo::default()),
        };
        let connect = match identified {
            Identified::As(identity) => Ok(cx.bus.share_connect(own.as_identity(identity))),
            Identified::Refused => {
                cx.bus.counters_mut().refused_identities += 1;
                Err(CloseReason::Refused(REFUSED.into()))
            }
            // A relay has one link, and that has had its CONNECT.
            _ if upstream
                .as_ref()
                .is_some_and(|upstream| upstream.trunk.is_relay()) =>
            {
                Err(CloseReason::Signed)
            }
            Identified::Relayed if upstream.is_some() => Err(CloseReason::Signed),
            Identified::Relayed => Ok(own),
            Identified::Unknown if own.is_signed() => unsign(&own, cx.bus),
            Identified::Unknown => Ok(own),
        };
        let connect = match connect {
            Ok(connect) => connect,
            Err(reason) => {
                return match upstream {
                    Some(upstream) => upstream.trunk.finish(upstream.id, reason, cx),
                    None => self.close(reason),
                };
            }
        };
        self.upstream_connect = Some(Rc::clone(&connect));
        match upstream {
            Some(upstream) if upstream.trunk.is_shared() => {
                let keeps = !(again && drops_subscriptions(cx.bus, upstream.trunk));
                let why = MoveReason::Reconnect { keeps };
                self.action = Some(SessionAction::Move { connect, why });
            }
            Some(upstream) => {
                let drop = again && drops_subscriptions(cx.bus, upstream.trunk);
                upstream.trunk.reconnect(upstream.id, connect, drop, cx);
            }
            None => self.ask_for_trunk(connect, sent, cx),
        }
    }

    pub(super) fn ask_for_trunk(&mut self, connect: Rc<ConnectInfo>, sent: bool, cx: &Turn<'_>) {
        self.stage = Stage::Attaching;
        if sent {
            self.pings.next = cx.now + cx.bus.settings().timings.ping_interval;
        }
        self.action = Some(SessionAction::Attach { connect, sent });
    }

    /// An operation of a session that has sent no CONNECT.
    pub(super) fn handle_before_connect(
        &mut self,
        op: ClientOp<'_>,
        frame: &[u8],
        cx: &mut Turn<'_>,
    ) {
        let bus = &mut *cx.bus;
        if !bus.auth_required() {
            if matches!(op, ClientOp::Ping)
                && self
                    .pending_input
                    .as_ref()
                    .is_none_or(|pending| pending.is_empty())
            {
                return self.out().push(encode::PONG);
            }
            if !self.pending_input(bus).keep(frame) {
                return self.close(CloseReason::EarlyBytesExceeded);
            }
            let identifying = Identifying {
                sent: false,
                again: false,
            };
            return self.identify(identifying, None, cx);
        }
        if !bus.settings().lenient_connect {
            return self.close(CloseReason::ConnectExpected);
        }
        if !self.pending_input(bus).keep(frame) {
            self.close(CloseReason::EarlyBytesExceeded);
        }
    }

    pub(super) fn pending_input(&mut self, bus: &Bus) -> &mut PendingInput {
        let limit = bus.settings().limits.lenient_buffer;
        self.pending_input
            .get_or_insert_with(|| Box::new(PendingInput::new(limit, bus.budgets().input.clone())))
    }

    /// The session is over. Publishes that waited for a verdict on its CONNECT, and will not
    /// get one, are counted as refused (R4).
    pub fn abandon(&mut self, bus: &mut Bus) {
        let Some(mut pending) = self.pending_input.take() else {
            return;
        };
        let bytes = pending.take();
        let limits = self.limits(&None, bus);
        let mut rest = &bytes[..];
        while let Scan::Op { op, len } = client::scan(rest, &limits) {
            rest = &rest[len..];
            if matches!(op, ClientOp::Publish(_)) {
                bus.counters_mut().published += 1;
                bus.counters_mut().refused += 1;
            }
        }
    }
}

/// A signature is worthless on another connection (R18): it passes where brokers don't look at it.
fn unsign(own: &ConnectInfo, bus: &mut Bus) -> Result<Rc<ConnectInfo>, CloseReason> {
    let mut connect = own.clone();
    if !bus.roster().auth_required() {
        connect.forget_keys();
    } else if connect.is_bearer() {
        connect.unsign();
    } else {
        bus.counters_mut().protocol_errors += 1;
        return Err(CloseReason::Signed);
    }
    Ok(bus.share_connect(connect))
}

/// nats-server 2.12.8, 2.14 and later drop a connection's subscriptions at a second CONNECT.
fn drops_subscriptions(bus: &Bus, trunk: &Trunk) -> bool {
    let broker = trunk.broker().unwrap_or(bus.roster().current());
    let info = bus.roster().info_like(broker);
    info.is_some_and(|info| {
        let version = info.version_numbers();
        version >= [2, 14, 0] || ([2, 12, 8]..[2, 13, 0]).contains(&version)
    })
}
