//! A worker on a simulated network (feature `turmoil`): all of the data path, without
//! signals, HTTP or threads.

use tokio::task::spawn_local;

use super::handle::{Handle, Listeners, Start};
use super::worker;
use super::{DaemonError, bind_bus};
use crate::config::Config;
use crate::telemetry::Snapshot;

/// Sessions that the worker takes.
const MAX_CONNECTIONS: usize = 1_000;

/// A worker that runs on the runtime of the task that started it.
pub struct Simulated {
    handle: Handle,
}

impl Simulated {
    /// Starts a worker. All that it leaves to chance comes from `seed`.
    ///
    /// # Errors
    /// [`DaemonError`], where an address can't be listened on, or a file can't be used.
    pub fn start(config: Config, seed: u64) -> Result<Self, DaemonError> {
        let mut listeners = Listeners::new();
        for bus in &config.buses {
            listeners.insert(bus.name.clone(), bind_bus(bus)?);
        }
        let files = super::read_files(&config)?;
        let start = Start {
            config,
            listeners,
            files,
            max_connections: MAX_CONNECTIONS,
            seed,
        };
        let (handle, queue) = Handle::new();
        spawn_local(worker::run(start, queue, handle.stopped()));
        Ok(Self { handle })
    }

    /// The picture of this moment; `None` where the worker is gone.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        self.handle.snapshot().await
    }

    /// Ready once every session is closed.
    pub async fn drain(&self) {
        self.handle.drain().await;
    }
}
