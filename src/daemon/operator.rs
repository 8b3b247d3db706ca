//! The control thread's part of an operator's commands: it waits for what takes a while (R42).

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::handle::Handle;
use super::order::{Done, Goal, Order};
use crate::admin::Source;
use crate::control::{Command, Operator, Refusal};
use crate::telemetry::SessionSnapshot;

/// The first and the longest pause between two looks at how far a move is.
const LOOK_FIRST: Duration = Duration::from_millis(10);
const LOOK_LONGEST: Duration = Duration::from_millis(200);
/// Commands that wait for a move at once: others have room beside them.
const WAITS: usize = 8;

/// A reload's result: what has changed, or why nothing did.
pub(super) type Reloaded = Result<Vec<String>, String>;

/// Reloads that are asked for.
pub(super) type Reloads = mpsc::Receiver<oneshot::Sender<Reloaded>>;

/// Carries commands out.
pub(super) struct WorkerOperator<S> {
    handle: Handle,
    source: S,
    reloads: mpsc::Sender<oneshot::Sender<Reloaded>>,
    waits: Semaphore,
}

impl<S: Source> WorkerOperator<S> {
    pub(super) fn new(handle: Handle, source: S) -> (Self, Reloads) {
        let (reloads, asked) = mpsc::channel(1);
        let operator = Self {
            handle,
            source,
            reloads,
            waits: Semaphore::new(WAITS),
        };
        (operator, asked)
    }

    async fn obey(&self, order: Order) -> Result<Vec<Done>, Refusal> {
        let done = self.handle.order(order).await;
        done.unwrap_or_else(|| Err(gone()))
    }

    /// Carries a move out, and waits until all links have moved, or for as long as was said.
    async fn obey_and_wait(&self, order: Order, within: Duration) -> Result<Value, Refusal> {
        let Ok(_place) = self.waits.try_acquire() else {
            let text = format!("{WAITS} moves are waited for already");
            return Err(Refusal::Unavailable(text));
        };
        let began = Instant::now();
        let drained = match &order {
            Order::Drain { broker, .. } => Some(broker.clone()),
            _ => None,
        };
        let begun = self.obey(order).await?;
        let goal = |done: &Done| match &drained {
            Some(broker) => Goal::Off(broker.clone()),
            None => Goal::At(done.to.clone()),
        };
        let goals: Vec<_> = begun
            .iter()
            .map(|done| (done.bus.clone(), goal(done)))
            .collect();
        let mut now = begun.clone();
        let mut pause = LOOK_FIRST;
        let waits = |done: &Done| done.left > 0 && !done.is_off;
        while now.iter().any(waits) && began.elapsed() < within {
            sleep(pause).await;
            pause = (2 * pause).min(LOOK_LONGEST);
            let goals = goals.clone();
            now = self.obey(Order::Look { goals }).await?;
        }
        let buses = begun.iter().map(|begun| {
            let end = now.iter().find(|done| done.bus == begun.bus);
            let left = end.map_or(0, |done| done.left);
            json!({
                "bus": begun.bus,
                "to": end.map_or(&begun.to, |done| &done.to),
                "moved": begun.left.saturating_sub(left),
                "left": left,
            })
        });
        let took = began.elapsed().as_millis() as u64;
        Ok(json!({ "buses": buses.collect::<Vec<_>>(), "took_ms": took }))
    }

    async fn sessions(&self, bus: Option<String>) -> Result<Value, Refusal> {
        if let Some(bus) = &bus {
            // An unknown one is an error, and no empty list.
            self.obey(Order::Find { bus: bus.clone() }).await?;
        }
        let sessions = self.source.sessions().await.ok_or_else(gone)?;
        let listed = sessions
            .iter()
            .filter(|session| bus.as_ref().is_none_or(|bus| session.bus == *bus))
            .map(session);
        Ok(json!({ "sessions": listed.collect::<Vec<_>>() }))
    }

    async fn reload(&self) -> Result<Value, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.reloads.send(reply).await.map_err(|_| gone())?;
        let changed = answer.await.map_err(|_| gone())?;
        changed
            .map(|changed| json!({ "changed": changed }))
            .map_err(Refusal::Conflict)
    }
}

impl<S: Source> Operator for WorkerOperator<S> {
    async fn run(&self, command: Command) -> Result<Value, Refusal> {
        match command {
            Command::Move { bus, to, within } => {
                self.obey_and_wait(Order::Move { bus, to }, within).await
            }
            Command::Drain {
                broker,
                bus,
                within,
            } => {
                let order = Order::Drain { broker, bus };
                self.obey_and_wait(order, within).await
            }
            Command::Undrain { broker, bus } => {
                let done = self.obey(Order::Undrain { broker, bus }).await?;
                let buses: Vec<_> = done.iter().filter(|done| done.is_new).collect();
                let buses: Vec<_> = buses.iter().map(|done| &done.bus).collect();
                Ok(json!({ "undrained": buses }))
            }
            Command::Pause { bus, lasts } => {
                let order = Order::Pause {
                    bus: bus.clone(),
                    lasts,
                };
                self.obey(order).await?;
                Ok(json!({ "bus": bus, "paused_for_ms": lasts.as_millis() as u64 }))
            }
            Command::Resume { bus } => {
                let done = self.obey(Order::Resume { bus: bus.clone() }).await?;
                let was_paused = done.iter().any(|done| done.is_new);
                Ok(json!({ "bus": bus, "was_paused": was_paused }))
            }
            Command::Sessions { bus } => self.sessions(bus).await,
            Command::Kill { cid } => {
                self.obey(Order::Kill { cid }).await?;
                Ok(json!({ "killed": cid }))
            }
            Command::Reload => self.reload().await,
        }
    }
}

/// A session for an operator. No secret.
fn session(session: &SessionSnapshot) -> Value {
    json!({
        "cid": session.cid,
        "bus": session.bus,
        "address": session.peer.to_string(),
        "name": session.name,
        "user": session.user,
        "identity": session.identity,
        "uid": session.uid,
        "unit": session.unit,
        "lang": session.lang,
        "version": session.version,
        "uptime_seconds": session.uptime.as_secs_f64(),
        "idle_seconds": session.idle.as_secs_f64(),
        "subscriptions": session.subscriptions,
        "pending_bytes": session.pending_bytes,
        "waiting": session.held,
        "in_msgs": session.in_msgs,
        "in_bytes": session.in_bytes,
        "out_msgs": session.out_msgs,
        "out_bytes": session.out_bytes,
        "broker": session.broker,
    })
}

fn gone() -> Refusal {
    Refusal::Unavailable("the worker doesn't answer".to_owned())
}
