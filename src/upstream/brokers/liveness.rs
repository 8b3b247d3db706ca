//! Liveness of the brokers that carry links: one *sentinel* per broker and bus (R7, R8).
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

use super::roster::BrokerId;
use crate::clock::Instant;

/// A trunk's number, never reused while the bus lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrunkId(pub u64);

/// Sentinel's pause between fences while something is published to the broker.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
/// The same while nothing is.
const QUIET_INTERVAL: Duration = Duration::from_millis(500);
/// A sentinel's fence that waits longer than this makes the broker suspect.
const SUSPECT_AFTER: Duration = Duration::from_millis(150);
/// The same, in smoothed round trips, where those are long.
const SUSPECT_AFTER_ROUND_TRIPS: u32 = 4;
/// Trunks that are asked when the sentinel's fence is late.
const WITNESSES: usize = 4;
/// `link_timeout` is at least this many smoothed round trips (R9).
const DEAD_AFTER_ROUND_TRIPS: u32 = 8;

/// The watch over one broker.
#[derive(Debug, Default)]
struct BrokerWatch {
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

/// The watches of a bus.
#[derive(Debug, Default)]
pub struct Liveness {
    by_broker: Vec<BrokerWatch>,
}

impl BrokerWatch {
    /// The trunk to be sentinel: the oldest that reads its link, else the oldest.
    fn fittest(&self) -> Option<TrunkId> {
        let reads = |trunk: &&TrunkId| !self.aside.contains(trunk);
        let fit = self.attached.iter().find(reads);
        fit.or(self.attached.first()).copied()
    }

    /// R8.
    fn suspect_after(&self) -> Duration {
        let round_trip = self.round_trip.unwrap_or_default();
        SUSPECT_AFTER.max(round_trip * SUSPECT_AFTER_ROUND_TRIPS)
    }
}

impl Liveness {
    /// A trunk has a live link to this broker.
    pub fn attach(&mut self, broker: BrokerId, trunk: TrunkId) {
        let watch = self.watch_mut(broker);
        watch.attached.insert(trunk);
        if watch
            .sentinel
            .is_none_or(|sentinel| watch.aside.contains(&sentinel))
        {
            watch.sentinel = Some(trunk);
        }
    }

    /// A trunk's live link to this broker is gone. Returns the sentinel that takes over.
    pub fn detach(&mut self, broker: BrokerId, trunk: TrunkId) -> Option<TrunkId> {
        let watch = self.watch_mut(broker);
        watch.attached.remove(&trunk);
        watch.aside.remove(&trunk);
        if watch.attached.is_empty() {
            watch.suspect_since = None;
            watch.called = None;
            watch.round_trip = None;
        }
        if watch.sentinel != Some(trunk) {
            return None;
        }
        watch.sentinel = watch.fittest();
        watch.sentinel
    }

    /// A trunk doesn't read its links for now. Returns the sentinels that take over from it.
    pub fn step_aside(&mut self, trunk: TrunkId, now: Instant) -> Vec<TrunkId> {
        let mut sentinels = Vec::new();
        for watch in &mut self.by_broker {
            if !watch.attached.contains(&trunk) {
                continue;
            }
            watch.aside.insert(trunk);
            if watch.sentinel == Some(trunk) {
                watch.sentinel = watch.fittest();
                sentinels.extend(watch.sentinel.filter(|sentinel| *sentinel != trunk));
            }
            if watch.suspect_since.is_some() {
                // Whoever reads must be asked: the old sentinel's answer is read by nobody.
                watch.called = Some((now, watch.attached.iter().copied().collect()));
            }
        }
        sentinels
    }

    /// A trunk reads its links again.
    pub fn step_back(&mut self, trunk: TrunkId) {
        for watch in &mut self.by_broker {
            watch.aside.remove(&trunk);
            let is_unfit = |sentinel| watch.aside.contains(&sentinel);
            if watch.attached.contains(&trunk) && watch.sentinel.is_none_or(is_unfit) {
                watch.sentinel = Some(trunk);
            }
        }
    }

