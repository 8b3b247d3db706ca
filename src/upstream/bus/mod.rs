//! The bus, which its trunks share: settings, roster, barrier, admission, counters and the daemon's
//! buffer budget.
//!
//! A trunk gets the bus as an argument of every call, so the pure machines need no shared
//! ownership, and a simulation holds one bus per daemon.

mod announcing;
pub mod barrier;
mod budget;
mod carriers;
mod connect_cache;
mod dial_queue;
pub mod failover_report;
mod fence_rate;
pub mod lags;
mod move_queue;
mod outage;
mod pause;
mod questions;
pub(crate) mod room;
mod settings;
mod tracked;
mod turn;
mod watching;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use crate::clock::Instant;
use crate::config::Signed;
use crate::identity::Identities;
use crate::ledger::Settled;
use crate::proto::connect::ConnectInfo;
use crate::telemetry::{Counters, Observed};
use crate::upstream::brokers::admission::Admission;
use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::presence::Presence;
use crate::upstream::brokers::roster::{Broker, BrokerId, Cause, Health, Pick, Roster};
use crate::upstream::brokers::trouble::IdentityDigest;
pub use budget::{Budget, Budgets, Charge};
pub use room::Pace;
pub use settings::Settings;
pub use turn::Turn;

use barrier::Barrier;
use carriers::Carriers;
use connect_cache::ConnectCache;
use dial_queue::DialQueue;
use failover_report::{Failover, Failovers, LostLink, TOGETHER};
use fence_rate::FenceRate;
use lags::Lags;
pub(super) use move_queue::MovePlace;
use move_queue::MoveQueue;
use outage::Outage;
pub(super) use questions::QuestionPlace;
use room::{RoomPlace, RoomQueue};
use tracked::Tracked;

/// The state that the trunks of a bus share.
#[derive(Debug)]
pub struct Bus {
    settings: Settings,
    brokers: Brokers,
    trunks: Trunks,
    counters: Counters,
    observed: Observed,
    budgets: Budgets,
    identities: Identities,
    /// Publishes wait until then (R42).
    paused_until: Option<Instant>,
}

/// Facts about the brokers, whichever worker's trunks ask.
#[derive(Debug)]
struct Brokers {
    roster: Tracked<Roster>,
    presence: Presence,
    admission: Admission,
    /// Trunks that replay, for which others wait (R14).
    barrier: Barrier,
    /// For the operator.
    failovers: Failovers,
    fence_rate: FenceRate,
    outage: Outage,
    /// Whether the operator knows that PONGs of this outage are unproven (R3).
    unproven_said: bool,
}

/// The trunks of one worker, by what they wait for.
#[derive(Debug, Default)]
struct Trunks {
    /// CONNECTs of the sessions.
    connects: ConnectCache,
    /// Components that lag on shared links (R33).
    lags: Lags,
    /// Shared trunks without sessions.
    idle: Cell<usize>,
    /// They wait for a change of the roster.
    waiting: BTreeSet<TrunkId>,
    at_barrier: BTreeSet<TrunkId>,
    carriers: Carriers,
    dial_queue: DialQueue,
    moves: MoveQueue,
    /// Each question that is under way has a clone.
    questions: Rc<()>,
    rooms: RoomQueue,
    /// They are to look again.
    woken: Vec<TrunkId>,
}

impl Bus {
    /// A bus without trunks.
    pub fn new(
        settings: Settings,
        roster: Roster,
        admission: Admission,
        budgets: Budgets,
        now: Instant,
    ) -> Self {
        Self {
            settings,
            brokers: Brokers {
                roster: Tracked::new(roster),
                presence: Presence::new("", ""),
                admission,
                barrier: Barrier::default(),
                failovers: Failovers::default(),
                fence_rate: FenceRate::new(now),
                outage: Outage::default(),
                unproven_said: false,
            },
            trunks: Trunks::default(),
            counters: Counters::default(),
            observed: Observed::default(),
            budgets,
            identities: Identities::default(),
            paused_until: None,
        }
    }

