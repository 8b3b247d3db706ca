//! What is judged at components: their operations, and everything that they hear.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::frames::{self, Down, Publish, Splitter, Up, json_value};
use super::{Oracle, identity};

/// What the server of 2012 says to a SUB whose sid it has.
const SID_TAKEN: &str = "Invalid Subject Identifier (sid), already taken";

/// Texts that natsmux may say by itself, each followed by the end of the session.
const LAST_WORDS: [&str; 7] = [
    "Unknown Protocol Operation",
    "Authorization Violation",
    "Authentication Timeout",
    "Authorization is required",
    "Maximum Payload Violation",
    "maximum control line exceeded",
    "Stale Connection",
];

/// What a component asked for in CONNECT, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Options {
    pub verbose: bool,
    pub headers: bool,
    pub protocol: u64,
}

/// What became of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubState {
    Live,
    /// The component ended it; what was on its way may still come.
    Ended,
    /// And a fence behind the UNSUB was answered: nothing may come.
    Gone,
}

/// One subscription, from its SUB on.
#[derive(Clone, Debug)]
pub struct Sub {
    pub subject: Vec<u8>,
    pub group: Option<Vec<u8>>,
    pub sid: Vec<u8>,
    pub delivered: u64,
    /// 0: without end.
    pub max: u64,
    pub state: SubState,
    /// It has ended by its max.
    pub finished: bool,
    /// A broker may have ended it: its max was raised, which a broker may have heard too
    /// late, or an equal one was refused.
    pub may_be_over: bool,
    /// Its name on the last link that had it.
    pub upstream: Option<Vec<u8>>,
}

/// A SUB or UNSUB that no fence has proven yet.
#[derive(Clone, Debug)]
pub struct Unproven {
    pub op: u64,
    pub kind: Kind,
    pub on: Places,
}

/// Where an operation is on its way: links, and the numbers of the frames on them that carry
/// it.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// By link: the frame, until it is proven.
    links: BTreeMap<u64, Option<u64>>,
    /// A link has proven it.
    proven: bool,
    /// It was sent in an earlier step, to all links that it will be sent to.
    is_sent: bool,
}

impl Places {
    /// Whether no link has it.
    pub fn is_nowhere(&self) -> bool {
        self.links.is_empty() && !self.proven
    }

    pub fn is_on(&self, link: u64) -> bool {
        self.links.contains_key(&link)
    }

    /// Whether it may still be sent on a link: it goes to all that take it at once.
    pub fn may_go_on(&self, link: u64) -> bool {
        !self.is_on(link) && !self.is_sent
    }

    /// A step is over.
    pub fn end_step(&mut self) {
        self.is_sent = !self.links.is_empty();
    }

    pub fn put(&mut self, link: u64, frame: u64) {
        self.links.insert(link, Some(frame));
    }

    /// The link doesn't have it after all, or not any more. Returns whether it is proven
    /// wherever it is.
    pub fn lose(&mut self, link: u64) -> bool {
        self.links.remove(&link);
        self.is_sent &= !self.links.is_empty();
        self.is_done()
    }

    /// The link has proven what came before `frame`. Returns whether it is proven everywhere.
    pub fn prove(&mut self, link: u64, frame: u64) -> bool {
        if let Some(own) = self.links.get_mut(&link)
            && own.take_if(|own| *own < frame).is_some()
        {
            self.proven = true;
        }
        self.is_done()
    }

    /// Whether it is proven but for links that `excused` names.
    pub fn is_proven_but_for(&self, excused: impl Fn(u64) -> bool) -> bool {
        let mut open = self.links.iter().filter(|(_, frame)| frame.is_some());
        self.proven && open.all(|(link, _)| excused(*link))
    }

    /// Whether it is only where `excused` says so: what one broker alone was asked, and another
    /// has taken its place.
    pub fn is_left_behind(&self, excused: impl Fn(u64) -> bool) -> bool {
        let mut open = self.links.iter().filter(|(_, frame)| frame.is_some());
        open.all(|(link, _)| excused(*link))
    }

