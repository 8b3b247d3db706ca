//! The rate at which a session may ask for what is costly.

use std::time::Duration;

use crate::clock::Instant;

/// A token bucket: a session that has used it up isn't read until it has earned more.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u32,
    /// Up to when what was earned is in `left`.
    earned_at: Instant,
    /// The session isn't read until then.
    pub(super) until: Option<Instant>,
}

impl Allowance {
    /// A full one, of `most`.
    pub(super) fn new(most: u32, now: Instant) -> Self {
        Self {
            left: most,
            earned_at: now,
            until: None,
        }
    }

    /// Takes one where there is one, of `most` at once and one more after each `every`. Where there
    /// is none, returns when there will be `pause` of them; the session waits until then.
    pub(super) fn take(
        &mut self,
        most: u32,
        every: Duration,
        pause: u32,
        now: Instant,
    ) -> Option<Instant> {
        let since = now.saturating_duration_since(self.earned_at);
        let earned = since.as_nanos() / every.as_nanos();
        if earned >= u128::from(most - self.left.min(most)) {
            (self.left, self.earned_at) = (most, now);
        } else {
            let earned = earned as u32;
            self.left += earned;
            self.earned_at += every * earned;
        }
        if self.left == 0 {
            self.until = Some(self.earned_at + every * pause);
            return self.until;
        }
        self.left -= 1;
        None
    }

    /// Whether the session waits.
    pub(super) fn is_used_up(&self) -> bool {
        self.until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_is_earned_again_and_no_more_than_there_was() {
        const EVERY: Duration = Duration::from_millis(100);
        let start = Instant::now();
        let mut allowance = Allowance::new(2, start);
        let mut take = |ms: u64| {
            let now = start + Duration::from_millis(ms);
            let until = allowance.take(2, EVERY, 1, now);
            until.map(|until| until.saturating_duration_since(start).as_millis())
        };
        assert_eq!([0, 0, 0].map(&mut take), [None, None, Some(100)]);
        assert_eq!([150, 160].map(&mut take), [None, Some(200)]);
        assert_eq!([200, 10_000].map(&mut take), [None, None]);
        assert_eq!([10_000, 10_000].map(&mut take), [None, Some(10_100)]);
    }
}
