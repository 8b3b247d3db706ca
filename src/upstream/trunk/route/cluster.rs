//! The way to a cluster: one link, and another one while that is left (R19).

use super::{Move, Route, Step, Steps};
use crate::proto::connect::ConnectInfo;
use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::roster::{BrokerId, Departure, Pick};
use crate::upstream::bus::Turn;
use crate::upstream::trunk::link::Link;
use crate::upstream::trunk::links::Links;

impl Route {
    /// Dials the next broker, if the trunk needs a link and none is on its way.
    pub(super) fn next_in_cluster(
        &mut self,
        trunk: TrunkId,
        connect: &ConnectInfo,
        links: &Links,
        cx: &mut Turn<'_>,
    ) -> Steps {
        let attached = links.any_attached();
        let waits = (self.moving.as_ref()).is_some_and(|planned| planned.after.is_some());
        let has_enough = attached && (self.moving.is_none() || waits);
        if has_enough || links.any(Link::is_joining) {
            return Steps::new();
        }
        if !attached {
            self.needed_since.get_or_insert(cx.now);
        }
        let avoided = self.avoided(links, cx);
        let identity = cx.bus.admission().digest(connect);
        match cx.bus.pick(trunk, identity, &avoided, cx.now) {
            Pick::Dial(broker) => {
                self.attempts.cancel_retry();
                Steps::from_slice(&[Step::Dial(broker)])
            }
            Pick::Queue => Steps::new(),
            Pick::Wait if attached && !self.must_move() => {
                // The move is off until the roster changes, or for a while where others turned
                // the trunk away.
                self.moving = None;
                self.attempts.forget_refusals();
                self.retry_later(trunk, cx.now);
                Steps::new()
            }
            Pick::Wait => {
                self.retry_later(trunk, cx.now);
                Steps::from_slice(&[Step::Wait])
            }
        }
    }

    fn avoided(&self, links: &Links, cx: &Turn<'_>) -> Vec<BrokerId> {
        let leaves = |planned: &Move| !planned.reason.is_own();
        let leaving = self.moving.as_ref().filter(|planned| leaves(planned));
        let left = leaving.and_then(|_| links.live());
        let left = left.map(|id| links[id].broker);
        let roster = cx.bus.roster();
        // A move for another broker's sake goes there or nowhere.
        let is_shunned = |id: BrokerId| match leaving.map(|planned| planned.reason) {
            Some(Departure::Drained) => roster.is_drained(id),
            Some(Departure::Moved | Departure::Rebalanced) => roster.wanted() != Some(id),
            _ => false,
        };
        let all = roster.brokers().map(|(id, _)| id);
        let shunned = all.filter(|id| is_shunned(*id));
        self.attempts.avoided().chain(left).chain(shunned).collect()
    }

    /// Plans to leave the live link for another broker (R19), where not too many trunks move
    /// (R42). Returns whether that is new.
    pub(in crate::upstream::trunk) fn plan_move(
        &mut self,
        trunk: TrunkId,
        reason: Departure,
        cx: &mut Turn<'_>,
    ) -> bool {
        let is_free = self.moving.is_none() && self.attempts.retry_at().is_none();
        if !is_free || self.is_independent() {
            return false;
        }
        let Some(place) = cx.bus.take_move_place(trunk) else {
            return false;
        };
        self.attempts.begin(cx.now);
        self.moving = Some(Move {
            reason,
            after: None,
            _place: Some(place),
        });
        true
    }
}