    fn is_done(&self) -> bool {
        self.is_proven_but_for(|_| false)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Subscribe(usize),
    Unsubscribe(usize),
    Limit(usize, u64),
    /// A SUB of a sid that is live, or of no valid subject; an UNSUB of an unknown sid (`None`). It
    /// changes nothing, and only a broker can answer it.
    Judge(Option<JudgedSub>),
}

/// A SUB that only a broker can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedSub {
    pub subject: Vec<u8>,
    pub sid: Vec<u8>,
    /// Its sid is that of a live subscription with an UNSUB max.
    pub is_limited: bool,
}

impl Kind {
    pub(super) fn is_limit(&self) -> bool {
        matches!(self, Self::Limit(..))
    }

    pub fn sub(&self) -> Option<usize> {
        match self {
            Self::Subscribe(sub) | Self::Unsubscribe(sub) | Self::Limit(sub, _) => Some(*sub),
            Self::Judge(_) => None,
        }
    }
}

/// A message that a broker sent and the component must (or may) get.
#[derive(Clone, Debug)]
pub struct Expected {
    pub sid: Vec<u8>,
    /// The link that it came on, and its sid there.
    pub on: (u64, Vec<u8>),
    pub publish: Publish,
    pub may_be_dropped: bool,
    /// The subscription whose max it counts towards, once it is heard.
    pub uncounted: Option<usize>,
    /// Whether a PONG came before it in the same read.
    pub behind_pong: bool,
}

/// One component's session.
#[derive(Debug, Default)]
pub struct Session {
    /// Accepted and not closed.
    pub open: bool,
    pub options: Option<Options>,
    pub subs: Vec<Sub>,
    pub unproven: Vec<Unproven>,
    /// Publishes that are on no link, in order, with the number of their operation.
    pub queue: VecDeque<(u64, Publish)>,
    /// Operations before each PING that was not answered.
    pub pings: VecDeque<u64>,
    pub pongs: u64,
    /// Operations that a verbose session has not heard of.
    pub verbose_ops: VecDeque<u64>,
    pub expected: VecDeque<Expected>,
    /// What the old link of a planned move brought while the new one had the subscription: its
    /// broker, and under the sid there (R41).
    pub copies: Vec<(usize, Vec<u8>, Publish)>,
    /// Errors that brokers said and the component has not heard yet, and whether each is the
    /// answer to an operation of a verbose session.
    pub errors: Vec<(String, bool)>,
    /// A broker accepted its CONNECT.
    pub accepted: bool,
    /// What brokers refused it with.
    pub refusals: BTreeSet<String>,
    /// Its credentials ran out while it was served.
    pub expired: bool,
    /// A broker found one of its payloads too large.
    pub too_large: bool,
    /// It may start without a broker's verdict (R16).
    pub admitted: bool,
    /// And that was its end.
    pub refused: bool,
    /// The component broke the protocol, or went away.
    pub at_fault: bool,
    /// It was told why it will be closed.
    pub said_last_words: bool,
    /// natsmux has decided to close it, and delivers nothing more.
    pub closing: bool,
    pub ops: u64,
    /// Operations that natsmux has not acted upon, and their lengths.
    arrived: VecDeque<(Up, u64)>,
    /// What it sent last isn't the protocol.
    is_garbled: bool,
    /// It broke the protocol in what natsmux has acted upon: the rest is ignored.
    is_over: bool,
    /// The number of its last CONNECT.
    connect_op: u64,
    /// It has sent a CONNECT itself.
    sent_connect: bool,
    info_said: bool,
    sent: Splitter,
    heard: Splitter,
}

impl Session {
    pub fn live_subs(&self) -> impl Iterator<Item = &Sub> {
        self.subs.iter().filter(|sub| sub.state == SubState::Live)
    }

