//! An operator's commands as the worker carries them out (R42).

use std::rc::Rc;

use tracing::info;

use super::order::{Done, Goal, Order};
use super::worker::Worker;
use crate::control::Refusal;
use crate::net::now;
use crate::upstream::SteeringError;
use crate::upstream::io::pool::Pool;

impl From<SteeringError> for Refusal {
    fn from(error: SteeringError) -> Self {
        let text = error.to_string();
        match error {
            SteeringError::Unknown(..) => Self::Unknown(text),
            SteeringError::Unusable(..) | SteeringError::Alone(_) | SteeringError::Ordered => {
                Self::Conflict(text)
            }
        }
    }
}

impl Worker {
    /// Carries an order out; nothing of it, where it is refused.
    pub(super) fn obey(&self, order: Order) -> Result<Vec<Done>, Refusal> {
        match order {
            Order::Move { bus, to } => {
                let pool = self.pool(&bus)?;
                let moved = pool
                    .bus
                    .borrow_mut()
                    .roster_mut()
                    .steer(to.as_deref(), now());
                moved.map_err(|error| at(&bus, error))?;
                let to = pool.in_use();
                Ok(vec![look(&pool, &Goal::At(to))])
            }
            Order::Drain { broker, bus } => self.drain_broker(&broker, bus.as_deref()),
            Order::Undrain { broker, bus } => {
                let undrain = |pool: &Pool| {
                    let mut bus = pool.bus.borrow_mut();
                    bus.roster_mut().undrain(&broker, now())
                };
                let (mut done, mut unknown) = (Vec::new(), None);
                for pool in self.pools(bus.as_deref())? {
                    match undrain(&pool) {
                        Ok(any) => done.push(settle(&pool, any)),
                        Err(error) => unknown = Some(at(&pool.bus.name, error)),
                    }
                }
                match unknown {
                    Some(refusal) if done.is_empty() => Err(refusal),
                    _ => Ok(done),
                }
            }
            Order::Pause { bus, lasts } => {
                let pool = self.pool(&bus)?;
                if self.is_draining() {
                    return Err(Refusal::Conflict("natsmux is about to end".to_owned()));
                }
                pool.bus.borrow_mut().pause(now() + lasts);
                pool.wake_prober();
                Ok(vec![settle(&pool, true)])
            }
            Order::Resume { bus } => {
                let pool = self.pool(&bus)?;
                let was_paused = pool.bus.borrow_mut().unpause();
                Ok(vec![settle(&pool, was_paused)])
            }
            Order::Find { bus } => self.pool(&bus).map(|_| Vec::new()),
            Order::Kill { cid } => self.kill(cid).map(|()| Vec::new()),
            Order::Look { goals } => {
                // One that a reload has removed meanwhile has nothing to move.
                let pools = goals
                    .iter()
                    .filter_map(|(bus, goal)| Some((self.pool(bus).ok()?, goal)));
                Ok(pools.map(|(pool, goal)| look(&pool, goal)).collect())
            }
        }
    }

    fn drain_broker(&self, broker: &str, bus: Option<&str>) -> Result<Vec<Done>, Refusal> {
        let mut drained: Vec<Rc<Pool>> = Vec::new();
        for pool in self.pools_with(broker, bus)? {
            let result = pool.bus.borrow_mut().roster_mut().drain(broker, now());
            if let Err(error) = result {
                for other in &drained {
                    // It was there a moment ago.
                    let _ = other.bus.borrow_mut().roster_mut().undrain(broker, now());
                    settle(other, false);
                }
                return Err(at(&pool.bus.name, error));
            }
            drained.push(pool);
        }
        let goal = Goal::Off(broker.to_owned());
        Ok(drained.iter().map(|pool| look(pool, &goal)).collect())
    }

    fn kill(&self, cid: u64) -> Result<(), Refusal> {
        let pools = self.frontends();
        let found = pools.iter().find_map(|frontend| {
            let info = frontend.connections.get(cid)?;
            Some((frontend, info))
        });
        let Some((frontend, info)) = found else {
            return Err(Refusal::Unknown(format!("no connection {cid}")));
        };
        let attachment = info.attachment.borrow().clone();
        let Some((cell, session)) = attachment else {
            let text = format!("connection {cid} hasn't got as far as a session");
            return Err(Refusal::Conflict(text));
        };
        info!(bus = frontend.pool.bus.name, cid, peer = %info.peer, "connection closed by command");
        frontend.pool.kill(&cell, session);
        Ok(())
    }

    fn pool(&self, bus: &str) -> Result<Rc<Pool>, Refusal> {
        let frontends = self.frontends();
        let mut found = frontends.iter().filter(|one| one.pool.bus.name == bus);
        found.next().map(|one| Rc::clone(&one.pool)).ok_or_else(|| {
            let names = frontends.iter().map(|one| &*one.pool.bus.name);
            let names = names.collect::<Vec<_>>().join(", ");
            Refusal::Unknown(format!("no bus {bus}; the buses are {names}"))
        })
    }

    /// All buses, or one.
    fn pools(&self, bus: Option<&str>) -> Result<Vec<Rc<Pool>>, Refusal> {
        if let Some(bus) = bus {
            return Ok(vec![self.pool(bus)?]);
        }
        let frontends = self.frontends();
        Ok(frontends.iter().map(|one| Rc::clone(&one.pool)).collect())
    }

    /// The buses that have a broker: of all, or of one.
    fn pools_with(&self, broker: &str, bus: Option<&str>) -> Result<Vec<Rc<Pool>>, Refusal> {
        let mut unknown = None;
        let mut found = Vec::new();
        for pool in self.pools(bus)? {
            let has_it = pool.bus.borrow().roster().find(broker).map(|_| ());
            match has_it {
                Ok(()) => found.push(pool),
                Err(error) => unknown = Some(at(&pool.bus.name, error)),
            }
        }
        match unknown {
            Some(refusal) if found.is_empty() => Err(refusal),
            _ => Ok(found),
        }
    }
}

fn at(bus: &str, error: SteeringError) -> Refusal {
    match Refusal::from(error) {
        Refusal::Conflict(text) => Refusal::Conflict(format!("bus {bus}: {text}")),
        Refusal::Unknown(text) => Refusal::Unknown(format!("bus {bus}: {text}")),
        other => other,
    }
}

/// Wakes whom an order concerns.
fn settle(pool: &Pool, is_new: bool) -> Done {
    pool.wake_freed(now());
    Done {
        bus: pool.bus.name.clone(),
        to: pool.in_use(),
        left: 0,
        is_off: false,
        is_new,
    }
}

/// Says how far a bus is.
fn look(pool: &Pool, goal: &Goal) -> Done {
    let done = settle(pool, true);
    let (left, is_off) = match goal {
        Goal::At(broker) => (pool.elsewhere(broker), done.to != *broker),
        Goal::Off(broker) => pool.at(broker),
    };
    let to = match goal {
        Goal::At(broker) => broker.clone(),
        Goal::Off(_) => done.to.clone(),
    };
    Done {
        to,
        left,
        is_off,
        ..done
    }
}
