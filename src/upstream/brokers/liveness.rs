//! Liveness of a broker that carries links: one *sentinel* per broker and bus (R7, R8).
//!
//! Watching every link would cost thousands of fences a second on a host with thousands of
//! sessions. So one trunk per broker fences often; when it waits too long for its PONG, the
//! broker is *suspect*: every trunk there holds its publishes, fences once, and is judged by
//! its own link.
//!
//! A sentinel whose own component floods the broker waits behind that flood. So at half the
//! time a few other trunks fence too, as *witnesses*; the first that is answered proves the
//! broker alive and is the sentinel from then on.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Instant;

/// A trunk's number, never reused while the bus lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrunkId(pub u64);

/// Sentinel's pause between fences while something is published to the broker.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
/// The interval while nothing is.
const QUIET_INTERVAL: Duration = Duration::from_millis(500);
/// A sentinel's fence that waits longer than this makes the broker suspect.
const SUSPECT_AFTER: Duration = Duration::from_millis(150);
/// The bound on silence in smoothed round trips, where those are long.
const SUSPECT_AFTER_ROUND_TRIPS: u32 = 4;
/// Trunks that are asked when the sentinel's fence is late.
const WITNESSES: usize = 4;
/// `link_timeout` is at least this many smoothed round trips (R9).
const DEAD_AFTER_ROUND_TRIPS: u32 = 8;

/// The watch over one broker, by the trunks with a live link there.
#[derive(Debug, Default)]
pub struct Liveness {
    /// Trunks with a live link there.
    attached: BTreeSet<TrunkId>,
    /// Those of them that don't read their links for now (R33).
    aside: BTreeSet<TrunkId>,
    /// One of them.
    sentinel: Option<TrunkId>,
    suspect_since: Option<Instant>,
    /// When witnesses were called, and which.
    called: Option<(Instant, Vec<TrunkId>)>,
    round_trip: Option<Duration>,
    last_publish: Option<Instant>,
}

impl Liveness {
    /// The trunk to be sentinel: the oldest that reads its link, else the oldest.
    fn fittest(&self) -> Option<TrunkId> {
        let reads = |trunk: &&TrunkId| !self.aside.contains(trunk);
        let fit = self.attached.iter().find(reads);
        fit.or(self.attached.first()).copied()
    }

    /// How late the sentinel's fence may be answered (R8).
    fn suspect_after(&self) -> Duration {
        let round_trip = self.round_trip.unwrap_or_default();
        SUSPECT_AFTER.max(round_trip * SUSPECT_AFTER_ROUND_TRIPS)
    }

    /// A trunk has a live link to this broker.
    pub fn attach(&mut self, trunk: TrunkId) {
        self.attached.insert(trunk);
        if self
            .sentinel
            .is_none_or(|sentinel| self.aside.contains(&sentinel))
        {
            self.sentinel = Some(trunk);
        }
    }

    /// A trunk's live link to this broker is gone. Returns the sentinel that takes over.
    pub fn detach(&mut self, trunk: TrunkId) -> Option<TrunkId> {
        self.attached.remove(&trunk);
        self.aside.remove(&trunk);
        if self.attached.is_empty() {
            self.suspect_since = None;
            self.called = None;
            self.round_trip = None;
        }
        if self.sentinel != Some(trunk) {
            return None;
        }
        self.sentinel = self.fittest();
        self.sentinel
    }

    /// A trunk doesn't read its links for now. Returns the sentinel that takes over from it.
    pub fn step_aside(&mut self, trunk: TrunkId, now: Instant) -> Option<TrunkId> {
        if !self.attached.contains(&trunk) {
            return None;
        }
        self.aside.insert(trunk);
        let is_sentinel = self.sentinel == Some(trunk);
        if is_sentinel {
            self.sentinel = self.fittest();
        }
        if self.suspect_since.is_some() {
            // Whoever reads must be asked: the old sentinel's answer is read by nobody.
            self.called = Some((now, self.attached.iter().copied().collect()));
        }
        let next = self.sentinel.filter(|sentinel| *sentinel != trunk);
        next.filter(|_| is_sentinel)
    }

    /// A trunk reads its links again.
    pub fn step_back(&mut self, trunk: TrunkId) {
        self.aside.remove(&trunk);
        let is_unfit = |sentinel| self.aside.contains(&sentinel);
        if self.attached.contains(&trunk) && self.sentinel.is_none_or(is_unfit) {
            self.sentinel = Some(trunk);
        }
    }

    /// Something is published to this broker. Returns the sentinel where it has to fence
    /// more often from now on.
    pub fn note_publish(&mut self, now: Instant) -> Option<TrunkId> {
        let before = self.last_publish.replace(now);
        let was_busy = before.is_some_and(|at| now.saturating_duration_since(at) < BUSY_INTERVAL);
        self.sentinel.filter(|_| !was_busy)
    }

