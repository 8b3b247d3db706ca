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
//! Files: `sessions` holds the inputs from sessions, `link_setup` the way of a link from
//! dial to live, `broker_input` what brokers send, `link_end` the end of links, `independent` what is
//! different with independent brokers, `sharing` what is where sessions share the trunk,
//! `attribution` whose an error is then, `timers` the clock. Every method takes the [`Bus`] that the
//! trunk belongs to.

mod action;
mod allowance;
mod attribution;
mod broker_input;
mod flow;
mod independent;
mod link;
mod link_end;
mod link_setup;
mod pressure;
mod room;
mod session_input;
mod sessions;
mod sharing;
mod slot;
#[cfg(test)]
mod tests;
mod timers;

use std::rc::Rc;
use std::time::Duration;

pub use action::{Action, Report};
pub use link::LinkId;
pub use sharing::{MoveReason, Moved};
pub use slot::{CloseReason, Traffic};

use crate::clock::Instant;
use crate::config::Delivery;
use crate::ledger::{Held, Ping, SessionId, Subscriptions};
use crate::net::{Outbox, Retention};
use crate::proto::connect::ConnectInfo;
use crate::proto::encode;
use crate::queue::Queue;
use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::roster::{BrokerId, Failure};
use crate::upstream::bus::{Bus, Pace, Turn};
use link::{Link, Phase};
use sessions::Sessions;
use slot::Slot;

/// A link's buffer beyond this stops the reads of the sessions that feed it, in bytes.
const LINK_FULL_BYTES: usize = 512 * 1024;

/// What one session may have unproven on a link on which others publish too, where the broker is
/// near (`Link::fair_bytes`): so much, and what one more read brings, may be ahead of theirs for
/// each that floods, in bytes.
const FAIR_BYTES: usize = 32 * 1024;

/// What a SUB or UNSUB counts as there, in bytes, where it is shorter: it costs natsmux and a
/// broker as much as a publish of this size.
const OPERATION_BYTES: usize = 512;

/// How much of what a component sends a trunk takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadAtMost {
    /// As much as there is.
    Any,
    /// So many bytes: others write on the same link, or lag.
    Fair(usize),
}

/// What the brokers think of the trunk's credentials.
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

/// A link that lived shorter than this counts as one of the attempts that failed: a broker
/// that accepts and hangs up must not be dialled in a tight loop.
const BRIEF: Duration = Duration::from_millis(100);

/// The attempts since a link was last live for more than [`BRIEF`].
#[derive(Debug, Default)]
struct Round {
    /// Since when a link is live again.
    live_since: Option<Instant>,
    /// What went wrong; mostly nothing did.
    failed: Option<Box<Failed>>,
}

#[derive(Debug, Default)]
struct Failed {
    /// Brokers that failed this trunk, apart from those that the roster calls dead.
    avoid: Vec<BrokerId>,
    /// Brokers that refused its credentials, the first text, and when that was (R15).
    refused_by: Vec<BrokerId>,
    refusal: Option<(Box<[u8]>, Instant)>,
    /// Attempts that failed.
    failures: u32,
    /// When to try again, where nothing else says.
    retry_at: Option<Instant>,
}

impl Round {
    /// An attempt failed; where a broker did, it isn't to be asked again for a while.
    fn fail(&mut self, broker: Option<BrokerId>) {
        let failed = self.failed.get_or_insert_default();
        failed.failures += 1;
        failed.avoid.extend(broker);
    }

    /// Attempts that failed since a link was live.
    fn failures(&self) -> u32 {
        self.failed.as_ref().map_or(0, |failed| failed.failures)
    }

    /// A broker refused the credentials.
    fn refuse(&mut self, broker: BrokerId, text: &[u8], now: Instant) {
        let failed = self.failed.get_or_insert_default();
        if !failed.refused_by.contains(&broker) {
            failed.refused_by.push(broker);
        }
        failed.refusal.get_or_insert_with(|| (text.into(), now));
    }

    /// A broker isn't to be asked again for a while.
    fn avoid(&mut self, broker: BrokerId) {
        self.failed.get_or_insert_default().avoid.push(broker);
    }

    /// The brokers that aren't.
    fn avoided(&self) -> impl Iterator<Item = BrokerId> {
        let failed = self.failed.iter();
        failed.flat_map(|failed| failed.avoid.iter().chain(&failed.refused_by).copied())
    }

