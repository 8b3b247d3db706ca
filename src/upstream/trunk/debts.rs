//! Debts to a session: PONGs, and the `+OK`s of a verbose one.

use crate::clock::Instant;
use crate::queue::Queue;

/// PONGs that a component may be owed before it isn't read.
const PONGS_MOST: u32 = 10_000;
/// `+OK`s that a component may be owed before it isn't read.
const OKS_MOST: u64 = 10_000;

/// The answers that a session is owed.
#[derive(Debug, Default)]
pub(super) struct Debts {
    /// PONGs owed from before the present link, or from while there was none.
    pongs: u32,
    /// PONGs that brokers still owe it on a live link.
    asked: u32,
    /// PINGs that the live link has answered, and one that stands by has not yet (R27).
    late: Queue<u64>,
    /// When owed PONGs are released unproven (R3).
    pongs_until: Option<Instant>,
    /// `+OK`s owed from before the present link, or from while there was none.
    pub(super) oks: u64,
    /// Publishes that wait and must not be answered by the next broker: they were published under
    /// other options than it is told (R20).
    pub(super) unasked: u64,
}

impl Debts {
    /// Whether PONGs are owed that no link has been asked for.
    pub(super) fn has_pongs(&self) -> bool {
        self.pongs > 0
    }

    /// Whether the live link still owes a PONG.
    pub(super) fn is_asked(&self) -> bool {
        self.asked > 0
    }

    /// Whether a PONG waits for links that stand by.
    pub(super) fn is_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Whether nothing is owed for earlier PINGs: the next one may be answered out of turn.
    pub(super) fn is_in_turn(&self) -> bool {
        self.pongs == 0 && self.asked == 0 && self.late.is_empty()
    }

    /// Whether so much is owed that the component isn't read.
    pub(super) fn are_many(&self) -> bool {
        let pongs = self.pongs.saturating_add(self.asked) + self.late.len() as u32;
        self.oks >= OKS_MOST || pongs >= PONGS_MOST
    }

    /// The live link is asked for a PONG.
    pub(super) fn ask(&mut self) {
        self.asked += 1;
    }

    /// A PONG is owed, and no link can be asked for it.
    pub(super) fn owe_pong(&mut self) {
        self.pongs += 1;
    }

    /// The link that was asked is gone, and owes a PONG.
    pub(super) fn reopen(&mut self) {
        self.asked = self.asked.saturating_sub(1);
        self.pongs += 1;
    }

    /// The live link has answered the PING with this number. It is late where another link
    /// `is_awaited`, or an earlier one is late. Returns whether the PONG is due.
    pub(super) fn answer(&mut self, seq: u64, is_awaited: bool) -> bool {
        self.asked = self.asked.saturating_sub(1);
        let is_late = is_awaited || self.is_late();
        if is_late {
            self.late.push_back(seq);
        }
        !is_late
    }

    /// The oldest PING whose PONG waits for links that stand by.
    pub(super) fn first_late(&self) -> Option<u64> {
        self.late.front().copied()
    }

    /// The oldest late PONG is due.
    pub(super) fn pop_late(&mut self) {
        self.late.pop_front();
    }

    /// The live link is asked for all PONGs that are owed. Returns how many these are.
    pub(super) fn ask_again(&mut self) -> u32 {
        if self.late.is_empty() {
            self.pongs_until = None;
        }
        let pongs = std::mem::take(&mut self.pongs);
        self.asked += pongs;
        pongs
    }

    /// Takes the PONGs that no link was asked for: they need none.
    pub(super) fn take_pongs(&mut self) -> u32 {
        self.pongs_until = None;
        std::mem::take(&mut self.pongs)
    }

    /// Takes all PONGs, whatever link was asked for them (R3).
    pub(super) fn release_all(&mut self) -> u64 {
        let late = std::mem::take(&mut self.late).len() as u64;
        let pongs = self.take_pongs() + std::mem::take(&mut self.asked);
        u64::from(pongs) + late
    }

    /// No link of this trunk is asked any more: the next trunk's is.
    pub(super) fn carry_over(&mut self) {
        let late = std::mem::take(&mut self.late);
        self.pongs += std::mem::take(&mut self.asked) + late.len() as u32;
    }

    /// Has owed PONGs released at `until`, unless they are sooner. Returns whether that is new.
    pub(super) fn hold_until(&mut self, until: Instant) -> bool {
        let is_new = self.pongs_until.is_none();
        self.pongs_until.get_or_insert(until);
        is_new
    }

    /// When owed PONGs are released unproven.
    pub(super) fn pongs_until(&self) -> Option<Instant> {
        self.pongs_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pong_behind_a_late_one_is_late_too() {
        let mut debts = Debts::default();
        debts.ask();
        debts.ask();
        assert!(!debts.answer(3, true));
        assert!(!debts.answer(4, false), "in order");
        assert!(!debts.is_asked() && debts.is_late() && !debts.is_in_turn());
        assert_eq!(debts.first_late(), Some(3));
        debts.pop_late();
        assert_eq!(debts.first_late(), Some(4));
    }

    #[test]
    fn what_a_dead_link_owes_the_next_one_is_asked_for() {
        let mut debts = Debts::default();
        debts.ask();
        debts.ask();
        debts.reopen();
        debts.reopen();
        assert!(debts.has_pongs() && !debts.is_asked());
        assert_eq!((debts.ask_again(), debts.is_asked()), (2, true));
        debts.owe_pong();
        assert_eq!(debts.release_all(), 3);
        assert!(debts.is_in_turn());
    }

    #[test]
    fn the_time_of_held_pongs_ends_with_the_first_of_them() {
        let mut debts = Debts::default();
        let now = Instant::now();
        debts.owe_pong();
        assert!(debts.hold_until(now));
        assert!(!debts.hold_until(now + std::time::Duration::from_secs(1)));
        assert_eq!(debts.pongs_until(), Some(now));
        assert_eq!((debts.take_pongs(), debts.pongs_until()), (1, None));
    }

    #[test]
    fn too_many_debts_stop_the_reading() {
        let mut debts = Debts::default();
        for _ in 0..PONGS_MOST {
            assert!(!debts.are_many());
            debts.owe_pong();
        }
        assert!(debts.are_many());
    }
}
