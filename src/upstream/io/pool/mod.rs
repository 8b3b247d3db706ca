//! The trunks of one bus on one worker, and the handles by which sessions reach them.
//!
//! Everything here lives on one thread. A session's task borrows its trunk's machine,
//! hands it what it read, and lets the trunk's driver run, which writes to the broker: at once,
//! where the trunk is this session's alone; else in a task of its own, once all sessions that
//! were readable have had their turn.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tracing::error;

use super::cell::{BusCell, ReadBuffer, TrunkCell};
use super::driver::{Driver, Pass};
use super::shared_trunks::{SharedTrunks, sharing_key};
use crate::catch_panic::catch_panic;
use crate::clock::Instant;
use crate::config::Sharing;
use crate::ledger::SessionId;
use crate::net::{Outbox, Port, Timer, now, yield_after_io};
use crate::proto::connect::ConnectInfo;
use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::bus::{Bus, Turn};
use crate::upstream::trunk::{CloseReason, Gauges, MoveReason, Trunk};

/// A session's trunk, and its number there.
pub type Attachment = (Rc<TrunkCell>, SessionId);

/// The trunks of a bus.
#[derive(Debug)]
pub struct Pool {
    /// The bus of the trunks.
    pub bus: Rc<BusCell>,
    /// A reload may have brought new names.
    pub(super) reloaded: Notify,
    /// Components are to hear of an outage.
    revealed: Notify,
    /// The bus is no longer configured.
    closed: Cell<bool>,
    trunks: RefCell<BTreeMap<TrunkId, Rc<TrunkCell>>>,
    next_trunk: Cell<u64>,
    shared_trunks: RefCell<SharedTrunks>,
    /// The name of shared trunks at brokers, but for their numbers.
    label: String,
    probe_waker: RefCell<Option<Waker>>,
    /// When the prober will look again by itself.
    pub(super) probe_at: Cell<Option<Instant>>,
}

impl Pool {
    /// A pool without trunks.
    pub fn new(name: String, instance: &str, bus: Bus, buffer: ReadBuffer) -> Self {
        Self {
            label: format!("natsmux:{instance}:{name}"),
            shared_trunks: RefCell::default(),
            bus: Rc::new(BusCell::new(name, bus, buffer)),
            reloaded: Notify::new(),
            revealed: Notify::new(),
            closed: Cell::new(false),
            trunks: RefCell::new(BTreeMap::new()),
            next_trunk: Cell::new(0),
            probe_waker: RefCell::new(None),
            probe_at: Cell::new(None),
        }
    }

    /// Finds or makes the trunk for a session and attaches it. `out` holds what the
    /// component has not been sent yet. A trunk that is the session's alone comes with its
    /// driver, for the session's task. `None`: the trunk has panicked.
    pub fn attach(
        self: &Rc<Self>,
        connect: Rc<ConnectInfo>,
        sent: bool,
        out: Outbox,
        port: &Rc<Port>,
        now: Instant,
    ) -> Option<(Attachment, Option<Driver>)> {
        let (cell, driver) = match self.sharing_key(&connect) {
            Some(key) => (self.shared_trunk(key, &connect, None), None),
            None => {
                let trunk = Trunk::new(self.next_id(), Rc::clone(&connect));
                let (cell, driver) = self.enter(trunk);
                (cell, Some(driver))
            }
        };
        let session = self.with_trunk(&cell, now, |trunk, cx| match driver {
            Some(_) => trunk.attach(out, sent, cx),
            None => trunk.join(out, &connect, cx),
        })?;
        cell.set_port(session, Some(Rc::clone(port)));
        cell.wake();
        Some(((cell, session), driver))
    }

    /// Opens a link of which a component may sign the nonce (R40). `None`: it has panicked.
    pub fn open_relay(self: &Rc<Self>, now: Instant) -> Option<Rc<TrunkCell>> {
        let (cell, driver) = self.enter(Trunk::relay(self.next_id()));
        // Nobody has set it before.
        let _ = cell.greeted.set(Box::default());
        self.with_trunk(&cell, now, |trunk, cx| trunk.open_relay(cx))?;
        self.spawn(driver);
        Some(cell)
    }

