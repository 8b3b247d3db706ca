//! The one clock of the drivers.

use crate::clock::Instant;

/// Now, as the runtime's timers see it: in a simulation that isn't the process's own time.
/// The machines are told the time by whoever calls them.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std().into()
}
