//! The clock: deadlines of links, fences, silence, and what slots wait for.

use std::time::Duration;

use smallvec::SmallVec;

use super::Trunk;
use super::action::{Action, Report};
use super::link::{Link, LinkId, Phase};
use super::slot::Finishing;
use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::upstream::brokers::backoff::unit;
use crate::upstream::brokers::roster::Failure;
use crate::upstream::bus::{Bus, Turn};

/// A tick that comes later than this restarts the clocks of silence (R9).
const LATE: Duration = Duration::from_millis(250);
/// How often the kernel is asked how much is unacknowledged, while a fence waits.
const MEASURE_EVERY: Duration = Duration::from_millis(500);

/// The patience that each replay of the bus that is on its way adds to a replay's, how often that
/// doubles with attempts that failed, and its bound.
const REPLAY_EACH: Duration = Duration::from_millis(50);
const REPLAY_DOUBLINGS: u32 = 4;
const REPLAY_MOST: Duration = Duration::from_secs(30);

/// The earliest of some times.
struct Earliest(Option<Instant>);

impl Earliest {
    fn note(&mut self, other: Option<Instant>) {
        if let Some(other) = other
            && self.0.is_none_or(|earliest| other < earliest)
        {
            self.0 = Some(other);
        }
    }
}

impl Trunk {
    /// When [`Trunk::handle_timeout`] wants to be called. May be too early, never too late.
    pub fn poll_timeout(&self, bus: &Bus) -> Option<Instant> {
        let mut due = Earliest(self.route.attempts.retry_at());
        for link in self.links.iter() {
            due.note(self.deadline(link, bus));
            due.note(link.room.look_at());
            due.note(self.fence_due(link, bus));
            if !link.pings.is_empty() {
                due.note(self.suspect_due(link, bus));
                due.note(self.witness_due(link, bus));
                due.note(self.measure_due(link));
                due.note(self.silent_at(link, bus));
            }
        }
        due.note(self.unmarked);
        due.note(self.refusal_due(bus));
        due.note(self.renew_at);
        due.note(self.overlap_due());
        due.note(self.pulls_due());
        due.note(self.sessions.due());
        due.note(self.target_due(bus));
        due.note(self.idle_until(bus));
        due.0
    }

    /// The driver's timer is set for this, or will be: a call of [`Trunk::handle_timeout`] that
    /// comes much later shows that the process didn't run (R9).
    pub fn note_timer(&mut self, due: Option<Instant>) {
        self.timer = due;
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, cx: &mut Turn<'_>) {
        if let Some(timer) = self.timer
            && cx.now.saturating_duration_since(timer) > LATE
        {
            self.clock_floor = Some(cx.now);
        }
        self.mark_places(cx);
        self.end_overdue_links(cx);
        self.measure(cx.now);
        for id in self.links.ids() {
            if self
                .fence_due(&self.links[id], cx.bus)
                .is_some_and(|due| due <= cx.now)
            {
                self.fence(id, cx);
            }
            let link = &self.links[id];
            if self
                .witness_due(link, cx.bus)
                .is_some_and(|due| due <= cx.now)
            {
                cx.bus.call_witnesses(link.broker, cx.now);
            }
            let link = &self.links[id];
            if self
                .suspect_due(link, cx.bus)
                .is_some_and(|due| due <= cx.now)
            {
                cx.bus.suspect(link.broker, cx.now);
            }
        }
        if self
            .route
            .attempts
            .retry_at()
            .is_some_and(|at| at <= cx.now)
        {
            self.route.attempts.retry();
            self.leave_where_due(cx);
            self.next_attempt(cx);
        }
        self.renew_where_due(cx);
        self.go_on_overlapping(cx);
        self.handle_pull_timeouts(cx);
        self.handle_target_timeout(cx);
        self.check_refused(cx);
        if self.idle_until(cx.bus).is_some_and(|until| until <= cx.now) {
            self.check_done(cx);
        }
        if self.sessions.due().is_some_and(|at| at <= cx.now) {
            self.handle_slot_timeouts(cx);
        }
    }

    fn end_overdue_links(&mut self, cx: &mut Turn<'_>) {
        let mut looked_at: SmallVec<[LinkId; 4]> = SmallVec::new();
        while let Some(id) = self.links.find(|link| !looked_at.contains(&link.id)) {
            looked_at.push(id);
            if let Some(failure) = self.overdue(id, cx) {
                self.fail(id, failure, cx);
                if !self.links.has(id) {
                    // Others may have come: all are looked at again.
                    looked_at.clear();
                }
            }
        }
    }

