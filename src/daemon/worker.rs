//! The thread that moves all bytes: a current-thread runtime with every bus on it.
//!
//! Commands come through one bounded queue; nothing else crosses threads. A command is
//! handled in one pass and never waits for a socket.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::{self, LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::busy::BusyMeter;
use super::files::{BusFiles, Files};
use super::handle::{
    Commands, Handle, SessionPage, Start, SubscriptionList, SubscriptionPage, WorkerCommand,
};
use super::snapshot::{bus_snapshot, session_snapshot, subscription_snapshots};
use crate::clock::Instant;
use crate::config::{BusConfig, Config, CredentialsConfig, Topology};
use crate::downstream::frontend::{Frontend, Identity, ListenTls};
use crate::downstream::listener;
use crate::identity::{Identities, Loaded};
use crate::net::socket::{self, Bound};
use crate::net::tls::{ClientTls, ServerTls};
use crate::net::{now, random_key};
use crate::proto::connect::ConnectInfo;
use crate::proto::info::NATSMUX_ID;
use crate::telemetry::{BusSnapshot, Counters, SessionSnapshot, Snapshot};
use crate::upstream::brokers::admission::Admission;
use crate::upstream::brokers::presence::Presence;
use crate::upstream::brokers::roster::Placement;
use crate::upstream::io::cell::ReadBuffer;
use crate::upstream::io::pool::Pool;
use crate::upstream::{Budgets, Bus, Roster, Settings};

/// How long components wait at start for the first broker's INFO (R17).
const FIRST_INFO: Duration = Duration::from_millis(300);
/// The address that monitoring shows where there is no listener.
const NOWHERE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
/// Starts the worker.
pub(super) fn spawn(start: Start) -> io::Result<(JoinHandle<()>, Handle)> {
    let (handle, queue) = Handle::new();
    let stop = handle.stopped();
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

/// Waits for a task's result. The future that `block_on` is given is polled with every other task:
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
pub(super) async fn run(start: Start, queue: Commands, stop: CancellationToken) {
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

pub(super) struct Worker {
    identity: Rc<Identity>,
    buses: RefCell<Vec<Running>>,
    buffer: ReadBuffer,
    budgets: Budgets,
    started: (Instant, SystemTime),
    busy: BusyMeter,
    seed: u64,
    draining: Cell<bool>,
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
                key: random_key(),
            }),
            buses: RefCell::new(Vec::new()),
            buffer: Rc::new(RefCell::new(vec![0; socket::READ_BYTES])),
            budgets: Budgets::new(
                limits.publish_buffer_total,
                limits.lenient_buffer_total,
                limits.max_pending_total,
            ),
            started: (now(), SystemTime::now()),
            busy: BusyMeter::new(now()),
            seed,
            draining: Cell::new(false),
        }
    }

    async fn start(&self, mut start: Start) {
        let config = start.config;
        for bus in &config.buses {
            let listeners = start.listeners.remove(&bus.name).unwrap_or_default();
            self.start_bus(
                &config,
                bus,
                listeners,
                start.files.buses.remove(&bus.name).unwrap_or_default(),
            );
        }
    }

    async fn serve(&self, mut queue: Commands) {
        while let Some(command) = queue.recv().await {
            match command {
                WorkerCommand::Snapshot(reply) => {
                    // Whoever asked may have given up.
                    let _ = reply.send(self.snapshot());
                }
                WorkerCommand::Sessions(page, reply) => {
                    let _ = reply.send(self.sessions(page));
                }
                WorkerCommand::Subscriptions(page, reply) => {
                    let _ = reply.send(self.subscriptions(&page));
                }
                WorkerCommand::Reload(start, reply) => {
                    self.reload(*start);
                    let _ = reply.send(());
                }
                WorkerCommand::Renew(files) => self.renew(*files),
                WorkerCommand::Order(order, reply) => {
                    let _ = reply.send(self.obey(order));
                }
                WorkerCommand::Drain(reply) => {
                    spawn_local(drain(self.drain_all(), reply));
                }
            }
        }
    }

    fn start_bus(&self, config: &Config, bus: &BusConfig, listeners: Vec<Bound>, files: BusFiles) {
        let now = now();
        let mut roster = Roster::new(
            &bus.brokers,
            Placement::of(&config.name, bus),
            bus.timings.probe_interval,
            self.seed,
            now,
        );
        roster.set_tls(bus.tls_mode());
        roster.set_has_certificate(bus.has_certificate());
        let machine = Bus::new(
            Settings::of(bus, config.buses.len()),
            roster,
            Admission::new(RandomState::new()),
            self.budgets.clone(),
            now,
        );
        let mut machine = machine;
        machine.roster_mut().know_own_id(&self.identity.server_id);
        if bus.topology == Topology::Independent {
            // Not the id that components see, and another one for each bus.
            let id = RandomState::new().hash_one(&bus.name);
            *machine.presence_mut() = Presence::new(&bus.presence, &format!("{id:016x}"));
            machine
                .presence_mut()
                .configure(bus.brokers.len(), files.presence_key);
        }
        let pool = Rc::new(Pool::new(
            bus.name.clone(),
            &config.name,
            machine,
            Rc::clone(&self.buffer),
        ));
        pool.bus.set_tls(files.tls);
        pool.bus
            .borrow_mut()
            .set_identities(Identities::new(random_key()));
        set_identities(&pool, files.identities, files.identity_tls);
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
        running.frontend.set_tls(listen_tls(bus, files.listen_tls));
        spawn_local(Rc::clone(&running.frontend).watch_outage());
        for listener in listeners {
            self.listen(listener, &running.frontend);
        }
        self.buses.borrow_mut().push(running);
    }

    fn listen(&self, listener: Bound, frontend: &Rc<Frontend>) {
        let frontend = Rc::clone(frontend);
        if let Ok(addr) = socket::local_addr(&listener) {
            info!(bus = frontend.pool.bus.name, %addr, "listening");
        }
        frontend.tasks.clone().spawn_local(async move {
            wait_for_first_info(&frontend.pool).await;
            match socket::into_listener(listener).await {
                Ok(listener) => {
                    frontend.starting.set(frontend.starting.get() - 1);
                    listener::accept(listener, frontend).await;
                }
                Err(error) => warn!(bus = frontend.pool.bus.name, %error, "can't listen"),
            }
        });
    }

    fn reload(&self, start: Start) {
        let now = now();
        let (config, mut listeners, mut files) = (start.config, start.listeners, start.files.buses);
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
            let Some(bus) = config.buses.iter().find(|bus| bus.name == pool.bus.name) else {
                if !running.removed.replace(true) {
                    info!(bus = pool.bus.name, "bus removed, draining");
                    pool.bus.borrow_mut().unpause();
                    pool.wake_freed(now);
                    running.frontend.drain();
                    pool.close_idle();
                }
                continue;
            };
            let files = files.remove(&bus.name).unwrap_or_default();
            running.frontend.set_tls(listen_tls(bus, files.listen_tls));
            let is_renewed = pool.bus.set_tls(files.tls);
            let mut machine = pool.bus.borrow_mut();
            let tls = bus.tls_mode();
            let is_other_mode = machine.roster().tls() != tls;
            if is_renewed && !is_other_mode && bus.topology == Topology::Independent {
                // Each broker has what others don't: no link to it goes ahead of the next (R38).
                machine.roster_mut().renew_unused();
                machine.identities_mut().renew_all();
            } else if is_renewed || is_other_mode {
                machine.roster_mut().renew();
            }
            machine.roster_mut().set_tls(tls);
            machine
                .roster_mut()
                .set_has_certificate(bus.has_certificate());
            *machine.settings_mut() = Settings::of(bus, config.buses.len());
            let interval = bus.timings.probe_interval;
            let removed = machine.roster_mut().configure(
                &bus.brokers,
                Placement::of(&config.name, bus),
                interval,
                now,
            );
            machine
                .presence_mut()
                .configure(bus.brokers.len(), files.presence_key);
            machine.roster_mut().note_change();
            drop(machine);
            set_identities(pool, files.identities, files.identity_tls);
            info!(
                bus = pool.bus.name,
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
                let files = files.remove(&bus.name).unwrap_or_default();
                self.start_bus(&config, bus, listeners, files);
            }
        }
    }

    fn renew(&self, mut files: Files) {
        for running in self.buses.borrow().iter() {
            let pool = &running.frontend.pool;
            if let Some(files) = files.buses.remove(&pool.bus.name) {
                set_identities(pool, files.identities, files.identity_tls);
                pool.wake_all();
            }
        }
    }

    fn drain_all(&self) -> Vec<Rc<Frontend>> {
        self.draining.set(true);
        let frontends = self.frontends();
        for frontend in &frontends {
            // Publishes that wait for an operator go out first.
            frontend.pool.bus.borrow_mut().unpause();
            frontend.pool.wake_freed(now());
            frontend.drain();
            frontend.tasks.close();
        }
        frontends
    }

    /// Whether natsmux is about to end.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// The buses.
    pub(super) fn frontends(&self) -> Vec<Rc<Frontend>> {
        let buses = self.buses.borrow();
        let frontends = buses.iter().map(|running| Rc::clone(&running.frontend));
        frontends.collect()
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
            infos.and_then(|bus| bus.roster().infos().map(|info| info.max_payload).min());
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
            worker_busy_ratio: self.busy.ratio(now()),
            http_certificate_ends: None,
            counters,
            buses,
        }
    }
}

