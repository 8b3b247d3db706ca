//! One subscription, and what is told of it.

use crate::ledger::own_sid::OwnSid;
use crate::ledger::text::Words;
use crate::ledger::{SessionId, UpstreamSid};

/// One subscription of one session.
#[derive(Debug)]
pub struct Subscription {
    /// Of its place.
    pub(super) generation: u32,
    pub(super) session: SessionId,
    pub(super) text: Words,
    /// Messages delivered since the SUB, over all links.
    pub(super) delivered: u64,
    /// `delivered` when the SUB was sent on the present link, where the broker counts anew.
    pub(super) base: u64,
    /// The component's UNSUB max; 0 means none.
    pub(super) max: u64,
    /// Number of the first PING that covers its SUB; 0 once a replay has proven it.
    pub(super) covered_by: u64,
    /// Of a retired one: links that may still deliver, besides the one that is forgotten next.
    pub(super) holders: u16,
    /// The slot of the group that it is a member of; [`NO_GROUP`].
    pub(super) group: u32,
    pub(super) state: State,
}

pub(super) const NO_GROUP: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Live,
    Retired,
    /// Retired, and its sid is in use again, or its session is gone: delivers nothing.
    Mute,
    /// Ended on this trunk, and goes on with its session to another.
    Leaving,
}

impl Subscription {
    pub(super) fn key(&self) -> OwnSid {
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

/// A subscription as a broker must know it.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// The subject, wildcards included.
    pub subject: &'a [u8],
    /// The queue group, if it is a member of one.
    pub queue_group: Option<&'a [u8]>,
    /// Deliveries that are left until its max, if there is one.
    pub left: Option<u64>,
}

/// The outcome of a SUB.
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

/// The outcome of an UNSUB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsubscribed {
    /// No such sid; not an error, as at nats-server.
    Unknown,
    /// It is retired; [`Subscriptions::forget`](super::Subscriptions::forget) it once a fence
    /// behind the UNSUB is answered.
    Retired(UpstreamSid),
    /// It lives on until `max` more were delivered; the broker of the present link must be
    /// told this number.
    Limited(UpstreamSid, u64),
    /// It is counted here, as a member of a group: no broker is told.
    Counted,
    /// A member of a group that lives on: a PING marks the place, and its PONG
    /// [frees](super::Subscriptions::forget) it.
    Left(UpstreamSid),
}

/// A refusal by a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name upstream.
    pub upstream: UpstreamSid,
    /// The sessions that had it, each with its own sid.
    pub owners: Vec<(SessionId, Box<[u8]>)>,
}

/// Operations that a session's end, or its move, leaves to be done.
#[derive(Debug, Default)]
pub struct Ended {
    /// To be unsubscribed.
    pub unsubscribe: Vec<UpstreamSid>,
    /// Members of groups that live on, to be [forgotten](super::Subscriptions::forget) behind a
    /// PING.
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