    fn is_refused_by(&self, broker: BrokerId) -> bool {
        let failed = self.failed.as_ref();
        failed.is_some_and(|failed| failed.refused_by.contains(&broker))
    }

    /// Since when the credentials are refused.
    fn refused_since(&self) -> Option<Instant> {
        let (_, since) = self.failed.as_ref()?.refusal.as_ref()?;
        Some(*since)
    }

    fn take_refusal(&mut self) -> Option<Box<[u8]>> {
        let (text, _) = self.failed.as_mut()?.refusal.take()?;
        Some(text)
    }

    fn retry_at(&self) -> Option<Instant> {
        self.failed.as_ref()?.retry_at
    }

    /// Has those that are avoided asked again later, once; after `pause` of the attempts that
    /// failed.
    fn retry_later(&mut self, now: Instant, pause: impl FnOnce(u32) -> Duration) {
        if let Some(failed) = &mut self.failed
            && !failed.avoid.is_empty()
            && failed.retry_at.is_none()
        {
            failed.retry_at = Some(now + pause(failed.failures));
        }
    }

    /// A broker is asked at once.
    fn cancel_retry(&mut self) {
        if let Some(failed) = &mut self.failed {
            failed.retry_at = None;
        }
    }

    /// All that were avoided may be asked again.
    fn retry(&mut self) {
        if let Some(failed) = &mut self.failed {
            failed.retry_at = None;
            failed.avoid.clear();
        }
    }

    /// A link is live. What failed before is forgotten unless that is over soon.
    fn succeed(&mut self, now: Instant) {
        // A broker that hangs up soon is asked again at a steady pace: there may be no other.
        let avoid = self.failed.take().map_or(Vec::new(), |failed| failed.avoid);
        if !avoid.is_empty() {
            let failed = self.failed.get_or_insert_default();
            failed.avoid = avoid;
        }
        self.live_since = Some(now);
    }

    /// Another link is needed: a new round, where the last one's link lived for a while.
    fn begin(&mut self, now: Instant) {
        let long = |since: Instant| now.saturating_duration_since(since) >= BRIEF;
        if self.live_since.take().is_some_and(long) {
            *self = Self::default();
        }
    }

    fn forget_refusals(&mut self) {
        if let Some(failed) = &mut self.failed {
            failed.refused_by.clear();
            failed.refusal = None;
        }
    }
}

/// A planned change of link (R19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    reason: Failure,
    /// The PING on the old link that must be answered before the new one is dialled.
    after: Option<u64>,
}

/// The machine. See the module's documentation.
#[derive(Debug)]
pub struct Trunk {
    id: TrunkId,
    connect: Rc<ConnectInfo>,
    /// Whether there is a link to each of several brokers (R26-R32).
    independent: bool,
    /// Whether sessions of the same identity may join (R22).
    shared: bool,
    /// A broker took no more subscriptions when there were so many.
    crowded: Option<sharing::Crowded>,
    /// The session that got most when the broker closed a shared link, and when.
    greedy: Option<(SessionId, Instant)>,
    /// Since when a shared trunk has no session.
    idle_since: Option<Instant>,
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
    /// At most two: one to leave, one to join; or one for each of independent brokers.
    links: Vec<Link>,
    next_link: u32,
    next_ping: u64,
    /// Every PING of the publishing link up to this number was answered.
    answered: u64,
    round: Round,
    moving: Option<Move>,
    switch: Option<Box<independent::Switch>>,
    /// When the first target is chosen, whatever is on its way.
    choose_at: Option<Instant>,
    /// Whether it announces the host, and the last announcement that it made (R29).
    carries: bool,
    announced: u64,
    /// Of independent brokers, those that turned the trunk away.
    pauses: Vec<independent::Pause>,
    /// Since when there is no link that serves.
    needed_since: Option<Instant>,
    /// The last live link's broker, why it ended, and when.
    lost: Option<(BrokerId, Failure, Instant)>,
    /// What the driver's timer was last set for.
    timer: Option<Instant>,
    /// Silence is measured from here at the earliest, after a clock that jumped (R9).
    clock_floor: Option<Instant>,
    /// Whether any subscription has ever had a max: its count must be the broker's.
    any_limited: bool,
    /// Whether links aren't read (R33): the component has much to take, or a large message waits for
    /// room.
    stalled: bool,
    /// Since when the component has, and how fast it took what it had before.
    full_since: Option<Instant>,
    pace: Pace,
    /// Since when a place among the operations is to be marked by a PING (R23).
    unmarked: Option<Instant>,
    actions: Queue<Action>,
    scratch: Vec<u8>,
    /// The brokers refused the credentials for good.
    refused: bool,
    /// A broker refused them to a session that came later: nobody may join.
    disbelieved: bool,
    done: bool,
}

