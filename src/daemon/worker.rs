//! The thread that moves all bytes: a current-thread runtime with every bus on it.
//!
//! Commands come through one bounded queue; nothing else crosses threads. A command is
//! handled in one pass and never waits for a socket.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{self, LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::snapshot::{bus_snapshot, session_snapshot, subscription_snapshots};
use crate::clock::Instant;
use crate::config::{BusConfig, Config, Failback, Topology};
use crate::downstream::frontend::{Frontend, Identity};
use crate::downstream::listener;
use crate::net::now;
use crate::net::socket::{self, Bound};
use crate::proto::connect::Secret;
use crate::proto::info::NATSMUX_ID;
use crate::telemetry::{BusSnapshot, Counters, SessionSnapshot, Snapshot, SubscriptionSnapshot};
use crate::upstream::brokers::admission::Admission;
use crate::upstream::brokers::presence::Presence;
use crate::upstream::brokers::roster::Placement;
use crate::upstream::io::pool::{Pool, ReadBuffer};
use crate::upstream::{Budget, Budgets, Bus, Roster, Settings};

/// How long components wait at start for the first broker's INFO (R17).
const FIRST_INFO: Duration = Duration::from_millis(300);
/// Fences per second, over all buses (R7).
const FENCES_PER_SECOND: u32 = 5_000;
/// How long a broker's acceptance of credentials is believed of a session that joins others.
const BELIEVED_FOR: Duration = Duration::from_secs(60);
/// What monitoring shows where there is no listener.
const NOWHERE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
/// Commands that may wait.
const QUEUE: usize = 16;

/// Bound sockets by bus.
pub(super) type Listeners = BTreeMap<String, Vec<Bound>>;

/// What the worker is started with, or reloads to: then with the listeners of new buses only.
pub(super) struct Start {
    pub(super) config: Config,
    /// The keys of presence, by bus.
    pub(super) keys: BTreeMap<String, Secret>,
    pub(super) listeners: Listeners,
    pub(super) max_connections: usize,
    /// Of what is left to chance: the server's id, and the jitter of retries.
    pub(super) seed: u64,
}

/// The worker's end of the queue.
pub(super) type Queue = mpsc::Receiver<Command>;

pub(super) enum Command {
    Snapshot(oneshot::Sender<Snapshot>),
    Sessions(Page, oneshot::Sender<Vec<SessionSnapshot>>),
    Subscriptions(SubscriptionPage, oneshot::Sender<SubscriptionList>),
    Reload(Box<Start>, oneshot::Sender<()>),
    Drain(oneshot::Sender<()>),
}

/// Which sessions, in the order of their numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    /// Those with larger numbers than this.
    pub(super) after: u64,
    /// At most this many of each bus.
    pub(super) count: usize,
}

/// Which subscriptions of one session, in the order of their sids.
#[derive(Clone, Debug)]
pub(super) struct SubscriptionPage {
    /// The session's number.
    pub(super) cid: u64,
    /// Those with larger sids than this.
    pub(super) after: Option<Box<[u8]>>,
    /// At most this many.
    pub(super) count: usize,
}

/// Subscriptions, and the sid of the last one where there may be more.
pub(super) type SubscriptionList = (Vec<SubscriptionSnapshot>, Option<Box<[u8]>>);

/// The control thread's end of the queue.
#[derive(Clone)]
pub(super) struct Handle {
    commands: mpsc::Sender<Command>,
    stop: CancellationToken,
}

