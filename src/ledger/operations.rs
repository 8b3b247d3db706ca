//! Which SUBs a broker took no more (`maximum subscriptions exceeded`).
//!
//! That error names no subject. But a broker counts, and works in order: what it had, and which
//! SUBs and UNSUBs it was sent between two fences, tells from the number of its errors between
//! these which SUBs were too many.

use std::collections::BTreeSet;

use super::UpstreamSid;
use crate::queue::Queue;

/// Natsmux's own subscription, which a broker counts too.
pub const OWN: UpstreamSid = UpstreamSid {
    slot: u32::MAX,
    generation: u32::MAX,
};

/// The slot of those that natsmux has for a moment, for answers about consumers (R44).
pub const ANSWER_SLOT: u32 = u32::MAX - 1;

/// A SUB or UNSUB as one link was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Subscribe(UpstreamSid),
    Unsubscribe(UpstreamSid),
    /// A SUB of a sid that the broker has: it doesn't count, but may be one too many.
    Again,
}

impl Operation {
    fn is_own(self) -> bool {
        matches!(self, Self::Subscribe(OWN) | Self::Unsubscribe(OWN))
    }
}

/// The counts that were too many.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TooMany {
    /// The SUBs that the broker doesn't have.
    pub refused: Vec<UpstreamSid>,
    /// Those of them that it would have if it hadn't natsmux's own.
    pub for_own: Vec<UpstreamSid>,
    /// How many SUBs there were of sids that it has.
    pub again: usize,
    /// How many of all these errors a session has heard.
    pub told: usize,
}

impl TooMany {
    /// How many SUBs that were, for each of which there was an error.
    pub fn count(&self) -> usize {
        self.refused.len() + self.again
    }
}

/// Operations that one link was told and no fence has proven, and how much its broker has.
#[derive(Debug, Default)]
pub struct Operations {
    /// Each with the number of the first PING that covers it.
    unproven: Queue<(u64, Operation)>,
    /// Subscriptions that the broker has, as fences proved.
    in_place: u32,
    /// Errors since the last fence was answered, and how many of these a session has heard.
    too_many: u32,
    told: u32,
    /// Whether natsmux's own is among those in place, or was asked for since.
    own_in_place: bool,
    own_asked: bool,
}

impl Operations {
    /// A SUB was appended, which the PING with the number `covered_by` will prove.
    pub fn subscribe(&mut self, sid: UpstreamSid, covered_by: u64) {
        self.own_asked |= sid == OWN;
        self.unproven
            .push_back((covered_by, Operation::Subscribe(sid)));
    }

    /// A SUB was appended whose sid the broker has.
    pub fn subscribe_again(&mut self, covered_by: u64) {
        self.unproven.push_back((covered_by, Operation::Again));
    }

    /// An UNSUB was appended, or the broker ends it by itself.
    pub fn unsubscribe(&mut self, sid: UpstreamSid, covered_by: u64) {
        self.unproven
            .push_back((covered_by, Operation::Unsubscribe(sid)));
    }

    /// The broker refused this SUB by name, which never counted, or took it back.
    pub fn refuse(&mut self, sid: UpstreamSid) {
        let is_new = |(_, operation): &(u64, Operation)| *operation == Operation::Subscribe(sid);
        if !self.unproven.iter().any(is_new) {
            self.in_place = self.in_place.saturating_sub(1);
        }
        self.unproven.retain(|(_, operation)| match operation {
            Operation::Subscribe(other) | Operation::Unsubscribe(other) => *other != sid,
            Operation::Again => true,
        });
    }

    /// The broker took no more, and no session has been told so yet.
    pub fn count_too_many(&mut self) {
        self.too_many += 1;
    }

    /// The broker took no more, and a session was told so at once.
    pub fn count_too_many_told(&mut self) {
        self.too_many += 1;
        self.told += 1;
    }

    /// How many SUBs and UNSUBs no fence has proven.
    pub fn unproven(&self) -> usize {
        self.unproven.len()
    }

