//! Independent brokers: subscribed on all of them, publishing to one (R26-R32).
//!
//! Each broker that lives has a link with the whole ledger. One of them is *live*: publishes go
//! there, and it judges (R28). The others stand by. Where the live one dies, the next takes
//! over as it is: nothing has to be replayed.

use std::time::Duration;

use super::Trunk;
use super::action::{Action, Report};
use super::link::{Link, LinkId, OkOwner, Phase};
use super::link_setup::RETRY;
use super::session_input::NO_SID;
use crate::clock::Instant;
use crate::ledger::operations::OWN;
use crate::ledger::{SessionId, Settled, UpstreamSid};
use crate::proto::encode;
use crate::proto::error_text::{BrokerError, unquote};
use crate::upstream::brokers::presence::Heard;
use crate::upstream::brokers::roster::{BrokerId, Failure, Health};
use crate::upstream::bus::{Bus, Turn};

/// The sid of what other hosts announce; no [`UpstreamSid`] is written so.
pub(super) const PRESENCE_SID: &[u8] = b"-p";
/// How long a new trunk waits for the link to a better broker.
const START_PATIENCE: Duration = Duration::from_millis(300);

/// The longest that a planned change waits for what is on its way to other hosts, where the
/// configuration asks for less.
const SETTLE_MOST: Duration = Duration::from_secs(1);

/// Between two attempts at what a broker that stands by refused.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A planned change of the broker that publishes go to (R30).
#[derive(Clone, Copy, Debug)]
pub(super) struct Switch {
    to: LinkId,
    /// The PING on the present link that must be answered.
    after: u64,
    /// When the change is made, once it is.
    settled_at: Option<Instant>,
}

/// A broker that turned the trunk away, and is asked again later.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    broker: BrokerId,
    failures: u32,
    /// `None`: it may be asked.
    until: Option<Instant>,
}

impl Trunk {
    /// Dials every broker that has no link and may have one.
    pub(super) fn dial_all(&mut self, cx: &mut Turn<'_>) {
        if self.done {
            return;
        }
        if let Some(planned) = self.moving {
            if planned.after.is_some() {
                return;
            }
            self.renew_links(cx);
        }
        self.leave_removed(cx);
        if self.leave_frozen(cx) {
            return;
        }
        if cx.bus.presence.is_routed() && !self.links.is_empty() {
            // R26: as in a cluster, one link has all that there is.
            return self.leave_standbys(cx);
        }
        let paused = self.pauses.iter().filter(|pause| pause.until.is_some());
        let linked = self.links.iter().map(|link| link.broker);
        let has: Vec<BrokerId> = linked.chain(paused.map(|pause| pause.broker)).collect();
        if !self.links.any_attached() {
            self.needed_since.get_or_insert(cx.now);
        }
        let identity = self.identity(cx.bus);
        let dials = match cx.bus.presence.is_routed() {
            true => cx.bus.pick_one(self.id, identity, &has, cx.now),
            false => cx.bus.pick_all(self.id, identity, &has, cx.now),
        };
        for broker in dials {
            self.dial(broker, cx);
        }
        if self.links.is_empty() {
            self.try_to_admit(cx);
            self.answer_what_needs_no_broker(cx.bus);
        }
    }

    /// A broker turned the trunk away, or hung up at once.
    pub(super) fn pause(&mut self, broker: BrokerId, cx: &Turn<'_>) {
        if !self.independent {
            return;
        }
        let at = self.pauses.iter().position(|pause| pause.broker == broker);
        let failures = at.map_or(0, |at| self.pauses.swap_remove(at).failures) + 1;
        let third = cx.bus.settings.timings.failback_delay / 3;
        let delay = RETRY.delay(failures, self.id.0).min(third);
        self.pauses.push(Pause {
            broker,
            failures,
            until: Some(cx.now + delay),
        });
    }

    /// A link's ledger is in place.
    pub(super) fn stand_by(&mut self, id: LinkId) {
        let link = &mut self.links[id];
        link.phase = Phase::Standby;
        link.deadline = None;
        let broker = link.broker;
        self.pauses.retain(|pause| pause.broker != broker);
    }