    /// Waits for the nonce of a relay's broker; `None`: there is none to be had.
    pub async fn relay_greeted(&self, cell: &TrunkCell) -> Option<String> {
        cell.greeted.get()?.notified().await;
        let trunk = cell.machine.borrow();
        trunk.relay_nonce().map(str::to_owned)
    }

    /// A relay's component has signed its nonce: it has its session. `None`: it has panicked.
    pub fn bind_relay(
        &self,
        cell: Rc<TrunkCell>,
        connect: &Rc<ConnectInfo>,
        out: Outbox,
        port: &Rc<Port>,
        now: Instant,
    ) -> Option<Attachment> {
        self.bus.borrow_mut().counters_mut().relayed_sessions += 1;
        let session =
            self.with_trunk(&cell, now, |trunk, cx| trunk.bind_relay(out, connect, cx))?;
        cell.set_port(session, Some(Rc::clone(port)));
        cell.wake();
        Some((cell, session))
    }

    /// Nobody signs a relay's nonce.
    pub fn close_relay(&self, cell: &TrunkCell, now: Instant) {
        self.with_trunk(cell, now, |trunk, cx| trunk.close_relay(cx));
        cell.wake();
    }

    /// Has a trunk's machine do something; `None` where it panics, which ends it.
    fn with_trunk<T>(
        &self,
        cell: &TrunkCell,
        now: Instant,
        input: impl FnOnce(&mut Trunk, &mut Turn<'_>) -> T,
    ) -> Option<T> {
        let done = catch_panic(|| {
            let mut trunk = cell.machine.borrow_mut();
            self.bus.turn(now, |cx| input(&mut trunk, cx))
        });
        if done.is_none() {
            self.give_up(cell, now);
        }
        done
    }

    /// A session leaves a trunk that it shares: for one of its own under new options, or, where
    /// the broker takes no more subscriptions there, for another of its identity. `None`: it
    /// isn't there any more, or one of the trunks has panicked.
    pub fn move_session(
        self: &Rc<Self>,
        (old, session): Attachment,
        connect: Rc<ConnectInfo>,
        why: MoveReason,
        now: Instant,
    ) -> Option<(Attachment, Option<Driver>)> {
        let port = old.port(session)?;
        old.set_port(session, None);
        let moved = self.with_trunk(&old, now, |trunk, cx| trunk.take_out(session, cx))??;
        let not = old.machine.borrow().id();
        let key = self.sharing_key(&connect);
        let (cell, driver) = match key.filter(|_| why == MoveReason::Crowded) {
            Some(key) => (self.shared_trunk(key, &connect, Some(not)), None),
            None => {
                let (cell, driver) = self.enter(Trunk::new(self.next_id(), connect.clone()));
                (cell, Some(driver))
            }
        };
        let keeps = why != MoveReason::Reconnect { keeps: false };
        let session = self.with_trunk(&cell, now, |trunk, cx| {
            trunk.take_in(moved, &connect, keeps, cx)
        })?;
        cell.set_port(session, Some(port));
        old.wake();
        cell.wake();
        Some(((cell, session), driver))
    }

    /// R22: what a session shares with others, where it may.
    fn sharing_key(&self, connect: &ConnectInfo) -> Option<ConnectInfo> {
        let shares = self.bus.borrow().settings().sharing == Sharing::Identity;
        sharing_key(connect).filter(|_| shares)
    }

    /// A trunk for this key, that isn't `not`.
    fn shared_trunk(
        self: &Rc<Self>,
        key: ConnectInfo,
        connect: &ConnectInfo,
        not: Option<TrunkId>,
    ) -> Rc<TrunkCell> {
        let wanted = self.bus.borrow().settings().trunks_per_identity;
        let known = |id| self.trunks.borrow().get(&id).cloned();
        let sessions = |id| {
            let cell = known(id).filter(|cell| !cell.has_failed())?;
            let trunk = cell.machine.borrow();
            // One that brings subscriptions along isn't to wait for a move.
            let takes = trunk.takes_sessions() && !(not.is_some() && trunk.is_moving());
            takes.then(|| trunk.session_count())
        };
        let chosen = self
            .shared_trunks
            .borrow()
            .choose(&key, wanted, not, sessions);
        chosen.and_then(known).unwrap_or_else(|| {
            let id = self.next_id();
            self.shared_trunks.borrow_mut().enter(key, id);
            let name = format!("{}:{}", self.label, id.0);
            let (cell, driver) = self.enter(Trunk::shared(id, connect, name));
            self.spawn(driver);
            cell
        })
    }

    fn next_id(&self) -> TrunkId {
        let id = TrunkId(self.next_trunk.get());
        self.next_trunk.set(id.0 + 1);
        id
    }

    /// Enters a trunk, which its driver runs.
    fn enter(self: &Rc<Self>, machine: Trunk) -> (Rc<TrunkCell>, Driver) {
        let id = machine.id();
        let cell = Rc::new(TrunkCell::new(machine));
        self.trunks.borrow_mut().insert(id, Rc::clone(&cell));
        let driver = Driver::new(Rc::clone(&self.bus), Rc::clone(&cell));
        (cell, driver)
    }

    /// Lets a driver do one pass of its trunk, by the task that is to be woken for the next. Ready
    /// once the trunk is done. One that panics takes its sessions along: they mustn't wait for it
    /// for ever.
    pub fn drive(&self, driver: &mut Driver, began: Instant, cx: &mut Context<'_>) -> Poll<()> {
        match driver.pass(began, cx) {
            Pass::Waits => return Poll::Pending,
            Pass::Done => self.remove(driver.cell().machine.borrow().id()),
            Pass::Panicked => self.give_up(driver.cell(), began),
        }
        Poll::Ready(())
    }

    /// Gives a trunk a task of its own.
    pub fn spawn(self: &Rc<Self>, mut driver: Driver) {
        let pool = Rc::clone(self);
        let mut timer = Timer::default();
        driver.disarm();
        spawn_local(poll_fn(move |cx| {
            let began = now();
            let passed = pool.drive(&mut driver, began, cx);
            if passed.is_pending() && timer.arm(driver.due(), driver.now(), cx) {
                yield_after_io(cx);
            }
            // A panic in it isn't this trunk's: its sessions mustn't lose who drives it.
            let _ = catch_panic(|| pool.wake_freed(driver.now()));
            passed
        }));
    }

    /// Whether something that may come often is to be said now: `Some` says how often it came
    /// since it was said last.
    pub fn note_repeated(&self, key: &[u8], now: Instant) -> Option<u64> {
        self.bus.log.borrow_mut().limit.note(None, key, now)
    }

    /// Whether nobody asks brokers of this bus any more: it isn't configured, and its last trunk
    /// has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.get() && self.trunks.borrow().is_empty()
    }

