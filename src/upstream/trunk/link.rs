//! One connection to one broker, as the trunk sees it. It is never repaired.

use std::collections::VecDeque;
use std::time::Duration;

use super::attribution::Owners;
use super::room::Room;
use crate::clock::Instant;
use crate::ledger::{Account, Operations, Ping, Pings, Received, Seen, SessionId, UpstreamSid};
use crate::net::{Outbox, Partial, Retention};
use crate::proto::encode;
use crate::proto::info::ServerInfo;
use crate::queue::Queue;
use crate::telemetry::Counters;
use crate::upstream::brokers::roster::{BrokerId, Departure};

/// The most that one session may have unproven on a link on which others publish too, where the
/// broker is near (`Link::fair_bytes`): so much, and what one more read brings, may be ahead of
/// theirs for each that floods, in bytes.
pub(super) const FAIR_BYTES: usize = 32 * 1024;

/// The weight of a SUB or UNSUB there, in bytes, where it is shorter: it costs natsmux and a broker
/// as much as a publish of this size.
pub(super) const OPERATION_BYTES: usize = 512;

/// The bounds of a link's window: the bytes that it may have written that no fence proved, before
/// the sessions that feed it aren't read. It starts at the least, doubles while fences are answered
/// in time, and is halved when one is late. So what is in doubt stays within R5, and a fence isn't
/// late for the flood before it alone.
const WINDOW_LEAST: u64 = 128 * 1024;
const WINDOW_MOST: u64 = 16 * 1024 * 1024;
/// Bytes that each SUB and UNSUB counts as in that window, besides its own.
const OPERATION_WEIGHT: usize = 128;
/// A fence is late that was answered after this and one and a half of the link's shortest round
/// trip: a window's worth of work at the broker, whose other connections wait for it as well.
const LATE_AFTER: Duration = Duration::from_millis(10);

/// A link's number: ever-growing within its trunk, its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

/// How far a link has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Phase {
    /// The TCP connection is being opened.
    Connecting,
    /// Open; the broker speaks first.
    AwaitingInfo,
    /// The TLS handshake: ahead of INFO or behind it, as is configured.
    Securing,
    /// A relay's: the component is to sign its nonce (R40).
    Greeted,
    /// CONNECT and PING were sent.
    Authenticating,
    /// Accepted; the link that it replaces has not been left yet (R19).
    Authenticated,
    /// The ledger and a fence were sent.
    Replaying,
    /// The ledger is in place; waits for the neighbours (R14).
    Fenced,
    /// It has the ledger beside the link that it replaces (R41).
    Overlapping,
    /// Publishes go here.
    Live,
    /// It carries all but publishes, which go to another of independent brokers (R27).
    Standby,
    /// Everything was unsubscribed; delivers up to the PONG of the PING with this number.
    Leaving(u64),
}

impl Phase {
    /// Whether the ledger is in place, and stays so.
    pub(super) fn is_subscribed(self) -> bool {
        matches!(self, Self::Live | Self::Standby)
    }
}

/// The receiver of a `+OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OkOwner {
    /// The component, for its publish.
    Publish,
    /// The component, for another operation.
    Operation,
    /// Nobody: it belongs to a replay or to natsmux.
    Nobody,
}

impl OkOwner {
    /// Of a SUB or UNSUB that went to several links: one of them answers for all.
    pub(super) fn of_operation(answers: bool) -> Self {
        if answers {
            Self::Operation
        } else {
            Self::Nobody
        }
    }
}

/// The answers that a verbose broker still owes, in order. Few links have any.
#[derive(Debug, Default)]
pub(super) struct Oks(Option<Box<Runs>>);

#[derive(Debug, Default)]
struct Runs(VecDeque<(OkOwner, u64)>);

