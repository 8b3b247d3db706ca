//! A model of a JetStream consumer on a cluster: who leads it, which requests wait there, and who
//! is interested in their replies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use natsmux::proto::client::{self, ClientLimits, ClientOp, Publish, Scan};
use natsmux::proto::pull::PullRequest;

use super::super::rng::Rng;

/// Milliseconds.
pub type Ms = u64;

pub const BROKERS: usize = 3;
/// The first and the only stream and consumer.
pub const NEXT: &str = "$JS.API.CONSUMER.MSG.NEXT.S.C";
const INFO: &str = "$JS.API.CONSUMER.INFO.S.C";
/// What went to a broker that didn't pass it on comes again.
const ACK_WAIT: Ms = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Up,
    Frozen,
    Dead,
}

/// A client's connection at a broker.
pub struct Conn {
    pub broker: usize,
    /// What it subscribes to, by its sids.
    subs: BTreeMap<String, String>,
    partial: Vec<u8>,
}

struct Waiting {
    reply: String,
    left: u64,
    expires: Option<Ms>,
}

/// The cluster, as its clients see it.
pub struct Cluster {
    pub lives: [Life; BROKERS],
    pub conns: BTreeMap<u32, Conn>,
    pub leader: Option<usize>,
    elects_at: Ms,
    waiting: VecDeque<Waiting>,
    /// The replies of requests that the others know of, when a leader is gone.
    orphans: BTreeSet<String>,
    pub pending: VecDeque<u64>,
    /// What came to a broker that didn't pass it on, and when it comes again.
    lost: Vec<(Ms, u64)>,
    /// Bytes to connections, and when they arrive.
    pub sent: Vec<(Ms, u32, Vec<u8>)>,
    pub now: Ms,
    /// Clients may not ask about consumers.
    forbids: bool,
}

