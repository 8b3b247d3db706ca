//! The way to brokers: which to dial, to leave and to wait for.
//!
//! It has two forms. In a cluster there is one link, and another one while that is left
//! ([`cluster`]). Of independent brokers each has a link, and one of these is the target of
//! publishes ([`independent`]). A route decides; the trunk takes the steps.

mod attempts;
mod cluster;
mod independent;

use smallvec::SmallVec;

pub(super) use attempts::{Attempts, BRIEF};
pub(super) use independent::{Choice, Several};

use super::link::{Link, LinkId};
use super::links::Links;
use crate::clock::Instant;
use crate::proto::connect::ConnectInfo;
use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::roster::{BrokerId, Cause, Departure};
use crate::upstream::bus::{MovePlace, Turn};

/// A step of a trunk on its way to brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Open a link to this broker.
    Dial(BrokerId),
    /// Open another link to this broker, for one with old credentials (R38) or options (R20).
    Redial(BrokerId),
    /// Open all links anew.
    Reopen,
    /// Give up a link that publishes don't go to.
    Leave(LinkId),
    /// End a link whose broker another trunk has found silent; it looks for the next one itself.
    Fail(LinkId),
    /// No broker can be dialled: go on without one, as far as that goes.
    Wait,
}

/// Steps, in order; mostly one or none.
pub(super) type Steps = SmallVec<[Step; 2]>;

/// A planned change of link (R19).
#[derive(Debug)]
pub(super) struct Move {
    pub(super) reason: Departure,
    /// The PING on the old link that must be answered before the new one is dialled.
    pub(super) after: Option<u64>,
    /// Its place among the trunks that move, where a component hasn't asked for it (R42).
    pub(super) _place: Option<MovePlace>,
}

/// The end of the last live link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) broker: BrokerId,
    pub(super) cause: Cause,
    pub(super) at: Instant,
}

/// The way of one trunk to brokers.
#[derive(Debug, Default)]
pub(super) struct Route {
    pub(super) attempts: Attempts,
    /// Since when there is no link that serves.
    needed_since: Option<Instant>,
    /// The last live link's end, until another is live.
    pub(super) lost: Option<Lost>,
    /// The planned change of link, if any.
    pub(super) moving: Option<Move>,
    /// Of independent brokers (R26-R32); none in a cluster.
    several: Option<Box<Several>>,
}

impl Route {
    /// Has a link to each of several brokers, where they are independent.
    pub(super) fn configure(&mut self, is_independent: bool) {
        if is_independent != self.is_independent() {
            self.several = is_independent.then(Box::default);
        }
    }

    /// Whether there is a link to each of several brokers.
    pub(super) fn is_independent(&self) -> bool {
        self.several.is_some()
    }

    /// The target among independent brokers; none in a cluster.
    pub(super) fn several(&self) -> Option<&Several> {
        self.several.as_deref()
    }

    /// The target among independent brokers, to change it.
    pub(super) fn several_mut(&mut self) -> Option<&mut Several> {
        self.several.as_deref_mut()
    }

    /// Returns the next step.
    pub(super) fn next(
        &mut self,
        trunk: TrunkId,
        connect: &ConnectInfo,
        links: &Links,
        cx: &mut Turn<'_>,
    ) -> Steps {
        match &self.several {
            None => self.next_in_cluster(trunk, connect, links, cx),
            Some(several) => {
                let steps = several.next(trunk, connect, links, cx);
                let stays = |link: &Link| !steps.contains(&Step::Leave(link.id));
                if !links.any(|link| link.is_attached() && stays(link)) {
                    self.needed_since.get_or_insert(cx.now);
                }
                steps
            }
        }
    }

    /// Whether the old link can't do any more: it has other options than the component asked
    /// for last.
    pub(super) fn must_move(&self) -> bool {
        let reason = self.moving.as_ref().map(|planned| planned.reason);
        reason == Some(Departure::NewConnect)
    }

    /// Whether a planned change waits until publishes may go to another broker (R30).
    pub(super) fn is_switching(&self) -> bool {
        self.several().is_some_and(Several::is_switching)
    }

    /// A link is live.
    pub(super) fn succeed(&mut self, now: Instant) {
        self.moving = None;
        self.needed_since = None;
        self.attempts.succeed(now);
    }

    /// Since when there is no link that serves.
    pub(super) fn needed_since(&self) -> Option<Instant> {
        self.needed_since
    }

    /// Whether the operator has to hear of how the last link's end goes on.
    pub(super) fn is_failing_over(&self) -> bool {
        self.lost.is_some_and(|lost| !lost.cause.is_own())
    }

    /// Has brokers that turned the trunk away asked again. Not put off by changes of the
    /// roster that leave nothing to dial.
    pub(super) fn retry_later(&mut self, trunk: TrunkId, now: Instant) {
        self.attempts
            .retry_later(now, |failures| attempts::RETRY.delay(failures, trunk.0));
    }

    /// A broker turned the trunk away, or hung up at once: of independent brokers it is asked
    /// again later.
    pub(super) fn pause(&mut self, broker: BrokerId, trunk: TrunkId, cx: &Turn<'_>) {
        if let Some(several) = &mut self.several {
            several.pause(broker, trunk, cx);
        }
    }
}
