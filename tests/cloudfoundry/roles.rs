//! The components of Cloud Foundry v1, as far as their messages go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::books::{Books, Kind};
use crate::stand_in::{Message, Role, Wire};

/// How often things happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// A DEA tells routers its routes; 20 s in 2012.
    pub(crate) register: Duration,
    /// A router forgets a route that it didn't hear of for so long; 120 s in 2012.
    pub(crate) prune: Duration,
    /// A DEA's sign of life; 10 s in 2012.
    pub(crate) heartbeat: Duration,
    /// Between two wishes of a health manager, and between two requests of a gateway.
    pub(crate) request: Duration,
}

/// Due at steady times.
#[derive(Debug)]
struct Every {
    interval: Duration,
    next: Option<Instant>,
}

impl Every {
    fn new(interval: Duration) -> Self {
        Self {
            interval,
            next: None,
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next.is_none_or(|next| next <= now);
        if due {
            self.next = Some(now + self.interval);
        }
        due
    }
}

/// Hears of routes, and prunes those that nobody repeats.
pub(crate) struct Router {
    pub(crate) books: Books,
    pub(crate) pace: Pace,
    pub(crate) routes: BTreeMap<String, Instant>,
}

impl Role for Router {
    fn start(&mut self, wire: &mut Wire) {
        wire.subscribe("router.register", None);
        wire.subscribe("router.unregister", None);
        wire.publish("router.start", "{}");
    }

    fn handle(&mut self, message: &Message, _: &mut Wire) {
        if message.subject == "router.register" {
            self.books.note_registered();
            self.routes.insert(message.payload.clone(), Instant::now());
        }
    }

    fn tick(&mut self, now: Instant, _: &mut Wire) {
        let (prune, books) = (self.pace.prune, &self.books);
        self.routes.retain(|_, heard| {
            let fresh = now.saturating_duration_since(*heard) < prune;
            if !fresh {
                books.note_pruned();
            }
            fresh
        });
    }
}

/// Runs instances of applications.
pub(crate) struct Dea {
    id: String,
    books: Books,
    instances: BTreeSet<u64>,
    register: Every,
    heartbeat: Every,
}

/// Routes that a DEA keeps registered: those of its last instances.
const INSTANCES: usize = 5;

impl Dea {
    pub(crate) fn new(id: &str, books: &Books, pace: Pace) -> Self {
        Self {
            id: id.to_owned(),
            books: books.clone(),
            instances: BTreeSet::from([0]),
            register: Every::new(pace.register),
            heartbeat: Every::new(pace.heartbeat),
        }
    }

    fn register_all(&self, wire: &mut Wire) {
        // The first instance runs all the time; what routers know of the others may be pruned.
        let route = format!("{}.example.net", self.id);
        wire.publish("router.register", &route);
    }
}

impl Role for Dea {
    fn start(&mut self, wire: &mut Wire) {
        wire.subscribe("dea.discover", None);
        wire.subscribe(&format!("dea.{}.start", self.id), None);
        wire.subscribe("router.start", None);
    }

    fn handle(&mut self, message: &Message, wire: &mut Wire) {
        match (message.subject.as_str(), &message.reply) {
            ("dea.discover", Some(reply)) => wire.publish(reply, &self.id),
            ("router.start", _) => self.register_all(wire),
            _ => {
                self.books.handle(Kind::Start, message.number());
                self.instances.insert(message.number());
                if self.instances.len() > INSTANCES {
                    self.instances.pop_first();
                }
            }
        }
    }

    fn tick(&mut self, now: Instant, wire: &mut Wire) {
        if self.register.is_due(now) {
            self.register_all(wire);
        }
        if self.books.is_open() && self.heartbeat.is_due(now) {
            let number = self.books.send(Kind::Heartbeat);
            wire.publish("dea.heartbeat", &format!("{} {number}", self.id));
        }
    }
}

/// Has instances started where the health manager misses some: one of several does.
pub(crate) struct CloudController {
    pub(crate) books: Books,
    /// Inboxes on which DEAs offer themselves.
    pub(crate) offers: BTreeSet<u32>,
}

impl Role for CloudController {
    fn start(&mut self, wire: &mut Wire) {
        wire.subscribe("cloudcontrollers.hm.requests", Some("cc"));
    }