    /// Something is published to this broker. Returns the sentinel where it has to fence
    /// more often from now on.
    pub fn note_publish(&mut self, broker: BrokerId, now: Instant) -> Option<TrunkId> {
        let watch = self.watch_mut(broker);
        let before = watch.last_publish.replace(now);
        let was_busy = before.is_some_and(|at| now.saturating_duration_since(at) < BUSY_INTERVAL);
        watch.sentinel.filter(|_| !was_busy)
    }

    /// When the sentinel's next fence is due; `None` for any other trunk.
    pub fn fence_due(
        &self,
        broker: BrokerId,
        trunk: TrunkId,
        last_fence: Instant,
    ) -> Option<Instant> {
        let watch = self.watch(broker)?;
        if watch.sentinel != Some(trunk) {
            return None;
        }
        let busy = watch
            .last_publish
            .is_some_and(|at| at + BUSY_INTERVAL > last_fence);
        let interval = if busy { BUSY_INTERVAL } else { QUIET_INTERVAL };
        Some(last_fence + interval)
    }

    /// When the sentinel's fence of `asked` makes the broker suspect; `None` for any other
    /// trunk, and while it is suspect already.
    pub fn suspect_due(&self, broker: BrokerId, trunk: TrunkId, asked: Instant) -> Option<Instant> {
        let watch = self.watch(broker)?;
        if watch.sentinel != Some(trunk) || watch.suspect_since.is_some() {
            return None;
        }
        Some(asked + watch.suspect_after())
    }

    /// When the sentinel's fence of `asked` calls for witnesses; `None` for any other trunk,
    /// and where they were called already.
    pub fn witness_due(&self, broker: BrokerId, trunk: TrunkId, asked: Instant) -> Option<Instant> {
        let watch = self.watch(broker)?;
        let alone = watch.attached.len() < 2;
        if alone || watch.called.is_some() || watch.suspect_since.is_some() {
            return None;
        }
        (watch.sentinel == Some(trunk)).then(|| asked + watch.suspect_after() / 2)
    }

    /// Calls those trunks behind the sentinel, in turn, as witnesses, and returns them.
    pub fn call_witnesses(&mut self, broker: BrokerId, now: Instant) -> Vec<TrunkId> {
        let watch = self.watch_mut(broker);
        let Some(sentinel) = watch.sentinel else {
            return Vec::new();
        };
        let behind = watch.attached.range(TrunkId(sentinel.0 + 1)..);
        let around = behind.chain(watch.attached.range(..sentinel));
        let around = around.filter(|trunk| !watch.aside.contains(trunk));
        let called: Vec<_> = around.take(WITNESSES).copied().collect();
        watch.called = Some((now, called.clone()));
        called
    }

    /// Whether a trunk that fenced last at `last_fence` is called and hasn't fenced since.
    pub fn wants_witness(&self, broker: BrokerId, trunk: TrunkId, last_fence: Instant) -> bool {
        let called = self.watch(broker).and_then(|watch| watch.called.as_ref());
        called.is_some_and(|(at, trunks)| last_fence < *at && trunks.contains(&trunk))
    }

    /// The broker is suspect from now on. Returns the trunks that must know.
    pub fn suspect(&mut self, broker: BrokerId, now: Instant) -> Vec<TrunkId> {
        let watch = self.watch_mut(broker);
        watch.suspect_since.get_or_insert(now);
        // All fence now, and newcomers too: the first answer counts.
        watch.called.get_or_insert_with(|| (now, Vec::new()));
        watch.attached.iter().copied().collect()
    }

    /// A trunk's fence of `asked` was answered. Returns how long the broker was suspect, if
    /// that is over by this, and the trunks that must know.
    pub fn answered(
        &mut self,
        broker: BrokerId,
        trunk: TrunkId,
        asked: Instant,
        now: Instant,
    ) -> Option<(Duration, Vec<TrunkId>)> {
        let watch = self.watch_mut(broker);
        if watch.sentinel != Some(trunk) {
            // The sentinel's fence is older than the call, and waits still.
            watch.called.take_if(|(called, _)| *called <= asked)?;
            watch.sentinel = Some(trunk);
        }
        watch.called = None;
        let since = watch.suspect_since.take()?;
        let suspected = now.saturating_duration_since(since);
        Some((suspected, watch.attached.iter().copied().collect()))
    }

