//! The oracle: a naive model of components, subscriptions and brokers that judges every
//! frame as it happens, and completeness at rest.
//!
//! It is written against `docs/RULES.md` and the invariants there, not against natsmux's data
//! structures: it has its own parser, keeps whole messages, and searches lists. A harness
//! tells it what crosses each of natsmux's sockets, in the order in which natsmux sees it:
//!
//! - [`Oracle::component_bytes`], then [`Oracle::to_component`];
//! - [`Oracle::from_broker`], then [`Oracle::to_broker`] and [`Oracle::written`];
//! - [`Oracle::link_opened`], [`Oracle::link_closed`], [`Oracle::session_closed`];
//! - [`Oracle::broker_processed`] where it owns the broker too;
//! - [`Oracle::step_end`] after each input, with natsmux's own numbers.
//!
//! The first violation found is kept with the rule that it breaks. `session` holds what is
//! judged at components, `link` what is judged at brokers.

#![allow(unreachable_pub, reason = "shared by several test binaries")]

pub mod frames;
mod link;
mod session;

use std::collections::{BTreeMap, BTreeSet};

use frames::Publish;
pub use link::Link;
pub use session::{Reading, Session};

/// natsmux's own account of its publishes (R4), and what else it admits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    pub published: u64,
    pub confirmed: u64,
    pub refused: u64,
    pub dropped: u64,
    pub in_doubt: u64,
    pub waiting: u64,
    pub pongs_unproven: u64,
}

/// What subjects of presence begin with, in every harness (R29).
pub const PRESENCE: &[u8] = b"_P.";

/// Whether a subscription may get presence too: several brokers are told no max for it (R31).
fn may_get_presence(subject: &[u8]) -> bool {
    matches!(subject.first(), Some(b'*' | b'>'))
}

/// One subscription as a broker has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InPlace {
    pub subject: Vec<u8>,
    pub group: Option<Vec<u8>>,
    /// Messages until the broker ends it by itself.
    pub remaining: Option<u64>,
}

/// The model and its verdict.
#[derive(Debug, Default)]
pub struct Oracle {
    pub sessions: Vec<Session>,
    pub links: BTreeMap<u64, Link>,
    /// What natsmux's books must say.
    pub books: Books,
    /// Publishes are repeated until they are confirmed.
    pub at_least_once: bool,
    /// Sessions share links, and another judges them: here only the sums are looked at.
    pub is_blind: bool,
    pub violation: Option<String>,
    links_each: usize,
    /// Whether the brokers are the Ruby server of 2012.
    pub of_2012: bool,
    /// Links of independent brokers that natsmux finds suspect.
    pub suspect_links: BTreeSet<u64>,
    /// The session and PING of the last PONG that proved nothing.
    last_unproven: Option<(usize, u64)>,
    /// Names of interesting states that were seen.
    pub marks: BTreeSet<&'static str>,
    /// Publishes, by the identity in their payload, that some broker has processed.
    processed: BTreeMap<u64, u32>,
    /// Those that were confirmed, of whatever identity.
    accepted: BTreeSet<u64>,
}

impl Oracle {
    /// Each session has `links_each` links: one, or one to each of independent brokers.
    pub fn new(at_least_once: bool, links_each: usize) -> Self {
        Self {
            at_least_once,
            links_each,
            ..Self::default()
        }
    }

    /// Records the first violation.
    pub fn fail(&mut self, rule: &str, what: impl std::fmt::Display) {
        self.violation
            .get_or_insert_with(|| format!("{rule}: {what}"));
    }

    pub fn mark(&mut self, name: &'static str) {
        self.marks.insert(name);
    }

    /// A component was accepted and got its INFO. Returns the session's number.
    pub fn session_opened(&mut self) -> usize {
        self.sessions.push(Session::default());
        self.sessions.len() - 1
    }

    /// natsmux opened a connection to a broker for a session.
    pub fn link_opened(&mut self, link: u64, session: usize, broker: usize) {
        if self.is_blind {
            return;
        }
        self.links.insert(link, Link::new(session, broker));
    }

    /// A broker has processed a publish. `refused`: it answered `-ERR` instead.
    pub fn broker_processed(&mut self, publish: &Publish, refused: bool) {
        if refused {
            return;
        }
        if let Some(id) = identity(publish) {
            let times = self.processed.entry(id).or_insert(0);
            *times += 1;
            if *times > 1 {
                if self.at_least_once {
                    self.mark("publish repeated");
                } else {
                    self.fail(
                        "I6 no duplicates",
                        format!("publish {id} was processed twice"),
                    );
                }
            }
        }
    }

    /// After every input to natsmux.
    pub fn step_end(&mut self, natsmux: Books) {
        if self.is_blind {
            return self.check_sum(natsmux);
        }
        for session in 0..self.sessions.len() {
            self.check_delivered(session);
            // What natsmux didn't pass on at once, it answered itself.
            self.sessions[session].forget_unsent_questions();
            for unproven in &mut self.sessions[session].unproven {
                unproven.on.end_step();
            }
            self.bury_ended_subs(session);
        }
        let waiting = self.waiting();
        let expected = Books {
            waiting,
            pongs_unproven: natsmux.pongs_unproven,
            ..self.books
        };
        if expected != natsmux {
            self.fail(
                "R4 books",
                format!("model {expected:?}, natsmux {natsmux:?}"),
            );
        }
        if self.books.pongs_unproven > natsmux.pongs_unproven {
            let unproven = self.books.pongs_unproven;
            self.fail(
                "R1 PONG",
                format!(
                    "{unproven} PONGs are unproven and not counted so, {:?}",
                    self.last_unproven
                ),
            );
        }
    }

