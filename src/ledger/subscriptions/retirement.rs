//! The end of subscriptions: unsubscribed, gone with their session, freed behind a fence.

use super::places::Place;
use super::subscription::{NO_GROUP, State};
use super::{Carried, Ended, SessionId, Subscriptions, UpstreamSid};
use crate::ledger::own_sid::OwnSid;

impl Subscriptions {
    /// Retires all that `session` has. The PING with the number `covered_by` will prove it.
    pub fn retire_session(&mut self, session: SessionId, covered_by: u64) -> Ended {
        let mut ended = Ended::default();
        for (key, slot) in self.owned(session) {
            let (own, group) = (self.places.upstream(slot), self.group_of(slot));
            self.retire(key, slot);
            if group == NO_GROUP {
                ended.unsubscribe.push(own);
            } else if self.leave(group, slot, covered_by) {
                ended.unsubscribe.push(self.places.upstream(group));
            } else {
                ended.left.push(own);
            }
        }
        ended
    }

    /// Ends all that `session` has on this trunk, to be [taken](Self::take_session) elsewhere
    /// once the PING with the number `covered_by` is answered: what comes until then counts.
    /// Names what is to be unsubscribed.
    pub fn depart(&mut self, session: SessionId, covered_by: u64) -> Vec<UpstreamSid> {
        let mut unsubscribe = Vec::new();
        for (_, slot) in self.owned(session) {
            self.unlist(slot);
            let group = self.group_of(slot);
            if let Some(one) = self.places[slot].one_mut() {
                one.state = State::Leaving;
            }
            if group == NO_GROUP {
                unsubscribe.push(self.places.upstream(slot));
            } else if self.leave(group, slot, covered_by) {
                unsubscribe.push(self.places.upstream(group));
            }
        }
        unsubscribe
    }

    /// Takes away all that `session` has.
    pub fn take_session(&mut self, session: SessionId) -> Vec<Carried> {
        let mut carried = Vec::new();
        for (key, slot) in self.owned(session) {
            self.by_sid.remove(&key);
            if let Some(one) = self.places[slot].one()
                && (one.max == 0 || one.delivered < one.max)
            {
                carried.push(Carried {
                    subject: one.subject().into(),
                    queue_group: one.queue_group().map(Box::from),
                    sid: one.sid().into(),
                    delivered: one.delivered,
                    max: one.max,
                });
            }
            self.release(slot);
        }
        carried
    }

    /// Several links have a retired subscription: each must be [forgotten](Self::forget) by.
    pub fn hold(&mut self, upstream: UpstreamSid, links: u32) {
        if !self.is_current(upstream) {
            return;
        }
        let holders = u16::try_from(links.saturating_sub(1)).unwrap_or(u16::MAX);
        match &mut self.places[upstream.slot] {
            Place::One(one) => one.holders = holders,
            Place::Group(group) => group.holders = holders,
            Place::Free { .. } => {}
        }
    }

    /// Frees what is retired: a fence behind its UNSUB was answered, or its link died.
    pub fn forget(&mut self, upstream: UpstreamSid) {
        if !self.is_current(upstream) {
            return;
        }
        match &mut self.places[upstream.slot] {
            Place::One(one) if matches!(one.state, State::Live | State::Leaving) => {}
            Place::One(one) if one.holders > 0 => one.holders -= 1,
            Place::One(_) => self.release(upstream.slot),
            Place::Group(group) if !group.is_retired => {}
            Place::Group(group) if group.holders > 0 => group.holders -= 1,
            Place::Group(_) => self.release_group(upstream.slot),
            Place::Free { .. } => {}
        }
    }

    /// Frees everything that is retired: its link is gone.
    pub fn forget_retired(&mut self) {
        for slot in 0..self.places.len() {
            match &self.places[slot] {
                Place::One(one) if matches!(one.state, State::Retired | State::Mute) => {
                    self.release(slot);
                }
                Place::Group(group) if group.is_retired => self.release_group(slot),
                _ => {}
            }
        }
    }

    /// Frees the slot of one subscription.
    pub(super) fn release(&mut self, slot: u32) {
        self.unlist(slot);
        let place = self.places[slot].take();
        let Place::One(one) = place else {
            return;
        };
        if one.state == State::Retired {
            let key = one.key();
            self.retired.remove(&key);
        }
        if one.group != NO_GROUP {
            self.drop_member(one.group, slot);
        }
        self.places.free(slot);
    }

    pub(super) fn retire(&mut self, key: OwnSid, slot: u32) {
        self.unlist(slot);
        self.by_sid.remove(&key);
        if let Some(one) = self.places[slot].one_mut() {
            one.state = State::Retired;
            self.retired.insert(key, slot);
        }
    }

    pub(super) fn mute_retired(&mut self, key: &OwnSid) {
        if let Some(slot) = self.retired.remove(key)
            && let Some(one) = self.places[slot].one_mut()
        {
            one.state = State::Mute;
        }
    }
}
