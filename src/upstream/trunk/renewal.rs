//! The credentials that the trunk says to brokers: put together for each link, and renewed (R38);
//! and links that know too little of what their broker offers (R43).

use std::borrow::Cow;
use std::time::Duration;

use super::link::{Link, LinkId};
use super::{CloseReason, Trunk};
use crate::clock::Instant;
use crate::proto::connect::Login;
use crate::upstream::brokers::backoff::unit;
use crate::upstream::brokers::roster::Departure;
use crate::upstream::bus::{Bus, Turn};

/// What components hear whose identity isn't configured any more.
const REMOVED: &[u8] = b"Authorization Violation";
/// Links to a broker move to new credentials over so long at most.
const SPREAD_MOST: Duration = Duration::from_secs(10);
/// What one link more adds to that.
const SPREAD_EACH: Duration = Duration::from_millis(2);
/// A move that can't begin now is tried again after this.
const AGAIN: Duration = Duration::from_millis(250);
/// And behind a broker's refusal of the new ones, after this.
const REFUSED: Duration = Duration::from_secs(5);

impl Trunk {
    /// What CONNECT says on a link whose INFO had this nonce: an identity's credentials, or the
    /// component's own. `None`: the identity isn't configured any more.
    pub(super) fn login<'l>(&'l self, nonce: Option<&str>, bus: &'l Bus) -> Option<Login<'l>> {
        let mut login = match self.connect.identity {
            Some(identity) => bus.identities().login(identity, nonce)?,
            None => self.connect.login(),
        };
        login.proxy_sig = bus.identities().proxy_signature(nonce).map(Cow::Owned);
        Some(login)
    }

    /// Which credentials links are opened with now; `None`: there are none any more.
    pub(super) fn generation(&self, bus: &Bus) -> Option<u64> {
        bus.identities().generation_for(self.connect.identity)
    }

    /// Whether a link has said CONNECT with credentials of which there are newer ones.
    pub(super) fn has_newer(&self, link: &Link, bus: &Bus) -> bool {
        let present = self.generation(bus);
        link.generation.is_some_and(|used| Some(used) != present)
    }

    /// Why a link is to give way: there are newer credentials, or its broker offers other things
    /// now than it was told (R43).
    fn reason_to_renew(&self, link: &Link, bus: &Bus) -> Option<Departure> {
        if self.has_newer(link, bus) {
            return Some(Departure::Renewed);
        }
        let present = bus.roster().broker(link.broker).revision();
        let is_revised = link.is_attached() && link.revision != present;
        is_revised.then_some(Departure::Revised)
    }

    /// Looks whether links have old credentials, or know too little: they are to move, not all at
    /// once. Sessions end whose identity isn't configured any more.
    pub(super) fn review_credentials(&mut self, cx: &mut Turn<'_>) {
        if self.done || self.refused || self.is_relay() {
            self.renew_at = None;
            return;
        }
        if self.generation(cx.bus).is_none() {
            cx.bus.admission_mut().forget(&self.connect);
            let reason = CloseReason::Refused(REMOVED.into());
            return self.sessions.close_all(&reason);
        }
        let any_stale = self
            .links
            .any(|link| self.reason_to_renew(link, cx.bus).is_some());
        if !any_stale {
            self.renew_at = None;
        } else if self.renew_at.is_none() {
            let brokers = cx.bus.roster().brokers();
            let links: u32 = brokers.map(|(_, broker)| broker.links()).sum();
            let spread = (SPREAD_EACH * links).min(SPREAD_MOST);
            self.renew_at = Some(cx.now + spread.mul_f64(unit(self.id.0)));
        }
    }

    /// Begins to move to the present credentials, where that is due (R38), and goes on with it.
    pub(super) fn renew_where_due(&mut self, cx: &mut Turn<'_>) {
        if self.renew_at.is_none_or(|at| at > cx.now) {
            return;
        }
        self.review_credentials(cx);
        if self.renew_at.is_none() {
            return;
        }
        self.renew_at = Some(cx.now + AGAIN);
        // Of independent brokers' links, none gives way before a broker has taken the new ones.
        let is_vouched = self.vouched == self.generation(cx.bus);
        let may_give_way = is_vouched || !self.route.is_independent();
        for id in self.links.ids() {
            let reason = self.reason_to_renew(&self.links[id], cx.bus);
            let link = &mut self.links[id];
            if !link.is_outdated() {
                link.gives_way = reason.filter(|_| may_give_way);
            }
        }
        if !may_give_way {
            return self.check_credentials(cx);
        }
        let reason = self.live().and_then(|id| self.links[id].gives_way);
        match reason.filter(|_| !self.route.is_independent()) {
            Some(reason) => self.start_move(reason, cx),
            None => self.next_attempt(cx),
        }
    }

    /// New credentials, or certificates, aren't taken: the links that live stay as they are for a
    /// while. Returns whether there are any.
    pub(super) fn put_off_renewal(&mut self, now: Instant) -> bool {
        let is_due = self.renew_at.is_some();
        self.renew_at = is_due.then_some(now + REFUSED);
        is_due
    }

    /// A broker refuses the new credentials. Returns whether it is about these.
    pub(super) fn keep_old_credentials(&mut self, id: LinkId, cx: &mut Turn<'_>) -> bool {
        if !self.put_off_renewal(cx.now) {
            return false;
        }
        self.drop_link(id, cx.bus);
        self.verify_all();
        true
    }
}
