//! Model components: what they do, and what they do wrong.

use std::collections::BTreeSet;

use natsmux::upstream::CloseReason;

use super::daemon::FULL;
use super::faults::EXPIRED;
use super::net::{ConnId, MS, SECOND, Segment, Time, Way};
use super::oracle::frames::{Down, Publish, Splitter, json_value};
use super::plan::{Plan, SMALL_PAYLOAD};
use super::rng::Rng;
use super::world::{Event, World};

const SUBJECTS: [&str; 5] = ["a", "b", "a.b", "a.c", "deny.x"];
const PATTERNS: [&str; 9] = ["a", "b", "a.b", "a.*", "*.c", "a.>", ">", "deny.x", "a..b"];
/// What gets the replies of all who share a trunk.
const EVERY_INBOX: &str = "_INBOX.>";
/// Sids that a component uses at most, so that messages don't multiply without end.
const SIDS_MAX: usize = 9;
/// Of queue groups, with the blank before them; most subscriptions have none.
const GROUPS: [&str; 6] = ["", "", "", "", " g", " h"];

/// How a component misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Good,
    /// Reads only now and then.
    Slow,
    /// Never answers a PING.
    Deaf,
}

/// One component, which may connect several times in a row.
#[derive(Debug)]
pub struct Component {
    pub host: usize,
    pub user: String,
    /// Whether it tells natsmux so with a token.
    has_token: bool,
    pub conn: Option<ConnId>,
    pub session: Option<usize>,
    /// When it closed its side, or was lost.
    pub gone: Option<Time>,
    /// It has sent what isn't the protocol.
    faulty: bool,
    manner: Manner,
    verbose: bool,
    headers: bool,
    /// It has sent what a broker with a smaller limit doesn't take.
    sent_large: bool,
    /// What it was told, unless it doesn't care.
    max_payload: Option<usize>,
    echo: bool,
    /// Sends its first operations ahead of CONNECT.
    early: bool,
    /// Sends CONNECT before it has read INFO.
    eager: bool,
    connected: bool,
    pinged: bool,
    replies: bool,
    next_sid: u64,
    sids: Vec<String>,
    limited: BTreeSet<String>,
    /// Patterns and groups that it has subscribed to.
    asked: BTreeSet<(&'static str, &'static str)>,
    input: Splitter,
}

impl Component {
    pub fn new(plan: &Plan, rng: &mut Rng) -> Self {
        let user = match rng.below(20) {
            0 => "mallory".to_owned(),
            other => format!("user{}", other % 3),
        };
        let manner = match rng.below(12) {
            0 => Manner::Slow,
            1 => Manner::Deaf,
            _ => Manner::Good,
        };
        Self {
            host: rng.below(plan.hosts as u64) as usize,
            user,
            has_token: plan.identities,
            conn: None,
            session: None,
            gone: None,
            faulty: false,
            manner,
            verbose: rng.percent(25),
            headers: plan.has_headers() && rng.percent(50),
            sent_large: false,
            max_payload: rng.percent(80).then_some(1 << 20),
            echo: rng.percent(80),
            // Without a CONNECT, what needs headers is a fault: of one who shares, unexpected.
            early: rng.percent(15) && !plan.is_shared,
            eager: rng.percent(30),
            connected: false,
            pinged: false,
            replies: rng.percent(50),
            next_sid: 1,
            sids: Vec::new(),
            limited: BTreeSet::new(),
            asked: BTreeSet::new(),
            input: Splitter::default(),
        }
    }

    pub fn is_slow(&self) -> bool {
        self.manner == Manner::Slow
    }

    /// CONNECT, and mostly a PING behind it.
    fn greeting(&self) -> Vec<u8> {
        let Self {
            verbose,
            headers,
            echo,
            user,
            ..
        } = self;
        let credentials = if self.has_token {
            format!("\"auth_token\":\"{user}\"")
        } else {
            format!("\"user\":\"{user}\",\"pass\":\"x\"")
        };
        format!(
            "CONNECT {{\"verbose\":{verbose},\"pedantic\":false,\"echo\":{echo},\"headers\":{headers},\"no_responders\":{headers},\"protocol\":1,{credentials}}}\r\n"
        )
        .into_bytes()
    }
}