impl Oks {
    pub(super) fn push(&mut self, owner: OkOwner, count: u64) {
        if count == 0 {
            return;
        }
        let Runs(runs) = &mut **self.0.get_or_insert_default();
        match runs.back_mut() {
            Some((last, run)) if *last == owner => *run += count,
            _ => runs.push_back((owner, count)),
        }
    }

    /// The operation that the next `+OK` or `-ERR` answers.
    pub(super) fn pop(&mut self) -> Option<OkOwner> {
        let Runs(runs) = &mut **self.0.as_mut()?;
        let (owner, run) = runs.front_mut()?;
        let owner = *owner;
        *run -= 1;
        if *run == 0 {
            runs.pop_front();
        }
        Some(owner)
    }

    /// Returns the receiver of the next one, which stays.
    pub(super) fn first(&self) -> Option<OkOwner> {
        let Runs(runs) = &**self.0.as_ref()?;
        runs.front().map(|(owner, _)| *owner)
    }

    /// Nobody is told of what is still to come.
    pub(super) fn disown(&mut self) {
        for (owner, _) in self.0.iter_mut().flat_map(|runs| &mut runs.0) {
            *owner = OkOwner::Nobody;
        }
    }

    /// Answers of this kind that were still to come.
    pub(super) fn owed(&self, owner: OkOwner) -> u64 {
        let runs = self.0.iter().flat_map(|runs| &runs.0);
        let owed = runs.filter(|(owed, _)| *owed == owner);
        owed.map(|(_, run)| run).sum()
    }
}

/// The kernel's view of a link's unacknowledged bytes.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// How many were acknowledged when it was last asked, and when that was.
    pub(super) acked: Option<(u64, Instant)>,
    /// When there were last more of them (R9).
    pub(super) at: Option<Instant>,
}

