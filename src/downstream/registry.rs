//! The connections that live, for monitoring.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use super::description::Description;
use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::net::Port;
use crate::upstream::io::cell::TrunkCell;

/// One connection.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// The number that the component was told, never used again.
    pub cid: u64,
    /// The component's address.
    pub peer: SocketAddr,
    /// When it was accepted.
    pub start: Instant,
    /// When something was last read from it.
    pub read_at: Cell<Instant>,
    /// Where it is, once it has a trunk.
    pub attachment: RefCell<Option<(Rc<TrunkCell>, SessionId)>>,
    /// Who it is, where the bus has identities.
    pub description: RefCell<Option<Box<Description>>>,
    /// A broker's nonce, where it was told that one.
    pub(super) nonce: OnceCell<Box<str>>,
    /// Its socket, once a task has it.
    pub(super) port: OnceCell<Rc<Port>>,
}

/// The connections of a bus, by their numbers.
#[derive(Debug, Default)]
pub struct Registry(RefCell<BTreeMap<u64, Rc<ConnectionInfo>>>);

impl Registry {
    /// Enters a connection, until the entry is dropped.
    pub(super) fn enter(self: &Rc<Self>, cid: u64, peer: SocketAddr, now: Instant) -> Registration {
        let info = Rc::new(ConnectionInfo {
            cid,
            peer,
            start: now,
            read_at: Cell::new(now),
            attachment: RefCell::new(None),
            description: RefCell::new(None),
            nonce: OnceCell::new(),
            port: OnceCell::new(),
        });
        self.0.borrow_mut().insert(cid, Rc::clone(&info));
        Registration {
            info,
            registry: Rc::clone(self),
        }
    }

    /// Up to `count` connections with numbers above `after`, in order.
    pub fn above(&self, after: u64, count: usize) -> Vec<Rc<ConnectionInfo>> {
        let known = self.0.borrow();
        let above = known.range(after.saturating_add(1)..);
        above.take(count).map(|(_, info)| Rc::clone(info)).collect()
    }

    /// Has each connection's task look at what all of them share.
    pub(super) fn wake_all(&self) {
        let known = self.0.borrow();
        let ports = known.values().filter_map(|info| info.port.get());
        ports.for_each(|port| port.wake());
    }

    /// The connection with this number.
    pub fn get(&self, cid: u64) -> Option<Rc<ConnectionInfo>> {
        self.0.borrow().get(&cid).cloned()
    }
}

/// A connection's place among the [`Registry`].
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) info: Rc<ConnectionInfo>,
    registry: Rc<Registry>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.0.borrow_mut().remove(&self.info.cid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_come_in_pages_and_go_when_they_end() {
        let registry = Rc::new(Registry::default());
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        let now = Instant::now();
        let mut entries: Vec<_> = (1..=5).map(|cid| registry.enter(cid, peer, now)).collect();
        let page = |after, count| -> Vec<u64> {
            let page = registry.above(after, count);
            page.iter().map(|info| info.cid).collect()
        };
        assert_eq!(page(0, 2), [1, 2]);
        assert_eq!(page(2, 9), [3, 4, 5]);
        assert_eq!(page(u64::MAX, 9), [0; 0]);
        entries.remove(2);
        assert!(registry.get(3).is_none() && registry.get(4).is_some());
        assert_eq!(page(2, 9), [4, 5]);
    }
}
