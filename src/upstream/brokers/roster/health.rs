//! How the brokers are: what dials, probes, links and their own words tell, and when to probe
//! (R11, R15).

use std::time::Duration;

use super::{Broker, BrokerId, Failure, Health, Placement, Roster};
use crate::clock::Instant;
use crate::config::TlsMode;
use crate::proto::info::ServerInfo;
use crate::upstream::brokers::backoff::Backoff;
use crate::upstream::brokers::trouble::{IdentityDigest, Trouble};

/// Pause between probes of a broker that doesn't answer, while the bus has no live link.
const PROBE_ALONE: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(2),
};
/// The pauses of probes while another broker carries the bus.
const PROBE_SPARE: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(10),
};
/// A broker with links is asked what it offers after so many times the pause between probes.
const LOOKS: u32 = 20;
/// A broker that fails sooner than this after it came up is flapping.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How long a flapping broker is passed over while another one lives.
const HOLD_DOWN: Backoff = Backoff {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(2),
};
/// How long an independent broker that froze is left alone after its first word.
const THAWING: Duration = Duration::from_secs(1);

impl Roster {
    /// Why a broker can't be used, as its INFO says.
    pub fn unfit(&self, id: BrokerId, info: &ServerInfo) -> Option<Failure> {
        let is_own = |id: &String| *id == info.server_id || info.comes_through(id);
        if self.own_ids.iter().any(is_own) {
            return Some(Failure::Loop);
        }
        match self.tls_mode(id) {
            TlsMode::Off if info.tls_required => return Some(Failure::TlsRequired),
            TlsMode::Required if !info.offers_tls() => return Some(Failure::TlsNotOffered),
            TlsMode::Required if info.tls_verify && !self.has_certificate => {
                return Some(Failure::CertificateRefused);
            }
            TlsMode::Off | TlsMode::Required | TlsMode::First => {}
        }
        // Subscribed there twice, a component would get everything twice.
        let is_same = |(other, broker): (BrokerId, &Broker)| {
            let same = broker
                .info()
                .is_some_and(|known| known.server_id == info.server_id);
            other != id && broker.lives() && same && !info.server_id.is_empty()
        };
        let is_double = matches!(self.placement, Placement::First(_))
            && !self.broker(id).has_links()
            && self.brokers().any(is_same);
        is_double.then_some(Failure::SameBroker)
    }

    /// Whether a broker was left for dead because it answered nothing.
    pub fn is_frozen(&self, id: BrokerId) -> bool {
        let broker = self.broker(id);
        broker.was_silent && broker.health == Health::Down
    }

    /// R30: whether an independent broker has been heard of for the first time since it froze.
    /// Publishes that reached it before have to pass before anybody is subscribed there again.
    fn must_thaw(&mut self, id: BrokerId, now: Instant) -> bool {
        let spare = self
            .order
            .iter()
            .any(|&other| other != id && self.is_usable(other, now));
        let first = matches!(self.placement, Placement::First(_));
        let broker = self.broker_mut(id);
        if !first || !spare || !broker.was_silent || broker.health != Health::Down {
            broker.thawed_at = None;
            return false;
        }
        let heard_at = *broker.thawed_at.get_or_insert(now);
        if now < heard_at + THAWING {
            broker.probing = false;
            broker.probe_at = heard_at + THAWING;
            broker.look_at = heard_at + THAWING;
            return true;
        }
        (broker.was_silent, broker.thawed_at) = (false, None);
        false
    }

    /// A broker sent its INFO, to a dial or to a probe.
    pub fn handle_info(&mut self, id: BrokerId, mut info: ServerInfo, now: Instant) {
        if let Some(failure) = self.unfit(id, &info) {
            return self.handle_failure(id, failure, now);
        }
        if self.must_thaw(id, now) {
            return;
        }
        let known = self.broker(id).info.as_ref();
        let same = known.filter(|known| known.server_id == info.server_id);
        let is_same = same.is_some() && !info.server_id.is_empty();
        // A lame duck with links never recovers: what it had said before came late, on another
        // connection.
        info.ldm |= same.is_some_and(|known| known.ldm) && self.broker(id).has_links();
        if known.is_some() && same.is_none() {
            // Another process: what the last one said doesn't hold for it.
            self.troubles.forget(id);
            self.broker_mut(id).line_learned = None;
            self.renewed = true;
            self.changed = true;
            self.broker_mut(id).forget_verdicts();
        }
        let interval = self.probe_interval;
        let offer = (info.max_payload, info.headers);
        let broker = self.broker_mut(id);
        let is_revised = broker.revise(offer, is_same, interval * LOOKS, now);
        broker.probing = false;
        broker.failures = 0;
        broker.probe_at = now + interval;
        broker.look_at = now + interval * LOOKS;
        broker.info = Some(Box::new(info));
        let health = broker.health_of_living();
        let stays = broker.health == health;
        self.revised.extend(is_revised.then_some(id));
        self.note_infos();
        if !stays {
            self.broker_mut(id).revive(health, now);
            self.changed = true;
            self.reconsider(now);
        }
    }