/// Further state of a link to one of independent brokers, or of the new one of a planned move.
#[derive(Debug, Default)]
pub(super) struct Independent {
    /// The `server_id` in this one's INFO.
    pub(super) server_id: Box<str>,
    /// Whether anything was announced there: what its broker says of that is no component's.
    pub(super) announced: bool,
    /// Whether it is subscribed to what other hosts announce (R29).
    pub(super) hears_presence: bool,
    /// Counts of what this one has delivered (R31).
    pub(super) received: Received,
    /// Subscriptions that it refused, or took back, while it stood by (R28): `None`, or the PING
    /// whose PONG says that it has it now, since it was asked again.
    pub(super) lacks: Vec<(UpstreamSid, Option<u64>)>,
    /// When it is asked again.
    pub(super) ask_at: Option<Instant>,
}

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) broker: BrokerId,
    pub(super) phase: Phase,
    /// Which of its identity's credentials its CONNECT had (R38).
    pub(super) generation: Option<u64>,
    /// How often its broker had changed what it offers when it was opened.
    pub(super) revision: u32,
    /// Why it is to give way to one with newer ones, or with other options.
    pub(super) gives_way: Option<Departure>,
    /// Whether a TLS handshake is over.
    pub(super) is_secured: bool,
    /// An INFO that came ahead of the TLS handshake.
    pub(super) early_info: Option<Box<ServerInfo>>,
    /// Whether its CONNECT asked for headers: else there may be none in what goes there.
    pub(super) headers: bool,
    /// Where not, whether the component may send some.
    pub(super) strips: bool,
    /// When the present phase must be over.
    pub(super) deadline: Option<Instant>,
    /// Whether the roster counts it as a dial in flight.
    pub(super) dialing: bool,
    /// Whether it holds up the barrier (R14).
    pub(super) in_barrier: bool,
    pub(super) out: Outbox,
    pub(super) partial: Partial,
    pub(super) room: Room,
    pub(super) pings: Pings,
    pub(super) account: Account,
    pub(super) oks: Oks,
    /// Operations that its broker was told, and how much it has.
    pub(super) operations: Operations,
    /// Unsubscribed sids and the number of the PING whose PONG frees them.
    pub(super) retired: Queue<(u64, UpstreamSid)>,
    /// Number of the first PING that covers its last SUB or UNSUB, and of the last that was
    /// answered.
    operations_covered_by: u64,
    pub(super) answered: u64,
    pub(super) unfenced_bytes: usize,
    pub(super) unfenced_messages: u64,
    /// When the first operation was appended that no PING covers.
    pub(super) unfenced_since: Option<Instant>,
    pub(super) opened_at: Instant,
    pub(super) last_read_at: Instant,
    pub(super) last_ping_at: Instant,
    /// When the PING was appended that was answered last, and the buffer's offset behind it.
    pub(super) proven_at: Option<Instant>,
    pub(super) proven_offset: u64,
    pub(super) shortest_round_trip: Option<Duration>,
    /// Unproven bytes beyond which the link is overrun.
    window: u64,
    /// When the kernel was last asked for its unacknowledged bytes.
    pub(super) measured_at: Option<Instant>,
    /// The kernel's answer; few links are ever asked.
    pub(super) progress: Option<Box<Progress>>,
    pub(super) replayed: u64,
    pub(super) independent: Option<Box<Independent>>,
    pub(super) max_payload: usize,
    /// Whether it only asks for a verdict on the credentials.
    pub(super) is_check: bool,
    /// Whether the broker closes it for what its only session did.
    pub(super) is_at_fault: bool,
    /// Whether the broker closes it for a payload that was larger.
    pub(super) too_large: bool,
    /// The broker closes it for a control line that was longer than this, in bytes.
    pub(super) longest_line: Option<usize>,
    /// The first PING that covers its last request.
    pub(super) requested_by: u64,
    /// The offsets of the output behind publishes that aren't sent again as others are, while they
    /// aren't proven (R44).
    pub(super) apart: SetApart,
    /// The offset of the output behind the last publishes.
    pub(super) published_end: u64,
    /// Whether the next publishes are fenced at once.
    pub(super) fences_next: bool,
    /// Whether its broker names the subject of a request that nobody answers: since 2.12.
    pub(super) names_subject: bool,
    /// When the last PING was answered (R9).
    pub(super) progressed_at: Option<Instant>,
    /// The PING whose PONG says that the whole ledger is in place.
    pub(super) replayed_by: u64,
    /// Whether its CONNECT asked for an answer to every operation.
    pub(super) verbose: bool,
    /// The last PING before it was told the whole ledger, and before publishes went there.
    pub(super) told_from: u64,
    pub(super) live_from: u64,
    /// Of a link that several sessions share.
    pub(super) owners: Option<Box<Owners>>,
}

/// A publish that isn't sent again as others are (R44).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Apart {
    /// natsmux's own, about a consumer.
    Question,
    /// A request of a JetStream consumer.
    Request,
}

/// The offsets behind such publishes, in their order.
#[derive(Debug, Default)]
pub(super) struct SetApart(Queue<(u64, Apart)>);

impl SetApart {
    fn prove(&mut self, upto: u64) {
        while self.0.front().is_some_and(|(end, _)| *end <= upto) {
            self.0.pop_front();
        }
    }

    /// Whether the publish whose end is at this offset isn't sent again, where so many bytes were
    /// `written`.
    pub(super) fn has(&self, end: u64, written: u64) -> bool {
        let found = self.0.find_sorted(end, |(at, _)| *at);
        found.is_some_and(|(_, apart)| *apart == Apart::Question || end <= written)
    }
}

impl Link {
    /// Whether its CONNECT had other options than its component asked for last (R20).
    pub(super) fn is_outdated(&self) -> bool {
        self.gives_way == Some(Departure::NewConnect)
    }

    /// Appends publishes as this broker can read them. Returns how many bytes that were.
    pub(super) fn push_publishes(
        &mut self,
        frames: &[u8],
        messages: u64,
        counters: &mut Counters,
    ) -> usize {
        if self.strips {
            return self.push_held(frames.to_vec(), messages, counters);
        }
        self.account.appended += messages;
        self.out.push(frames);
        self.published_end = self.out.end();
        frames.len()
    }

