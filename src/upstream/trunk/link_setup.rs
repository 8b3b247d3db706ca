//! A link's way from dial to live:
//! INFO → CONNECT, PING → PONG → every SUB, PING → PONG → waiting publishes → owed PINGs.

use std::time::Duration;

use super::action::{Action, Report};
use super::link::{Link, LinkId, OkOwner, Phase};
use super::route::Step;
use super::sharing::{CROWDED_FOR, Crowded};
use super::{CloseReason, Trunk, Verdict};
use crate::config::TlsMode;
use crate::net::Partial;
use crate::proto::encode;
use crate::proto::info::HeaderSupport;
use crate::proto::info::ServerInfo;
use crate::upstream::brokers::roster::{BrokerId, Departure, Failure};
use crate::upstream::brokers::trouble::IdentityDigest;
use crate::upstream::bus::{Bus, Turn};

/// From this version on, a status that nobody listens names the subject.
const FIRST_TO_NAME_SUBJECTS: [u64; 3] = [2, 12, 0];

/// A fence follows each so many bytes of a replay: its PONGs are progress.
const REPLAY_FENCE_BYTES: usize = 64 * 1024;

/// A broker without a verdict on CONNECT is left after this where another one lives, and after
/// this in any case, whatever it says to others.
const VERDICT_WITH_SPARE: Duration = Duration::from_secs(1);
const VERDICT_MOST: Duration = Duration::from_secs(30);

impl Trunk {
    /// Takes the next steps on the way to brokers.
    pub(super) fn next_attempt(&mut self, cx: &mut Turn<'_>) {
        self.end_relay_without_link(cx);
        if self.done || !self.may_dial() {
            return;
        }
        if self.route.must_move() && self.overlap.is_some() {
            // One after the other.
            return;
        }
        if let Some(planned) = &self.route.moving
            && self.route.is_independent()
        {
            if planned.after.is_some() {
                return;
            }
            // From now on one link after the other gives way.
            self.route.moving = None;
        }
        for step in self.route.next(self.id, &self.connect, &self.links, cx) {
            match step {
                Step::Dial(broker) => {
                    self.dial(broker, cx);
                }
                // One after the other: what the last one moved may still come twice.
                Step::Redial(_) if self.overlap.is_some() => {}
                Step::Redial(broker) => {
                    cx.bus.roster_mut().begin_dial(broker);
                    self.dial(broker, cx);
                }
                Step::Reopen => {
                    self.renew_links(Departure::NewConnect, cx);
                    return self.next_attempt(cx);
                }
                Step::Leave(link) => {
                    self.release_before_loss(link, cx);
                    self.leave(link, Departure::Removed, cx);
                    self.promote_new(cx);
                }
                Step::Fail(link) => self.fail(link, Failure::Silent, cx),
                Step::Wait if self.is_relay() => {}
                Step::Wait => {
                    self.try_to_admit(cx);
                    self.answer_what_needs_no_broker(cx.bus);
                }
            }
        }
        self.go_on_under_new_options(cx);
    }

    /// R2: without any broker, a PING behind which nothing is unconfirmed is answered at once, also
    /// one that the last broker took along.
    pub(super) fn answer_what_needs_no_broker(&mut self, bus: &Bus) {
        if !self.ready || self.links.any_attached() {
            return;
        }
        let answered = self.links.answered();
        for session in self.sessions.ids() {
            let slot = &mut self.sessions[session];
            if !slot.debts.has_pongs() || slot.is_unproven(answered) {
                continue;
            }
            for _ in 0..slot.debts.take_pongs() {
                self.sessions.deliver_pong(session, bus);
            }
            self.sessions.close_unasked(session);
        }
    }

    /// A dial's connection is open.
    pub fn handle_connected(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        link.last_read_at = cx.now;
        if cx.bus.roster().tls_mode(link.broker) == TlsMode::First {
            return self.secure(id, cx);
        }
        self.await_info(id, cx);
    }

    fn await_info(&mut self, id: LinkId, cx: &Turn<'_>) {
        let link = &mut self.links[id];
        link.phase = Phase::AwaitingInfo;
        link.deadline = Some(cx.now + cx.bus.settings().timings.info_timeout);
    }