    /// The first operation that natsmux has not acted upon.
    pub(super) fn unhandled(&self) -> Option<&Up> {
        self.arrived.front().map(|(op, _)| op)
    }

    pub(super) fn forget_unsent_questions(&mut self) {
        self.unproven.retain(|unproven| {
            !matches!(unproven.kind, Kind::Judge(_)) || !unproven.on.is_nowhere()
        });
        // Errors are passed on at once, or not at all (R20).
        self.errors.clear();
    }

    /// A subscription has got its max. Until the broker gets to the UNSUB it may send more,
    /// which a broker's own client would get too.
    pub(super) fn finish(&mut self, sub: usize) {
        self.subs[sub].state = SubState::Ended;
        self.subs[sub].finished = true;
        self.unproven
            .retain(|unproven| unproven.kind.sub() != Some(sub));
    }

    /// The component has heard a message that might have been a copy.
    fn count(&mut self, sub: usize) {
        let counted = &mut self.subs[sub];
        counted.delivered += 1;
        let is_over = counted.max > 0 && counted.delivered >= counted.max;
        if is_over && counted.state == SubState::Live {
            self.finish(sub);
        }
    }

    fn verbose(&self) -> bool {
        self.options.as_ref().is_some_and(|options| options.verbose)
    }
}

/// What the harness knows of the moment at which a component's bytes are read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// A CONNECT must come first (R21).
    pub must_connect: bool,
    /// A second CONNECT drops subscriptions, as the present broker does it (R20).
    pub connect_drops: bool,
    /// The largest payload that natsmux takes now, in bytes.
    pub max_payload: usize,
}

impl Oracle {
    /// natsmux has read bytes that a component sent.
    pub fn component_bytes(&mut self, no: usize, bytes: &[u8], reading: Reading) {
        if self.is_blind {
            return;
        }
        self.sessions[no].sent.feed(bytes);
        while self.sessions[no].open && !self.sessions[no].is_garbled {
            let before = self.sessions[no].sent.consumed;
            match self.sessions[no].sent.next_up() {
                Ok(None) => return,
                Ok(Some(op)) => {
                    let len = self.sessions[no].sent.consumed - before;
                    self.component_op(no, op, len, reading);
                }
                Err(_) => {
                    self.sessions[no].at_fault = true;
                    self.sessions[no].is_garbled = true;
                }
            }
        }
    }

    /// An operation has arrived. The first CONNECT goes ahead of all (R21); what comes behind
    /// it waits for natsmux.
    fn component_op(&mut self, no: usize, op: Up, len: u64, reading: Reading) {
        let session = &mut self.sessions[no];
        match (&session.options, op) {
            (None, Up::Connect(json)) => self.component_connect(no, &json, reading),
            (None, Up::Ping) if !reading.must_connect && session.arrived.is_empty() => {
                session.pings.push_back(0);
            }
            (None, Up::Pong) => {}
            (None, op) if reading.must_connect => {
                session.arrived.push_back((op, len));
                self.mark("operations before CONNECT");
            }
            (None, op) => {
                session.options = Some(Options {
                    verbose: true,
                    headers: false,
                    protocol: 0,
                });
                session.arrived.push_back((op, len));
                self.mark("a component without CONNECT");
            }
            (Some(_), op) => session.arrived.push_back((op, len)),
        }
    }

    /// natsmux has acted upon all that a component sent, but for the last `unhandled` bytes.
    pub fn component_handled(&mut self, no: usize, unhandled: u64, reading: Reading) {
        if self.is_blind {
            return;
        }
        let session = &self.sessions[no];
        let arrived: u64 = session.arrived.iter().map(|(_, len)| len).sum();
        let mut left = arrived + session.sent.residue().len() as u64;
        while self.sessions[no].options.is_some() && !self.sessions[no].is_over {
            let session = &mut self.sessions[no];
            let Some((_, len)) = session.arrived.front() else {
                return;
            };
            left -= len;
            if left < unhandled {
                return;
            }
            let op = session.arrived.pop_front();
            match op {
                Some((Up::Connect(json), _)) => self.component_connect(no, &json, reading),
                Some((op, _)) => self.carry_out(no, op, reading.max_payload),
                None => {}
            }
        }
    }

