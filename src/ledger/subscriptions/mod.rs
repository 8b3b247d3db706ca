//! Who subscribed to what, and how much of it was delivered.
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

use std::collections::BTreeMap;
use std::ops::Bound;

use group::{Group, Joinable};
pub use group::{Seen, Spent};

use super::own_sid::OwnSid;
use super::text::Words;
use super::{SessionId, UpstreamSid};
use crate::proto::subject;
use crate::queue::Queue;

/// One subscription of one session.
#[derive(Debug)]
pub struct Subscription {
    /// Of its place.
    generation: u32,
    session: SessionId,
    text: Words,
    /// Messages delivered since the SUB, over all links.
    delivered: u64,
    /// `delivered` when the SUB was sent on the present link, where the broker counts anew.
    base: u64,
    /// The component's UNSUB max; 0 means none.
    max: u64,
    /// Number of the first PING that covers its SUB; 0 once a replay has proven it.
    covered_by: u64,
    /// Of a retired one: links that may still deliver, besides the one that is forgotten next.
    holders: u16,
    /// The slot of the group that it is a member of; [`NO_GROUP`].
    group: u32,
    state: State,
}

const NO_GROUP: u32 = u32::MAX;

const NO_SLOT: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    Retired,
    /// Retired, and its sid is in use again, or its session is gone: delivers nothing.
    Mute,
    /// Ended on this trunk, and goes on with its session to another.
    Leaving,
}

impl Subscription {
    fn key(&self) -> OwnSid {
        OwnSid::new(self.session, self.sid())
    }

    /// The subject, wildcards included.
    pub fn subject(&self) -> &[u8] {
        self.text.subject()
    }

    /// The queue group, if it is a member of one.
    pub fn queue_group(&self) -> Option<&[u8]> {
        Some(self.text.queue_group()).filter(|group| !group.is_empty())
    }

    /// The sid exactly as the component sent it.
    pub fn sid(&self) -> &[u8] {
        self.text.sid()
    }

    /// Messages delivered since the SUB, over all links.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The component's UNSUB max, if there is one.
    pub fn max(&self) -> Option<u64> {
        (self.max > 0).then_some(self.max)
    }

    /// Deliveries that are left until its max, if there is one.
    pub fn left(&self) -> Option<u64> {
        (self.max > 0).then(|| self.max.saturating_sub(self.delivered))
    }
}

/// What a broker must know of a subscription.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// The subject, wildcards included.
    pub subject: &'a [u8],
    /// The queue group, if it is a member of one.
    pub queue_group: Option<&'a [u8]>,
    /// Deliveries that are left until its max, if there is one.
    pub left: Option<u64>,
}

/// What became of a SUB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscribed {
    /// It is new, under this sid upstream.
    New(UpstreamSid),
    /// Another session has the same: no broker is told, but a PING marks the place.
    Joined,
    /// The sid is in use, under this sid upstream: the first subject stays, as at nats-server.
    Duplicate {
        /// Its name upstream.
        upstream: UpstreamSid,
        /// It ends by itself after some messages.
        limited: bool,
    },
}

/// What became of an UNSUB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsubscribed {
    /// No such sid; not an error, as at nats-server.
    Unknown,
    /// It is retired; [`Subscriptions::forget`] it once a fence behind the UNSUB is answered.
    Retired(UpstreamSid),
    /// It lives on until `max` more were delivered; the broker of the present link must be
    /// told this number.
    Limited(UpstreamSid, u64),
    /// The same for a member of a group: counted here, no broker is told.
    Counted,
    /// A member of a group that lives on: a PING marks the place, and its PONG
    /// [frees](Subscriptions::forget) it.
    Left(UpstreamSid),
}

/// What a broker refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name upstream.
    pub upstream: UpstreamSid,
    /// The sessions that had it, each with its own sid.
    pub owners: Vec<(SessionId, Box<[u8]>)>,
}

/// What a session's end, or its move, leaves to be done.
#[derive(Debug, Default)]
pub struct Ended {
    /// To be unsubscribed.
    pub unsubscribe: Vec<UpstreamSid>,
    /// Members of groups that live on, to be [forgotten](Subscriptions::forget) behind a PING.
    pub left: Vec<UpstreamSid>,
}

