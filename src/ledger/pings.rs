//! The PINGs on one link that no PONG has answered yet, and what each PONG will prove.
//!
//! PONGs carry no name: they answer PINGs in order. So one queue serves natsmux's own
//! fences and the components' PINGs alike, and every PONG is a fence.

use std::collections::VecDeque;
use std::time::Instant;

use super::SessionId;

/// One PING that was written to a link's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    /// Ever-growing number within the trunk, over all its links.
    pub seq: u64,
    /// The session that asked; `None` for natsmux's own fences.
    pub asker: Option<SessionId>,
    /// Stream offset of the link's buffer behind this PING.
    pub offset: u64,
    /// Publishes that were appended to the link before it.
    pub publishes: u64,
    /// When it was appended.
    pub at: Instant,
}

/// The unanswered PINGs of one link, oldest first.
#[derive(Debug, Default)]
pub struct Pings {
    queue: VecDeque<Ping>,
}

impl Pings {
    /// Notes a PING. `ping.seq` is larger than any before.
    pub fn push(&mut self, ping: Ping) {
        debug_assert!(self.queue.back().is_none_or(|last| last.seq < ping.seq));
        self.queue.push_back(ping);
    }

    /// Takes the one that the next PONG answers; `None` means that nobody asked.
    pub fn answer(&mut self) -> Option<Ping> {
        let ping = self.queue.pop_front();
        if self.queue.is_empty() && self.queue.capacity() > 64 {
            self.queue.shrink_to(0);
        }
        ping
    }

    /// The one that waits longest.
    pub fn oldest(&self) -> Option<&Ping> {
        self.queue.front()
    }

    /// Number of unanswered PINGs.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether every PING was answered.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Forgets a session that is gone: the PONG is then natsmux's own.
    pub fn disown(&mut self, session: SessionId) {
        for ping in &mut self.queue {
            if ping.asker == Some(session) {
                ping.asker = None;
            }
        }
    }

    /// The sessions whose PONG is still owed, in order, when the link is gone.
    pub fn into_askers(self) -> impl Iterator<Item = SessionId> {
        self.queue.into_iter().filter_map(|ping| ping.asker)
    }
}