    /// Begins the TLS handshake.
    fn secure(&mut self, id: LinkId, cx: &Turn<'_>) {
        let generation = self.generation(cx.bus);
        let link = &mut self.links[id];
        link.generation = generation;
        link.phase = Phase::Securing;
        link.deadline = Some(cx.now + cx.bus.settings().timings.tls_timeout);
        let broker = link.broker;
        self.actions.push_back(Action::Secure { link: id, broker });
    }

    /// A link's TLS handshake is over: what is read and written from now on is the broker's alone.
    pub fn handle_secured(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        link.is_secured = true;
        // A frame that was begun in plain text isn't continued in TLS.
        link.partial = Partial::default();
        match link.early_info.take() {
            Some(info) => self.introduce(id, *info, cx),
            None => self.await_info(id, cx),
        }
    }

    /// A broker's first INFO: behind it comes the TLS handshake (R35), or CONNECT.
    pub(super) fn handle_first_info(&mut self, id: LinkId, info: ServerInfo, cx: &mut Turn<'_>) {
        let link = &mut self.links[id];
        let is_plain = cx.bus.roster().tls_mode(link.broker) == TlsMode::Off;
        let fits = cx.bus.roster().unfit(link.broker, &info).is_none();
        if is_plain || link.is_secured || !fits {
            return self.introduce(id, info, cx);
        }
        link.early_info = Some(Box::new(info));
        self.secure(id, cx);
    }

    /// Returns the identity whose credentials the trunk sends, as brokers see it.
    pub(super) fn identity(&self, bus: &Bus) -> IdentityDigest {
        bus.admission().digest(&self.connect)
    }

    /// The roster changed, a turn to dial came, or the barrier opened.
    pub fn handle_wake(&mut self, cx: &mut Turn<'_>) {
        self.meet_outage(cx);
        self.meet_suspicion(cx);
        self.review_credentials(cx);
        self.leave_where_due(cx);
        self.next_attempt(cx);
        cx.bus.pass_turn(self.id);
        self.pass_barrier(cx);
        self.announce(cx);
    }

    /// Plans a move where the live link's broker is one to leave (R19).
    pub(super) fn leave_where_due(&mut self, cx: &mut Turn<'_>) {
        if self.is_relay() {
            return self.leave_relayed(cx);
        }
        if let Some(id) = self.live()
            && let Some(reason) = cx.bus.roster().must_leave(self.links[id].broker)
        {
            self.start_move(reason, cx);
        }
    }

    /// Whether it has a link, or one on its way, to such a broker: of independent ones, the link
    /// that publishes go to.
    pub fn uses(&self, is_it: impl Fn(BrokerId) -> bool) -> bool {
        let stands_aside = |link: &Link| {
            let is_standby = link.phase == Phase::Standby || self.is_leaving_standby(link.id);
            self.route.is_independent() && (is_standby || !link.is_attached())
        };
        let mut links = self.links.iter();
        links.any(|link| !link.is_check && !stands_aside(link) && is_it(link.broker))
    }

    pub(super) fn dial(&mut self, broker: BrokerId, cx: &mut Turn<'_>) -> LinkId {
        let deadline = cx.now + cx.bus.settings().timings.connect_timeout;
        // Only those that were live before hold others up: they have subscriptions that
        // the neighbours rely on.
        let holds_up = self.route.lost.is_some() && !self.links.any_attached();
        let retention = self.retention(cx.bus);
        let id = self.links.add(broker, retention, deadline, cx.now);
        let link = &mut self.links[id];
        link.owners = self.sharing.is_some().then(Box::default);
        if holds_up {
            link.in_barrier = true;
            cx.bus.join_barrier();
        }
        self.actions.push_back(Action::Dial { link: id, broker });
        id
    }

