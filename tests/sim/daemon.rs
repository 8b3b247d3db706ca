//! natsmux in the simulation: its machines, driven as its drivers drive them, on model
//! sockets and virtual time.
//!
//! Every input to a machine is followed by a look at what it appended to its outboxes: that
//! is what the oracle judges, whether or not a socket takes it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::RandomState;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use natsmux::clock::Instant;

use natsmux::config::BrokerAddr;
use natsmux::downstream::session::{Session, SessionAction, Upstream};
use natsmux::ledger::SessionId;
use natsmux::net::Outbox;
use natsmux::proto::connect::{ConnectInfo, Secret};
use natsmux::proto::info::{FirstInfo, ServerInfo, first_info};
use natsmux::upstream::brokers::admission::Admission;
use natsmux::upstream::brokers::presence::Presence;
use natsmux::upstream::brokers::roster::{Cause, Departure, Failure};
use natsmux::upstream::io::shared_trunks::{SharedTrunks, sharing_key};
use natsmux::upstream::trunk::{Action, LinkId, MoveReason, Report};
use natsmux::upstream::{BrokerId, Budgets, Bus, CloseReason, Roster, Trunk, TrunkId, Turn};

use super::broker::{Flavour, Life};
use super::component::Component;
use super::identity::{identify, identities};
use super::net::{Conn, ConnId, Ends, Segment, Time, Way};
use super::oracle::{InPlace, Reading};
use super::plan::Plan;
use super::world::{Event, World};

/// How long a component that is being closed may take to read its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What a broker that takes no more connections says.
pub const FULL: &[u8] = b"maximum connections exceeded";
/// No message of a component is longer, in bytes.
const LONGEST_FRAME: usize = 7_000;
/// What a fence or two of an idle link take in buffers.
const FENCE_BYTES: u64 = 12;
/// Rounds of one pump at most: beyond that the machines feed each other.
const ROUNDS_MAX: u32 = 20_000;

/// The process.
pub struct Daemon {
    pub bus: Bus,
    pub trunks: BTreeMap<TrunkId, TrunkIo>,
    pub sessions: BTreeMap<usize, SessionIo>,
    pub paused_until: Time,
    pub armed: Option<Time>,
    /// Something happened that it has not looked at.
    pub touched: bool,
    /// Sessions that may have more waiting for them than is allowed.
    pub overflowed: BTreeSet<usize>,
    /// Drops that the oracle knows of.
    dropped: u64,
    next_trunk: u64,
    shared_trunks: SharedTrunks,
    /// A broker permits no announcements, or no room for them.
    pub presence_forbidden: bool,
    /// Links that were opened, and when the last one was.
    pub served: (u64, Time),
}

/// A trunk and its sockets.
pub struct TrunkIo {
    pub machine: Trunk,
    /// Its only session, or the first one.
    pub session: usize,
    /// Its sessions by their places.
    slots: BTreeMap<SessionId, usize>,
    links: BTreeMap<LinkId, LinkIo>,
    actions: VecDeque<Action>,
}

struct LinkIo {
    no: u64,
    broker: BrokerId,
    conn: Option<ConnId>,
    /// Stream offset up to which the oracle has seen what was appended.
    seen: u64,
    /// Its TLS handshake is over.
    is_secured: bool,
}

impl TrunkIo {
    /// The connection of a link that is open, and its broker.
    pub fn conn_of(&self, link: LinkId) -> Option<(ConnId, usize)> {
        let link = self.links.get(&link)?;
        Some((link.conn?, usize::from(link.broker.0)))
    }

    /// A link's TLS handshake is over.
    pub fn note_secured(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(&link) {
            link.is_secured = true;
        }
    }
}

/// A session and its socket.
pub struct SessionIo {
    machine: Session,
    home: Option<(TrunkId, SessionId)>,
    pub conn: ConnId,
    seen: u64,
    wake: bool,
    eof: bool,
    /// natsmux acts upon nothing more that it sends.
    is_ending: bool,
    closing: Option<(CloseReason, Instant)>,
    full_since: Option<Instant>,
}

impl Daemon {
    /// The sessions whose trunk has this link.
    pub fn sessions_of_link(&self, link: u64) -> Vec<usize> {
        let has = |trunk: &&TrunkIo| trunk.links.values().any(|io| io.no == link);
        let trunk = self.trunks.values().find(has);
        trunk.map_or_else(Vec::new, |trunk| trunk.slots.values().copied().collect())
    }

    pub fn new(plan: &Plan, host: usize, now: Instant) -> Self {
        let addrs: Vec<BrokerAddr> = (0..plan.flavours.len())
            .map(|no| format!("127.0.0.1:{}", 4301 + no))
            .map(|addr| addr.parse().expect("an address"))
            .collect();
        let mut roster = Roster::new(
            &addrs,
            plan.placement(),
            plan.settings.timings.probe_interval,
            7,
            now,
        );
        roster.set_tls(plan.tls);
        let budgets = Budgets::new(1 << 20, 1 << 20, plan.pending_total);
        let mut bus = Bus::new(
            plan.settings.clone(),
            roster,
            Admission::new(RandomState::new()),
            budgets,
            now,
        );
        if plan.independent.is_some() {
            *bus.presence_mut() = Presence::new("_P", &format!("host{host}"));
            let key = plan.has_key.then(|| Secret::new("the key of all hosts"));
            bus.presence_mut().configure(plan.flavours.len(), key);
            bus.presence_mut()
                .set_wall(now, UNIX_EPOCH + Duration::from_secs(1_000_000));
        }
        if plan.identities {
            bus.set_identities(identities());
        }
        Self {
            bus,
            trunks: BTreeMap::new(),
            sessions: BTreeMap::new(),
            paused_until: 0,
            armed: None,
            touched: false,
            overflowed: BTreeSet::new(),
            dropped: 0,
            next_trunk: 0,
            shared_trunks: SharedTrunks::default(),
            presence_forbidden: false,
            served: (0, 0),
        }
    }

    pub fn wake(&mut self, session: usize) {
        if let Some(io) = self.sessions.get_mut(&session) {
            io.wake = true;
        }
    }

    pub fn waiting(&self) -> u64 {
        self.trunks
            .values()
            .map(|io| io.machine.gauges().waiting)
            .sum()
    }

    fn trunk_of_link(&self, no: u64) -> Option<(TrunkId, LinkId)> {
        self.trunks.iter().find_map(|(trunk, io)| {
            let (link, _) = io.links.iter().find(|(_, link)| link.no == no)?;
            Some((*trunk, *link))
        })
    }
}