/// One session for monitoring.
#[derive(Debug)]
pub struct View<'a> {
    /// What it said in CONNECT.
    pub connect: &'a ConnectInfo,
    /// What it sent and got.
    pub traffic: Traffic,
    /// Bytes that it has not taken yet.
    pub pending_bytes: usize,
    /// Publishes that wait for a broker.
    pub held: u64,
    /// Live subscriptions.
    pub subscription_count: usize,
    /// The table that has them.
    pub subscriptions: &'a Subscriptions,
}

/// Numbers for monitoring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Sessions.
    pub sessions: u64,
    /// Live links.
    pub links: u64,
    /// Subscriptions.
    pub subscriptions: u64,
    /// Publishes that are held, or written to a live link and not yet fenced (R4).
    pub waiting: u64,
    /// Bytes of publishes that wait for a link.
    pub held_bytes: u64,
    /// Bytes in buffers, either way.
    pub buffered_bytes: u64,
}

impl Trunk {
    /// A trunk for sessions that connect as `connect`. It dials once a session is attached.
    pub fn new(id: TrunkId, connect: Rc<ConnectInfo>) -> Self {
        Self {
            id,
            connect,
            independent: false,
            shared: false,
            crowded: None,
            greedy: None,
            idle_since: None,
            connect_ok_owed: false,
            verdict: Verdict::Pending,
            ready: false,
            // Mostly one session and one link: room for four would be two kilobytes more.
            sessions: Sessions::new(false),
            subscriptions: Subscriptions::default(),
            orphans: Held::default(),
            charged: false,
            links: Vec::with_capacity(1),
            next_link: 0,
            next_ping: 1,
            answered: 0,
            round: Round::default(),
            moving: None,
            switch: None,
            choose_at: None,
            carries: false,
            announced: 0,
            pauses: Vec::new(),
            needed_since: None,
            lost: None,
            timer: None,
            clock_floor: None,
            any_limited: false,
            stalled: false,
            full_since: None,
            pace: Pace::default(),
            unmarked: None,
            actions: Queue::default(),
            scratch: Vec::new(),
            refused: false,
            disbelieved: false,
            done: false,
        }
    }

    /// The trunk's number.
    pub fn id(&self) -> TrunkId {
        self.id
    }

    /// What it sends as CONNECT.
    pub fn connect(&self) -> &ConnectInfo {
        &self.connect
    }