    /// Whom natsmux is to brokers, and for whom.
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// Takes other identities: none of those before.
    pub fn set_identities(&mut self, identities: Identities) {
        self.identities = identities;
    }

    /// Whom natsmux is to brokers, and for whom, to change it.
    pub fn identities_mut(&mut self) -> &mut Identities {
        &mut self.identities
    }

    /// Whether components may sign for brokers (R40): as far as is known, these ask for signatures.
    pub fn relays_signatures(&self) -> bool {
        let roster = self.roster();
        let asks = !roster.was_seen() || roster.infos().any(|info| info.nonce.is_some());
        self.settings.signed == Signed::Relay && roster.auth_required() && asks
    }

    /// Whether components are asked for credentials.
    pub fn auth_required(&self) -> bool {
        self.identities.need_credentials() || self.roster().auth_required()
    }

    /// Returns the part of the configuration that the machines read.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes another configuration (reload).
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// The brokers.
    pub fn roster(&self) -> &Roster {
        &self.brokers.roster
    }

    /// The brokers, to change what is known of them: trunks that wait may be woken by it.
    pub fn roster_mut(&mut self) -> &mut Roster {
        &mut self.brokers.roster
    }

    /// Returns what hosts have told each other (R29).
    pub fn presence(&self) -> &Presence {
        &self.brokers.presence
    }

    /// Returns what hosts have told each other, to change it.
    pub fn presence_mut(&mut self) -> &mut Presence {
        &mut self.brokers.presence
    }

    /// Returns the credentials that brokers have accepted (R16).
    pub fn admission(&self) -> &Admission {
        &self.brokers.admission
    }

    /// Returns the credentials that brokers have accepted, to change them.
    pub fn admission_mut(&mut self) -> &mut Admission {
        &mut self.brokers.admission
    }

    /// Everything that is counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Everything that is counted, to count more.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// How long things took, and why they happened.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// How long things took, and why they happened, to note more.
    pub fn observed_mut(&mut self) -> &mut Observed {
        &mut self.observed
    }

    /// Buffers, shared with the other buses.
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Components that lag on shared links (R33).
    pub fn lags(&self) -> &Lags {
        &self.trunks.lags
    }

    /// Whether trunks replay for which others wait (R14).
    pub fn has_replays(&mut self) -> bool {
        !self.brokers.barrier.is_open(0)
    }

    /// Trunks that replay.
    pub(super) fn replaying(&self) -> usize {
        self.brokers.barrier.replaying()
    }

    /// A trunk is about to replay: others wait for it (R14).
    pub(super) fn join_barrier(&mut self) {
        self.brokers.barrier.join();
    }

    /// A CONNECT that is equal to `connect`, kept once for all that are.
    pub fn share_connect(&mut self, connect: ConnectInfo) -> Rc<ConnectInfo> {
        self.trunks.connects.share(connect)
    }

    /// Shared trunks without sessions.
    pub(super) fn idle_trunks(&self) -> usize {
        self.trunks.idle.get()
    }

    /// A shared trunk has no session from now on, or has one again.
    pub(super) fn note_idle(&self, was_idle: bool, is_idle: bool) {
        let others = self.trunks.idle.get() - usize::from(was_idle);
        self.trunks.idle.set(others + usize::from(is_idle));
    }

    /// A trunk has a live link again behind a failover, and told it so much.
    pub(super) fn note_attached(
        &mut self,
        broker: BrokerId,
        replayed: u64,
        held: u64,
        now: Instant,
    ) {
        self.brokers.failovers.attached(broker, replayed, held, now);
    }

    /// A trunk ends before its failover is over.
    pub(super) fn note_gone(&mut self) {
        self.brokers.failovers.gone();
    }

