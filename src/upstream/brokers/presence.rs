//! The other natsmux of a bus (R29): with independent brokers, each tells the others on which
//! brokers its host is subscribed, so that all publish to one that reaches everybody.
//!
//! The oldest trunk of each identity, a *carrier*, announces on all its links and hears the
//! others: hosts whose components are of different accounts meet in each of these. What is
//! announced is bounded in number, size and cost, authenticated where there is a key, and
//! forgotten: nothing that was once heard holds for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::backoff::Backoff;
use super::liveness::TrunkId;
use super::trouble::IdentityDigest;
use crate::clock::Instant;
use crate::proto::announcement::Announcement;
use crate::proto::connect::Secret;

/// Between two announcements, where few are heard.
const EVERY: Duration = Duration::from_secs(1);
/// Announcements a second that a daemon hears at most, before all announce less often.
const HEARD_MOST: u32 = 200;
/// Announcements a second beyond which they aren't looked at any more.
const LOOKED_AT_MOST: u32 = 4 * HEARD_MOST;
/// A host is absent that was not heard of for so many of its own intervals.
const MISSED: u32 = 3;
/// The longest announcement, in bytes: so much, and so much for each broker of the bus.
const LONGEST_JSON: usize = 384;
const JSON_PER_BROKER: usize = 72;
/// The longest id of a host, in bytes.
const LONGEST_ID: usize = 64;
/// The longest interval that is believed.
const LONGEST: Duration = Duration::from_secs(60);
/// Hosts that are kept in mind.
const PEERS_MOST: usize = 2_000;
/// How long publishes wait behind an outage for hosts that were there before it: as long as
/// these may take to look at a broker again.
const GATHERING: Duration = Duration::from_millis(2_500);
/// Between two announcements at least, where hosts come back.
const LEAST: Duration = Duration::from_millis(100);
/// How long an announcement waits at a time for trunks that still replay.
const PUT_OFF: Duration = Duration::from_millis(5);
/// How long a carrier that is new waits for links that are on their way.
const START: Duration = Duration::from_millis(500);
/// How long an identity that may not announce isn't a carrier: then it is tried again.
const FORBIDDEN: Backoff = Backoff {
    first: Duration::from_secs(60),
    longest: Duration::from_secs(3600),
};
/// How far the clocks of two hosts may be apart where announcements are authenticated.
const CLOCKS_APART: Duration = Duration::from_secs(30);

/// The news in an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing new.
    Nothing,
    /// It isn't one, is too much, or isn't authenticated.
    Refused,
    /// The others are on other brokers than before.
    News,
    /// It is natsmux's own, and was sent to another broker: they are routed (R26).
    Routed,
    /// It is natsmux's own, by an older carrier: both are of one account.
    ByElder(TrunkId),
}

/// The other hosts of a bus.
#[derive(Debug)]
pub struct Presence {
    /// Subjects begin with this and a dot; empty: there is no presence.
    prefix: Vec<u8>,
    id: String,
    /// Announcements are authenticated with this, where there is one.
    key: Option<Secret>,
    /// Brokers of the bus: nobody reaches more.
    brokers: usize,
    peers: BTreeMap<String, Peer>,
    /// Hosts that were there when the last broker was lost, and have not been heard of since.
    awaited: BTreeSet<String>,
    gathers_until: Option<Instant>,
    announced_at: Option<Instant>,
    due: Option<Instant>,
    /// Counts the times at which all carriers are to announce.
    round: u64,
    /// Identities that may not announce.
    forbidden: BTreeMap<IdentityDigest, Forbidden>,
    /// Identities for whose account this older carrier speaks.
    elders: BTreeMap<IdentityDigest, TrunkId>,
    routed: bool,
    /// When the present second began, and the announcements in it.
    heard: Option<(Instant, u32)>,
    /// A point in time by both clocks.
    wall: Option<(Instant, SystemTime)>,
}

#[derive(Debug)]
struct Peer {
    reaches: Vec<String>,
    until: Instant,
    /// By its own clock, in milliseconds since 1970: an older announcement is a replay.
    at_ms: u64,
}