    /// A broker's INFO during the handshake: answer with CONNECT and PING.
    pub(super) fn introduce(&mut self, id: LinkId, info: ServerInfo, cx: &mut Turn<'_>) {
        let broker = self.links[id].broker;
        let unfit = cx.bus.roster().unfit(broker, &info);
        if unfit.is_none() && self.awaits_session() {
            return self.greet(id, info, cx);
        }
        let headers = info.headers;
        let nonce = info.nonce.clone();
        let (max_payload, protocol) = (info.max_payload, info.proto.clamp(0, 1) as u8);
        if self.route.is_independent() {
            let independent = self.links[id].independent.get_or_insert_default();
            independent.server_id = info.server_id.as_str().into();
        }
        let names_subject = info.version_numbers() >= FIRST_TO_NAME_SUBJECTS;
        self.links[id].names_subject = names_subject;
        cx.bus.roster_mut().handle_info(broker, info, cx.now);
        if let Some(failure) = unfit {
            return self.fail(id, failure, cx);
        }
        self.links[id].revision = cx.bus.roster().broker(broker).revision();
        // Of independent brokers, one is asked for the answer to a verbose CONNECT.
        let asked = self.links.any(|link| link.oks.owed(OkOwner::Operation) > 0);
        let generation = self.generation(cx.bus);
        let Some(login) = self.login(nonce.as_deref(), cx.bus) else {
            self.drop_link(id, cx.bus);
            return self.review_credentials(cx);
        };
        let mut connect = Vec::new();
        self.connect
            .encode_as(&login, protocol, headers, &mut connect);
        let link = &mut self.links[id];
        // Its certificate may be older.
        link.generation = link.generation.or(generation);
        link.max_payload = max_payload;
        link.headers = self.connect.headers && headers;
        link.strips = self.connect.headers && !headers;
        link.phase = Phase::Authenticating;
        link.out.push(&connect);
        link.verbose = self.connect.verbose;
        if link.verbose {
            let owner = if self.connect_ok_owed && !asked {
                OkOwner::Operation
            } else {
                OkOwner::Nobody
            };
            link.oks.push(owner, 1);
        }
        self.links.fence(id, cx);
        self.links[id].deadline = Some(cx.now + self.verdict_patience(broker, cx));
    }

    /// How long a broker may take for its verdict, where it gives none to any link.
    fn verdict_patience(&self, broker: BrokerId, cx: &Turn<'_>) -> Duration {
        let spare = cx
            .bus
            .roster()
            .has_spare(broker, self.identity(cx.bus), cx.now);
        if spare && !self.links.any_attached() {
            // A component gives up when it hears nothing for 2 s.
            VERDICT_WITH_SPARE
        } else {
            2 * cx.bus.settings().timings.link_timeout
        }
    }

    /// A link waits long for the verdict on its CONNECT. A broker that gives others theirs is
    /// busy, perhaps with natsmux's own dials. Returns whether it is waited for.
    pub(super) fn await_verdict(&mut self, id: LinkId, cx: &Turn<'_>) -> bool {
        let link = &self.links[id];
        let (broker, asked) = (link.broker, link.last_ping_at);
        let Some(last) = cx
            .bus
            .roster()
            .last_verdict_at(broker)
            .filter(|last| *last > asked)
        else {
            return false;
        };
        let until = last + self.verdict_patience(broker, cx);
        if until <= cx.now || cx.now >= asked + VERDICT_MOST {
            return false;
        }
        self.links[id].deadline = Some(until);
        true
    }

