//! The trunks that announce the host, where brokers are independent (R29).

use std::collections::{BTreeMap, BTreeSet};

use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::trouble::IdentityDigest;

/// Identities of a bus that announce its host, the oldest first.
const IDENTITIES_MOST: usize = 8;

/// The trunks with a link, by identity. The oldest of an identity may announce the host.
#[derive(Debug, Default)]
pub(super) struct Carriers(BTreeMap<IdentityDigest, BTreeSet<TrunkId>>);

impl Carriers {
    /// Enters a trunk that has a link. Returns whether it is new.
    pub(super) fn enter(&mut self, trunk: TrunkId, identity: IdentityDigest) -> bool {
        self.0.entry(identity).or_default().insert(trunk)
    }

    /// Removes a trunk that has no link any more.
    pub(super) fn leave(&mut self, trunk: TrunkId) {
        self.0.retain(|_, trunks| {
            trunks.remove(&trunk);
            !trunks.is_empty()
        });
    }

    /// Whether a trunk announces the host: the oldest of its identity, of the oldest identities
    /// that brokers permit to.
    pub(super) fn includes(
        &self,
        trunk: TrunkId,
        identity: IdentityDigest,
        permits: impl Fn(IdentityDigest) -> bool,
    ) -> bool {
        let oldest = self.0.get(&identity).and_then(BTreeSet::first);
        if oldest != Some(&trunk) || !permits(identity) {
            return false;
        }
        let elders = self
            .firsts(permits)
            .filter(|first| *first < trunk)
            .take(IDENTITIES_MOST);
        elders.count() < IDENTITIES_MOST
    }

    /// Whether `elder` announces the host for another identity than this one, so that one of the
    /// same account needn't. A trunk that is gone, or that an older one took over from, speaks for
    /// nobody, whenever its last announcement comes.
    pub(super) fn speaks_for(
        &self,
        elder: TrunkId,
        identity: IdentityDigest,
        permits: impl Fn(IdentityDigest) -> bool,
    ) -> bool {
        let mut others = self.0.iter().filter(|(other, _)| **other != identity);
        let of_elder = others.find(|(_, trunks)| trunks.contains(&elder));
        of_elder.is_some_and(|(other, _)| self.includes(elder, *other, permits))
    }

    /// The trunks of an identity.
    pub(super) fn of(&self, identity: IdentityDigest) -> impl Iterator<Item = TrunkId> {
        self.0.get(&identity).into_iter().flatten().copied()
    }

    /// The oldest trunks of the identities that brokers permit to announce: those that do, and
    /// those that did until an older one came.
    pub(super) fn oldest(&self, permits: impl Fn(IdentityDigest) -> bool) -> Vec<TrunkId> {
        let mut oldest: Vec<TrunkId> = self.firsts(permits).collect();
        oldest.sort_unstable();
        oldest.truncate(2 * IDENTITIES_MOST);
        oldest
    }

    fn firsts(&self, permits: impl Fn(IdentityDigest) -> bool) -> impl Iterator<Item = TrunkId> {
        let permitted = self.0.iter().filter(move |(id, _)| permits(**id));
        permitted.filter_map(|(_, trunks)| trunks.first().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YOUNG: TrunkId = TrunkId(7);
    const OLD: TrunkId = TrunkId(3);

    #[test]
    fn an_elder_speaks_for_other_identities_alone() {
        let mut carriers = Carriers::default();
        carriers.enter(YOUNG, 1);
        carriers.enter(OLD, 1);
        let all = |_| true;
        // The younger one announced until the older one came, and still hears.
        assert!(carriers.includes(OLD, 1, all));
        assert!(!carriers.speaks_for(OLD, 1, all), "it is its own");
        assert!(carriers.speaks_for(OLD, 2, all));
        assert!(!carriers.speaks_for(YOUNG, 2, all), "it doesn't any more");
        assert!(!carriers.speaks_for(OLD, 2, |identity| identity != 1));
        carriers.leave(OLD);
        assert!(!carriers.speaks_for(OLD, 2, all), "it is gone");
        assert!(carriers.speaks_for(YOUNG, 2, all));
    }
}
