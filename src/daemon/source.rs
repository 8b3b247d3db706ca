//! Snapshots for HTTP, taken from the worker at most every few milliseconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};

use super::handle::{Handle, SessionPage, SubscriptionPage};
use crate::admin::Source;
use crate::net::tls::ServerTls;
use crate::telemetry::{Event, Events, SessionSnapshot, Snapshot, SubscriptionSnapshot};

/// A snapshot that is younger than this is used again, so that a flood of requests costs
/// the worker at most a hundred snapshots a second.
const FRESH: Duration = Duration::from_millis(10);

/// Sessions that are asked for at once: between two pages the worker moves bytes.
const PAGE: usize = 32;
/// The most subscriptions in a page.
const SUBSCRIPTIONS: usize = 512;
/// A list of sessions that is younger than this is used again, so that a flood of requests
/// costs the worker at most ten walks a second.
const FRESH_LIST: Duration = Duration::from_millis(100);

/// Asks the worker.
pub(super) struct WorkerSource {
    handle: Handle,
    events: Arc<Events>,
    last: Mutex<Option<(Instant, Snapshot)>>,
    sessions: Mutex<Option<(Instant, Vec<SessionSnapshot>)>>,
    /// TLS of the HTTP listener, as of now.
    tls: Option<watch::Receiver<ServerTls>>,
}

impl WorkerSource {
    pub(super) fn new(
        handle: Handle,
        events: Arc<Events>,
        tls: Option<watch::Receiver<ServerTls>>,
    ) -> Self {
        Self {
            handle,
            events,
            last: Mutex::new(None),
            sessions: Mutex::new(None),
            tls,
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
        let mut snapshot = self.handle.snapshot().await?;
        snapshot.http_certificate_ends = self.tls.as_ref().and_then(|tls| tls.borrow().ends());
        *last = Some((Instant::now(), snapshot.clone()));
        Some(snapshot)
    }

    fn events(&self, after: u64) -> Vec<Arc<Event>> {
        self.events.after(after)
    }

    async fn event_behind(&self, after: u64) {
        self.events.wait_behind(after).await;
    }

    async fn sessions(&self) -> Option<Vec<SessionSnapshot>> {
        let mut kept = self.sessions.lock().await;
        if let Some((taken, sessions)) = kept.as_ref()
            && taken.elapsed() < FRESH_LIST
        {
            return Some(sessions.clone());
        }
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let page = SessionPage { after, count: PAGE };
            let sessions = self.handle.sessions(page).await?;
            let is_last = sessions.len() < PAGE;
            after = sessions.last().map_or(after, |session| session.cid);
            all.extend(sessions);
            if is_last {
                *kept = Some((Instant::now(), all.clone()));
                return Some(all);
            }
        }
    }

    async fn subscriptions(&self, cids: &[u64], most: usize) -> Option<Vec<SubscriptionSnapshot>> {
        let mut all = Vec::new();
        for &cid in cids {
            let mut after = None;
            loop {
                let left = most.saturating_sub(all.len());
                if left == 0 {
                    return Some(all);
                }
                let page = SubscriptionPage {
                    cid,
                    after,
                    count: left.min(SUBSCRIPTIONS),
                };
                let (subscriptions, last) = self.handle.subscriptions(page).await?;
                all.extend(subscriptions);
                if last.is_none() {
                    break;
                }
                after = last;
            }
        }
        Some(all)
    }
}
