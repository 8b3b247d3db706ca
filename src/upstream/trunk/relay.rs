//! A trunk for one session whose component signs a broker's own nonce (R40).
//!
//! It dials before the component has said CONNECT, since INFO must have the broker's nonce, and
//! waits with the broker's INFO. The signature is of that one link: when it ends, the session does.

use std::rc::Rc;

use super::action::Action;
use super::link::{Link, LinkId, Phase};
use super::slot::Slot;
use super::{CloseReason, Trunk};
use crate::ledger::SessionId;
use crate::net::Outbox;
use crate::proto::connect::ConnectInfo;
use crate::proto::info::ServerInfo;
use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::roster::Departure;
use crate::upstream::bus::{Bus, Turn};

/// How far a relay has come.
#[derive(Debug)]
pub(super) enum Relay {
    /// On its way to a broker's INFO.
    Dialing,
    /// The broker has said this, and the component nothing yet.
    Greeted(LinkId, Box<ServerInfo>),
    /// It has its session.
    Bound,
    /// It is of no use any more.
    Ended,
}

impl Trunk {
    /// A trunk that dials at once, for a session that comes later.
    pub fn relay(id: TrunkId) -> Self {
        let mut trunk = Self::new(id, Rc::default());
        trunk.relay = Some(Box::new(Relay::Dialing));
        trunk
    }

    /// Begins to dial.
    pub fn open_relay(&mut self, cx: &mut Turn<'_>) {
        self.route.configure(false);
        self.next_attempt(cx);
    }

    /// Whether its session ends with its link.
    pub fn is_relay(&self) -> bool {
        self.relay.is_some()
    }

    /// The nonce that the component is to sign, once the broker has said it.
    pub fn relay_nonce(&self) -> Option<&str> {
        match self.relay.as_deref()? {
            Relay::Greeted(_, info) => info.nonce.as_deref(),
            _ => None,
        }
    }

    /// Keeps a broker's INFO until the component has said CONNECT.
    pub(super) fn greet(&mut self, id: LinkId, info: ServerInfo, cx: &mut Turn<'_>) {
        let broker = self.links[id].broker;
        cx.bus
            .roster_mut()
            .handle_info(broker, info.clone(), cx.now);
        if info.nonce.is_some() {
            let link = &mut self.links[id];
            (link.phase, link.deadline) = (Phase::Greeted, None);
            // A component may take its time, and others dial meanwhile.
            if std::mem::take(&mut link.dialing) {
                cx.bus.dial_ended(broker);
            }
            self.relay = Some(Box::new(Relay::Greeted(id, Box::new(info))));
        } else {
            self.close_relay(cx);
        }
        self.actions.push_back(Action::Greeted);
    }

    /// Takes the session: its component has signed the nonce.
    pub fn bind_relay(
        &mut self,
        out: Outbox,
        connect: &Rc<ConnectInfo>,
        cx: &mut Turn<'_>,
    ) -> SessionId {
        self.connect = Rc::clone(connect);
        self.connect_ok_owed = connect.verbose;
        let session = self.sessions.insert(Slot::new(out));
        let relay = self.relay.as_deref_mut();
        match relay.map(|relay| std::mem::replace(relay, Relay::Bound)) {
            Some(Relay::Greeted(id, info)) if self.links.has(id) => self.introduce(id, *info, cx),
            _ => self.sessions.close(session, CloseReason::RelayEnded),
        }
        session
    }

    /// Nobody comes any more: the component is another's, or gone.
    pub fn close_relay(&mut self, cx: &mut Turn<'_>) {
        if let Some(relay) = self.relay.as_deref_mut()
            && !matches!(relay, Relay::Bound)
        {
            *relay = Relay::Ended;
            self.check_done(cx);
        }
    }

    /// Whether it waits for its session.
    pub(super) fn awaits_session(&self) -> bool {
        let relay = self.relay.as_deref();
        relay.is_some_and(|relay| matches!(relay, Relay::Dialing | Relay::Greeted(..)))
    }

    /// Whether it may open a link: a relay has one.
    pub(super) fn may_dial(&self) -> bool {
        matches!(self.relay.as_deref(), None | Some(Relay::Dialing))
    }

    /// Ends a relay whose link is gone, and its session.
    pub(super) fn end_relay_without_link(&mut self, cx: &mut Turn<'_>) {
        if self.may_dial() || !self.links.is_empty() {
            return;
        }
        self.sessions.close_all(&CloseReason::RelayEnded);
        self.close_relay(cx);
        self.check_done(cx);
    }

    /// A relay's broker is one to leave: its session ends, once what it sent is answered, and its
    /// component comes back to another.
    pub(super) fn leave_relayed(&mut self, cx: &mut Turn<'_>) {
        let Some(id) = self.links.live() else {
            return;
        };
        if !Self::is_to_be_left(&self.links[id], cx.bus) {
            return;
        }
        for session in self.sessions.ids() {
            self.finish(session, CloseReason::RelayEnded, cx);
        }
    }

    /// Of independent brokers, others publish to the one that the bus has chosen.
    pub(super) fn is_to_be_left(link: &Link, bus: &Bus) -> bool {
        let is_aside = bus.settings().is_independent() && bus.roster().current() != link.broker;
        // Its component would notice: it stays, unless the broker goes.
        let goes = |reason| !matches!(reason, Departure::Moved | Departure::Rebalanced);
        is_aside || bus.roster().must_leave(link.broker).is_some_and(goes)
    }
}
