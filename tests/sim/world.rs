//! The whole of a run: time, events, connections, and who handles what.
//!
//! One event at a time, in the order of simulated time and then of creation; all chance
//! comes from the seed, so a seed is a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use natsmux::clock::Instant;

use super::broker::{Broker, Flavour, Life, Routed};
use super::component::Component;
use super::daemon::Daemon;
use super::net::{Conn, ConnId, Ends, Segment, Time, Way};
use super::oracle::frames::Publish;
use super::oracle::{Books, Oracle};
use super::plan::Plan;
use super::rng::Rng;
use super::witness::Witness;

/// Events of one run at most: beyond that something spins.
const EVENTS_MAX: u64 = 400_000;
/// The same where many components share trunks.
const SHARED_EVENTS_MAX: u64 = 4_000_000;

/// How many of 100 seeds have sessions that share trunks, and what sets their chance apart.
const SHARED_PERCENT: u64 = 35;
/// Of the runs, those whose links speak TLS.
const TLS_PERCENT: u64 = 25;
/// Of the runs, those in which components hear of outages.
/// And in which natsmux holds the credentials.
const IDENTITY_PERCENT: u64 = 20;
const IDENTITY: u64 = 0x1d_0024;
/// And in which an operator is at work.
const OPERATOR_PERCENT: u64 = 20;
const OPERATOR: u64 = 0x42_0025;
const REVEAL_PERCENT: u64 = 10;
const REVEAL: u64 = 0x37_0023;
const TLS: u64 = 0x715_0023;
const SHARING: u64 = 0x5a4e_0006;

/// What happens at some time.
#[derive(Clone, Debug)]
pub enum Event {
    Arrive {
        conn: ConnId,
        way: Way,
    },
    Tick {
        host: usize,
    },
    Dialled {
        host: usize,
        trunk: u64,
        link: u32,
        broker: usize,
    },
    /// A broker answers a ClientHello.
    Handshake {
        host: usize,
        trunk: u64,
        link: u32,
    },
    Probed {
        host: usize,
        broker: usize,
        asked: Time,
    },
    Component(usize),
    /// A component that was slow reads what waits.
    Catch {
        component: usize,
    },
    Fault,
    /// A broker announces that it leaves, and another is there.
    Duck,
    /// Every broker dies.
    BlackOut,
    Restart {
        broker: usize,
        plan: u64,
    },
    Thaw {
        broker: usize,
        plan: u64,
    },
    Leave {
        broker: usize,
        plan: u64,
    },
    Route {
        to: usize,
        routed: Box<Routed>,
    },
    Outside,
    Resume {
        host: usize,
    },
    Renew,
    /// An operator's command.
    Order,
    Expire {
        generation: u8,
    },
    Calm,
    Judge,
}

/// A host: its natsmux, and who judges it.
pub struct Host {
    pub daemon: Daemon,
    pub oracle: Oracle,
}

/// A run.
pub struct World {
    pub plan: Plan,
    pub rng: Rng,
    /// What the operator leaves to chance.
    pub operator: Rng,
    pub now: Time,
    pub base: Instant,
    /// Of the host at which something happens now.
    pub oracle: Oracle,
    pub daemon: Daemon,
    /// Its number.
    pub host: usize,
    /// All other hosts.
    hosts: Vec<Option<Host>>,
    pub brokers: Vec<Broker>,
    pub components: Vec<Component>,
    pub conns: BTreeMap<ConnId, Conn>,
    pub next_conn: ConnId,
    pub next_link: u64,
    pub next_identity: u64,
    /// Users that some broker has accepted, by host.
    pub known_users: BTreeSet<(usize, String)>,
    /// Which credentials of identities are the newest.
    pub generation: u8,
    /// Hosts whose links heard that their credentials ran out.
    pub expired_at: BTreeSet<usize>,
    /// Who judges where sessions share trunks.
    pub witness: Option<Witness>,
    /// Since when no broker would serve, and when that had last been so for long.
    pub outage_since: Option<Time>,
    pub outage_at: Option<Time>,
    /// When the last one began, and when it ended.
    pub last_outage: Option<(Time, Time)>,
    /// Faults are over.
    pub calm: bool,
    pub done: bool,
    pub events: u64,
    pub hash: u64,
    verbose: bool,
    queue: BTreeMap<(Time, u64), Event>,
    next_event: u64,
    routes: BTreeMap<(usize, usize), Time>,
}

