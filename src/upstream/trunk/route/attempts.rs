//! Attempts to get a link: which brokers failed the trunk or refused it, and when to try again.

use std::time::Duration;

use crate::clock::Instant;
use crate::upstream::brokers::backoff::Backoff;
use crate::upstream::brokers::roster::BrokerId;

/// Pause of a trunk that every broker turned away.
pub(super) const RETRY: Backoff = Backoff {
    first: Duration::from_millis(50),
    longest: Duration::from_secs(2),
};

/// A link that lived shorter than this counts as one of the attempts that failed: a broker
/// that accepts and hangs up must not be dialled in a tight loop.
pub(in crate::upstream::trunk) const BRIEF: Duration = Duration::from_millis(100);

/// The attempts since a link was last live for more than [`BRIEF`].
#[derive(Debug, Default)]
pub(in crate::upstream::trunk) struct Attempts {
    /// Since when a link is live again.
    live_since: Option<Instant>,
    /// The failure; mostly there is none.
    failed: Option<Box<Failed>>,
}

#[derive(Debug, Default)]
struct Failed {
    /// Brokers that failed this trunk, apart from those that the roster calls dead.
    avoid: Vec<BrokerId>,
    /// Brokers that refused its credentials, the first text, and when that was (R15).
    refused_by: Vec<BrokerId>,
    refusal: Option<(Box<[u8]>, Instant)>,
    /// Attempts that failed.
    failures: u32,
    /// When to try again, where nothing else says.
    retry_at: Option<Instant>,
}

impl Attempts {
    /// An attempt failed; where a broker did, it isn't to be asked again for a while.
    pub(in crate::upstream::trunk) fn fail(&mut self, broker: Option<BrokerId>) {
        let failed = self.failed.get_or_insert_default();
        failed.failures += 1;
        failed.avoid.extend(broker);
    }

    /// Attempts that failed since a link was live.
    pub(in crate::upstream::trunk) fn failures(&self) -> u32 {
        self.failed.as_ref().map_or(0, |failed| failed.failures)
    }

    /// A broker refused the credentials.
    pub(in crate::upstream::trunk) fn refuse(
        &mut self,
        broker: BrokerId,
        text: &[u8],
        now: Instant,
    ) {
        let failed = self.failed.get_or_insert_default();
        if !failed.refused_by.contains(&broker) {
            failed.refused_by.push(broker);
        }
        failed.refusal.get_or_insert_with(|| (text.into(), now));
    }

    /// A broker isn't to be asked again for a while.
    pub(in crate::upstream::trunk) fn avoid(&mut self, broker: BrokerId) {
        self.failed.get_or_insert_default().avoid.push(broker);
    }

    /// The brokers that aren't.
    pub(in crate::upstream::trunk) fn avoided(&self) -> impl Iterator<Item = BrokerId> {
        let failed = self.failed.iter();
        failed.flat_map(|failed| failed.avoid.iter().chain(&failed.refused_by).copied())
    }

    pub(in crate::upstream::trunk) fn is_refused_by(&self, broker: BrokerId) -> bool {
        let failed = self.failed.as_ref();
        failed.is_some_and(|failed| failed.refused_by.contains(&broker))
    }

    /// Since when the credentials are refused.
    pub(in crate::upstream::trunk) fn refused_since(&self) -> Option<Instant> {
        let (_, since) = self.failed.as_ref()?.refusal.as_ref()?;
        Some(*since)
    }

    pub(in crate::upstream::trunk) fn take_refusal(&mut self) -> Option<Box<[u8]>> {
        let (text, _) = self.failed.as_mut()?.refusal.take()?;
        Some(text)
    }

    pub(in crate::upstream::trunk) fn retry_at(&self) -> Option<Instant> {
        self.failed.as_ref()?.retry_at
    }

    /// Has those that are avoided asked again later, once; after `pause` of the attempts that
    /// failed.
    pub(in crate::upstream::trunk) fn retry_later(
        &mut self,
        now: Instant,
        pause: impl FnOnce(u32) -> Duration,
    ) {
        if let Some(failed) = &mut self.failed
            && !failed.avoid.is_empty()
            && failed.retry_at.is_none()
        {
            failed.retry_at = Some(now + pause(failed.failures));
        }
    }

    /// A broker is asked at once.
    pub(in crate::upstream::trunk) fn cancel_retry(&mut self) {
        if let Some(failed) = &mut self.failed {
            failed.retry_at = None;
        }
    }

    /// All that were avoided may be asked again.
    pub(in crate::upstream::trunk) fn retry(&mut self) {
        if let Some(failed) = &mut self.failed {
            failed.retry_at = None;
            failed.avoid.clear();
        }
    }

    /// A link is live. What failed before is forgotten unless that is over soon.
    pub(in crate::upstream::trunk) fn succeed(&mut self, now: Instant) {
        // A broker that hangs up soon is asked again at a steady pace: there may be no other.
        let avoid = self.failed.take().map_or(Vec::new(), |failed| failed.avoid);
        if !avoid.is_empty() {
            let failed = self.failed.get_or_insert_default();
            failed.avoid = avoid;
        }
        self.live_since = Some(now);
    }

    /// Another link is needed: a new round, where the last one's link lived for a while.
    pub(in crate::upstream::trunk) fn begin(&mut self, now: Instant) {
        let long = |since: Instant| now.saturating_duration_since(since) >= BRIEF;
        if self.live_since.take().is_some_and(long) {
            *self = Self::default();
        }
    }

    pub(in crate::upstream::trunk) fn forget_refusals(&mut self) {
        if let Some(failed) = &mut self.failed {
            failed.refused_by.clear();
            failed.refusal = None;
        }
    }
}
