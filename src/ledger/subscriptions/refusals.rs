//! SUBs that a broker refuses, among those that no PONG has proven.

use super::places::Place;
use super::subscription::State;
use super::{Interest, Rejected, SessionId, Subscriptions, UpstreamSid};
use crate::ledger::own_sid::OwnSid;

impl Subscriptions {
    /// The PING with the number `answered` is: every SUB before it is in place, or was
    /// refused.
    pub fn prove(&mut self, answered: u64) {
        while self.unproven.front().is_some_and(|(by, _)| *by <= answered) {
            self.unproven.pop_front();
        }
    }

    /// All live SUBs were sent again on a new link, and the PING with the number
    /// `covered_by` will prove them.
    pub fn replayed(&mut self, covered_by: u64) {
        let sent: Vec<_> = self.live_sids().collect();
        self.unproven = sent.into_iter().map(|sid| (covered_by, sid)).collect();
    }

    /// A SUB that a replay left out was sent, and the PING with the number `covered_by` will prove
    /// it.
    pub fn expect(&mut self, upstream: UpstreamSid, covered_by: u64) {
        self.unproven.push_back((covered_by, upstream));
    }

    /// Removes a subscription that a broker refused, and says whose it was. Of several equal ones
    /// of a session, that is the newest.
    pub fn reject(&mut self, subject: &[u8], queue_group: Option<&[u8]>) -> Option<Rejected> {
        if self.joinable.is_some()
            && let Some(rejected) = self.reject_oldest(subject, queue_group)
        {
            return Some(rejected);
        }
        let refused = |slot: u32| {
            let interest = self.interest(slot);
            interest.is_some_and(|interest| {
                interest.subject == subject && interest.queue_group == queue_group
            })
        };
        let sent = self.unproven.iter().map(|(_, sid)| *sid);
        let slot = sent
            .rev()
            .filter(|sid| self.is_current(*sid))
            .map(|sid| sid.slot)
            .find(|&slot| refused(slot))
            // A reload took a permission away.
            .or_else(|| (0..self.places.len()).rev().find(|&slot| refused(slot)))?;
        self.reject_slot(slot)
    }

    /// The live subscriptions to this subject in this queue group.
    pub fn equal_to(&self, subject: &[u8], queue_group: Option<&[u8]>) -> Vec<UpstreamSid> {
        let is_equal = |interest: &Interest<'_>| {
            interest.subject == subject && interest.queue_group == queue_group
        };
        let live = self.iter().filter(|(_, interest)| is_equal(interest));
        live.map(|(upstream, _)| upstream).collect()
    }

    /// Removes the subscription that a broker named by its sid.
    pub fn reject_sid(&mut self, upstream: UpstreamSid) -> Option<Rejected> {
        let known = self.is_current(upstream) && self.interest(upstream.slot).is_some();
        if known {
            self.reject_slot(upstream.slot)
        } else {
            None
        }
    }

    pub(super) fn reject_slot(&mut self, slot: u32) -> Option<Rejected> {
        let upstream = self.places.get(slot).map(|_| self.places.upstream(slot))?;
        let mut owners = Vec::new();
        for member in self.members(slot) {
            let one = self.places[member].one();
            let Some(one) = one.filter(|one| one.state != State::Mute) else {
                continue;
            };
            let key = one.key();
            let is_leaving = one.state == State::Leaving;
            owners.push((one.session, one.sid().into()));
            self.by_sid.remove(&key);
            if is_leaving {
                self.release(member);
            }
        }
        match self.places[slot] {
            Place::Group(_) => self.release_group(slot),
            _ => self.release(slot),
        }
        Some(Rejected { upstream, owners })
    }

    /// Whether only the broker knows what a SUB of this sid will find: the sid is live here,
    /// but its SUB isn't proven (`answered` is the last PING that was), or its max may be
    /// reached by messages on their way.
    pub fn is_uncertain(&self, session: SessionId, sid: &[u8], answered: u64) -> bool {
        let slot = self.by_sid.get(&OwnSid::new(session, sid));
        let live = slot.and_then(|&slot| self.live(slot));
        live.is_some_and(|live| live.max > 0 || live.covered_by > answered)
    }
}