/// A subscription that goes with its session to another trunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The subject.
    pub subject: Box<[u8]>,
    /// The queue group.
    pub queue_group: Option<Box<[u8]>>,
    /// The component's sid.
    pub sid: Box<[u8]>,
    /// Messages delivered so far.
    pub delivered: u64,
    /// The component's UNSUB max, or 0.
    pub max: u64,
}

/// The table of a trunk.
#[derive(Debug)]
pub struct Subscriptions {
    slots: Vec<Place>,
    /// The slot that is used next, and the first of those that are free; [`NO_SLOT`].
    free: u32,
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

/// What has a number, and with its generation a name upstream.
#[derive(Debug)]
enum Place {
    /// Nothing.
    Free {
        /// The next one.
        generation: u32,
        /// The slot that is free behind this one; [`NO_SLOT`].
        next: u32,
    },
    /// A subscription. A member of a group has a place of its own, whose name no broker gets.
    One(Subscription),
    Group(Box<Group>),
}

impl Place {
    fn generation(&self) -> u32 {
        match self {
            Self::Free { generation, .. } => *generation,
            Self::One(one) => one.generation,
            Self::Group(group) => group.generation,
        }
    }

    fn empty(generation: u32) -> Self {
        Self::Free {
            generation,
            next: NO_SLOT,
        }
    }

    /// Takes what is here.
    fn take(&mut self) -> Self {
        let generation = self.generation();
        std::mem::replace(self, Self::empty(generation))
    }

    fn one(&self) -> Option<&Subscription> {
        match self {
            Self::One(subscription) => Some(subscription),
            _ => None,
        }
    }

    fn one_mut(&mut self) -> Option<&mut Subscription> {
        match self {
            Self::One(subscription) => Some(subscription),
            _ => None,
        }
    }

    fn group_mut(&mut self) -> Option<&mut Group> {
        match self {
            Self::Group(group) => Some(group),
            _ => None,
        }
    }

    /// What a broker must know of it.
    fn interest(&self) -> Option<Interest<'_>> {
        match self {
            Self::One(one) if one.state == State::Live && one.group == NO_GROUP => Some(Interest {
                subject: one.subject(),
                queue_group: one.queue_group(),
                left: one.left(),
            }),
            Self::Group(group) if !group.is_retired => Some(Interest {
                subject: &group.subject,
                queue_group: None,
                left: None,
            }),
            _ => None,
        }
    }
}