impl Worker {
    fn sessions(&self, page: SessionPage) -> Vec<SessionSnapshot> {
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

/// Takes over what the files of a bus's identities hold.
fn set_identities(pool: &Pool, loaded: Loaded, tls: Vec<(CredentialsConfig, ClientTls)>) {
    let mut bus = pool.bus.borrow_mut();
    let changes = bus.identities_mut().replace(loaded);
    let tls = tls.into_iter().filter_map(|(source, tls)| {
        let id = bus.identities().id_of(&source)?;
        Some((id, tls))
    });
    for id in pool.bus.set_identity_tls(tls.collect()) {
        bus.identities_mut().renew(id);
    }
    for id in changes.others.iter().chain(&changes.removed) {
        // What a broker said to whoever it was before is nothing to whoever it is now.
        let before = ConnectInfo::default().as_identity(*id);
        bus.admission_mut().forget(&before);
    }
    for id in &changes.renewed {
        let identity = bus.identities().name(*id).unwrap_or_default();
        info!(
            bus = pool.bus.name,
            identity, "credentials renewed, links move"
        );
    }
}

/// How components are spoken to.
fn listen_tls(bus: &BusConfig, server: Option<ServerTls>) -> Option<ListenTls> {
    let options = bus.listen_tls.as_ref()?;
    Some(ListenTls {
        server: server?,
        handshake_first: options.handshake_first,
        available: options.available,
        verify: options.files.ca.is_some(),
    })
}

/// R17: a component's first INFO should be built from a broker's, where one answers soon.
async fn wait_for_first_info(pool: &Pool) {
    let deadline = now() + FIRST_INFO;
    while now() < deadline && !pool.bus.borrow().roster().was_seen() {
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