    /// A session ended with this many publishes that were never acted upon: they are refused
    /// (R4).
    pub fn component_abandoned(&mut self, no: usize, count: u64) {
        if self.is_blind {
            return;
        }
        let arrived = self.sessions[no].arrived.iter();
        let publishes = arrived
            .filter(|(op, _)| matches!(op, Up::Publish(_)))
            .count() as u64;
        if count > publishes {
            return self.fail(
                "R4 books",
                format!("session {no}: {count} abandoned, {publishes} sent"),
            );
        }
        self.books.published += count;
        self.books.refused += count;
        if count > 0 {
            self.mark("publishes of a refused session");
        }
    }

    fn component_connect(&mut self, no: usize, json: &str, reading: Reading) {
        let session = &mut self.sessions[no];
        let flag = |key: &str, default: bool| {
            json_value(json, key).map_or(default, |value| value == "true")
        };
        let before = session.options.clone();
        let defaults = before.clone().unwrap_or(Options {
            verbose: true,
            headers: false,
            protocol: 0,
        });
        let protocol = json_value(json, "protocol").and_then(|text| text.parse().ok());
        session.options = Some(Options {
            verbose: flag("verbose", defaults.verbose),
            headers: flag("headers", defaults.headers),
            protocol: protocol.unwrap_or(defaults.protocol),
        });
        session.ops += 1;
        session.connect_op = session.ops;
        if session.verbose() {
            session.verbose_ops.push_back(session.ops);
        }
        // The brokers' verdict on another one says nothing of this.
        session.accepted = false;
        let again = std::mem::replace(&mut session.sent_connect, true);
        if before.is_none() {
            return;
        }
        self.mark("second CONNECT");
        for sub in 0..self.sessions[no].subs.len() {
            let live = self.sessions[no].subs[sub].state == SubState::Live;
            if again && reading.connect_drops && live {
                self.end_sub(no, sub);
            }
        }
    }

    fn carry_out(&mut self, no: usize, op: Up, max_payload: usize) {
        if std::env::var_os("ORACLE").is_some() && !matches!(op, Up::Publish(_)) {
            println!(
                "session {no} does {op:?} {:?}",
                self.sessions[no].verbose_ops
            );
        }
        let session = &mut self.sessions[no];
        session.ops += 1;
        let number = session.ops;
        if session.verbose() && !matches!(op, Up::Ping | Up::Pong) {
            session.verbose_ops.push_back(number);
        }
        match op {
            Up::Publish(publish) if publish.payload.len() > max_payload => {
                session.at_fault = true;
                session.is_over = true;
                self.mark("payload too large for natsmux");
            }
            Up::Publish(publish) => {
                if publish.headers.is_some()
                    && !session
                        .options
                        .as_ref()
                        .is_some_and(|options| options.headers)
                {
                    session.at_fault = true;
                    session.is_over = true;
                    return;
                }
                session.queue.push_back((number, publish.clone()));
                self.books.published += 1;
                self.accepted.extend(identity(&publish));
            }
            Up::Ping => session.pings.push_back(number),
            Up::Subscribe {
                subject,
                group,
                sid,
            } => self.subscribe(no, number, subject, group, sid),
            Up::Unsubscribe { sid, max } => self.unsubscribe(no, number, &sid, max),
            Up::Connect(_) | Up::Pong => {}
        }
    }