/// What a session has, in the order of its sids.
fn entries(
    map: &BTreeMap<OwnSid, u32>,
    session: SessionId,
) -> impl Iterator<Item = (&OwnSid, &u32)> {
    map.range(OwnSid::least(session)..)
        .take_while(move |(key, _)| key.session() == session)
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: NO_SLOT,
            by_sid: BTreeMap::new(),
            retired: BTreeMap::new(),
            unproven: Queue::default(),
            joinable: None,
        }
    }
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
                upstream: self.upstream(self.carrier(slot)),
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
        let upstream = self.insert(subscription);
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
            && let Some(one) = self.slots[slot as usize].one_mut()
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
        let upstream = self.upstream(slot);
        let Some(one) = self.slots[slot as usize].one_mut() else {
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
        match self.leave(group, slot, covered_by) {
            true => Unsubscribed::Retired(self.upstream(group)),
            false => Unsubscribed::Left(upstream),
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
        let one = match self.slots.get_mut(upstream.slot as usize)? {
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
        matches!(
            self.slots.get(upstream.slot as usize),
            Some(Place::Group(_))
        )
    }

    /// Whether only the broker knows what a SUB of this sid will find: the sid is live here,
    /// but its SUB isn't proven (`answered` is the last PING that was), or its max may be
    /// reached by messages on their way.
    pub fn is_uncertain(&self, session: SessionId, sid: &[u8], answered: u64) -> bool {
        let slot = self.by_sid.get(&OwnSid::new(session, sid));
        let live = slot.and_then(|&slot| self.live(slot));
        live.is_some_and(|live| live.max > 0 || live.covered_by > answered)
    }

    /// Retires all that `session` has. The PING with the number `covered_by` will prove it.
    pub fn retire_session(&mut self, session: SessionId, covered_by: u64) -> Ended {
        let mut ended = Ended::default();
        for (key, slot) in self.owned(session) {
            let (own, group) = (self.upstream(slot), self.group_of(slot));
            self.retire(key, slot);
            if group == NO_GROUP {
                ended.unsubscribe.push(own);
            } else if self.leave(group, slot, covered_by) {
                ended.unsubscribe.push(self.upstream(group));
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
            if let Some(one) = self.slots[slot as usize].one_mut() {
                one.state = State::Leaving;
            }
            if group == NO_GROUP {
                unsubscribe.push(self.upstream(slot));
            } else if self.leave(group, slot, covered_by) {
                unsubscribe.push(self.upstream(group));
            }
        }
        unsubscribe
    }

    /// Takes away all that `session` has.
    pub fn take_session(&mut self, session: SessionId) -> Vec<Carried> {
        let mut carried = Vec::new();
        for (key, slot) in self.owned(session) {
            self.by_sid.remove(&key);
            if let Some(one) = self.slots[slot as usize].one()
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

    fn owned(&self, session: SessionId) -> Vec<(OwnSid, u32)> {
        entries(&self.by_sid, session)
            .map(|(key, slot)| (key.clone(), *slot))
            .collect()
    }

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
            .or_else(|| {
                (0..self.slots.len() as u32)
                    .rev()
                    .find(|&slot| refused(slot))
            })?;
        self.reject_slot(slot)
    }

    /// Whether `upstream` names a subscription of this table, live or retired.
    pub fn knows(&self, upstream: UpstreamSid) -> bool {
        let place = self.slots.get(upstream.slot as usize);
        let is_used = place.is_some_and(|place| !matches!(place, Place::Free { .. }));
        is_used && self.is_current(upstream)
    }

    fn is_current(&self, sid: UpstreamSid) -> bool {
        let slot = self.slots.get(sid.slot as usize);
        slot.is_some_and(|slot| slot.generation() == sid.generation)
    }

    /// The live subscriptions to this subject in this queue group.
    pub fn equal_to(&self, subject: &[u8], queue_group: Option<&[u8]>) -> Vec<UpstreamSid> {
        let is_equal = |interest: &Interest<'_>| {
            interest.subject == subject && interest.queue_group == queue_group
        };
        let live = self.iter().filter(|(_, interest)| is_equal(interest));
        live.map(|(upstream, _)| upstream).collect()
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

    /// Removes the subscription that a broker named by its sid.
    pub fn reject_sid(&mut self, upstream: UpstreamSid) -> Option<Rejected> {
        let known = self.is_current(upstream) && self.interest(upstream.slot).is_some();
        match known {
            true => self.reject_slot(upstream.slot),
            false => None,
        }
    }

    /// Several links have a retired subscription: each must be [forgotten](Self::forget) by.
    pub fn hold(&mut self, upstream: UpstreamSid, links: u32) {
        if !self.is_current(upstream) {
            return;
        }
        let holders = u16::try_from(links.saturating_sub(1)).unwrap_or(u16::MAX);
        match &mut self.slots[upstream.slot as usize] {
            Place::One(one) => one.holders = holders,
            Place::Group(group) => group.holders = holders,
            Place::Free { .. } => {}
        }
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
        let slot = self.slots.get(upstream.slot as usize).filter(|_| known);
        slot.and_then(|slot| slot.one())
            .is_some_and(|found| found.max > 0 && found.delivered >= found.max)
    }

    /// The session's plain subscription that a broker would choose for a status on `reply`: its
    /// list has full wildcards before partial ones, and those before literals. Gives its sid.
    pub fn answered_by(&self, session: SessionId, reply: &[u8]) -> Option<&[u8]> {
        let one = |(_, slot): (&OwnSid, &u32)| self.slots[*slot as usize].one();
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

    /// What brokers must know, and the names of it upstream.
    pub fn iter(&self) -> impl Iterator<Item = (UpstreamSid, Interest<'_>)> {
        self.slots.iter().enumerate().filter_map(|(slot, place)| {
            let interest = place.interest()?;
            let upstream = UpstreamSid {
                slot: slot as u32,
                generation: place.generation(),
            };
            Some((upstream, interest))
        })
    }

    /// Frees what is retired: a fence behind its UNSUB was answered, or its link died.
    pub fn forget(&mut self, upstream: UpstreamSid) {
        if !self.is_current(upstream) {
            return;
        }
        match &mut self.slots[upstream.slot as usize] {
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
        for slot in 0..self.slots.len() as u32 {
            match &self.slots[slot as usize] {
                Place::One(one) if matches!(one.state, State::Retired | State::Mute) => {
                    self.release(slot);
                }
                Place::Group(group) if group.is_retired => self.release_group(slot),
                _ => {}
            }
        }
    }

    /// Before a replay on a link that is the only one, where the broker's counts begin at zero:
    /// what was delivered so far becomes the base of all live subscriptions.
    pub fn rebase(&mut self) {
        for slot in &mut self.slots {
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

    /// The upstream sids of all that brokers must know.
    pub fn live_sids(&self) -> impl Iterator<Item = UpstreamSid> {
        self.iter().map(|(upstream, _)| upstream)
    }

    fn live(&self, slot: u32) -> Option<&Subscription> {
        let one = self.slots.get(slot as usize)?.one()?;
        (one.state == State::Live).then_some(one)
    }

    fn interest(&self, slot: u32) -> Option<Interest<'_>> {
        self.slots.get(slot as usize)?.interest()
    }

    /// The slots of the subscriptions behind an upstream sid.
    fn members(&self, slot: u32) -> Vec<u32> {
        match &self.slots[slot as usize] {
            Place::One(_) => vec![slot],
            Place::Group(group) => group.members.iter().map(|member| member.slot).collect(),
            Place::Free { .. } => Vec::new(),
        }
    }

    fn group_of(&self, slot: u32) -> u32 {
        let one = self.slots[slot as usize].one();
        one.map_or(NO_GROUP, |one| one.group)
    }

    /// The slot whose name brokers have.
    fn carrier(&self, slot: u32) -> u32 {
        match self.group_of(slot) {
            NO_GROUP => slot,
            group => group,
        }
    }

    fn upstream(&self, slot: u32) -> UpstreamSid {
        UpstreamSid {
            slot,
            generation: self.slots[slot as usize].generation(),
        }
    }

    fn insert(&mut self, subscription: Subscription) -> UpstreamSid {
        let slot = self.free_slot();
        let place = &mut self.slots[slot as usize];
        let generation = place.generation();
        *place = Place::One(Subscription {
            generation,
            ..subscription
        });
        UpstreamSid { slot, generation }
    }

    /// Takes the slot that was freed last, or a new one.
    fn free_slot(&mut self) -> u32 {
        if let Some(Place::Free { next, .. }) = self.slots.get(self.free as usize) {
            return std::mem::replace(&mut self.free, *next);
        }
        let len = self.slots.len();
        if len == self.slots.capacity() {
            // Not twice as many: there are thousands of these tables, and most stay small.
            self.slots.reserve_exact(len / 8 + 1);
        }
        self.slots.push(Place::empty(0));
        len as u32
    }

    /// Frees the slot of one subscription.
    fn release(&mut self, slot: u32) {
        self.unlist(slot);
        let place = self.slots[slot as usize].take();
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
        self.free(slot);
    }

    /// Lets a slot have its next generation. One whose generations are used up stays empty.
    fn free(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        if let Some(generation) = place.generation().checked_add(1) {
            *place = Place::Free {
                generation,
                next: self.free,
            };
            self.free = slot;
        }
    }

    /// Nobody may join the subscription in this slot any more.
    fn unlist(&mut self, slot: u32) {
        if let Some(joinable) = &mut self.joinable
            && let Some(one) = self.slots[slot as usize].one()
            && one.group == NO_GROUP
        {
            joinable.unlist(one.subject(), slot);
        }
    }

    fn reject_slot(&mut self, slot: u32) -> Option<Rejected> {
        let upstream = self.slots.get(slot as usize).map(|_| self.upstream(slot))?;
        let mut owners = Vec::new();
        for member in self.members(slot) {
            let one = self.slots[member as usize].one();
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
        match self.slots[slot as usize] {
            Place::Group(_) => self.release_group(slot),
            _ => self.release(slot),
        }
        Some(Rejected { upstream, owners })
    }

    fn retire(&mut self, key: OwnSid, slot: u32) {
        self.unlist(slot);
        self.by_sid.remove(&key);
        if let Some(one) = self.slots[slot as usize].one_mut() {
            one.state = State::Retired;
            self.retired.insert(key, slot);
        }
    }

    fn mute_retired(&mut self, key: &OwnSid) {
        if let Some(slot) = self.retired.remove(key)
            && let Some(one) = self.slots[slot as usize].one_mut()
        {
            one.state = State::Mute;
        }
    }
}

#[cfg(test)]
mod tests;