impl Handle {
    /// A queue's two ends.
    pub(super) fn new() -> (Self, Queue) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        (Self { commands, stop }, queue)
    }

    /// A snapshot; `None` where the worker is gone.
    pub(super) async fn snapshot(&self) -> Option<Snapshot> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Snapshot(reply)).await.ok()?;
        answer.await.ok()
    }

    /// A page of sessions; `None` where the worker is gone.
    pub(super) async fn sessions(&self, page: Page) -> Option<Vec<SessionSnapshot>> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Sessions(page, reply);
        self.commands.send(command).await.ok()?;
        answer.await.ok()
    }

    /// A page of a session's subscriptions; `None` where the worker is gone.
    pub(super) async fn subscriptions(&self, page: SubscriptionPage) -> Option<SubscriptionList> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Subscriptions(page, reply);
        self.commands.send(command).await.ok()?;
        answer.await.ok()
    }

    /// Applies a configuration that was checked against the running one.
    pub(super) async fn reload(&self, start: Start) {
        let (reply, answer) = oneshot::channel();
        let command = Command::Reload(Box::new(start), reply);
        if self.commands.send(command).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// Ready once every session is closed.
    pub(super) async fn drain(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Drain(reply)).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// Ends the worker at once.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// What ends it.
    #[cfg(feature = "turmoil")]
    pub(super) fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Ready once the worker has ended by itself, which it doesn't unless it panics.
    pub(super) async fn gone(&self) {
        self.commands.closed().await;
    }
}

/// Starts the worker.
pub(super) fn spawn(start: Start) -> io::Result<(JoinHandle<()>, Handle)> {
    let (handle, queue) = Handle::new();
    let stop = handle.stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let thread = std::thread::Builder::new()
        .name("natsmux-worker".to_owned())
        .spawn(move || {
            let local = LocalSet::new();
            let worker = local.spawn_local(run(start, queue, stop));
            if let Err(error) = local.block_on(&runtime, finished(worker)) {
                resume_unwind(error.into_panic());
            }
        })?;
    Ok((thread, handle))
}

/// What a task says once it is finished. What `block_on` is given is polled with every other task:
/// so this asks for little.
async fn finished(mut task: task::JoinHandle<()>) -> Result<(), task::JoinError> {
    let mut asked = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut asked, true) && !task.is_finished() {
            // It knows already whom to wake.
            return Poll::Pending;
        }
        Pin::new(&mut task).poll(cx)
    })
    .await
}

/// Runs a worker until it is stopped, or nobody is left who could.
pub(super) async fn run(start: Start, queue: Queue, stop: CancellationToken) {
    let worker = Worker::new(&start);
    worker.start(start).await;
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = worker.serve(queue) => {}
    }
}

/// One bus as the worker runs it.
struct Running {
    frontend: Rc<Frontend>,
    listen: SocketAddr,
    removed: Cell<bool>,
}

struct Worker {
    identity: Rc<Identity>,
    buses: RefCell<Vec<Running>>,
    buffer: ReadBuffer,
    budgets: Budgets,
    started: (Instant, SystemTime),
    seed: u64,
}

impl Worker {
    fn new(start: &Start) -> Self {
        let seed = start.seed;
        let limits = &start.config.limits;
        Self {
            identity: Rc::new(Identity {
                server_id: format!("{NATSMUX_ID}{seed:016X}"),
                server_name: start.config.name.clone(),
                max_connections: Cell::new(start.max_connections),
                connections: Cell::new(0),
                next_cid: Cell::new(0),
                salt: RandomState::new(),
            }),
            buses: RefCell::new(Vec::new()),
            buffer: Rc::new(RefCell::new(vec![0; socket::READ_BYTES])),
            budgets: Budgets {
                held: Rc::new(Budget::new(limits.publish_buffer_total)),
                input: Rc::new(Budget::new(limits.lenient_buffer_total)),
                pending: Rc::new(Budget::new(limits.max_pending_total)),
            },
            started: (now(), SystemTime::now()),
            seed,
        }
    }

    async fn start(&self, mut start: Start) {
        let config = start.config;
        for bus in &config.buses {
            let listeners = start.listeners.remove(&bus.name).unwrap_or_default();
            self.start_bus(&config, bus, listeners, start.keys.remove(&bus.name));
        }
    }

    async fn serve(&self, mut queue: Queue) {
        while let Some(command) = queue.recv().await {
            match command {
                Command::Snapshot(reply) => {
                    // Whoever asked may have given up.
                    let _ = reply.send(self.snapshot());
                }
                Command::Sessions(page, reply) => {
                    let _ = reply.send(self.sessions(page));
                }
                Command::Subscriptions(page, reply) => {
                    let _ = reply.send(self.subscriptions(&page));
                }
                Command::Reload(start, reply) => {
                    self.reload(*start);
                    let _ = reply.send(());
                }
                Command::Drain(reply) => {
                    spawn_local(drain(self.drain_all(), reply));
                }
            }
        }
    }