    fn subscribe(
        &mut self,
        no: usize,
        op: u64,
        subject: Vec<u8>,
        group: Option<Vec<u8>>,
        sid: Vec<u8>,
    ) {
        let session = &mut self.sessions[no];
        let taken = session.live_subs().find(|sub| sub.sid == sid);
        let is_limited = taken.is_some_and(|sub| sub.max > 0);
        let kind = if !frames::is_subscribable(&subject) || taken.is_some() {
            Kind::Judge(Some(JudgedSub {
                subject,
                sid,
                is_limited,
            }))
        } else {
            session.subs.push(Sub {
                subject,
                group,
                sid,
                delivered: 0,
                max: 0,
                state: SubState::Live,
                finished: false,
                may_be_over: false,
                upstream: None,
            });
            Kind::Subscribe(session.subs.len() - 1)
        };
        let on = Places::default();
        session.unproven.push(Unproven { op, kind, on });
    }

    fn unsubscribe(&mut self, no: usize, op: u64, sid: &[u8], max: Option<u64>) {
        let links_each = self.links_each;
        let session = &mut self.sessions[no];
        let found = session
            .subs
            .iter()
            .position(|sub| sub.state == SubState::Live && sub.sid == sid);
        let Some(sub) = found else {
            if self.of_2012 && session.sent_connect {
                // It has no answer to that, but for the pedantic, as those without CONNECT are.
                session.verbose_ops.retain(|verbose| *verbose != op);
            } else if session.verbose() {
                session.unproven.push(Unproven {
                    op,
                    kind: Kind::Judge(None),
                    on: Places::default(),
                });
            }
            return;
        };
        match max {
            Some(max) if max > session.subs[sub].delivered => {
                session.subs[sub].may_be_over |= session.subs[sub].max > 0;
                session.subs[sub].max = max;
                let subject = &session.subs[sub].subject;
                let counted_here = links_each > 1 && super::may_get_presence(subject);
                if counted_here && !session.verbose() {
                    return;
                }
                if counted_here {
                    session.unproven.push(Unproven {
                        op,
                        kind: Kind::Judge(None),
                        on: Places::default(),
                    });
                    return;
                }
                session.unproven.push(Unproven {
                    op,
                    kind: Kind::Limit(sub, max),
                    on: Places::default(),
                });
            }
            _ => {
                session.unproven.push(Unproven {
                    op,
                    kind: Kind::Unsubscribe(sub),
                    on: Places::default(),
                });
                self.end_sub(no, sub);
            }
        }
    }

    /// The component doesn't want it any more.
    pub(super) fn end_sub(&mut self, no: usize, sub: usize) {
        self.sessions[no].subs[sub].state = SubState::Ended;
    }

    /// What was ended and no link has, no broker has.
    pub(super) fn bury_ended_subs(&mut self, no: usize) {
        let session = &mut self.sessions[no];
        for (index, sub) in session.subs.iter_mut().enumerate() {
            let placed = |link: &super::Link| {
                link.session == no && !link.closed && link.sids.values().any(|on| on.sub == index)
            };
            if sub.state == SubState::Ended && !self.links.values().any(placed) {
                sub.state = SubState::Gone;
                session
                    .unproven
                    .retain(|unproven| unproven.kind.sub() != Some(index));
            }
        }
    }

    /// natsmux gave up the newest `count` publishes of a session, for want of room (R6).
    pub fn dropped(&mut self, no: usize, count: u64) {
        if self.is_blind {
            return;
        }
        let session = &mut self.sessions[no];
        for _ in 0..count {
            if session.queue.pop_back().is_none() {
                return self.fail("R6 drops", "more than were published");
            }
        }
        self.books.dropped += count;
        self.mark("publishes dropped");
    }

    /// natsmux appended these bytes to what a component will read.
    pub fn component_is_sent(&mut self, no: usize, bytes: &[u8]) {
        if self.is_blind {
            return;
        }
        self.sessions[no].heard.feed(bytes);
        loop {
            match self.sessions[no].heard.next_down() {
                Ok(None) => break,
                Ok(Some(frame)) => self.heard(no, frame),
                Err(what) => return self.fail("I3 framing", format!("session {no}: {what}")),
            }
        }
        if !self.sessions[no].heard.residue().is_empty() {
            let residue = String::from_utf8_lossy(self.sessions[no].heard.residue()).into_owned();
            self.fail(
                "I3 framing",
                format!("session {no}: a part of a frame: {residue:?}"),
            );
        }
    }

