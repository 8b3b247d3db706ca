//! Who judges where sessions share trunks: an oracle that knows nothing of links.
//!
//! It sees what each component sent when natsmux read it, what natsmux gave it to read, and
//! what brokers did with each publish; and it asks whether a component could tell that it isn't
//! alone. What crosses a shared link is left to chance: only who hears what, and when.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::net::Time;
use super::oracle::frames::{self, Down, Publish, Splitter, Up, json_value};
use super::oracle::{InPlace, identity};

/// A session: its host and its number there.
pub type Name = (usize, usize);

/// What became of one publish.
#[derive(Debug, Default)]
struct Fact {
    publisher: Option<Name>,
    subject: Vec<u8>,
    /// How often a broker processed it, and refused it.
    processed: u32,
    refused: u32,
    /// When each broker gave it to its subscribers.
    seen: BTreeMap<usize, Time>,
}

/// One subscription of one session.
#[derive(Debug)]
struct Sub {
    subject: Vec<u8>,
    group: Option<Vec<u8>>,
    sid: Vec<u8>,
    /// How much its session had published when it sent the SUB.
    behind: usize,
    /// When natsmux read its SUB, and when a PONG behind that was given.
    from: Time,
    sure_from: Option<Time>,
    /// The same of its UNSUB.
    until: Option<Time>,
    gone: bool,
    /// It ends by itself: how much it got then may be judged by the broker alone.
    is_limited: bool,
    /// It got messages that may have been another's of its sid.
    is_unclear: bool,
    /// Messages that it may get at most, once that is certain.
    most: Option<u64>,
    max: u64,
    delivered: u64,
    got: BTreeMap<u64, u32>,
}

/// What a PONG will say of its session.
#[derive(Debug, Default)]
struct Question {
    connects: u32,
    subs: usize,
    ended: Vec<usize>,
    limited: Vec<usize>,
    publishes: usize,
}

/// One session.
#[derive(Debug, Default)]
pub struct End {
    up: Splitter,
    down: Splitter,
    connects: u32,
    echo: bool,
    /// It shares its trunk with nobody (R22).
    is_alone: bool,
    /// It has left a trunk that it shared, and may have missed something then.
    has_left: bool,
    subs: Vec<Sub>,
    questions: VecDeque<Question>,
    next: Question,
    /// Identities of what it published, in order, and up to which a PONG has come.
    published: Vec<u64>,
    sure_published: usize,
    /// Errors that it heard, and those that it asked for.
    heard: Errors,
    asked: Errors,
    /// Replies of its requests, how many statuses brokers sent for each, the last when, and how
    /// many it got.
    requests: BTreeMap<Vec<u8>, (u32, Time, u32)>,
    /// The last identity that it got for a sid from each publisher.
    last: BTreeMap<(Vec<u8>, Name), u64>,
    said_last_words: bool,
    /// It has got a PONG since its last CONNECT.
    accepted: bool,
    /// It broke the protocol, went away, or is being closed.
    over: bool,
}

/// Errors by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Errors {
    publishes: u32,
    subscriptions: u32,
    subjects: u32,
    /// Of the server of 2012: SUBs of a sid that is taken.
    sids: u32,
}

/// The judge of a whole run.
#[derive(Debug, Default)]
pub struct Witness {
    ends: BTreeMap<Name, End>,
    facts: BTreeMap<u64, Fact>,
    /// Messages to each queue group, by its name and the publish.
    groups: BTreeMap<(Vec<u8>, u64), u32>,
    /// What is published before a SUB that natsmux has read can be behind it at no broker
    /// before this has passed.
    latency: Time,
    at_least_once: bool,
    /// Brokers know nothing of `echo`.
    echoes: bool,
    /// One of independent brokers may be waited for no longer, and still deliver (R27).
    pub leaves_behind: bool,
    /// Brokers are left as planned (R41).
    pub moves: bool,
    /// Nothing goes wrong: each message must arrive.
    flawless: bool,
    pub violation: Option<String>,
    pub marks: BTreeSet<&'static str>,
}

impl Witness {
    pub fn new(latency: Time, at_least_once: bool, echoes: bool, flawless: bool) -> Self {
        Self {
            latency,
            at_least_once,
            echoes,
            flawless,
            ..Self::default()
        }
    }

    fn fail(&mut self, rule: &str, name: Name, what: impl std::fmt::Display) {
        let (host, session) = name;
        self.violation
            .get_or_insert_with(|| format!("{rule}: host {host}, session {session}: {what}"));
    }

    pub fn opened(&mut self, name: Name) {
        let end = End {
            echo: true,
            ..End::default()
        };
        self.ends.insert(name, end);
    }

