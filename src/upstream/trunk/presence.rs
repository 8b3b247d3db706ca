//! Presence of hosts on independent brokers, as one trunk announces it and hears it (R29).

use super::Trunk;
use super::action::{Action, Report};
use super::link::{LinkId, OkOwner};
use crate::clock::Instant;
use crate::ledger::UpstreamSid;
use crate::ledger::operations::OWN;
use crate::proto::encode;
use crate::upstream::brokers::presence::Heard;
use crate::upstream::bus::Turn;

/// The sid of what other hosts announce; no [`UpstreamSid`] is written so.
pub(super) const PRESENCE_SID: &[u8] = b"-p";

impl Trunk {
    /// Tells the other hosts on which brokers this one is subscribed (R29).
    pub(super) fn announce(&mut self, cx: &mut Turn<'_>) {
        let Some(several) = self
            .route
            .several_mut()
            .filter(|_| cx.bus.presence().is_on())
        else {
            return;
        };
        let identity = cx.bus.admission().digest(&self.connect);
        several.carries = cx.bus.is_carrier(self.id, identity, cx.now);
        if !several.carries {
            return self.stop_hearing(cx.now);
        }
        if several.announced >= cx.bus.presence().round() {
            return;
        }
        several.announced = cx.bus.presence().round();
        let reaches = cx.bus.reaches();
        let subject = cx.bus.presence().own_subject();
        let subscription = cx.bus.presence().subscription();
        let mut frame = std::mem::take(&mut self.scratch);
        let covered_by = self.links.next_ping();
        for link in self
            .links
            .iter_mut()
            .filter(|link| link.phase.is_subscribed())
        {
            let mut operations = 1;
            let independent = link.independent.get_or_insert_default();
            independent.announced = true;
            if !std::mem::replace(&mut independent.hears_presence, true) {
                encode::sub(&mut frame, &subscription, None, PRESENCE_SID);
                link.operations.subscribe(OWN, covered_by);
                operations += 1;
            }
            let said =
                cx.bus
                    .presence()
                    .announcement(&independent.server_id, self.id, &reaches, cx.now);
            encode::publish(&mut frame, &subject, &said);
            link.out.push(&frame);
            // With at-least-once, what lies before it stays in memory until a fence.
            link.note_unfenced(frame.len(), 0, cx.now);
            if link.verbose {
                link.oks.push(OkOwner::Nobody, operations);
            }
            frame.clear();
        }
        self.scratch = frame;
    }

    /// Another trunk announces the host, and hears the others.
    fn stop_hearing(&mut self, now: Instant) {
        for id in self.links.ids() {
            if self.links[id].phase.is_subscribed() {
                self.unsubscribe_presence(id, now);
            }
        }
    }

    /// Another host has announced itself, or this one hears itself.
    pub(super) fn hear(&mut self, id: LinkId, json: &[u8], cx: &mut Turn<'_>) {
        let link = &self.links[id];
        let broker = link.broker;
        let who = (self.id, self.identity(cx.bus));
        let server_id = link.server_id().to_owned();
        if cx.bus.hear(json, &server_id, who, cx.now) == Heard::Routed {
            let report = Report::WrongTopology { broker };
            self.actions.push_back(Action::Report(report));
        }
    }

    /// Whether an error is about what natsmux itself asked for: a component hears nothing of
    /// that. Presence is off then, and order alone decides.
    pub(super) fn is_about_presence(&mut self, id: LinkId, text: &[u8], cx: &mut Turn<'_>) -> bool {
        let independent = self.links[id].independent.as_ref();
        if !independent.is_some_and(|independent| independent.announced) {
            return false;
        }
        let quoted = |subject: Vec<u8>| {
            let subject = [&b"\""[..], &subject, b"\""].concat();
            memchr::memmem::find(text, &subject).is_some()
        };
        let presence = cx.bus.presence();
        if !quoted(presence.own_subject()) && !quoted(presence.subscription()) {
            return false;
        }
        self.links[id].oks.pop();
        if quoted(cx.bus.presence().subscription()) {
            self.links[id].operations.refuse(OWN);
        }
        self.lose_presence(id, cx);
        true
    }

    /// Natsmux's own subscription gives way to these, which a link's broker refused because of
    /// it: a component has as many as at the broker itself.
    pub(super) fn give_way(&mut self, id: LinkId, sids: &[UpstreamSid], cx: &mut Turn<'_>) {
        self.unsubscribe_presence(id, cx.now);
        self.lose_presence(id, cx);
        self.add_lacks(id, sids, cx.now);
        self.ask_for_lacks(id, cx);
    }

    /// Ends natsmux's own subscription on a link, where there is one.
    fn unsubscribe_presence(&mut self, id: LinkId, now: Instant) {
        let covered_by = self.links.next_ping();
        let link = &mut self.links[id];
        let independent = link.independent.as_mut();
        if independent.is_some_and(|own| std::mem::take(&mut own.hears_presence)) {
            let mut frame = Vec::new();
            encode::unsub(&mut frame, PRESENCE_SID, None);
            link.push_operation(&frame, OkOwner::Nobody, covered_by, now);
            link.operations.unsubscribe(OWN, covered_by);
        }
    }

    /// A link's broker took no more subscriptions, natsmux's own among them.
    pub(super) fn lose_presence(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        if let Some(independent) = &mut self.links[id].independent {
            independent.hears_presence = false;
        }
        let identity = self.identity(cx.bus);
        if let Some(several) = self.route.several_mut() {
            several.carries = false;
        }
        if cx.bus.forbid_presence(identity, cx.now) {
            let broker = self.links[id].broker;
            let report = Report::PresenceForbidden { broker };
            self.actions.push_back(Action::Report(report));
        }
    }
}
