//! What is judged at brokers: the grammar of every link, what each fence proves, and what
//! became of publishes when a link died.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Oracle;
use super::frames::{Down, Publish, Splitter, Up, json_value};
use super::session::{Expected, Kind, SubState, Unproven};

/// R36: final for a session on whose live link it is said.
const EXPIRED: &str = "User Authentication Expired";

/// Errors after which a broker closes the connection, and whose text goes to nobody unless
/// it is a refusal.
const CLOSING: [&str; 7] = [
    "Stale Connection",
    "maximum connections exceeded",
    "Authorization Violation",
    "Authorization failed",
    EXPIRED,
    "User Authentication Revoked",
    "Authentication Timeout",
];

/// A subscription's place on a link.
#[derive(Clone, Debug)]
pub struct OnLink {
    pub sub: usize,
    /// Delivered on this link: its broker's count.
    pub received: u64,
    pub frame: u64,
    /// Another subscription is equal, and nothing has told yet which of the two this is.
    pub is_guess: bool,
}

/// A publish that was appended to a link and not settled.
#[derive(Clone, Debug)]
pub struct OnWire {
    pub op: u64,
    pub publish: Publish,
    pub frame: u64,
    /// Stream offset behind its last byte.
    pub end: u64,
    pub refused: bool,
}

/// One connection to one broker.
#[derive(Debug)]
pub struct Link {
    pub session: usize,
    broker: usize,
    pub closed: bool,
    pub sids: BTreeMap<Vec<u8>, OnLink>,
    pub publishes: VecDeque<OnWire>,
    /// Frames that natsmux appended.
    frames: u64,
    /// The frames that are unanswered PINGs.
    pings: VecDeque<u64>,
    /// Every frame before this one was processed.
    proven: u64,
    info: Option<String>,
    connected: bool,
    /// It was told to answer every operation.
    verbose: bool,
    /// The broker found a payload too large.
    too_large: bool,
    authenticated: bool,
    /// The PING behind its replay was not sent yet.
    is_replaying: bool,
    /// The PONG behind its replay has come.
    pub settled: bool,
    /// Subscriptions that must be in place before the first publish.
    must_replay: Vec<usize>,
    published: bool,
    /// natsmux unsubscribes from it what components still want: it moves to another link.
    is_left: bool,
    /// Subscriptions that it was told of while the link that it replaces was there.
    pub(super) moved: BTreeSet<usize>,
    /// What it brought while the link that it replaces was there (R41).
    held: Vec<(Vec<u8>, Publish)>,
    /// The broker said something behind which nothing counts.
    ended: bool,
    written: u64,
    up: Splitter,
    down: Splitter,
}

impl Link {
    pub(super) fn new(session: usize, broker: usize) -> Self {
        Self {
            session,
            broker,
            closed: false,
            sids: BTreeMap::new(),
            publishes: VecDeque::new(),
            frames: 0,
            pings: VecDeque::new(),
            proven: 0,
            info: None,
            connected: false,
            verbose: false,
            too_large: false,
            authenticated: false,
            is_replaying: true,
            settled: false,
            must_replay: Vec::new(),
            published: false,
            is_left: false,
            moved: BTreeSet::new(),
            held: Vec::new(),
            ended: false,
            written: 0,
            up: Splitter::default(),
            down: Splitter::default(),
        }
    }
}

impl Oracle {
    fn link(&mut self, no: u64) -> &mut Link {
        self.links.get_mut(&no).expect("the harness opened it")
    }

    /// natsmux appended these bytes to what a broker will read.
    pub fn broker_is_sent(&mut self, no: u64, bytes: &[u8]) {
        if self.is_blind {
            return;
        }
        self.link(no).up.feed(bytes);
        loop {
            match self.link(no).up.next_up() {
                Ok(None) => break,
                Ok(Some(frame)) => self.sent_to_broker(no, frame),
                Err(what) => return self.fail("I4 upstream framing", format!("link {no}: {what}")),
            }
            self.link(no).frames += 1;
        }
        if !self.link(no).up.residue().is_empty() {
            self.fail(
                "I4 upstream framing",
                format!("link {no}: a part of a frame"),
            );
        }
    }