impl World {
    /// A component acts.
    pub fn component_turn(&mut self, no: usize) {
        if self.calm || self.components[no].gone.is_some() {
            return;
        }
        if self.components[no].conn.is_none() {
            self.component_connects(no);
        } else if self.components[no].connected {
            self.component_works(no);
        }
        let pause = self.rng.range(1, self.plan.pace);
        self.after(pause, Event::Component(no));
    }

    fn component_connects(&mut self, no: usize) {
        let conn = self.next_conn;
        self.next_conn += 1;
        self.focus(self.components[no].host);
        self.touch(self.host);
        if self.turns_away() {
            return;
        }
        let session = self.accept(no, conn);
        let component = &mut self.components[no];
        component.conn = Some(conn);
        component.session = Some(session);
        if component.early {
            let ops = self.operations(no, 2);
            self.component_says(no, ops);
        }
        if self.components[no].eager {
            self.component_greets(no);
        }
    }

    fn component_greets(&mut self, no: usize) {
        let component = &mut self.components[no];
        if std::mem::replace(&mut component.connected, true) {
            return;
        }
        let mut greeting = component.greeting();
        component.pinged = true;
        greeting.extend_from_slice(b"PING\r\n");
        self.component_says(no, greeting);
    }

    fn component_says(&mut self, no: usize, bytes: Vec<u8>) {
        if let Some(conn) = self.components[no].conn {
            self.send(conn, Way::Up, Segment::Bytes(bytes));
        }
    }

    fn component_works(&mut self, no: usize) {
        let rare = if self.plan.is_shared { 150 } else { 400 };
        match self.rng.below(rare) {
            0 => return self.component_dies(no),
            1 => {
                self.oracle.mark("half-close");
                let conn = self.components[no].conn.expect("connected");
                self.components[no].gone = Some(self.now);
                return self.send(conn, Way::Up, Segment::Fin);
            }
            2 => {
                self.oracle.mark("garbage from a component");
                self.components[no].faulty = true;
                return self.component_says(no, b"HELLO there\r\nPING\r\n".to_vec());
            }
            3..9 if self.plan.is_uniform() => {
                let toggle = self.rng.percent(50);
                let component = &mut self.components[no];
                component.verbose ^= toggle;
                let again = component.greeting();
                return self.component_says(no, again);
            }
            _ => {}
        }
        let count = self.rng.range(1, 4);
        let ops = self.operations(no, count);
        self.component_says(no, ops);
    }

    /// The process dies, perhaps in the middle of a frame.
    fn component_dies(&mut self, no: usize) {
        self.oracle.mark("component dies");
        let ops = self.operations(no, 2);
        let cut = self.rng.below(ops.len() as u64) as usize;
        self.component_says(no, ops[..cut].to_vec());
        let conn = self.components[no].conn.expect("connected");
        self.components[no].gone = Some(self.now);
        self.cut(conn, Way::Up, Segment::Reset);
    }