    /// Pushes a chunk that has waited.
    pub(super) fn push_held(
        &mut self,
        mut chunk: Vec<u8>,
        messages: u64,
        counters: &mut Counters,
    ) -> usize {
        self.account.appended += messages;
        // They may be from before a second CONNECT.
        if !self.headers && memchr::memmem::find(&chunk, b"HPUB ").is_some() {
            let mut plain = Vec::with_capacity(chunk.len());
            counters.headers_stripped += encode::publishes_without_headers(&mut plain, &chunk);
            chunk = plain;
        }
        let bytes = chunk.len();
        self.out.push_chunk(chunk);
        self.published_end = self.out.end();
        bytes
    }

    pub(super) fn new(
        id: LinkId,
        broker: BrokerId,
        retention: Retention,
        deadline: Instant,
        now: Instant,
    ) -> Self {
        Self {
            id,
            broker,
            phase: Phase::Connecting,
            generation: None,
            revision: 0,
            gives_way: None,
            is_secured: false,
            early_info: None,
            headers: true,
            strips: false,
            deadline: Some(deadline),
            dialing: true,
            in_barrier: false,
            out: Outbox::new(retention),
            partial: Partial::default(),
            room: Room::default(),
            pings: Pings::default(),
            account: Account::default(),
            oks: Oks::default(),
            operations: Operations::default(),
            retired: Queue::default(),
            operations_covered_by: 0,
            answered: 0,
            unfenced_bytes: 0,
            unfenced_messages: 0,
            unfenced_since: None,
            opened_at: now,
            last_read_at: now,
            last_ping_at: now,
            proven_at: None,
            proven_offset: 0,
            shortest_round_trip: None,
            window: WINDOW_LEAST,
            measured_at: None,
            progress: None,
            replayed: 0,
            independent: None,
            max_payload: usize::MAX,
            is_check: false,
            is_at_fault: false,
            too_large: false,
            longest_line: None,
            requested_by: 0,
            apart: SetApart::default(),
            published_end: 0,
            fences_next: false,
            names_subject: false,
            progressed_at: None,
            replayed_by: 0,
            verbose: false,
            told_from: 0,
            live_from: 0,
            owners: None,
        }
    }

    /// Of independent brokers, what this one introduced itself with; else nothing.
    pub(super) fn server_id(&self) -> &str {
        let independent = self.independent.as_ref();
        independent.map_or("", |independent| &independent.server_id)
    }

    /// Of independent brokers, what this one has counted (R31).
    pub(super) fn received(&self, upstream: UpstreamSid) -> u64 {
        let independent = self.independent.as_ref();
        independent.map_or(0, |independent| independent.received.of(upstream))
    }

    /// What was just appended is natsmux's own, and nobody waits for it.
    pub(super) fn note_question(&mut self) {
        self.apart.0.push_back((self.out.end(), Apart::Question));
        self.note_owner(None);
    }

    /// A request ends at this offset: it is asked again otherwise, once a broker may have it.
    pub(super) fn note_request(&mut self, end: u64) {
        self.apart.0.push_back((end, Apart::Request));
    }

    /// How far it has come, for those that share a subscription (R23).
    pub(super) fn seen(&self) -> Seen {
        Seen(self.answered.max(self.told_from))
    }

    /// Notes whose the publishes are that were just appended.
    pub(super) fn note_owner(&mut self, session: Option<SessionId>) {
        if let Some(owners) = &mut self.owners {
            owners.note(session, self.out.end());
        }
    }

    /// Whether more than one of the sessions that share it write.
    pub(super) fn is_contended(&self, now: Instant) -> bool {
        let owners = self.owners.as_ref();
        owners.is_some_and(|owners| owners.is_contended(now))
    }

