//! Sessions that share a subscription: who joins, leaves and gets what (R23).

use super::group::{Group, Member, Seen, Spent};
use super::places::Place;
use super::subscription::State;
use super::{Rejected, SessionId, Subscriptions, UpstreamSid, entries};

/// Owner of a subscription whose session has ended.
const NOBODY: SessionId = SessionId(u32::MAX);

impl Subscriptions {
    /// Lets equal plain subscriptions of different sessions share an upstream sid.
    pub fn coalesce(&mut self) {
        self.joinable.get_or_insert_default();
    }

    /// The slot of what `session` may join with a plain subscription to `subject`.
    pub(super) fn find_joinable(&self, session: SessionId, subject: &[u8]) -> Option<u32> {
        let slot = self.joinable.as_ref()?.find(subject)?;
        match &self.places[slot] {
            Place::One(one) => {
                let equal = one.subject() == subject && one.queue_group().is_none();
                let open = one.state == State::Live && one.max == 0;
                (equal && open && one.session != session).then_some(slot)
            }
            Place::Group(group) => {
                let equal = *group.subject == *subject && !group.is_retired;
                (equal && !Self::has_member(group, session)).then_some(slot)
            }
            Place::Free { .. } => None,
        }
    }

    fn has_member(group: &Group, session: SessionId) -> bool {
        let mut members = group.members.iter();
        members.any(|member| member.session == session && member.is_here())
    }

    /// Where sessions share a trunk, errors come in the order of SUBs, and whose each is matters
    /// also where that one doesn't want it any more.
    pub(super) fn reject_oldest(
        &mut self,
        subject: &[u8],
        queue_group: Option<&[u8]>,
    ) -> Option<Rejected> {
        let is_meant = |sid: &UpstreamSid| {
            self.is_current(*sid)
                && match &self.places[sid.slot] {
                    Place::One(one) => one.subject() == subject && one.queue_group() == queue_group,
                    Place::Group(group) => *group.subject == *subject && queue_group.is_none(),
                    Place::Free { .. } => false,
                }
        };
        let at = self.unproven.iter().position(|(_, sid)| is_meant(sid))?;
        let (_, upstream) = self.unproven.remove(at)?;
        if self.interest(upstream.slot).is_some() {
            return self.reject_slot(upstream.slot);
        }
        let mut owners = Vec::new();
        for slot in self.members(upstream.slot) {
            let Some(one) = self.places[slot].one() else {
                continue;
            };
            let key = one.key();
            let is_leaving = one.state == State::Leaving;
            if one.session != NOBODY {
                owners.push((one.session, one.sid().into()));
            }
            if is_leaving {
                self.by_sid.remove(&key);
                self.release(slot);
            }
        }
        Some(Rejected { upstream, owners })
    }

    /// A session is gone for good, and its number may be another's soon: nothing that is still
    /// on its way to it reaches anybody.
    pub fn mute_session(&mut self, session: SessionId) {
        let retired: Vec<_> = entries(&self.retired, session)
            .map(|(key, slot)| (key.clone(), *slot))
            .collect();
        for (key, slot) in retired {
            self.mute_retired(&key);
            self.make_nobodys(slot, session);
        }
        // A broker's verdict on a SUB whose sid was used again is still to come.
        let asked: Vec<u32> = self
            .unproven
            .iter()
            .filter(|(_, sid)| self.is_current(*sid))
            .flat_map(|(_, sid)| self.members(sid.slot))
            .collect();
        for slot in asked {
            self.make_nobodys(slot, session);
        }
    }

    fn make_nobodys(&mut self, slot: u32, session: SessionId) {
        if let Some(one) = self.places[slot].one_mut()
            && one.session == session
        {
            one.session = NOBODY;
        }
    }

    /// The longest subject and queue group that a broker was told and has not proven, in bytes,
    /// and whose it is.
    pub fn longest_unproven(&self) -> (usize, Vec<SessionId>) {
        let current = self
            .unproven
            .iter()
            .filter(|(_, sid)| self.is_current(*sid));
        let lengths = current.filter_map(|(_, sid)| {
            let interest = self.interest(sid.slot)?;
            let group = interest.queue_group.map_or(0, <[u8]>::len);
            Some((interest.subject.len() + group, sid.slot))
        });
        let Some((len, slot)) = lengths.max() else {
            return (0, Vec::new());
        };
        let members = self.members(slot).into_iter();
        let owners = members.filter_map(|slot| Some(self.live(slot)?.session));
        (len, owners.collect())
    }

