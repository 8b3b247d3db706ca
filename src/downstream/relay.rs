//! Relays: links that are opened for components that may sign a broker's own nonce (R40).

use std::rc::Rc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::timeout;

use super::frontend::Frontend;
use super::places::Place;
use crate::clock::Instant;
use crate::net::now;
use crate::upstream::io::cell::TrunkCell;
use crate::upstream::io::pool::Pool;

/// How long a component waits for its INFO until a broker has said its own.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where natsmux holds keys, it opens relays for so long after a component signed with another.
const ARMED_FOR: Duration = Duration::from_secs(600);

/// A link that waits for its component's CONNECT; closed where it is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    pool: Rc<Pool>,
    cell: Option<Rc<TrunkCell>>,
    /// What the component is to sign.
    pub(super) nonce: Box<str>,
    place: Place,
}

impl Relay {
    /// The trunk, for its session; `None`: it gave way to others meanwhile.
    pub(super) fn take(mut self) -> Option<Rc<TrunkCell>> {
        let is_open = !self.place.ended.is_cancelled();
        if is_open { self.cell.take() } else { None }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            self.pool.close_relay(&cell, now());
        }
    }
}

impl Frontend {
    /// Whether a component that connects now may have to sign a broker's own nonce.
    pub(super) fn wants_relay(&self, now: Instant) -> bool {
        let bus = self.pool.bus.borrow();
        let wants = bus.relays_signatures() && bus.roster().is_alive();
        let asked = self.relay_asked_at.get();
        let is_armed = asked.is_some_and(|at| now.saturating_duration_since(at) < ARMED_FOR);
        wants && (bus.identities().is_empty() || is_armed)
    }

    /// A component signed with a key that natsmux doesn't hold.
    pub(super) fn arm_relays(&self, now: Instant) {
        self.relay_asked_at.set(Some(now));
    }

    /// Opens a link whose nonce a component may sign, where that may be.
    pub(super) async fn open_relay(self: &Rc<Self>) -> Option<Relay> {
        if !self.wants_relay(now()) {
            return None;
        }
        let begun = now();
        let place = timeout(PATIENCE, self.relays.enter()).await.ok()?;
        let left = PATIENCE.saturating_sub(now().saturating_duration_since(begun));
        let cell = self.pool.open_relay(now())?;
        let (pool, lost) = (Rc::clone(&self.pool), place.ended.clone());
        let closing = Rc::clone(&cell);
        spawn_local(async move {
            // It has given way, or its component is here: then this changes nothing.
            lost.cancelled().await;
            pool.close_relay(&closing, now());
        });
        let mut relay = Relay {
            pool: Rc::clone(&self.pool),
            cell: Some(Rc::clone(&cell)),
            nonce: Box::default(),
            place,
        };
        let greeted = timeout(left, self.pool.relay_greeted(&cell));
        relay.nonce = greeted.await.ok()??.into();
        Some(relay)
    }
}