    /// Returns the most that a session may have unproven beside others, in bytes: more where the
    /// broker is far, since it is the broker's time that they share, not the way there.
    pub(super) fn fair_bytes(&self) -> usize {
        let way = self.shortest_round_trip.unwrap_or_default().as_millis();
        let way = usize::try_from(way).unwrap_or(usize::MAX);
        FAIR_BYTES.saturating_mul(way.saturating_add(1))
    }

    /// Whether a session that floods isn't read until the next fence is answered.
    pub(super) fn must_prove_soon(&self, now: Instant) -> bool {
        let is_bounded = self.is_contended(now) || !self.has_proven_operations();
        let isolates = |owners: &Owners| owners.isolates(now);
        self.owners.as_deref().is_some_and(isolates)
            || self.owners.is_some() && self.unfenced_bytes >= FAIR_BYTES && is_bounded
    }

    /// Whether it is on its way to be the next one.
    pub(super) fn is_joining(&self) -> bool {
        !self.is_attached() && !self.is_check
    }

    /// Whether a PONG is to come that proves what was written.
    pub(super) fn awaits_proof(&self) -> bool {
        !self.pings.is_empty() || self.unfenced_since.is_some()
    }

    /// Whether a broker has accepted it, so that its end is the end of a link and not a
    /// failed dial.
    pub(super) fn is_attached(&self) -> bool {
        self.phase.is_subscribed() || matches!(self.phase, Phase::Leaving(_))
    }

    /// Whether SUBs and UNSUBs go to it.
    pub(super) fn takes_subscriptions(&self) -> bool {
        let is_told = matches!(
            self.phase,
            Phase::Replaying | Phase::Fenced | Phase::Overlapping
        );
        self.phase.is_subscribed() || is_told
    }

    /// Notes an answered PING.
    pub(super) fn note_proven(&mut self, ping: &Ping, now: Instant) {
        let took = now.saturating_duration_since(ping.at);
        let shortest = self.shortest_round_trip.get_or_insert(took);
        // The way may become longer.
        *shortest = took.min(*shortest + *shortest / 128 + Duration::from_micros(1));
        if took > LATE_AFTER + *shortest * 3 / 2 {
            self.window = (self.window / 2).max(WINDOW_LEAST);
        } else if self.unproven_weight() > self.window / 2 {
            self.window = (self.window * 2).min(WINDOW_MOST);
        }
        self.answered = ping.seq;
        self.progressed_at = Some(now);
        self.proven_at = Some(ping.at);
        self.proven_offset = ping.offset;
        self.apart.prove(ping.offset);
        if let Some(owners) = &mut self.owners {
            owners.prove(ping.seq, ping.offset);
        }
    }

    /// Whether every SUB and UNSUB was processed.
    pub(super) fn has_proven_operations(&self) -> bool {
        self.answered >= self.operations_covered_by
    }

    /// Whether more was written than its broker keeps up with.
    pub(super) fn is_overrun(&self) -> bool {
        self.unproven_weight() > self.window
    }

    /// In bytes; a SUB or UNSUB costs a broker more than its few.
    fn unproven_weight(&self) -> u64 {
        let bytes = self.out.end().saturating_sub(self.proven_offset);
        bytes + (self.operations.unproven() * OPERATION_WEIGHT) as u64
    }

    /// Appends a SUB or UNSUB, which the PING with the number `covered_by` will prove, and whose
    /// answer is `owner`'s.
    pub(super) fn push_operation(
        &mut self,
        frame: &[u8],
        owner: OkOwner,
        covered_by: u64,
        now: Instant,
    ) {
        if self.verbose {
            self.oks.push(owner, 1);
        }
        self.operations_covered_by = covered_by;
        self.out.push(frame);
        let weight = match self.owners {
            Some(_) => frame.len().max(OPERATION_BYTES),
            None => frame.len() + OPERATION_WEIGHT,
        };
        self.note_unfenced(weight, 0, now);
    }