    /// Lets the best link that there is become the live one: at once where there is none, and
    /// in order where another lives (R30).
    pub(super) fn choose_target(&mut self, cx: &mut Turn<'_>) {
        if self.done || self.moving.is_some() || !self.independent {
            return;
        }
        self.choose_at = None;
        let rank = |link: &Link| self.rank(link, cx);
        let subscribed = self.links.iter().filter(|link| link.phase.is_subscribed());
        let Some(best) = subscribed.min_by_key(|link| rank(link)) else {
            return;
        };
        let (best_id, best_rank) = (best.id, rank(best));
        let Some(live) = self.live() else {
            // At the start, a better one that is on its way is waited for.
            let patience = |link: &Link| link.opened_at + START_PATIENCE;
            let coming = self.links.iter().filter(|link| {
                let joining = !link.phase.is_subscribed() && patience(link) > cx.now;
                joining && self.lost.is_none() && rank(link) < best_rank
            });
            // Behind an outage, so are the hosts that were there before it.
            let awaited = cx.bus.presence.awaits(best.server_id(), cx.now);
            let coming = coming.map(patience).min();
            if let Some(until) = coming.into_iter().chain(awaited).min() {
                self.choose_at = Some(until);
                if coming.is_none() {
                    // Publishes wait for those, and components needn't.
                    self.make_ready();
                }
            } else {
                self.go_live(best_id, cx);
            }
            return;
        };
        let worth = best_rank < rank(&self.links[live]);
        let sound = !self.is_suspect(live, cx.bus) && !best_rank.0;
        let switch = self.switch.as_ref();
        let on_its_way = switch.is_some_and(|switch| switch.to == best_id);
        if worth && sound && !on_its_way {
            let after = self.links.fence(live, cx);
            self.switch = Some(Box::new(Switch {
                to: best_id,
                after,
                settled_at: None,
            }));
        } else if !worth && self.switch.take().is_some() {
            self.resume(live, cx);
        }
    }

    /// The lower, the better: suspect, about to leave, not the bus's choice, its place.
    fn rank(&self, link: &Link, cx: &Turn<'_>) -> (bool, bool, bool, usize) {
        let suspect = cx.bus.watch(link.broker).suspect_since().is_some();
        let broker = cx.bus.roster.broker(link.broker);
        let leaving = broker.is_removed() || broker.health() == Health::LameDuck;
        let chosen = cx.bus.roster.current() == link.broker;
        let place = cx.bus.roster.place(link.broker, cx.now);
        (suspect, leaving, !chosen, place)
    }

    /// The live link has answered a PING: a planned change may be due soon.
    pub(super) fn go_on_switching(&mut self, cx: &Turn<'_>) {
        let answered = self.links.answered();
        if let Some(switch) = &mut self.switch
            && switch.settled_at.is_none()
            && switch.after <= answered
        {
            let settle = cx.bus.settings.timings.switch_settle;
            let farthest = cx.bus.longest_round_trip();
            // A link that stalled looks far away: publishes don't wait for that.
            let farthest = (2 * farthest).min(SETTLE_MOST);
            switch.settled_at = Some(cx.now + settle.max(farthest));
        }
    }

    /// When a planned change of target, the choice of the first one, or another attempt is due.
    pub(super) fn target_due(&self, bus: &Bus) -> Option<Instant> {
        // Asked of few: the first trunk that finds it due has all carriers announce.
        let announcement = bus
            .presence
            .due()
            .filter(|_| self.independent && self.carries);
        let switch = self.switch.as_ref().and_then(|switch| switch.settled_at);
        let pauses = self.pauses.iter().filter_map(|pause| pause.until);
        let others = [switch, self.choose_at, announcement, self.lacks_due()];
        pauses.chain(others.into_iter().flatten()).min()
    }

