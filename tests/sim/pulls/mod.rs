//! R44: components that pull from a JetStream consumer through a trunk, whose brokers and leaders
//! die. A world of its own: the oracle of the other one knows no requests.

mod jetstream;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::RandomState;
use std::rc::Rc;
use std::time::Duration;

use natsmux::clock::Instant;
use natsmux::config::{BrokerAddr, Delivery};
use natsmux::ledger::SessionId;
use natsmux::net::{Outbox, Retention};
use natsmux::proto::client::{self, ClientLimits, ClientOp, Scan};
use natsmux::proto::connect::ConnectInfo;
use natsmux::proto::info::ServerInfo;
use natsmux::proto::pull::PullStatus;
use natsmux::proto::server::{self, Msg, ServerLimits, ServerOp, ServerScan};
use natsmux::upstream::brokers::admission::Admission;
use natsmux::upstream::brokers::roster::{Failure, Placement};
use natsmux::upstream::trunk::{Action, LinkId};
use natsmux::upstream::{BrokerId, Budgets, Bus, Roster, Settings, Trunk, TrunkId, Turn};

use super::daemon::waiting;
use super::rng::Rng;
use jetstream::{BROKERS, Cluster, Life, Ms, NEXT};

/// One step of the clock.
const STEP: Ms = 5;
/// When faults and new requests stop, and when everything must have healed.
const SAFETY: Ms = 8_000;
const END: Ms = 24_000;
/// A request that a component made so shortly before it expired may come to nothing.
const EXPIRED: Ms = 300;
/// The longest that a request may wait in natsmux.
const REFUSED: Ms = 3_000;

/// A subscription of a component, and what it asked for and got there.
#[derive(Default)]
struct Inbox {
    session: usize,
    subject: String,
    asked: u64,
    got: u64,
    /// Given up by a broker's word.
    ended: u64,
    /// Batches of requests that a broker may have refused.
    refused: u64,
    asked_at: Ms,
    /// When all of it is over; `None`: never.
    expires: Option<Ms>,
    /// Any of its requests expires: what was lost on its way then isn't asked for again.
    expired: bool,
    is_over: bool,
}

struct World {
    rng: Rng,
    cluster: Cluster,
    bus: Bus,
    trunk: Trunk,
    base: Instant,
    sessions: Vec<SessionId>,
    heard: Vec<Vec<u8>>,
    /// By their sids.
    inboxes: BTreeMap<u64, Inbox>,
    links: BTreeMap<u32, LinkId>,
    dials: Vec<(Ms, LinkId, BrokerId)>,
    written: Vec<(Ms, u32, Vec<u8>)>,
    healed: Vec<(Ms, usize)>,
    next: u64,
    froze: bool,
    is_verbose: bool,
    marks: BTreeSet<&'static str>,
    violation: Option<String>,
}

/// Runs one seed. Returns what it violates, and the states that it reached.
pub fn run(seed: u64, is_verbose: bool, base: Instant) -> (Option<String>, BTreeSet<&'static str>) {
    let mut world = World::new(seed, is_verbose, base);
    while world.cluster.now < END && world.violation.is_none() {
        world.step();
    }
    world.judge_end();
    (world.violation, world.marks)
}