    fn sent_to_broker(&mut self, no: u64, frame: Up) {
        let link = self.link(no);
        let at = link.frames;
        match (&frame, link.connected) {
            (Up::Connect(json), false) if link.info.is_some() => {
                link.connected = true;
                link.verbose = json_value(json, "verbose") == Some("true");
                return;
            }
            (Up::Connect(_), _) => {
                return self.fail("I4 order", format!("link {no}: CONNECT out of place"));
            }
            (_, false) => {
                return self.fail("I4 order", format!("link {no}: {frame:?} before CONNECT"));
            }
            _ => {}
        }
        if !link.authenticated && !matches!(frame, Up::Ping | Up::Pong) {
            return self.fail(
                "I4 order",
                format!("link {no}: {frame:?} before the verdict"),
            );
        }
        if self.is_presence(&frame) {
            return;
        }
        let link = self.link(no);
        match frame {
            Up::Ping => {
                // The first follows CONNECT, the second the replay.
                link.is_replaying &= !link.authenticated;
                link.pings.push_back(at);
            }
            Up::Publish(publish) => self.published_on_link(no, publish),
            Up::Subscribe {
                subject,
                group,
                sid,
            } => self.subscribed_on_link(no, &subject, group.as_deref(), sid),
            Up::Unsubscribe { sid, max } => self.unsubscribed_on_link(no, &sid, max),
            Up::Connect(_) | Up::Pong => {}
        }
    }

    /// R29: natsmux's own.
    fn is_presence(&self, frame: &Up) -> bool {
        let subject = match frame {
            Up::Publish(publish) => &publish.subject,
            Up::Subscribe { subject, .. } => subject,
            _ => return false,
        };
        self.links_each > 1 && subject.starts_with(super::PRESENCE)
    }

    fn published_on_link(&mut self, no: u64, publish: Publish) {
        if !std::mem::replace(&mut self.link(no).published, true) {
            self.check_replayed(no);
        }
        let link = &self.links[&no];
        let (session, frame, end) = (link.session, link.frames, link.up.consumed);
        let elsewhere = |(other, link): (&u64, &Link)| {
            *other != no && link.session == session && !link.closed && !link.publishes.is_empty()
        };
        if self.links.iter().any(elsewhere) {
            return self.fail(
                "R30 switch",
                format!("link {no}: a publish while another link has some that are unproven"),
            );
        }
        let next = self.sessions[session].queue.pop_front();
        match next {
            Some((op, expected)) if expected == publish => {
                let refused = false;
                self.link(no).publishes.push_back(OnWire {
                    op,
                    publish,
                    frame,
                    end,
                    refused,
                });
            }
            Some((_, expected)) => self.fail(
                "I5 publisher order",
                format!(
                    "link {no}: next was {:?} {:?}, got {:?} {:?}",
                    expected.subject,
                    super::identity(&expected),
                    publish.subject,
                    super::identity(&publish)
                ),
            ),
            None => self.fail(
                "I6 no duplicates",
                format!(
                    "link {no}: publish {:?} again, or from nowhere",
                    super::identity(&publish)
                ),
            ),
        }
    }

    /// I4: no publish before this link's replay is fenced.
    fn check_replayed(&mut self, no: u64) {
        let link = &self.links[&no];
        let session = &self.sessions[link.session];
        let missing = link.must_replay.iter().find(|sub| {
            session.subs[**sub].state == SubState::Live
                && !session.subs[**sub].may_be_over
                && !link
                    .sids
                    .values()
                    .any(|on| on.sub == **sub && on.frame < link.proven)
        });
        if let Some(sub) = missing {
            let subject = String::from_utf8_lossy(&session.subs[*sub].subject).into_owned();
            self.fail(
                "I4 order",
                format!("link {no}: a publish before {subject} is in place"),
            );
        }
    }

