//! The stable upstream side of one or more sessions: a pure machine.
//!
//! A trunk owns the ledger of its sessions and outlives every link. Its methods are
//!
//! - inputs from sessions: [`attach`](Trunk::attach), [`publish`](Trunk::publish),
//!   [`subscribe`](Trunk::subscribe), [`unsubscribe`](Trunk::unsubscribe),
//!   [`ping`](Trunk::ping), [`reconnect`](Trunk::reconnect), [`finish`](Trunk::finish),
//!   [`detach`](Trunk::detach);
//! - inputs from links and the clock: `handle_*`;
//! - outputs: [`poll_action`](Trunk::poll_action), [`poll_timeout`](Trunk::poll_timeout),
//!   [`poll_touched`](Trunk::poll_touched), and the buffers [`out`](Trunk::out) and
//!   [`link_out`](Trunk::link_out);
//! - questions: [`wants_read`](Trunk::wants_read), [`gauges`](Trunk::gauges), …
//!
//! Files: `session_input` and `operations` hold the inputs from sessions, `link_setup` the way of a
//! link from dial to live, `broker_input` what brokers send, `link_end` the end of links,
//! `planned_move` how one link takes over from another, `route` and `target` which brokers there are
//! links to, `sharing` what is where sessions share the trunk, `attribution` whose an error is then,
//! `pulls` how JetStream consumers go on behind a failover, `timers` the clock. Every method takes the [`Bus`] that the trunk belongs to.

mod action;
mod allowance;
mod attribution;
mod broker_errors;
mod broker_input;
mod debts;
mod flow;
mod lacks;
mod operations;
mod overlap;
mod planned_move;
mod relay;
mod renewal;
mod resume;
mod trunk_end;

mod link;
mod link_end;
mod link_setup;
mod links;
mod monitoring;
mod no_responders;
mod presence;
mod pressure;
mod pulls;
mod room;
mod route;
mod session_input;
mod sessions;
mod sharing;
mod slot;
mod target;
#[cfg(test)]
mod tests;
mod throttle;
mod timers;
mod unsub_max;

use std::rc::Rc;
use std::time::Duration;

pub use action::{Action, Report};
pub use link::LinkId;
pub use monitoring::{Gauges, View};
pub use pressure::ReadAtMost;
pub use sharing::{MoveReason, Moved};
pub use slot::{CloseReason, Traffic};

use crate::clock::Instant;
use crate::config::Delivery;
use crate::ledger::{Held, SessionId, Subscriptions};
use crate::net::{Outbox, Retention};
use crate::proto::connect::ConnectInfo;
use crate::queue::Queue;
use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::roster::BrokerId;
use crate::upstream::bus::Bus;
use links::Links;
use overlap::Overlap;
use pressure::Intake;
use pulls::Pulls;
pub use pulls::may_be_pull;
use relay::Relay;
use route::Route;
use sessions::Sessions;
use sharing::SharedState;
use slot::{End, Slot};

/// The brokers' verdict on the trunk's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// None has judged them.
    Pending,
    /// None has judged them, but the component may go on (R16).
    Admitted,
    /// One accepted them.
    Accepted,
}

/// How long a session that ends may wait for a broker that can be asked for its last PONGs:
/// longer than a failover.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// The machine. See the module's documentation.
#[derive(Debug)]
pub struct Trunk {
    id: TrunkId,
    connect: Rc<ConnectInfo>,
    /// Where its session ends with its link (R40).
    relay: Option<Box<Relay>>,
    /// Where sessions of the same identity may join (R22).
    sharing: Option<Box<SharedState>>,
    /// A component that sent no CONNECT is owed no `+OK` for the one that natsmux sends.
    connect_ok_owed: bool,
    verdict: Verdict,
    ready: bool,
    sessions: Sessions,
    subscriptions: Subscriptions,
    /// Publishes of sessions that are gone.
    orphans: Held,
    /// Whether it costs the budget of waiting publishes for being there.
    charged: bool,
    links: Links,
    route: Route,
    /// A planned move, while two links have the ledger and for a while behind that (R41).
    overlap: Option<Box<Overlap>>,
    /// Open requests of JetStream consumers, once there was one (R44).
    pulls: Option<Box<Pulls>>,
    /// When a SUB was last sent.
    subscribed_at: Option<Instant>,
    /// When links move to renewed credentials (R38).
    renew_at: Option<Instant>,
    /// The newest credentials that a broker has accepted.
    vouched: Option<u64>,
    /// The time that the driver's timer was last set for.
    timer: Option<Instant>,
    /// Silence is measured from here at the earliest, after a clock that jumped (R9).
    clock_floor: Option<Instant>,
    /// Whether any subscription has ever had a max: its count must be the broker's.
    any_limited: bool,
    intake: Intake,
    /// Since when a place among the operations is to be marked by a PING (R23).
    unmarked: Option<Instant>,
    actions: Queue<Action>,
    scratch: Vec<u8>,
    /// The brokers refused the credentials for good.
    refused: bool,
    done: bool,
}