    /// Whether a session has got a PONG since its last CONNECT.
    pub fn is_accepted(&self, name: Name) -> bool {
        self.ends.get(&name).is_some_and(|end| end.accepted)
    }

    /// The component is gone, at fault, or natsmux closes it: it is owed nothing more.
    pub fn over(&mut self, name: Name) {
        if let Some(end) = self.ends.get_mut(&name) {
            end.over = true;
        }
    }

    /// natsmux has read bytes of a component. `drops` says whether a second CONNECT ends
    /// subscriptions.
    pub fn said(&mut self, name: Name, bytes: &[u8], now: Time, drops: bool) {
        let Some(end) = self.ends.get_mut(&name) else {
            return;
        };
        end.up.feed(bytes);
        loop {
            match self.ends.get_mut(&name).expect("it is there").up.next_up() {
                Ok(None) => return,
                Ok(Some(op)) => self.operation(name, op, now, drops),
                Err(_) => return self.over(name),
            }
        }
    }

    fn operation(&mut self, name: Name, op: Up, now: Time, drops: bool) {
        let end = self.ends.get_mut(&name).expect("it is there");
        match op {
            Up::Pong => {}
            Up::Connect(json) => {
                end.echo = self.echoes || json_value(&json, "echo") != Some("false");
                end.connects += 1;
                end.accepted = false;
                let is_set = |key| json_value(&json, key) == Some("true");
                let is_alone = is_set("verbose") || is_set("pedantic") || !end.echo;
                if end.connects > 1 {
                    self.marks.insert("sharing: second CONNECT");
                    if self.flawless && end.is_alone && !drops && !end.subs.is_empty() {
                        self.marks.insert("second CONNECT: nothing missing");
                    }
                    end.connect_again(now, drops);
                }
                end.is_alone |= is_alone || end.connects > 1;
            }
            Up::Ping => {
                end.next.connects = end.connects;
                end.next.subs = end.subs.len();
                end.next.publishes = end.published.len();
                let question = std::mem::take(&mut end.next);
                end.questions.push_back(question);
            }
            Up::Publish(publish) => {
                if let Some(reply) = &publish.reply {
                    end.requests.entry(reply.clone()).or_default();
                }
                if let Some(id) = identity(&publish) {
                    end.published.push(id);
                    let fact = self.facts.entry(id).or_default();
                    fact.publisher = Some(name);
                    fact.subject = publish.subject;
                }
            }
            Up::Subscribe {
                subject,
                group,
                sid,
            } => end.subscribe(subject, group, sid, now),
            Up::Unsubscribe { sid, max } => end.unsubscribe(&sid, max, now),
        }
    }

    /// A broker has processed a publish, or refused it.
    pub fn processed(&mut self, publish: &Publish, refused: bool) {
        let Some(id) = identity(publish) else {
            return;
        };
        let fact = self.facts.entry(id).or_default();
        fact.subject.clone_from(&publish.subject);
        if refused {
            fact.refused += 1;
        } else {
            fact.processed += 1;
        }
        let publisher = fact.publisher.filter(|_| refused);
        if let Some(end) = publisher.and_then(|name| self.ends.get_mut(&name)) {
            end.asked.publishes += 1;
            self.marks.insert("sharing: publish refused");
        }
    }

    /// A broker gives a publish to its subscribers.
    pub fn seen(&mut self, broker: usize, publish: &Publish, now: Time) {
        if let Some(id) = identity(publish) {
            self.facts.entry(id).or_default().seen.insert(broker, now);
        }
    }

    /// A broker says that a request has no responders.
    pub fn no_responders(&mut self, reply: &[u8], now: Time) {
        let asker = |end: &&mut End| end.requests.contains_key(reply);
        if let Some(end) = self.ends.values_mut().find(asker)
            && let Some((said, at, _)) = end.requests.get_mut(reply)
        {
            *said += 1;
            *at = now;
            self.marks.insert("sharing: no responders");
        }
    }

    /// natsmux gives bytes to a component.
    pub fn heard(&mut self, name: Name, bytes: &[u8], now: Time) {
        let Some(end) = self.ends.get_mut(&name) else {
            return;
        };
        end.down.feed(bytes);
        loop {
            let end = self.ends.get_mut(&name).expect("it is there");
            let ended = end.said_last_words;
            match end.down.next_down() {
                Ok(None) => break,
                Ok(Some(frame)) if ended => {
                    let what = format!("{frame:?} behind the last words");
                    return self.fail("I17 reply truth", name, what);
                }
                Ok(Some(Down::Message { sid, publish })) => self.message(name, &sid, &publish),
                Ok(Some(Down::Pong)) => self.pong(name, now),
                Ok(Some(Down::Err(text))) => self.error(name, &text),
                Ok(Some(Down::Info(_) | Down::Ping | Down::Ok)) => {}
                Err(what) => return self.fail("I3 framing", name, what),
            }
        }
        let end = &self.ends[&name];
        if !end.down.residue().is_empty() {
            self.fail("I3 framing", name, "a part of a frame");
        }
    }

