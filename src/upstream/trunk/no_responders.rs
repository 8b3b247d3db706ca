//! Statuses 503, by which a broker says that a request has no responders: told from what an
//! application publishes, and delivered to who asked (R24).

use super::Trunk;
use super::link::LinkId;
use super::slot::Slot;
use crate::ledger::SessionId;
use crate::proto::server::Msg;
use crate::upstream::bus::Bus;

/// The kind of a status that says that nobody listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// A message like any other.
    Application,
    /// The broker's own, to nobody else on the link, or to nobody who is still there.
    Own,
    /// The broker's own, to this one of several sessions.
    Answers(SessionId),
}

impl Trunk {
    /// Whether a status is the broker's own, and whose request it answers. What an application
    /// publishes is to the letter the same; but a broker's own answers a request that isn't proven
    /// yet, and since 2.12 names what was asked for (R24).
    pub(super) fn judge_status(&mut self, id: LinkId, msg: &Msg<'_>) -> Status {
        let Some(said) = msg.no_responders().filter(|_| self.connect.no_responders) else {
            return Status::Application;
        };
        let link = &mut self.links[id];
        if link.names_subject != said.subject.is_some() {
            return Status::Application;
        }
        let Some(owners) = &mut link.owners else {
            return if link.requested_by > link.answered {
                Status::Own
            } else {
                Status::Application
            };
        };
        match owners.find_request(&link.out, msg.subject, said.subject) {
            Some(Some(session)) => Status::Answers(session),
            Some(None) => Status::Own,
            None => Status::Application,
        }
    }

    /// A request is about to be published. Where an application's status couldn't be told from the
    /// broker's own otherwise, it is fenced at once: then that comes before the PONG, and an
    /// application's behind it.
    pub fn note_request(&mut self, session: SessionId, bus: &Bus) {
        let is_held = |slot: &Slot| !slot.held.is_empty();
        if self.sessions.get(session).is_none_or(is_held) {
            return;
        }
        if let Some(id) = self.open(bus) {
            let covered_by = self.links.next_ping();
            let link = &mut self.links[id];
            link.requested_by = covered_by;
            let is_ambiguous = self.any_limited || (self.sharing.is_some() && !link.names_subject);
            link.fences_next |= is_ambiguous && self.connect.no_responders;
        }
    }

    /// R24: a status that says that a request has no responders goes to who asked, under the sid
    /// that a broker would choose for it.
    pub(super) fn deliver_status(&mut self, session: SessionId, msg: &Msg<'_>, bus: &mut Bus) {
        let Some(sid) = self.subscriptions.answered_by(session, msg.subject) else {
            return;
        };
        let frame = [b"HMSG ", msg.subject, b" ", sid, msg.after_sid].concat();
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.traffic.count_out(msg.size);
        }
        bus.counters_mut().out_msgs += 1;
        bus.counters_mut().out_bytes += msg.size as u64;
        self.sessions.deliver(session, &[&frame], bus);
    }
}