    fn subscribed_on_link(&mut self, no: u64, subject: &[u8], group: Option<&[u8]>, sid: Vec<u8>) {
        let link = &self.links[&no];
        let (session_no, frame) = (link.session, link.frames);
        let session = &mut self.sessions[session_no];
        let wanted = |index: &usize| {
            let sub = &session.subs[*index];
            let pending = session
                .unproven
                .iter()
                .any(|unproven| unproven.kind.sub() == Some(*index));
            sub.subject == subject
                && sub.group.as_deref() == group
                && (sub.state == SubState::Live || pending)
                && !link.sids.values().any(|on| on.sub == *index)
        };
        let mut choices: Vec<usize> = (0..session.subs.len()).filter(wanted).collect();
        choices.sort_by_key(|index| match &session.subs[*index].upstream {
            Some(name) if *name == sid => 0,
            None => 1,
            Some(_) => 2,
        });
        let equal = |on: &&OnLink| {
            let sub = &session.subs[on.sub];
            on.is_guess && sub.subject == subject && sub.group.as_deref() == group
        };
        // Outside of a replay SUBs come in order, and in it the known ones keep their sids.
        let known = |index: &usize| session.subs[*index].upstream.as_ref() == Some(&sid);
        let unsure = choices.len() > 1 || link.sids.values().any(|on| equal(&on));
        let is_guess = link.is_replaying && unsure && !choices.iter().any(known);
        let choice = choices
            .first()
            .copied()
            .filter(|_| !link.sids.contains_key(&sid));
        let Some(sub) = choice else {
            if session.closing {
                // A replay for a session that only has its last words to say.
                return;
            }
            let is_over = |sub: &super::session::Sub| {
                sub.finished && sub.subject == subject && sub.upstream.as_ref() == Some(&sid)
            };
            if session.subs.iter().any(is_over) {
                // What ended it stood behind the PONG that began the replay (R41).
                return;
            }
            // Under a sid of the link it is for a live sid of the component.
            let judged = session.unproven.iter().filter_map(|unproven| {
                match (&unproven.kind, unproven.on.may_go_on(no)) {
                    (Kind::Judge(Some(judged)), true) if judged.subject == subject => {
                        Some(judged.sid.clone())
                    }
                    _ => None,
                }
            });
            let judged: Vec<_> = judged.collect();
            self.resolve_duplicate(no, &sid, &judged);
            let link = &self.links[&no];
            let session = &mut self.sessions[session_no];
            let on = link.sids.get(&sid);
            let known = on.map(|on| session.subs[on.sub].sid.clone());
            let judge = session.unproven.iter_mut().find(|unproven| {
                let Kind::Judge(Some(judged)) = &unproven.kind else {
                    return false;
                };
                let fits = known.as_ref().is_none_or(|known| *known == judged.sid);
                fits && judged.subject == subject && unproven.on.may_go_on(no)
            });
            // R28: a broker that stood by is asked again for what it refused.
            let again = link.sids.get(&sid).is_some_and(|on| {
                let sub = &session.subs[on.sub];
                sub.subject == subject && sub.group.as_deref() == group
            });
            match judge {
                Some(judge) => judge.on.put(no, frame),
                None if again && self.links_each > 1 => self.mark("independent: asked again"),
                // The other broker has judged it before this one was written to.
                None if sid == b"-" && self.links_each > 1 => {}
                None => {
                    let like: Vec<_> = session
                        .subs
                        .iter()
                        .filter(|sub| sub.subject == subject)
                        .cloned()
                        .collect();
                    self.fail(
                        "I13 no leak",
                        format!(
                            "link {no}: SUB {:?} {:?} is nobody's of {like:?}",
                            String::from_utf8_lossy(subject),
                            String::from_utf8_lossy(&sid)
                        ),
                    );
                }
            }
            return;
        };
        let mut links = self.links.iter();
        let is_move = links.any(|(other, link)| {
            *other < no && self.may_move(*other, no) && !link.closed && link.settled
        });
        if is_move {
            self.link(no).moved.insert(sub);
        }
        let session = &mut self.sessions[session_no];
        session.subs[sub].upstream = Some(sid.clone());
        for unproven in &mut session.unproven {
            if unproven.kind == Kind::Subscribe(sub) {
                unproven.on.put(no, frame);
            }
        }
        self.link(no).sids.insert(
            sid,
            OnLink {
                sub,
                received: 0,
                frame,
                is_guess,
            },
        );
    }

    /// A second SUB under a sid of the link is for one of these sids of the component: where
    /// it was taken for another, equal one, that was wrong.
    fn resolve_duplicate(&mut self, no: u64, sid: &[u8], judged: &[Vec<u8>]) {
        let link = &self.links[&no];
        let subs = &self.sessions[link.session].subs;
        let own_sid = |sid: &[u8]| link.sids.get(sid).map(|on| &subs[on.sub].sid);
        if own_sid(sid).is_none_or(|own| judged.contains(own)) {
            return;
        }
        let equal = self.guesses_like(no, sid);
        let meant = |other: &&Vec<u8>| own_sid(other).is_some_and(|own| judged.contains(own));
        if let Some(other) = equal.iter().find(meant).cloned() {
            self.swap_guesses(no, sid, &other);
        }
    }