    /// Whether there are errors of which the next fence tells whose they are.
    pub fn has_unexplained(&self) -> bool {
        self.too_many > 0
    }

    /// Whether what is too many may be natsmux's own, or be so because of it.
    pub fn has_own(&self) -> bool {
        self.own_in_place || self.own_asked
    }

    /// The PING with the number `answered` is. Names the SUBs before it that were too many.
    pub fn prove(&mut self, answered: u64) -> TooMany {
        let is_covered = |(covered_by, _): &(u64, Operation)| *covered_by <= answered;
        if self.too_many == 0 && self.unproven.back().is_none_or(is_covered) {
            // As it mostly is: all that was told is in place.
            for (_, operation) in self.unproven.iter() {
                match operation {
                    Operation::Subscribe(_) => self.in_place += 1,
                    Operation::Unsubscribe(_) => self.in_place = self.in_place.saturating_sub(1),
                    Operation::Again => {}
                }
                note_own(&mut self.own_in_place, operation);
            }
            self.unproven = Queue::default();
            self.own_asked = false;
            return TooMany::default();
        }
        let mut proven = Vec::new();
        while let Some(&(covered_by, operation)) = self.unproven.front()
            && covered_by <= answered
        {
            self.unproven.pop_front();
            proven.push(operation);
        }
        if proven.is_empty() {
            (self.too_many, self.told) = (0, 0);
            return TooMany::default();
        }
        let errors = std::mem::take(&mut self.too_many);
        let told = std::mem::take(&mut self.told) as usize;
        let (too_many, in_place) = match errors {
            0 => play(self.in_place, u32::MAX, &proven),
            errors => self.find(errors, &proven),
        };
        self.in_place = in_place;
        for operation in &proven {
            note_own(&mut self.own_in_place, operation);
        }
        self.own_in_place &= !too_many.refused.contains(&OWN);
        self.own_asked &= !proven.contains(&Operation::Subscribe(OWN));
        TooMany { told, ..too_many }
    }

    /// The refusals of the limit that explains this many errors, and what is in place behind them.
    fn find(&self, errors: u32, proven: &[Operation]) -> (TooMany, u32) {
        // The more a broker takes, the less it refuses: the highest limit with so many errors.
        let sent = u32::try_from(proven.len()).unwrap_or(u32::MAX);
        let (mut limit, mut beyond) = (0, self.in_place.saturating_add(sent));
        while limit + 1 < beyond {
            let middle = limit + (beyond - limit) / 2;
            if play(self.in_place, middle, proven).0.count() >= errors as usize {
                limit = middle;
            } else {
                beyond = middle;
            }
        }
        let (mut too_many, in_place) = play(self.in_place, limit, proven);
        if self.has_own() {
            let in_place = self.in_place.saturating_sub(u32::from(self.own_in_place));
            let proven = proven.iter().filter(|operation| !operation.is_own());
            let proven: Vec<_> = proven.copied().collect();
            let (without, _) = play(in_place, limit, &proven);
            let refused: BTreeSet<_> = without.refused.into_iter().collect();
            let for_own = too_many.refused.iter().filter(|sid| !refused.contains(sid));
            too_many.for_own = for_own.copied().filter(|sid| *sid != OWN).collect();
            too_many.again = without.again;
        }
        (too_many, in_place)
    }
}

/// Notes whether natsmux's own is in place behind an operation that the broker took.
fn note_own(in_place: &mut bool, operation: &Operation) {
    match operation {
        Operation::Subscribe(OWN) => *in_place = true,
        Operation::Unsubscribe(OWN) => *in_place = false,
        _ => {}
    }
}