    /// Number of trunks with a live link to this broker.
    pub fn attached(&self, broker: BrokerId) -> usize {
        self.watch(broker).map_or(0, |watch| watch.attached.len())
    }

    /// The brokers to which this trunk has a live link.
    pub fn brokers_of(&self, trunk: TrunkId) -> Vec<BrokerId> {
        let attached = |watch: &BrokerWatch| watch.attached.contains(&trunk);
        let ids = (0..).map(BrokerId).zip(&self.by_broker);
        ids.filter_map(|(id, watch)| attached(watch).then_some(id))
            .collect()
    }

    /// The oldest trunk that has a live link to any broker.
    pub fn oldest(&self) -> Option<TrunkId> {
        let oldest = self.by_broker.iter();
        oldest
            .filter_map(|watch| watch.attached.first())
            .min()
            .copied()
    }

    /// Since when this broker is suspect.
    pub fn suspect_since(&self, broker: BrokerId) -> Option<Instant> {
        self.watch(broker)?.suspect_since
    }

    /// A fence was answered after `sample`. Only the sentinel's say how far the broker is:
    /// others may wait behind what their own components flood it with.
    pub fn note_round_trip(&mut self, broker: BrokerId, trunk: TrunkId, sample: Duration) {
        let watch = self.watch_mut(broker);
        if watch.sentinel != Some(trunk) {
            return;
        }
        // What comes late out of a suspect broker says little of the way there; but a broker that
        // is far is not suspect for ever.
        let sample = sample.min(watch.suspect_after());
        let smoothed = &mut watch.round_trip;
        *smoothed = Some(smoothed.map_or(sample, |before| (before * 7 + sample) / 8));
    }

    /// The smoothed round trip of fences.
    pub fn round_trip(&self, broker: BrokerId) -> Option<Duration> {
        self.watch(broker)?.round_trip
    }

    /// R9: how long a fence may stay unanswered, where `configured` is `link_timeout`.
    pub fn link_timeout(&self, broker: BrokerId, configured: Duration) -> Duration {
        let round_trip = self.round_trip(broker).unwrap_or_default();
        configured.max(round_trip * DEAD_AFTER_ROUND_TRIPS)
    }

    fn watch(&self, broker: BrokerId) -> Option<&BrokerWatch> {
        self.by_broker.get(usize::from(broker.0))
    }