/// Since when an identity may not announce.
#[derive(Debug)]
struct Forbidden {
    times: u32,
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
            key: None,
            brokers: 0,
            peers: BTreeMap::new(),
            awaited: BTreeSet::new(),
            gathers_until: None,
            announced_at: None,
            due: None,
            round: 0,
            forbidden: BTreeMap::new(),
            elders: BTreeMap::new(),
            routed: false,
            heard: None,
            wall: None,
        }
    }

    /// Takes a configuration (start and reload): the bus has so many brokers, and announcements
    /// are authenticated with `key`. What brokers forbade, and how they were routed, is asked anew.
    pub fn configure(&mut self, brokers: usize, key: Option<Secret>) {
        self.brokers = brokers;
        self.key = key;
        self.forbidden.clear();
        self.elders.clear();
        self.routed = false;
    }

    /// The bus has so many brokers: names may have come to mean more of them.
    pub fn set_brokers(&mut self, brokers: usize) {
        self.brokers = brokers;
    }

    /// A broker is another process than before: how they are routed may have changed.
    pub(crate) fn doubt_routes(&mut self) -> bool {
        std::mem::take(&mut self.routed)
    }

    /// Sets the wall clock's time at `now`.
    pub fn set_wall(&mut self, now: Instant, wall: SystemTime) {
        self.wall = Some((now, wall));
    }

    fn unix_ms(&self, now: Instant) -> u64 {
        let Some((at, wall)) = self.wall else {
            return 0;
        };
        let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        (since + now.saturating_duration_since(at)).as_millis() as u64
    }

    /// Whether announcements are made.
    pub fn is_on(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// Whether an identity may announce, as far as is known.
    pub(crate) fn permits(&self, identity: IdentityDigest, now: Instant) -> bool {
        let forbidden = self.forbidden.get(&identity);
        let is_forbidden = forbidden.is_some_and(|forbidden| forbidden.until > now);
        self.is_on() && !is_forbidden && !self.elders.contains_key(&identity)
    }

    /// An older carrier speaks for this identity's account. Returns whether that is new.
    pub(crate) fn defer(&mut self, identity: IdentityDigest, elder: TrunkId) -> bool {
        self.elders.insert(identity, elder) != Some(elder)
    }

    /// A trunk is no carrier any more: those that deferred to it speak for themselves.
    pub(crate) fn bury(&mut self, trunk: TrunkId) {
        self.elders.retain(|_, elder| *elder != trunk);
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

    /// Returns the subject of its own announcements.
    pub(crate) fn own_subject(&self) -> Vec<u8> {
        [&self.prefix, self.id.as_bytes()].concat()
    }

    pub(crate) fn subscription(&self) -> Vec<u8> {
        [&self.prefix[..], b"*"].concat()
    }

    /// The subjects of presence begin with this; empty where there is none.
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// An announcement to the broker `via`, from a host that is subscribed on `reaches`.
    pub(crate) fn announcement(
        &self,
        via: &str,
        by: TrunkId,
        reaches: &[String],
        now: Instant,
    ) -> Vec<u8> {
        let mut said = Announcement {
            id: self.id.clone(),
            via: via.to_owned(),
            reaches: reaches.to_vec(),
            every_ms: self.every().as_millis() as u64,
            by: by.0,
            at_ms: 0,
            mac: String::new(),
        };
        if let Some(key) = &self.key {
            said.at_ms = self.unix_ms(now);
            said.mac = hex(&mac(key, &said).finalize().into_bytes());
        }
        said.encode()
    }

    /// Hears what came from the broker `from`.
    pub(crate) fn hear(&mut self, json: &[u8], from: &str, to: TrunkId, now: Instant) -> Heard {
        let longest = LONGEST_JSON + JSON_PER_BROKER * self.brokers;
        if json.len() > longest || !self.is_on() || !self.may_look(now) {
            return Heard::Refused;
        }
        let Some(said) = Announcement::parse(json) else {
            return Heard::Refused;
        };
        let is_bounded = said.id.len() <= LONGEST_ID && said.reaches.len() <= self.brokers;
        if !is_bounded || !self.is_authentic(&said, now) {
            return Heard::Refused;
        }
        if said.id == self.id {
            let elsewhere = !said.via.is_empty() && !from.is_empty() && said.via != from;
            if elsewhere {
                return if std::mem::replace(&mut self.routed, true) {
                    Heard::Nothing
                } else {
                    Heard::Routed
                };
            }
            return if said.by < to.0 {
                Heard::ByElder(TrunkId(said.by))
            } else {
                Heard::Nothing
            };
        }
        let known = self.peers.get(&said.id);
        if known.is_none() && self.peers.len() >= PEERS_MOST
            || known.is_some_and(|known| known.at_ms > said.at_ms)
        {
            return Heard::Refused;
        }
        let every = Duration::from_millis(said.every_ms).clamp(EVERY, LONGEST);
        let peer = Peer {
            reaches: said.reaches,
            until: now + MISSED * every,
            at_ms: said.at_ms,
        };
        self.awaited.remove(&said.id);
        let is_old = known.is_some_and(|known| known.reaches == peer.reaches);
        if self.peers.insert(said.id, peer).is_none() {
            // It knows as little of this host.
            let pause = LEAST.max(self.every() / 10);
            let soon = self.announced_at.map_or(now, |at| now.max(at + pause));
            self.due = self.due.map(|due| due.min(soon));
        }
        if is_old { Heard::Nothing } else { Heard::News }
    }

    /// Whether another announcement may be looked at: each costs the worker time, and anybody may
    /// send as many as a broker takes.
    fn may_look(&mut self, now: Instant) -> bool {
        let (since, count) = self.heard.get_or_insert((now, 0));
        if now.saturating_duration_since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= LOOKED_AT_MOST
    }

    /// Where there is a key, whether it was used, and lately.
    fn is_authentic(&self, said: &Announcement, now: Instant) -> bool {
        let Some(key) = &self.key else {
            return true;
        };
        let apart = self.unix_ms(now).abs_diff(said.at_ms);
        let is_fresh = u128::from(apart) <= CLOCKS_APART.as_millis();
        is_fresh
            && unhex(&said.mac).is_some_and(|given| mac(key, said).verify_slice(&given).is_ok())
    }

    /// Forgets who was not heard of for long. Returns whether anybody was.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let before = self.peers.len();
        self.peers.retain(|_, peer| peer.until > now);
        self.peers.len() < before
    }

    /// The first broker is back after an outage. Who was there when that began will be, soon;
    /// what they said of themselves is old.
    pub(crate) fn gather(&mut self, since: Instant, now: Instant) {
        let peers = std::mem::take(&mut self.peers).into_iter();
        let present = peers.filter(|(_, peer)| peer.until > since);
        self.awaited.extend(present.map(|(id, _)| id));
        self.gathers_until = Some(now + GATHERING);
    }

    /// Whether an outage was over only lately.
    pub(crate) fn is_gathering(&self, now: Instant) -> bool {
        self.gathers_until.is_some_and(|until| until > now)
    }

    /// Until when a publish to this broker might miss a host that is on its way back to it.
    pub(crate) fn awaits(&self, server_id: &str, now: Instant) -> Option<Instant> {
        let until = self.gathers_until.filter(|_| self.is_gathering(now))?;
        let away = !self.awaited.is_empty() || self.missing(server_id) > 0;
        (away && self.is_on()).then_some(until)
    }

    /// Hosts that aren't subscribed on this broker.
    pub(crate) fn missing(&self, server_id: &str) -> usize {
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

    /// A broker doesn't permit it to this identity: another one carries it for a while. Returns
    /// whether that is to be said.
    pub(crate) fn forbid(&mut self, identity: IdentityDigest, now: Instant) -> bool {
        let forbidden = self.forbidden.entry(identity).or_insert(Forbidden {
            times: 0,
            until: now,
        });
        if forbidden.until > now {
            return false;
        }
        forbidden.times = forbidden.times.saturating_add(1);
        forbidden.until = now + FORBIDDEN.delay(forbidden.times, identity);
        forbidden.times == 1
    }

    /// When the next announcement is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.is_on())
    }

    /// The announcement that carriers are to have made by now.
    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    /// All carriers announce now.
    pub(crate) fn announced(&mut self, now: Instant) {
        self.round += 1;
        self.announced_at = Some(now);
        self.due = Some(now + self.every());
        self.forbidden
            .retain(|_, forbidden| forbidden.until + FORBIDDEN.longest > now);
        if self.gathers_until.is_some_and(|until| until <= now) {
            self.gathers_until = None;
            self.awaited.clear();
        }
    }

    /// Where this host is subscribed has changed: announced at once, or soon where this is the
    /// first link.
    pub(crate) fn change(&mut self, now: Instant) {
        self.due = Some(self.due.map_or(now + START, |due| due.min(now)));
    }

    /// It can't be made yet.
    pub(crate) fn put_off(&mut self, now: Instant) {
        self.due = Some(now + PUT_OFF);
    }

    fn every(&self) -> Duration {
        let hosts = (self.peers.len() + self.awaited.len()) as u32;
        EVERY.max(EVERY * hosts / HEARD_MOST)
    }
}

