//! Equal plain subscriptions of different sessions behind one upstream sid (R23).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::ledger::{SessionId, UpstreamSid};

/// How far a link has come: the number of the last PING that was answered on it, or, if that is
/// more, of the last one before it was told the whole ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(pub u64);

/// Subscriptions that ended because a message was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// Nothing.
    Nothing,
    /// The subscription reached its max. It is retired: the broker has removed it, or will when
    /// it gets to the UNSUB, and what it sent before that is still delivered.
    One(UpstreamSid),
    /// The last member of a group did: no broker knows, and each must be told.
    Group(UpstreamSid),
}

/// Several subscriptions.
#[derive(Debug)]
pub(super) struct Group {
    /// Of its place.
    pub(super) generation: u32,
    pub(super) subject: Box<[u8]>,
    pub(super) members: Vec<Member>,
    /// Of a retired one: links that may still deliver, besides the one that is forgotten next.
    pub(super) holders: u16,
    /// It was unsubscribed.
    pub(super) is_retired: bool,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) slot: u32,
    pub(super) session: SessionId,
    /// It gets what comes behind the PONG of this PING.
    pub(super) joined: u64,
    /// And before the PONG of this one.
    pub(super) left: u64,
}

impl Member {
    pub(super) const HERE: u64 = u64::MAX;

    pub(super) fn hears(&self, seen: Seen) -> bool {
        self.joined <= seen.0 && seen.0 < self.left
    }

    pub(super) fn is_here(&self) -> bool {
        self.left == Self::HERE
    }
}

impl Group {
    pub(super) fn is_deserted(&self) -> bool {
        !self.members.iter().any(Member::is_here)
    }
}

/// Plain subscriptions that others may join, by a digest of their subject: one of another
/// subject is found out and not joined.
#[derive(Debug, Default)]
pub(super) struct Joinable(HashMap<u64, u32>);

impl Joinable {
    pub(super) fn find(&self, subject: &[u8]) -> Option<u32> {
        self.0.get(&digest(subject)).copied()
    }

    pub(super) fn list(&mut self, subject: &[u8], slot: u32) {
        self.0.insert(digest(subject), slot);
    }

    pub(super) fn unlist(&mut self, subject: &[u8], slot: u32) {
        let digest = digest(subject);
        if self.0.get(&digest) == Some(&slot) {
            self.0.remove(&digest);
        }
    }
}

fn digest(subject: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    subject.hash(&mut hasher);
    hasher.finish()
}