    /// Why a link has to end now, if it has to: it is silent, or its phase takes too long.
    fn overdue(&mut self, id: LinkId, cx: &mut Turn<'_>) -> Option<Failure> {
        let is_over = |due: Option<Instant>| due.is_some_and(|due| due <= cx.now);
        let link = &self.links[id];
        if is_over(self.silent_at(link, cx.bus)) {
            return Some(Failure::Silent);
        }
        if !is_over(self.deadline(link, cx.bus)) {
            return None;
        }
        let phase = link.phase;
        match phase {
            Phase::Fenced => {
                self.links[id].deadline = None;
                cx.bus.counters_mut().barrier_timeouts += 1;
                self.pass_barrier(cx);
                None
            }
            Phase::Authenticating if self.await_verdict(id, cx) => None,
            Phase::Authenticating => Some(Failure::NoVerdict),
            Phase::Connecting => Some(Failure::ConnectTimeout),
            Phase::AwaitingInfo => Some(Failure::InfoTimeout),
            Phase::Securing => Some(Failure::TlsTimeout),
            _ => Some(Failure::Silent),
        }
    }

    /// When a link's phase has taken too long. A link that is left answers once it is read, in time
    /// that natsmux read it (R9).
    fn deadline(&self, link: &Link, bus: &Bus) -> Option<Instant> {
        let deadline = link.deadline?;
        if !matches!(link.phase, Phase::Leaving(_)) {
            return Some(deadline);
        }
        let patience = bus.settings().timings.link_timeout;
        (!self.intake.stalled).then(|| self.in_running_time(deadline - patience) + patience)
    }

    /// A point in time from which something is waited for, but for time in which natsmux didn't
    /// run or read (R9).
    pub(super) fn in_running_time(&self, since: Instant) -> Instant {
        self.clock_floor.map_or(since, |floor| floor.max(since))
    }

    fn fence(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        // The rate is for what operations ask for; a sentinel's fences and those of idle links
        // are few.
        let regular = self.regular_fence_due(&self.links[id], cx.bus) <= cx.now;
        if !regular && !cx.bus.may_fence(cx.now) {
            return;
        }
        self.links.fence(id, cx);
    }

    /// R7: 50 ms behind an unfenced operation, and on an idle link every 30 s with jitter.
    fn fence_due(&self, link: &Link, bus: &Bus) -> Option<Instant> {
        let is_unread = self.intake.stalled && !link.pings.is_empty();
        if !link.phase.is_subscribed() || is_unread {
            return None;
        }
        let interval = bus.settings().timings.fence_interval;
        let regular = self.regular_fence_due(link, bus);
        let asked = link.unfenced_since.map(|since| {
            let soon = self.must_prove_soon(link, since)
                || link.operations.has_unexplained()
                || link.unfenced_bytes >= bus.settings().limits.fence_bytes;
            let due = since + if soon { Duration::ZERO } else { interval };
            due.max(bus.fences_from())
        });
        Some(asked.map_or(regular, |asked| asked.min(regular)))
    }

    /// Returns when a regular fence is due, whatever was written: at the sentinel's pace, or an
    /// idle link's.
    fn regular_fence_due(&self, link: &Link, bus: &Bus) -> Instant {
        let sentinel_due = bus.watch(link.broker).fence_due(self.id, link.last_ping_at);
        sentinel_due.unwrap_or_else(|| {
            let idle = bus.settings().timings.idle_fence_interval;
            let jitter = idle.mul_f64(0.2 * unit(self.id.0 ^ (self.links.next_ping() << 20)));
            link.last_ping_at + idle - jitter
        })
    }

    /// R8: when the sentinel's oldest fence makes its broker suspect.
    fn suspect_due(&self, link: &Link, bus: &Bus) -> Option<Instant> {
        let asked = self.oldest_asked(link)?;
        bus.watch(link.broker).suspect_due(self.id, asked)
    }

    /// When the sentinel's oldest fence is so late that other trunks are asked as well.
    fn witness_due(&self, link: &Link, bus: &Bus) -> Option<Instant> {
        let asked = self.oldest_asked(link)?;
        bus.watch(link.broker).witness_due(self.id, asked)
    }

    /// Since when a live link owes a PONG, in time that natsmux ran.
    fn oldest_asked(&self, link: &Link) -> Option<Instant> {
        if !link.phase.is_subscribed() || self.intake.stalled {
            return None;
        }
        let oldest = link.pings.oldest()?.at;
        Some(self.in_running_time(oldest))
    }

    /// When to ask the kernel whether the broker's host still takes bytes.
    fn measure_due(&self, link: &Link) -> Option<Instant> {
        if !link.is_attached() || self.intake.stalled {
            return None;
        }
        let oldest = link.pings.oldest()?;
        let since = link.measured_at.map_or(oldest.at, |at| at.max(oldest.at));
        Some(since + MEASURE_EVERY)
    }

