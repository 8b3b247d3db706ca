//! Snapshots for HTTP, taken from the worker at most every few milliseconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::worker::{Handle, Page};
use crate::admin::Source;
use crate::telemetry::{Event, Events, SessionSnapshot, Snapshot, SubscriptionSnapshot};

/// A snapshot that is younger than this is used again, so that a flood of requests costs
/// the worker at most a hundred snapshots a second.
const FRESH: Duration = Duration::from_millis(10);

/// Sessions that are asked for at once: between two pages the worker moves bytes.
const PAGE: usize = 128;
/// The same for sessions whose subscriptions are asked for, which may have many.
const SUBSCRIBERS: usize = 8;

/// Asks the worker.
pub(super) struct WorkerSource {
    handle: Handle,
    events: Arc<Events>,
    last: Mutex<Option<(Instant, Snapshot)>>,
}

impl WorkerSource {
    pub(super) fn new(handle: Handle, events: Arc<Events>) -> Self {
        Self {
            handle,
            events,
            last: Mutex::new(None),
        }
    }
}

impl Source for WorkerSource {
    async fn snapshot(&self) -> Option<Snapshot> {
        let mut last = self.last.lock().await;
        if let Some((taken, snapshot)) = last.as_ref()
            && taken.elapsed() < FRESH
        {
            return Some(snapshot.clone());
        }
        let snapshot = self.handle.snapshot().await?;
        *last = Some((Instant::now(), snapshot.clone()));
        Some(snapshot)
    }

    fn events(&self) -> Vec<Event> {
        self.events.after(0)
    }

    async fn sessions(&self) -> Option<Vec<SessionSnapshot>> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let page = Page { after, count: PAGE };
            let sessions = self.handle.sessions(page).await?;
            let is_last = sessions.len() < PAGE;
            after = sessions.last().map_or(after, |session| session.cid);
            all.extend(sessions);
            if is_last {
                return Some(all);
            }
        }
    }

    async fn subscriptions(&self, cids: &[u64]) -> Option<Vec<SubscriptionSnapshot>> {
        let mut all = Vec::new();
        for cids in cids.chunks(SUBSCRIBERS) {
            all.extend(self.handle.subscriptions(cids.to_vec()).await?);
        }
        Some(all)
    }
}
