//! What monitoring sees of a connection while it lives.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::net::Port;
use crate::upstream::pool::TrunkCell;

/// One connection.
#[derive(Debug)]
pub struct Card {
    /// The number that the component was told, never used again.
    pub cid: u64,
    /// The component's address.
    pub peer: SocketAddr,
    /// When it was accepted.
    pub start: Instant,
    /// When something was last read from it.
    pub read_at: Cell<Instant>,
    /// Where it is, once it has a trunk.
    pub home: RefCell<Option<(Rc<TrunkCell>, SessionId)>>,
    /// Its socket, once a task has it.
    pub(super) port: OnceCell<Rc<Port>>,
}

/// The connections of a bus, by their numbers.
#[derive(Debug, Default)]
pub struct Cards(RefCell<BTreeMap<u64, Rc<Card>>>);

impl Cards {
    /// Enters a connection, until the entry is dropped.
    pub(super) fn enter(self: &Rc<Self>, cid: u64, peer: SocketAddr, now: Instant) -> Entry {
        let card = Rc::new(Card {
            cid,
            peer,
            start: now,
            read_at: Cell::new(now),
            home: RefCell::new(None),
            port: OnceCell::new(),
        });
        self.0.borrow_mut().insert(cid, Rc::clone(&card));
        Entry {
            card,
            cards: Rc::clone(self),
        }
    }

    /// Up to `count` connections with numbers above `after`, in order.
    pub fn above(&self, after: u64, count: usize) -> Vec<Rc<Card>> {
        let cards = self.0.borrow();
        let above = cards.range(after.saturating_add(1)..);
        above.take(count).map(|(_, card)| Rc::clone(card)).collect()
    }

    /// Has each connection's task look at what all of them share.
    pub(super) fn wake_all(&self) {
        let cards = self.0.borrow();
        let ports = cards.values().filter_map(|card| card.port.get());
        ports.for_each(|port| port.wake());
    }

    /// The connection with this number.
    pub fn get(&self, cid: u64) -> Option<Rc<Card>> {
        self.0.borrow().get(&cid).cloned()
    }
}

/// A connection's place among the [`Cards`].
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) card: Rc<Card>,
    cards: Rc<Cards>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.cards.0.borrow_mut().remove(&self.card.cid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_come_in_pages_and_go_with_their_connections() {
        let cards = Rc::new(Cards::default());
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        let now = Instant::now();
        let mut entries: Vec<_> = (1..=5).map(|cid| cards.enter(cid, peer, now)).collect();
        let page = |after, count| -> Vec<u64> {
            let cards = cards.above(after, count);
            cards.iter().map(|card| card.cid).collect()
        };
        assert_eq!(page(0, 2), [1, 2]);
        assert_eq!(page(2, 9), [3, 4, 5]);
        assert_eq!(page(u64::MAX, 9), [0; 0]);
        entries.remove(2);
        assert!(cards.get(3).is_none() && cards.get(4).is_some());
        assert_eq!(page(2, 9), [4, 5]);
    }
}
