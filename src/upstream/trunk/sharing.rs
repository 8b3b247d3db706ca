//! A trunk that several sessions share (R20, R22-R25): who may, how one goes to another trunk,
//! and how long a trunk without sessions stays.

use std::rc::Rc;
use std::time::Duration;

use super::attribution::Wanted;
use super::link::{Link, LinkId};
use super::slot::{Gate, Leaving, Slot, Unproven};
use super::{CloseReason, Trunk};
use crate::clock::Instant;
use crate::ledger::{Carried, SessionId, UpstreamSid};
use crate::net::Outbox;
use crate::proto::connect::ConnectInfo;
use crate::proto::encode;
use crate::upstream::brokers::roster::{BrokerId, Failure};
use crate::upstream::bus::{Bus, Turn};

/// The `lang` of a trunk's own CONNECT.
const LANG: &str = "natsmux";

/// A session between two trunks.
#[derive(Debug)]
pub struct Moved {
    slot: Slot,
    subscriptions: Vec<Carried>,
}

/// State of a trunk that sessions share.
#[derive(Debug, Default)]
pub(super) struct SharedState {
    /// A broker took no more subscriptions when there were so many.
    pub(super) crowded: Option<Crowded>,
    /// The session that got most when the broker closed a link, and when.
    greedy: Option<(SessionId, Instant)>,
    /// Since when no session is here.
    idle_since: Option<Instant>,
    /// A broker refused the credentials to a session that came later: nobody may join.
    disbelieved: bool,
}

/// A broker took no more subscriptions on one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crowded {
    /// When there were so many.
    pub(super) most: usize,
    /// Which broker; another may take more.
    pub(super) broker: BrokerId,
    /// Since when; its limit may have been raised meanwhile.
    pub(super) since: Instant,
}

/// Shared trunks without sessions that a bus keeps for `trunk_idle_timeout`; with more, each stays
/// but for this long.
const IDLE_TRUNKS_MOST: usize = 16;
const IDLE_BRIEFLY: Duration = Duration::from_millis(100);

/// How long a broker's limit is believed.
pub(super) const CROWDED_FOR: Duration = Duration::from_secs(600);

/// Why a session leaves a trunk that it shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReason {
    /// Its component sent a second CONNECT; whether its subscriptions stay.
    Reconnect {
        /// As the broker's version does.
        keeps: bool,
    },
    /// The broker takes no more subscriptions on one connection.
    Crowded,
    /// It gets more than the broker can write to a connection that others share.
    Greedy,
}

/// Bytes that a session has got on a link at least, and more than all others together, when the
/// broker closes it: the second time within this, that is its doing.
const GREEDY_BYTES: u64 = 1024 * 1024;
const GREEDY_WITHIN: Duration = Duration::from_secs(60);

