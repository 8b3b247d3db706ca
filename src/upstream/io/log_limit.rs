//! A limit on log lines: what brokers say to many trunks at once is logged once, and then how
//! often.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::upstream::brokers::roster::BrokerId;

/// The least pause between two lines with one text of one broker.
const PAUSE: Duration = Duration::from_secs(10);
/// Texts that are kept in mind; brokers know few.
const KEPT: usize = 64;

/// A broker, and what it said; no broker: what natsmux says itself.
type Said = (Option<BrokerId>, Box<[u8]>);

/// The errors that brokers sent lately.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    /// When each was logged last, and how often it came since.
    said: BTreeMap<Said, (Instant, u64)>,
}

impl LogLimit {
    /// A broker sent this text. `Some` says that it is to be logged, and how often it came
    /// since it was logged last.
    pub(super) fn note(
        &mut self,
        broker: Option<BrokerId>,
        text: &[u8],
        now: Instant,
    ) -> Option<u64> {
        let key = (broker, text.into());
        if let Some((since, repeated)) = self.said.get_mut(&key) {
            if now.saturating_duration_since(*since) < PAUSE {
                *repeated += 1;
                return None;
            }
            *since = now;
            return Some(std::mem::take(repeated));
        }
        if self.said.len() == KEPT {
            let oldest = self.said.iter().min_by_key(|(_, (since, _))| *since);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                self.said.remove(&key);
            }
        }
        self.said.insert(key, (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_logged_once_in_a_while_with_the_number_of_the_others() {
        let mut log_limit = LogLimit::default();
        let start = Instant::now();
        let mut note = |broker, text: &[u8], at| log_limit.note(Some(BrokerId(broker)), text, at);
        assert_eq!(note(0, b"a", start), Some(0));
        for _ in 0..9_000 {
            assert_eq!(note(0, b"a", start), None);
        }
        assert_eq!(note(1, b"a", start), Some(0), "another broker");
        assert_eq!(note(0, b"b", start), Some(0), "another text");
        assert_eq!(note(0, b"a", start + PAUSE), Some(9_000));
        assert_eq!(note(0, b"a", start + 2 * PAUSE), Some(0));
    }

    #[test]
    fn the_oldest_of_many_texts_is_forgotten() {
        let mut log_limit = LogLimit::default();
        let start = Instant::now();
        for number in 0..=KEPT as u64 {
            let at = start + Duration::from_millis(number);
            log_limit.note(Some(BrokerId(0)), number.to_string().as_bytes(), at);
        }
        assert_eq!(log_limit.said.len(), KEPT);
        assert_eq!(log_limit.note(Some(BrokerId(0)), b"1", start), None);
        assert_eq!(log_limit.note(Some(BrokerId(0)), b"0", start), Some(0));
    }
}