    /// The broker accepted the CONNECT.
    pub(super) fn authenticated(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let (broker, asked) = (self.links[id].broker, self.links[id].opened_at);
        let took = cx.now.saturating_duration_since(asked);
        let identity = self.identity(cx.bus);
        cx.bus
            .roster_mut()
            .note_acceptance(broker, identity, took, cx.now);
        self.vouched = self.links[id].generation;
        if self.links[id].is_check {
            let is_other = |link: &Link| link.is_attached() || link.is_joining();
            if self.links.any(is_other) {
                return self.checked(id, cx);
            }
            // The other one has died meanwhile.
            self.links[id].is_check = false;
        }
        cx.bus.counters_mut().links_opened += 1;
        self.verdict = Verdict::Accepted;
        if std::mem::take(&mut self.connect_ok_owed) {
            // The broker that was asked for it hasn't answered yet: this one has.
            for link in self.links.iter_mut().filter(|link| !link.is_attached()) {
                link.oks.disown();
            }
            let says_ok = self.ready || !self.would_refuse(self.header_support(id, cx.bus));
            for session in self.sessions.ids().into_iter().filter(|_| says_ok) {
                self.sessions.deliver(session, &[encode::OK], cx.bus);
            }
        }
        if !self.is_relay() {
            cx.bus.admission_mut().remember(&self.connect, cx.now);
        }
        if !self.ready {
            // One that is served already isn't closed by the next broker: its headers are stripped.
            self.refuse_own_options(self.header_support(id, cx.bus));
        }
        let link = &mut self.links[id];
        link.deadline = None;
        link.phase = Phase::Authenticated;
        if self.begin_overlap(id, cx) {
            return;
        }
        if self.route.is_independent() {
            self.replay(id, cx);
        } else {
            self.leave_old_link(cx);
            self.replay_if_free(cx);
        }
    }

    /// Whether it is refused for its options, which no broker answers `+OK`.
    pub(super) fn would_refuse(&self, support: HeaderSupport) -> bool {
        !self.ready && self.connect.refusal(support).is_some()
    }

    /// A broker accepts the credentials before it looks at the other options; what it would
    /// refuse of those, natsmux refuses.
    pub(super) fn refuse_own_options(&mut self, support: HeaderSupport) {
        if let Some(text) = self.connect.refusal(support) {
            let reason = CloseReason::Refused(text.as_bytes().into());
            self.sessions.close_all(&reason);
        }
    }

    /// Returns the support for headers of this link's broker, whatever the others have.
    pub(super) fn header_support(&self, id: LinkId, bus: &Bus) -> HeaderSupport {
        let info = bus.roster().broker(self.links[id].broker).info();
        info.map_or(HeaderSupport::On, ServerInfo::header_support)
    }

    /// Replays on the link that waits for it, once no other is being left.
    pub(super) fn replay_if_free(&mut self, cx: &mut Turn<'_>) {
        let independent = self.route.is_independent();
        let busy = if independent {
            self.overlap.is_some()
        } else {
            self.links.any_attached()
        };
        let waiting = self.links.find(|link| link.phase == Phase::Authenticated);
        if let (false, Some(id)) = (busy, waiting) {
            if !independent {
                self.subscriptions.forget_retired();
            }
            self.replay(id, cx);
        }
    }

    /// Tells a broker everything that the ledger knows.
    pub(super) fn replay(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        // Of independent brokers each counts for itself, and the live one is what is proven.
        let is_first = !self.links.any_attached();
        if is_first {
            self.subscriptions.rebase();
            self.withhold_pulls(cx.now);
        }
        self.links[id].told_from = self.links.next_ping() - 1;
        let (mut count, mut operations) = (0, 0);
        let (mut covered_by, mut unfenced) = (self.links.next_ping(), 0);
        let overlap = self.overlap.as_deref();
        let is_move = overlap.is_some_and(|overlap| overlap.new == id);
        let pulls = self.pulls.as_deref().filter(|_| is_first);
        for (upstream, interest) in self.subscriptions.iter() {
            if pulls.is_some_and(|pulls| pulls.withholds(upstream)) {
                // Once the brokers have looked for it (R44).
                continue;
            }
            let sid = upstream.text();
            let (subject, group) = (interest.subject, interest.queue_group);
            encode::sub(&mut self.scratch, subject, group, sid.as_bytes());
            count += 1;
            operations += 1;
            let is_counted_here = || {
                let comes_twice = is_move && group.is_none();
                comes_twice || cx.bus.presence().may_match(subject)
            };
            if let Some(max) = interest.left.filter(|_| !is_counted_here()) {
                encode::unsub(&mut self.scratch, sid.as_bytes(), Some(max));
                operations += 1;
            }
            let link = &mut self.links[id];
            link.out.push(&self.scratch);
            link.operations.subscribe(upstream, covered_by);
            unfenced += self.scratch.len();
            self.scratch.clear();
            if unfenced >= REPLAY_FENCE_BYTES {
                // Its PONG shows that the broker gets on (R9).
                self.links.fence(id, cx);
                (covered_by, unfenced) = (self.links.next_ping(), 0);
            }
        }
        let link = &mut self.links[id];
        if link.verbose {
            link.oks.push(OkOwner::Nobody, operations);
        }
        link.replayed = count;
        link.phase = Phase::Replaying;
        cx.bus.counters_mut().replayed_subscriptions += count;
        if count == 0 {
            return self.replayed(id, cx);
        }
        cx.bus.counters_mut().replays += 1;
        let seq = self.links.fence(id, cx);
        self.links[id].replayed_by = seq;
        if !is_first {
            return;
        }
        self.subscriptions.replayed(seq);
        for slot in self.sessions.iter_mut() {
            if slot.subs_covered_by > self.links.answered() {
                slot.subs_covered_by = seq;
            }
        }
    }