    fn measure(&mut self, now: Instant) {
        for id in self.links.ids() {
            if self
                .measure_due(&self.links[id])
                .is_some_and(|due| due <= now)
            {
                let link = &mut self.links[id];
                link.measured_at = Some(now);
                self.actions.push_back(Action::Measure { link: link.id });
            }
        }
    }

    /// The kernel's answer to [`Action::Measure`].
    pub fn handle_unacked(&mut self, id: LinkId, bytes: u64, now: Instant) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let written = link.out.written();
        let acked = written.saturating_sub(bytes);
        // Once the broker's host has the fence, only the broker can answer for itself: that its
        // kernel takes more says nothing.
        let fence_on_its_way = link.pings.oldest().is_some_and(|ping| acked < ping.offset);
        // The first answer after a while has nothing to be compared with.
        let recent = |at: Instant| now.saturating_duration_since(at) < 2 * MEASURE_EVERY;
        let progress = link.progress.get_or_insert_default();
        let more = progress
            .acked
            .is_some_and(|(before, at)| recent(at) && acked > before);
        if fence_on_its_way && more {
            progress.at = Some(now);
        }
        progress.acked = Some((acked, now));
    }

    /// R9: when the oldest unanswered PING makes the link dead, if nothing is read until
    /// then; at three times that, whatever is read.
    fn silent_at(&self, link: &Link, bus: &Bus) -> Option<Instant> {
        if !matches!(
            link.phase,
            Phase::Replaying | Phase::Live | Phase::Standby | Phase::Leaving(_)
        ) || self.intake.stalled
        {
            return None;
        }
        let oldest = link.pings.oldest()?;
        let configured = bus.settings().timings.link_timeout;
        let mut timeout = bus.watch(link.broker).link_timeout(configured);
        if link.phase == Phase::Replaying {
            timeout = self.replay_patience(timeout, bus);
        }
        let asked = self.in_running_time(oldest.at);
        // A PONG is progress: the next fence has its full time from then on.
        let asked = link.progressed_at.map_or(asked, |at| at.max(asked));
        let progress = link.progress.as_ref().and_then(|progress| progress.at);
        let alive = progress.map_or(asked, |progress| progress.max(asked));
        let quiet = alive.max(link.last_read_at) + timeout;
        Some(quiet.min(asked + 3 * timeout))
    }

    /// How long a fence of a replay may stay unanswered: longer where many replay, and where the
    /// last attempts failed. A broker that has just started may be busy with those of many hosts.
    fn replay_patience(&self, timeout: Duration, bus: &Bus) -> Duration {
        let attempts = self.route.attempts.failures().min(REPLAY_DOUBLINGS);
        let others = u32::try_from(bus.replaying()).unwrap_or(u32::MAX);
        let others = REPLAY_EACH.saturating_mul(others).min(REPLAY_MOST);
        timeout.saturating_mul(1 << attempts).min(REPLAY_MOST) + others
    }

    fn handle_slot_timeouts(&mut self, cx: &mut Turn<'_>) {
        self.sessions.clear_due();
        for session in self.sessions.ids() {
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= cx.now);
            let slot = &mut self.sessions[session];
            if due(slot.debts.pongs_until()) {
                self.release_pongs(session, cx.bus);
            }
            let slot = &mut self.sessions[session];
            if due(slot.blocked_until) {
                slot.blocked_until = None;
                if !self.has_room(session, cx) {
                    let slot = &mut self.sessions[session];
                    slot.dropping = true;
                    let held_bytes = slot.held.bytes();
                    self.actions
                        .push_back(Action::Report(Report::Dropping { held_bytes }));
                }
                self.sessions.release(session);
            }
            if self.sessions[session].throttle.take_due(cx.now) {
                self.sessions.release(session);
            }
            let is_over = |end: &Finishing| end.after.is_none() && end.until <= cx.now;
            if let Some(reason) = self.sessions[session].take_finished(is_over) {
                self.sessions.close(session, reason);
            }
            if let Some(due) = self.sessions[session].timeout() {
                self.sessions.note_timeout(due);
            }
        }
    }

    /// R3: the owed PONGs now mean *held by natsmux*. PONGs have no names, so those that a
    /// suspect link still owes for earlier PINGs are released with them: coming later, they
    /// would be taken for the answer to later ones.
    fn release_pongs(&mut self, session: SessionId, bus: &mut Bus) {
        for link in self.links.iter_mut() {
            link.pings.disown(session);
        }
        let slot = &mut self.sessions[session];
        let pongs = slot.debts.release_all();
        for _ in 0..pongs {
            self.sessions.deliver_pong(session, bus);
        }
        self.sessions.close_unasked(session);
        if bus.note_unproven(pongs) {
            self.actions
                .push_back(Action::Report(Report::Unproven { pongs }));
        }
    }
}