    /// The bus is no longer configured: trunks end with their last sessions.
    pub fn close_idle(&self) {
        self.closed.set(true);
        let soon = Duration::from_millis(1);
        self.bus
            .borrow_mut()
            .settings_mut()
            .timings
            .trunk_idle_timeout = soon;
        self.wake_all();
    }

    /// A session's socket is gone.
    pub fn detach(&self, cell: &TrunkCell, session: SessionId, now: Instant) {
        cell.set_port(session, None);
        self.with_trunk(cell, now, |trunk, cx| trunk.detach(session, cx));
        cell.wake();
    }

    /// A trunk has panicked: it ends here, and its sessions close. Others go on as if it had never
    /// been.
    pub(super) fn give_up(&self, cell: &TrunkCell, now: Instant) {
        if cell.fail() {
            error!(
                bus = self.bus.name,
                "a trunk panicked, closing its sessions"
            );
        }
        cell.wake_sessions();
        // It panicked in the midst of something: it may again.
        let _ = catch_panic(|| {
            let mut trunk = cell.machine.borrow_mut();
            self.bus.turn(now, |cx| trunk.give_up(cx));
        });
        let id = cell.machine.borrow().id();
        self.remove(id);
        self.wake_freed(now);
    }

    /// Wakes what the last pass set free: trunks that waited for a broker, a turn to dial or
    /// the barrier, and the prober.
    pub fn wake_freed(&self, now: Instant) {
        self.shed();
        let (woken, probe_at, news, outage) = {
            let mut bus = self.bus.borrow_mut();
            if !bus.has_stirred() {
                // Mostly: a message concerns nobody else.
                return;
            }
            let news = bus.roster_mut().take_offer_changed();
            bus.review(now);
            let outage = bus.take_outage_news();
            let woken = bus.take_woken();
            bus.mark_seen();
            (woken, bus.poll_timeout(), news, outage)
        };
        if news {
            self.wake_sessions();
        }
        let mut bus = self.bus.borrow_mut();
        self.bus.log.borrow_mut().report(&mut bus, now);
        drop(bus);
        if outage {
            self.wake_machines();
            self.revealed.notify_one();
        }
        if probe_at != self.probe_at.get() {
            self.wake_prober();
        }
        let trunks = self.trunks.borrow();
        for cell in woken.iter().filter_map(|id| trunks.get(id)) {
            cell.wake_machine();
        }
    }