    fn watch_mut(&mut self, broker: BrokerId) -> &mut BrokerWatch {
        let at = usize::from(broker.0);
        if self.by_broker.len() <= at {
            self.by_broker.resize_with(at + 1, BrokerWatch::default);
        }
        &mut self.by_broker[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKER: BrokerId = BrokerId(0);
    const FIRST: TrunkId = TrunkId(1);
    const SECOND: TrunkId = TrunkId(2);

    fn watched() -> (Liveness, Instant) {
        let mut watches = Liveness::default();
        watches.attach(BROKER, FIRST);
        watches.attach(BROKER, SECOND);
        (watches, Instant::now())
    }

    #[test]
    fn one_trunk_per_broker_is_the_sentinel_and_another_takes_over() {
        let (mut watches, now) = watched();
        assert!(watches.fence_due(BROKER, FIRST, now).is_some());
        assert!(watches.fence_due(BROKER, SECOND, now).is_none());
        assert_eq!(watches.detach(BROKER, FIRST), Some(SECOND));
        assert!(watches.fence_due(BROKER, SECOND, now).is_some());
        assert_eq!(watches.detach(BROKER, SECOND), None);
    }

    #[test]
    fn a_publish_anywhere_quickens_the_sentinel() {
        let (mut watches, now) = watched();
        assert_eq!(
            watches.fence_due(BROKER, FIRST, now),
            Some(now + QUIET_INTERVAL)
        );
        assert_eq!(watches.note_publish(BROKER, now), Some(FIRST));
        assert_eq!(watches.note_publish(BROKER, now), None);
        assert_eq!(
            watches.fence_due(BROKER, FIRST, now),
            Some(now + BUSY_INTERVAL)
        );
    }

    #[test]
    fn suspicion_waits_for_four_long_round_trips() {
        let (mut watches, now) = watched();
        assert_eq!(
            watches.suspect_due(BROKER, FIRST, now),
            Some(now + SUSPECT_AFTER)
        );
        let long = Duration::from_millis(100);
        watches.note_round_trip(BROKER, SECOND, 2 * long);
        watches.note_round_trip(BROKER, FIRST, long);
        assert_eq!(
            watches.suspect_due(BROKER, FIRST, now),
            Some(now + 4 * long)
        );
        assert_eq!(watches.suspect_due(BROKER, SECOND, now), None);
        let configured = Duration::from_millis(500);
        assert_eq!(watches.link_timeout(BROKER, configured), 8 * long);
    }

    #[test]
    fn a_far_broker_is_not_suspect_for_ever() {
        let (mut watches, now) = watched();
        let far = Duration::from_millis(400);
        let is_suspect = |watches: &Liveness| {
            let due = watches.suspect_due(BROKER, FIRST, now);
            due.is_some_and(|due| due < now + far)
        };
        assert!(is_suspect(&watches));
        watches.note_round_trip(BROKER, FIRST, far);
        assert!(!is_suspect(&watches));
    }

    #[test]
    fn an_answer_to_what_was_asked_before_doesnt_end_suspicion() {
        let (mut watches, now) = watched();
        let called = now + SUSPECT_AFTER / 2;
        assert_eq!(watches.witness_due(BROKER, FIRST, now), Some(called));
        assert_eq!(watches.witness_due(BROKER, SECOND, now), None);
        assert_eq!(watches.call_witnesses(BROKER, called), [SECOND]);
        assert_eq!(watches.witness_due(BROKER, FIRST, now), None);
        let now = now + SUSPECT_AFTER;
        assert_eq!(watches.suspect(BROKER, now), [FIRST, SECOND]);
        assert!(
            watches
                .answered(BROKER, SECOND, called - Duration::from_millis(1), now)
                .is_none()
        );
        let later = now + SUSPECT_AFTER;
        let cleared = watches.answered(BROKER, FIRST, now, later);
        assert_eq!(cleared, Some((SUSPECT_AFTER, vec![FIRST, SECOND])));
        assert_eq!(watches.suspect_since(BROKER), None);
    }

    #[test]
    fn a_witness_that_is_answered_is_the_next_sentinel() {
        let (mut watches, now) = watched();
        let called = now + SUSPECT_AFTER / 2;
        let before = called - Duration::from_millis(1);
        assert!(!watches.wants_witness(BROKER, SECOND, before));
        assert_eq!(watches.call_witnesses(BROKER, called), [SECOND]);
        assert!(watches.wants_witness(BROKER, SECOND, before));
        assert!(!watches.wants_witness(BROKER, SECOND, called));
        assert!(!watches.wants_witness(BROKER, FIRST, before));
        assert!(watches.answered(BROKER, SECOND, called, called).is_none());
        assert_eq!(watches.suspect_due(BROKER, FIRST, now), None);
        assert!(watches.suspect_due(BROKER, SECOND, called).is_some());
    }

    #[test]
    fn witnesses_are_taken_in_turn_from_behind_the_sentinel() {
        let mut watches = Liveness::default();
        let now = Instant::now();
        for id in [5, 1, 2, 3, 4, 6, 7] {
            watches.attach(BROKER, TrunkId(id));
        }
        let called = watches.call_witnesses(BROKER, now);
        assert_eq!(called, [6, 7, 1, 2].map(TrunkId));
    }
}