    /// Does what is due.
    pub(super) fn handle_target_timeout(&mut self, cx: &mut Turn<'_>) {
        if cx.bus.presence.due().is_some_and(|due| due <= cx.now) {
            // Behind an outage, others publish once this host says that it is there: all of it.
            let replaying =
                cx.bus.presence.is_gathering(cx.now) && cx.bus.barrier_opens_at(cx.now).is_some();
            match replaying {
                true => cx.bus.presence.put_off(cx.now),
                false => cx.bus.begin_announcing(cx.now),
            }
            self.announce(cx);
        }
        self.ask_where_due(cx);
        let mut again = false;
        for pause in &mut self.pauses {
            again |= pause.until.take_if(|until| *until <= cx.now).is_some();
        }
        if again {
            self.dial_all(cx);
        }
        if self.choose_at.is_some_and(|at| at <= cx.now) {
            self.choose_target(cx);
        }
        let due = |switch: &mut Box<Switch>| switch.settled_at.is_some_and(|at| at <= cx.now);
        let Some(switch) = self.switch.take_if(due) else {
            return;
        };
        let Some(old) = self.live().filter(|_| self.links.has(switch.to)) else {
            return;
        };
        let new = switch.to;
        if self.is_suspect(new, cx.bus) {
            self.resume(old, cx);
            return;
        }
        let link = &mut self.links[old];
        link.phase = Phase::Standby;
        let from = link.broker;
        // What it hasn't answered to a verbose session is answered by natsmux, as behind a
        // failover (R20).
        let oks = link.oks.owed(OkOwner::Operation);
        link.oks.disown();
        let cause = Self::must_leave(from, cx.bus).unwrap_or(Failure::Failback);
        self.lost = Some((from, cause, cx.now));
        let last_read = link.last_read_at;
        cx.bus
            .note_lost(from, cause, last_read, &Settled::default(), 0, cx.now);
        for slot in self.sessions.iter_mut() {
            slot.debts.oks += oks;
        }
        self.go_live(new, cx);
        self.leave_removed(cx);
    }

    /// A link that stood by is gone.
    pub(super) fn lose_standby(&mut self, link: Link, failure: Failure, cx: &mut Turn<'_>) {
        let (id, broker) = (link.id, link.broker);
        let brief = cx.now.saturating_duration_since(link.opened_at) < super::attempts::BRIEF;
        cx.bus.counters.link_failures += 1;
        self.note_lost_link(broker, failure, cx);
        if brief {
            self.pause(broker, cx);
        }
        let (settled, _) = self.settle(link, cx.bus);
        self.requeue(settled, cx.bus);
        self.actions.push_back(Action::Report(Report::Lost {
            link: id,
            broker,
            failure,
            first: false,
        }));
        if self.switch.take_if(|switch| switch.to == id).is_some()
            && let Some(live) = self.live()
        {
            self.resume(live, cx);
        }
        self.release_late(cx.bus);
    }

    /// Leaves a broker that another trunk has found dead by its silence: what is published to it
    /// once it thaws wouldn't come to those that have left. Returns whether there was any, and
    /// all else was done.
    fn leave_frozen(&mut self, cx: &mut Turn<'_>) -> bool {
        let frozen = |link: &Link| link.is_attached() && cx.bus.roster.is_frozen(link.broker);
        let id = self.links.find(frozen);
        if let Some(id) = id {
            // It looks for the next one, and comes back here.
            self.fail(id, Failure::Silent, cx);
        }
        id.is_some()
    }

    /// Leaves brokers that are no longer configured, where publishes don't go.
    fn leave_removed(&mut self, cx: &mut Turn<'_>) {
        while let Some(id) = self.links.find(|link| {
            link.phase == Phase::Standby && cx.bus.roster.broker(link.broker).is_removed()
        }) {
            let link = self.drop_link(id, false, cx.bus);
            self.lose_standby(link, Failure::Removed, cx);
        }
    }

    /// Leaves all brokers but the one that publishes go to.
    fn leave_standbys(&mut self, cx: &mut Turn<'_>) {
        if self.live().is_none() {
            return;
        }
        let stands_by = |link: &Link| link.phase != Phase::Live;
        while let Some(id) = self.links.find(stands_by) {
            let link = self.drop_link(id, false, cx.bus);
            if link.is_attached() {
                self.lose_standby(link, Failure::Removed, cx);
            }
        }
    }

