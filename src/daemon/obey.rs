//! An operator's commands as the worker carries them out (R42).

use std::rc::Rc;

use tracing::info;

use super::order::{Done, Goal, Order};
use super::worker::Worker;
use crate::control::Refusal;
use crate::net::now;
use crate::upstream::io::pool::Pool;
use crate::upstream::{BrokerId, Roster, SteeringError};

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
                moved.map_err(|error| refusal(&bus, &error))?;
                let to = pool.in_use();
                Ok(vec![look(&pool, &Goal::At(to))])
            }
            Order::Drain { broker, bus } => self.drain_broker(&broker, bus.as_deref()),
            Order::Undrain { broker, bus } => {
                let undrained =
                    self.at_each(bus.as_deref(), |roster| roster.undrain(&broker, now()))?;
                let done = undrained.iter().map(|(pool, any)| settle(pool, *any));
                Ok(done.collect())
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
        // Of all, or of none.
        self.at_each(bus, |roster| roster.to_drain(broker))?;
        let drained = self.at_each(bus, |roster| roster.drain(broker, now()))?;
        let goal = Goal::Off(broker.to_owned());
        Ok(drained.iter().map(|(pool, ())| look(pool, &goal)).collect())
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

    /// Does something at each bus that has a broker: of all, or of one. Refused where none has it,
    /// and at the first that refuses.
    fn at_each<T>(
        &self,
        bus: Option<&str>,
        mut done: impl FnMut(&mut Roster) -> Result<T, SteeringError>,
    ) -> Result<Vec<(Rc<Pool>, T)>, Refusal> {
        let pools = match bus {
            Some(bus) => vec![self.pool(bus)?],
            None => {
                let frontends = self.frontends();
                frontends.iter().map(|one| Rc::clone(&one.pool)).collect()
            }
        };
        let (mut found, mut unknown) = (Vec::new(), None);
        for pool in pools {
            let result = done(pool.bus.borrow_mut().roster_mut());
            match result {
                Ok(value) => found.push((pool, value)),
                Err(error) => {
                    let refusal = refusal(&pool.bus.name, &error);
                    if !matches!(error, SteeringError::Unknown(..)) {
                        return Err(refusal);
                    }
                    unknown = Some(refusal);
                }
            }
        }
        match unknown {
            Some(refusal) if found.is_empty() => Err(refusal),
            _ => Ok(found),
        }
    }
}

fn refusal(bus: &str, error: &SteeringError) -> Refusal {
    let text = format!("bus {bus}: {error}");
    match error {
        SteeringError::Unknown(..) => Refusal::Unknown(text),
        SteeringError::Unusable(..) | SteeringError::Alone(_) | SteeringError::Ordered => {
            Refusal::Conflict(text)
        }
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
    let (Goal::At(broker) | Goal::Off(broker)) = goal;
    let there = pool.bus.borrow().roster().find(broker).unwrap_or_default();
    let is_there = |id: BrokerId| there.contains(&id);
    match goal {
        // A relay's component would notice.
        Goal::At(_) => Done {
            left: pool.count(|trunk| !trunk.is_relay() && trunk.uses(|id| !is_there(id))),
            is_off: done.to != *broker,
            to: broker.clone(),
            ..done
        },
        Goal::Off(_) => {
            let is_drained = |id: &BrokerId| pool.bus.borrow().roster().is_drained(*id);
            Done {
                left: pool.count(|trunk| trunk.uses(is_there)),
                is_off: !there.iter().any(is_drained),
                ..done
            }
        }
    }
}
