//! The PINGs on one link that no PONG has answered yet, and what each PONG will prove.
//!
//! PONGs carry no name: they answer PINGs in order. So one queue serves natsmux's own
//! fences and the components' PINGs alike, and every PONG is a fence.

use super::SessionId;
use crate::clock::Instant;
use crate::queue::Queue;

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
    queue: Queue<Ping>,
}

impl Pings {
    /// Notes a PING. `ping.seq` is larger than any before.
    pub fn push(&mut self, ping: Ping) {
        debug_assert!(self.queue.back().is_none_or(|last| last.seq < ping.seq));
        self.queue.push_back(ping);
    }

    /// Takes the one that the next PONG answers; `None` means that nobody asked.
    pub fn answer(&mut self) -> Option<Ping> {
        self.queue.pop_front()
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
        for ping in self.queue.iter_mut() {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pings(askers: &[Option<u32>]) -> Pings {
        let mut pings = Pings::default();
        for (seq, asker) in askers.iter().enumerate() {
            pings.push(Ping {
                seq: seq as u64,
                asker: asker.map(SessionId),
                offset: 6 * (seq as u64 + 1),
                publishes: 0,
                at: Instant::now(),
            });
        }
        pings
    }

    #[test]
    fn pongs_answer_in_order_and_then_nobody() {
        let mut pings = pings(&[None, Some(7), None]);
        assert_eq!((pings.len(), pings.is_empty()), (3, false));
        assert_eq!(pings.oldest().map(|ping| ping.seq), Some(0));
        let answered: Vec<_> = std::iter::from_fn(|| pings.answer()).collect();
        let seqs: Vec<_> = answered.iter().map(|ping| ping.seq).collect();
        assert_eq!(seqs, [0, 1, 2]);
        assert_eq!(answered[1].asker, Some(SessionId(7)));
        assert_eq!((pings.len(), pings.is_empty()), (0, true));
        assert!(pings.oldest().is_none(), "and no PONG has a PING");
    }

    #[test]
    fn the_pongs_of_who_is_gone_are_nobodys_and_the_others_are_still_owed() {
        let mut pings = pings(&[Some(1), Some(2), None, Some(1), Some(3)]);
        pings.disown(SessionId(1));
        assert_eq!(pings.len(), 5, "each PING still has its PONG");
        let askers: Vec<_> = pings.into_askers().collect();
        assert_eq!(askers, [SessionId(2), SessionId(3)]);
    }
}