fn mac(key: &Secret, said: &Announcement) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes())
        .unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.update(&said.signed());
    mac
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    let is_whole = digits.len().is_multiple_of(2);
    pairs.collect::<Option<Vec<u8>>>().filter(|_| is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: TrunkId = TrunkId(5);

    fn me() -> Presence {
        let mut presence = Presence::new("_P", "me");
        presence.configure(2, None);
        presence
    }

    fn other(id: &str, reaches: &[&str]) -> Vec<u8> {
        let reaches: Vec<String> = reaches.iter().map(|id| (*id).to_owned()).collect();
        Presence::new("_P", id).announcement("A", TrunkId(5), &reaches, Instant::now())
    }

    #[test]
    fn hosts_are_present_where_they_say_and_absent_after_three_intervals() {
        let mut presence = me();
        let now = Instant::now();
        assert_eq!(
            presence.hear(&other("x", &["A", "B"]), "A", ME, now),
            Heard::News
        );
        assert_eq!(
            presence.hear(&other("x", &["A", "B"]), "B", ME, now),
            Heard::Nothing
        );
        assert_eq!(
            presence.hear(&other("y", &["B"]), "B", ME, now),
            Heard::News
        );
        assert_eq!((presence.missing("A"), presence.missing("B")), (1, 0));
        assert_eq!((presence.present("A"), presence.present("B")), (1, 2));
        assert_eq!(
            presence.hear(&other("y", &["A", "B"]), "B", ME, now),
            Heard::News
        );
        assert_eq!(presence.missing("A"), 0);
        assert!(!presence.expire(now + Duration::from_millis(2_999)));
        assert!(presence.expire(now + Duration::from_secs(3)));
        assert_eq!(presence.present("B"), 0);
        assert_eq!(presence.hear(b"nonsense", "A", ME, now), Heard::Refused);
    }

    #[test]
    fn its_own_words_out_of_another_broker_show_that_they_are_routed() {
        let mut presence = me();
        let now = Instant::now();
        let own = presence.announcement("A", TrunkId(5), &[], now);
        assert_eq!(presence.hear(&own, "A", ME, now), Heard::Nothing);
        assert!(!presence.is_routed());
        assert_eq!(presence.hear(&own, "B", ME, now), Heard::Routed);
        assert_eq!(
            presence.hear(&own, "B", ME, now),
            Heard::Nothing,
            "said once"
        );
        assert!(presence.is_routed());
        assert!(presence.doubt_routes() && !presence.is_routed());
        assert_eq!(
            presence.hear(&own, "B", ME, now),
            Heard::Routed,
            "said again"
        );
        presence.configure(2, None);
        assert!(!presence.is_routed(), "a reload asks anew");
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
        let mut presence = me();
        let now = Instant::now();
        presence.hear(&other("x", &["A", "B"]), "A", ME, now);
        presence.hear(&other("y", &["A"]), "A", ME, now);
        presence.hear(&other("gone", &["A"]), "A", ME, now - MISSED * EVERY);
        assert_eq!(presence.awaits("A", now), None, "there was no outage");
        presence.gather(now, now);
        assert_eq!(presence.present("A"), 0, "what they said is old");
        let until = now + GATHERING;
        assert_eq!(presence.awaits("A", now), Some(until));
        presence.hear(&other("x", &["A"]), "A", ME, now);
        assert_eq!(presence.awaits("A", now), Some(until), "y is missing");
        presence.hear(&other("y", &["B"]), "A", ME, now);
        assert_eq!(presence.awaits("A", now), Some(until), "y isn't there yet");
        presence.hear(&other("y", &["A", "B"]), "A", ME, now);
        assert_eq!(presence.awaits("A", now), None);
        assert_eq!(presence.awaits("B", now), Some(until), "x isn't there");
        assert_eq!(presence.awaits("B", until), None, "it may never be");
    }

    #[test]
    fn a_host_that_is_new_is_answered_soon() {
        let mut presence = me();
        let now = Instant::now();
        presence.announced(now);
        presence.hear(&other("x", &["A"]), "A", ME, now);
        assert_eq!(presence.due(), Some(now + LEAST));
        presence.announced(now + LEAST);
        presence.hear(&other("x", &["A", "B"]), "A", ME, now + LEAST);
        assert_eq!(presence.due(), Some(now + LEAST + EVERY), "it is known");
    }

    #[test]
    fn announcements_come_each_second_and_at_once_on_a_change() {
        let mut presence = me();
        let now = Instant::now();
        assert_eq!(presence.due(), None);
        presence.change(now);
        assert_eq!(presence.due(), Some(now + START), "others are on their way");
        presence.announced(now);
        assert_eq!(presence.due(), Some(now + EVERY));
        presence.change(now);
        assert_eq!(presence.due(), Some(now));
        for number in 0..400 {
            presence.hear(&other(&number.to_string(), &[]), "A", ME, now);
        }
        presence.announced(now);
        assert_eq!(presence.due(), Some(now + 2 * EVERY));
    }

    #[test]
    fn who_may_not_announce_is_asked_again() {
        let mut presence = me();
        let mut now = Instant::now();
        for times in 0..10 {
            assert!(presence.permits(1, now) && presence.permits(2, now));
            assert_eq!(presence.forbid(1, now), times == 0, "said once");
            assert!(!presence.forbid(1, now));
            assert!(!presence.permits(1, now) && presence.permits(2, now));
            now += FORBIDDEN.longest;
        }
        presence.forbid(1, now);
        presence.configure(2, None);
        assert!(presence.permits(1, now), "a reload asks anew");
    }

    #[test]
    fn only_those_with_the_key_are_believed_and_no_replay_is() {
        let now = Instant::now();
        let wall = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let host = |id: &str, key: Option<&str>| {
            let mut presence = Presence::new("_P", id);
            presence.configure(2, key.map(Secret::new));
            presence.set_wall(now, wall);
            presence
        };
        let said =
            |presence: &Presence, at| presence.announcement("A", TrunkId(5), &["A".to_owned()], at);
        let mut me = host("me", Some("key"));
        let second = Duration::from_secs(1);
        for (id, key) in [("x", None), ("y", Some("another"))] {
            let forged = said(&host(id, key), now);
            assert_eq!(me.hear(&forged, "A", ME, now), Heard::Refused, "{id}");
        }
        let other = host("other", Some("key"));
        let (first, later) = (said(&other, now), said(&other, now + second));
        assert_eq!(me.hear(&later, "A", ME, now + second), Heard::News);
        assert_eq!(
            me.hear(&first, "A", ME, now + second),
            Heard::Refused,
            "older"
        );
        let old = said(&host("gone", Some("key")), now);
        let long = now + CLOCKS_APART + second;
        assert_eq!(me.hear(&old, "A", ME, long), Heard::Refused, "too old");
        let text = String::from_utf8(later).expect("JSON");
        let changed = text.replace("[\"A\"]", "[\"B\"]");
        assert_ne!(text, changed);
        assert_eq!(
            me.hear(changed.as_bytes(), "A", ME, now + second),
            Heard::Refused
        );
    }

    #[test]
    fn announcements_are_bounded_in_size_and_number() {
        let now = Instant::now();
        let mut presence = me();
        let many = ["A", "B", "C"];
        assert_eq!(
            presence.hear(&other("x", &many), "A", ME, now),
            Heard::Refused
        );
        let long = "x".repeat(LONGEST_ID + 1);
        assert_eq!(
            presence.hear(&other(&long, &[]), "A", ME, now),
            Heard::Refused
        );
        let mut heard = 0;
        for number in 0..2 * LOOKED_AT_MOST {
            let said = other(&number.to_string(), &[]);
            heard += u32::from(presence.hear(&said, "A", ME, now) == Heard::News);
        }
        assert_eq!(heard, LOOKED_AT_MOST - 2);
        let said = other("late", &[]);
        let later = now + Duration::from_secs(1);
        assert_eq!(presence.hear(&said, "A", ME, later), Heard::News);
    }

    #[test]
    fn one_carrier_for_each_account_is_enough() {
        let mut presence = me();
        let now = Instant::now();
        let own = presence.announcement("A", ME, &[], now);
        assert_eq!(presence.hear(&own, "A", ME, now), Heard::Nothing);
        assert_eq!(presence.hear(&own, "A", TrunkId(4), now), Heard::Nothing);
        assert_eq!(
            presence.hear(&own, "A", TrunkId(6), now),
            Heard::ByElder(ME)
        );
        assert!(presence.defer(1, ME) && !presence.defer(1, ME));
        assert!(!presence.permits(1, now));
        presence.bury(ME);
        assert!(presence.permits(1, now));
    }
}
