//! Counts of the messages that one of several links has delivered for each subscription: its broker
//! counts them towards a max, and knows nothing of the others (R31).

use super::UpstreamSid;

/// Messages by subscription.
#[derive(Debug, Default)]
pub struct Received {
    /// By slot: the generation that they are of, and their number.
    counts: Vec<(u32, u64)>,
}

impl Received {
    /// Counts a message of a subscription that the ledger [knows](super::Subscriptions::knows):
    /// memory grows up to its slot.
    pub fn note(&mut self, upstream: UpstreamSid) {
        let slot = upstream.slot as usize;
        if self.counts.len() <= slot {
            self.counts.resize(slot + 1, (0, 0));
        }
        let (generation, count) = &mut self.counts[slot];
        if *generation != upstream.generation {
            (*generation, *count) = (upstream.generation, 0);
        }
        *count += 1;
    }

    /// How many there were.
    pub fn of(&self, upstream: UpstreamSid) -> u64 {
        match self.counts.get(upstream.slot as usize) {
            Some((generation, count)) if *generation == upstream.generation => *count,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_used_again_counts_anew() {
        let [first, second] = [0, 1].map(|generation| UpstreamSid {
            slot: 3,
            generation,
        });
        let mut received = Received::default();
        assert_eq!(received.of(first), 0);
        received.note(first);
        received.note(first);
        assert_eq!((received.of(first), received.of(second)), (2, 0));
        received.note(second);
        assert_eq!((received.of(first), received.of(second)), (0, 1));
        let other = UpstreamSid { slot: 1, ..first };
        assert_eq!(received.of(other), 0);
    }
}
