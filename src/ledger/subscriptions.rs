//! Who subscribed to what, and how much of it was delivered.
//!
//! A subscription that was unsubscribed stays as *retired* until a fence behind the UNSUB
//! is answered: what the broker sent before it processed the UNSUB is still delivered, as a
//! client that drains expects. A retired sid that the component uses again goes silent.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::{SessionId, UpstreamSid};

/// One subscription of one session.
#[derive(Debug)]
pub struct Subscription {
    session: SessionId,
    /// Subject, queue group and the component's sid, back to back in one allocation.
    text: Box<[u8]>,
    subject_len: u32,
    queue_group_len: u32,
    /// Messages delivered since the SUB, over all links.
    delivered: u64,
    /// `delivered` when the SUB was sent on the present link, where the broker counts anew.
    base: u64,
    /// The component's UNSUB max; 0 means none.
    max: u64,
    /// Number of the first PING that covers its SUB; 0 once a replay has proven it.
    covered_by: u64,
    /// Of a retired one: links that may still deliver, besides the one that is forgotten next.
    holders: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    Retired,
    /// Retired, and its sid is in use again: delivers nothing.
    Mute,
}

impl Subscription {
    /// The subject, wildcards included.
    pub fn subject(&self) -> &[u8] {
        &self.text[..self.subject_len as usize]
    }

    /// The queue group, if it is a member of one.
    pub fn queue_group(&self) -> Option<&[u8]> {
        let start = self.subject_len as usize;
        let group = &self.text[start..start + self.queue_group_len as usize];
        (!group.is_empty()).then_some(group)
    }

    /// The sid exactly as the component sent it.
    pub fn sid(&self) -> &[u8] {
        &self.text[(self.subject_len + self.queue_group_len) as usize..]
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

/// What became of a SUB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscribed {
    /// It is new, under this sid upstream.
    New(UpstreamSid),
    /// The sid is in use, under this sid upstream: the first subject stays, as at nats-server.
    Duplicate(UpstreamSid),
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
}

/// Where a message goes.
#[derive(Clone, Copy, Debug)]
pub struct Recipient<'a> {
    /// The session.
    pub session: SessionId,
    /// The session's own sid.
    pub sid: &'a [u8],
}