    fn start_bus(
        &self,
        config: &Config,
        bus: &BusConfig,
        listeners: Vec<Bound>,
        key: Option<Secret>,
    ) {
        let now = now();
        let roster = Roster::new(
            &bus.brokers,
            placement(&config.name, bus),
            bus.timings.probe_interval,
            self.seed,
            now,
        );
        let machine = Bus::new(
            settings(bus, config.buses.len()),
            roster,
            Admission::new(RandomState::new()),
            self.budgets.clone(),
            now,
        );
        let mut machine = machine;
        machine.roster.know_own_id(&self.identity.server_id);
        if bus.topology == Topology::Independent {
            // Not the id that components see, and another one for each bus.
            let id = RandomState::new().hash_one(&bus.name);
            machine.presence = Presence::new(&bus.presence, &format!("{id:016x}"));
            machine.presence.configure(bus.brokers.len(), key);
        }
        let pool = Rc::new(Pool::new(
            bus.name.clone(),
            &config.name,
            machine,
            Rc::clone(&self.buffer),
        ));
        spawn_local(Rc::clone(&pool).probe());
        spawn_local(Rc::clone(&pool).resolve());
        let first = listeners
            .first()
            .and_then(|listener| socket::local_addr(listener).ok());
        let running = Running {
            frontend: Rc::new(Frontend::new(
                pool,
                listeners.len(),
                Rc::clone(&self.identity),
            )),
            listen: first.unwrap_or(NOWHERE),
            removed: Cell::new(false),
        };
        for listener in listeners {
            self.listen(listener, &running.frontend);
        }
        self.buses.borrow_mut().push(running);
    }

    fn listen(&self, listener: Bound, frontend: &Rc<Frontend>) {
        let frontend = Rc::clone(frontend);
        if let Ok(addr) = socket::local_addr(&listener) {
            info!(bus = frontend.pool.name, %addr, "listening");
        }
        frontend.tasks.clone().spawn_local(async move {
            wait_for_first_info(&frontend.pool).await;
            match socket::into_listener(listener).await {
                Ok(listener) => {
                    frontend.starting.set(frontend.starting.get() - 1);
                    listener::accept(listener, frontend).await;
                }
                Err(error) => warn!(bus = frontend.pool.name, %error, "can't listen"),
            }
        });
    }

    fn reload(&self, start: Start) {
        let now = now();
        let (config, mut listeners, mut keys) = (start.config, start.listeners, start.keys);
        self.identity.max_connections.set(start.max_connections);
        self.budgets
            .held
            .set_total(config.limits.publish_buffer_total);
        self.budgets
            .input
            .set_total(config.limits.lenient_buffer_total);
        self.budgets
            .pending
            .set_total(config.limits.max_pending_total);
        for running in self.buses.borrow().iter() {
            let pool = &running.frontend.pool;
            let Some(bus) = config.buses.iter().find(|bus| bus.name == pool.name) else {
                if !running.removed.replace(true) {
                    info!(bus = pool.name, "bus removed, draining");
                    running.frontend.drain();
                    pool.close_idle();
                }
                continue;
            };
            let mut machine = pool.bus.borrow_mut();
            machine.settings = settings(bus, config.buses.len());
            let interval = bus.timings.probe_interval;
            let removed =
                machine
                    .roster
                    .configure(&bus.brokers, placement(&config.name, bus), interval, now);
            machine
                .presence
                .configure(bus.brokers.len(), keys.remove(&bus.name));
            machine.roster.note_change();
            drop(machine);
            info!(
                bus = pool.name,
                brokers = bus.brokers.len(),
                removed = removed.len(),
                "bus reloaded"
            );
            pool.wake_all();
        }
        self.buses
            .borrow_mut()
            .retain(|running| !running.removed.get());
        for bus in &config.buses {
            if let Some(listeners) = listeners.remove(&bus.name) {
                self.start_bus(&config, bus, listeners, keys.remove(&bus.name));
            }
        }
    }