    fn heard(&mut self, no: usize, frame: Down) {
        if self.sessions[no].said_last_words {
            return self.fail(
                "I17 reply truth",
                format!("session {no}: {frame:?} behind the last words"),
            );
        }
        match frame {
            Down::Info(json) => self.heard_info(no, &json),
            Down::Message { sid, publish } => self.heard_message(no, &sid, &publish),
            Down::Pong => self.heard_pong(no),
            Down::Ok => self.heard_ok(no),
            Down::Err(text) => self.heard_error(no, &text),
            Down::Ping => {}
        }
    }

    fn heard_info(&mut self, no: usize, json: &str) {
        let session = &mut self.sessions[no];
        if std::mem::replace(&mut session.info_said, true) {
            let asked = session
                .options
                .as_ref()
                .map_or(0, |options| options.protocol);
            if asked == 0 || session.pongs == 0 {
                self.fail("R17 INFO", format!("session {no}: a second INFO"));
            }
            return;
        }
        session.open = true;
        let len = json.len() + b"INFO \r\n".len();
        // A broker's nonce, and not natsmux's own.
        let leaks = ["connect_urls", "\"nonce\":\"nonce", "ldm"];
        if len > 512 || leaks.iter().any(|key| json.contains(key)) {
            self.fail("R17 INFO", format!("session {no}: {len} bytes, {json}"));
        }
    }

    fn heard_message(&mut self, no: usize, sid: &[u8], publish: &Publish) {
        self.resolve_guess(no, sid, publish);
        let session = &mut self.sessions[no];
        while let Some(next) = session.expected.pop_front() {
            if next.sid == sid && next.publish == *publish {
                if let Some(sub) = next.uncounted {
                    session.count(sub);
                }
                let mut later = session.expected.iter_mut();
                let twin = later.find(|later| later.sid == sid && later.publish == *publish);
                if let (true, Some(twin)) = (next.may_be_dropped, twin) {
                    // A sid that was used again: which of two equal messages this is, and
                    // which is missing, can't be told.
                    twin.may_be_dropped = true;
                }
                return;
            }
            if !next.may_be_dropped {
                let (want, got) = (show(&next.publish), show(publish));
                let sids = String::from_utf8_lossy(&next.sid).into_owned();
                return self.fail(
                    "I1/I2/I5 delivery",
                    format!(
                        "session {no}: sid {sids} {want} was next, got sid {} {got}",
                        String::from_utf8_lossy(sid)
                    ),
                );
            }
        }
        let got = show(publish);
        self.fail(
            "I1 isolation",
            format!(
                "session {no}: sid {} got {got}, which no broker sent for it",
                String::from_utf8_lossy(sid)
            ),
        );
    }

    /// Where the next message is right but for the sid, of two equal subscriptions: they were
    /// taken for each other.
    fn resolve_guess(&mut self, no: usize, sid: &[u8], publish: &Publish) {
        let mut candidates = Vec::new();
        for next in &self.sessions[no].expected {
            if next.publish == *publish {
                if next.sid == sid {
                    return;
                }
                candidates.push(next.on.clone());
            }
            if !next.may_be_dropped {
                break;
            }
        }
        for (link, own) in candidates {
            let meant = |other: &Vec<u8>| {
                self.sessions[no].subs[self.links[&link].sids[other].sub].sid == sid
            };
            if let Some(other) = self.guesses_like(link, &own).into_iter().find(meant) {
                return self.swap_guesses(link, &own, &other);
            }
        }
    }