/// Counts as a broker with this limit does.
fn play(mut count: u32, limit: u32, operations: &[Operation]) -> (TooMany, u32) {
    let (mut too_many, mut unknown) = (TooMany::default(), BTreeSet::new());
    for operation in operations {
        match operation {
            Operation::Subscribe(sid) if count >= limit => {
                too_many.refused.push(*sid);
                unknown.insert(*sid);
            }
            Operation::Subscribe(_) => count += 1,
            Operation::Again => too_many.again += usize::from(count >= limit),
            Operation::Unsubscribe(sid) if unknown.contains(sid) => {}
            Operation::Unsubscribe(_) => count = count.saturating_sub(1),
        }
    }
    (too_many, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sid(slot: u32) -> UpstreamSid {
        UpstreamSid {
            slot,
            generation: 0,
        }
    }

    #[test]
    fn the_number_of_errors_tells_which_were_too_many() {
        for (errors, refused) in [
            (0, vec![]),
            (1, vec![12]),
            (2, vec![11, 12]),
            (3, vec![10, 11, 12]),
        ] {
            let mut operations = Operations::default();
            (1..=12).for_each(|slot| operations.subscribe(sid(slot), 1));
            operations.unsubscribe(sid(1), 1);
            operations.unsubscribe(sid(2), 1);
            operations.subscribe(sid(13), 1);
            operations.subscribe(sid(14), 1);
            (0..errors).for_each(|_| operations.count_too_many());
            let refused: Vec<_> = refused.into_iter().map(sid).collect();
            assert_eq!(operations.prove(1).refused, refused);
            assert_eq!(operations.in_place, 12 - errors);
        }
    }

    #[test]
    fn what_was_proven_before_counts_and_what_comes_later_does_not() {
        let mut operations = Operations::default();
        (1..=3).for_each(|slot| operations.subscribe(sid(slot), 1));
        assert_eq!(operations.prove(1), TooMany::default());
        operations.subscribe(sid(4), 2);
        operations.subscribe(sid(5), 2);
        operations.unsubscribe(sid(5), 2);
        operations.subscribe(sid(6), 3);
        operations.count_too_many();
        operations.count_too_many();
        assert_eq!(operations.prove(2).refused, [sid(4), sid(5)]);
        assert_eq!(operations.prove(3), TooMany::default());
        assert_eq!(operations.in_place, 4);
    }

    #[test]
    fn one_of_a_sid_that_is_there_may_be_too_many_and_never_counts() {
        let mut operations = Operations::default();
        (1..=2).for_each(|slot| operations.subscribe(sid(slot), 1));
        operations.subscribe_again(1);
        operations.count_too_many_told();
        let again = TooMany {
            refused: vec![],
            again: 1,
            told: 1,
            ..TooMany::default()
        };
        assert_eq!(operations.prove(1), again);
        assert_eq!(operations.in_place, 2);
    }

    #[test]
    fn one_that_natsmux_has_takes_nobodys_place() {
        let mut operations = Operations::default();
        (1..=2).for_each(|slot| operations.subscribe(sid(slot), 1));
        operations.subscribe(OWN, 1);
        assert!(operations.has_own());
        assert_eq!(operations.prove(1), TooMany::default());
        // At the broker's limit of three.
        (3..=5).for_each(|slot| operations.subscribe(sid(slot), 2));
        (0..3).for_each(|_| operations.count_too_many());
        let too_many = operations.prove(2);
        assert_eq!(too_many.refused, [sid(3), sid(4), sid(5)]);
        assert_eq!(too_many.for_own, [sid(3)]);
        operations.unsubscribe(OWN, 3);
        operations.subscribe(sid(3), 3);
        assert_eq!(operations.prove(3), TooMany::default());
        assert_eq!(operations.in_place, 3);
        assert!(!operations.has_own());
        // It is asked for again, in vain.
        operations.subscribe(OWN, 4);
        operations.count_too_many();
        let too_many = operations.prove(4);
        assert_eq!(
            (&too_many.refused[..], &too_many.for_own[..]),
            (&[OWN][..], &[][..])
        );
        assert!(!operations.has_own());
    }

    #[test]
    fn one_that_was_refused_by_name_never_counted() {
        let mut operations = Operations::default();
        (1..=3).for_each(|slot| operations.subscribe(sid(slot), 1));
        operations.refuse(sid(2));
        operations.count_too_many();
        assert_eq!(operations.prove(1).refused, [sid(3)]);
        operations.refuse(sid(1));
        assert_eq!(operations.in_place, 0, "it was taken back");
    }
}