    fn message(&mut self, name: Name, sid: &[u8], publish: &Publish) {
        let end = self.ends.get_mut(&name).expect("it is there");
        let fits = |sub: &&mut Sub| {
            sub.sid == sid && !sub.gone && frames::matches(&sub.subject, &publish.subject)
        };
        let several = end.subs.iter_mut().filter(fits).count() > 1;
        let Some(sub) = end.subs.iter_mut().rev().find(fits) else {
            let (sid, subject) = (text(sid), text(&publish.subject));
            return self.fail(
                "I1 isolation",
                name,
                format!("{subject} under sid {sid}, which has no such subscription"),
            );
        };
        if publish.is_no_responders() {
            let Some((said, _, heard)) = end.requests.get_mut(&publish.subject) else {
                let subject = text(&publish.subject);
                return self.fail("R24 503", name, format!("{subject}: it never asked"));
            };
            *heard += 1;
            let (said, heard) = (*said, *heard);
            if heard > said {
                self.fail("R24 503", name, format!("{heard} statuses of {said}"));
            }
            return;
        }
        if several {
            // natsmux may not have acted upon the second SUB of this sid: whose it is can't be
            // told until the PONG behind it.
            for sub in end.subs.iter_mut().filter(fits) {
                sub.is_unclear = true;
            }
            return;
        }
        sub.delivered += 1;
        let over = sub.most.is_some_and(|most| sub.delivered > most) && !sub.is_unclear;
        let Some(id) = identity(publish) else {
            if over {
                self.fail("I11 max", name, format!("sid {} is over", text(sid)));
            }
            return;
        };
        let count = sub.got.entry(id).or_default();
        *count += 1;
        let count = *count;
        let (from, group) = (sub.from, sub.group.clone());
        let fact = self.facts.entry(id).or_default();
        let early = !fact.seen.values().any(|at| *at >= from + self.latency);
        let (processed, publisher) = (fact.processed, fact.publisher);
        let sent_to = match &group {
            Some(group) => {
                let all = self.groups.entry((group.clone(), id)).or_default();
                *all += 1;
                *all
            }
            None => count,
        };
        let own = publisher == Some(name);
        let last = publisher.map(|from| end.last.insert((sid.to_vec(), from), id));
        let overtaken = last.flatten().is_some_and(|last| last > id);
        // While a member moves, or says CONNECT again, there are two of it.
        let may_overtake = group.is_some() && (self.moves || end.connects > 1);
        let no_echo = own && !end.echo && end.connects == 1 && self.flawless;
        let shown = format!("publish {id} under sid {}", text(sid));
        if over {
            self.fail("I11 max", name, format!("{shown} is over it"));
        } else if early {
            self.fail("R23 join", name, format!("{shown} was sent before its SUB"));
        } else if sent_to > processed {
            self.fail(
                "I6 no duplicates",
                name,
                format!("{shown}: {sent_to} times"),
            );
        } else if overtaken && self.flawless && !self.at_least_once && !may_overtake {
            self.fail("I5 order", name, format!("{shown} is late"));
        } else if no_echo {
            self.fail("R22 echo", name, format!("{shown} is its own"));
        }
    }

    fn pong(&mut self, name: Name, now: Time) {
        let end = self.ends.get_mut(&name).expect("it is there");
        let Some(question) = end.questions.pop_front() else {
            return self.fail("R1 PONG", name, "nobody asked");
        };
        end.accepted |= question.connects == end.connects;
        for sub in &mut end.subs[..question.subs] {
            sub.sure_from.get_or_insert(now);
        }
        for no in question.ended {
            end.subs[no].gone = !self.leaves_behind;
        }
        for no in question.limited {
            let sub = &mut end.subs[no];
            sub.most = Some(sub.max.max(sub.delivered));
        }
        let from = std::mem::replace(&mut end.sure_published, question.publishes);
        let behind = end.published[from.min(question.publishes)..question.publishes].to_vec();
        let is_known = |id: &u64| {
            let fact = self.facts.get(id);
            fact.is_some_and(|fact| fact.processed + fact.refused > 0)
        };
        if let Some(id) = behind.iter().find(|id| !is_known(id))
            && self.flawless
        {
            self.fail("R1 PONG", name, format!("publish {id} is at no broker"));
        }
    }