    fn unsubscribed_on_link(&mut self, no: u64, sid: &[u8], max: Option<u64>) {
        let link = &self.links[&no];
        let (session_no, frame) = (link.session, link.frames);
        let on_link = link.sids.get(sid).cloned();
        let session = &mut self.sessions[session_no];
        if on_link.is_none() {
            // Of one that the link never had: either only a broker can answer it, or it comes
            // from ending everything at once. It does no harm.
            let verbose = link.verbose;
            // R41: natsmux counts by itself, and has the broker answer.
            let is_limit = |unproven: &Unproven| {
                let sub = unproven.kind.sub().filter(|_| unproven.kind.is_limit());
                unproven.on.is_nowhere() && sub.is_some_and(|sub| link.moved.contains(&sub))
            };
            let is_judge = |unproven: &Unproven| {
                verbose && matches!(unproven.kind, Kind::Judge(_)) && unproven.on.may_go_on(no)
            };
            let mut unproven = session.unproven.iter_mut();
            let first = unproven.find(|unproven| is_limit(unproven) || is_judge(unproven));
            if let Some(first) = first {
                first.on.put(no, frame);
            }
            return;
        }
        if let Some(other) = self.better_guess(no, sid, max) {
            self.swap_guesses(no, sid, &other);
        } else if let Some(max) = max {
            self.better_choice(no, sid, max);
        }
        let on = &self.links[&no].sids[sid];
        let (sub, received) = (on.sub, on.received);
        let session = &mut self.sessions[session_no];
        // On the new link of a move there may be more than was given yet.
        let delivered = session.subs[sub].delivered;
        let base = delivered.wrapping_sub(received);
        let Some(max) = max else {
            let is_wanted = session.subs[sub].state == SubState::Live;
            for unproven in &mut session.unproven {
                if unproven.kind == Kind::Unsubscribe(sub) && unproven.on.may_go_on(no) {
                    unproven.on.put(no, frame);
                }
            }
            self.link(no).is_left |= is_wanted;
            return;
        };
        let total = base.wrapping_add(max);
        let latest = session.subs[sub].max == total;
        let mut known = latest;
        for unproven in &mut session.unproven {
            if let Kind::Limit(of, limit) = unproven.kind
                && of == sub
                && !unproven.on.is_on(no)
                && (latest || limit == total)
            {
                unproven.on.put(no, frame);
                known = true;
                if !latest {
                    break;
                }
            }
        }
        // The latest stands for those before it, unless they follow: then it was an earlier one
        // with the same number.
        if !known {
            let limits = session.unproven.iter_mut();
            let mut of_sub = limits
                .filter(|unproven| matches!(unproven.kind, Kind::Limit(of, _) if of == sub))
                .skip_while(|unproven| {
                    unproven.kind != Kind::Limit(sub, total) || !unproven.on.is_on(no)
                });
            if let Some(meant) = of_sub.next() {
                meant.on.put(no, frame);
                of_sub.for_each(|later| _ = later.on.lose(no));
                known = true;
            }
        }
        if delivered > received {
            self.mark("UNSUB remainder replayed");
        }
        if !known && !self.sessions[session_no].subs[sub].may_be_over {
            let session = &self.sessions[session_no];
            let shown = format!("{:?} {:?}", session.subs[sub], session.unproven);
            self.fail(
                "I11 UNSUB max",
                format!(
                    "link {no}: UNSUB {} {max} with {base} delivered before {shown}",
                    String::from_utf8_lossy(sid)
                ),
            );
        }
    }

    /// Where an UNSUB doesn't fit the subscription that a sid was taken for: the sid of an
    /// equal one that it fits.
    fn better_guess(&self, no: u64, sid: &[u8], max: Option<u64>) -> Option<Vec<u8>> {
        let link = &self.links[&no];
        let session = &self.sessions[link.session];
        let asked = |kind: Kind| {
            let mut unproven = session.unproven.iter();
            unproven.any(|unproven| unproven.kind == kind && unproven.on.may_go_on(no))
        };
        let fits = |on: &OnLink| match max {
            None => asked(Kind::Unsubscribe(on.sub)),
            Some(max) => {
                let delivered = session.subs[on.sub].delivered;
                let total = delivered.wrapping_sub(on.received).wrapping_add(max);
                session.subs[on.sub].max == total || asked(Kind::Limit(on.sub, total))
            }
        };
        let own = &link.sids[sid];
        if fits(own) {
            return None;
        }
        let equal = self.guesses_like(no, sid);
        equal.into_iter().find(|other| fits(&link.sids[other]))
    }