/// What an outbox holds behind the stream offset `seen`.
fn appended(out: &Outbox, seen: &mut u64) -> Vec<u8> {
    let written = out.written();
    let skip = seen.saturating_sub(written) as usize;
    *seen = out.end();
    waiting(out, skip, usize::MAX)
}

/// What waits in an outbox behind its first `skip` bytes, at most `count` of it.
pub fn waiting(out: &Outbox, mut skip: usize, count: usize) -> Vec<u8> {
    let count = count.min(out.pending_bytes().saturating_sub(skip));
    let mut bytes = Vec::with_capacity(count);
    if count == 0 {
        return bytes;
    }
    let mut room = 64;
    let mut slices = [IoSlice::new(&[]); 64];
    let mut more = Vec::new();
    let mut filled = out.slices(&mut slices);
    let mut slices = &slices[..filled];
    while filled == room {
        room *= 8;
        more = vec![IoSlice::new(&[]); room];
        filled = out.slices(&mut more);
        slices = &[];
    }
    for slice in slices.iter().chain(more.iter().take(filled)) {
        let from = skip.min(slice.len());
        skip -= from;
        let take = (slice.len() - from).min(count - bytes.len());
        bytes.extend_from_slice(&slice[from..from + take]);
    }
    bytes
}

impl World {
    /// Everything that natsmux has to do now: its drivers' passes, until nothing is left.
    pub fn pump(&mut self) {
        if self.daemon.paused_until > self.now {
            return;
        }
        let mut busy = [false; 7];
        for _ in 0..ROUNDS_MAX {
            busy = [false; 7];
            busy[0] = self.read_links();
            busy[1] = self.tick_trunks();
            busy[2] = self.run_sessions();
            for trunk in self.trunk_ids() {
                busy[3] |= self.perform(trunk);
                busy[4] |= self.flush_links(trunk);
                busy[4] |= self.flush_touched(trunk);
            }
            busy[5] = self.shed();
            busy[6] = self.settle_bus();
            if self.oracle.violation.is_some() {
                return;
            }
            if busy == [false; 7] {
                return self.arm();
            }
        }
        for io in self.daemon.trunks.values() {
            self.trace(|| format!("{:?}", io.machine));
            self.trace(|| {
                format!(
                    "{:?}",
                    io.machine
                        .poll_timeout(&self.daemon.bus)
                        .map(|at| self.time(at))
                )
            });
        }
        self.trace(|| format!("{:?}", self.daemon.bus.roster()));
        self.oracle.fail(
            "harness",
            format!("the machines never come to rest: {busy:?}"),
        );
    }

    fn trunk_ids(&self) -> Vec<TrunkId> {
        self.daemon.trunks.keys().copied().collect()
    }

