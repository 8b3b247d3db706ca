//! Which SUBs were too many, against a broker that knows its limit.

use std::collections::BTreeSet;

use natsmux::ledger::operations::OWN;
use natsmux::ledger::{Operations, UpstreamSid};

/// A connection at a broker with a limit, and what natsmux thinks of it.
#[derive(Default)]
struct Connection {
    limit: usize,
    at_broker: BTreeSet<UpstreamSid>,
    ledger: Operations,
    /// What natsmux takes to be subscribed.
    mine: Vec<UpstreamSid>,
    refused: Vec<UpstreamSid>,
    again: usize,
    ping: u64,
}

impl Connection {
    fn subscribe(&mut self, sid: UpstreamSid) {
        self.ledger.subscribe(sid, self.ping);
        if self.at_broker.len() < self.limit {
            self.at_broker.insert(sid);
        } else {
            self.refused.push(sid);
            self.ledger.count_too_many();
        }
    }

    fn unsubscribe(&mut self, sid: UpstreamSid) {
        self.ledger.unsubscribe(sid, self.ping);
        self.at_broker.remove(&sid);
    }

    /// A SUB of a sid that the broker has.
    fn subscribe_again(&mut self) {
        self.ledger.subscribe_again(self.ping);
        if self.at_broker.len() >= self.limit {
            self.again += 1;
            self.ledger.count_too_many();
        }
    }

    fn prove(&mut self) {
        let had_own = self.ledger.has_own();
        let too_many = self.ledger.prove(self.ping);
        self.ping += 1;
        assert_eq!(too_many.refused, self.refused);
        assert!(!too_many.for_own.contains(&OWN));
        let known = |sid: &UpstreamSid| self.refused.contains(sid);
        assert!(too_many.for_own.iter().all(known));
        if !had_own {
            assert_eq!(too_many.again, self.again);
            assert!(too_many.for_own.is_empty());
        }
        assert!(!self.ledger.has_unexplained());
        assert_eq!(self.ledger.has_own(), self.at_broker.contains(&OWN));
        self.mine.retain(|sid| !self.refused.contains(sid));
        self.refused.clear();
        self.again = 0;
    }
}

/// The limit and the operations that `data` spells, a byte each.
pub fn operations(data: &[u8]) {
    let Some((limit, operations)) = data.split_first() else {
        return;
    };
    let mut connection = Connection {
        limit: usize::from(limit % 12),
        ping: 1,
        ..Connection::default()
    };
    let mut slot = 0;
    for word in operations {
        let which = usize::from(word / 8);
        let known = connection.mine.len().max(1);
        match word % 8 {
            0..=2 => {
                slot += 1;
                let sid = UpstreamSid {
                    slot,
                    generation: 0,
                };
                connection.mine.push(sid);
                connection.subscribe(sid);
            }
            3 | 4 if !connection.mine.is_empty() => {
                let sid = connection.mine.remove(which % known);
                connection.unsubscribe(sid);
            }
            5 => {
                let sid = connection.mine.get(which % known);
                if sid.is_some_and(|sid| connection.at_broker.contains(sid)) {
                    connection.subscribe_again();
                }
            }
            6 if connection.at_broker.contains(&OWN) => connection.unsubscribe(OWN),
            6 if !connection.ledger.has_own() => connection.subscribe(OWN),
            _ => connection.prove(),
        }
    }
    connection.prove();
}