    /// Makes a group of the subscription in `slot`, unless it is one: its upstream sid stays.
    pub(super) fn make_group(&mut self, slot: u32) {
        let place = &mut self.places[slot];
        let mut first = match place.take() {
            Place::One(first) => first,
            group => {
                *place = group;
                return;
            }
        };
        *place = Place::Group(Box::new(Group {
            generation: first.generation,
            subject: first.subject().into(),
            members: Vec::with_capacity(2),
            holders: 0,
            is_retired: false,
        }));
        first.group = slot;
        let key = first.key();
        let own = self.places.insert(first);
        self.by_sid.insert(key, own.slot);
        self.join(slot, own.slot, 0);
    }

    /// Enters a member that gets what comes behind the PONG of the PING `joined`.
    pub(super) fn join(&mut self, group: u32, slot: u32, joined: u64) {
        let one = self.places[slot].one();
        let session = one.map_or(NOBODY, |one| one.session);
        if let Some(group) = self.places[group].group_mut() {
            group.members.push(Member {
                slot,
                session,
                joined,
                left: Member::HERE,
            });
        }
    }

    /// A member gets nothing behind the PONG of the PING `left`. Returns whether it was the last
    /// one: then the group is retired.
    pub(super) fn leave(&mut self, group: u32, slot: u32, left: u64) -> bool {
        let Some(found) = self.places[group].group_mut() else {
            return false;
        };
        let member = found.members.iter_mut().find(|member| member.slot == slot);
        if let Some(member) = member {
            member.left = left;
        }
        self.retire_deserted(group)
    }

    fn retire_deserted(&mut self, slot: u32) -> bool {
        let Some(group) = self.places[slot].group_mut() else {
            return false;
        };
        if group.is_retired || !group.is_deserted() {
            return false;
        }
        group.is_retired = true;
        if let Some(joinable) = &mut self.joinable {
            joinable.unlist(&group.subject, slot);
        }
        true
    }

    /// Takes a member that is freed out of its group.
    pub(super) fn drop_member(&mut self, group: u32, slot: u32) {
        if let Some(group) = self
            .places
            .get_mut(group)
            .and_then(|found| found.group_mut())
            && let Some(at) = group.members.iter().position(|member| member.slot == slot)
        {
            group.members.swap_remove(at);
        }
    }

    /// Hands a message to every member that hears it.
    pub(super) fn deliver_to_group(
        &mut self,
        upstream: UpstreamSid,
        counts: bool,
        seen: Seen,
        mut to: impl FnMut(SessionId, &[u8]),
    ) -> Spent {
        let place = &mut self.places[upstream.slot];
        let Some(group) = place.group_mut() else {
            return Spent::Nothing;
        };
        let members = std::mem::take(&mut group.members);
        let mut spent = Vec::new();
        for member in members.iter().filter(|member| member.hears(seen)) {
            let Some(one) = self.places[member.slot].one_mut() else {
                continue;
            };
            let is_over = one.max > 0 && one.delivered >= one.max;
            if one.state == State::Mute || is_over {
                continue;
            }
            one.delivered += u64::from(counts);
            to(one.session, one.sid());
            if one.max > 0 && one.delivered >= one.max && one.state == State::Live {
                spent.push(member.slot);
            }
        }
        if let Some(group) = self.places[upstream.slot].group_mut() {
            group.members = members;
        }
        if spent.is_empty() {
            return Spent::Nothing;
        }
        for slot in spent {
            self.end_member(slot);
        }
        if self.retire_deserted(upstream.slot) {
            Spent::Group(upstream)
        } else {
            Spent::Nothing
        }
    }

    /// A member got all that it wanted.
    fn end_member(&mut self, slot: u32) {
        if let Some(one) = self.places[slot].one() {
            let key = one.key();
            self.by_sid.remove(&key);
            self.release(slot);
        }
    }

    /// Frees a group and its members, but for those that go on elsewhere.
    pub(super) fn release_group(&mut self, slot: u32) {
        let place = self.places[slot].take();
        let Place::Group(group) = place else {
            debug_assert!(false, "only groups are released as such");
            return;
        };
        if let Some(joinable) = &mut self.joinable {
            joinable.unlist(&group.subject, slot);
        }
        for member in &group.members {
            match self.places[member.slot].one_mut() {
                Some(one) if one.state == State::Leaving => one.group = super::NO_GROUP,
                Some(one) => {
                    one.group = super::NO_GROUP;
                    self.release(member.slot);
                }
                None => {}
            }
        }
        self.places.free(slot);
    }
}
