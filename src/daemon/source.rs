//! Snapshots for HTTP, taken from the worker at most every few milliseconds.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::worker::Handle;
use crate::admin::Source;
use crate::telemetry::Snapshot;

/// A snapshot that is younger than this is used again, so that a flood of requests costs
/// the worker at most a hundred snapshots a second.
const FRESH: Duration = Duration::from_millis(10);

/// Asks the worker.
pub(super) struct WorkerSource {
    handle: Handle,
    last: Mutex<Option<(Instant, Snapshot)>>,
}

impl WorkerSource {
    pub(super) fn new(handle: Handle) -> Self {
        Self {
            handle,
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
}