/// The table of a trunk.
#[derive(Debug, Default)]
pub struct Subscriptions {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Live subscriptions by session and the component's sid.
    by_sid: BTreeMap<(SessionId, Box<[u8]>), u32>,
    /// Retired subscriptions that still deliver, by session and the component's sid.
    retired: BTreeMap<(SessionId, Box<[u8]>), u32>,
    /// SUBs that no PONG has proven, in the order in which they were sent, each with the
    /// number of the first PING that covers it: a broker's refusal is about one of these.
    unproven: VecDeque<(u64, UpstreamSid)>,
    /// See [`Subscriptions::take_spent`].
    spent: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    subscription: Option<Subscription>,
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
        let from = (session, Box::default());
        self.by_sid
            .range(from..)
            .next()
            .is_some_and(|((owner, _), _)| *owner == session)
    }

    /// The live subscriptions of a session with sids above `after`, in the order of their
    /// sids.
    pub fn of(
        &self,
        session: SessionId,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = &Subscription> {
        let from = match after {
            None => Bound::Included((session, Box::default())),
            Some(sid) => Bound::Excluded((session, Box::from(sid))),
        };
        self.by_sid
            .range((from, Bound::Unbounded))
            .take_while(move |((owner, _), _)| *owner == session)
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
        let key = (session, Box::from(sid));
        if let Some(&slot) = self.by_sid.get(&key) {
            return Subscribed::Duplicate(self.upstream(slot));
        }
        self.mute_retired(&key);
        let queue_group = queue_group.unwrap_or_default();
        let subscription = Subscription {
            session,
            text: [subject, queue_group, sid].concat().into(),
            subject_len: subject.len() as u32,
            queue_group_len: queue_group.len() as u32,
            delivered: 0,
            base: 0,
            max: 0,
            covered_by,
            holders: 0,
            state: State::Live,
        };
        let upstream = self.insert(subscription);
        self.by_sid.insert(key, upstream.slot);
        self.unproven.push_back((covered_by, upstream));
        Subscribed::New(upstream)
    }

    /// Enters an UNSUB. `max` counts deliveries since the SUB; `None` and 0 remove at once.
    pub fn unsubscribe(
        &mut self,
        session: SessionId,
        sid: &[u8],
        max: Option<u64>,
    ) -> Unsubscribed {
        let key = (session, Box::from(sid));
        let Some(&slot) = self.by_sid.get(&key) else {
            return Unsubscribed::Unknown;
        };
        let upstream = self.upstream(slot);
        let Some(subscription) = self.slots[slot as usize].subscription.as_mut() else {
            return Unsubscribed::Unknown;
        };
        let max = max.unwrap_or(0);
        if max > subscription.delivered {
            subscription.max = max;
            return Unsubscribed::Limited(upstream, max - subscription.base);
        }
        self.retire(key, slot);
        Unsubscribed::Retired(upstream)
    }

    /// Counts a message that a broker sent for `upstream` and says who gets it. With
    /// `counts` false (a no-responders status) it isn't counted towards a max.
    pub fn deliver(&mut self, upstream: UpstreamSid, counts: bool) -> Option<Recipient<'_>> {
        let slot = self.slots.get_mut(upstream.slot as usize)?;
        if slot.generation != upstream.generation {
            return None;
        }
        let subscription = slot.subscription.as_mut()?;
        if subscription.state == State::Mute {
            return None;
        }
        subscription.delivered += u64::from(counts);
        let at_max = subscription.max > 0 && subscription.delivered >= subscription.max;
        if at_max && subscription.state == State::Live {
            subscription.state = State::Retired;
            let key = (subscription.session, Box::from(subscription.sid()));
            self.by_sid.remove(&key);
            self.retired.insert(key, upstream.slot);
            self.spent = true;
        }
        let subscription = slot.subscription.as_ref()?;
        Some(Recipient {
            session: subscription.session,
            sid: subscription.sid(),
        })
    }

    /// Whether the last delivery reached its subscription's max. The subscription is retired
    /// then: the broker has removed it, or will when it gets to the UNSUB, and what it sent
    /// before that is still delivered.
    pub fn take_spent(&mut self) -> bool {
        std::mem::take(&mut self.spent)
    }

    /// Whether a live subscription ends by itself after some messages.
    pub fn is_limited(&self, upstream: UpstreamSid) -> bool {
        self.live(upstream.slot).is_some_and(|live| live.max > 0)
    }

    /// Whether only the broker knows what a SUB of this sid will find: the sid is live here,
    /// but its SUB isn't proven (`answered` is the last PING that was), or its max may be
    /// reached by messages on their way.
    pub fn is_uncertain(&self, session: SessionId, sid: &[u8], answered: u64) -> bool {
        let slot = self.by_sid.get(&(session, Box::from(sid)));
        let live = slot.and_then(|&slot| self.live(slot));
        live.is_some_and(|live| live.max > 0 || live.covered_by > answered)
    }

    /// Retires all that `session` has and names it, for UNSUBs.
    pub fn retire_session(&mut self, session: SessionId) -> Vec<UpstreamSid> {
        let from = (session, Box::default());
        let owned: Vec<_> = self
            .by_sid
            .range(from..)
            .take_while(|((owner, _), _)| *owner == session)
            .map(|(key, slot)| (key.clone(), *slot))
            .collect();
        let mut retired = Vec::with_capacity(owned.len());
        for (key, slot) in owned {
            retired.push(self.upstream(slot));
            self.retire(key, slot);
        }
        retired
    }

    /// The PING with the number `answered` is: every SUB before it is in place, or was
    /// refused.
    pub fn prove(&mut self, answered: u64) {
        while self
            .unproven
            .pop_front_if(|(by, _)| *by <= answered)
            .is_some()
        {}
        if self.unproven.is_empty() {
            self.unproven.shrink_to(0);
        }
    }

    /// All live SUBs were sent again on a new link, and the PING with the number
    /// `covered_by` will prove them.
    pub fn replayed(&mut self, covered_by: u64) {
        let sent: Vec<_> = self.live_sids().collect();
        self.unproven = sent.into_iter().map(|sid| (covered_by, sid)).collect();
    }

    /// Removes a subscription that a broker refused, newest first where several are equal,
    /// and says whose it was, and its name upstream.
    pub fn reject(
        &mut self,
        subject: &[u8],
        queue_group: Option<&[u8]>,
    ) -> Option<(SessionId, UpstreamSid)> {
        let refused = |slot: u32| {
            self.live(slot).is_some_and(|subscription| {
                subscription.subject() == subject && subscription.queue_group() == queue_group
            })
        };
        let sent = self.unproven.iter().rev().map(|(_, sid)| *sid);
        let slot = sent
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

    /// Removes the newest subscription that isn't proven: a broker took no more, and didn't
    /// say which. Says whose it was.
    pub fn reject_newest(&mut self) -> Option<(SessionId, UpstreamSid)> {
        loop {
            let (_, sid) = self.unproven.pop_back()?;
            if self.is_current(sid) && self.live(sid.slot).is_some() {
                return self.reject_slot(sid.slot);
            }
        }
    }

    fn is_current(&self, sid: UpstreamSid) -> bool {
        let slot = self.slots.get(sid.slot as usize);
        slot.is_some_and(|slot| slot.generation == sid.generation)
    }

    /// Removes the subscription that a broker named by its sid.
    pub fn reject_sid(&mut self, upstream: UpstreamSid) -> Option<(SessionId, Box<[u8]>)> {
        let known = self.is_current(upstream);
        let sid = self.live(upstream.slot).filter(|_| known)?.sid().into();
        let (session, _) = self.reject_slot(upstream.slot)?;
        Some((session, sid))
    }

    /// Several links have a retired subscription: each must be [forgotten](Self::forget) by.
    pub fn hold(&mut self, upstream: UpstreamSid, links: u32) {
        if self.is_current(upstream)
            && let Some(subscription) = &mut self.slots[upstream.slot as usize].subscription
        {
            subscription.holders = links.saturating_sub(1);
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
        slot.and_then(|slot| slot.subscription.as_ref())
            .is_some_and(|found| found.max > 0 && found.delivered >= found.max)
    }

    /// The live subscriptions and their names upstream.
    pub fn iter(&self) -> impl Iterator<Item = (UpstreamSid, &Subscription)> {
        (0..self.slots.len() as u32)
            .filter_map(|slot| Some((self.upstream(slot), self.live(slot)?)))
    }

    /// Frees a retired subscription: a fence behind its UNSUB was answered, or its link died.
    pub fn forget(&mut self, upstream: UpstreamSid) {
        let retired = self.slots.get(upstream.slot as usize).is_some_and(|slot| {
            slot.generation == upstream.generation
                && slot
                    .subscription
                    .as_ref()
                    .is_some_and(|subscription| subscription.state != State::Live)
        });
        if !retired {
            return;
        }
        match &mut self.slots[upstream.slot as usize].subscription {
            Some(held) if held.holders > 0 => held.holders -= 1,
            _ => self.release(upstream.slot),
        }
    }

    /// Frees everything that is retired: its link is gone.
    pub fn forget_retired(&mut self) {
        for slot in 0..self.slots.len() as u32 {
            let retired = self.slots[slot as usize]
                .subscription
                .as_ref()
                .is_some_and(|subscription| subscription.state != State::Live);
            if retired {
                self.release(slot);
            }
        }
    }

    /// Before a replay on a link that is the only one, where the broker's counts begin at zero:
    /// what was delivered so far becomes the base of all live subscriptions.
    pub fn rebase(&mut self) {
        let entries = self.slots.iter_mut();
        let all = entries.filter_map(|slot| slot.subscription.as_mut());
        for live in all.filter(|subscription| subscription.state == State::Live) {
            live.base = live.delivered;
            live.covered_by = 0;
        }
    }

    /// The upstream sids of all live subscriptions.
    pub fn live_sids(&self) -> impl Iterator<Item = UpstreamSid> {
        (0..self.slots.len() as u32)
            .filter(|&slot| self.live(slot).is_some())
            .map(|slot| self.upstream(slot))
    }

    fn live(&self, slot: u32) -> Option<&Subscription> {
        self.slots
            .get(slot as usize)?
            .subscription
            .as_ref()
            .filter(|subscription| subscription.state == State::Live)
    }

    fn upstream(&self, slot: u32) -> UpstreamSid {
        UpstreamSid {
            slot,
            generation: self.slots[slot as usize].generation,
        }
    }

    fn insert(&mut self, subscription: Subscription) -> UpstreamSid {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize].subscription = Some(subscription);
        self.upstream(slot)
    }

    /// Frees a slot for its next generation. One whose generations are used up stays empty.
    fn release(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        if let Some(subscription) = entry.subscription.take()
            && subscription.state == State::Retired
        {
            let key = (subscription.session, Box::from(subscription.sid()));
            self.retired.remove(&key);
        }
        if let Some(next) = entry.generation.checked_add(1) {
            entry.generation = next;
            self.free.push(slot);
        }
    }

    fn reject_slot(&mut self, slot: u32) -> Option<(SessionId, UpstreamSid)> {
        let upstream = self.slots.get(slot as usize).map(|_| self.upstream(slot))?;
        let subscription = self.live(slot)?;
        let session = subscription.session;
        let key = (session, Box::from(subscription.sid()));
        self.by_sid.remove(&key);
        self.release(slot);
        Some((session, upstream))
    }

    fn retire(&mut self, key: (SessionId, Box<[u8]>), slot: u32) {
        self.by_sid.remove(&key);
        if let Some(subscription) = self.slots[slot as usize].subscription.as_mut() {
            subscription.state = State::Retired;
            self.retired.insert(key, slot);
        }
    }

    fn mute_retired(&mut self, key: &(SessionId, Box<[u8]>)) {
        if let Some(slot) = self.retired.remove(key)
            && let Some(subscription) = self.slots[slot as usize].subscription.as_mut()
        {
            subscription.state = State::Mute;
        }
    }
}

#[cfg(test)]
#[path = "subscriptions_tests.rs"]
mod tests;