pub(super) fn as_shared(connect: &ConnectInfo, name: String) -> ConnectInfo {
    ConnectInfo {
        name: Some(name),
        lang: Some(LANG.to_owned()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        protocol: 1,
        ..connect.clone()
    }
}

impl Trunk {
    /// Whether sessions of one identity share it.
    pub fn is_shared(&self) -> bool {
        self.sharing.is_some()
    }

    /// Whether another session may join.
    pub fn takes_sessions(&self) -> bool {
        // A limit was met with so many: there is room again when there are clearly fewer.
        let has_room = |crowded: Crowded| self.subscriptions.len() < crowded.most * 9 / 10;
        let is_open =
            |sharing: &SharedState| sharing.crowded.is_none_or(has_room) && !sharing.disbelieved;
        self.sharing.as_deref().is_some_and(is_open) && !self.refused && !self.done
    }

    /// Number of sessions.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Takes a session that shares this trunk; `out` is its outbox so far.
    pub fn join(&mut self, out: Outbox, connect: &Rc<ConnectInfo>, cx: &mut Turn<'_>) -> SessionId {
        let session = self.attach(out, false, cx);
        self.welcome(session, Some(Rc::clone(connect)), cx);
        session
    }

    fn welcome(&mut self, session: SessionId, label: Option<Rc<ConnectInfo>>, cx: &mut Turn<'_>) {
        self.note_idle(None, cx.bus);
        // Its CONNECT was accepted here before; without a broker, R16 says who may go on.
        let live = self.links.any_attached();
        let no_auth = cx.bus.roster().no_auth_anywhere();
        let admitted = || {
            let admit = cx.bus.settings().admit;
            cx.bus
                .admission()
                .admits(&self.connect, admit, no_auth, cx.now)
        };
        // A verdict of long ago may not hold any more.
        let believed = cx.bus.settings().believed_for;
        let is_old = self.is_shared()
            && cx.bus.roster().auth_required()
            && !cx.bus.admission().is_fresh(&self.connect, believed, cx.now);
        let unverified = self.ready && ((!live && !admitted()) || (live && is_old));
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.unverified = unverified;
            slot.label = label;
        }
        if unverified && live {
            self.check_credentials(cx);
        }
        // Each hears for itself what its options lack, whoever came first.
        if self.ready
            && let Some(id) = self.live()
            && let Some(text) = self.connect.refusal(self.header_support(id, cx.bus))
        {
            self.sessions
                .close(session, CloseReason::Refused(text.as_bytes().into()));
        }
    }

    /// Asks the broker in use for its verdict on the credentials, on a link of its own.
    pub(super) fn check_credentials(&mut self, cx: &mut Turn<'_>) {
        let Some(id) = self.live() else {
            return;
        };
        if self.links.any(|link| link.is_check) {
            return;
        }
        let broker = self.links[id].broker;
        cx.bus.roster_mut().begin_dial(broker);
        let check = self.dial(broker, cx);
        self.links[check].is_check = true;
    }

    /// The broker has accepted the credentials once more.
    pub(super) fn checked(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        cx.bus.admission_mut().remember(&self.connect, cx.now);
        self.drop_link(id, cx.bus);
        self.verify_all();
    }

    /// The broker refuses them now: those that came meanwhile hear it, and nobody else joins.
    pub(super) fn disbelieve(&mut self, id: LinkId, text: &[u8], bus: &mut Bus) {
        bus.admission_mut().forget(&self.connect);
        self.drop_link(id, bus);
        if let Some(sharing) = &mut self.sharing {
            sharing.disbelieved = true;
        }
        for session in self.sessions.ids() {
            if self.sessions[session].unverified {
                self.sessions
                    .close(session, CloseReason::Refused(text.into()));
            }
        }
    }

    /// Whether a session's second CONNECT must wait: what came before is answered here first.
    /// Then the session goes on under the new options, on another trunk.
    pub fn must_depart(&mut self, session: SessionId, cx: &mut Turn<'_>) -> bool {
        if self.waits_for_move(session) {
            return true;
        }
        let Some(slot) = self.sessions.get_mut(session) else {
            return false;
        };
        if slot.leaving.is_some() {
            return slot.gate.is_shut();
        }
        let count = self.subscriptions.len();
        if let Some(until) = slot.throttle.note_reconnect(count, cx.now) {
            self.sessions.note_timeout(until);
            return true;
        }
        if !self.is_shared() {
            return false;
        }
        self.depart(session, Leaving::Reconnects, cx);
        self.is_gated(session)
    }

    /// Ends a session's subscriptions here, and has it wait until the broker has answered.
    pub(super) fn depart(&mut self, session: SessionId, why: Leaving, cx: &mut Turn<'_>) {
        self.subscribe_ending(session, None, cx.now);
        let covered_by = self.links.next_ping();
        let unsubscribe = self.subscriptions.depart(session, covered_by);
        self.send_unsubs(&unsubscribe, cx.now);
        let has = |link: &Link| link.takes_subscriptions() || link.is_attached();
        let has_any = self.links.any(has);
        for upstream in unsubscribe {
            if has_any {
                self.retire_on_links(upstream, covered_by);
            } else {
                self.subscriptions.forget(upstream);
            }
        }
        let gate = self.ping_everywhere(cx);
        let Some(slot) = self.sessions.get_mut(session) else {
            return;
        };
        slot.leaving = Some(why);
        slot.gate = gate.map_or(Gate::Open, Gate::Shut);
        self.sessions.await_pong(session);
        if gate.is_none() {
            self.sessions.release(session);
        }
    }

    /// Why a session must go to another trunk now: to one of its identity, since this one's broker
    /// takes no more subscriptions on one connection, or to one of its own.
    pub fn reason_to_leave(&self, session: SessionId) -> Option<MoveReason> {
        let slot = self.sessions.get(session)?;
        let may_go = !slot.gate.is_shut() && !slot.is_ending();
        match slot.leaving.filter(|_| may_go)? {
            Leaving::Crowded => Some(MoveReason::Crowded),
            Leaving::Greedy => Some(MoveReason::Greedy),
            Leaving::Reconnects => None,
        }
    }

    /// A link goes live: what sessions get is counted anew.
    pub(super) fn count_anew(&mut self) {
        if self.is_shared() {
            for slot in self.sessions.iter_mut() {
                slot.got_before = slot.traffic.out_bytes;
            }
        }
    }

    /// A broker that closes a shared link may do so for one session: as a slow consumer, since it
    /// gets more than all others together, and more than can be written. Names it the second time.
    pub(super) fn find_greedy(&mut self, failure: Failure, now: Instant) -> Option<SessionId> {
        let is_closed = matches!(
            failure,
            Failure::Closed | Failure::Reset | Failure::LinkError
        );
        if !is_closed || !self.is_shared() || self.sessions.len() < 2 {
            return None;
        }
        let got = |slot: &Slot| slot.traffic.out_bytes.saturating_sub(slot.got_before);
        let total: u64 = self.sessions.iter().map(|(_, slot)| got(slot)).sum();
        let (session, most) = self.sessions.iter().max_by_key(|(_, slot)| got(slot))?;
        if got(most) < GREEDY_BYTES.max(total / 2) {
            return None;
        }
        let stays = most.leaving.is_some() || most.is_ending();
        let before = self.sharing.as_mut()?.greedy.replace((session, now));
        let again = before.is_some_and(|(other, at)| {
            other == session && now.saturating_duration_since(at) < GREEDY_WITHIN
        });
        (again && !stays).then_some(session)
    }

    /// A broker takes no more subscriptions on this connection: those whose SUBs were too many go
    /// elsewhere with all that they have.
    pub(super) fn crowd_out(&mut self, id: LinkId, refused: &[UpstreamSid], cx: &mut Turn<'_>) {
        let most = self.subscriptions.len().saturating_sub(refused.len());
        let broker = self.links[id].broker;
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        let known = sharing.crowded.filter(|crowded| crowded.broker == broker);
        let most = known.map_or(most, |known| known.most.min(most));
        sharing.crowded = Some(Crowded {
            most,
            broker,
            since: cx.now,
        });
        let mut meant: Vec<SessionId> = refused
            .iter()
            .flat_map(|sid| self.subscriptions.sessions_of(*sid))
            .collect();
        meant.sort_unstable();
        meant.dedup();
        for session in meant {
            let slot = self.sessions.get(session);
            if slot.is_some_and(|slot| slot.leaving.is_none() && !slot.is_closing()) {
                self.depart(session, Leaving::Crowded, cx);
            }
        }
    }

    /// Since when no session is here; `None`: one is.
    pub(super) fn note_idle(&mut self, since: Option<Instant>, bus: &Bus) {
        if let Some(sharing) = &mut self.sharing {
            bus.note_idle(sharing.idle_since.is_some(), since.is_some());
            sharing.idle_since = since;
        }
    }

    /// Takes a session out, to be [taken in](Trunk::take_in) by another trunk.
    pub fn take_out(&mut self, session: SessionId, cx: &mut Turn<'_>) -> Option<Moved> {
        let mut slot = self.sessions.remove(session, cx.bus)?;
        let subscriptions = self.subscriptions.take_session(session);
        self.forget_session(session);
        // The next link owes what its last link did.
        slot.debts.carry_over();
        (slot.subs_covered_by, slot.publishes_covered_by) = (0, 0);
        // PINGs of this trunk: the next one counts anew.
        slot.unproven = Unproven::default();
        (slot.gate, slot.leaving) = (Gate::Open, None);
        (slot.touched, slot.unverified) = (false, false);
        if let Some(end) = slot.finishing_mut() {
            // A PING of this trunk: the next one asks anew.
            (end.after, end.until) = (None, cx.now + super::FINISH_WITHIN);
        }
        self.note_departure(cx);
        Some(Moved {
            slot,
            subscriptions,
        })
    }

    /// Takes in a session from another trunk of the same bus; `keeps` says whether it keeps its
    /// subscriptions.
    pub fn take_in(
        &mut self,
        moved: Moved,
        connect: &Rc<ConnectInfo>,
        keeps: bool,
        cx: &mut Turn<'_>,
    ) -> SessionId {
        let mut slot = moved.slot;
        // They were published under the former options.
        slot.debts.unasked = slot.held.messages();
        let session = self.attach_slot(slot, true, cx);
        let label = self.is_shared().then(|| Rc::clone(connect));
        self.welcome(session, label, cx);
        if self.sessions[session].debts.has_pongs() {
            self.arm_pong_hold(session, cx);
        }
        let oks = self.sessions[session].debts.oks;
        // One that ends has unsubscribed all.
        let keeps = keeps && !self.sessions[session].is_ending();
        for one in moved.subscriptions.iter().filter(|_| keeps) {
            let group = one.queue_group.as_deref();
            self.subscribe(session, &one.subject, group, &one.sid, cx);
            self.subscriptions
                .note_delivered(session, &one.sid, one.delivered);
            if one.max > 0 {
                self.unsubscribe(session, &one.sid, Some(one.max), cx);
            }
        }
        // The component has had its answers to these long ago (R20).
        self.sessions[session].debts.oks = oks;
        session
    }

    /// A session is not here any more, and its number may soon be another's.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.subscriptions.mute_session(session);
        if let Some(pulls) = &mut self.pulls {
            pulls.forget_session(session);
        }
        for link in self.links.iter_mut() {
            link.pings.disown(session);
            if let Some(owners) = &mut link.owners {
                owners.disown(session);
            }
        }
    }

    /// Finds the session of a publish that a broker answered without naming anybody. The outer
    /// `None`: nobody published such a thing.
    pub(super) fn owner_of(
        &mut self,
        id: LinkId,
        wanted: Wanted<'_>,
        now: Instant,
    ) -> Option<Option<SessionId>> {
        let link = &mut self.links[id];
        let owners = link.owners.as_mut()?;
        if let Some(found) = owners.find(&link.out, wanted, now) {
            return Some(found);
        }
        // A broker may name what a mapping made of the subject. The error came before the PONG of
        // the next fence.
        let upto = link
            .pings
            .oldest()
            .map_or(link.out.end(), |ping| ping.offset);
        let only = owners.only_publisher(upto);
        if only.is_none() {
            owners.isolate(now);
        }
        only.map(Some)
    }

    /// UNSUBs, wherever the ledger is in place.
    pub(super) fn send_unsubs(&mut self, upstreams: &[UpstreamSid], now: Instant) {
        if upstreams.is_empty() {
            return;
        }
        let covered_by = self.links.next_ping();
        let mut frames = std::mem::take(&mut self.scratch);
        for upstream in upstreams {
            encode::unsub(&mut frames, upstream.text().as_bytes(), None);
        }
        for link in self.links.subscribed_mut() {
            link.push_unsubs(&frames, upstreams.len(), covered_by, now);
            for upstream in upstreams {
                link.operations.unsubscribe(*upstream, covered_by);
            }
        }
        frames.clear();
        self.scratch = frames;
    }

    /// When a shared trunk without sessions ends, unless it has something to do then.
    pub(super) fn idle_until(&self, bus: &Bus) -> Option<Instant> {
        let keep = bus.settings().timings.trunk_idle_timeout;
        let since = self
            .sharing
            .as_ref()?
            .idle_since
            .filter(|_| !keep.is_zero())?;
        // Many of them would use up descriptors: the newest have the least to lose.
        let keep = if bus.idle_trunks() > IDLE_TRUNKS_MOST {
            keep.min(IDLE_BRIEFLY)
        } else {
            keep
        };
        (!self.owes()).then_some(since + keep)
    }

    /// Whether it stays although no session is here.
    pub(super) fn stays_idle(&self, cx: &Turn<'_>) -> bool {
        let over = |until: Instant| until <= cx.now;
        self.is_shared() && !self.refused && !self.idle_until(cx.bus).is_some_and(over)
    }

    /// Whether publishes wait for a broker, or for its proof.
    pub(super) fn owes(&self) -> bool {
        let unsettled = |link: &Link| link.account.unsettled() > 0;
        !self.orphans.is_empty() || (!self.refused && self.links.any(unsettled))
    }
}