    /// One input to a trunk, and the oracle's look at what came of it.
    pub fn with_trunk(&mut self, id: TrunkId, input: impl FnOnce(&mut Trunk, &mut Turn<'_>)) {
        let now = self.instant();
        let Some(io) = self.daemon.trunks.get_mut(&id) else {
            return;
        };
        input(&mut io.machine, &mut Turn::new(now, &mut self.daemon.bus));
        self.inspect(id);
    }

    fn inspect(&mut self, id: TrunkId) {
        let session = self.daemon.trunks.get(&id).map(|io| io.session);
        let admitted = session.is_some_and(|session| self.is_admitted(session));
        let Some(io) = self.daemon.trunks.get_mut(&id) else {
            return;
        };
        while let Some(action) = io.machine.poll_action() {
            if let Action::Close { link, .. } = &action
                && let Some(link) = io.links.get(link)
                && link.conn.is_some()
            {
                self.oracle.link_closed(link.no);
            }
            let session = &self.oracle.sessions[io.session];
            if action == Action::Done && !session.refusals.is_empty() && !session.refused {
                self.oracle.session_refused(io.session);
            }
            io.actions.push_back(action);
        }
        for (link_id, link) in &mut io.links {
            if let Some(out) = io.machine.link_out(*link_id) {
                let bytes = appended(out, &mut link.seen);
                if !bytes.is_empty() {
                    self.oracle.broker_is_sent(link.no, &bytes);
                }
            }
        }
        let slots: Vec<_> = io.slots.iter().map(|(slot, no)| (*slot, *no)).collect();
        for (slot, session) in slots {
            self.inspect_slot(id, slot, session, admitted);
        }
        let books = self.books();
        self.oracle.step_end(books);
    }

    /// What a trunk has for one of its sessions.
    fn inspect_slot(&mut self, id: TrunkId, slot: SessionId, session: usize, admitted: bool) {
        let name = (self.host, session);
        let now = self.now;
        let Some(io) = self.daemon.trunks.get_mut(&id) else {
            return;
        };
        let closing = io.machine.closing(slot).is_some();
        if let Some(CloseReason::Refused(text)) = io.machine.closing(slot)
            && **text == *FULL
        {
            // Another link of the bus was told so.
            let text = String::from_utf8_lossy(text).into_owned();
            self.oracle.sessions[session].refusals.insert(text);
            self.oracle.mark("a full broker's words");
        }
        // Who sent too much is closed, and what else it published goes on.
        let refused = match io.machine.closing(slot) {
            Some(CloseReason::Refused(text)) => **text != *b"Maximum Payload Violation",
            _ => false,
        };
        self.oracle.sessions[session].admitted |= admitted;
        if refused && !self.oracle.sessions[session].closing {
            self.oracle.session_refused(session);
        }
        let model = &self.oracle.sessions[session];
        let more = self.daemon.bus.counters().refused > self.oracle.books.refused;
        if closing && more && !model.refusals.is_empty() && !model.refused {
            // Refused by all brokers while it was being closed for another reason.
            self.oracle.session_refused(session);
        }
        if let Some(session_io) = self.daemon.sessions.get_mut(&session)
            && let Some(out) = io.machine.out(slot)
        {
            let bytes = appended(out, &mut session_io.seen);
            self.oracle.sessions[session].closing |= closing;
            let ending = io.machine.is_ending(slot);
            if ending && !std::mem::replace(&mut session_io.is_ending, true) {
                self.oracle.session_ending(session);
            }
            if let Some(witness) = &mut self.witness {
                witness.heard(name, &bytes, now);
                if ending {
                    witness.over(name);
                }
            }
            if !bytes.is_empty() {
                self.oracle.suspect_links = suspect_links(io, &self.daemon.bus);
                self.oracle.component_is_sent(session, &bytes);
                self.trace(|| {
                    let text = String::from_utf8_lossy(&bytes);
                    format!("session {session} => {}", text.escape_debug())
                });
            }
        }
        self.note_dropped(session);
    }

    fn read_links(&mut self) -> bool {
        let waiting: Vec<u64> = self
            .conns
            .values()
            .filter(|conn| conn.host == self.host && !conn.down.ready.is_empty())
            .filter_map(|conn| match conn.ends {
                Ends::NatsmuxToBroker { link, .. } => Some(link),
                Ends::ComponentToNatsmux { .. } => None,
            })
            .collect();
        let mut busy = false;
        for link in waiting {
            busy |= self.link_read(link);
        }
        busy
    }

    /// A link's socket is readable. Returns whether anything was read.
    pub fn link_read(&mut self, no: u64) -> bool {
        if self.daemon.paused_until > self.now {
            return false;
        }
        let mut busy = false;
        while let Some((trunk, link)) = self.daemon.trunk_of_link(no) {
            if !self.takes_from_broker(trunk, link) {
                break;
            }
            let conn = self.daemon.trunks[&trunk].links[&link].conn;
            let segment = conn.and_then(|conn| self.read(conn, Way::Down));
            let Some(segment) = segment else {
                break;
            };
            busy = true;
            if !self.daemon.trunks[&trunk].machine.has_link(link) {
                continue;
            }
            match segment {
                Segment::Bytes(bytes) => {
                    // R33: no more is read for a component that has its link for itself.
                    let limit = self.daemon.bus.settings().limits.max_pending;
                    let is_large = bytes.len() + LONGEST_FRAME > limit / 2;
                    if is_large || self.daemon.trunks[&trunk].machine.is_shared() {
                        self.note_overflow(trunk, bytes.len());
                    }
                    self.link_bytes(trunk, link, no, &bytes);
                }
                Segment::Fin => self.link_failed(trunk, link, Failure::Closed),
                Segment::Reset => self.link_failed(trunk, link, Failure::Reset),
            }
        }
        busy
    }

    /// R33: whether a link is read at present.
    fn takes_from_broker(&mut self, trunk: TrunkId, link: LinkId) -> bool {
        let now = self.instant();
        let io = self.daemon.trunks.get_mut(&trunk).expect("it has the link");
        let takes = io
            .machine
            .wants_link_read(link, &mut Turn::new(now, &mut self.daemon.bus));
        if !takes {
            self.oracle.mark("link not read for want of room");
        }
        takes
    }

    fn link_bytes(&mut self, trunk: TrunkId, link: LinkId, no: u64, bytes: &[u8]) {
        self.trace(|| {
            format!(
                "link {no} <- {}",
                String::from_utf8_lossy(bytes).escape_debug()
            )
        });
        self.oracle.broker_sends(no, bytes);
        self.with_trunk(trunk, |machine, cx| {
            machine.handle_link_bytes(link, bytes, cx)
        });
    }

    /// R25: whether a read may bring more for a component than may wait for it.
    fn note_overflow(&mut self, trunk: TrunkId, count: usize) {
        let limit = self.daemon.bus.settings().limits.max_pending;
        let io = self.daemon.trunks.get_mut(&trunk).expect("it has the link");
        // Each byte may go to all that share a subscription.
        let copies = io.slots.len().max(1);
        for (slot, session) in &io.slots {
            let waiting = io.machine.out(*slot).map_or(0, |out| out.pending_bytes());
            // Some of it is in a frame whose beginning came before.
            if waiting + 2 * copies * (count + LONGEST_FRAME) > limit {
                self.daemon.overflowed.insert(*session);
            }
        }
    }

    pub fn link_failed(&mut self, trunk: TrunkId, link: LinkId, failure: Failure) {
        self.trace(|| format!("link {link:?} failed: {failure:?}"));
        self.with_trunk(trunk, |machine, cx| {
            machine.handle_link_failed(link, failure, cx)
        });
    }

    fn tick_trunks(&mut self) -> bool {
        let now = self.instant();
        let mut busy = false;
        for id in self.trunk_ids() {
            let bus = &self.daemon.bus;
            if self.daemon.trunks[&id]
                .machine
                .poll_timeout(bus)
                .is_some_and(|at| at <= now)
            {
                self.with_trunk(id, |machine, cx| machine.handle_timeout(cx));
                busy = true;
            }
        }
        while let Some(broker) = self.daemon.bus.roster_mut().poll_probe(now) {
            let broker = usize::from(broker.0);
            let asked = self.now;
            self.after(
                4 * self.plan.weather.latency,
                Event::Probed {
                    host: self.host,
                    broker,
                    asked,
                },
            );
        }
        busy
    }

    /// A probe's answer is due.
    pub fn probed(&mut self, broker: usize, asked: Time) {
        let patience = self.time_of(self.daemon.bus.settings().timings.info_timeout);
        if self.brokers[broker].life == Life::Frozen && self.now < asked + patience {
            let host = self.host;
            let again = Event::Probed {
                host,
                broker,
                asked,
            };
            return self.after(patience / 4, again);
        }
        let id = BrokerId(broker as u16);
        let now = self.instant();
        let failure = match self.brokers[broker].life {
            Life::Up if self.brokers[broker].accepts() => {
                let info =
                    ServerInfo::parse(self.broker_info(broker, 0).as_bytes()).expect("an INFO");
                return self.daemon.bus.roster_mut().handle_probe(id, Ok(info), now);
            }
            Life::Frozen => Failure::InfoTimeout,
            _ => Failure::ConnectionRefused,
        };
        self.daemon
            .bus
            .roster_mut()
            .handle_probe(id, Err(failure), now);
    }

    fn time_of(&self, duration: Duration) -> Time {
        duration.as_micros() as Time
    }

    /// R25: who lags most is closed, where all together have not taken too much.
    fn shed(&mut self) -> bool {
        if !self.daemon.bus.budgets().pending.is_spent() {
            return false;
        }
        let lags = self.daemon.trunks.iter().filter_map(|(id, io)| {
            let (session, pending) = io.machine.slowest()?;
            Some((pending, *id, *io.slots.get(&session)?, session))
        });
        let Some((_, trunk, no, session)) = lags.max_by_key(|(pending, ..)| *pending) else {
            return false;
        };
        self.oracle.mark("the slowest is shed");
        self.daemon.overflowed.insert(no);
        self.with_trunk(trunk, |machine, cx| machine.close_slow(session, cx.bus));
        self.daemon.wake(no);
        true
    }

    /// Has each trunk look at what has changed.
    pub fn wake_trunks(&mut self) {
        for id in self.trunk_ids() {
            self.with_trunk(id, |machine, cx| machine.handle_wake(cx));
        }
    }

    fn settle_bus(&mut self) -> bool {
        let woken = self.daemon.bus.take_woken();
        for id in &woken {
            self.with_trunk(*id, |machine, cx| machine.handle_wake(cx));
        }
        self.review_outage() || !woken.is_empty()
    }

    /// Has each trunk and each session look at an outage.
    pub fn tell_of_outage(&mut self) {
        for id in self.trunk_ids() {
            let now = self.instant();
            let io = self.daemon.trunks.get_mut(&id).expect("listed");
            let cx = &mut Turn::new(now, &mut self.daemon.bus);
            io.machine.handle_wake(cx);
            let session = io.session;
            self.note_dropped(session);
            self.inspect(id);
        }
        let sessions: Vec<usize> = self.daemon.sessions.keys().copied().collect();
        for no in sessions {
            self.with_session(no, |session, home, cx| session.handle_outage(home, cx.bus));
            self.act(no);
            self.inspect_session(no);
        }
    }

    /// Does what a trunk asked for.
    fn perform(&mut self, id: TrunkId) -> bool {
        let mut busy = false;
        while let Some(action) = self
            .daemon
            .trunks
            .get_mut(&id)
            .and_then(|io| io.actions.pop_front())
        {
            busy = true;
            self.trace(|| format!("trunk {}: {action:?}", id.0));
            match action {
                Action::Dial { link, broker } => self.dial(id, link, broker),
                Action::Close { link, abort } => self.close_link(id, link, abort),
                Action::Secure { link, .. } => self.secure(id, link),
                Action::Greeted => {}
                Action::Measure { link } => self.measure(id, link),
                Action::Report(report) => self.reported(&report),
                Action::Done => {
                    if let Some(io) = self.daemon.trunks.remove(&id) {
                        self.daemon.shared_trunks.leave(io.machine.connect(), id);
                    }
                }
            }
        }
        busy
    }

    fn dial(&mut self, trunk: TrunkId, link: LinkId, broker: BrokerId) {
        let no = self.next_link;
        self.next_link += 1;
        let io = self.daemon.trunks.get_mut(&trunk).expect("it asked");
        io.links.insert(
            link,
            LinkIo {
                no,
                broker,
                conn: None,
                seen: 0,
                is_secured: false,
            },
        );
        let event = Event::Dialled {
            host: self.host,
            trunk: trunk.0,
            link: link.0,
            broker: usize::from(broker.0),
        };
        self.after(2 * self.plan.weather.latency, event);
    }

    /// A dial has come to the broker's host.
    pub fn dialled(&mut self, trunk: u64, link: u32, broker: usize) {
        let (trunk, link) = (TrunkId(trunk), LinkId(link));
        let known = self
            .daemon
            .trunks
            .get(&trunk)
            .is_some_and(|io| io.links.contains_key(&link));
        if !known {
            return;
        }
        if self.daemon.paused_until > self.now {
            let until = self.daemon.paused_until;
            return self.at(
                until,
                Event::Dialled {
                    host: self.host,
                    trunk: trunk.0,
                    link: link.0,
                    broker,
                },
            );
        }
        if !self.brokers[broker].accepts() {
            return self.link_failed(trunk, link, Failure::ConnectionRefused);
        }
        let io = self.daemon.trunks.get_mut(&trunk).expect("known");
        let session = io.session;
        let link_io = io.links.get_mut(&link).expect("known");
        let (conn, no) = (self.next_conn, link_io.no);
        self.next_conn += 1;
        link_io.conn = Some(conn);
        let ends = Ends::NatsmuxToBroker { link: no, broker };
        self.conns.insert(
            conn,
            Conn::new(ends, self.host, self.plan.windows.0, usize::MAX / 2),
        );
        self.oracle.link_opened(no, session, broker);
        self.trace(|| format!("link {no} of session {session} is open to broker {broker}"));
        self.with_trunk(trunk, |machine, cx| machine.handle_connected(link, cx));
        self.broker_accept(broker, conn);
    }

    fn close_link(&mut self, trunk: TrunkId, link: LinkId, abort: bool) {
        let io = self.daemon.trunks.get_mut(&trunk).expect("it asked");
        let Some(LinkIo {
            conn: Some(conn), ..
        }) = io.links.remove(&link)
        else {
            return;
        };
        match self.conns.get(&conn).map(|conn| conn.ends) {
            Some(Ends::NatsmuxToBroker { broker, .. })
                if self.brokers[broker].clients.contains_key(&conn)
                    || !self.conns[&conn].down.ended => {}
            _ => {
                self.conns.remove(&conn);
                return;
            }
        }
        if abort {
            self.cut(conn, Way::Up, Segment::Reset);
        } else {
            self.send(conn, Way::Up, Segment::Fin);
        }
    }

    /// What the broker's host has not acknowledged: it is still on its way.
    fn measure(&mut self, trunk: TrunkId, link: LinkId) {
        let conn = self.daemon.trunks[&trunk]
            .links
            .get(&link)
            .and_then(|link| link.conn);
        let Some(conn) = conn.and_then(|conn| self.conns.get(&conn)) else {
            return;
        };
        let bytes = conn.up.in_flight_bytes() as u64;
        self.with_trunk(trunk, |machine, cx| {
            machine.handle_unacked(link, bytes, cx.now)
        });
    }

    fn reported(&mut self, report: &Report) {
        match report {
            Report::Attached {
                after: Some((_, cause)),
                held,
                ..
            } => {
                if *held > 0 {
                    self.oracle.mark("failover with held publishes");
                }
                let independent = self.plan.independent.is_some();
                match cause {
                    Cause::Left(Departure::LameDuck) if independent => {
                        self.oracle.mark("independent: a lame duck left");
                    }
                    Cause::Left(Departure::LameDuck) => self.oracle.mark("lame-duck move"),
                    Cause::Left(Departure::Failback) => self.oracle.mark("independent: failback"),
                    Cause::Left(Departure::NewConnect) => {}
                    Cause::Left(Departure::Revised) => {
                        self.oracle.mark("operator: left for an offer")
                    }
                    Cause::Left(Departure::Drained) => {
                        self.oracle.mark("operator: left a drained broker");
                    }
                    Cause::Left(Departure::Moved) => self.oracle.mark("operator: moved by command"),
                    Cause::Left(Departure::Rebalanced) => {
                        self.oracle.mark("operator: rebalanced");
                    }
                    _ if independent => self.oracle.mark("independent: another broker took over"),
                    _ => {}
                }
            }
            Report::Lost {
                cause: Cause::Failed(Failure::Silent),
                ..
            } => self.oracle.mark("dead by silence"),
            Report::Lost {
                cause: Cause::Failed(Failure::WriteError),
                ..
            } => self.oracle.mark("dead by a write"),
            Report::Lost {
                cause: Cause::Failed(Failure::LinkError),
                ..
            } => self.oracle.mark("closed by an error about the link"),
            Report::PresenceForbidden { .. } => self.daemon.presence_forbidden = true,
            _ => {}
        }
    }

    /// Writes what waits for brokers. Returns whether anything was written or failed.
    fn flush_links(&mut self, id: TrunkId) -> bool {
        let Some(io) = self.daemon.trunks.get(&id) else {
            return false;
        };
        let links: Vec<(LinkId, u64, ConnId)> = io
            .links
            .iter()
            .filter_map(|(link, io)| Some((*link, io.no, io.conn?)))
            .collect();
        let mut busy = false;
        for (link, no, conn) in links {
            busy |= self.flush_link(id, link, no, conn);
        }
        let now = self.instant();
        if let Some(io) = self.daemon.trunks.get_mut(&id) {
            io.machine.unpark(&Turn::new(now, &mut self.daemon.bus));
        }
        busy
    }

    fn flush_link(&mut self, trunk: TrunkId, link: LinkId, no: u64, conn: ConnId) -> bool {
        let mut busy = false;
        loop {
            let Some(io) = self.daemon.trunks.get_mut(&trunk) else {
                return busy;
            };
            let Some(out) = io.machine.link_out(link).filter(|out| !out.is_empty()) else {
                return busy;
            };
            let Some(socket) = self.conns.get_mut(&conn).filter(|conn| !conn.write_dead) else {
                self.read_out(trunk, link, no, conn);
                self.link_failed(trunk, link, Failure::WriteError);
                return true;
            };
            let room = socket.up.room(out.pending_bytes());
            let bytes = waiting(out, 0, room);
            if bytes.is_empty() {
                return busy;
            }
            let is_secured = io.links.get(&link).is_some_and(|link| link.is_secured);
            out.advance(bytes.len());
            let written = out.written();
            busy = true;
            self.judge_secrecy(is_secured, no);
            self.oracle.written(no, written);
            self.trace(|| {
                format!(
                    "link {no} -> {}",
                    String::from_utf8_lossy(&bytes).escape_debug()
                )
            });
            self.send(conn, Way::Up, Segment::Bytes(bytes));
        }
    }

    /// R10: what a dead socket still holds comes first.
    fn read_out(&mut self, trunk: TrunkId, link: LinkId, no: u64, conn: ConnId) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.down.arrive_all();
        }
        while let Some(Segment::Bytes(bytes)) = self.read(conn, Way::Down) {
            self.oracle.mark("read out behind a write error");
            if self.daemon.trunks[&trunk].machine.has_link(link) {
                self.note_overflow(trunk, bytes.len());
                self.link_bytes(trunk, link, no, &bytes);
            }
        }
    }

    /// Writes to the sessions that were touched. Returns whether one of them has to look at
    /// something itself.
    fn flush_touched(&mut self, id: TrunkId) -> bool {
        let mut woken = false;
        while let Some(io) = self.daemon.trunks.get_mut(&id) {
            let Some(slot) = io.machine.poll_touched() else {
                break;
            };
            let Some(&session) = io.slots.get(&slot) else {
                continue;
            };
            let wake = io.machine.closing(slot).is_some() | io.machine.take_released(slot);
            let full = self.flush_session(session);
            if wake || full {
                self.daemon.wake(session);
            }
            woken |= wake;
        }
        woken
    }

    /// Writes what waits for a component. Returns whether its socket is full.
    fn flush_session(&mut self, no: usize) -> bool {
        let now = self.instant();
        let Some(io) = self.daemon.sessions.get_mut(&no) else {
            return false;
        };
        let conn = io.conn;
        let out = match io.home {
            Some((trunk, slot)) => self
                .daemon
                .trunks
                .get_mut(&trunk)
                .and_then(|trunk| trunk.machine.out(slot)),
            None => Some(io.machine.out()),
        };
        let Some(out) = out else {
            return false;
        };
        let room = self
            .conns
            .get_mut(&conn)
            .map_or(0, |conn| conn.down.room(out.pending_bytes()));
        let waits = out.pending_bytes() > room;
        let bytes = waiting(out, 0, room);
        out.advance(bytes.len());
        if let Some((trunk, slot)) = io.home
            && let Some(trunk) = self.daemon.trunks.get_mut(&trunk)
        {
            trunk.machine.account(slot, &self.daemon.bus);
        }
        if !bytes.is_empty() || !waits {
            io.full_since = None;
        }
        if waits {
            io.full_since.get_or_insert(now);
        }
        if !bytes.is_empty() {
            self.send(conn, Way::Down, Segment::Bytes(bytes));
        }
        waits
    }

    /// A component's connection reached natsmux.
    pub fn accept(&mut self, component: usize, conn: ConnId) -> usize {
        let no = self.oracle.session_opened();
        if let Some(witness) = &mut self.witness {
            witness.opened((self.host, no));
        }
        let now = self.instant();
        let info = self.first_info(conn);
        let bus = &mut self.daemon.bus;
        bus.counters_mut().sessions_opened += 1;
        let machine = Session::new(bus.roster().offer(), &Turn::new(now, bus));
        let ends = Ends::ComponentToNatsmux {
            component,
            session: no,
        };
        self.conns.insert(
            conn,
            Conn::new(ends, self.host, usize::MAX / 2, self.plan.windows.1),
        );
        self.oracle.component_is_sent(no, &info);
        self.send(conn, Way::Down, Segment::Bytes(info));
        self.daemon.sessions.insert(
            no,
            SessionIo {
                machine,
                home: None,
                conn,
                seen: 0,
                wake: true,
                eof: false,
                is_ending: false,
                closing: None,
                full_since: None,
            },
        );
        no
    }

    fn run_sessions(&mut self) -> bool {
        let mut busy = false;
        let all: Vec<usize> = self.daemon.sessions.keys().copied().collect();
        for no in all {
            let now = self.instant();
            let io = self.daemon.sessions.get_mut(&no).expect("listed");
            if io.machine.poll_timeout().is_some_and(|at| at <= now) {
                self.with_session(no, |session, home, cx| session.handle_timeout(home, cx));
                self.act(no);
                self.inspect_session(no);
                busy = true;
            }
            let io = self.daemon.sessions.get_mut(&no).expect("listed");
            if std::mem::take(&mut io.wake) {
                busy |= self.read_session(no);
            }
            self.flush_session(no);
            busy |= self.close_session_if_over(no);
        }
        busy
    }

    /// Reads what a component sent, where its trunk has room. Returns whether it did.
    fn read_session(&mut self, no: usize) -> bool {
        let mut busy = false;
        self.go_on(no);
        loop {
            self.note_closing(no);
            let now = self.instant();
            let Some(io) = self
                .daemon
                .sessions
                .get(&no)
                .filter(|io| !io.eof && io.closing.is_none())
            else {
                return busy;
            };
            if let Some((trunk, slot)) = io.home
                && let Some(trunk) = self.daemon.trunks.get_mut(&trunk)
                && !trunk
                    .machine
                    .wants_read(slot, &Turn::new(now, &mut self.daemon.bus))
                && (trunk.machine.is_ready(slot)
                    || trunk.machine.is_ending(slot)
                    || !io.machine.may_wait_for_more(&self.daemon.bus))
            {
                self.oracle.mark("component not read for want of room");
                return busy;
            }
            let conn = io.conn;
            let Some(segment) = self.read(conn, Way::Up) else {
                return busy;
            };
            busy = true;
            match segment {
                Segment::Bytes(bytes) => {
                    let before = self.held_without_link(no);
                    self.session_bytes(no, &bytes);
                    self.judge_held(no, before);
                }
                Segment::Fin => {
                    self.component_is_over(no);
                    self.oracle.component_gone(no);
                    self.daemon.sessions.get_mut(&no).expect("read").eof = true;
                    self.with_session(no, |session, home, cx| session.handle_eof(home, cx));
                    self.act(no);
                    self.inspect_session(no);
                }
                Segment::Reset => {
                    self.component_is_over(no);
                    self.oracle.component_gone(no);
                    let io = self.daemon.sessions.get_mut(&no).expect("read");
                    io.closing = Some((CloseReason::ComponentLost, now));
                }
            }
        }
    }

    fn component_is_over(&mut self, no: usize) {
        let name = (self.host, no);
        if let Some(witness) = &mut self.witness {
            witness.over(name);
        }
    }

    /// Lets what waited for the trunk go on.
    fn go_on(&mut self, no: usize) {
        let waiting = self.daemon.sessions.get(&no).is_some_and(|io| {
            let home = io
                .home
                .and_then(|(trunk, slot)| Some((self.daemon.trunks.get(&trunk)?, slot)));
            io.machine.has_pending_input()
                && home.is_some_and(|(trunk, slot)| trunk.machine.is_ready(slot))
        });
        if waiting {
            self.with_session(no, |session, home, cx| {
                if let Some(home) = home {
                    session.handle_ready(home, cx);
                }
            });
            self.inspect_session(no);
        }
        self.with_session(no, |session, home, cx| {
            if let Some(home) = home {
                session.handle_crowding(&home);
                session.handle_offer(&home, cx.bus);
            }
        });
        if self.act(no) {
            self.inspect_session(no);
        }
    }

    /// What natsmux says of itself.
    fn first_info(&self, client_id: u64) -> Vec<u8> {
        let infos = self.daemon.bus.roster().offered();
        let local = FirstInfo {
            server_id: "NATSMUX",
            server_name: "natsmux",
            host: "127.0.0.1",
            port: 4222,
            client_ip: "127.0.0.1",
            client_id,
            jetstream: false,
            auth_required: self.daemon.bus.auth_required(),
            max_payload: usize::MAX,
            nonce: "0123456789abcde",
            is_signed: false,
            tls: None,
        };
        first_info(&infos, &local)
    }

    fn session_bytes(&mut self, no: usize, mut bytes: &[u8]) {
        self.trace(|| {
            format!(
                "session {no} <- {}",
                String::from_utf8_lossy(bytes).escape_debug()
            )
        });
        let reading = self.reading(no);
        let (name, now) = ((self.host, no), self.now);
        if let Some(witness) = &mut self.witness {
            witness.said(name, bytes, now, reading.connect_drops);
        }
        self.oracle.component_bytes(no, bytes, reading);
        self.oracle.sessions[no].admitted |= self.is_admitted(no);
        while !bytes.is_empty() {
            let mut used = 0;
            self.with_session(no, |session, home, cx| {
                used = session.handle_bytes(bytes, home, cx)
            });
            bytes = &bytes[used..];
            if !self.act(no) {
                break;
            }
        }
        self.inspect_session(no);
    }

    /// R16: a broker accepted these credentials before, or none asks for any.
    fn is_admitted(&self, no: usize) -> bool {
        let user = self.component_of(no).map(|component| &component.user);
        let known = |user: &String| self.known_users.contains(&(self.host, user.clone()));
        !self.plan.auth || user.is_some_and(known)
    }

    fn with_session(
        &mut self,
        no: usize,
        input: impl FnOnce(&mut Session, Option<Upstream<'_>>, &mut Turn<'_>),
    ) {
        let now = self.instant();
        let Some(io) = self.daemon.sessions.get_mut(&no) else {
            return;
        };
        let trunks = &mut self.daemon.trunks;
        let home = io.home.and_then(|(trunk, id)| {
            Some(Upstream {
                trunk: &mut trunks.get_mut(&trunk)?.machine,
                id,
            })
        });
        input(
            &mut io.machine,
            home,
            &mut Turn::new(now, &mut self.daemon.bus),
        );
    }

    fn inspect_session(&mut self, no: usize) {
        self.note_handled(no);
        let Some(io) = self.daemon.sessions.get_mut(&no) else {
            return;
        };
        match io.home {
            Some((trunk, _)) => self.inspect(trunk),
            None => {
                let bytes = appended(io.machine.out(), &mut io.seen);
                if !bytes.is_empty() {
                    self.oracle.component_is_sent(no, &bytes);
                }
                let books = self.books();
                self.oracle.step_end(books);
            }
        }
    }

    /// Tells the oracle how much of what a component sent was acted upon.
    fn note_handled(&mut self, no: usize) {
        let reading = self.reading(no);
        let Some(io) = self.daemon.sessions.get_mut(&no) else {
            return;
        };
        if !io.is_ending {
            let unhandled = io.machine.unhandled_bytes() as u64;
            self.oracle.component_handled(no, unhandled, reading);
        }
        let home = io.home;
        self.note_dropped(no);
        if let (Some((trunk, slot)), Some(io)) = (home, self.daemon.sessions.get_mut(&no)) {
            let trunk = self.daemon.trunks.get(&trunk);
            let ends = trunk.is_none_or(|trunk| trunk.machine.is_ending(slot));
            if ends && !std::mem::replace(&mut io.is_ending, true) {
                self.oracle.session_ending(no);
            }
        }
    }

    /// Tells the oracle what natsmux gave up of a session's publishes.
    fn note_dropped(&mut self, no: usize) {
        let dropped = self.daemon.bus.counters().dropped - self.daemon.dropped;
        self.daemon.dropped += dropped;
        if dropped > 0 {
            self.oracle.dropped(no, dropped);
        }
    }

    fn reading(&self, no: usize) -> Reading {
        let home = self.daemon.sessions.get(&no).and_then(|io| io.home);
        let trunk = home.and_then(|(trunk, _)| self.daemon.trunks.get(&trunk));
        let of_link = trunk.map_or(usize::MAX, |trunk| trunk.machine.max_payload());
        Reading {
            max_payload: of_link.min(self.daemon.bus.roster().offer().max_payload),
            must_connect: self.daemon.bus.auth_required(),
            connect_drops: self.plan.flavours[0] == Flavour::V2_15,
        }
    }

    /// Does what a session asks for. Returns whether it asked for anything.
    fn act(&mut self, no: usize) -> bool {
        let now = self.instant();
        let Some(io) = self.daemon.sessions.get_mut(&no) else {
            return false;
        };
        match io.machine.poll_action() {
            None => false,
            Some(SessionAction::Close(reason)) => {
                io.closing = Some((reason, now + LAST_WORDS));
                true
            }
            Some(SessionAction::Move { connect, why }) => {
                self.move_session(no, &connect, why);
                true
            }
            Some(SessionAction::SayInfo) => {
                let (conn, home) = (io.conn, io.home);
                let info = self.first_info(conn);
                if let Some((trunk, slot)) = home
                    && let Some(trunk) = self.daemon.trunks.get_mut(&trunk)
                    && let Some(out) = trunk.machine.out(slot)
                {
                    out.push(&info);
                }
                true
            }
            Some(SessionAction::Identify) => {
                let connect = io.machine.connect().cloned().unwrap_or_default();
                let identified = identify(&self.daemon, &connect);
                self.with_session(no, |session, home, cx| {
                    session.handle_identified(identified, home, cx);
                });
                self.act(no);
                true
            }
            Some(SessionAction::Attach { connect, sent }) => {
                let out = io.machine.take_out();
                let key = sharing_key(&connect).filter(|_| self.plan.is_shared);
                let id = match key {
                    Some(key) => self.shared_trunk(key, &connect, no, None),
                    None => self.enter_trunk(no, |id| Trunk::new(id, Rc::clone(&connect))),
                };
                let io = self.daemon.trunks.get_mut(&id).expect("entered");
                let cx = &mut Turn::new(now, &mut self.daemon.bus);
                let slot = if io.machine.is_shared() {
                    io.machine.join(out, &connect, cx)
                } else {
                    io.machine.attach(out, sent, cx)
                };
                io.slots.insert(slot, no);
                let io = self.daemon.sessions.get_mut(&no).expect("it asked");
                io.home = Some((id, slot));
                self.with_session(no, |session, home, cx| {
                    if let Some(home) = home {
                        session.handle_attached(home, cx);
                    }
                });
                true
            }
        }
    }

    /// Runs a trunk.
    fn enter_trunk(&mut self, session: usize, make: impl FnOnce(TrunkId) -> Trunk) -> TrunkId {
        let id = TrunkId(self.daemon.next_trunk);
        self.daemon.next_trunk += 1;
        let io = TrunkIo {
            machine: make(id),
            session,
            slots: BTreeMap::new(),
            links: BTreeMap::new(),
            actions: VecDeque::new(),
        };
        self.daemon.trunks.insert(id, io);
        id
    }

    /// A trunk for this key, that isn't `not`.
    fn shared_trunk(
        &mut self,
        key: ConnectInfo,
        connect: &ConnectInfo,
        session: usize,
        not: Option<TrunkId>,
    ) -> TrunkId {
        let wanted = self.daemon.bus.settings().trunks_per_identity;
        let sessions = |id| {
            let trunk = &self.daemon.trunks.get(&id)?.machine;
            trunk.takes_sessions().then(|| trunk.session_count())
        };
        let chosen = self
            .daemon
            .shared_trunks
            .choose(&key, wanted, not, sessions);
        chosen.unwrap_or_else(|| {
            let name = "natsmux:sim:default".to_owned();
            let id = self.enter_trunk(session, |id| Trunk::shared(id, connect, name));
            self.daemon.shared_trunks.enter(key, id);
            id
        })
    }

    /// A session goes to another trunk.
    fn move_session(&mut self, no: usize, connect: &Rc<ConnectInfo>, why: MoveReason) {
        let now = self.instant();
        let home = self.daemon.sessions[&no].home.expect("it has a trunk");
        let (old, slot) = home;
        let io = self.daemon.trunks.get_mut(&old).expect("its trunk");
        io.slots.remove(&slot);
        let moved = io
            .machine
            .take_out(slot, &mut Turn::new(now, &mut self.daemon.bus));
        let moved = moved.expect("its place");
        let keeps = why != MoveReason::Reconnect { keeps: false };
        let key = sharing_key(connect).filter(|_| why == MoveReason::Crowded);
        let id = match key {
            Some(key) => self.shared_trunk(key, connect, no, Some(old)),
            None => self.enter_trunk(no, |id| Trunk::new(id, Rc::clone(connect))),
        };
        let io = self.daemon.trunks.get_mut(&id).expect("entered");
        let slot = io.machine.take_in(
            moved,
            connect,
            keeps,
            &mut Turn::new(now, &mut self.daemon.bus),
        );
        io.slots.insert(slot, no);
        let io = self.daemon.sessions.get_mut(&no).expect("it asked");
        io.home = Some((id, slot));
        self.with_session(no, |session, home, cx| {
            if let Some(home) = home {
                session.handle_ready(home, cx);
            }
        });
        self.inspect(old);
    }

    /// What brokers have for the sessions of each trunk of the present host.
    pub fn judge_witness(&mut self, tables: &BTreeMap<u64, Vec<InPlace>>) {
        let Some(witness) = &mut self.witness else {
            return;
        };
        for io in self.daemon.trunks.values() {
            let names: Vec<_> = io.slots.values().map(|no| (self.host, *no)).collect();
            if names.is_empty() {
                continue;
            }
            for link in io.links.values() {
                match tables.get(&link.no) {
                    Some(table) => witness.table_at_rest(&names, table),
                    None => self
                        .oracle
                        .fail("I16 liveness", "no broker knows a trunk's link"),
                }
            }
        }
    }

    fn note_closing(&mut self, no: usize) {
        let until = self.instant() + LAST_WORDS;
        let Some(io) = self.daemon.sessions.get_mut(&no) else {
            return;
        };
        if io.closing.is_none()
            && let Some((trunk, slot)) = io.home
            && let Some(trunk) = self.daemon.trunks.get(&trunk)
            && let Some(reason) = trunk.machine.closing(slot)
        {
            io.closing = Some((reason.clone(), until));
        }
    }

    fn close_session_if_over(&mut self, no: usize) -> bool {
        self.note_closing(no);
        let now = self.instant();
        let deadline = self.daemon.bus.settings().timings.write_deadline;
        let Some(io) = self.daemon.sessions.get(&no) else {
            return false;
        };
        let reason = match &io.closing {
            Some((reason, _)) if io.full_since.is_none() => reason.clone(),
            Some((reason, until)) if *until <= now => reason.clone(),
            None if io.full_since.is_some_and(|since| now >= since + deadline) => {
                CloseReason::SlowConsumer
            }
            _ => return false,
        };
        self.close_session(no, reason);
        true
    }

    fn close_session(&mut self, no: usize, reason: CloseReason) {
        let mut io = self.daemon.sessions.remove(&no).expect("it is open");
        self.trace(|| format!("session {no} is closed: {reason:?}"));
        let allowed = self.may_close(no, &reason);
        if let (CloseReason::Refused(_), true) = (&reason, io.home.is_some()) {
            self.oracle.mark("session refused");
        }
        if self.had_time_to_finish(no) {
            self.oracle.session_may_finish(no);
        }
        self.oracle.session_closed(no, reason.as_str(), allowed);
        self.send(io.conn, Way::Down, Segment::Fin);
        self.component_is_over(no);
        if let Some((trunk, slot)) = io.home {
            if let Some(io) = self.daemon.trunks.get_mut(&trunk) {
                io.slots.remove(&slot);
            }
            self.with_trunk(trunk, |machine, cx| machine.detach(slot, cx));
        }
        let published = self.daemon.bus.counters().published;
        io.machine.abandon(&mut self.daemon.bus);
        let refused = self.daemon.bus.counters().published - published;
        self.oracle.component_abandoned(no, refused);
        self.component_lost(io.conn);
    }

    /// Sets the one timer.
    fn arm(&mut self) {
        let deadline = self.daemon.bus.settings().timings.write_deadline;
        let bus = &self.daemon.bus;
        let trunks = self.daemon.trunks.values_mut().filter_map(|io| {
            let due = io.machine.poll_timeout(bus);
            io.machine.note_timer(due);
            due
        });
        let sessions = self.daemon.sessions.values().flat_map(|io| {
            let closing = io.closing.as_ref().map(|(_, until)| *until);
            let full = io.full_since.map(|since| since + deadline);
            [io.machine.poll_timeout(), closing, full]
        });
        let due = trunks
            .chain(sessions.flatten())
            .chain(bus.poll_timeout())
            .min();
        let Some(due) = due.map(|due| self.time(due).max(self.now)) else {
            return;
        };
        if self.daemon.armed.is_none_or(|armed| due < armed) {
            self.daemon.armed = Some(due);
            self.at(due, Event::Tick { host: self.host });
        }
    }

    /// Bytes of publishes that wait in a ready session's trunk, where that has no link.
    fn held_without_link(&mut self, no: usize) -> Option<u64> {
        let (trunk, slot) = self.daemon.sessions.get(&no)?.home?;
        let machine = &mut self.daemon.trunks.get_mut(&trunk)?.machine;
        let gauges = machine.gauges();
        if self.plan.is_shared || gauges.links > 0 || !machine.is_ready(slot) {
            return None;
        }
        Some(gauges.held_bytes)
    }

    /// R6: a component whose buffer is full may only be read to be dropped.
    fn judge_held(&mut self, no: usize, before: Option<u64>) {
        let limit = self.daemon.bus.settings().limits.publish_buffer as u64;
        if let (Some(before), Some(after)) = (before, self.held_without_link(no))
            && before >= limit
            && after > before
        {
            let text = format!("session {no}: {before} bytes of {limit} became {after}");
            self.oracle.fail("R6 buffer", text);
        }
    }

    /// What must be true of natsmux itself once all is healed.
    pub fn judge_daemon(&mut self) {
        self.judge_choice();
        let budgets = &self.daemon.bus.budgets();
        let used = [&budgets.held, &budgets.input, &budgets.pending].map(|budget| budget.used());
        let mut here = self
            .components
            .iter()
            .filter(|component| component.host == self.host);
        if used != [0; 3] && !here.any(Component::is_slow) {
            self.oracle.fail(
                "I13 no leak",
                format!("{used:?} bytes of the budgets are not given back"),
            );
        }
        // R29: announcements that no fence has followed yet.
        let most = self.plan.independent.map_or(FENCE_BYTES, |_| 4_096);
        for (id, io) in &self.daemon.trunks {
            let buffered = io.machine.gauges().buffered_bytes;
            let is_slow = |session: usize| {
                let component = self.component_of(session);
                component.is_some_and(Component::is_slow)
            };
            let slow = if self.plan.is_shared {
                io.slots.values().any(|session| is_slow(*session))
            } else {
                is_slow(io.session)
            };
            let kept = io.machine.is_shared()
                && self.daemon.bus.settings().timings.trunk_idle_timeout > Duration::from_secs(1);
            if io.slots.is_empty() && !kept {
                self.oracle.fail(
                    "I13 no leak",
                    format!("trunk {} outlives its session", id.0),
                );
            } else if buffered > most && !slow {
                self.oracle.fail(
                    "I16 liveness",
                    format!("trunk {}: {buffered} bytes in buffers", id.0),
                );
            }
        }
        let each = self.plan.independent.map_or(1, |_| self.brokers.len());
        let trunks = (self.daemon.trunks.len() * each) as u32;
        let links: u32 = self
            .daemon
            .bus
            .roster()
            .brokers()
            .map(|(_, broker)| broker.links())
            .sum();
        if links != trunks {
            self.oracle.fail(
                "I13 no leak",
                format!("the roster counts {links} links of {trunks} trunks"),
            );
        }
        if self.daemon.bus.has_replays() {
            self.oracle
                .fail("I13 no leak", "a trunk is left in the barrier");
        }
    }
}

/// R27: the links of a trunk to brokers that natsmux finds suspect.
fn suspect_links(io: &TrunkIo, bus: &Bus) -> BTreeSet<u64> {
    let suspect = |link: &&LinkIo| {
        let broker = link.broker;
        bus.watch(broker).suspect_since().is_some()
    };
    io.links
        .values()
        .filter(suspect)
        .map(|link| link.no)
        .collect()
}