impl Trunk {
    /// A trunk for sessions that connect as `connect`. It dials once a session is attached.
    pub fn new(id: TrunkId, connect: Rc<ConnectInfo>) -> Self {
        Self {
            id,
            connect,
            relay: None,
            sharing: None,
            connect_ok_owed: false,
            verdict: Verdict::Pending,
            ready: false,
            sessions: Sessions::of_one(),
            subscriptions: Subscriptions::default(),
            orphans: Held::default(),
            charged: false,
            links: Links::new(),
            route: Route::default(),
            overlap: None,
            pulls: None,
            subscribed_at: None,
            renew_at: None,
            vouched: None,
            timer: None,
            clock_floor: None,
            any_limited: false,
            intake: Intake::default(),
            unmarked: None,
            actions: Queue::default(),
            scratch: Vec::new(),
            refused: false,
            done: false,
        }
    }

    /// The trunk's number.
    pub fn id(&self) -> TrunkId {
        self.id
    }

    /// The broker of a link.
    pub fn broker_of(&self, id: LinkId) -> Option<BrokerId> {
        self.links.get(id).map(|link| link.broker)
    }

    /// Returns the CONNECT that it sends.
    pub fn connect(&self) -> &ConnectInfo {
        &self.connect
    }

    /// A trunk that sessions of the same identity share, and that brokers know by `name`.
    pub fn shared(id: TrunkId, connect: &ConnectInfo, name: String) -> Self {
        let mut trunk = Self::new(id, Rc::new(sharing::as_shared(connect, name)));
        trunk.sharing = Some(Box::default());
        trunk.sessions = Sessions::of_many();
        trunk.subscriptions.coalesce();
        trunk
    }

    /// The next thing that the driver must do.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if action.is_none() {
            // Most trunks have nothing to do for long.
            self.scratch.shrink_to(0);
        }
        action
    }

    /// The next session that was touched since the last call: the driver flushes its
    /// [`out`](Trunk::out), and wakes it where it is parked or closing.
    pub fn poll_touched(&mut self) -> Option<SessionId> {
        self.sessions.poll_touched()
    }

    /// Returns the output to a session's component; `None` once it is detached.
    pub fn out(&mut self, session: SessionId) -> Option<&mut Outbox> {
        Some(&mut self.sessions.get_mut(session)?.out)
    }

    /// Tells the daemon's budget how much the component has not taken, after a flush (R25).
    pub fn account(&mut self, session: SessionId, bus: &Bus) {
        self.sessions.account(session, bus);
    }

    /// The session whose component lags most, and by how many bytes.
    pub fn slowest(&self) -> Option<(SessionId, usize)> {
        let open = self.sessions.iter().filter(|(_, slot)| !slot.is_closing());
        open.map(|(session, slot)| (session, slot.out.pending_bytes()))
            .max_by_key(|(_, pending)| *pending)
    }

    /// Closes a session whose component reads too slowly; what it has not taken is dropped.
    pub fn close_slow(&mut self, session: SessionId, bus: &Bus) {
        self.sessions.close_slow(session, bus);
    }

    /// Returns the output to a link's broker; `None` once it is closed.
    pub fn link_out(&mut self, link: LinkId) -> Option<&mut Outbox> {
        Some(&mut self.links.get_mut(link)?.out)
    }

    /// Why the driver must close a session, once its outbox is flushed.
    pub fn closing(&self, session: SessionId) -> Option<&CloseReason> {
        match &self.sessions.get(session)?.end {
            End::Closing(reason) => Some(reason),
            End::Open | End::Finishing(_) => None,
        }
    }

    /// Whether nothing that a session's component sends is looked at any more.
    pub fn is_ending(&self, session: SessionId) -> bool {
        let slot = self.sessions.get(session);
        slot.is_none_or(Slot::is_ending)
    }

    /// Whether a session's next operation waits for an answer to those before it.
    pub fn is_gated(&self, session: SessionId) -> bool {
        let slot = self.sessions.get(session);
        slot.is_some_and(|slot| slot.gate.is_shut())
    }

    /// Largest payload that the present broker takes, in bytes.
    pub fn max_payload(&self) -> usize {
        self.links
            .iter()
            .filter(|link| link.takes_subscriptions())
            .map(|link| link.max_payload)
            .min()
            .unwrap_or(usize::MAX)
    }

    /// The broker that publishes go to.
    pub fn broker(&self) -> Option<BrokerId> {
        self.live().map(|id| self.links[id].broker)
    }

    /// The link that publishes may be written to now: live, not suspect (R8), and not about to
    /// be left (R30, R41).
    fn open(&self, bus: &Bus) -> Option<LinkId> {
        let waits = self.route.is_switching() || self.holds_publishes(bus);
        let live = self.live().filter(|_| !waits);
        live.filter(|&id| !self.links.is_suspect(id, bus))
    }

    /// The link that publishes go to, suspect or not: its options are those that the component
    /// asked for last.
    fn live(&self) -> Option<LinkId> {
        let live = self.links.live();
        live.filter(|live| !self.links[*live].is_outdated())
    }

    fn retention(&self, bus: &Bus) -> Retention {
        match bus.settings().delivery {
            // Where several sessions write, what was written tells whose an error is.
            Delivery::AtMostOnce if !self.is_shared() => Retention::UntilWritten,
            _ => Retention::UntilConfirmed,
        }
    }

    /// Tells a session's component what natsmux answers by itself.
    pub fn tell(&mut self, session: SessionId, line: &[u8], bus: &Bus) {
        self.sessions.deliver(session, &[line], bus);
    }
}
