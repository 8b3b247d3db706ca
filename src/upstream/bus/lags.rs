//! Components that lag on shared links, counted for the whole bus (R33): publishers that flood
//! wait for them.

use std::cell::Cell;
use std::time::Duration;

/// Pause of a publisher that floods while a component lags.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);
/// The longer pause while a component lags far.
const LONG_PAUSE: Duration = Duration::from_secs(1);

/// How far a component on a shared link lags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lag {
    /// It keeps up.
    #[default]
    None,
    /// More than an eighth of `max_pending` waits for it.
    Behind,
    /// More than half of `max_pending` waits for it.
    Far,
}

impl Lag {
    pub(crate) fn of(pending: usize, max_pending: usize) -> Self {
        match pending {
            _ if pending > max_pending / 2 => Self::Far,
            _ if pending > max_pending / 8 => Self::Behind,
            _ => Self::None,
        }
    }

    /// How long a publisher that floods waits.
    pub(crate) fn pause(self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Behind => PAUSE,
            Self::Far => LONG_PAUSE,
        }
    }
}

/// Counts the components of a bus that lag.
#[derive(Debug, Default)]
pub struct Lags {
    behind: Cell<usize>,
    far: Cell<usize>,
}

impl Lags {
    /// Whether any component lags.
    pub(crate) fn is_any(&self) -> bool {
        self.worst() > Lag::None
    }

    pub(crate) fn worst(&self) -> Lag {
        match (self.behind.get(), self.far.get()) {
            (_, 1..) => Lag::Far,
            (1.., _) => Lag::Behind,
            _ => Lag::None,
        }
    }

    fn count(&self, lag: Lag) -> Option<&Cell<usize>> {
        match lag {
            Lag::None => None,
            Lag::Behind => Some(&self.behind),
            Lag::Far => Some(&self.far),
        }
    }

    /// A component's lag changes.
    pub(crate) fn change(&self, from: Lag, to: Lag) {
        if from == to {
            return;
        }
        if let Some(count) = self.count(from) {
            count.set(count.get().saturating_sub(1));
        }
        if let Some(count) = self.count(to) {
            count.set(count.get() + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_lag_of_all_counts() {
        let lags = Lags::default();
        lags.change(Lag::None, Lag::Behind);
        lags.change(Lag::None, Lag::Behind);
        assert_eq!(lags.worst(), Lag::Behind);
        lags.change(Lag::Behind, Lag::Far);
        assert_eq!(lags.worst(), Lag::Far);
        lags.change(Lag::Far, Lag::None);
        assert_eq!(lags.worst(), Lag::Behind);
        lags.change(Lag::Behind, Lag::None);
        assert!(!lags.is_any());
    }
}