    /// When the sentinel's next fence is due; `None` for any other trunk.
    pub fn fence_due(&self, trunk: TrunkId, last_fence: Instant) -> Option<Instant> {
        if self.sentinel != Some(trunk) {
            return None;
        }
        let busy = self
            .last_publish
            .is_some_and(|at| at + BUSY_INTERVAL > last_fence);
        let interval = if busy { BUSY_INTERVAL } else { QUIET_INTERVAL };
        Some(last_fence + interval)
    }

    /// When the sentinel's fence of `asked` makes the broker suspect; `None` for any other
    /// trunk, and while it is suspect already.
    pub fn suspect_due(&self, trunk: TrunkId, asked: Instant) -> Option<Instant> {
        if self.sentinel != Some(trunk) || self.suspect_since.is_some() {
            return None;
        }
        Some(asked + self.suspect_after())
    }

    /// When the sentinel's fence of `asked` calls for witnesses; `None` for any other trunk,
    /// and where they were called already.
    pub fn witness_due(&self, trunk: TrunkId, asked: Instant) -> Option<Instant> {
        let alone = self.attached.len() < 2;
        if alone || self.called.is_some() || self.suspect_since.is_some() {
            return None;
        }
        (self.sentinel == Some(trunk)).then(|| asked + self.suspect_after() / 2)
    }

    /// Calls those trunks behind the sentinel, in turn, as witnesses, and returns them.
    pub fn call_witnesses(&mut self, now: Instant) -> Vec<TrunkId> {
        let Some(sentinel) = self.sentinel else {
            return Vec::new();
        };
        let behind = self.attached.range(TrunkId(sentinel.0 + 1)..);
        let around = behind.chain(self.attached.range(..sentinel));
        let around = around.filter(|trunk| !self.aside.contains(trunk));
        let called: Vec<_> = around.take(WITNESSES).copied().collect();
        self.called = Some((now, called.clone()));
        called
    }

    /// Whether a trunk that fenced last at `last_fence` is called and hasn't fenced since.
    pub fn wants_witness(&self, trunk: TrunkId, last_fence: Instant) -> bool {
        let called = self.called.as_ref();
        called.is_some_and(|(at, trunks)| last_fence < *at && trunks.contains(&trunk))
    }

    /// The broker is suspect from now on. Returns the trunks that must know.
    pub fn suspect(&mut self, now: Instant) -> Vec<TrunkId> {
        self.suspect_since.get_or_insert(now);
        // All fence now, and newcomers too: the first answer counts.
        self.called.get_or_insert_with(|| (now, Vec::new()));
        self.attached.iter().copied().collect()
    }

    /// A trunk's fence of `asked` was answered. Returns how long the broker was suspect, if
    /// that is over by this, and the trunks that must know.
    pub fn answered(
        &mut self,
        trunk: TrunkId,
        asked: Instant,
        now: Instant,
    ) -> Option<(Duration, Vec<TrunkId>)> {
        if self.sentinel != Some(trunk) {
            // The sentinel's fence is older than the call, and waits still.
            self.called.take_if(|(called, _)| *called <= asked)?;
            self.sentinel = Some(trunk);
        }
        self.called = None;
        let since = self.suspect_since.take()?;
        let suspected = now.saturating_duration_since(since);
        Some((suspected, self.attached.iter().copied().collect()))
    }

    /// Number of trunks with a live link to this broker.
    pub fn attached(&self) -> usize {
        self.attached.len()
    }

    /// The trunks with a live link to this broker.
    pub fn trunks(&self) -> impl Iterator<Item = TrunkId> {
        self.attached.iter().copied()
    }

    /// Whether a trunk has a live link to this broker.
    pub fn is_attached(&self, trunk: TrunkId) -> bool {
        self.attached.contains(&trunk)
    }

    /// Since when this broker is suspect.
    pub fn suspect_since(&self) -> Option<Instant> {
        self.suspect_since
    }

    /// A fence was answered after `sample`. Only the sentinel's say how far the broker is:
    /// others may wait behind what their own components flood it with.
    pub fn note_round_trip(&mut self, trunk: TrunkId, sample: Duration) {
        if self.sentinel != Some(trunk) {
            return;
        }
        // A late answer of a suspect broker says little of the way there; but a broker that is far
        // is not suspect for ever.
        let sample = sample.min(self.suspect_after());
        let smoothed = &mut self.round_trip;
        *smoothed = Some(smoothed.map_or(sample, |before| (before * 7 + sample) / 8));
    }