    /// A trunk that sessions of the same identity share, and that brokers know by `name`.
    pub fn shared(id: TrunkId, connect: &ConnectInfo, name: String) -> Self {
        let mut trunk = Self::new(id, Rc::new(sharing::as_shared(connect, name)));
        trunk.shared = true;
        trunk.sessions = Sessions::new(true);
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

    /// What goes to a session's component; `None` once it is detached.
    pub fn out(&mut self, session: SessionId) -> Option<&mut Outbox> {
        Some(&mut self.sessions.get_mut(session)?.out)
    }

    /// Tells the daemon's budget how much the component has not taken, after a flush (R25).
    pub fn account(&mut self, session: SessionId, bus: &Bus) {
        self.sessions.account(session, bus);
    }

    /// The session whose component lags most, and by how many bytes.
    pub fn slowest(&self) -> Option<(SessionId, usize)> {
        let open = self
            .sessions
            .iter()
            .filter(|(_, slot)| slot.closing.is_none());
        open.map(|(session, slot)| (session, slot.out.pending_bytes()))
            .max_by_key(|(_, pending)| *pending)
    }

    /// Closes a session whose component reads too slowly; what it has not taken is dropped.
    pub fn close_slow(&mut self, session: SessionId, bus: &Bus) {
        self.sessions.close_slow(session, bus);
    }

    /// What goes to a link's broker; `None` once it is closed.
    pub fn link_out(&mut self, link: LinkId) -> Option<&mut Outbox> {
        let at = self.link_index(link)?;
        Some(&mut self.links[at].out)
    }

    /// Why the driver must close a session, once its outbox is flushed.
    pub fn closing(&self, session: SessionId) -> Option<&CloseReason> {
        self.sessions.get(session)?.closing.as_deref()
    }

    /// Whether nothing that a session's component sends is looked at any more.
    pub fn is_ending(&self, session: SessionId) -> bool {
        let slot = self.sessions.get(session);
        slot.is_none_or(|slot| slot.closing.is_some() || slot.finishing.is_some())
    }

    /// Whether the driver may read from a session's component. Where not, the session is
    /// *parked*, and touched once that changes.
    pub fn wants_read(&mut self, session: SessionId, cx: &Turn<'_>) -> bool {
        let wants = self.has_room(session, cx);
        let live = self.open(cx.bus).is_some();
        self.sessions.park(session, !wants);
        if !wants && cx.bus.lags.is_any() {
            self.look_again(session, cx.now);
        }
        let Some(slot) = self.sessions.get_mut(session) else {
            return false;
        };
        // Only a full buffer without a link ends by time (R6); a full link by its own fate.
        if wants || live || !self.ready || slot.waits_by_itself() {
            slot.blocked_until = None;
        } else if slot.blocked_until.is_none() && cx.bus.settings.delivery == Delivery::AtMostOnce {
            let until = cx.now + cx.bus.settings.timings.block_for;
            slot.blocked_until = Some(until);
            self.sessions.note_timeout(until);
        }
        wants
    }

    /// Whether a session's next operation waits for an answer to those before it.
    pub fn is_gated(&self, session: SessionId) -> bool {
        let slot = self.sessions.get(session);
        slot.is_some_and(|slot| slot.gate.is_some())
    }

    /// Whether a session's component isn't read at present.
    pub fn is_parked(&self, session: SessionId) -> bool {
        let slot = self.sessions.get(session);
        slot.is_some_and(|slot| slot.parked)
    }

    /// Unparks the sessions that wait for room, after links were flushed or held publishes
    /// went out.
    pub fn unpark(&mut self, cx: &Turn<'_>) {
        if !self.sessions.take_any_parked() {
            return;
        }
        for session in self.sessions.ids() {
            if !self.sessions[session].parked {
                continue;
            }
            if self.has_room(session, cx) {
                self.sessions.release(session);
            } else {
                self.sessions.park(session, true);
            }
        }
    }

    /// Whether a parked session was released since the last call: its driver may read again.
    pub fn take_released(&mut self, session: SessionId) -> bool {
        let slot = self.sessions.get_mut(session);
        slot.is_some_and(|slot| std::mem::take(&mut slot.released))
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
        self.live().map(|at| self.links[at].broker)
    }

    /// What monitoring shows of one session.
    pub fn view(&self, session: SessionId) -> Option<View<'_>> {
        let slot = self.sessions.get(session)?;
        Some(View {
            connect: slot.label.as_deref().unwrap_or(&self.connect),
            traffic: slot.traffic,
            pending_bytes: slot.out.pending_bytes(),
            held: slot.held.messages(),
            subscription_count: match self.sessions.len() {
                1 => self.subscriptions.len(),
                _ => self.subscriptions.of(session, None).count(),
            },
            subscriptions: &self.subscriptions,
        })
    }

    /// Numbers for monitoring.
    pub fn gauges(&self) -> Gauges {
        let held = self.sessions.iter().map(|(_, slot)| &slot.held);
        let held = held.chain(std::iter::once(&self.orphans));
        let (messages, bytes) = held.fold((0, 0), |(messages, bytes), held| {
            (messages + held.messages(), bytes + held.bytes())
        });
        let unsettled: u64 = self.links.iter().map(|link| link.account.unsettled()).sum();
        let outboxes = self.sessions.iter().map(|(_, slot)| slot.out.held_bytes());
        let links = self.links.iter().map(|link| link.out.held_bytes());
        Gauges {
            sessions: self.sessions.len() as u64,
            links: self.links.iter().filter(|link| link.is_attached()).count() as u64,
            subscriptions: self.subscriptions.len() as u64,
            waiting: messages + unsettled,
            held_bytes: bytes as u64,
            buffered_bytes: (bytes + outboxes.chain(links).sum::<usize>()) as u64,
        }
    }

    /// How much of what a component sends may be read at once, in bytes: where others publish
    /// on the same link, theirs must not wait behind too much.
    pub fn read_at_most(&self, cx: &Turn<'_>) -> ReadAtMost {
        let contended = |link: &Link| link.phase == Phase::Live && link.is_contended(cx.now);
        match cx.bus.lags.is_any() || self.shared && self.links.iter().any(contended) {
            true => ReadAtMost::Fair(FAIR_BYTES),
            false => ReadAtMost::Any,
        }
    }