    /// A probe is over. One of a broker that has links only says what that offers now, if it is the
    /// same process: how it is, they tell.
    pub fn handle_probe(
        &mut self,
        id: BrokerId,
        result: Result<ServerInfo, Failure>,
        now: Instant,
    ) {
        let is_look = self.is_look(id);
        let interval = self.probe_interval;
        let known = self.broker(id).info();
        let is_news = result.as_ref().is_ok_and(|info| {
            let same = known.is_some_and(|known| known.server_id == info.server_id);
            same && self.unfit(id, info).is_none()
        });
        self.broker_mut(id).looking = false;
        match result {
            Ok(info) if !is_look || is_news => self.handle_info(id, info, now),
            Err(failure) if !is_look => self.handle_failure(id, failure, now),
            _ => {
                let broker = self.broker_mut(id);
                broker.probing = false;
                broker.look_at = now + interval * LOOKS;
            }
        }
    }

    /// Whether a probe on its way only says what the broker offers: its links tell how it is, also
    /// if they came since the probe began.
    pub fn is_look(&self, id: BrokerId) -> bool {
        self.broker(id).has_links()
    }

    /// A probe was answered, `took` after its dial.
    pub fn note_probe(&mut self, id: BrokerId, took: Duration) {
        self.broker_mut(id).probe_took = Some(took);
    }

    /// A broker answered a fence: whatever was thought of it, it lives.
    pub fn handle_answer(&mut self, id: BrokerId, now: Instant) {
        let broker = self.broker_mut(id);
        if broker.health == Health::Down {
            broker.revive(broker.health_of_living(), now);
            broker.failures = 0;
            self.changed = true;
            self.reconsider(now);
        }
    }

    /// A broker announced that it will go away.
    pub fn handle_lame_duck(&mut self, id: BrokerId, now: Instant) {
        let broker = self.broker_mut(id);
        if let Some(info) = &mut broker.info {
            info.ldm = true;
        }
        if broker.health != Health::LameDuck {
            broker.health = Health::LameDuck;
            broker.since = now;
            self.changed = true;
            self.reconsider(now);
        }
    }

    /// A trunk's dial failed, or its link is dead by silence. Where the broker is down already,
    /// that is old news: the probe, which asks at its own pace, isn't put off by how many trunks
    /// found out.
    pub fn handle_trunk_failure(&mut self, id: BrokerId, failure: Failure, now: Instant) {
        let broker = self.broker_mut(id);
        if broker.health != Health::Down {
            return self.handle_failure(id, failure, now);
        }
        broker.last_failure = Some(failure);
        broker.was_silent |= failure == Failure::Silent;
    }