    fn heard_pong(&mut self, no: usize) {
        let waits = self.sessions[no]
            .expected
            .iter()
            .find(|next| !next.may_be_dropped);
        if waits.is_some_and(|next| !next.behind_pong) {
            return self.fail(
                "R2 PONG",
                format!("session {no}: a PONG overtook a message"),
            );
        }
        let Some(ping) = self.sessions[no].pings.pop_front() else {
            return self.fail(
                "R1 PONG",
                format!("session {no}: a PONG that nobody asked for"),
            );
        };
        self.sessions[no].pongs += 1;
        let session = &self.sessions[no];
        let is_new = ping > session.connect_op;
        if session.options.is_some() && is_new && !session.accepted && !session.admitted {
            return self.fail(
                "R16 verdict",
                format!("session {no}: a PONG before the broker's verdict"),
            );
        }
        if !self.is_proven(no, ping) {
            self.books.pongs_unproven += 1;
            self.last_unproven = Some((no, ping));
            self.mark("PONG released unproven");
        }
    }

    /// Whether everything that the session did before operation `ping` is in place,
    /// processed, or counted in doubt, and a verbose one heard of it.
    fn is_proven(&self, no: usize, ping: u64) -> bool {
        let session = &self.sessions[no];
        let answered = session.verbose_ops.front().is_none_or(|op| *op >= ping);
        // What a broker may have ended, and what was for natsmux to answer, needs no place.
        let excused = |link: u64| {
            let is_settled = self.links[&link].settled && !self.is_to_take_over(link);
            self.suspect_links.contains(&link) || !is_settled
        };
        let doubtful = |unproven: &Unproven| match unproven.kind.sub() {
            Some(sub) if session.subs[sub].may_be_over => true,
            // R41: natsmux alone counts it for a while.
            Some(sub) if unproven.kind.is_limit() && unproven.on.is_nowhere() => {
                let mut links = self.links.values();
                links.any(|link| link.session == no && link.moved.contains(&sub))
            }
            None if unproven.on.is_nowhere() => true,
            // R27. What is over needs no second place.
            Some(sub) if session.subs[sub].state == SubState::Live => {
                unproven.on.is_proven_but_for(excused)
            }
            _ => unproven.on.is_left_behind(excused),
        };
        let mut earlier = session
            .unproven
            .iter()
            .filter(|unproven| unproven.op < ping);
        let placed = earlier.all(doubtful);
        let held = session.queue.front().is_some_and(|(op, _)| *op < ping);
        let on_wire = self.links.values().any(|link| {
            link.session == no
                && !link.closed
                && link
                    .publishes
                    .front()
                    .is_some_and(|publish| publish.op < ping)
        });
        if std::env::var_os("ORACLE").is_some() {
            let earlier = session
                .unproven
                .iter()
                .filter(|unproven| unproven.op < ping);
            println!(
                "ping {ping}: {answered} {held} {on_wire} {:?}",
                earlier.collect::<Vec<_>>()
            );
        }
        answered && placed && !held && !on_wire
    }

    fn heard_ok(&mut self, no: usize) {
        if self.sessions[no].verbose_ops.pop_front().is_none() {
            self.fail("R20 verbose", format!("session {no}: a +OK for nothing"));
        }
    }

