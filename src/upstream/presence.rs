//! Who else is there (R29): with independent brokers, every natsmux tells the others on which
//! brokers its host is subscribed, so that all publish to one that reaches everybody.
//!
//! One trunk of a bus, the *carrier*, announces on all its links and hears the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Instant;
use crate::proto::announcement::Announcement;

/// Between two announcements, where few are heard.
const EVERY: Duration = Duration::from_secs(1);
/// Announcements a second that a daemon hears at most, before all announce less often.
const HEARD_MOST: u32 = 200;
/// A host is absent that was not heard of for so many of its own intervals.
const MISSED: u32 = 3;
/// The longest announcement, in bytes.
const LONGEST_JSON: usize = 8 * 1024;
/// The longest id of a host, in bytes, and the most brokers that one says it reaches.
const LONGEST_ID: usize = 64;
const REACHES_MOST: usize = 64;
/// The longest interval that is believed.
const LONGEST: Duration = Duration::from_secs(60);
/// Hosts that are kept in mind.
const PEERS_MOST: usize = 10_000;
/// How long publishes wait behind an outage for hosts that were there before it: as long as
/// these may take to look at a broker again.
const GATHERING: Duration = Duration::from_millis(2_500);
/// Between two announcements at least, where hosts come back.
const LEAST: Duration = Duration::from_millis(100);
/// How long an announcement waits at a time for trunks that still replay.
const PUT_OFF: Duration = Duration::from_millis(5);
/// How long a carrier that is new waits for links that are on their way.
const START: Duration = Duration::from_millis(500);

/// What an announcement has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing new.
    Nothing,
    /// The others are on other brokers than before.
    News,
    /// It is natsmux's own, and was sent to another broker: they are routed (R26).
    Routed,
}

/// The other hosts of a bus.
#[derive(Debug)]
pub struct Presence {
    /// Subjects begin with this and a dot; empty: there is no presence.
    prefix: Vec<u8>,
    id: String,
    peers: BTreeMap<String, Peer>,
    /// Hosts that were there when the last broker was lost, and have not been heard of since.
    awaited: BTreeSet<String>,
    gathers_until: Option<Instant>,
    announced_at: Option<Instant>,
    due: Option<Instant>,
    forbidden: bool,
    routed: bool,
}

#[derive(Debug)]
struct Peer {
    reaches: Vec<String>,
    until: Instant,
}

impl Presence {
    /// The natsmux with this id, which is random; an empty `prefix` turns it off.
    pub fn new(prefix: &str, id: &str) -> Self {
        Self {
            prefix: match prefix {
                "" => Vec::new(),
                prefix => [prefix.as_bytes(), b"."].concat(),
            },
            id: id.to_owned(),
            peers: BTreeMap::new(),
            awaited: BTreeSet::new(),
            gathers_until: None,
            announced_at: None,
            due: None,
            forbidden: false,
            routed: false,
        }
    }

    /// Whether announcements are made.
    pub fn is_on(&self) -> bool {
        !self.prefix.is_empty() && !self.forbidden
    }

    /// Whether a message's subject is one of presence, so that no component may see it.
    pub fn is_subject(&self, subject: &[u8]) -> bool {
        !self.prefix.is_empty() && subject.starts_with(&self.prefix)
    }

    /// Whether a subscription may get announcements, which a broker would count (R31).
    pub fn may_match(&self, subscription: &[u8]) -> bool {
        if self.prefix.is_empty() {
            return false;
        }
        let mut own = self.prefix.split(|byte| *byte == b'.');
        for token in subscription.split(|byte| *byte == b'.') {
            match (token, own.next()) {
                (b">", _) | (_, None | Some(b"")) => return true,
                (b"*", _) => {}
                (token, Some(own)) if token == own => {}
                _ => return false,
            }
        }
        false
    }

    /// What is announced, and what is listened to.
    pub(super) fn own_subject(&self) -> Vec<u8> {
        [&self.prefix, self.id.as_bytes()].concat()
    }

    pub(super) fn subscription(&self) -> Vec<u8> {
        [&self.prefix[..], b"*"].concat()
    }

    /// The subjects of presence begin with this; empty where there is none.
    pub(super) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// An announcement to the broker `via`, from a host that is subscribed on `reaches`.
    pub(super) fn announcement(&self, via: &str, reaches: &[String]) -> Vec<u8> {
        let said = Announcement {
            id: self.id.clone(),
            via: via.to_owned(),
            reaches: reaches.to_vec(),
            every_ms: self.every().as_millis() as u64,
        };
        said.encode()
    }