    /// A second CONNECT: all links are opened anew, under the new options (R20).
    pub(super) fn renew_links(&mut self, cx: &mut Turn<'_>) {
        self.moving = None;
        self.switch = None;
        while let Some(id) = self.links.first() {
            let link = self.drop_link(id, false, cx.bus);
            if !link.is_attached() {
                continue;
            }
            // Of a failover that isn't over, the operator is still told the sum.
            self.lost
                .get_or_insert((link.broker, Failure::NewConnect, cx.now));
            cx.bus.detached(self.id, link.broker, cx.now);
            let (settled, _) = self.settle(link, cx.bus);
            self.requeue(settled, cx.bus);
        }
        self.release_late(cx.bus);
    }

    /// Tells the other hosts on which brokers this one is subscribed (R29).
    pub(super) fn announce(&mut self, cx: &mut Turn<'_>) {
        if !self.independent || !cx.bus.presence.is_on() {
            return;
        }
        self.carries = cx.bus.is_carrier(self.id, self.identity(cx.bus), cx.now);
        if !self.carries {
            return self.stop_hearing(cx.now);
        }
        if self.announced >= cx.bus.presence.round() {
            return;
        }
        self.announced = cx.bus.presence.round();
        let reaches = cx.bus.reaches();
        let subject = cx.bus.presence.own_subject();
        let subscription = cx.bus.presence.subscription();
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
                    .presence
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
        let presence = &cx.bus.presence;
        if !quoted(presence.own_subject()) && !quoted(presence.subscription()) {
            return false;
        }
        self.links[id].oks.pop();
        if quoted(cx.bus.presence.subscription()) {
            self.links[id].operations.refuse(OWN);
        }
        self.lose_presence(id, cx);
        true
    }