    fn error(&mut self, name: Name, said: &str) {
        let end = self.ends.get_mut(&name).expect("it is there");
        let (heard, asked) = if said.starts_with("Permissions Violation for Publish") {
            end.heard.publishes += 1;
            (end.heard.publishes, end.asked.publishes)
        } else if said.starts_with("Permissions Violation for Subscription") {
            end.heard.subscriptions += 1;
            (end.heard.subscriptions, end.asked.subscriptions)
        } else if said == "Invalid Subject" {
            end.heard.subjects += 1;
            (end.heard.subjects, end.asked.subjects)
        } else if said == "Invalid Subject Identifier (sid), already taken" {
            end.heard.sids += 1;
            (end.heard.sids, end.asked.sids)
        } else {
            end.over = true;
            end.said_last_words = true;
            return;
        };
        // Of several brokers, one may answer late what another has answered (R28).
        if heard > asked && !self.leaves_behind {
            self.fail("I17 reply truth", name, format!("'{said}' is another's"));
        }
    }

    /// At the end, when all had time to come.
    pub fn at_rest(&mut self) {
        let names: Vec<Name> = self.ends.keys().copied().collect();
        for name in names {
            self.session_at_rest(name);
        }
        if self.flawless {
            self.groups_at_rest();
        }
    }

    fn session_at_rest(&mut self, name: Name) {
        let end = &self.ends[&name];
        if end.over || end.connects == 0 {
            return;
        }
        if !end.questions.is_empty() {
            let owed = end.questions.len();
            return self.fail("R1 PONG", name, format!("{owed} are owed"));
        }
        if !self.flawless {
            return;
        }
        // Only the server of 2012 says so, and where a limit is reached at once, it may not.
        let asked = Errors {
            sids: end.heard.sids,
            ..end.asked
        };
        if end.heard != asked && end.connects == 1 {
            let what = format!("heard {:?} of {asked:?}", end.heard);
            return self.fail("I17 reply truth", name, what);
        }
        for (reply, (said, at, heard)) in &end.requests {
            let mut subs = end.subs.iter().filter(|sub| sub.is_steady(*at));
            let subscribed =
                subs.any(|sub| sub.group.is_none() && frames::matches(&sub.subject, reply));
            if subscribed && heard < said && end.connects == 1 {
                let what = format!("{}: {heard} of {said} statuses", text(reply));
                return self.fail("R24 503", name, what);
            }
        }
        let mut missing = None;
        for sub in end.subs.iter().filter(|sub| sub.group.is_none()) {
            for (id, fact) in &self.facts {
                let own = fact.publisher == Some(name) && !end.echo;
                let Some(first) = fact.seen.values().min().filter(|_| fact.processed > 0) else {
                    continue;
                };
                // What its own session published behind its SUB needs no PONG.
                let behind = fact.publisher == Some(name)
                    && end.connects == 1
                    && sub.is_open()
                    && end.published[sub.behind..].contains(id);
                if !own
                    && (sub.is_steady(*first) || behind)
                    && frames::matches(&sub.subject, &fact.subject)
                    && !sub.got.contains_key(id)
                {
                    missing.get_or_insert((*id, text(&sub.sid)));
                }
            }
        }
        if let Some((id, sid)) = missing {
            self.fail("I2 missing", name, format!("publish {id} under sid {sid}"));
        }
    }

    /// A queue group whose members were all there gets each message once.
    fn groups_at_rest(&mut self) {
        for (id, fact) in &self.facts {
            let Some(first) = fact.seen.values().min().filter(|_| fact.processed > 0) else {
                continue;
            };
            let mut steady: BTreeMap<&[u8], bool> = BTreeMap::new();
            for (name, end) in &self.ends {
                for sub in &end.subs {
                    let Some(group) = &sub.group else {
                        continue;
                    };
                    if !frames::matches(&sub.subject, &fact.subject) {
                        continue;
                    }
                    let own = fact.publisher == Some(*name) && !end.echo;
                    // One that came later, or ended, leaves the choice to the broker.
                    let well = sub.is_steady(*first) && !end.over && !own && !end.has_left;
                    *steady.entry(group).or_insert(true) &= well;
                }
            }
            for (group, _) in steady.into_iter().filter(|(_, steady)| *steady) {
                let key = (group.to_vec(), *id);
                if self.groups.get(&key) != Some(&1) {
                    let what = format!("publish {id} to group {}", text(group));
                    self.violation.get_or_insert(format!("I2 missing: {what}"));
                    return;
                }
            }
        }
    }