impl World {
    fn new(seed: u64, is_verbose: bool, base: Instant) -> Self {
        let mut rng = Rng::new(seed ^ 0x9e37_79b9);
        let delivery = *rng.pick(&[
            Delivery::AtMostOnce,
            Delivery::AtMostOnce,
            Delivery::AtLeastOnce,
        ]);
        let settings = Settings {
            delivery,
            ..Settings::default()
        };
        let addrs = [4301, 4302, 4303].map(|port| BrokerAddr {
            host: "127.0.0.1".to_owned(),
            port,
            tls: false,
        });
        let roster = Roster::new(
            &addrs,
            Placement::default(),
            Duration::from_secs(1),
            seed,
            base,
        );
        let budgets = Budgets::new(1 << 20, 1 << 20, 1 << 20);
        let mut bus = Bus::new(
            settings,
            roster,
            Admission::new(RandomState::new()),
            budgets,
            base,
        );
        let connect = br#"{"verbose":false,"headers":true,"no_responders":true}"#;
        let connect = Rc::new(ConnectInfo::parse(connect).expect("options"));
        let is_shared = rng.percent(40);
        let mut trunk = if is_shared {
            Trunk::shared(TrunkId(0), &connect, "shared".to_owned())
        } else {
            Trunk::new(TrunkId(0), Rc::clone(&connect))
        };
        let count = if is_shared { rng.range(2, 3) } else { 1 };
        let attach = |_| {
            let out = Outbox::new(Retention::UntilWritten);
            let cx = &mut Turn::new(base, &mut bus);
            if is_shared {
                trunk.join(out, &connect, cx)
            } else {
                trunk.attach(out, true, cx)
            }
        };
        let sessions: Vec<SessionId> = (0..count).map(attach).collect();
        Self {
            cluster: Cluster::new(&mut rng),
            rng,
            bus,
            trunk,
            base,
            heard: vec![Vec::new(); sessions.len()],
            sessions,
            inboxes: BTreeMap::new(),
            links: BTreeMap::new(),
            dials: Vec::new(),
            written: Vec::new(),
            healed: Vec::new(),
            next: 0,
            froze: false,
            is_verbose,
            marks: BTreeSet::new(),
            violation: None,
        }
    }

    fn now(&self) -> Instant {
        self.base + Duration::from_millis(self.cluster.now)
    }

    fn fail(&mut self, what: impl Into<String>) {
        let at = self.cluster.now;
        self.violation
            .get_or_insert(format!("R44 at {at} ms: {}", what.into()));
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.is_verbose {
            println!("pulls {:>6} {}", self.cluster.now, what());
        }
    }