    /// A dial or a probe failed before the broker sent an INFO, or its fences went silent.
    pub fn handle_failure(&mut self, id: BrokerId, failure: Failure, now: Instant) {
        if matches!(failure, Failure::OutOfFiles | Failure::Throttled) {
            // That says nothing of whether it serves.
            let broker = self.broker_mut(id);
            broker.probing = false;
            broker.last_failure = Some(failure);
            broker.probe_at = now + PROBE_ALONE.longest;
            return;
        }
        let first = matches!(self.placement, Placement::First(_));
        let broker = self.broker_mut(id);
        if first && broker.has_links() && !broker.is_suspect() && failure != Failure::Silent {
            // One dial: its links say how it is. Here they would all follow.
            broker.probing = false;
            broker.last_failure = Some(failure);
            return;
        }
        let alone = !self.brokers().any(|(_, broker)| broker.has_links());
        let seed = self.seed ^ u64::from(id.0) << 32;
        // R30: every host must have found a broker that returned before one publishes to it.
        let most = match self.placement {
            Placement::First(Some(delay)) => delay / 3,
            _ => PROBE_SPARE.longest,
        };
        let broker = self.broker_mut(id);
        broker.probing = false;
        broker.failures = broker.failures.saturating_add(1);
        broker.last_failure = Some(failure);
        broker.failed_at = Some(now);
        broker.thawed_at = None;
        match failure {
            Failure::Silent => broker.was_silent = true,
            // Another process will answer.
            Failure::ConnectionRefused => broker.was_silent = false,
            _ => {}
        }
        let pause = if alone { PROBE_ALONE } else { PROBE_SPARE };
        let pause = pause.delay(broker.failures, seed).min(most);
        broker.probe_at = now + pause;
        if broker.health == Health::Down {
            return;
        }
        if broker.health == Health::Up && now - broker.since < STABLE_AFTER {
            broker.flaps = broker.flaps.saturating_add(1);
            broker.held_until = Some(now + HOLD_DOWN.delay(broker.flaps, seed));
        } else {
            broker.flaps = 0;
            broker.held_until = None;
        }
        broker.health = Health::Down;
        broker.since = now;
        self.note_infos();
        self.changed = true;
        self.reconsider(now);
    }

    /// A link failed for a reason that concerns its trunk only: remembered for operators.
    pub fn note_failure(&mut self, id: BrokerId, failure: Failure) {
        self.broker_mut(id).last_failure = Some(failure);
    }

    /// The next broker to probe now: connect, read the INFO, close.
    pub fn poll_probe(&mut self, now: Instant) -> Option<BrokerId> {
        if self.troubles.due().is_some_and(|at| at <= now) {
            self.changed |= self.troubles.tick(now);
        }
        if self.lines_due().is_some_and(|at| at <= now) {
            self.forget_lines(now);
        }
        let looks = [self.failback_due(), self.steering_due()];
        if looks.into_iter().flatten().any(|at| at <= now) {
            self.reconsider(now);
        }
        let due = self
            .order
            .iter()
            .copied()
            .find(|&id| self.broker(id).probe_due().is_some_and(|at| at <= now))?;
        let broker = self.broker_mut(due);
        broker.probing = true;
        broker.looking = broker.has_links();
        Some(due)
    }

    /// When [`Roster::poll_probe`] will have something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let probes = self.brokers().filter_map(|(_, broker)| broker.probe_due());
        let others = [
            self.failback_due(),
            self.steering_due(),
            self.troubles.due(),
            self.lines_due(),
        ];
        probes.chain(others.into_iter().flatten()).min()
    }

    /// A broker turned a link away: all links of the bus, or those of `identity`, wait together.
    pub fn turn_away(
        &mut self,
        id: BrokerId,
        identity: Option<IdentityDigest>,
        cause: Failure,
        text: &[u8],
        now: Instant,
    ) {
        self.broker_mut(id).last_failure = Some(cause);
        if self.troubles.enter(id, identity, cause, text, now) {
            self.changed = true;
            self.reconsider(now);
        }
    }

    /// A broker refused a CONNECT.
    pub fn note_refusal(&mut self, id: BrokerId, now: Instant) {
        self.broker_mut(id).note_refusal(now);
    }

    /// A broker accepted this identity's CONNECT, `took` after that was written.
    pub fn note_acceptance(
        &mut self,
        id: BrokerId,
        identity: IdentityDigest,
        took: Duration,
        now: Instant,
    ) {
        self.broker_mut(id).note_acceptance(took, now);
        if self.troubles.end(id, identity) {
            self.changed = true;
        }
    }

    /// When this broker last gave a verdict on a CONNECT.
    pub fn last_verdict_at(&self, id: BrokerId) -> Option<Instant> {
        self.broker(id).last_verdict_at
    }

    /// The text with which every broker that lives turns this identity away, since when, and
    /// whether all are full: then nobody is served who isn't already.
    pub fn turned_away(&self, identity: IdentityDigest) -> Option<(&Trouble, bool)> {
        let mut last: Option<&Trouble> = None;
        let mut all_full = true;
        for (id, _) in self.brokers().filter(|(_, broker)| broker.accepts_dials()) {
            let trouble = self.troubles.of(id, identity).next()?;
            all_full &= trouble.cause == Failure::Full;
            if last.is_none_or(|last| last.since < trouble.since) {
                last = Some(trouble);
            }
        }
        last.map(|trouble| (trouble, all_full))
    }
}