    fn heard_error(&mut self, no: usize, text: &str) {
        let session = &mut self.sessions[no];
        if let Some(at) = session.errors.iter().position(|(error, _)| error == text) {
            let (_, is_answer) = session.errors.remove(at);
            if is_answer && text != "Invalid Publish Subject" {
                session.verbose_ops.pop_front();
            }
            return;
        }
        if text == "Invalid Subject" {
            // natsmux answers a SUB that no broker can judge now.
            let judged = session
                .unproven
                .iter()
                .position(|unproven| matches!(unproven.kind, Kind::Judge(Some(_))));
            let Some(at) = judged else {
                return self.fail(
                    "I17 reply truth",
                    format!("session {no}: {text} for nothing"),
                );
            };
            session.unproven.remove(at);
            return;
        }
        if self.of_2012 && text == SID_TAKEN {
            // natsmux knows it where the broker may not, at a limit.
            let is_judged = |unproven: &Unproven| matches!(&unproven.kind, Kind::Judge(Some(judged)) if judged.is_limited);
            let judged = session.unproven.iter().position(is_judged);
            let Some(at) = judged else {
                return self.fail(
                    "I17 reply truth",
                    format!("session {no}: {text} for nothing"),
                );
            };
            let op = session.unproven.remove(at).op;
            session.verbose_ops.retain(|verbose| *verbose != op);
            return;
        }
        let refused = session.refusals.contains(text);
        if LAST_WORDS.contains(&text) || refused {
            session.said_last_words = true;
            return;
        }
        self.fail(
            "I17 reply truth",
            format!("session {no}: -ERR '{text}', which no broker said"),
        );
    }

    /// The component closed its side, or its connection broke.
    pub fn component_gone(&mut self, no: usize) {
        if self.is_blind {
            return;
        }
        self.sessions[no].at_fault = true;
    }

    /// natsmux has acted upon the last operation of a session.
    pub fn session_ending(&mut self, no: usize) {
        if self.is_blind {
            return;
        }
        for sub in 0..self.sessions[no].subs.len() {
            if self.sessions[no].subs[sub].state == SubState::Live {
                self.end_sub(no, sub);
            }
        }
    }

    /// The component closed its side long ago: PONGs that no broker gave it by now are owed no more.
    pub fn session_may_finish(&mut self, no: usize) {
        if self.is_blind {
            return;
        }
        self.sessions[no].pings.clear();
    }

    /// natsmux closed a session. `allowed` is the harness's verdict on the reason (I15).
    pub fn session_closed(&mut self, no: usize, reason: &str, allowed: bool) {
        if self.is_blind && allowed {
            return;
        }
        let model = &self.sessions[no];
        let owed = model.pings.len();
        // Before a broker has judged its CONNECT, nobody could answer; what came behind it waits.
        let judged = model.accepted && model.arrived.is_empty();
        if reason == "component_closed" && owed > 0 && judged && !model.is_garbled {
            self.fail(
                "R1 half-close",
                format!("session {no} was owed {owed} PONGs, and closed"),
            );
        }
        if !allowed {
            self.fail("I15 unbroken", format!("session {no} was closed: {reason}"));
        }
        let session = &mut self.sessions[no];
        session.open = false;
        for sub in session
            .subs
            .iter_mut()
            .filter(|sub| sub.state == SubState::Live)
        {
            sub.state = SubState::Ended;
        }
        session.expected.clear();
        session.unproven.clear();
    }

    /// A session's credentials were refused: what it published is refused with it.
    pub fn session_refused(&mut self, no: usize) {
        if self.is_blind {
            return;
        }
        self.sessions[no].refused = true;
        let held = std::mem::take(&mut self.sessions[no].queue);
        self.books.refused += held.len() as u64;
        if !held.is_empty() {
            self.mark("publishes of a refused session");
        }
    }

    /// natsmux handles an input at once: what a broker sent must be in the outbox now.
    pub(super) fn check_delivered(&mut self, no: usize) {
        let session = &mut self.sessions[no];
        let lost = session.expected.drain(..).find(|next| !next.may_be_dropped);
        if let Some(lost) = lost
            && session.open
            && !session.closing
        {
            let shown = show(&lost.publish);
            self.fail(
                "I2 fidelity",
                format!("session {no}: {shown} was not delivered"),
            );
        }
    }
}

fn show(publish: &Publish) -> String {
    let payload = &publish.payload[..publish.payload.len().min(40)];
    format!(
        "{} ({} bytes {:?})",
        String::from_utf8_lossy(&publish.subject),
        publish.payload.len(),
        String::from_utf8_lossy(payload)
    )
}