impl Cluster {
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            lives: [Life::Up; BROKERS],
            conns: BTreeMap::new(),
            leader: Some(rng.below(BROKERS as u64) as usize),
            elects_at: 0,
            waiting: VecDeque::new(),
            orphans: BTreeSet::new(),
            pending: VecDeque::new(),
            lost: Vec::new(),
            sent: Vec::new(),
            now: 0,
            forbids: rng.percent(10),
        }
    }

    pub fn open(&mut self, no: u32, broker: usize) {
        let conn = Conn {
            broker,
            subs: BTreeMap::new(),
            partial: Vec::new(),
        };
        self.conns.insert(no, conn);
        let info = "INFO {\"server_id\":\"x\",\"version\":\"2.15.1\",\"headers\":true,\"max_payload\":1048576,\"proto\":1}\r\n";
        self.say(no, info.as_bytes().to_vec());
    }

    fn say(&mut self, no: u32, bytes: Vec<u8>) {
        self.sent.push((self.now + 1, no, bytes));
    }

    /// A broker ends or freezes. Returns the connections that end with it.
    pub fn strike(&mut self, broker: usize, life: Life, rng: &mut Rng) -> Vec<u32> {
        self.lives[broker] = life;
        if self.leader == Some(broker) {
            self.leader = None;
            self.elects_at = self.now + rng.range(500, 2_500);
            self.orphans = self.waiting.drain(..).map(|one| one.reply).collect();
        }
        if life == Life::Frozen {
            return Vec::new();
        }
        let ended = self.conns.iter().filter(|(_, conn)| conn.broker == broker);
        let ended: Vec<u32> = ended.map(|(no, _)| *no).collect();
        for no in &ended {
            self.close(*no);
        }
        ended
    }

    pub fn close(&mut self, no: u32) {
        self.conns.remove(&no);
        // What it had not read is lost.
        let unread = self.sent.extract_if(.., |(_, to, _)| *to == no);
        let numbers: Vec<u64> = unread
            .filter_map(|(_, _, bytes)| number_of(&bytes))
            .collect();
        let again = self.now + ACK_WAIT;
        self.lost
            .extend(numbers.into_iter().map(|number| (again, number)));
    }

    /// The sids of a reply's subscriptions, at brokers that others take for alive.
    fn interest(&self, reply: &str) -> Vec<(u32, String)> {
        let conns = self.conns.iter();
        let subs = conns.flat_map(|(no, conn)| conn.subs.iter().map(move |sub| (no, sub)));
        let of_reply = subs.filter(|(_, (_, subject))| *subject == reply);
        of_reply.map(|(no, (sid, _))| (*no, sid.clone())).collect()
    }

    /// Sends a message, or a status, to the subscriptions of a reply. Returns whether one of them
    /// is at a broker that passes it on.
    fn deliver(&mut self, reply: &str, head: &str, body: &str) -> bool {
        let mut reaches = false;
        for (no, sid) in self.interest(reply) {
            if self.lives[self.conns[&no].broker] != Life::Up {
                continue;
            }
            reaches = true;
            let frame = if head.is_empty() {
                format!("MSG {reply} {sid} ack {}\r\n{body}\r\n", body.len())
            } else {
                let len = head.len();
                format!("HMSG {reply} {sid} {len} {len}\r\n{head}\r\n")
            };
            self.say(no, frame.into_bytes());
        }
        reaches
    }

    fn status(&mut self, reply: &str, line: &str) {
        self.deliver(reply, &format!("NATS/1.0 {line}\r\n\r\n"), "");
    }

    /// Bytes that a broker reads.
    pub fn read(&mut self, no: u32, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(&no) else {
            return;
        };
        conn.partial.extend_from_slice(bytes);
        let input = std::mem::take(&mut conn.partial);
        let mut used = 0;
        while let Scan::Op { op, len } = client::scan(&input[used..], &ClientLimits::NONE) {
            used += len;
            self.handle(no, op);
        }
        if let Some(conn) = self.conns.get_mut(&no) {
            conn.partial = input[used..].to_vec();
        }
    }

    fn handle(&mut self, no: u32, op: ClientOp<'_>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let conn = self.conns.get_mut(&no).expect("it is read");
        match op {
            ClientOp::Ping => self.say(no, b"PONG\r\n".to_vec()),
            ClientOp::Subscribe { subject, sid, .. } => {
                conn.subs.insert(text(sid), text(subject));
            }
            ClientOp::Unsubscribe { sid, .. } => {
                conn.subs.remove(&text(sid));
            }
            ClientOp::Publish(publish) => self.handle_request(no, &publish),
            ClientOp::Connect { .. } | ClientOp::Pong | ClientOp::Ignored => {}
        }
    }

    fn handle_request(&mut self, no: u32, publish: &Publish<'_>) {
        let reply = publish.reply.unwrap_or_default();
        let reply = String::from_utf8_lossy(reply).into_owned();
        if self.forbids && publish.subject == INFO.as_bytes() {
            let text = format!("-ERR 'Permissions Violation for Publish to \"{INFO}\"'\r\n");
            return self.say(no, text.into_bytes());
        }
        let is_led = self.leader.is_some();
        if !is_led {
            return self.status(&reply, "503");
        }
        if publish.subject == INFO.as_bytes() {
            self.drop_deserted();
            let waiting = self.waiting.len();
            let body = format!("{{\"config\":{{}},\"num_waiting\":{waiting}}}");
            self.deliver(&reply, "", &body);
        } else if publish.subject == NEXT.as_bytes()
            && let Some(request) = PullRequest::parse(publish.payload())
        {
            let expires = request
                .expires
                .map(|after| self.now + after.as_millis() as Ms);
            self.waiting.push_back(Waiting {
                reply,
                left: request.batch,
                expires,
            });
        }
    }

    fn drop_deserted(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|one| !self.interest(&one.reply).is_empty());
        self.waiting = waiting;
    }

    /// Requests that wait for this reply's messages: how many of them.
    pub fn left_of(&self, reply: &str) -> u64 {
        let own = self.waiting.iter().filter(|one| one.reply == reply);
        own.map(|one| one.left).sum()
    }

    /// What a leader does by itself.
    pub fn tick(&mut self, rng: &mut Rng) {
        if self.leader.is_none() {
            let up: Vec<usize> = (0..BROKERS)
                .filter(|no| self.lives[*no] == Life::Up)
                .collect();
            if self.now < self.elects_at || up.len() < 2 {
                return;
            }
            self.leader = Some(*rng.pick(&up));
            for reply in std::mem::take(&mut self.orphans) {
                self.status(&reply, "409 Leadership Change");
            }
        }
        let now = self.now;
        let again = self.lost.extract_if(.., |(at, _)| *at <= now);
        let again: Vec<u64> = again.map(|(_, number)| number).collect();
        self.pending.extend(again);
        let is_over = |one: &Waiting| one.expires.is_some_and(|at| at <= now);
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (over, waiting): (Vec<_>, Vec<_>) = waiting.partition(is_over);
        self.waiting = waiting.into();
        for one in over {
            let pending = format!("408 Request Timeout\r\nNats-Pending-Messages: {}", one.left);
            self.status(&one.reply, &pending);
        }
        while let Some(number) = self.pending.front().copied()
            && let Some(first) = self.waiting.front()
        {
            let reply = first.reply.clone();
            if self.interest(&reply).is_empty() {
                self.waiting.pop_front();
                continue;
            }
            self.pending.pop_front();
            if !self.deliver(&reply, "", &number.to_string()) {
                self.lost.push((now + ACK_WAIT, number));
            }
            // Requests take turns.
            if let Some(mut one) = self.waiting.pop_front() {
                one.left -= 1;
                if one.left > 0 {
                    self.waiting.push_back(one);
                }
            }
        }
    }
}

/// The number in a message of the consumer.
pub fn number_of(frame: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(frame).ok()?;
    let rest = text.strip_prefix("MSG ")?;
    let (_, body) = rest.split_once("\r\n")?;
    body.trim_end().parse().ok()
}
