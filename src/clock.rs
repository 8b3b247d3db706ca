//! Points in time that take eight bytes, also where there may be none: an idle session has some
//! thirty of them.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::{Add, AddAssign, Sub};
use std::sync::OnceLock;
use std::time::Duration;

/// A point in time, as [`std::time::Instant`] is one, to the nanosecond. Arithmetic saturates,
/// some decades from the start of the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(NonZeroU64);

/// The first point in time that was converted, and what it became: in the middle of what there
/// is, since a simulation may begin before it.
static BASE: OnceLock<std::time::Instant> = OnceLock::new();
const BASE_NANOS: u64 = 1 << 60;

impl Instant {
    /// Now.
    pub fn now() -> Self {
        std::time::Instant::now().into()
    }

    /// The time since `earlier`, or nothing where that is later.
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }

    fn from_nanos(nanos: u64) -> Self {
        Self(NonZeroU64::new(nanos).unwrap_or(NonZeroU64::MIN))
    }
}

impl From<std::time::Instant> for Instant {
    fn from(instant: std::time::Instant) -> Self {
        let base = *BASE.get_or_init(|| instant);
        let later = nanos(instant.saturating_duration_since(base));
        if later > 0 {
            return Self::from_nanos(BASE_NANOS.saturating_add(later));
        }
        let earlier = nanos(base.saturating_duration_since(instant));
        Self::from_nanos(BASE_NANOS.saturating_sub(earlier))
    }
}

impl From<Instant> for std::time::Instant {
    fn from(instant: Instant) -> Self {
        let nanos = instant.0.get();
        let base = *BASE.get_or_init(Self::now);
        if nanos >= BASE_NANOS {
            return base + Duration::from_nanos(nanos - BASE_NANOS);
        }
        let earlier = Duration::from_nanos(BASE_NANOS - nanos);
        base.checked_sub(earlier).unwrap_or(base)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self::from_nanos(self.0.get().saturating_sub(nanos(duration)))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::time::Instant::from(*self).fmt(f)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_takes_eight_bytes_or_none() {
        assert_eq!(size_of::<Option<Instant>>(), 8);
    }

    #[test]
    fn it_comes_back_as_it_was() {
        let std = std::time::Instant::now();
        for at in [std, std + SECOND, std - SECOND] {
            assert_eq!(std::time::Instant::from(Instant::from(at)), at);
        }
        assert!(Instant::from(std) < Instant::from(std + Duration::from_nanos(1)));
    }

    #[test]
    fn arithmetic_is_that_of_the_standard_library_and_saturates() {
        let now = Instant::now();
        assert_eq!((now + SECOND) - now, SECOND);
        assert_eq!(now - SECOND + SECOND, now);
        assert_eq!(now.saturating_duration_since(now + SECOND), Duration::ZERO);
        assert!(now + Duration::MAX > now + 100 * 365 * 24 * 3600 * SECOND);
        assert!(now - Duration::MAX < now - SECOND);
    }
}