    /// The same, where the subscription that fits is on the link under no sid yet.
    fn better_choice(&mut self, no: u64, sid: &[u8], max: u64) {
        let link = self.links.get_mut(&no).expect("the harness opened it");
        let session = &mut self.sessions[link.session];
        let own = link.sids[sid].clone();
        let total = |base: u64| base.wrapping_add(max);
        let delivered = session.subs[own.sub].delivered;
        let own_base = delivered.wrapping_sub(own.received);
        if !own.is_guess || session.subs[own.sub].max == total(own_base) {
            return;
        }
        let placed: Vec<usize> = link.sids.values().map(|on| on.sub).collect();
        let like = &session.subs[own.sub];
        let fits = |index: &usize| {
            let sub = &session.subs[*index];
            sub.subject == like.subject
                && sub.group == like.group
                && sub.state == SubState::Live
                && sub.max == total(sub.delivered)
                && !placed.contains(index)
        };
        let Some(sub) = (0..session.subs.len()).find(fits) else {
            return;
        };
        for unproven in &mut session.unproven {
            if unproven.kind == Kind::Subscribe(own.sub) {
                unproven.on.lose(no);
            } else if unproven.kind == Kind::Subscribe(sub) {
                unproven.on.put(no, own.frame);
            }
        }
        session.subs[own.sub].upstream = None;
        session.subs[sub].upstream = Some(sid.to_vec());
        let received = 0;
        link.sids.insert(
            sid.to_vec(),
            OnLink {
                sub,
                received,
                ..own
            },
        );
    }

    /// The other sids on a link that may be confused with this one.
    pub(super) fn guesses_like(&self, no: u64, sid: &[u8]) -> Vec<Vec<u8>> {
        let link = &self.links[&no];
        let subs = &self.sessions[link.session].subs;
        let Some(own) = link.sids.get(sid).filter(|own| own.is_guess) else {
            return Vec::new();
        };
        let equal = |on: &OnLink| {
            let (one, two) = (&subs[own.sub], &subs[on.sub]);
            on.is_guess && on.sub != own.sub && one.subject == two.subject && one.group == two.group
        };
        link.sids
            .iter()
            .filter(|(_, on)| equal(on))
            .map(|(sid, _)| sid.clone())
            .collect()
    }

    /// Two equal subscriptions on a link were taken for each other.
    pub(super) fn swap_guesses(&mut self, no: u64, one: &[u8], two: &[u8]) {
        let link = self.links.get_mut(&no).expect("the harness opened it");
        let session = &mut self.sessions[link.session];
        let (mut first, mut second) = (link.sids[one].clone(), link.sids[two].clone());
        let frames = (first.frame, second.frame);
        let counts = (first.received, second.received);
        std::mem::swap(&mut first, &mut second);
        (first.frame, second.frame) = frames;
        for (on, count) in [(&mut first, counts.0), (&mut second, counts.1)] {
            let delivered = &mut session.subs[on.sub].delivered;
            *delivered = delivered.wrapping_sub(on.received).wrapping_add(count);
            on.received = count;
        }
        for no in [first.sub, second.sub] {
            let sub = &mut session.subs[no];
            let at_max = sub.max > 0 && sub.delivered >= sub.max;
            if sub.finished && !at_max {
                sub.finished = false;
                sub.state = SubState::Live;
            } else if at_max && sub.state == SubState::Live {
                session.finish(no);
            }
        }
        session.subs[first.sub].upstream = Some(one.to_vec());
        session.subs[second.sub].upstream = Some(two.to_vec());
        for unproven in &mut session.unproven {
            if let Kind::Subscribe(sub) = unproven.kind
                && unproven.on.is_on(no)
            {
                if sub == first.sub {
                    unproven.on.put(no, first.frame);
                } else if sub == second.sub {
                    unproven.on.put(no, second.frame);
                }
            }
        }
        for expected in &mut session.expected {
            if expected.on == (no, one.to_vec()) {
                expected.sid = session.subs[first.sub].sid.clone();
            } else if expected.on == (no, two.to_vec()) {
                expected.sid = session.subs[second.sub].sid.clone();
            }
        }
        link.sids.insert(one.to_vec(), first);
        link.sids.insert(two.to_vec(), second);
    }

    /// A link's socket took bytes: `total` in all so far.
    pub fn written(&mut self, no: u64, total: u64) {
        if self.is_blind {
            return;
        }
        self.link(no).written = total;
    }