impl World {
    pub fn new(seed: u64, verbose: bool, base: Instant) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::new(&mut rng);
        let mut choice = Rng::new(seed ^ SHARING);
        if choice.percent(SHARED_PERCENT) {
            plan.share(&mut choice);
        }
        let mut choice = Rng::new(seed ^ TLS);
        if choice.percent(TLS_PERCENT) {
            plan.secure(&mut choice);
        }
        let mut choice = Rng::new(seed ^ REVEAL);
        if choice.percent(REVEAL_PERCENT) {
            plan.reveal(&mut choice);
        }
        let mut choice = Rng::new(seed ^ IDENTITY);
        if choice.percent(IDENTITY_PERCENT) {
            plan.identify(&mut choice);
        }
        let mut choice = Rng::new(seed ^ OPERATOR);
        if choice.percent(OPERATOR_PERCENT) {
            plan.operate(&mut choice);
        }
        let brokers = plan.flavours.iter().copied().map(Broker::new).collect();
        let host = |no| {
            let each = plan.independent.map_or(1, |_| plan.flavours.len());
            let mut oracle = Oracle::new(plan.at_least_once, each);
            oracle.is_blind = plan.is_shared;
            oracle.of_2012 = plan.flavours.contains(&Flavour::V0_4);
            Host {
                daemon: Daemon::new(&plan, no, base),
                oracle,
            }
        };
        let witness = plan.is_shared.then(|| {
            let echoes = plan.flavours.contains(&Flavour::V0_4);
            let (latency, repeats) = (plan.weather.latency, plan.at_least_once);
            let mut witness = Witness::new(latency, repeats, echoes, plan.is_flawless);
            witness.moves = plan.moves + plan.renewals + plan.orders > 0;
            witness.leaves_behind = plan.independent.is_some() && !plan.is_flawless;
            witness
        });
        let first = host(0);
        let hosts = (0..plan.hosts).map(|no| (no > 0).then(|| host(no)));
        let hosts = hosts.collect();
        let mut world = Self {
            oracle: first.oracle,
            daemon: first.daemon,
            host: 0,
            hosts,
            plan,
            rng,
            operator: choice,
            now: 0,
            base,
            brokers,
            components: Vec::new(),
            conns: BTreeMap::new(),
            next_conn: 1,
            next_link: 1,
            next_identity: 1,
            known_users: BTreeSet::new(),
            generation: 0,
            expired_at: BTreeSet::new(),
            witness,
            outage_since: None,
            outage_at: None,
            last_outage: None,
            calm: false,
            done: false,
            events: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            verbose,
            queue: BTreeMap::new(),
            next_event: 0,
            routes: BTreeMap::new(),
        };
        world.schedule();
        world
    }

    fn schedule(&mut self) {
        for component in 0..self.plan.components {
            self.components
                .push(Component::new(&self.plan, &mut self.rng));
            let at = self.rng.below(self.plan.safety_end / 3);
            self.at(at, Event::Component(component));
        }
        for _ in 0..self.plan.faults {
            let at = self.rng.below(self.plan.safety_end);
            self.at(at, Event::Fault);
        }
        for _ in 0..self.plan.moves {
            let at = self.rng.below(self.plan.safety_end / 2);
            self.at(at, Event::Duck);
        }
        if self.plan.reveals {
            let at = self.rng.below(self.plan.safety_end / 4);
            self.at(at, Event::BlackOut);
        }
        self.schedule_renewals();
        self.schedule_orders();
        for host in 0..self.plan.hosts {
            self.at(0, Event::Tick { host });
        }
        self.at(1000, Event::Outside);
        self.at(self.plan.safety_end, Event::Calm);
    }

    /// Runs until the end, or until the first violation.
    pub fn run(&mut self) {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.events += 1;
            self.note(&at.to_le_bytes());
            self.note_outage();
            self.handle(event);
            self.note_outage();
            self.pump_all();
            if self.done || self.has_failed() {
                return;
            }
            let most = if self.plan.is_shared {
                SHARED_EVENTS_MAX
            } else {
                EVENTS_MAX
            };
            if self.events > most {
                return self
                    .oracle
                    .fail("harness", "too many events: something spins");
            }
        }
    }

    pub fn at(&mut self, at: Time, event: Event) {
        self.queue
            .insert((at.max(self.now), self.next_event), event);
        self.next_event += 1;
    }

    pub fn after(&mut self, delay: Time, event: Event) {
        self.at(self.now + delay, event);
    }

    pub fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now)
    }

    /// The simulated time of an instant, rounded up.
    pub fn time(&self, instant: Instant) -> Time {
        let nanos = instant.saturating_duration_since(self.base).as_nanos();
        nanos.div_ceil(1000) as Time
    }

    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            let (at, host) = (self.now as f64 / 1000.0, self.host);
            println!("{at:>10.3} ms  host {host}: {}", line());
        }
    }

    /// Feeds the trace's hash (FNV-1a over words of 8 bytes).
    pub fn note(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            let word = u64::from_le_bytes(padded);
            self.hash = (self.hash ^ word)
                .wrapping_mul(0x0100_0000_01b3)
                .rotate_left(23);
        }
    }

    /// From now on, something happens at this host.
    pub fn focus(&mut self, host: usize) {
        if host == self.host {
            return;
        }
        let next = self.hosts[host].take().expect("all but the present one");
        let last = Host {
            daemon: std::mem::replace(&mut self.daemon, next.daemon),
            oracle: std::mem::replace(&mut self.oracle, next.oracle),
        };
        self.hosts[self.host] = Some(last);
        self.host = host;
    }

    /// The natsmux of a host has something to look at.
    pub fn touch(&mut self, host: usize) {
        match &mut self.hosts[host] {
            Some(other) => other.daemon.touched = true,
            None => self.daemon.touched = true,
        }
    }

    fn pump_all(&mut self) {
        for host in 0..self.plan.hosts {
            let touched = match &self.hosts[host] {
                Some(other) => other.daemon.touched,
                None => self.daemon.touched,
            };
            if touched {
                self.focus(host);
                self.daemon.touched = false;
                self.pump();
            }
        }
    }

    fn others(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().flatten()
    }

    fn has_failed(&self) -> bool {
        let ends = self.witness.as_ref();
        self.oracle.violation.is_some()
            || ends.is_some_and(|ends| ends.violation.is_some())
            || self.others().any(|host| host.oracle.violation.is_some())
    }

    /// What went wrong first.
    pub fn violation(&self) -> Option<String> {
        let others = self.others().map(|host| &host.oracle.violation);
        let ends = self.witness.as_ref().map(|ends| &ends.violation);
        let mut all = others.chain([&self.oracle.violation]).chain(ends).flatten();
        all.next().cloned()
    }

    /// The interesting states that were seen.
    pub fn marks(&self) -> BTreeSet<&'static str> {
        let others = self.others().flat_map(|host| &host.oracle.marks);
        let ends = self.witness.iter().flat_map(|ends| &ends.marks);
        others
            .chain(&self.oracle.marks)
            .chain(ends)
            .copied()
            .collect()
    }

    /// A broker has processed a publish, whosesoever it was.
    pub fn broker_processed(&mut self, publish: &Publish, refused: bool) {
        if let Some(witness) = &mut self.witness {
            witness.processed(publish, refused);
        }
        self.oracle.broker_processed(publish, refused);
        for host in self.hosts.iter_mut().flatten() {
            host.oracle.broker_processed(publish, refused);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { conn, way } => self.arrive(conn, way),
            Event::Tick { host } => {
                self.focus(host);
                self.daemon.armed = None;
                self.touch(host);
            }
            Event::Handshake { host, trunk, link } => {
                self.focus(host);
                self.handshake(trunk, link);
                self.touch(host);
            }
            Event::Dialled {
                host,
                trunk,
                link,
                broker,
            } => {
                self.focus(host);
                self.dialled(trunk, link, broker);
                self.touch(host);
            }
            Event::Probed {
                host,
                broker,
                asked,
            } => {
                self.focus(host);
                self.probed(broker, asked);
                self.touch(host);
            }
            Event::Component(no) => self.component_turn(no),
            Event::Catch { component } => self.component_catches_up(component),
            Event::Fault => self.fault(),
            Event::Duck => self.duck_one(),
            Event::BlackOut => self.black_out(),
            Event::Restart { broker, plan } => self.restart(broker, plan),
            Event::Thaw { broker, plan } => self.thaw(broker, plan),
            Event::Leave { broker, plan } => self.leave(broker, plan),
            Event::Route { to, routed } => self.routed(to, &routed),
            Event::Outside => self.outside_publish(),
            Event::Resume { host } => {
                self.trace(|| format!("natsmux {host} runs again"));
                self.touch(host);
            }
            Event::Renew => self.renew(),
            Event::Order => self.order(),
            Event::Expire { generation } => self.expire(generation),
            Event::Calm => self.calm_down(),
            Event::Judge => self.judge(),
        }
    }

    fn routed(&mut self, to: usize, routed: &Routed) {
        if self.brokers[to].life == Life::Dead {
            return;
        }
        self.broker_deliver(to, &routed.publish, &routed.groups, None);
        self.broker_flush(to);
    }

    /// Messages on a route keep their order.
    pub fn route_arrival(&mut self, from: usize, to: usize, delay: Time) -> Time {
        let last = self.routes.entry((from, to)).or_insert(0);
        *last = (*last).max(self.now + delay);
        *last
    }

    fn arrive(&mut self, id: ConnId, way: Way) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let pipe = conn.pipe(way);
        if pipe.lost {
            return;
        }
        if pipe.stalled_until > now {
            let until = pipe.stalled_until;
            return self.at(until, Event::Arrive { conn: id, way });
        }
        if let Some(segment) = pipe.in_flight.pop_front() {
            if let Segment::Bytes(bytes) = &segment {
                self.note(&id.to_le_bytes());
                self.note(bytes);
            }
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.pipe(way).ready.push_back(segment);
            }
        }
        self.readable(id, way);
    }

    /// Tells the receiving end that there is something.
    pub fn readable(&mut self, id: ConnId, way: Way) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let host = conn.host;
        if matches!(
            (conn.ends, way),
            (Ends::ComponentToNatsmux { .. }, Way::Up) | (Ends::NatsmuxToBroker { .. }, Way::Down)
        ) {
            self.focus(host);
            self.touch(host);
        }
        let conn = &self.conns[&id];
        match (conn.ends, way) {
            (Ends::ComponentToNatsmux { session, .. }, Way::Up) => self.daemon.wake(session),
            (Ends::ComponentToNatsmux { component, .. }, Way::Down) => {
                self.component_read(component)
            }
            (Ends::NatsmuxToBroker { broker, .. }, Way::Up) => self.broker_read(broker, id),
            (Ends::NatsmuxToBroker { link, .. }, Way::Down) => drop(self.link_read(link)),
        }
    }

    pub fn send(&mut self, id: ConnId, way: Way, segment: Segment) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let arrivals = conn
            .pipe(way)
            .send(segment, self.now, &mut self.rng, &self.plan.weather);
        for at in arrivals {
            self.at(at, Event::Arrive { conn: id, way });
        }
    }

    /// The receiving end takes a segment that has arrived.
    pub fn read(&mut self, id: ConnId, way: Way) -> Option<Segment> {
        let conn = self.conns.get_mut(&id)?;
        let host = conn.host;
        let pipe = conn.pipe(way);
        let segment = pipe.read()?;
        if std::mem::take(&mut pipe.was_full) {
            self.touch(host);
        }
        Some(segment)
    }

    /// Of what is on its way, a part arrives, and then `end`.
    pub fn cut(&mut self, id: ConnId, way: Way, end: Segment) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let host = conn.host;
        let arrivals = conn
            .pipe(way)
            .cut(end, self.now, &mut self.rng, &self.plan.weather);
        for at in arrivals {
            self.at(at, Event::Arrive { conn: id, way });
        }
        self.touch(host);
    }

    /// The dialled side is gone: what is on its way there is lost, and a write may fail.
    pub fn conn_died_above(&mut self, id: ConnId) {
        let write_dead = self.rng.percent(50);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.up.in_flight.clear();
            conn.up.ready.clear();
            conn.write_dead |= write_dead;
            let host = conn.host;
            self.touch(host);
        }
    }

    /// The end: everything must have healed.
    fn judge(&mut self) {
        self.done = true;
        let mut tables = BTreeMap::new();
        for broker in &self.brokers {
            for conn in broker.clients.keys() {
                if let Some(Ends::NatsmuxToBroker { link, .. }) =
                    self.conns.get(conn).map(|conn| conn.ends)
                    && let Some(table) = broker.table(*conn)
                {
                    tables.insert(link, table);
                }
            }
        }
        for host in 0..self.plan.hosts {
            self.focus(host);
            let books = self.books();
            self.oracle.at_rest(&tables, books);
            self.judge_daemon();
            self.judge_witness(&tables);
        }
        if let Some(witness) = &mut self.witness {
            witness.at_rest();
        }
        self.judge_presence();
        self.judge_generations();
    }

    /// R29: hosts that are subscribed on a broker hear of each other there.
    fn judge_presence(&mut self) {
        let daemons = (0..self.plan.hosts).map(|host| self.daemon_of(host));
        let subscribed: Vec<&Daemon> = daemons
            .filter(|daemon| {
                let mut ids = daemon.bus.roster().brokers().map(|(id, _)| id);
                ids.any(|id| daemon.bus.watch(id).attached() > 0)
            })
            .collect();
        let forbidden = subscribed.iter().any(|daemon| daemon.presence_forbidden);
        if self.plan.independent.is_none() || forbidden {
            return;
        }
        let deaf = subscribed.iter().find_map(|daemon| {
            let ids = daemon.bus.roster().brokers().map(|(id, _)| id);
            let known: Vec<usize> = ids.map(|id| daemon.bus.hosts_at(id)).collect();
            (known.iter().any(|known| known + 1 < subscribed.len())).then_some(known)
        });
        let (hosts, many) = (subscribed.len(), subscribed.len() > 1);
        if let Some(known) = deaf {
            let text = format!("one of {hosts} hosts knows of {known:?} others on its brokers");
            self.oracle.fail("R29 presence", text);
        } else if many {
            self.oracle.mark("independent: hosts hear of each other");
        }
    }

    pub fn daemon_of(&self, host: usize) -> &Daemon {
        match &self.hosts[host] {
            Some(other) => &other.daemon,
            None => &self.daemon,
        }
    }

    pub fn books(&self) -> Books {
        let counters = &self.daemon.bus.counters();
        Books {
            published: counters.published,
            confirmed: counters.confirmed,
            refused: counters.refused,
            dropped: counters.dropped,
            in_doubt: counters.in_doubt,
            waiting: self.daemon.waiting(),
            pongs_unproven: counters.pongs_unproven,
        }
    }
}
