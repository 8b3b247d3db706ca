//! Questions about JetStream consumers that the trunks of a bus ask behind a failover (R44).

use std::rc::Rc;

use super::Bus;

/// Questions of one bus that are under way.
const QUESTIONS_MOST: usize = 1024;

/// A place among the questions that are under way, given back when it is dropped.
#[derive(Debug)]
pub(in crate::upstream) struct QuestionPlace {
    _place: Rc<()>,
}

impl Bus {
    /// Takes a place for a question; `None`: too many are under way.
    pub(in crate::upstream) fn take_question_place(&self) -> Option<QuestionPlace> {
        let places = &self.trunks.questions;
        let is_free = Rc::strong_count(places) <= QUESTIONS_MOST;
        is_free.then(|| QuestionPlace {
            _place: Rc::clone(places),
        })
    }
}