    fn input(&mut self, input: impl FnOnce(&mut Trunk, &mut Turn<'_>)) {
        let now = self.now();
        input(&mut self.trunk, &mut Turn::new(now, &mut self.bus));
    }

    fn step(&mut self) {
        self.cluster.now += STEP;
        let is_safe = self.cluster.now >= SAFETY;
        if !is_safe && self.rng.percent(1) {
            self.strike();
        }
        self.heal(is_safe);
        if self.trunk.is_ready(self.sessions[0]) {
            if !is_safe && self.rng.percent(2) {
                self.act();
            }
            if self.rng.percent(if is_safe { 10 } else { 4 }) {
                self.next += 1;
                self.cluster.pending.push_back(self.next);
            }
        }
        self.cluster.tick(&mut self.rng);
        self.move_bytes();
        self.drive();
    }

    fn strike(&mut self) {
        let up = self
            .cluster
            .lives
            .iter()
            .filter(|life| **life == Life::Up)
            .count();
        if up < BROKERS {
            return;
        }
        // Rather the one in use.
        let used = self.trunk.broker().map(|broker| usize::from(broker.0));
        let any = self.rng.below(BROKERS as u64) as usize;
        let broker = used.filter(|_| self.rng.percent(70)).unwrap_or(any);
        let life = if self.rng.percent(75) {
            Life::Dead
        } else {
            Life::Frozen
        };
        let lasts = match life {
            Life::Dead => self.rng.range(500, 2_000),
            _ => self.rng.range(2_500, 4_000),
        };
        self.froze |= life == Life::Frozen;
        self.trace(|| format!("broker {broker} {life:?} for {lasts}"));
        if self.cluster.leader == Some(broker) {
            self.marks.insert("pulls: a leader dies");
        }
        let ended = self.cluster.strike(broker, life, &mut self.rng);
        for no in ended {
            if let Some(link) = self.links.remove(&no) {
                self.written.retain(|(_, to, _)| *to != no);
                self.input(|trunk, cx| trunk.handle_link_failed(link, Failure::Closed, cx));
            }
        }
        self.healed.push((self.cluster.now + lasts, broker));
    }

    fn heal(&mut self, all: bool) {
        let now = self.cluster.now;
        let due: Vec<_> = self
            .healed
            .extract_if(.., |(at, _)| all || *at <= now)
            .collect();
        for (_, broker) in due {
            self.cluster.lives[broker] = Life::Up;
        }
    }

    /// A component does something.
    fn act(&mut self) {
        let session = self.rng.below(self.sessions.len() as u64) as usize;
        let own = self
            .inboxes
            .iter()
            .filter(|(_, inbox)| inbox.session == session && !inbox.is_over);
        let own: Vec<u64> = own.map(|(sid, _)| *sid).collect();
        if own.is_empty() || (own.len() < 3 && self.rng.percent(20)) {
            let sid = self.inboxes.len() as u64 + 1;
            let subject = format!("_I.{session}.{sid}");
            let id = self.sessions[session];
            self.input(|trunk, cx| {
                trunk.subscribe(id, subject.as_bytes(), None, sid.to_string().as_bytes(), cx)
            });
            let inbox = Inbox {
                session,
                subject,
                expires: Some(0),
                ..Inbox::default()
            };
            self.inboxes.insert(sid, inbox);
            return self.pull(sid);
        }
        let sid = *self.rng.pick(&own);
        if self.rng.percent(10) {
            let id = self.sessions[session];
            self.input(|trunk, cx| trunk.unsubscribe(id, sid.to_string().as_bytes(), None, cx));
            self.inboxes.get_mut(&sid).expect("its own").is_over = true;
        } else if self.inboxes[&sid].asked < 40 {
            self.pull(sid);
        }
    }

    fn pull(&mut self, sid: u64) {
        let batch = self.rng.range(1, 6);
        let expires = *self.rng.pick(&[None, None, Some(1_000), Some(4_000)]);
        let body = match expires {
            None if self.rng.percent(50) => batch.to_string(),
            None => format!("{{\"batch\":{batch}}}"),
            Some(ms) => format!("{{\"batch\":{batch},\"expires\":{}}}", ms * 1_000_000),
        };
        let (now, led) = (self.cluster.now, self.cluster.leader.is_some());
        let inbox = self.inboxes.get_mut(&sid).expect("its own");
        inbox.asked += batch;
        inbox.asked_at = now;
        inbox.expired |= expires.is_some();
        inbox.refused += if led { 0 } else { batch };
        let until = expires.map(|ms| now + ms);
        inbox.expires = inbox.expires.zip(until).map(|(before, at)| before.max(at));
        self.trace(|| format!("session asks {body} for {sid}"));
        let inbox = self.inboxes.get_mut(&sid).expect("its own");
        let frame = format!("PUB {NEXT} {} {}\r\n{body}\r\n", inbox.subject, body.len());
        let id = self.sessions[inbox.session];
        self.input(|trunk, cx| {
            trunk.publish(id, frame.as_bytes(), 1, cx);
            if let Scan::Op {
                op: ClientOp::Publish(publish),
                ..
            } = client::scan(frame.as_bytes(), &ClientLimits::NONE)
            {
                trunk.note_pull(id, &publish, cx);
            }
        });
    }

    /// Carries what is on its way.
    fn move_bytes(&mut self) {
        let now = self.cluster.now;
        let lives = self.cluster.lives;
        let due: Vec<_> = self.dials.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, link, broker) in due {
            match lives[usize::from(broker.0)] {
                Life::Dead => {
                    let refused = Failure::ConnectionRefused;
                    self.input(|trunk, cx| trunk.handle_link_failed(link, refused, cx));
                }
                _ => {
                    let no = link.0;
                    self.links.insert(no, link);
                    self.input(|trunk, cx| trunk.handle_connected(link, cx));
                    self.cluster.open(no, usize::from(broker.0));
                }
            }
        }
        let is_up = |cluster: &Cluster, no: &u32| {
            let conn = cluster.conns.get(no);
            conn.is_none_or(|conn| cluster.lives[conn.broker] == Life::Up)
        };
        let cluster = &self.cluster;
        let due = self
            .written
            .extract_if(.., |(at, no, _)| *at <= now && is_up(cluster, no));
        for (_, no, bytes) in due.collect::<Vec<_>>() {
            self.trace(|| {
                format!(
                    "link {no} -> {}",
                    String::from_utf8_lossy(&bytes).escape_debug()
                )
            });
            self.cluster.read(no, &bytes);
        }
        let (conns, lives) = (&self.cluster.conns, self.cluster.lives);
        let is_due = |(at, no, _): &mut (Ms, u32, Vec<u8>)| {
            let is_frozen = conns
                .get(no)
                .is_some_and(|conn| lives[conn.broker] != Life::Up);
            *at <= now && !is_frozen
        };
        let due: Vec<_> = self.cluster.sent.extract_if(.., is_due).collect();
        for (_, no, bytes) in due {
            self.trace(|| {
                format!(
                    "link {no} <- {}",
                    String::from_utf8_lossy(&bytes).escape_debug()
                )
            });
            if let Some(link) = self.links.get(&no).copied() {
                self.input(|trunk, cx| trunk.handle_link_bytes(link, &bytes, cx));
            }
        }
    }