    /// Hears what came from the broker `from`.
    pub(super) fn hear(&mut self, json: &[u8], from: &str, now: Instant) -> Heard {
        if json.len() > LONGEST_JSON || !self.is_on() {
            return Heard::Nothing;
        }
        let Some(said) = Announcement::parse(json) else {
            return Heard::Nothing;
        };
        if said.id.len() > LONGEST_ID || said.reaches.len() > REACHES_MOST {
            return Heard::Nothing;
        }
        if said.id == self.id {
            let elsewhere = !said.via.is_empty() && !from.is_empty() && said.via != from;
            return match elsewhere && !std::mem::replace(&mut self.routed, true) {
                true => Heard::Routed,
                false => Heard::Nothing,
            };
        }
        if self.peers.len() >= PEERS_MOST && !self.peers.contains_key(&said.id) {
            return Heard::Nothing;
        }
        let every = Duration::from_millis(said.every_ms).clamp(EVERY, LONGEST);
        let peer = Peer {
            reaches: said.reaches,
            until: now + MISSED * every,
        };
        let reaches = peer.reaches.clone();
        self.awaited.remove(&said.id);
        let before = self.peers.insert(said.id, peer);
        if before.is_none() {
            // It knows as little of this host.
            let pause = LEAST.max(self.every() / 10);
            let soon = self.announced_at.map_or(now, |at| now.max(at + pause));
            self.due = self.due.map(|due| due.min(soon));
        }
        match before.is_some_and(|before| before.reaches == reaches) {
            true => Heard::Nothing,
            false => Heard::News,
        }
    }