    /// R4, whosesoever the publishes are.
    fn check_sum(&mut self, natsmux: Books) {
        let settled = natsmux.confirmed + natsmux.refused + natsmux.dropped + natsmux.in_doubt;
        if natsmux.published != settled + natsmux.waiting {
            self.fail("R4 sum", format!("{natsmux:?}"));
        }
    }

    /// After the last input, once everything that natsmux still owes had time to come.
    /// `tables` are the subscriptions that the brokers have, for each link.
    pub fn at_rest(&mut self, tables: &BTreeMap<u64, Vec<InPlace>>, natsmux: Books) {
        if natsmux.waiting > 0 {
            self.fail(
                "I16 liveness",
                format!("{} publishes still wait", natsmux.waiting),
            );
        }
        if self.is_blind {
            return;
        }
        for no in 0..self.sessions.len() {
            self.check_session_at_rest(no, tables);
        }
        let books = self.books;
        let published = books.published;
        let settled = books.confirmed + books.refused + books.dropped + books.in_doubt;
        if published != settled {
            self.fail("R4 sum", format!("{books:?}"));
        }
        let missing = self
            .accepted
            .iter()
            .filter(|id| !self.processed.contains_key(id))
            .count();
        let excused = books.in_doubt + books.refused + books.dropped;
        if missing as u64 > excused {
            self.fail(
                "R4 loss",
                format!("{missing} publishes reached no broker, {excused} are excused"),
            );
        }
    }

    fn check_session_at_rest(&mut self, no: usize, tables: &BTreeMap<u64, Vec<InPlace>>) {
        let session = &self.sessions[no];
        if !session.open {
            return;
        }
        if session.options.is_none() {
            return;
        }
        if session.expired {
            let what = format!("session {no} lives on with credentials that ran out");
            return self.fail("R36 expiry", what);
        }
        if !session.pings.is_empty() {
            let (answered, owed) = (session.pongs, session.pings.len());
            return self.fail(
                "R1 PONG",
                format!("session {no} got {answered}, is owed {owed} more"),
            );
        }
        if let Some(op) = session.unhandled() {
            let what = format!("session {no}: {op:?} was never acted upon");
            return self.fail("I16 liveness", what);
        }
        if let Some(op) = session.verbose_ops.front() {
            return self.fail(
                "R20 verbose",
                format!("session {no} never heard of operation {op}"),
            );
        }
        let links: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| link.session == no && !link.closed)
            .map(|(no, _)| *no)
            .collect();
        if links.len() != self.links_each {
            return self.fail(
                "I16 liveness",
                format!("session {no} has {} links", links.len()),
            );
        }
        for link in links {
            self.check_link_at_rest(no, link, tables);
        }
    }

    fn check_link_at_rest(&mut self, no: usize, link: u64, tables: &BTreeMap<u64, Vec<InPlace>>) {
        let session = &self.sessions[no];
        let Some(table) = tables.get(&link) else {
            return self.fail(
                "I16 liveness",
                format!("session {no}: no broker knows its link"),
            );
        };
        let place = |sub: &session::Sub| InPlace {
            subject: sub.subject.clone(),
            group: sub.group.clone(),
            remaining: (sub.max > 0).then(|| sub.max - sub.delivered),
        };
        // R31: one of several brokers doesn't know what came from the others meanwhile.
        let several = self.links_each > 1;
        let normal = |place: InPlace| InPlace {
            remaining: match place.remaining {
                Some(_) if several && may_get_presence(&place.subject) => None,
                Some(_) if several => Some(1),
                remaining => remaining,
            },
            ..place
        };
        // Of one whose messages can't be told apart, the count isn't known.
        let doubtful = |place: &InPlace| {
            session.live_subs().any(|sub| {
                sub.may_be_over && sub.subject == place.subject && sub.group == place.group
            })
        };
        let own = |place: &&InPlace| !place.subject.starts_with(PRESENCE) && !doubtful(place);
        let table: Vec<InPlace> = table.iter().filter(own).cloned().map(normal).collect();
        let table = &table;
        let place = |sub: &session::Sub| normal(place(sub));
        let certain = session.live_subs().filter(|sub| !doubtful(&place(sub)));
        let leaks = without(table, &session.live_subs().map(place).collect::<Vec<_>>());
        let gaps = without(&certain.map(place).collect::<Vec<_>>(), table);
        if !leaks.is_empty() || !gaps.is_empty() {
            self.fail(
                "I13 no leak, no gap",
                format!("session {no}, link {link}: the broker has {leaks:?} too many and lacks {gaps:?}"),
            );
        }
    }

    /// Publishes that natsmux has and no fence has settled.
    fn waiting(&self) -> u64 {
        let held: usize = self
            .sessions
            .iter()
            .map(|session| session.queue.len())
            .sum();
        let open = self.links.values().filter(|link| !link.closed);
        let on_wire: usize = open.map(|link| link.publishes.len()).sum();
        (held + on_wire) as u64
    }
}

/// What `all` has and `others` lacks, to be read.
fn without(all: &[InPlace], others: &[InPlace]) -> Vec<String> {
    let mut others = others.to_vec();
    let mut left = Vec::new();
    for place in all {
        if let Some(at) = others.iter().position(|other| other == place) {
            others.remove(at);
            continue;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let group = place.group.as_deref().map(text);
        left.push(format!(
            "{} {group:?} {:?}",
            text(&place.subject),
            place.remaining
        ));
    }
    left
}

/// The number that a test's publisher put first in its payload.
pub fn identity(publish: &Publish) -> Option<u64> {
    let body = &publish.payload[publish.headers.unwrap_or(0)..];
    let text = body.strip_prefix(b"#")?;
    let end = text.iter().position(|byte| *byte == b' ')?;
    std::str::from_utf8(&text[..end]).ok()?.parse().ok()
}