    /// Does what a driver does.
    fn drive(&mut self) {
        let now = self.now();
        if self
            .trunk
            .poll_timeout(&self.bus)
            .is_some_and(|at| at <= now)
        {
            self.input(|trunk, cx| trunk.handle_timeout(cx));
        }
        while let Some(broker) = self.bus.roster_mut().poll_probe(now) {
            let info =
                r#"{"server_id":"x","version":"2.15.1","headers":true,"max_payload":1048576}"#;
            let result = match self.cluster.lives[usize::from(broker.0)] {
                Life::Up => Ok(ServerInfo::parse(info.as_bytes()).expect("an INFO")),
                Life::Dead => Err(Failure::ConnectionRefused),
                Life::Frozen => Err(Failure::InfoTimeout),
            };
            self.bus.roster_mut().handle_probe(broker, result, now);
        }
        if !self.bus.take_woken().is_empty() {
            self.input(|trunk, cx| trunk.handle_wake(cx));
        }
        while let Some(action) = self.trunk.poll_action() {
            match action {
                Action::Dial { link, broker } => {
                    self.dials.push((self.cluster.now + STEP, link, broker));
                }
                Action::Close { link, .. } => {
                    self.dials.retain(|(_, dialled, _)| *dialled != link);
                    self.written.retain(|(_, to, _)| *to != link.0);
                    self.links.remove(&link.0);
                    let conn = self.cluster.conns.get(&link.0);
                    // A frozen broker doesn't know.
                    if conn.is_some_and(|conn| self.cluster.lives[conn.broker] == Life::Up) {
                        self.cluster.close(link.0);
                    }
                }
                _ => {}
            }
        }
        self.close_thawed();
        for (no, link) in self.links.clone() {
            // Sometimes a socket takes nothing for a while.
            if self.rng.percent(80)
                && let Some(out) = self.trunk.link_out(link)
            {
                let bytes = take(out);
                if !bytes.is_empty() {
                    self.written.push((self.cluster.now + 1, no, bytes));
                }
            }
        }
        for session in 0..self.sessions.len() {
            let out = self.trunk.out(self.sessions[session]);
            self.heard[session].extend(out.map(take).unwrap_or_default());
            self.judge_heard(session);
        }
        while self.trunk.poll_touched().is_some() {}
    }

    /// A broker that is back sees which of its connections have ended meanwhile.
    fn close_thawed(&mut self) {
        let cluster = &self.cluster;
        let is_gone = |no: &u32| {
            let is_up = cluster.lives[cluster.conns[no].broker] == Life::Up;
            is_up && !self.links.contains_key(no)
        };
        let gone: Vec<u32> = cluster.conns.keys().copied().filter(is_gone).collect();
        for no in gone {
            self.cluster.close(no);
        }
    }