    /// Takes the trunks whose wait may be over. The driver gives each a
    /// [`Trunk::handle_wake`](super::Trunk::handle_wake).
    pub fn take_woken(&mut self) -> Vec<TrunkId> {
        if self.brokers.roster.take_renewed() && self.brokers.presence.doubt_routes() {
            self.brokers.roster.note_change();
        }
        if self.brokers.roster.take_steered() {
            self.trunks
                .woken
                .extend(self.brokers.roster.leaving_trunks());
        }
        self.trunks.woken.extend(self.brokers.roster.take_revised());
        self.wake_movers();
        if self.brokers.roster.take_changed() {
            self.trunks
                .woken
                .extend(std::mem::take(&mut self.trunks.waiting));
        }
        std::mem::take(&mut self.trunks.woken)
    }

    /// Whether something may have come up since [`Bus::mark_seen`] that concerns the whole bus.
    pub(super) fn has_stirred(&self) -> bool {
        Tracked::is_changed(&self.brokers.roster)
            || !self.trunks.woken.is_empty()
            || self.brokers.failovers.is_open()
            || self.has_outage_news()
            || self.has_free_moves()
            || self.settings.is_independent()
    }

    /// All of that was looked at.
    pub(super) fn mark_seen(&mut self) {
        Tracked::mark_seen(&mut self.brokers.roster);
    }

    pub(super) fn pick(
        &mut self,
        trunk: TrunkId,
        identity: IdentityDigest,
        avoid: &[BrokerId],
        now: Instant,
    ) -> Pick {
        let pick = self.brokers.roster.pick(identity, avoid, now);
        match pick {
            Pick::Dial(_) => self.trunks.dial_queue.leave(trunk),
            Pick::Queue => self.trunks.dial_queue.enter(trunk, identity),
            Pick::Wait => {
                self.trunks.waiting.insert(trunk);
            }
        }
        pick
    }

    /// A trunk had its chance to dial: a turn that it didn't take is the next one's.
    pub(super) fn pass_turn(&mut self, trunk: TrunkId) {
        let next = self.trunks.dial_queue.pass(trunk);
        self.trunks.woken.extend(next);
    }

    /// The brokers that a trunk dials now that has a link to each of `has`. It hears of every
    /// change of the roster.
    pub(super) fn pick_all(
        &mut self,
        trunk: TrunkId,
        identity: IdentityDigest,
        has: &[BrokerId],
        now: Instant,
    ) -> Vec<BrokerId> {
        let (dials, waits) = self.brokers.roster.pick_all(identity, has, now);
        if waits {
            self.trunks.dial_queue.enter(trunk, identity);
        } else {
            self.trunks.dial_queue.leave(trunk);
        }
        self.trunks.waiting.insert(trunk);
        dials
    }

    /// Picks a broker where one link is enough.
    pub(super) fn pick_one(
        &mut self,
        trunk: TrunkId,
        identity: IdentityDigest,
        avoid: &[BrokerId],
        now: Instant,
    ) -> Vec<BrokerId> {
        let pick = self.pick(trunk, identity, avoid, now);
        self.trunks.waiting.insert(trunk);
        match pick {
            Pick::Dial(broker) => vec![broker],
            Pick::Queue | Pick::Wait => Vec::new(),
        }
    }

    pub(super) fn dial_ended(&mut self, broker: BrokerId) {
        self.brokers.roster.dial_ended(broker);
        let next = self.trunks.dial_queue.call_next();
        self.trunks.woken.extend(next);
        if self.brokers.roster.has_turn(broker) {
            // Its verdicts are quick: there is room for one more.
            let next = self.trunks.dial_queue.call_next();
            self.trunks.woken.extend(next);
        }
    }

    pub(super) fn wait_at_barrier(&mut self, trunk: TrunkId) {
        self.trunks.at_barrier.insert(trunk);
    }

    pub(super) fn leave_barrier(&mut self) {
        self.brokers.barrier.leave();
        self.check_barrier();
    }

    /// When a trunk whose replay is fenced may publish; `None`: now (R14).
    pub(super) fn barrier_opens_at(&mut self, now: Instant) -> Option<Instant> {
        let stragglers = self.stragglers();
        let limit = self.settings.timings.replay_barrier;
        self.brokers.barrier.opens_at(stragglers, now, limit)
    }

