//! Asks again and again what the names of a bus's brokers mean: each address is a broker.
//!
//! A resolver may take long, and its answer is kept whenever it comes. Dials and probes go to
//! addresses that are known, and never wait for a name.

use std::rc::Rc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::pool::Pool;
use crate::config::BrokerAddr;
use crate::net::{names, now};
use crate::upstream::brokers::roster::Failure;

/// Between two questions, where brokers live.
const EVERY: Duration = Duration::from_secs(30);
/// The interval while the bus has no live broker, or a name has no address yet.
const SOON: Duration = Duration::from_secs(1);
/// How long one question may take.
const LONGEST: Duration = Duration::from_secs(60);

impl Pool {
    /// Resolves the bus's names for as long as it is configured.
    pub async fn resolve(self: Rc<Self>) {
        while !self.is_closed() {
            let names = self.bus.borrow().roster().names();
            let asked: Vec<_> = names
                .into_iter()
                .map(|name| spawn_local(Rc::clone(&self).resolve_one(name)))
                .collect();
            for one in asked {
                // A panic over an answer ends alone, and the name is asked again.
                let _ = one.await;
            }
            self.pause().await;
        }
    }

    /// Until the names are asked again: a bus that loses its last broker meanwhile can't wait, and a
    /// reload may bring new ones.
    async fn pause(&self) {
        let until = now() + EVERY;
        while now() < until {
            let is_reloaded = timeout(SOON, self.reloaded.notified()).await.is_ok();
            if is_reloaded || self.bus.borrow().roster().needs_names() {
                return;
            }
        }
    }

    async fn resolve_one(self: Rc<Self>, name: BrokerAddr) {
        let within = self.bus.borrow().settings().timings.connect_timeout;
        let mut asking = Box::pin(timeout(LONGEST, names::lookup(&name.host)));
        let answer = match timeout(within, &mut asking).await {
            Ok(answer) => answer,
            Err(_) => {
                // Until the answer comes, operators see what is waited for.
                self.name_failed(&name, Failure::NameTimeout);
                asking.await
            }
        };
        match answer {
            Ok(Ok(addrs)) => {
                let now = now();
                let mut bus = self.bus.borrow_mut();
                let changed = bus.roster_mut().set_addresses(&name, &addrs, now);
                let brokers = bus.roster().brokers().count();
                bus.presence_mut().set_brokers(brokers);
                drop(bus);
                if changed {
                    let (bus, name) = (&self.bus.name, name.to_string());
                    info!(bus, name, ?addrs, "name resolved");
                }
                self.wake_freed(now);
                self.wake_prober();
            }
            Ok(Err(error)) => {
                debug!(bus = self.bus.name, name = %name, %error, "name not resolved");
                self.name_failed(&name, Failure::NameNotFound);
            }
            Err(_) => self.name_failed(&name, Failure::NameTimeout),
        }
    }

    fn name_failed(&self, name: &BrokerAddr, failure: Failure) {
        let now = now();
        let news = self
            .bus
            .borrow_mut()
            .roster_mut()
            .name_failed(name, failure, now);
        if let Some(cause) = news {
            let (bus, cause) = (&self.bus.name, cause.as_str());
            warn!(bus, broker = %name, cause, "broker down");
        }
        self.wake_freed(now);
    }
}