    fn operations(&mut self, no: usize, count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            match self.rng.below(20) {
                0..3 => self.say_sub(no, &mut bytes),
                3 => self.say_unsub(no, &mut bytes),
                4 => self.say_limit(no, &mut bytes),
                5..8 => {
                    let ping = *self.rng.pick(&["PING\r\n", "ping\r\n"]);
                    bytes.extend_from_slice(ping.as_bytes());
                }
                8 => self.say_request(no, &mut bytes),
                _ => {
                    for _ in 0..self.rng.range(1, 5) {
                        self.say_publish(no, None, &mut bytes);
                    }
                }
            }
        }
        bytes
    }

    fn say_sub(&mut self, no: usize, bytes: &mut Vec<u8>) {
        let reuse = self.rng.percent(10);
        let mut pattern = *self.rng.pick(&PATTERNS);
        if self.plan.is_shared && self.rng.percent(8) {
            pattern = EVERY_INBOX;
        }
        let group = *self.rng.pick(&GROUPS);
        // Two equal subscriptions that no broker has yet can't be told apart in a replay.
        let is_new = self.components[no].asked.insert((pattern, group));
        if !is_new && !self.plan.twins && !pattern.starts_with("deny") {
            return;
        }
        if pattern.starts_with("deny") {
            // Its sid is used once. A broker's -ERR names no sid, so of several refused SUBs
            // that differ in nothing else, natsmux can't tell which it is about.
            let sid = self.next_identity;
            self.next_identity += 1;
            let line = format!("SUB {pattern}{group} d{sid}\r\n");
            return bytes.extend_from_slice(line.as_bytes());
        }
        let sid = self.some_sid(no, reuse);
        bytes.extend_from_slice(format!("SUB {pattern}{group} {sid}\r\n").as_bytes());
    }

    /// A new sid, or one that the component has used before.
    fn some_sid(&mut self, no: usize, reuse: bool) -> String {
        let component = &mut self.components[no];
        if (reuse || component.sids.len() >= SIDS_MAX) && !component.sids.is_empty() {
            let sid = self.rng.pick(&component.sids).clone();
            // Whether a max was reached by then, only a broker knows.
            if !(self.plan.is_shared && component.limited.contains(&sid)) {
                return sid;
            }
        }
        let sid = format!("{:03}", component.next_sid);
        component.next_sid += 1;
        component.sids.push(sid.clone());
        sid
    }

    fn say_unsub(&mut self, no: usize, bytes: &mut Vec<u8>) {
        let sid = self.some_sid(no, true);
        bytes.extend_from_slice(format!("UNSUB {sid}\r\n").as_bytes());
    }

    fn say_limit(&mut self, no: usize, bytes: &mut Vec<u8>) {
        let sid = self.some_sid(no, true);
        let max = self.rng.range(0, 12);
        bytes.extend_from_slice(format!("UNSUB {sid} {max}\r\n").as_bytes());
        // Whether a raised max came in time, only the broker knows: no more of this sid.
        let component = &mut self.components[no];
        if !component.limited.insert(sid.clone()) {
            component.sids.retain(|known| *known != sid);
        }
    }

    /// An inbox, a request and, for an old client, `UNSUB 1` between them.
    fn say_request(&mut self, no: usize, bytes: &mut Vec<u8>) {
        let inbox = format!("_INBOX.c{no}.{}", self.next_identity);
        let sid = self.some_sid(no, false);
        bytes.extend_from_slice(format!("SUB {inbox} {sid}\r\n").as_bytes());
        if self.rng.percent(60) {
            bytes.extend_from_slice(format!("UNSUB {sid} 1\r\n").as_bytes());
            self.components[no].limited.insert(sid);
        }
        self.say_publish(no, Some(inbox), bytes);
    }

    fn say_publish(&mut self, no: usize, reply: Option<String>, bytes: &mut Vec<u8>) {
        let subject = match self.rng.below(20) {
            0 => SUBJECTS[4],
            other => SUBJECTS[other as usize % 4],
        };
        let headers = self.components[no].headers;
        let publish = self.own_publish(no, subject.as_bytes(), reply, headers);
        publish.encode(None, bytes);
    }

    /// A publish of a component that heeds what it was told of sizes, if it does.
    fn own_publish(
        &mut self,
        no: usize,
        subject: &[u8],
        reply: Option<String>,
        headers: bool,
    ) -> Publish {
        let mut publish = self.make_publish(subject, reply, headers);
        if let Some(max) = self.components[no].max_payload {
            publish.payload.truncate(max);
        }
        self.components[no].sent_large |= publish.payload.len() > SMALL_PAYLOAD;
        publish
    }

    fn make_publish(&mut self, subject: &[u8], reply: Option<String>, headers: bool) -> Publish {
        let mut payload = Vec::new();
        let mut header_len = None;
        if headers && self.rng.percent(30) {
            payload.extend_from_slice(b"NATS/1.0\r\nK: v\r\n\r\n");
            header_len = Some(payload.len());
        }
        let id = self.next_identity;
        self.next_identity += 1;
        match self.rng.below(12) {
            // Where many share, a refusal must be known to be one's own.
            0 if !self.plan.is_shared => {}
            1 => {
                payload.extend_from_slice(format!("#{id} ").as_bytes());
                payload.extend_from_slice(&vec![b'x'; self.rng.below(6000) as usize]);
            }
            2 => payload.extend_from_slice(format!("#{id} \r\nPONG\r\nMSG a 1 3\r\n").as_bytes()),
            _ => payload.extend_from_slice(format!("#{id} .").as_bytes()),
        }
        Publish {
            subject: subject.to_vec(),
            reply: reply.map(String::into_bytes),
            headers: header_len,
            payload,
        }
    }

    /// Somebody without natsmux publishes, at any living broker.
    pub fn outside_publish(&mut self) {
        let no = self.rng.below(self.brokers.len() as u64) as usize;
        if self.brokers[no].life == super::broker::Life::Up {
            for _ in 0..self.rng.range(1, 3) {
                let subject = SUBJECTS[self.rng.below(4) as usize];
                let publish = self.make_publish(subject.as_bytes(), None, true);
                self.broker_publish(no, None, publish);
            }
            self.broker_flush(no);
        }
        if !self.calm {
            let pause = self.rng.range(MS, 60 * MS);
            self.after(pause, Event::Outside);
        }
    }

    /// Something arrived at a component.
    pub fn component_read(&mut self, no: usize) {
        if self.components[no].is_slow() && !self.calm {
            let pause = self.rng.range(1, 2 * SECOND);
            return self.after(pause, Event::Catch { component: no });
        }
        self.component_catches_up(no);
    }

    pub fn component_catches_up(&mut self, no: usize) {
        let Some(conn) = self.components[no].conn else {
            return;
        };
        while let Some(segment) = self.read(conn, Way::Down) {
            match segment {
                Segment::Bytes(bytes) => self.component_hears(no, &bytes),
                Segment::Fin | Segment::Reset => return self.component_sees_the_end(no, conn),
            }
        }
    }

    fn component_sees_the_end(&mut self, no: usize, conn: ConnId) {
        self.conns.remove(&conn);
        let component = &mut self.components[no];
        component.gone = Some(self.now);
        let most = if self.plan.is_shared { 24 } else { 12 };
        if !self.calm && self.components.len() < most {
            let again = Component::new(&self.plan, &mut self.rng);
            self.components.push(again);
            // The sooner, the likelier it gets the place of one that is gone.
            let at_once = self.plan.is_shared && self.rng.percent(60);
            let longest = if at_once { 2 * MS } else { 500 * MS };
            let pause = self.rng.range(MS, longest);
            self.after(pause, Event::Component(self.components.len() - 1));
        }
    }

    fn component_hears(&mut self, no: usize, bytes: &[u8]) {
        let session = self.components[no].session;
        self.trace(|| {
            format!(
                "component {no} (session {session:?}) <- {}",
                String::from_utf8_lossy(bytes).escape_debug()
            )
        });
        self.components[no].input.feed(bytes);
        loop {
            match self.components[no].input.next_down() {
                Ok(None) => return,
                Ok(Some(frame)) => self.component_heard(no, frame),
                Err(what) => {
                    return self
                        .oracle
                        .fail("I3 framing", format!("component {no}: {what}"));
                }
            }
        }
    }

    fn component_heard(&mut self, no: usize, frame: Down) {
        match frame {
            Down::Info(json) => {
                let told = json_value(&json, "max_payload").and_then(|max| max.parse().ok());
                let component = &mut self.components[no];
                component.max_payload = component.max_payload.and(told);
                self.component_greets(no);
            }
            Down::Ping if self.components[no].manner != Manner::Deaf => {
                self.component_says(no, b"PONG\r\n".to_vec())
            }
            Down::Message { publish, .. } => {
                if let (Some(reply), true, false) =
                    (publish.reply, self.components[no].replies, self.calm)
                {
                    let answer = self.own_publish(no, &reply, None, false);
                    let mut bytes = Vec::new();
                    answer.encode(None, &mut bytes);
                    self.component_says(no, bytes);
                }
            }
            _ => {}
        }
    }

    /// natsmux has closed a component's connection.
    pub fn component_lost(&mut self, conn: ConnId) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.up.in_flight.clear();
            conn.up.ready.clear();
        }
    }

    /// Faults are over: whoever is still there asks one last time.
    pub fn components_ask(&mut self) {
        for no in 0..self.components.len() {
            if self.components[no].gone.is_some() || self.components[no].conn.is_none() {
                continue;
            }
            self.component_catches_up(no);
            if self.components[no].connected && self.components[no].gone.is_none() {
                self.component_says(no, b"PING\r\n".to_vec());
            }
        }
    }

    /// Whose session it is, of those of the present host.
    pub fn component_of(&self, session: usize) -> Option<&Component> {
        self.components
            .iter()
            .find(|component| component.host == self.host && component.session == Some(session))
    }

    /// I15: whether a session may end for this reason.
    pub fn may_close(&self, session: usize, reason: &CloseReason) -> bool {
        let Some(component) = self.component_of(session) else {
            return false;
        };
        if self.may_close_in_outage(reason) {
            return true;
        }
        if self.plan.is_shared && !matches!(reason, CloseReason::Internal) {
            return self.may_close_shared(component, session, reason);
        }
        let model = &self.oracle.sessions[session];
        match reason {
            CloseReason::ComponentClosed | CloseReason::ComponentLost => component.gone.is_some(),
            CloseReason::Fault(_) => model.at_fault || component.faulty || component.sent_large,
            CloseReason::SlowConsumer => {
                component.is_slow() || self.daemon.overflowed.contains(&session)
            }
            CloseReason::Stale => component.manner != Manner::Good || component.gone.is_some(),
            CloseReason::AuthTimeout | CloseReason::AuthTimeoutOf2012 => model.options.is_none(),
            CloseReason::Refused(_) if model.too_large => true,
            CloseReason::Refused(text) if **text == *FULL => {
                self.may_be_turned_away(&component.user, model.accepted)
            }
            CloseReason::Refused(text) if **text == *EXPIRED.as_bytes() => {
                model.refusals.contains(EXPIRED)
            }
            CloseReason::Refused(_) => {
                let is_welcome = self.is_welcome_somewhere(&component.user);
                !model.refusals.is_empty() && (!model.accepted || !is_welcome)
            }
            _ => false,
        }
    }

    /// The same where a broker's verdict on one session is that on its neighbours.
    fn may_close_shared(
        &self,
        component: &Component,
        session: usize,
        reason: &CloseReason,
    ) -> bool {
        let name = (self.host, session);
        let witness = self.witness.as_ref();
        let accepted = witness.is_some_and(|witness| witness.is_accepted(name));
        match reason {
            CloseReason::ComponentClosed | CloseReason::ComponentLost => component.gone.is_some(),
            CloseReason::Fault(_) => component.faulty || component.sent_large,
            CloseReason::SlowConsumer => {
                component.is_slow() || self.daemon.overflowed.contains(&session)
            }
            CloseReason::Stale => component.manner != Manner::Good || component.gone.is_some(),
            CloseReason::AuthTimeout | CloseReason::AuthTimeoutOf2012 => !accepted,
            CloseReason::Refused(text) if **text == *b"Maximum Payload Violation" => {
                component.sent_large
            }
            CloseReason::Refused(text) if **text == *FULL => {
                self.may_be_turned_away(&component.user, accepted)
            }
            CloseReason::Refused(text) if **text == *EXPIRED.as_bytes() => {
                self.expired_at.contains(&component.host)
            }
            CloseReason::Refused(_) => {
                component.user == "mallory"
                    || !accepted
                    || !self.is_welcome_somewhere(&component.user)
            }
            _ => false,
        }
    }

    /// Whether a component that closed its side was given the time to be answered.
    pub fn had_time_to_finish(&self, session: usize) -> bool {
        let gone = self
            .component_of(session)
            .and_then(|component| component.gone);
        gone.is_some_and(|at| self.now.saturating_sub(at) >= FINISHING)
    }

    /// Whether no broker was willing for long enough, where all that live say that they are full.
    fn may_be_turned_away(&self, user: &str, accepted: bool) -> bool {
        if accepted {
            !self.is_welcome_for(user, 5 * SECOND)
        } else {
            !self.is_welcome_for(user, SECOND)
        }
    }

    /// R15: whether a broker was there for long enough and would have accepted.
    fn is_welcome_somewhere(&self, user: &str) -> bool {
        self.is_welcome_for(user, 5 * SECOND)
    }

    fn is_welcome_for(&self, user: &str, time: Time) -> bool {
        let long = self.now.saturating_sub(time);
        self.brokers.iter().any(|broker| {
            let is_willing = broker.willing_since.is_some_and(|since| since <= long);
            is_willing && !broker.removed.contains(user)
        })
    }
}

/// For how long a component that closed its side may expect its PONGs.
const FINISHING: Time = 5 * SECOND;
/// How long the last part of a run is.
pub const HEALING: Time = 5 * SECOND;
