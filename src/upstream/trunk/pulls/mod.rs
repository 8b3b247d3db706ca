//! Pull requests of JetStream consumers that brokers have not served yet (R44).
//!
//! A request dies with the interest in its reply, or is used up by messages that go to a dead
//! broker, and nobody tells its component. So natsmux keeps what was asked for and counts what
//! comes, and asks for the rest behind a failover.

mod count;
mod pull;
mod questions;
mod resume;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::link::LinkId;
use crate::clock::Instant;
use crate::ledger::{SessionId, UpstreamSid};
use crate::proto::client::Publish;
use crate::proto::pull::{PullRequest, is_pull};
use crate::upstream::bus::{Bus, Charge};
use pull::{Asked, Place, Pull, Stage};
use questions::Question;

/// The longest subject, reply and header block of a request that is kept, in bytes.
const TEXT_MOST: usize = 256;
/// Subscriptions of one session with open requests.
const PULLS_MOST: usize = 1024;
/// What the record of one costs the budget, in bytes.
const PULL_BYTES: usize = 1024;
/// Those whose subscriptions have ended are forgotten behind so many new ones.
const PRUNE_EVERY: usize = 64;
/// Subscriptions that are looked at for the replies of requests, within a time: no component may
/// have natsmux search all the time.
const LOOKS_MOST: usize = 20_000;
const LOOKS_WITHIN: Duration = Duration::from_millis(100);

/// The open requests of a trunk's sessions.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    open: BTreeMap<UpstreamSid, Pull>,
    /// The subscription that the last one was for.
    last: Option<UpstreamSid>,
    /// How many have come since the last pruning.
    new: usize,
    /// Subscriptions that were looked at since this time.
    looks: Option<(Instant, usize)>,
    questions: Vec<Question>,
    /// Never used twice on one link.
    next_question: u32,
    /// Whether SUBs may be left out of the present replay.
    withholds_any: bool,
    /// SUBs wait for answers on this link until then, and publishes with them.
    asking: Option<(LinkId, Instant)>,
    /// When something is due; may be too early, never too late.
    due: Option<Instant>,
}

impl Pulls {
    /// Enters a request that was just published. Returns whether it is kept.
    fn note(
        &mut self,
        (session, upstream): (SessionId, UpstreamSid),
        publish: &Publish<'_>,
        place: Place,
        bus: &Bus,
        now: Instant,
    ) -> bool {
        let Some(asked) = read(publish) else {
            return false;
        };
        self.last = Some(upstream);
        if !self.open.contains_key(&upstream) {
            let of_session = || self.open.values().filter(|pull| pull.session == session);
            let budget = &bus.budgets().pulls;
            let is_full = self.open.len() >= PULLS_MOST && of_session().count() >= PULLS_MOST;
            if is_full || budget.is_spent() {
                return false;
            }
            let charge = Charge::new(Rc::clone(budget), PULL_BYTES);
            let pull = Pull::new(session, publish.subject, charge);
            self.open.insert(upstream, pull);
            self.new += 1;
        }
        let Some(pull) = self.open.get_mut(&upstream) else {
            return false;
        };
        // A reply that serves several consumers tells nothing of any.
        let is_its = *pull.subject == *publish.subject;
        if is_its {
            pull.add(&asked, place, now);
        }
        is_its
    }

    /// How many subscriptions have open requests.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether a session has requests that wait for a link.
    pub(super) fn holds_any(&self, session: SessionId) -> bool {
        let own = self.open.values().filter(|pull| pull.session == session);
        let mut requests = own.flat_map(|pull| &pull.requests);
        requests.any(|request| request.place == Place::Held)
    }

    /// A session is here no more, and its number may soon be another's.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.open.retain(|_, pull| pull.session != session);
    }

    /// Whether a subscription's SUB waits for an answer.
    pub(super) fn withholds(&self, upstream: UpstreamSid) -> bool {
        let pull = self.open.get(&upstream).filter(|_| self.withholds_any);
        pull.is_some_and(|pull| matches!(pull.stage, Stage::Withheld | Stage::Asked))
    }

    /// Whether publishes wait for answers.
    pub(super) fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// When something may be due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn note_due(&mut self, at: Option<Instant>) {
        self.due = self.due.into_iter().chain(at).min();
    }

    fn note_due_of(&mut self, upstream: UpstreamSid) {
        let due = self.open.get(&upstream).and_then(Pull::due);
        self.note_due(due);
    }

    /// Forgets requests whose subscriptions have ended, from time to time.
    fn prune(&mut self, lives: impl Fn(UpstreamSid) -> bool) {
        if self.new >= PRUNE_EVERY {
            self.new = 0;
            self.open.retain(|upstream, _| lives(*upstream));
        }
    }

    /// How many subscriptions may be looked at now.
    fn may_look(&mut self, now: Instant) -> usize {
        let (since, looks) = self.looks.get_or_insert((now, 0));
        if now.saturating_duration_since(*since) >= LOOKS_WITHIN {
            (*since, *looks) = (now, 0);
        }
        LOOKS_MOST.saturating_sub(*looks)
    }

    fn note_looks(&mut self, count: usize) {
        if let Some((_, looks)) = &mut self.looks {
            *looks += count;
        }
    }
}

/// Whether a publish may be a request that is kept: most are none.
#[inline]
pub fn may_be_pull(publish: &Publish<'_>) -> bool {
    publish.reply.is_some() && is_pull(publish.subject)
}

/// Reads a request that can be kept.
fn read<'p>(publish: &Publish<'p>) -> Option<Asked<'p>> {
    let payload = publish.payload();
    let header_len = publish.header_len.unwrap_or(0).min(payload.len());
    let (headers, body) = payload.split_at(header_len);
    let reply = publish.reply?;
    // A wildcard is no reply, and what brokers would escape isn't found in their errors.
    let is_plain = |text: &[u8]| {
        let is_odd =
            |byte: &u8| matches!(byte, b'*' | b'>' | b'"' | b'\\') || !byte.is_ascii_graphic();
        text.len() <= TEXT_MOST && !text.iter().any(is_odd)
    };
    let fits = is_plain(publish.subject) && is_plain(reply) && headers.len() <= TEXT_MOST;
    let request = PullRequest::parse(body).filter(|_| fits)?;
    Some(Asked {
        reply,
        headers,
        body,
        request,
    })
}