    /// R28: what a link's broker refuses, or takes back, while it stands by is remembered. It is
    /// asked again later, and once more when publishes go there: then its verdict counts.
    pub(super) fn note_lacking(&mut self, id: LinkId, error: &BrokerError<'_>, now: Instant) {
        match error {
            BrokerError::MaxSubscriptions => self.links[id].operations.note_too_many(false),
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

    /// What a link's broker was asked for again, and hasn't refused by now, it has.
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
                && !cx.bus.presence.may_match(interest.subject)
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
    fn lacks_due(&self) -> Option<Instant> {
        let independent = self
            .links
            .iter()
            .filter_map(|link| link.independent.as_ref());
        independent.filter_map(|link| link.ask_at).min()
    }

    fn ask_where_due(&mut self, cx: &Turn<'_>) {
        for id in self.links.ids() {
            let link = &self.links[id];
            let ask_at = link.independent.as_ref().and_then(|link| link.ask_at);
            if link.phase.is_subscribed() && ask_at.is_some_and(|at| at <= cx.now) {
                self.ask_for_lacks(id, cx);
            }
        }
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
        self.carries = false;
        if cx.bus.forbid_presence(identity, cx.now) {
            let broker = self.links[id].broker;
            let report = Report::PresenceForbidden { broker };
            self.actions.push_back(Action::Report(report));
        }
    }

    /// R31: a broker would count announcements towards its max.
    fn is_counted_here(&self, upstream: UpstreamSid, bus: &Bus) -> bool {
        let subject = self.subscriptions.subject(upstream);
        subject.is_some_and(|subject| bus.presence.may_match(subject))
    }

    /// R27: asks the links that stand by, or soon will, as well, ahead of the live one. One
    /// that is suspect is waited for if it isn't by then.
    pub(super) fn ping_standbys(&mut self, cx: &mut Turn<'_>) {
        for id in self.links.ids() {
            let link = &self.links[id];
            if link.takes_subscriptions() && link.phase != Phase::Live {
                self.links.fence(id, cx);
            }
        }
    }

    /// Asks every link that takes SUBs and UNSUBs; returns the live one's PING.
    pub(super) fn ping_everywhere(&mut self, cx: &mut Turn<'_>) -> Option<u64> {
        self.unmarked = None;
        self.ping_standbys(cx);
        let live = self.live();
        live.map(|at| self.links.fence(at, cx))
    }

    /// Whether every link, but for those that stand by and are suspect, has answered what it was
    /// asked before the PING with this number (R27).
    pub(super) fn all_answered(&self, seq: u64, bus: &Bus) -> bool {
        self.concerned(bus).all(|link| {
            let oldest = link.pings.oldest();
            oldest.is_none_or(|oldest| oldest.seq > seq)
        })
    }

    /// Whether all of these have proven every SUB and UNSUB.
    pub(super) fn has_proven_operations(&self, bus: &Bus) -> bool {
        self.concerned(bus).all(Link::has_proven_operations)
    }

    fn concerned(&self, bus: &Bus) -> impl Iterator<Item = &Link> {
        let links = self.links.iter();
        links.filter(|link| match link.phase {
            Phase::Live => true,
            Phase::Standby => !self.is_suspect(link.id, bus),
            _ => false,
        })
    }

    /// Gives the PONGs that waited for links that stand by.
    pub(super) fn release_late(&mut self, bus: &Bus) {
        if !self.independent {
            return;
        }
        for session in self.sessions.awaiting_pong() {
            loop {
                let slot = self.sessions.get(session);
                let Some(seq) = slot.and_then(|slot| slot.debts.first_late()) else {
                    break;
                };
                if !self.all_answered(seq, bus) {
                    break;
                }
                self.sessions[session].debts.pop_late();
                self.sessions.deliver_pong(session, bus);
            }
        }
        self.close_finished();
    }

    /// R31: tells every broker how many more of a subscription are wanted.
    pub(super) fn send_limit(
        &mut self,
        session: SessionId,
        upstream: UpstreamSid,
        left: u64,
        cx: &Turn<'_>,
    ) {
        let counted_here = self.is_counted_here(upstream, cx.bus);
        let owner = self.note_operation(session);
        let covered_by = self.links.next_ping();
        let mut frame = std::mem::take(&mut self.scratch);
        for link in self.links.iter_mut() {
            if !link.takes_subscriptions() {
                continue;
            }
            let max = link.received(upstream) + left;
            match counted_here {
                true => encode::unsub(&mut frame, NO_SID, None),
                false => encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max)),
            }
            let told = OkOwner::of_operation(Some(link.id) == owner);
            link.push_operation(&frame, told, covered_by, cx.now);
            frame.clear();
        }
        self.scratch = frame;
    }

    /// R31: the counts of the other brokers are old by now.
    pub(super) fn send_limits(&mut self, cx: &Turn<'_>) {
        let covered_by = self.links.next_ping();
        let limited: Vec<_> = self
            .subscriptions
            .iter()
            .filter(|(_, interest)| !cx.bus.presence.may_match(interest.subject))
            .filter_map(|(upstream, interest)| Some((upstream, interest.left?)))
            .collect();
        for (upstream, left) in limited {
            let mut frame = std::mem::take(&mut self.scratch);
            for link in self.links.subscribed_mut() {
                let max = link.received(upstream) + left;
                encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max));
                link.push_operation(&frame, OkOwner::Nobody, covered_by, cx.now);
                frame.clear();
            }
            self.scratch = frame;
        }
    }

    /// Ends a subscription on all links but one whose broker has ended it already.
    pub(super) fn unsubscribe_but(
        &mut self,
        ended: Option<LinkId>,
        upstream: UpstreamSid,
        now: Instant,
    ) {
        let covered_by = self.links.next_ping();
        let mut holders = 0;
        let mut frame = std::mem::take(&mut self.scratch);
        encode::unsub(&mut frame, upstream.text().as_bytes(), None);
        for link in self.links.iter_mut() {
            if Some(link.id) == ended || !link.takes_subscriptions() {
                continue;
            }
            holders += 1;
            link.push_operation(&frame, OkOwner::Nobody, covered_by, now);
            link.operations.unsubscribe(upstream, covered_by);
            link.retired.push_back((covered_by, upstream));
        }
        self.subscriptions.hold(upstream, holders);
        frame.clear();
        self.scratch = frame;
    }
}
