//! The queue of commands between the control thread and the worker: nothing else crosses threads.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::files::Files;
use super::order::{Done, Order};
use crate::config::Config;
use crate::control::Refusal;
use crate::net::socket::Bound;
use crate::telemetry::{SessionSnapshot, Snapshot, SubscriptionSnapshot};

/// Commands that may wait.
const QUEUE: usize = 16;

/// Bound sockets by bus.
pub(super) type Listeners = BTreeMap<String, Vec<Bound>>;

/// The configuration that the worker starts with, or reloads to: then with the listeners of new
/// buses only.
pub(super) struct Start {
    pub(super) config: Config,
    /// Keys and certificates.
    pub(super) files: Files,
    pub(super) listeners: Listeners,
    pub(super) max_connections: usize,
    /// Of what is left to chance: the server's id, and the jitter of retries.
    pub(super) seed: u64,
}

/// The worker's end of the queue.
pub(super) type Commands = mpsc::Receiver<WorkerCommand>;

pub(super) enum WorkerCommand {
    Snapshot(oneshot::Sender<Snapshot>),
    Sessions(SessionPage, oneshot::Sender<Vec<SessionSnapshot>>),
    Subscriptions(SubscriptionPage, oneshot::Sender<SubscriptionList>),
    Reload(Box<Start>, oneshot::Sender<()>),
    /// The files of identities have changed.
    Renew(Box<Files>),
    Order(Order, oneshot::Sender<Result<Vec<Done>, Refusal>>),
    Drain(oneshot::Sender<()>),
}

/// Which sessions, in the order of their numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionPage {
    /// Those with larger numbers than this.
    pub(super) after: u64,
    /// At most this many of each bus.
    pub(super) count: usize,
}

/// Which subscriptions of one session, in the order of their sids.
#[derive(Clone, Debug)]
pub(super) struct SubscriptionPage {
    /// The session's number.
    pub(super) cid: u64,
    /// Those with larger sids than this.
    pub(super) after: Option<Box<[u8]>>,
    /// At most this many.
    pub(super) count: usize,
}

/// Subscriptions, and the sid of the last one where there may be more.
pub(super) type SubscriptionList = (Vec<SubscriptionSnapshot>, Option<Box<[u8]>>);

/// The control thread's end of the queue.
#[derive(Clone)]
pub(super) struct Handle {
    commands: mpsc::Sender<WorkerCommand>,
    stop: CancellationToken,
}

impl Handle {
    /// A queue's two ends.
    pub(super) fn new() -> (Self, Commands) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        (Self { commands, stop }, queue)
    }

    /// A snapshot; `None` where the worker is gone.
    pub(super) async fn snapshot(&self) -> Option<Snapshot> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(WorkerCommand::Snapshot(reply))
            .await
            .ok()?;
        answer.await.ok()
    }

    /// A page of sessions; `None` where the worker is gone.
    pub(super) async fn sessions(&self, page: SessionPage) -> Option<Vec<SessionSnapshot>> {
        let (reply, answer) = oneshot::channel();
        let command = WorkerCommand::Sessions(page, reply);
        self.commands.send(command).await.ok()?;
        answer.await.ok()
    }

    /// A page of a session's subscriptions; `None` where the worker is gone.
    pub(super) async fn subscriptions(&self, page: SubscriptionPage) -> Option<SubscriptionList> {
        let (reply, answer) = oneshot::channel();
        let command = WorkerCommand::Subscriptions(page, reply);
        self.commands.send(command).await.ok()?;
        answer.await.ok()
    }

    /// Applies a configuration that was checked against the running one.
    pub(super) async fn reload(&self, start: Start) {
        let (reply, answer) = oneshot::channel();
        let command = WorkerCommand::Reload(Box::new(start), reply);
        if self.commands.send(command).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// Takes over what the files of identities hold now.
    pub(super) async fn renew(&self, files: Files) {
        let command = WorkerCommand::Renew(Box::new(files));
        // Whoever is gone needs none.
        let _ = self.commands.send(command).await;
    }

    /// Carries an operator's order out; `None` where the worker is gone.
    pub(super) async fn order(&self, order: Order) -> Option<Result<Vec<Done>, Refusal>> {
        let (reply, answer) = oneshot::channel();
        let command = WorkerCommand::Order(order, reply);
        self.commands.send(command).await.ok()?;
        answer.await.ok()
    }

    /// Ready once every session is closed.
    pub(super) async fn drain(&self) {
        let (reply, answer) = oneshot::channel();
        if self
            .commands
            .send(WorkerCommand::Drain(reply))
            .await
            .is_ok()
        {
            let _ = answer.await;
        }
    }

    /// Ends the worker at once.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// Returns the token that ends the worker.
    pub(super) fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Ready once the worker has ended by itself, which it doesn't unless it panics.
    pub(super) async fn gone(&self) {
        self.commands.closed().await;
    }
}