    /// Lets every session see what the brokers offer now.
    fn wake_sessions(&self) {
        for cell in self.trunks.borrow().values() {
            cell.wake_sessions();
        }
    }

    /// Waits until components are to hear of an outage (R37).
    pub async fn outage_revealed(&self) {
        self.revealed.notified().await;
    }

    fn wake_machines(&self) {
        for cell in self.trunks.borrow().values() {
            cell.wake_machine();
        }
    }

    /// Gives every trunk a look at a changed configuration.
    pub fn wake_all(&self) {
        self.wake_machines();
        self.reloaded.notify_one();
        self.wake_prober();
    }

    /// The broker in use.
    pub fn in_use(&self) -> String {
        let bus = self.bus.borrow();
        bus.roster().broker(bus.roster().current()).label()
    }

    /// The number of trunks of which this is so.
    pub fn count(&self, is_so: impl Fn(&Trunk) -> bool) -> usize {
        let trunks = self.trunks.borrow();
        let trunks = trunks.values();
        trunks.filter(|cell| is_so(&cell.machine.borrow())).count()
    }

    /// Closes a session, as an operator asks for it.
    pub fn kill(&self, cell: &TrunkCell, session: SessionId) {
        let mut trunk = cell.machine.borrow_mut();
        trunk.close_session(session, CloseReason::Killed);
        drop(trunk);
        cell.wake();
    }

    /// Sums of all trunks, and their number.
    pub fn gauges(&self) -> (u64, Gauges) {
        let trunks = self.trunks.borrow();
        let sum = trunks.values().fold(Gauges::default(), |sum, cell| {
            let one = cell.machine.borrow().gauges();
            Gauges {
                sessions: sum.sessions + one.sessions,
                links: sum.links + one.links,
                subscriptions: sum.subscriptions + one.subscriptions,
                waiting: sum.waiting + one.waiting,
                held_bytes: sum.held_bytes + one.held_bytes,
                buffered_bytes: sum.buffered_bytes + one.buffered_bytes,
                pulls: sum.pulls + one.pulls,
            }
        });
        (trunks.len() as u64, sum)
    }

    /// R25: where components have not taken more than the daemon may hold, the one of this
    /// bus that lags most is closed.
    fn shed(&self) {
        if !self.bus.borrow().budgets().pending.is_spent() {
            return;
        }
        let trunks = self.trunks.borrow();
        let lags = trunks.values().filter_map(|cell| {
            let (session, pending) = cell.machine.borrow().slowest()?;
            (pending > 0).then_some((pending, cell, session))
        });
        if let Some((_, cell, session)) = lags.max_by_key(|(pending, ..)| *pending) {
            let bus = self.bus.borrow();
            cell.machine.borrow_mut().close_slow(session, &bus);
            cell.wake();
        }
    }

    pub(super) fn remove(&self, id: TrunkId) {
        if let Some(cell) = self.trunks.borrow_mut().remove(&id) {
            let trunk = cell.machine.borrow();
            self.shared_trunks.borrow_mut().leave(trunk.connect(), id);
        }
        if self.is_closed() {
            self.reloaded.notify_one();
            self.wake_prober();
        }
    }

    pub(super) fn register_prober(&self, cx: &Context<'_>) {
        *self.probe_waker.borrow_mut() = Some(cx.waker().clone());
    }

    /// Has the prober look at when it is needed next.
    pub fn wake_prober(&self) {
        if let Some(waker) = self.probe_waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

#[cfg(all(test, not(feature = "turmoil")))]
mod tests;