    /// The smoothed round trip of fences.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// R9: how long a fence may stay unanswered, where `configured` is `link_timeout`.
    pub fn link_timeout(&self, configured: Duration) -> Duration {
        let round_trip = self.round_trip.unwrap_or_default();
        configured.max(round_trip * DEAD_AFTER_ROUND_TRIPS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: TrunkId = TrunkId(1);
    const SECOND: TrunkId = TrunkId(2);

    fn watched() -> (Liveness, Instant) {
        let mut liveness = Liveness::default();
        liveness.attach(FIRST);
        liveness.attach(SECOND);
        (liveness, Instant::now())
    }

    #[test]
    fn one_trunk_per_broker_is_the_sentinel_and_another_takes_over() {
        let (mut liveness, now) = watched();
        assert!(liveness.fence_due(FIRST, now).is_some());
        assert!(liveness.fence_due(SECOND, now).is_none());
        assert_eq!(liveness.detach(FIRST), Some(SECOND));
        assert!(liveness.fence_due(SECOND, now).is_some());
        assert_eq!(liveness.detach(SECOND), None);
    }

    #[test]
    fn a_publish_anywhere_quickens_the_sentinel() {
        let (mut liveness, now) = watched();
        assert_eq!(liveness.fence_due(FIRST, now), Some(now + QUIET_INTERVAL));
        assert_eq!(liveness.note_publish(now), Some(FIRST));
        assert_eq!(liveness.note_publish(now), None);
        assert_eq!(liveness.fence_due(FIRST, now), Some(now + BUSY_INTERVAL));
    }

    #[test]
    fn suspicion_waits_for_four_long_round_trips() {
        let (mut liveness, now) = watched();
        assert_eq!(liveness.suspect_due(FIRST, now), Some(now + SUSPECT_AFTER));
        let long = Duration::from_millis(100);
        liveness.note_round_trip(SECOND, 2 * long);
        liveness.note_round_trip(FIRST, long);
        assert_eq!(liveness.suspect_due(FIRST, now), Some(now + 4 * long));
        assert_eq!(liveness.suspect_due(SECOND, now), None);
        let configured = Duration::from_millis(500);
        assert_eq!(liveness.link_timeout(configured), 8 * long);
    }

    #[test]
    fn a_far_broker_is_not_suspect_for_ever() {
        let (mut liveness, now) = watched();
        let far = Duration::from_millis(400);
        let is_suspect = |liveness: &Liveness| {
            let due = liveness.suspect_due(FIRST, now);
            due.is_some_and(|due| due < now + far)
        };
        assert!(is_suspect(&liveness));
        liveness.note_round_trip(FIRST, far);
        assert!(!is_suspect(&liveness));
    }

    #[test]
    fn an_answer_to_what_was_asked_before_doesnt_end_suspicion() {
        let (mut liveness, now) = watched();
        let called = now + SUSPECT_AFTER / 2;
        assert_eq!(liveness.witness_due(FIRST, now), Some(called));
        assert_eq!(liveness.witness_due(SECOND, now), None);
        assert_eq!(liveness.call_witnesses(called), [SECOND]);
        assert_eq!(liveness.witness_due(FIRST, now), None);
        let now = now + SUSPECT_AFTER;
        assert_eq!(liveness.suspect(now), [FIRST, SECOND]);
        assert!(
            liveness
                .answered(SECOND, called - Duration::from_millis(1), now)
                .is_none()
        );
        let later = now + SUSPECT_AFTER;
        let cleared = liveness.answered(FIRST, now, later);
        assert_eq!(cleared, Some((SUSPECT_AFTER, vec![FIRST, SECOND])));
        assert_eq!(liveness.suspect_since(), None);
    }

    #[test]
    fn a_witness_that_is_answered_is_the_next_sentinel() {
        let (mut liveness, now) = watched();
        let called = now + SUSPECT_AFTER / 2;
        let before = called - Duration::from_millis(1);
        assert!(!liveness.wants_witness(SECOND, before));
        assert_eq!(liveness.call_witnesses(called), [SECOND]);
        assert!(liveness.wants_witness(SECOND, before));
        assert!(!liveness.wants_witness(SECOND, called));
        assert!(!liveness.wants_witness(FIRST, before));
        assert!(liveness.answered(SECOND, called, called).is_none());
        assert_eq!(liveness.suspect_due(FIRST, now), None);
        assert!(liveness.suspect_due(SECOND, called).is_some());
    }

    #[test]
    fn witnesses_are_taken_in_turn_from_behind_the_sentinel() {
        let mut liveness = Liveness::default();
        let now = Instant::now();
        for id in [5, 1, 2, 3, 4, 6, 7] {
            liveness.attach(TrunkId(id));
        }
        let called = liveness.call_witnesses(now);
        assert_eq!(called, [6, 7, 1, 2].map(TrunkId));
    }
}
