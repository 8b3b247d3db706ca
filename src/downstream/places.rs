//! Places for what comes ahead of a session: TLS handshakes with components, and links that wait for
//! their signature.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::clock::Instant;
use crate::net::now;

/// As many as this at once: each costs the worker time.
const MOST: usize = 64;
/// Where all places are taken, the oldest loses its own once it has had this long: who says half of a
/// handshake and no more keeps nobody out.
const GRACE: Duration = Duration::from_millis(250);

/// Those that are taken, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Places(RefCell<VecDeque<Entry>>);

#[derive(Debug)]
struct Entry {
    since: Instant,
    ended: CancellationToken,
}

/// One place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Rc<Places>,
    /// The place is another's now.
    pub(super) ended: CancellationToken,
}

impl Places {
    /// Waits for a place.
    pub(super) async fn enter(self: &Rc<Self>) -> Place {
        loop {
            match self.room(now()) {
                None => break,
                Some(pause) => sleep(pause).await,
            }
        }
        let ended = CancellationToken::new();
        self.0.borrow_mut().push_back(Entry {
            since: now(),
            ended: ended.clone(),
        });
        Place {
            places: Rc::clone(self),
            ended,
        }
    }

    /// `None` where there is room, which may have been made; else how long to wait.
    fn room(&self, now: Instant) -> Option<Duration> {
        let mut entries = self.0.borrow_mut();
        if entries.len() < MOST {
            return None;
        }
        let oldest = entries.front()?;
        let had = now.saturating_duration_since(oldest.since);
        if had < GRACE {
            return Some(GRACE - had);
        }
        oldest.ended.cancel();
        entries.pop_front();
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // One that lost its place isn't among them any more.
        self.ended.cancel();
        let mut entries = self.places.0.borrow_mut();
        entries.retain(|entry| !entry.ended.is_cancelled());
    }
}

#[cfg(all(test, not(feature = "turmoil")))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_too_many_loses_its_place() {
        let all = Rc::new(Places::default());
        let mut places = Vec::new();
        for _ in 0..MOST {
            places.push(all.enter().await);
        }
        let begun = tokio::time::Instant::now();
        let one_more = all.enter().await;
        assert!(begun.elapsed() >= GRACE, "a quick one may end by itself");
        assert!(places[0].ended.is_cancelled() && !places[1].ended.is_cancelled());
        drop(one_more);
        drop(places);
        assert!(all.0.borrow().is_empty());
    }
}
