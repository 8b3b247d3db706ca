//! The links of a trunk: their numbers, and the PINGs that prove what was written to them.

use std::ops::{Index, IndexMut};

use smallvec::SmallVec;

use super::link::{Link, LinkId, Phase};
use crate::clock::Instant;
use crate::ledger::{Ping, SessionId};
use crate::net::Retention;
use crate::proto::encode;
use crate::upstream::brokers::roster::BrokerId;
use crate::upstream::bus::{Bus, Turn};

/// The links of a trunk. At most two, one to leave and one to join; or one for each of independent
/// brokers.
#[derive(Debug)]
pub(super) struct Links {
    links: Vec<Link>,
    next_link: u32,
    /// Numbers of PINGs grow over all links.
    next_ping: u64,
    /// Every PING of the publishing link up to this number was answered.
    answered: u64,
}

impl Links {
    pub(super) fn new() -> Self {
        Self {
            // Mostly one: room for four would be two kilobytes more.
            links: Vec::with_capacity(1),
            next_link: 0,
            next_ping: 1,
            answered: 0,
        }
    }

    /// Adds a link, whose dial ends by `deadline`.
    pub(super) fn add(
        &mut self,
        broker: BrokerId,
        retention: Retention,
        deadline: Instant,
        now: Instant,
    ) -> LinkId {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let link = Link::new(id, broker, retention, deadline, now);
        self.links.push(link);
        id
    }

    /// Takes a link out.
    pub(super) fn remove(&mut self, id: LinkId) -> Link {
        let at = self.position(id);
        self.links.remove(at)
    }

    /// Takes all links out.
    pub(super) fn remove_all(&mut self) -> Vec<Link> {
        std::mem::take(&mut self.links)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    pub(super) fn has(&self, id: LinkId) -> bool {
        self.get(id).is_some()
    }

    pub(super) fn get(&self, id: LinkId) -> Option<&Link> {
        self.links.iter().find(|link| link.id == id)
    }

    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    /// The links that there are now, for a loop that may change them.
    pub(super) fn ids(&self) -> SmallVec<[LinkId; 4]> {
        self.links.iter().map(|link| link.id).collect()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Link> {
        self.links.iter()
    }

    pub(super) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Link> {
        self.links.iter_mut()
    }

    /// The first link, the oldest one.
    pub(super) fn first(&self) -> Option<LinkId> {
        self.links.first().map(|link| link.id)
    }

    /// The first link of which this is so.
    pub(super) fn find(&self, is_it: impl Fn(&Link) -> bool) -> Option<LinkId> {
        let found = self.links.iter().find(|link| is_it(link))?;
        Some(found.id)
    }

    /// Whether this is so of any link.
    pub(super) fn any(&self, is_so: impl Fn(&Link) -> bool) -> bool {
        self.links.iter().any(is_so)
    }

    /// Whether a broker has accepted any link.
    pub(super) fn any_attached(&self) -> bool {
        self.any(Link::is_attached)
    }

    /// The link in [`Phase::Live`], whatever is planned for it.
    pub(super) fn live(&self) -> Option<LinkId> {
        self.find(|link| link.phase == Phase::Live)
    }

    /// Whether a link waits to be proven: its broker is suspect, and nothing that was asked
    /// since then was answered.
    pub(super) fn is_suspect(&self, id: LinkId, bus: &Bus) -> bool {
        let link = &self[id];
        let since = bus.watch(link.broker).suspect_since();
        since.is_some_and(|since| link.proven_at.is_none_or(|proven| proven < since))
    }

    /// The links that SUBs and UNSUBs go to.
    pub(super) fn subscribed_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        let links = self.links.iter_mut();
        links.filter(|link| link.takes_subscriptions())
    }

    /// The number of the next PING: it covers what is appended now.
    pub(super) fn next_ping(&self) -> u64 {
        self.next_ping
    }

    /// Number of the last PING of the publishing link that was answered, with all before it.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// The publishing link has answered the PING with this number.
    pub(super) fn note_answered(&mut self, seq: u64) {
        self.answered = self.answered.max(seq);
    }

    /// Appends a PING to a link, which `asker` waits for, or none but natsmux. Returns its number.
    pub(super) fn push_ping(
        &mut self,
        id: LinkId,
        asker: Option<SessionId>,
        cx: &mut Turn<'_>,
    ) -> u64 {
        let seq = self.next_ping;
        self.next_ping += 1;
        let link = &mut self[id];
        link.out.push(encode::PING);
        link.pings.push(Ping {
            seq,
            asker,
            offset: link.out.end(),
            publishes: link.account.appended,
            at: cx.now,
        });
        link.unfenced_bytes = 0;
        link.unfenced_messages = 0;
        link.unfenced_since = None;
        link.last_ping_at = cx.now;
        if asker.is_none() {
            cx.bus.counters_mut().fences += 1;
        }
        seq
    }

    /// Appends a fence to a link. Returns its number.
    pub(super) fn fence(&mut self, id: LinkId, cx: &mut Turn<'_>) -> u64 {
        self.push_ping(id, None, cx)
    }

    fn position(&self, id: LinkId) -> usize {
        let position = self.links.iter().position(|link| link.id == id);
        position.unwrap_or(self.links.len())
    }
}

impl Index<LinkId> for Links {
    type Output = Link;

    /// A link that is there.
    fn index(&self, id: LinkId) -> &Link {
        &self.links[self.position(id)]
    }
}

impl IndexMut<LinkId> for Links {
    fn index_mut(&mut self, id: LinkId) -> &mut Link {
        let at = self.position(id);
        &mut self.links[at]
    }
}
