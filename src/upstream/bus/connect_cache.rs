//! CONNECTs of sessions, each kept once for all that sent an equal one: in a fleet, most did.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::rc::{Rc, Weak};

use crate::proto::connect::ConnectInfo;

/// Entries that aren't swept for the dead among them.
const FEW: usize = 64;

/// The CONNECTs of a bus's sessions. It keeps none alive.
#[derive(Debug, Default)]
pub(super) struct ConnectCache {
    known: HashMap<u64, Weak<ConnectInfo>>,
    /// Random, so that nobody can choose what is taken for the same key.
    salt: RandomState,
    /// Once there are more entries, those of sessions that are gone are removed.
    sweep_above: usize,
}

impl ConnectCache {
    /// One that is equal to `connect`, the same for all that are.
    pub(super) fn share(&mut self, connect: ConnectInfo) -> Rc<ConnectInfo> {
        let key = self.salt.hash_one(&connect);
        let known = self.known.get(&key).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| **known == connect) {
            return known;
        }
        if self.known.len() > self.sweep_above {
            self.known.retain(|_, known| known.strong_count() > 0);
            self.sweep_above = (2 * self.known.len()).max(FEW);
        }
        let connect = Rc::new(connect);
        self.known.insert(key, Rc::downgrade(&connect));
        connect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: usize) -> ConnectInfo {
        ConnectInfo {
            name: Some(format!("component {name}")),
            ..ConnectInfo::default()
        }
    }

    #[test]
    fn equal_ones_are_the_same_while_one_of_them_lives() {
        let mut connects = ConnectCache::default();
        let first = connects.share(named(1));
        assert!(Rc::ptr_eq(&first, &connects.share(named(1))));
        let other = connects.share(named(2));
        assert_eq!((&*first, &*other), (&named(1), &named(2)));
        assert_eq!(Rc::strong_count(&first), 1, "it is kept by nobody else");
        drop(first);
        assert_eq!(*connects.share(named(1)), named(1));
    }

    #[test]
    fn those_of_sessions_that_are_gone_are_forgotten() {
        let mut connects = ConnectCache::default();
        let kept = connects.share(named(0));
        for name in 1..10_000 {
            connects.share(named(name));
        }
        assert!(connects.known.len() <= FEW + 2, "{}", connects.known.len());
        assert!(Rc::ptr_eq(&kept, &connects.share(named(0))));
    }
}