    /// Appends `count` UNSUBs, whose answers are nobody's.
    pub(super) fn push_unsubs(
        &mut self,
        frames: &[u8],
        count: usize,
        covered_by: u64,
        now: Instant,
    ) {
        self.push_operation(frames, OkOwner::Nobody, covered_by, now);
        if self.verbose {
            self.oks
                .push(OkOwner::Nobody, (count as u64).saturating_sub(1));
        }
    }

    /// Notes an operation that the next PING will cover.
    pub(super) fn note_unfenced(&mut self, bytes: usize, messages: u64, now: Instant) {
        self.unfenced_bytes += bytes;
        self.unfenced_messages += messages;
        self.unfenced_since.get_or_insert(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_fill_the_window_by_what_they_cost_a_broker() {
        let now = Instant::now();
        let retention = Retention::UntilWritten;
        let mut link = Link::new(LinkId(0), BrokerId(0), retention, now, now);
        let frame = b"SUB a b\r\n";
        let fit = WINDOW_LEAST as usize / (frame.len() + OPERATION_WEIGHT);
        for slot in 0..=fit as u32 {
            assert!(!link.is_overrun(), "{slot} of {fit}");
            let generation = 0;
            link.operations
                .subscribe(UpstreamSid { slot, generation }, 1);
            link.push_operation(frame, OkOwner::Nobody, 1, now);
        }
        assert!(link.is_overrun());
        link.operations.prove(1);
        assert!(!link.is_overrun());
    }

    #[test]
    fn the_window_grows_with_timely_answers_and_shrinks_with_late_ones() {
        let now = Instant::now();
        let retention = Retention::UntilWritten;
        let mut link = Link::new(LinkId(0), BrokerId(0), retention, now, now);
        let answer = |link: &mut Link, took: u64| {
            link.out.push(&[b'x'; 100 * 1024]);
            let offset = link.out.end();
            let ping = Ping {
                seq: 0,
                asker: None,
                offset,
                publishes: 0,
                at: now,
            };
            let overrun = link.is_overrun();
            link.note_proven(&ping, now + Duration::from_millis(took));
            overrun
        };
        assert!(!answer(&mut link, 1));
        assert_eq!(link.window, 2 * WINDOW_LEAST);
        link.out.push(&[b'x'; 200 * 1024]);
        assert!(answer(&mut link, 52), "300 KiB in a window of 256");
        assert_eq!(link.window, WINDOW_LEAST);
        answer(&mut link, 52);
        assert_eq!(link.window, WINDOW_LEAST, "the least");
    }

    #[test]
    fn the_share_of_a_session_grows_with_the_way_to_the_broker() {
        let now = Instant::now();
        let retention = Retention::UntilConfirmed;
        let mut link = Link::new(LinkId(0), BrokerId(0), retention, now, now);
        assert_eq!(link.fair_bytes(), FAIR_BYTES);
        link.shortest_round_trip = Some(Duration::from_micros(900));
        assert_eq!(link.fair_bytes(), FAIR_BYTES);
        link.shortest_round_trip = Some(Duration::from_millis(40));
        assert_eq!(link.fair_bytes(), 41 * FAIR_BYTES);
    }

    #[test]
    fn oks_are_answered_in_order() {
        let mut oks = Oks::default();
        oks.push(OkOwner::Nobody, 1);
        oks.push(OkOwner::Publish, 1);
        oks.push(OkOwner::Publish, 2);
        oks.push(OkOwner::Nobody, 0);
        assert_eq!(oks.owed(OkOwner::Publish), 3);
        assert_eq!(oks.pop(), Some(OkOwner::Nobody));
        assert_eq!(oks.pop(), Some(OkOwner::Publish));
        assert_eq!(oks.owed(OkOwner::Publish), 2);
        assert_eq!(oks.owed(OkOwner::Operation), 0);
    }
}