    /// What a broker has for a link is what those who share it want: each queue member, and
    /// each plain subject at least once.
    pub fn table_at_rest(&mut self, names: &[Name], table: &[InPlace]) {
        type Wants = BTreeMap<(Vec<u8>, Option<Vec<u8>>), usize>;
        let (mut least, mut most) = (Wants::new(), Wants::new());
        for name in names {
            let end = &self.ends[name];
            if end.over {
                return;
            }
            for sub in end.subs.iter().filter(|sub| !sub.gone) {
                let refused = sub.subject.starts_with(b"deny")
                    || !frames::is_subscribable(&sub.subject)
                    || sub.until.is_some();
                if refused {
                    continue;
                }
                let key = (sub.subject.clone(), sub.group.clone());
                *most.entry(key.clone()).or_default() += 1;
                let is_left = !sub.is_limited || sub.most.is_some_and(|m| sub.delivered < m);
                let is_certain = is_left && !sub.is_unclear;
                if is_certain && sub.group.is_some() {
                    *least.entry(key).or_default() += 1;
                } else if is_certain {
                    least.insert(key, 1);
                }
            }
        }
        let mut has = Wants::new();
        for place in table {
            let key = (place.subject.clone(), place.group.clone());
            if !place.subject.starts_with(super::oracle::PRESENCE) {
                *has.entry(key).or_default() += 1;
            }
        }
        if has.values().sum::<usize>() < most.values().sum() {
            self.marks.insert("sharing: coalesced");
        }
        let show = |(subject, group): &(Vec<u8>, Option<Vec<u8>>)| {
            format!("{} {:?}", text(subject), group.as_deref().map(text))
        };
        let name = names[0];
        for (key, count) in &has {
            if most.get(key).is_none_or(|most| count > most) {
                let what = format!("{count} of {} at the broker", show(key));
                return self.fail("I13 no leak", name, what);
            }
        }
        for (key, count) in &least {
            if has.get(key).is_none_or(|has| has < count) {
                let what = format!("the broker lacks {}, {count} wanted", show(key));
                return self.fail("I13 no gap", name, what);
            }
        }
    }
}

impl Sub {
    /// Whether it must get what is published at this time.
    fn is_steady(&self, at: Time) -> bool {
        self.sure_from.is_some_and(|from| from <= at) && self.is_open()
    }

    /// Whether nothing but its SUB says what it gets.
    fn is_open(&self) -> bool {
        let plain = !self.is_limited && !self.is_unclear;
        self.until.is_none() && !self.gone && plain
    }
}

impl End {
    fn live(&mut self, sid: &[u8]) -> Option<usize> {
        self.subs.iter().rposition(|sub| {
            let over = sub.max > 0 && sub.delivered >= sub.max;
            sub.sid == sid && sub.until.is_none() && !over
        })
    }

    fn subscribe(&mut self, subject: Vec<u8>, group: Option<Vec<u8>>, sid: Vec<u8>, now: Time) {
        if !subject.starts_with(b"deny") && frames::is_subscribable(&subject) {
            if self.live(&sid).is_some() {
                self.asked.sids += 1;
                return;
            }
        } else if subject.starts_with(b"deny") {
            self.asked.subscriptions += 1;
        } else {
            self.asked.subjects += 1;
            return;
        }
        self.subs.push(Sub {
            subject,
            group,
            sid,
            behind: self.published.len(),
            from: now,
            sure_from: None,
            until: None,
            gone: false,
            is_limited: false,
            is_unclear: false,
            most: None,
            max: 0,
            delivered: 0,
            got: BTreeMap::new(),
        });
    }

    fn unsubscribe(&mut self, sid: &[u8], max: Option<u64>, now: Time) {
        let Some(no) = self.live(sid) else {
            return;
        };
        let sub = &mut self.subs[no];
        match max {
            Some(max) if max > sub.delivered => {
                (sub.max, sub.is_limited, sub.most) = (max, true, None);
                self.next.limited.push(no);
            }
            _ => {
                sub.until = Some(now);
                self.next.ended.push(no);
            }
        }
    }

    /// A second CONNECT: where it leaves others, what comes until the next PONG may be missing.
    fn connect_again(&mut self, now: Time, drops: bool) {
        self.has_left |= !self.is_alone;
        for (no, sub) in self.subs.iter_mut().enumerate() {
            if sub.until.is_some() {
                continue;
            }
            sub.is_limited |= !self.is_alone;
            if drops {
                sub.until = Some(now);
                self.next.ended.push(no);
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