    fn handle(&mut self, message: &Message, wire: &mut Wire) {
        if message.subject == "cloudcontrollers.hm.requests" {
            self.books.handle(Kind::StartRequest, message.number());
            // The first DEA that answers gets it; the others' answers find no subscription.
            self.offers.insert(wire.request("dea.discover", "{}", 1));
        } else if self.offers.remove(&message.sid) {
            let number = self.books.send(Kind::Start);
            let subject = format!("dea.{}.start", message.payload);
            wire.publish(&subject, &format!("start {number}"));
        }
    }

    fn tick(&mut self, _: Instant, _: &mut Wire) {}
}

/// Hears signs of life, each at one of several, and asks for what is missing.
pub(crate) struct HealthManager {
    books: Books,
    wishes: Every,
}

impl HealthManager {
    pub(crate) fn new(books: &Books, pace: Pace) -> Self {
        Self {
            books: books.clone(),
            wishes: Every::new(pace.request),
        }
    }
}

impl Role for HealthManager {
    fn start(&mut self, wire: &mut Wire) {
        wire.subscribe("dea.heartbeat", Some("hm"));
    }

    fn handle(&mut self, message: &Message, _: &mut Wire) {
        self.books.handle(Kind::Heartbeat, message.number());
    }

    fn tick(&mut self, now: Instant, wire: &mut Wire) {
        if self.books.is_open() && self.wishes.is_due(now) {
            let number = self.books.send(Kind::StartRequest);
            wire.publish("cloudcontrollers.hm.requests", &format!("START {number}"));
        }
    }
}

/// Makes what gateways ask for: one of several does.
pub(crate) struct ServiceNode {
    pub(crate) books: Books,
}

impl Role for ServiceNode {
    fn start(&mut self, wire: &mut Wire) {
        wire.subscribe("MySQL.provision", Some("nodes"));
    }

    fn handle(&mut self, message: &Message, wire: &mut Wire) {
        self.books.handle(Kind::Provision, message.number());
        if let Some(reply) = &message.reply {
            let number = self.books.send(Kind::Provisioned);
            wire.publish(reply, &format!("credentials {number}"));
        }
    }

    fn tick(&mut self, _: Instant, _: &mut Wire) {}
}

/// Asks the nodes for services.
pub(crate) struct ServiceGateway {
    books: Books,
    requests: Every,
    /// Of the last requests; an answer that doesn't come leaves one behind.
    inboxes: BTreeSet<u32>,
}

/// Requests that a gateway waits for at a time.
const PENDING: usize = 1_000;

impl ServiceGateway {
    pub(crate) fn new(books: &Books, pace: Pace) -> Self {
        Self {
            books: books.clone(),
            requests: Every::new(pace.request),
            inboxes: BTreeSet::new(),
        }
    }
}

impl Role for ServiceGateway {
    fn start(&mut self, _: &mut Wire) {}

    fn handle(&mut self, message: &Message, _: &mut Wire) {
        self.books.handle(Kind::Provisioned, message.number());
        self.inboxes.remove(&message.sid);
    }

    fn tick(&mut self, now: Instant, wire: &mut Wire) {
        if self.books.is_open() && self.requests.is_due(now) {
            let number = self.books.send(Kind::Provision);
            let inbox = wire.request("MySQL.provision", &format!("provision {number}"), 1);
            self.inboxes.insert(inbox);
            if self.inboxes.len() > PENDING
                && let Some(oldest) = self.inboxes.pop_first()
            {
                wire.unsubscribe(oldest);
            }
        }
    }
}