    /// The ledger is in place on this link.
    pub(super) fn replayed(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let link = &mut self.links[id];
        link.phase = Phase::Fenced;
        if std::mem::take(&mut link.dialing) {
            let broker = link.broker;
            cx.bus.dial_ended(broker);
        }
        let link = &mut self.links[id];
        if std::mem::take(&mut link.in_barrier) {
            cx.bus.leave_barrier();
        }
        self.pass_barrier(cx);
    }

    /// Goes live, unless neighbours still replay (R14).
    pub(super) fn pass_barrier(&mut self, cx: &mut Turn<'_>) {
        let is_fenced = |link: &Link| link.phase == Phase::Fenced;
        while let Some(id) = self.links.find(is_fenced) {
            if self.both_have_ledger(id, cx) {
                return;
            }
            // Where another of independent brokers has the ledger, nobody waits for this one.
            let spare = self.route.is_independent() && self.links.any_attached();
            if !spare && let Some(opens_at) = cx.bus.barrier_opens_at(cx.now) {
                self.links[id].deadline = Some(opens_at);
                cx.bus.wait_at_barrier(self.id);
                return;
            }
            let identity = self.identity(cx.bus);
            cx.bus
                .attached(self.id, identity, self.links[id].broker, cx.now);
            if self.route.is_independent() {
                self.stand_by(id, cx);
            } else {
                self.go_live(id, cx);
            }
        }
        self.choose_target(cx);
    }

    pub(super) fn go_live(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let last_ping = self.links.next_ping() - 1;
        let link = &mut self.links[id];
        link.phase = Phase::Live;
        link.live_from = last_ping;
        link.deadline = None;
        let (id, broker, replayed) = (link.id, link.broker, link.replayed);
        let lost = self.route.lost.take();
        let started = lost.map_or(link.opened_at, |lost| lost.at);
        let holds =
            |crowded: &Crowded| crowded.broker == broker && cx.now < crowded.since + CROWDED_FOR;
        if let Some(sharing) = &mut self.sharing {
            sharing.crowded = sharing.crowded.filter(holds);
        }
        self.count_anew();
        self.route.succeed(cx.now);
        self.begin_straggling(id, cx);
        self.ask_for_lacks(id, cx);
        if self.route.is_independent() {
            self.send_limits(cx);
        }
        if lost.is_some_and(|lost| lost.broker != broker) {
            cx.bus.counters_mut().failovers += 1;
            cx.bus
                .observed_mut()
                .replays
                .observe(cx.now.saturating_duration_since(started));
        }
        self.make_ready();
        self.verify_all();
        self.ask_about_pulls(id, cx);
        let held = self.resume(id, cx);
        if lost.is_some_and(|lost| !lost.cause.is_own()) {
            cx.bus.note_attached(broker, replayed, held, cx.now);
        }
        self.actions.push_back(Action::Report(Report::Attached {
            link: id,
            broker,
            after: lost.map(|lost| (lost.broker, lost.cause)),
            replayed,
            held,
            took: cx.now.saturating_duration_since(started),
        }));
        self.leave_where_due(cx);
        // Its broker may have said something else while it joined.
        self.review_credentials(cx);
        self.check_done(cx);
    }
}