    /// Whether a session has subscribed or unsubscribed where others may publish at any time. A
    /// broker takes so long for a window full of that (`Link::is_overrun`) that nobody should begin
    /// behind it.
    fn operates_beside_others(&self, slot: &Slot) -> bool {
        self.shared && self.sessions.len() > 1 && slot.subs_covered_by > self.answered
    }

    /// Whether a session that floods a link isn't read until the next fence is answered: where it
    /// is alone, nobody waits behind it.
    fn must_prove_soon(&self, link: &Link, now: Instant) -> bool {
        self.sessions.len() > 1 && link.must_prove_soon(now)
    }

    fn has_room(&self, session: SessionId, cx: &Turn<'_>) -> bool {
        let Some(slot) = self.sessions.get(session) else {
            return false;
        };
        if !self.ready || slot.waits_by_itself() || self.is_slowed_down(slot, cx) {
            return false;
        }
        match self.open(cx.bus) {
            Some(at) => {
                let link = &self.links[at];
                let out = &link.out;
                let is_bounded = link.is_contended(cx.now) || self.operates_beside_others(slot);
                // Where nothing more is to come, what was counted is settled, wherever that was.
                if is_bounded
                    && link.awaits_proof()
                    && slot.unproven.bytes(self.answered) > link.fair_bytes()
                {
                    return false;
                }
                // With at-least-once, what was written stays in memory until it is proven.
                out.pending_bytes() < LINK_FULL_BYTES
                    && !link.is_overrun()
                    && out.held_bytes() < cx.bus.settings.limits.publish_buffer
            }
            None if slot.dropping => true,
            None => Self::may_hold(slot, cx.bus),
        }
    }

    /// Whether more of a session's publishes may wait for a link: within its own bound, and its
    /// share of the daemon's (R6, R34).
    fn may_hold(slot: &Slot, bus: &Bus) -> bool {
        let most = bus.settings.limits.publish_buffer;
        slot.held.bytes() < most.min(bus.budgets.held.share())
    }

    /// The link that publishes may be written to now: live, not suspect (R8), and not about to
    /// be left (R30).
    fn open(&self, bus: &Bus) -> Option<usize> {
        let live = self.live().filter(|_| self.switch.is_none());
        live.filter(|&at| !self.is_suspect(at, bus))
    }

    /// Whether a link waits to be proven: its broker is suspect, and nothing that was asked
    /// since then was answered.
    fn is_suspect(&self, at: usize, bus: &Bus) -> bool {
        let link = &self.links[at];
        let since = bus.liveness.suspect_since(link.broker);
        since.is_some_and(|since| link.proven_at.is_none_or(|proven| proven < since))
    }

    /// The link that publishes go to, suspect or not.
    fn live(&self) -> Option<usize> {
        if self
            .moving
            .is_some_and(|planned| planned.reason == Failure::NewConnect)
        {
            return None;
        }
        self.links.iter().position(|link| link.phase == Phase::Live)
    }

    fn link_index(&self, id: LinkId) -> Option<usize> {
        self.links.iter().position(|link| link.id == id)
    }

    fn retention(&self, bus: &Bus) -> Retention {
        match bus.settings.delivery {
            // Where several sessions write, what was written tells whose an error is.
            Delivery::AtMostOnce if !self.shared => Retention::UntilWritten,
            _ => Retention::UntilConfirmed,
        }
    }

    /// Tells a session's component what natsmux answers by itself.
    pub fn tell(&mut self, session: SessionId, line: &[u8], bus: &Bus) {
        self.sessions.deliver(session, &[line], bus);
    }

    fn push_ping(&mut self, at: usize, asker: Option<SessionId>, cx: &mut Turn<'_>) -> u64 {
        let seq = self.next_ping;
        self.next_ping += 1;
        let link = &mut self.links[at];
        link.out.push(encode::PING);
        link.pings.push(Ping {
            seq,
            asker,
            offset: link.out.end(),
            publishes: link.account.appended,
            at: cx.now,
        });
        link.unfenced_bytes = 0;
        link.unfenced_messages = 0;
        link.unfenced_since = None;
        link.last_ping_at = cx.now;
        if asker.is_none() {
            cx.bus.counters.fences += 1;
        }
        seq
    }
}