    /// Forgets who was not heard of for long. Returns whether anybody was.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.peers.len();
        self.peers.retain(|_, peer| peer.until > now);
        self.peers.len() < before
    }

    /// The first broker is back after an outage. Who was there when that began will be, soon;
    /// what they said of themselves is old.
    pub(super) fn gather(&mut self, since: Instant, now: Instant) {
        let peers = std::mem::take(&mut self.peers).into_iter();
        let present = peers.filter(|(_, peer)| peer.until > since);
        self.awaited.extend(present.map(|(id, _)| id));
        self.gathers_until = Some(now + GATHERING);
    }

    /// Whether an outage was over only lately.
    pub(super) fn is_gathering(&self, now: Instant) -> bool {
        self.gathers_until.is_some_and(|until| until > now)
    }

    /// Until when a publish to this broker might miss a host that is on its way back to it.
    pub(super) fn awaits(&self, server_id: &str, now: Instant) -> Option<Instant> {
        let until = self.gathers_until.filter(|_| self.is_gathering(now))?;
        let away = !self.awaited.is_empty() || self.missing(server_id) > 0;
        (away && self.is_on()).then_some(until)
    }

    /// Hosts that aren't subscribed on this broker.
    pub(super) fn missing(&self, server_id: &str) -> usize {
        let lacks = |peer: &&Peer| !peer.reaches.iter().any(|reached| reached == server_id);
        self.peers.values().filter(lacks).count()
    }

    /// Hosts that are subscribed on this broker.
    pub fn present(&self, server_id: &str) -> usize {
        self.peers.len() - self.missing(server_id)
    }

    /// Whether the brokers turned out to be routed to each other (R26).
    pub fn is_routed(&self) -> bool {
        self.routed
    }

    /// A broker doesn't permit it. Returns whether that is new.
    pub(super) fn forbid(&mut self) -> bool {
        self.peers.clear();
        self.awaited.clear();
        !std::mem::replace(&mut self.forbidden, true)
    }

    /// When the next announcement is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.is_on())
    }

    /// It was made.
    pub(super) fn announced(&mut self, now: Instant) {
        self.announced_at = Some(now);
        self.due = Some(now + self.every());
        if self.gathers_until.is_some_and(|until| until <= now) {
            self.gathers_until = None;
            self.awaited.clear();
        }
    }

    /// Where this host is subscribed has changed: announced at once, or soon where this is the
    /// first link.
    pub(super) fn change(&mut self, now: Instant) {
        self.due = Some(self.due.map_or(now + START, |due| due.min(now)));
    }

    /// It can't be made yet.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.due = Some(now + PUT_OFF);
    }

    fn every(&self) -> Duration {
        let hosts = (self.peers.len() + self.awaited.len()) as u32;
        EVERY.max(EVERY * hosts / HEARD_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(id: &str, reaches: &[&str]) -> Vec<u8> {
        let reaches: Vec<String> = reaches.iter().map(|id| (*id).to_owned()).collect();
        Presence::new("_P", id).announcement("A", &reaches)
    }

    #[test]
    fn hosts_are_present_where_they_say_and_absent_after_three_intervals() {
        let mut presence = Presence::new("_P", "me");
        let now = Instant::now();
        assert_eq!(
            presence.hear(&other("x", &["A", "B"]), "A", now),
            Heard::News
        );
        assert_eq!(
            presence.hear(&other("x", &["A", "B"]), "B", now),
            Heard::Nothing
        );
        assert_eq!(presence.hear(&other("y", &["B"]), "B", now), Heard::News);
        assert_eq!((presence.missing("A"), presence.missing("B")), (1, 0));
        assert_eq!((presence.present("A"), presence.present("B")), (1, 2));
        assert_eq!(
            presence.hear(&other("y", &["A", "B"]), "B", now),
            Heard::News
        );
        assert_eq!(presence.missing("A"), 0);
        assert!(!presence.expire(now + Duration::from_millis(2_999)));
        assert!(presence.expire(now + Duration::from_secs(3)));
        assert_eq!(presence.present("B"), 0);
        assert_eq!(presence.hear(b"nonsense", "A", now), Heard::Nothing);
    }

    #[test]
    fn its_own_words_out_of_another_broker_show_that_they_are_routed() {
        let mut presence = Presence::new("_P", "me");
        let now = Instant::now();
        let own = presence.announcement("A", &[]);
        assert_eq!(presence.hear(&own, "A", now), Heard::Nothing);
        assert!(!presence.is_routed());
        assert_eq!(presence.hear(&own, "B", now), Heard::Routed);
        assert_eq!(presence.hear(&own, "B", now), Heard::Nothing, "said once");
        assert!(presence.is_routed());
    }

    #[test]
    fn subjects_of_presence_are_known() {
        let presence = Presence::new("_NATSMUX.presence", "me");
        assert_eq!(presence.own_subject(), b"_NATSMUX.presence.me");
        assert_eq!(presence.subscription(), b"_NATSMUX.presence.*");
        assert!(presence.is_subject(b"_NATSMUX.presence.x"));
        assert!(!presence.is_subject(b"_NATSMUX.presences"));
        for subscription in [
            &b">"[..],
            b"*.>",
            b"*.*.*",
            b"_NATSMUX.>",
            b"_NATSMUX.presence.x",
        ] {
            assert!(presence.may_match(subscription), "{subscription:?}");
        }
        for subscription in [&b"a"[..], b"a.>", b"*.b.*", b"*", b"_NATSMUX.*"] {
            assert!(!presence.may_match(subscription), "{subscription:?}");
        }
        let off = Presence::new("", "me");
        assert!(!off.is_on() && !off.is_subject(b".x") && !off.may_match(b">"));
    }

    #[test]
    fn behind_an_outage_the_others_are_waited_for() {
        let mut presence = Presence::new("_P", "me");
        let now = Instant::now();
        presence.hear(&other("x", &["A", "B"]), "A", now);
        presence.hear(&other("y", &["A"]), "A", now);
        presence.hear(&other("gone", &["A"]), "A", now - MISSED * EVERY);
        assert_eq!(presence.awaits("A", now), None, "there was no outage");
        presence.gather(now, now);
        assert_eq!(presence.present("A"), 0, "what they said is old");
        let until = now + GATHERING;
        assert_eq!(presence.awaits("A", now), Some(until));
        presence.hear(&other("x", &["A"]), "A", now);
        assert_eq!(presence.awaits("A", now), Some(until), "y is missing");
        presence.hear(&other("y", &["B"]), "A", now);
        assert_eq!(presence.awaits("A", now), Some(until), "y isn't there yet");
        presence.hear(&other("y", &["A", "B"]), "A", now);
        assert_eq!(presence.awaits("A", now), None);
        assert_eq!(presence.awaits("B", now), Some(until), "x isn't there");
        assert_eq!(presence.awaits("B", until), None, "it may never be");
    }

    #[test]
    fn a_host_that_is_new_is_answered_soon() {
        let mut presence = Presence::new("_P", "me");
        let now = Instant::now();
        presence.announced(now);
        presence.hear(&other("x", &["A"]), "A", now);
        assert_eq!(presence.due(), Some(now + LEAST));
        presence.announced(now + LEAST);
        presence.hear(&other("x", &["A", "B"]), "A", now + LEAST);
        assert_eq!(presence.due(), Some(now + LEAST + EVERY), "it is known");
    }

    #[test]
    fn announcements_come_each_second_and_at_once_on_a_change() {
        let mut presence = Presence::new("_P", "me");
        let now = Instant::now();
        assert_eq!(presence.due(), None);
        presence.change(now);
        assert_eq!(presence.due(), Some(now + START), "others are on their way");
        presence.announced(now);
        assert_eq!(presence.due(), Some(now + EVERY));
        presence.change(now);
        assert_eq!(presence.due(), Some(now));
        for number in 0..400 {
            presence.hear(&other(&number.to_string(), &[]), "A", now);
        }
        presence.announced(now);
        assert_eq!(presence.due(), Some(now + 2 * EVERY));
        assert!(presence.forbid() && !presence.forbid());
        assert_eq!(presence.due(), None);
    }
}