    /// natsmux is about to handle bytes that a broker sent.
    pub fn broker_sends(&mut self, no: u64, bytes: &[u8]) {
        if self.is_blind {
            return;
        }
        self.link(no).down.feed(bytes);
        let mut behind_pong = false;
        while !self.link(no).ended {
            match self.link(no).down.next_down() {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    behind_pong |= frame == Down::Pong;
                    self.broker_frame(no, frame, behind_pong);
                }
                Err(_) => self.link(no).ended = true,
            }
        }
    }

    fn broker_frame(&mut self, no: u64, frame: Down, behind_pong: bool) {
        match frame {
            Down::Info(json) => self.link(no).info = Some(json),
            Down::Message { sid, publish } => self.broker_message(no, &sid, publish, behind_pong),
            Down::Pong => self.broker_pong(no),
            Down::Err(text) => self.broker_error(no, text),
            Down::Ping | Down::Ok => {}
        }
    }

    fn broker_message(&mut self, no: u64, sid: &[u8], publish: Publish, behind_pong: bool) {
        if publish.subject.starts_with(super::PRESENCE) {
            return;
        }
        let link = self.links.get_mut(&no).expect("the harness opened it");
        let Some(on) = link.sids.get_mut(sid) else {
            return;
        };
        let (session_no, sub_no, broker) = (link.session, on.sub, link.broker);
        let counts = !publish.is_no_responders();
        on.received += u64::from(counts);
        let is_plain = self.sessions[session_no].subs[sub_no].group.is_none();
        if !(counts && is_plain) {
            return self.expect_message(no, sid, publish, behind_pong, false);
        }
        // R41: two links of a planned move.
        let others = self
            .links
            .iter()
            .filter(|(_, other)| !other.closed && !other.sids.is_empty());
        let others = others.filter(|(other, _)| self.may_move(**other, no));
        let (mut has_older, mut has_newer) = (false, false);
        others.for_each(|(other, link)| {
            has_older |= *other < no;
            has_newer |= *other > no && link.sids.contains_key(sid);
        });
        if has_older {
            self.mark("move: a message is held");
            return self.link(no).held.push((sid.to_vec(), publish));
        }
        if has_newer {
            let copies = &mut self.sessions[session_no].copies;
            copies.push((broker, sid.to_vec(), publish.clone()));
        } else if self.take_copy(no, sid, &publish) == Some(false) {
            return self.mark("move: a copy comes late");
        }
        let has_name = super::identity(&publish).is_some();
        let may_be_copy = !has_name && self.links[&no].moved.contains(&sub_no);
        self.expect_message(no, sid, publish, behind_pong, may_be_copy);
    }

    /// Whether a link has the ledger, and the one that it replaces still serves (R41).
    pub(super) fn is_to_take_over(&self, no: u64) -> bool {
        let mut older = self.links.iter().filter(|(other, _)| **other < no);
        older.any(|(other, link)| !link.closed && self.may_move(*other, no))
    }

    /// Whether one link of a session may take over from the other: of independent brokers, at one of
    /// them.
    fn may_move(&self, old: u64, new: u64) -> bool {
        let (old, new) = (&self.links[&old], &self.links[&new]);
        old.session == new.session && (self.links_each == 1 || old.broker == new.broker)
    }

    /// Whether another link of a move has brought this message, and it must not come again:
    /// `Some(true)` where it has no name, and may be another that looks the same.
    fn take_copy(&mut self, no: u64, sid: &[u8], publish: &Publish) -> Option<bool> {
        let link = &self.links[&no];
        let any_broker = self.links_each == 1;
        let copies = &mut self.sessions[link.session].copies;
        let is_it = |(broker, own, copy): &(usize, Vec<u8>, Publish)| {
            (any_broker || *broker == link.broker) && own == sid && copy.is_copy_of(publish)
        };
        let at = copies.iter().position(is_it)?;
        copies.remove(at);
        Some(super::identity(publish).is_none())
    }

    /// The old link of a move has brought all: what the new one held counts, but for copies.
    fn release_held(&mut self, old: u64) {
        let newer = self.links.keys().copied().filter(|no| *no > old);
        let newer: Vec<u64> = newer.filter(|no| self.may_move(old, *no)).collect();
        for no in newer {
            for (sid, publish) in std::mem::take(&mut self.link(no).held) {
                if self.take_copy(no, &sid, &publish).is_some() {
                    self.mark("move: a copy");
                } else {
                    self.mark("move: only the new link brought it");
                    // One that has no name looks like another, from before the overlap.
                    let may_be_copy = super::identity(&publish).is_none();
                    self.expect_message(no, &sid, publish, true, may_be_copy);
                }
            }
        }
    }

    /// The component is to get a message that a link brought, unless it `may_be_copy`.
    fn expect_message(
        &mut self,
        no: u64,
        sid: &[u8],
        publish: Publish,
        behind_pong: bool,
        may_be_copy: bool,
    ) {
        let link = &self.links[&no];
        let sub_no = link.sids[sid].sub;
        let session = &mut self.sessions[link.session];
        let sub = &mut session.subs[sub_no];
        let may_be_dropped = match sub.state {
            // One without a name may have been its last.
            SubState::Live => may_be_copy || (sub.may_be_over && sub.max > 0),
            SubState::Ended => true,
            SubState::Gone => return,
        };
        let is_no_responders = publish.is_no_responders();
        sub.delivered += u64::from(!is_no_responders && !may_be_copy);
        // Whether it counts is known once the component hears it.
        sub.may_be_over |= may_be_copy;
        let finished = sub.max > 0 && sub.delivered >= sub.max;
        let on = (no, sid.to_vec());
        let sid = sub.sid.clone();
        if finished {
            session.finish(sub_no);
        }
        session.expected.push_back(Expected {
            sid,
            on,
            publish,
            may_be_dropped,
            uncounted: (may_be_copy && !is_no_responders).then_some(sub_no),
            behind_pong,
        });
    }

    /// What the oldest PING on the link asked for is proven (R4).
    fn broker_pong(&mut self, no: u64) {
        let Some(proven) = self.link(no).pings.pop_front() else {
            return self.fail("harness", format!("link {no}: a PONG for no PING"));
        };
        let link = self.link(no);
        link.proven = proven;
        let session_no = link.session;
        let mut settled = Vec::new();
        while link
            .publishes
            .front()
            .is_some_and(|publish| publish.frame < proven)
        {
            settled.extend(link.publishes.pop_front());
        }
        let first = !std::mem::replace(&mut link.authenticated, true);
        if first {
            let live = |(index, sub): (usize, &super::session::Sub)| {
                (sub.state == SubState::Live).then_some(index)
            };
            let must: Vec<usize> = self.sessions[session_no]
                .subs
                .iter()
                .enumerate()
                .filter_map(live)
                .collect();
            let link = self.link(no);
            link.settled = must.is_empty();
            link.must_replay = must;
            self.sessions[session_no].accepted = true;
        } else {
            self.link(no).settled = true;
        }
        for publish in &settled {
            if publish.refused {
                self.books.refused += 1;
                continue;
            }
            self.books.confirmed += 1;
            let id = super::identity(&publish.publish);
            if id.is_some_and(|id| !self.processed.contains_key(&id)) {
                self.fail(
                    "R4 fence",
                    format!("link {no}: {id:?} is confirmed and no broker processed it"),
                );
            }
        }
        let session = &mut self.sessions[session_no];
        session.unproven.retain_mut(|unproven| {
            let done = unproven.on.prove(no, proven);
            if let (true, Kind::Unsubscribe(sub)) = (done, &unproven.kind) {
                session.subs[*sub].state = SubState::Gone;
            }
            !done
        });
    }

    fn broker_error(&mut self, no: u64, text: String) {
        let session_no = self.links[&no].session;
        if text == "Maximum Payload Violation" {
            let link = self.link(no);
            link.ended = true;
            link.too_large = true;
            self.sessions[session_no].too_large = true;
            return;
        }
        if CLOSING.contains(&text.as_str()) {
            let link = self.link(no);
            link.ended = true;
            let was_live = link.settled;
            let mut links = self.links.iter().filter(|(_, link)| !link.closed);
            let alone = links.all(|(other, link)| *other == no || link.session != session_no);
            if text == EXPIRED && was_live && alone {
                self.sessions[session_no].expired = true;
            }
            if !text.starts_with("Stale") && !text.starts_with("maximum") {
                self.sessions[session_no].refusals.insert(text);
            }
            return;
        }
        if let Some(quoted) = text.strip_prefix("Permissions Violation for Publish to \"") {
            let subject = quoted.trim_end_matches('"').as_bytes();
            let link = self.link(no);
            let publish = link
                .publishes
                .iter_mut()
                .find(|publish| !publish.refused && publish.publish.subject == subject);
            match publish {
                Some(publish) => publish.refused = true,
                None => self.fail("harness", format!("link {no}: {text} for nothing")),
            }
            self.mark("publish refused");
        }
        if let Some(quoted) = text.strip_prefix("Permissions Violation for Subscription to \"") {
            let mut parts = quoted.split('"');
            let subject = parts.next().unwrap_or_default().as_bytes().to_vec();
            let group = parts.nth(1).map(|group| group.as_bytes().to_vec());
            self.broker_refused_sub(no, &subject, group);
        }
        let verbose = self.links[&no].verbose;
        self.sessions[session_no].errors.push((text, verbose));
    }

    fn broker_refused_sub(&mut self, no: u64, subject: &[u8], group: Option<Vec<u8>>) {
        let link = &self.links[&no];
        let session = &mut self.sessions[link.session];
        let refused = link.sids.values().map(|on| on.sub).filter(|sub| {
            session.subs[*sub].subject == subject
                && session.subs[*sub].group == group
                && session.subs[*sub].state == SubState::Live
        });
        if let Some(sub) = refused.max() {
            // R28: of several brokers, the one that publishes go to decides; which that is
            // isn't known here.
            if self.links_each == 1 {
                session.subs[sub].state = SubState::Gone;
            }
            session
                .unproven
                .retain(|unproven| unproven.kind.sub() != Some(sub));
        }
        // The text names no sid: of several equal ones, any may be the refused one.
        for sub in &mut session.subs {
            sub.may_be_over |= sub.subject == subject && sub.group == group;
        }
        self.mark("subscription refused");
    }

    /// A link is over, by whatever hand: natsmux will neither read nor write it any more.
    pub fn link_closed(&mut self, no: u64) {
        if self.is_blind {
            return;
        }
        let link = self.link(no);
        if std::mem::replace(&mut link.closed, true) {
            return;
        }
        let session_no = link.session;
        let written = link.written;
        let too_large = link.too_large;
        let stays = |other: (&u64, &Link)| {
            let is_older = *other.0 < no && self.may_move(*other.0, no);
            is_older && !other.1.closed && !other.1.is_left
        };
        if self.links.iter().any(stays) {
            // A move that is off.
            self.link(no).held.clear();
        }
        self.release_held(no);
        let link = self.link(no);
        let told = link
            .info
            .as_deref()
            .and_then(|json| json_value(json, "max_payload"));
        let max = told.and_then(|max| max.parse().ok()).unwrap_or(usize::MAX);
        if !link.down.residue().is_empty() && !link.ended {
            self.mark("cut inside a broker's frame");
        }
        let unsettled = std::mem::take(&mut self.link(no).publishes);
        for publish in unsettled.into_iter().rev() {
            let whole = publish.end <= written;
            if publish.refused && !self.at_least_once {
                self.books.refused += 1;
            } else if too_large
                && (!whole || self.at_least_once)
                && publish.publish.payload.len() > max
            {
                // No broker that is told the same will take it.
                self.books.refused += 1;
            } else if whole && !self.at_least_once {
                self.books.in_doubt += 1;
                self.mark("publish in doubt");
            } else {
                let start = publish.end - encoded_len(&publish.publish);
                if !whole && start < written {
                    self.mark("frame moved after a partial write");
                }
                self.mark("publish moved");
                self.sessions[session_no]
                    .queue
                    .push_front((publish.op, publish.publish));
            }
        }
        let session = &mut self.sessions[session_no];
        // A question that this broker did not answer is not asked again.
        session.unproven.retain_mut(|unproven| {
            let asked = unproven.on.is_on(no);
            let done = unproven.on.lose(no);
            let unanswered = asked && unproven.on.is_nowhere();
            let judge = matches!(unproven.kind, Kind::Judge(_));
            !(done || unanswered && judge)
        });
        let placed: Vec<usize> = self
            .links
            .values()
            .filter(|link| link.session == session_no && !link.closed)
            .flat_map(|link| link.sids.values().map(|on| on.sub))
            .collect();
        // Others that ended are perhaps on their way to a link.
        let here: Vec<usize> = self.links[&no].sids.values().map(|on| on.sub).collect();
        let session = &mut self.sessions[session_no];
        for (index, sub) in session.subs.iter_mut().enumerate() {
            if sub.state == SubState::Ended && here.contains(&index) && !placed.contains(&index) {
                sub.state = SubState::Gone;
            }
        }
        let subs = &session.subs;
        session
            .unproven
            .retain(|unproven| match unproven.kind.sub() {
                Some(sub) => subs[sub].state != SubState::Gone,
                None => true,
            });
        if session.refused {
            let again = std::mem::take(&mut session.queue);
            self.books.refused += again.len() as u64;
        }
        let session = &mut self.sessions[session_no];
        if !session.pings.is_empty() {
            self.mark("owed PONG over a failover");
        }
    }
}

fn encoded_len(publish: &Publish) -> u64 {
    let mut frame = Vec::new();
    publish.encode(None, &mut frame);
    frame.len() as u64
}
