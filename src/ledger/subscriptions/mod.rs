//! Subscriptions of all sessions, and how much of each was delivered.
//!
//! A subscription that was unsubscribed stays as *retired* until a fence behind the UNSUB
//! is answered: what the broker sent before it processed the UNSUB is still delivered, as a
//! client that drains expects. A retired sid that the component uses again goes silent.
//!
//! Where sessions share a trunk, equal plain subscriptions of different sessions are *members*
//! of a group, which has one upstream sid (R23). A member comes and goes in silence: the PING
//! that marks the place of its SUB or UNSUB among the link's operations says from where and up
//! to where it gets messages.

mod group;
mod places;
mod refusals;
mod retirement;
mod sharing;
mod subscription;

use std::collections::BTreeMap;
use std::ops::Bound;

use group::Joinable;
pub use group::{Seen, Spent};
use places::{Place, Places};
pub use subscription::{
    Carried, Ended, Interest, Rejected, Subscribed, Subscription, Unsubscribed,
};
use subscription::{NO_GROUP, State};

use super::own_sid::OwnSid;
use super::text::Words;
use super::{SessionId, UpstreamSid};
use crate::proto::subject;
use crate::queue::Queue;

/// The table of a trunk.
#[derive(Debug, Default)]
pub struct Subscriptions {
    places: Places,
    /// Live subscriptions by session and the component's sid.
    by_sid: BTreeMap<OwnSid, u32>,
    /// Retired subscriptions that still deliver, by session and the component's sid.
    retired: BTreeMap<OwnSid, u32>,
    /// SUBs that no PONG has proven, in the order in which they were sent, each with the
    /// number of the first PING that covers it: a broker's refusal is about one of these.
    unproven: Queue<(u64, UpstreamSid)>,
    /// Of a shared trunk: what others may join.
    joinable: Option<Box<Joinable>>,
}

/// Returns a session's subscriptions, in the order of their sids.
fn entries(
    map: &BTreeMap<OwnSid, u32>,
    session: SessionId,
) -> impl Iterator<Item = (&OwnSid, &u32)> {
    map.range(OwnSid::least(session)..)
        .take_while(move |(key, _)| key.session() == session)
}

impl Subscriptions {
    /// Number of live subscriptions.
    pub fn len(&self) -> usize {
        self.by_sid.len()
    }

    /// Whether there is no live subscription.
    pub fn is_empty(&self) -> bool {
        self.by_sid.is_empty()
    }

    /// Whether `session` has a live subscription.
    pub fn has_any(&self, session: SessionId) -> bool {
        entries(&self.by_sid, session).next().is_some()
    }

