//! Subscriptions that a broker refused while it stood by (R28).

use super::Trunk;
use super::link::{LinkId, OkOwner};
use crate::clock::Instant;
use crate::ledger::UpstreamSid;
use crate::ledger::operations::OWN;
use crate::proto::encode;
use crate::proto::error_text::{BrokerError, unquote};
use crate::upstream::bus::Turn;
use std::time::Duration;

/// Between two attempts at what a broker that stands by refused.
const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Trunk {
    /// R28: what a link's broker refuses, or takes back, while it stands by is remembered. It is
    /// asked again later, and once more when publishes go there: then its verdict counts.
    pub(super) fn note_lacking(&mut self, id: LinkId, error: &BrokerError<'_>, now: Instant) {
        match error {
            BrokerError::MaxSubscriptions => self.links[id].operations.count_too_many(),
            BrokerError::SubscriptionViolation { sid: Some(sid), .. } => {
                if let Some(upstream) = UpstreamSid::parse(sid) {
                    self.links[id].operations.refuse(upstream);
                    self.add_lacks(id, &[upstream], now);
                }
            }
            BrokerError::SubscriptionViolation {
                subject,
                queue_group,
                ..
            } => {
                let (subject, group) = (unquote(subject), queue_group.map(unquote));
                let equal = self.subscriptions.equal_to(&subject, group.as_deref());
                let lacks = self.links[id].independent.as_ref();
                let is_known = |sid: &UpstreamSid| {
                    let mut lacks = lacks.iter().flat_map(|link| &link.lacks);
                    lacks.any(|(lacking, asked)| lacking == sid && asked.is_none())
                };
                // Of several equal ones each is refused for itself.
                if let Some(upstream) = equal.into_iter().find(|sid| !is_known(sid)) {
                    self.links[id].operations.refuse(upstream);
                    self.add_lacks(id, &[upstream], now);
                }
            }
            _ => {}
        }
    }

    /// A link's broker doesn't have these.
    pub(super) fn add_lacks(&mut self, id: LinkId, sids: &[UpstreamSid], now: Instant) {
        let independent = self.links[id].independent.get_or_insert_default();
        for sid in sids.iter().filter(|sid| **sid != OWN) {
            independent.lacks.retain(|(lacking, _)| lacking != sid);
            independent.lacks.push((*sid, None));
        }
        independent.ask_at.get_or_insert(now + ASK_AGAIN);
    }

    /// Subscriptions that a link's broker was asked for again, and hasn't refused by now, it has.
    pub(super) fn note_granted(&mut self, id: LinkId, answered: u64) {
        if let Some(independent) = &mut self.links[id].independent {
            let granted = |asked: &Option<u64>| asked.is_some_and(|seq| seq <= answered);
            independent.lacks.retain(|(_, asked)| !granted(asked));
        }
    }

    /// Asks a link's broker again for what it refused.
    pub(super) fn ask_for_lacks(&mut self, id: LinkId, cx: &Turn<'_>) {
        let covered_by = self.links.next_ping();
        let link = &mut self.links[id];
        let Some(independent) = &mut link.independent else {
            return;
        };
        independent.ask_at = None;
        let mut lacks = std::mem::take(&mut independent.lacks);
        // One that has ended is lacked by nobody.
        lacks.retain(|(sid, _)| self.subscriptions.interest_of(*sid).is_some());
        let mut frame = std::mem::take(&mut self.scratch);
        for (sid, asked) in lacks.iter_mut().filter(|(_, asked)| asked.is_none()) {
            let Some(interest) = self.subscriptions.interest_of(*sid) else {
                continue;
            };
            let text = sid.text();
            encode::sub(
                &mut frame,
                interest.subject,
                interest.queue_group,
                text.as_bytes(),
            );
            link.push_operation(&frame, OkOwner::Nobody, covered_by, cx.now);
            link.operations.subscribe(*sid, covered_by);
            frame.clear();
            if let Some(left) = interest.left
                && self.overlap.is_none()
                && !cx.bus.presence().may_match(interest.subject)
            {
                let max = link.received(*sid) + left;
                encode::unsub(&mut frame, text.as_bytes(), Some(max));
                link.push_operation(&frame, OkOwner::Nobody, covered_by, cx.now);
                frame.clear();
            }
            *asked = Some(covered_by);
        }
        self.scratch = frame;
        if let Some(independent) = &mut self.links[id].independent {
            independent.lacks = lacks;
        }
    }

    /// When a link's broker is asked again for what it refused.
    pub(super) fn lacks_due(&self) -> Option<Instant> {
        let independent = self
            .links
            .iter()
            .filter_map(|link| link.independent.as_ref());
        independent.filter_map(|link| link.ask_at).min()
    }

    pub(super) fn ask_where_due(&mut self, cx: &Turn<'_>) {
        for id in self.links.ids() {
            let link = &self.links[id];
            let ask_at = link.independent.as_ref().and_then(|link| link.ask_at);
            if link.phase.is_subscribed() && ask_at.is_some_and(|at| at <= cx.now) {
                self.ask_for_lacks(id, cx);
            }
        }
    }
}