    fn check_barrier(&mut self) {
        let stragglers = self.stragglers();
        if self.brokers.barrier.is_open(stragglers) {
            self.trunks
                .woken
                .extend(std::mem::take(&mut self.trunks.at_barrier));
        }
    }

    /// Trunks that are still attached to a broker that is down.
    fn stragglers(&self) -> usize {
        let down = |broker: &Broker| broker.health() == Health::Down;
        let brokers = self
            .brokers
            .roster
            .brokers()
            .filter(|(_, broker)| down(broker));
        brokers.map(|(id, _)| self.watch(id).attached()).sum()
    }

    /// A trunk's live link to this broker is gone, and left `settled`. Returns whether it is
    /// the first of a failover.
    pub(super) fn note_lost(
        &mut self,
        broker: BrokerId,
        cause: Cause,
        last_read: Instant,
        settled: &Settled,
        in_doubt: u64,
        now: Instant,
    ) -> bool {
        let link = LostLink {
            broker,
            cause,
            last_read,
            moved: settled.moved,
            in_doubt,
            repeated: settled.repeated,
            confirmed: self.counters.confirmed,
        };
        self.brokers.failovers.lost(link, now)
    }

    /// The sum of the failover that is over, or takes long, for the operator.
    pub fn poll_failover(&mut self, now: Instant) -> Option<Failover> {
        // A link to an independent broker stays where publishes have gone.
        let leaving = self
            .brokers
            .failovers
            .leaving()
            .filter(|_| !self.settings.is_independent());
        let staying = leaving.map_or(0, |broker| self.watch(broker).attached());
        let confirmed = self.counters.confirmed;
        // There each trunk goes on at once, and they don't notice together.
        let quiet = if self.settings.is_independent() {
            TOGETHER
        } else {
            Duration::ZERO
        };
        let report = self
            .brokers
            .failovers
            .poll_report(confirmed, staying, quiet, now)?;
        if report.complete {
            self.observed.failover_causes.count(report.cause.as_str());
            if report.attached > 0 {
                self.observed.failovers.observe(report.took);
            }
            if !report.cause.is_planned() {
                self.observed.detections.observe(report.detection);
            }
        }
        Some(report)
    }

    /// PONGs were released without proof. Returns whether they are the first of an outage.
    pub(super) fn note_unproven(&mut self, pongs: u64) -> bool {
        self.counters.pongs_unproven += pongs;
        !std::mem::replace(&mut self.brokers.unproven_said, true)
    }

    /// Forgets a trunk that is done.
    pub(super) fn remove(&mut self, trunk: TrunkId) {
        self.trunks.waiting.remove(&trunk);
        self.trunks.at_barrier.remove(&trunk);
        self.pass_turn(trunk);
        self.trunks.dial_queue.leave(trunk);
    }

    /// Takes room in `max_pending_total` for a message of `bytes`, which a trunk has waited for
    /// since `place` says; `None` while there is none.
    pub(super) fn take_room(
        &mut self,
        place: RoomPlace,
        bytes: usize,
        now: Instant,
    ) -> Option<Charge> {
        let budget = &self.budgets.pending;
        let charge = self.trunks.rooms.take(place, bytes, budget, now)?;
        self.wake_awaiting_room();
        Some(charge)
    }

    /// Ends the wait of a trunk for room.
    pub(super) fn leave_room_queue(&mut self, place: RoomPlace) {
        self.trunks.rooms.leave(place);
    }

    /// Wakes the next trunk for which there may be room.
    pub(super) fn wake_awaiting_room(&mut self) {
        self.trunks.woken.extend(self.trunks.rooms.next());
    }

    /// Counts a fence, and returns whether it may be sent now, within the bus's rate (R7).
    pub(super) fn may_fence(&mut self, now: Instant) -> bool {
        self.brokers
            .fence_rate
            .take(self.settings.fences_per_second, now)
    }

    /// Since when, or from when on, the bus's rate has room for another fence.
    pub(super) fn fences_from(&self) -> Instant {
        self.brokers
            .fence_rate
            .free_at(self.settings.fences_per_second)
    }
}