    fn drain_all(&self) -> Vec<Rc<Frontend>> {
        let buses = self.buses.borrow();
        for running in buses.iter() {
            running.frontend.drain();
            running.frontend.tasks.close();
        }
        buses
            .iter()
            .map(|running| Rc::clone(&running.frontend))
            .collect()
    }

    fn snapshot(&self) -> Snapshot {
        let buses: Vec<BusSnapshot> = self
            .buses
            .borrow()
            .iter()
            .map(|running| bus_snapshot(&running.frontend))
            .collect();
        let mut counters = Counters::default();
        for bus in &buses {
            counters.add(&bus.counters);
        }
        let all = self.buses.borrow();
        let first = all.first();
        let infos = first.map(|running| running.frontend.pool.bus.borrow());
        let max_payload =
            infos.and_then(|bus| bus.roster.infos().map(|info| info.max_payload).min());
        Snapshot {
            server_id: self.identity.server_id.clone(),
            name: self.identity.server_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start: self.started.1,
            now: self.started.1 + (now() - self.started.0),
            max_connections: self.identity.max_connections.get() as u64,
            connections: self.identity.connections.get() as u64,
            total_connections: self.identity.next_cid.get(),
            subscriptions: buses.iter().map(|bus| bus.subscriptions).sum(),
            listen: first.map_or(NOWHERE, |running| running.listen),
            max_payload: max_payload.unwrap_or(1024 * 1024) as u64,
            counters,
            buses,
        }
    }
}

impl Worker {
    fn sessions(&self, page: Page) -> Vec<SessionSnapshot> {
        let now = now();
        let buses = self.buses.borrow();
        let mut sessions: Vec<_> = buses
            .iter()
            .flat_map(|running| {
                let connections = running.frontend.connections.above(page.after, page.count);
                let frontend = &running.frontend;
                connections
                    .into_iter()
                    .map(move |info| session_snapshot(frontend, &info, now))
            })
            .collect();
        // Numbers are shared by all buses: behind a page's last one, all is still to come.
        sessions.sort_by_key(|session| session.cid);
        sessions.truncate(page.count);
        sessions
    }

    fn subscriptions(&self, page: &SubscriptionPage) -> SubscriptionList {
        let buses = self.buses.borrow();
        let mut connections = buses
            .iter()
            .map(|running| running.frontend.connections.get(page.cid));
        let info = connections.find_map(|info| info);
        info.map_or_else(SubscriptionList::default, |info| {
            subscription_snapshots(&info, page)
        })
    }
}

fn placement(name: &str, bus: &BusConfig) -> Placement {
    match (bus.topology, bus.failback) {
        (Topology::Cluster, _) => {
            let mut rotation = DefaultHasher::new();
            name.hash(&mut rotation);
            Placement::Spread(rotation.finish())
        }
        (Topology::Independent, Failback::Auto) => {
            Placement::First(Some(bus.timings.failback_delay))
        }
        (Topology::Independent, Failback::Never) => Placement::First(None),
    }
}

fn settings(bus: &BusConfig, buses: usize) -> Settings {
    Settings {
        timings: bus.timings,
        limits: bus.limits,
        topology: bus.topology,
        delivery: bus.delivery,
        admit: bus.admit,
        lenient_connect: bus.lenient_connect,
        sharing: bus.sharing,
        trunks_per_identity: bus.trunks_per_identity,
        believed_for: BELIEVED_FOR,
        fences_per_second: FENCES_PER_SECOND / buses.max(1) as u32,
    }
}

/// R17: a component's first INFO should be built from a broker's, where one answers soon.
async fn wait_for_first_info(pool: &Pool) {
    let deadline = now() + FIRST_INFO;
    while now() < deadline && !pool.bus.borrow().roster.was_seen() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn drain(buses: Vec<Rc<Frontend>>, reply: oneshot::Sender<()>) {
    for frontend in buses {
        frontend.tasks.wait().await;
    }
    // The control thread may have run out of patience.
    let _ = reply.send(());
}