    /// The live subscriptions of a session with sids above `after`, in the order of their
    /// sids.
    pub fn of(
        &self,
        session: SessionId,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = &Subscription> {
        let from = match after {
            None => Bound::Included(OwnSid::least(session)),
            Some(sid) => Bound::Excluded(OwnSid::new(session, sid)),
        };
        self.by_sid
            .range((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.session() == session)
            .filter_map(|(_, slot)| self.live(*slot))
    }

    /// Enters a SUB, which the PING with the number `covered_by` will prove.
    pub fn subscribe(
        &mut self,
        session: SessionId,
        subject: &[u8],
        queue_group: Option<&[u8]>,
        sid: &[u8],
        covered_by: u64,
    ) -> Subscribed {
        let key = OwnSid::new(session, sid);
        if let Some(&slot) = self.by_sid.get(&key) {
            let one = self.live(slot);
            return Subscribed::Duplicate {
                upstream: self.places.upstream(self.carrier(slot)),
                limited: one.is_some_and(|one| one.max > 0),
            };
        }
        self.mute_retired(&key);
        let joins = match queue_group {
            None => self.find_joinable(session, subject),
            Some(_) => None,
        };
        if let Some(group) = joins {
            self.make_group(group);
        }
        let queue_group = queue_group.unwrap_or_default();
        let subscription = Subscription {
            generation: 0,
            session,
            text: Words::new(subject, queue_group, sid),
            delivered: 0,
            base: 0,
            max: 0,
            covered_by,
            holders: 0,
            group: joins.unwrap_or(NO_GROUP),
            state: State::Live,
        };
        let upstream = self.places.insert(subscription);
        self.by_sid.insert(key, upstream.slot);
        if let Some(group) = joins {
            self.join(group, upstream.slot, covered_by);
            return Subscribed::Joined;
        }
        if queue_group.is_empty()
            && let Some(joinable) = &mut self.joinable
        {
            joinable.list(subject, upstream.slot);
        }
        self.unproven.push_back((covered_by, upstream));
        Subscribed::New(upstream)
    }

    /// A subscription was delivered this much on another trunk.
    pub fn note_delivered(&mut self, session: SessionId, sid: &[u8], delivered: u64) {
        let slot = self.by_sid.get(&OwnSid::new(session, sid));
        if let Some(&slot) = slot
            && let Some(one) = self.places[slot].one_mut()
        {
            (one.delivered, one.base) = (delivered, delivered);
        }
    }

    /// Enters an UNSUB. `max` counts deliveries since the SUB; `None` and 0 remove at once. The
    /// PING with the number `covered_by` will prove it.
    pub fn unsubscribe(
        &mut self,
        session: SessionId,
        sid: &[u8],
        max: Option<u64>,
        covered_by: u64,
    ) -> Unsubscribed {
        let key = OwnSid::new(session, sid);
        let Some(&slot) = self.by_sid.get(&key) else {
            return Unsubscribed::Unknown;
        };
        let upstream = self.places.upstream(slot);
        let Some(one) = self.places[slot].one_mut() else {
            return Unsubscribed::Unknown;
        };
        let max = max.unwrap_or(0);
        if max > one.delivered {
            one.max = max;
            return match one.group {
                NO_GROUP => Unsubscribed::Limited(upstream, max - one.base),
                _ => Unsubscribed::Counted,
            };
        }
        let group = one.group;
        self.retire(key, slot);
        if group == NO_GROUP {
            return Unsubscribed::Retired(upstream);
        }
        if self.leave(group, slot, covered_by) {
            Unsubscribed::Retired(self.places.upstream(group))
        } else {
            Unsubscribed::Left(upstream)
        }
    }

    /// Counts a message that a broker sent for `upstream` on a link that has come as far as
    /// `seen`, and says `to` whom it goes, each under the session's own sid. With `counts` false
    /// (a no-responders status) it isn't counted towards a max. `None`: nobody has this sid.
    pub fn deliver(
        &mut self,
        upstream: UpstreamSid,
        counts: bool,
        seen: Seen,
        mut to: impl FnMut(SessionId, &[u8]),
    ) -> Option<Spent> {
        let one = match self.places.get_mut(upstream.slot)? {
            Place::One(one) if one.generation == upstream.generation => one,
            Place::Group(group) if group.generation == upstream.generation => {
                return Some(self.deliver_to_group(upstream, counts, seen, to));
            }
            _ => return None,
        };
        if one.state == State::Mute || one.group != NO_GROUP {
            return None;
        }
        one.delivered += u64::from(counts);
        let at_max = one.max > 0 && one.delivered >= one.max;
        to(one.session, one.sid());
        if !at_max || one.state != State::Live {
            return Some(Spent::Nothing);
        }
        one.state = State::Retired;
        let key = one.key();
        self.unlist(upstream.slot);
        self.by_sid.remove(&key);
        self.retired.insert(key, upstream.slot);
        Some(Spent::One(upstream))
    }

    /// Whether more than one session may get what a broker sends for it.
    pub fn is_shared(&self, upstream: UpstreamSid) -> bool {
        matches!(self.places.get(upstream.slot), Some(Place::Group(_)))
    }

    fn owned(&self, session: SessionId) -> Vec<(OwnSid, u32)> {
        entries(&self.by_sid, session)
            .map(|(key, slot)| (key.clone(), *slot))
            .collect()
    }

    /// Whether `upstream` names a subscription of this table, live or retired.
    pub fn knows(&self, upstream: UpstreamSid) -> bool {
        let place = self.places.get(upstream.slot);
        let is_used = place.is_some_and(|place| !matches!(place, Place::Free { .. }));
        is_used && self.is_current(upstream)
    }

    fn is_current(&self, sid: UpstreamSid) -> bool {
        let slot = self.places.get(sid.slot);
        slot.is_some_and(|slot| slot.generation() == sid.generation)
    }

    /// The SUB of a live subscription, with what is left of its max.
    pub fn interest_of(&self, upstream: UpstreamSid) -> Option<Interest<'_>> {
        self.interest(upstream.slot)
            .filter(|_| self.is_current(upstream))
    }

    /// The sessions that have a live subscription.
    pub fn sessions_of(&self, upstream: UpstreamSid) -> Vec<SessionId> {
        if !self.is_current(upstream) {
            return Vec::new();
        }
        let members = self.members(upstream.slot).into_iter();
        members
            .filter_map(|slot| Some(self.live(slot)?.session))
            .collect()
    }

    /// The subject of a live subscription.
    pub fn subject(&self, upstream: UpstreamSid) -> Option<&[u8]> {
        let live = self
            .live(upstream.slot)
            .filter(|_| self.is_current(upstream));
        Some(live?.subject())
    }

    /// How many deliveries are left of a live subscription that has a max.
    pub fn left(&self, upstream: UpstreamSid) -> Option<u64> {
        let live = self
            .live(upstream.slot)
            .filter(|_| self.is_current(upstream));
        live?.left()
    }

    /// Whether a subscription has got its max, and whatever comes is over it.
    pub fn is_over(&self, upstream: UpstreamSid) -> bool {
        let known = self.is_current(upstream);
        let slot = self.places.get(upstream.slot).filter(|_| known);
        slot.and_then(|slot| slot.one())
            .is_some_and(|found| found.max > 0 && found.delivered >= found.max)
    }

    /// The session's plain subscription that a broker would choose for a status on `reply`: its
    /// list has full wildcards before partial ones, and those before literals. Gives its sid.
    pub fn answered_by(&self, session: SessionId, reply: &[u8]) -> Option<&[u8]> {
        let one = |(_, slot): (&OwnSid, &u32)| self.places[*slot].one();
        let own = entries(&self.by_sid, session).filter_map(one);
        let retired = entries(&self.retired, session).filter_map(one);
        // One that was ended, and perhaps not yet at the broker, may be what it chose.
        let all = own.chain(retired);
        let plain = all.filter(|one| one.queue_group().is_none());
        plain
            .filter(|one| subject::matches(one.subject(), reply))
            .min_by_key(|one| {
                let tokens = one.subject().split(|&byte| byte == b'.');
                let rank = |token: &[u8]| match token {
                    b">" => 0,
                    b"*" => 1,
                    _ => 2,
                };
                tokens.map(rank).collect::<Vec<u8>>()
            })
            .map(Subscription::sid)
    }

    /// The plain subscription of a session alone that gets what comes to `reply`: the one to that
    /// very subject, or one with wildcards. `last` is the one that did last, and `most` bounds how
    /// many are looked at. Returns how many were, as well.
    pub fn find_reply(
        &self,
        session: SessionId,
        reply: &[u8],
        last: Option<UpstreamSid>,
        most: usize,
    ) -> (Option<UpstreamSid>, usize) {
        let is_apt = |one: &Subscription| {
            let is_alone = one.session == session && one.group == NO_GROUP;
            is_alone && one.queue_group().is_none()
        };
        let is_wild = |subject: &[u8]| subject.iter().any(|byte| matches!(byte, b'*' | b'>'));
        let gets = |one: &Subscription| {
            let is_it = one.subject() == reply;
            is_it || (is_wild(one.subject()) && subject::matches(one.subject(), reply))
        };
        let known = |upstream: &UpstreamSid| {
            let one = self
                .live(upstream.slot)
                .filter(|_| self.is_current(*upstream));
            one.is_some_and(|one| is_apt(one) && gets(one))
        };
        if let Some(last) = last.filter(known) {
            return (Some(last), 1);
        }
        let (mut found, mut looks) = (None, 0);
        for (_, slot) in entries(&self.by_sid, session).take(most) {
            looks += 1;
            let Some(one) = self.live(*slot).filter(|one| is_apt(one) && gets(one)) else {
                continue;
            };
            let upstream = self.places.upstream(*slot);
            if one.subject() == reply {
                return (Some(upstream), looks);
            }
            found = found.or(Some(upstream));
        }
        (found, looks)
    }

    /// Whether its component calls a live subscription so.
    pub fn is_named(&self, upstream: UpstreamSid, sid: &[u8]) -> bool {
        let one = self
            .live(upstream.slot)
            .filter(|_| self.is_current(upstream));
        one.is_some_and(|one| one.sid() == sid)
    }

    /// Returns every interest that brokers must know, by its name upstream.
    pub fn iter(&self) -> impl Iterator<Item = (UpstreamSid, Interest<'_>)> {
        self.places.iter().filter_map(|(slot, place)| {
            let interest = place.interest()?;
            let generation = place.generation();
            Some((UpstreamSid { slot, generation }, interest))
        })
    }

    /// Before a replay on a link that is the only one, where the broker's counts begin at zero:
    /// what was delivered so far becomes the base of all live subscriptions.
    pub fn rebase(&mut self) {
        for slot in self.places.iter_mut() {
            match slot {
                Place::One(one) if one.state == State::Live => {
                    one.base = one.delivered;
                    one.covered_by = 0;
                }
                Place::Group(group) => {
                    for member in &mut group.members {
                        member.joined = 0;
                    }
                }
                _ => {}
            }
        }
    }

    /// Behind a planned move: what the broker of the present link `has` counted of each
    /// subscription.
    pub fn rebase_by(&mut self, has: impl Fn(UpstreamSid) -> u64) {
        for slot in 0..self.places.len() {
            let upstream = self.places.upstream(slot);
            if let Some(one) = self.places[slot].one_mut()
                && one.state == State::Live
            {
                one.base = one.delivered.saturating_sub(has(upstream));
            }
        }
    }

    /// Whether every subscriber of its subject gets a message of it, and not one member of a queue
    /// group; `None`: there is no such subscription, live or retired.
    pub fn is_plain(&self, upstream: UpstreamSid) -> Option<bool> {
        match self.places.get(upstream.slot)? {
            Place::One(one) if one.generation == upstream.generation => {
                Some(one.queue_group().is_none())
            }
            Place::Group(group) if group.generation == upstream.generation => Some(true),
            _ => None,
        }
    }

    /// Whether the PING `told_from` covers the SUB of a subscription.
    pub fn is_from_before(&self, upstream: UpstreamSid, told_from: u64) -> bool {
        let known = self.is_current(upstream);
        let place = self.places.get(upstream.slot).filter(|_| known);
        let one = place.and_then(Place::one);
        one.is_some_and(|one| one.covered_by <= told_from)
    }

    /// The upstream sids of all that brokers must know.
    pub fn live_sids(&self) -> impl Iterator<Item = UpstreamSid> {
        self.iter().map(|(upstream, _)| upstream)
    }

    fn live(&self, slot: u32) -> Option<&Subscription> {
        let one = self.places.get(slot)?.one()?;
        (one.state == State::Live).then_some(one)
    }

    fn interest(&self, slot: u32) -> Option<Interest<'_>> {
        self.places.get(slot)?.interest()
    }

    /// The slots of the subscriptions behind an upstream sid.
    fn members(&self, slot: u32) -> Vec<u32> {
        match &self.places[slot] {
            Place::One(_) => vec![slot],
            Place::Group(group) => group.members.iter().map(|member| member.slot).collect(),
            Place::Free { .. } => Vec::new(),
        }
    }

    fn group_of(&self, slot: u32) -> u32 {
        let one = self.places[slot].one();
        one.map_or(NO_GROUP, |one| one.group)
    }

    /// The slot whose name brokers have.
    fn carrier(&self, slot: u32) -> u32 {
        match self.group_of(slot) {
            NO_GROUP => slot,
            group => group,
        }
    }

    /// Nobody may join the subscription in this slot any more.
    fn unlist(&mut self, slot: u32) {
        if let Some(joinable) = &mut self.joinable
            && let Some(one) = self.places[slot].one()
            && one.group == NO_GROUP
        {
            joinable.unlist(one.subject(), slot);
        }
    }
}

#[cfg(test)]
mod tests;