    fn judge_heard(&mut self, session: usize) {
        let heard = std::mem::take(&mut self.heard[session]);
        let mut used = 0;
        while let ServerScan::Op { op, len } =
            server::scan(&heard[used..], &ServerLimits::default())
        {
            used += len;
            match op {
                ServerOp::Msg(msg) => self.judge_message(session, &msg),
                ServerOp::Err { text, .. } => {
                    self.fail(format!("-ERR {}", String::from_utf8_lossy(text)));
                }
                _ => {}
            }
        }
        self.heard[session] = heard[used..].to_vec();
    }

    fn judge_message(&mut self, session: usize, msg: &Msg<'_>) {
        let now = self.cluster.now;
        let frame = String::from_utf8_lossy(msg.frame).into_owned();
        let sid = std::str::from_utf8(msg.sid)
            .ok()
            .and_then(|sid| sid.parse::<u64>().ok());
        let inbox = sid.and_then(|sid| self.inboxes.get_mut(&sid));
        let Some(inbox) = inbox.filter(|inbox| inbox.session == session) else {
            return self.fail(format!("nobody's: {frame:?}"));
        };
        if inbox.subject.as_bytes() != msg.subject {
            return self.fail(format!("natsmux's own: {frame:?}"));
        }
        let is_late = inbox.expires.is_some_and(|at| at + EXPIRED < now);
        let repeated = self.bus.counters().pulls_repeated;
        match PullStatus::of(msg) {
            PullStatus::Message => {
                inbox.got += 1;
                let is_more = inbox.got + inbox.ended > inbox.asked;
                if is_more && repeated == 0 && !self.froze {
                    self.fail(format!("more than was asked for: {frame:?}"));
                } else if is_late && !self.froze {
                    self.fail(format!("a request that has expired is served: {frame:?}"));
                }
            }
            PullStatus::Ended { messages } => inbox.ended += messages,
            // The last of its requests may have expired in front of it.
            PullStatus::LeaderChanged => inbox.refused += inbox.asked.saturating_sub(inbox.got),
            PullStatus::NoResponders => {
                self.marks.insert("pulls: no responders");
                // One that waited in natsmux came to a broker later.
                inbox.refused += inbox.asked.saturating_sub(inbox.got);
                if now > inbox.asked_at + REFUSED {
                    self.fail(format!("a status about what natsmux asked: {frame:?}"));
                }
            }
            _ => {}
        }
    }

    /// All have healed and messages keep coming: nobody waits for ever, and nothing is left behind.
    fn judge_end(&mut self) {
        if self.violation.is_some() {
            return;
        }
        let counters = self.bus.counters();
        let (resumed, repeated) = (counters.pulls_resumed, counters.pulls_repeated);
        if resumed > 0 {
            self.marks.insert("pulls: asked again");
        }
        if repeated > 0 {
            self.marks.insert("pulls: asked again in doubt");
        }
        if self.froze {
            return;
        }
        let waits = |inbox: &&Inbox| !inbox.is_over && !inbox.expired && inbox.refused == 0;
        let all: Vec<_> = self.inboxes.values().filter(waits).collect();
        let hungry = all
            .iter()
            .find(|inbox| inbox.got + inbox.ended < inbox.asked);
        let hungry =
            hungry.map(|inbox| format!("{} of {} at {}", inbox.got, inbox.asked, inbox.subject));
        let double = all
            .iter()
            .find(|inbox| self.cluster.left_of(&inbox.subject) > 0 && repeated == 0);
        let double = double.map(|inbox| inbox.subject.clone());
        if let Some(hungry) = hungry {
            self.fail(format!("a consumer waits for ever: {hungry}"));
        } else if let Some(double) = double {
            self.fail(format!("a request too many waits for {double}"));
        }
    }
}

fn take(out: &mut Outbox) -> Vec<u8> {
    let bytes = waiting(out, 0, out.pending_bytes());
    out.advance(bytes.len());
    bytes
}
