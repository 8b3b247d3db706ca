//! The task of one component's connection: owns the socket and its timer, decides nothing. It
//! also drives a trunk that is its session's alone.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, warn};

use super::frontend::{self, Counted, Frontend};
use super::identification::{Answer, Identification};
use super::read_size::ReadSize;
use super::registry::Registration;
use super::relay::Relay;
use super::session::{self, Identified, Session, SessionAction};
use crate::catch_panic::catch_panic;
use crate::clock::Instant;
use crate::net::socket::{self, ReadHalf};
use crate::net::{Flush, Outbox, Port, Readiness, Timer, now, yield_after_io};
use crate::proto::connect::{ConnectInfo, Secret};
use crate::upstream::CloseReason;
use crate::upstream::Turn;
use crate::upstream::io::driver::Driver;
use crate::upstream::io::pool::{Attachment, Pool};
use crate::upstream::trunk::{MoveReason, ReadAtMost};

/// Reads of one component in a pass, so that a flood doesn't keep the worker.
const READS_PER_PASS: usize = 2;
/// How long a component that is being closed may take to read its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The most that is read of a closed component before its socket is closed, in bytes. Closing with
/// unread bytes would reset the connection and take the last words along.
const DISCARD_BYTES: usize = 4 * 1024 * 1024;

/// Answers that a component without a trunk may leave unread before it isn't read, in bytes.
const UNREAD_MOST: usize = 64 * 1024;
/// A deadline that is met later than this shows that natsmux didn't run (R9).
const LATE: Duration = Duration::from_millis(250);

struct Connection {
    frontend: Rc<Frontend>,
    session: Session,
    read: ReadHalf,
    watch: Readiness,
    read_size: ReadSize,
    port: Rc<Port>,
    registration: Registration,
    _counted: Counted,
    attachment: Option<Attachment>,
    /// A link whose nonce the component may sign.
    relay: Option<Box<Relay>>,
    /// Its component is being identified.
    identification: Option<Identification>,
    /// Of a trunk that is the session's alone.
    trunk: Option<Driver>,
    timer: Timer,
    /// When the connection wants another pass, whatever happens until then.
    due: Option<Instant>,
    /// When the present pass, or its last read, began.
    now: Instant,
    /// Not to be read until it is woken.
    parked: bool,
    /// The component has closed its side.
    eof: bool,
    drained: bool,
    /// Why it is being closed, and until when at most.
    closing: Option<Box<(CloseReason, Instant)>>,
    /// When the outbox last got shorter, while the socket is full (`write_deadline`).
    full_since: Option<Instant>,
}

/// Runs one connection until it is closed, and says why it was.
pub(super) fn run(
    frontend: Rc<Frontend>,
    session: Session,
    read: ReadHalf,
    port: Rc<Port>,
    relay: Option<Relay>,
    (registration, counted): (Registration, Counted),
) -> impl Future<Output = ()> {
    // A task that has just been made has no port there: nobody has set it before.
    let _ = registration.info.port.set(Rc::clone(&port));
    let mut connection = Connection {
        frontend,
        session,
        read,
        watch: Readiness::default(),
        read_size: ReadSize::default(),
        port,
        registration,
        _counted: counted,
        attachment: None,
        relay: relay.map(Box::new),
        identification: None,
        trunk: None,
        timer: Timer::default(),
        due: None,
        now: now(),
        parked: false,
        eof: false,
        drained: false,
        closing: None,
        full_since: None,
    };
    // A block, not an `async fn`: that would hold room for its arguments twice.
    async move {
        let has_last_words = {
            let reason = poll_fn(|cx| {
                let polled = catch_panic(|| connection.poll(cx));
                polled.unwrap_or(Poll::Ready(CloseReason::Internal))
            });
            let reason = reason.await;
            connection.end(&reason);
            connection.port.say_end();
            reason.error_text().is_some()
        };
        if has_last_words {
            socket::shutdown(connection.port.socket());
            // Few connections come here: the others needn't have room for it.
            let _ = Box::pin(timeout(LAST_WORDS, connection.discard())).await;
        }
    }
}

/// A connection whose task can't even end is closed: its component mustn't wait for it for ever.
impl Drop for Connection {
    fn drop(&mut self) {
        if std::thread::panicking() {
            socket::shutdown_both(self.port.socket());
        }
    }
}

impl Connection {
    /// Leaves the trunk, and says why.
    fn end(&mut self, reason: &CloseReason) {
        *self.registration.info.attachment.borrow_mut() = None;
        let pool = Rc::clone(&self.frontend.pool);
        self.report_end(reason);
        if let Some((cell, id)) = self.attachment.take() {
            pool.detach(&cell, id, now());
        }
        // Bytes that the component left behind still have a way to go.
        if let Some(trunk) = self.trunk.take() {
            pool.spawn(trunk);
        }
        self.session.abandon(&mut pool.bus.borrow_mut());
        count(&pool, reason);
        let (bus, cid) = (&pool.bus.name, self.registration.info.cid);
        debug!(bus, cid, reason = reason.as_str(), "session closed");
    }

    /// Tells the operator of a component that natsmux or a broker closed: which one, and why. The
    /// same of the same is said once, and then how often.
    fn report_end(&self, reason: &CloseReason) {
        let what = match reason {
            CloseReason::SlowConsumer => "slow consumer closed",
            CloseReason::Refused(_) | CloseReason::ConnectExpected => "component refused",
            CloseReason::AuthTimeout | CloseReason::AuthTimeoutOf2012 => {
                "component refused: no CONNECT, or no verdict on it, in time"
            }
            CloseReason::Signed => {
                "component refused: what an nkey or JWT signed can't be replayed to another broker"
            }
            CloseReason::EarlyBytesExceeded => "component closed: too much ahead of its CONNECT",
            CloseReason::Fault(_) => "component closed: protocol error",
            CloseReason::Stale => "component closed: it answers no PING",
            CloseReason::Internal => "component closed: natsmux has a fault",
            _ => return,
        };
        let connect = self.session.connect();
        let text = |text: Option<&str>| text.unwrap_or_default().escape_debug().to_string();
        let name = text(connect.and_then(|connect| connect.name.as_deref()));
        let user = connect.and_then(|connect| connect.user.as_ref());
        let user = text(user.map(Secret::expose));
        let error = reason.error_text().map(String::from_utf8_lossy);
        let error = text(error.as_deref());
        let pool = &self.frontend.pool;
        let key = format!("{what}\n{name}\n{user}\n{error}");
        let Some(repeated) = pool.note_repeated(key.as_bytes(), self.now) else {
            return;
        };
        let (bus, cid, peer) = (
            &pool.bus.name,
            self.registration.info.cid,
            self.registration.info.peer,
        );
        let reason = reason.as_str();
        warn!(bus, cid, %peer, name, user, reason, error, repeated, "{what}");
    }

    /// Reads on for a while, for nothing.
    async fn discard(&mut self) {
        let mut left = DISCARD_BYTES;
        while left > 0 {
            let read = poll_fn(|cx| {
                let mut buffer = self.frontend.pool.bus.buffer.borrow_mut();
                self.port.poll_read(&mut self.read, cx, &mut buffer)
            });
            match read.await {
                Ok(count) if count > 0 => left = left.saturating_sub(count),
                _ => return,
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let woken = self.port.begin(cx);
        self.now = now();
        let ended = match woken || self.has_work(cx) {
            _ if self.is_lost() => Poll::Ready(CloseReason::Internal),
            true => self.pass(cx),
            false => Poll::Pending,
        };
        if ended.is_pending() {
            let trunk_due = self.drive_trunk(cx);
            let due = [self.due, trunk_due].into_iter().flatten().min();
            if self.timer.arm(due, self.now, cx) {
                yield_after_io(cx);
            }
        }
        self.frontend.pool.wake_freed(self.now);
        self.port.rest(cx);
        ended
    }

    /// Whether its trunk has panicked.
    fn is_lost(&self) -> bool {
        self.attachment
            .as_ref()
            .is_some_and(|(cell, _)| cell.has_failed())
    }

    /// Whether it was woken for the connection, and not for the trunk that it drives as well.
    fn has_work(&mut self, cx: &mut Context<'_>) -> bool {
        self.trunk.is_none()
            || self.identification.is_some()
            || self.port.is_full()
            || self.due.is_some_and(|due| due <= self.now)
            || !self.parked
                && (self.port.has_unread() || self.watch.poll_readable(&self.read, cx).is_ready())
    }

    fn pass(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        for _ in 0..READS_PER_PASS {
            self.tick();
            self.await_identification(cx);
            self.go_on();
            let more = self.read(cx) | self.await_identification(cx);
            self.note_closing();
            if let Poll::Ready(reason) = self.flush(cx) {
                return Poll::Ready(reason);
            }
            self.due = self.next_due();
            if !more && self.due.is_none_or(|due| due > self.now) {
                return Poll::Pending;
            }
            // Once for all that a read brings: asking the clock costs as much as a frame.
            self.now = now();
        }
        yield_after_io(cx);
        Poll::Pending
    }

    /// Has the trunk write what the pass gave it, and read what its broker has sent. Returns
    /// when it wants to be driven again.
    fn drive_trunk(&mut self, cx: &mut Context<'_>) -> Option<Instant> {
        let driver = self.trunk.as_mut()?;
        let pool = &self.frontend.pool;
        if pool.drive(driver, self.now, cx).is_pending() {
            return driver.due();
        }
        self.trunk = None;
        None
    }

    fn tick(&mut self) {
        if self.frontend.draining.get() && !std::mem::replace(&mut self.drained, true) {
            self.with_session(|session, upstream, cx| session.handle_drain(upstream, cx));
        }
        let now = self.now;
        if self.session.poll_timeout().is_some_and(|at| at <= now) {
            self.with_session(|session, upstream, cx| session.handle_timeout(upstream, cx));
            self.act(now);
            self.wake_trunk();
        }
    }

    /// Goes on as soon as it is known who the component is. Returns whether it is known now.
    fn await_identification(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(identification) = &mut self.identification else {
            return false;
        };
        let Poll::Ready(identified) = identification.as_mut().poll(cx) else {
            return false;
        };
        self.identification = None;
        self.identified(identified);
        true
    }

    fn identified(&mut self, identified: Identified) {
        self.with_session(|session, upstream, cx| {
            session.handle_identified(identified, upstream, cx);
        });
        self.act(self.now);
        self.wake_trunk();
    }

    /// Lets what waited for the trunk go on.
    fn go_on(&mut self) {
        let ready = |(cell, id): &Attachment| cell.machine.borrow().is_ready(*id);
        if self.session.has_pending_input() && self.attachment.as_ref().is_some_and(ready) {
            self.with_session(|session, upstream, cx| {
                if let Some(upstream) = upstream {
                    session.handle_ready(upstream, cx);
                }
            });
            self.wake_trunk();
        }
        self.with_session(|session, upstream, cx| {
            if cx.bus.reveals_outage() {
                session.handle_outage(upstream, cx.bus);
            } else if let Some(upstream) = upstream {
                session.handle_crowding(&upstream);
                session.handle_offer(&upstream, cx.bus);
            }
        });
        self.act(self.now);
    }

    /// Reads what the component has sent, where the trunk has room for it. Returns whether
    /// there may be more.
    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        self.parked = self.eof || self.closing.is_some() || !self.wants_read();
        if self.parked {
            return false;
        }
        let buffer = Rc::clone(&self.frontend.pool.bus.buffer);
        let mut buffer = buffer.borrow_mut();
        let most = match &self.attachment {
            Some((cell, _)) => {
                let trunk = cell.machine.borrow();
                let bus = &self.frontend.pool.bus;
                bus.turn(self.now, |cx| trunk.read_at_most(cx))
            }
            None => ReadAtMost::Any,
        };
        let most = self.read_size.most(most).min(buffer.len());
        let polled = self.port.poll_read(&mut self.read, cx, &mut buffer[..most]);
        self.watch.note(polled.is_pending());
        match polled {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                self.eof = true;
                self.with_session(|session, upstream, cx| session.handle_eof(upstream, cx));
                self.act(self.now);
                self.wake_trunk();
                false
            }
            Poll::Ready(Ok(count)) => {
                // Mostly that was all: asking costs less than another pass.
                let more =
                    self.port.has_unread() || self.watch.poll_readable(&self.read, cx).is_ready();
                self.handle_bytes(&buffer[..count]);
                self.read_size.note(count, self.session.take_operations());
                // Input that waits for the trunk is let go on, or parked, before the task sleeps.
                more || self.session.has_pending_input()
            }
            Poll::Ready(Err(_)) => {
                self.close(CloseReason::ComponentLost, self.now);
                false
            }
        }
    }

    fn handle_bytes(&mut self, mut bytes: &[u8]) {
        self.registration.info.read_at.set(self.now);
        while !bytes.is_empty() {
            let mut used = 0;
            self.with_session(|session, upstream, cx| {
                used = session.handle_bytes(bytes, upstream, cx);
            });
            bytes = &bytes[used..];
            if !self.act(self.now) {
                break;
            }
        }
        self.wake_trunk();
    }

    /// Does what the session asks for. Returns whether it asked for anything.
    fn act(&mut self, now: Instant) -> bool {
        match self.session.poll_action() {
            None => false,
            Some(SessionAction::Close(reason)) => {
                self.close(reason, now + LAST_WORDS);
                true
            }
            Some(SessionAction::SayInfo) => {
                self.say_info();
                true
            }
            Some(SessionAction::Identify) => {
                let connect = self.session.connect().cloned().unwrap_or_default();
                if !connect.is_signed() {
                    // Nobody waits for a signature any more.
                    self.relay = None;
                }
                let info = &self.registration.info;
                let description = &info.description;
                let told = (info.cid, info.nonce.get().map(|nonce| &**nonce));
                match self
                    .frontend
                    .identify(&connect, told, &self.port, description, now)
                {
                    Answer::Now(identified) => self.identified(identified),
                    Answer::Later(identification) => self.identification = Some(identification),
                }
                true
            }
            Some(SessionAction::Move { connect, why }) => {
                self.move_trunk(connect, why, now);
                true
            }
            Some(SessionAction::Attach { connect, sent }) => {
                let relay = self.relay.take();
                let out = self.session.take_out();
                if connect.is_signed() {
                    self.attach_relay(relay, &connect, out, now);
                    return true;
                }
                drop(relay);
                let attached = self
                    .frontend
                    .pool
                    .attach(connect, sent, out, &self.port, now);
                let Some((attachment, trunk)) = attached else {
                    self.close(CloseReason::Internal, now);
                    return true;
                };
                self.attached(attachment, trunk);
                true
            }
        }
    }

    fn attached(&mut self, attachment: Attachment, trunk: Option<Driver>) {
        *self.registration.info.attachment.borrow_mut() = Some(attachment.clone());
        (self.attachment, self.trunk) = (Some(attachment), trunk);
        self.with_session(|session, upstream, cx| {
            if let Some(upstream) = upstream {
                session.handle_attached(upstream, cx);
            }
        });
    }

    /// The component has signed with a key that natsmux doesn't hold: of its relay's nonce, if it
    /// was told that one. Else it is let go, and told another one when it comes back.
    fn attach_relay(
        &mut self,
        relay: Option<Box<Relay>>,
        connect: &Rc<ConnectInfo>,
        out: Outbox,
        now: Instant,
    ) {
        self.frontend.arm_relays(now);
        let Some(cell) = relay.and_then(|relay| relay.take()) else {
            return self.close(CloseReason::RelayEnded, now);
        };
        let pool = &self.frontend.pool;
        match pool.bind_relay(cell, connect, out, &self.port, now) {
            Some(attachment) => self.attached(attachment, None),
            None => self.close(CloseReason::Internal, now),
        }
    }

    fn move_trunk(&mut self, connect: Rc<ConnectInfo>, why: MoveReason, now: Instant) {
        let Some(old) = self.attachment.take() else {
            return;
        };
        if let Some(trunk) = self.trunk.take() {
            self.frontend.pool.spawn(trunk);
        }
        match self.frontend.pool.move_session(old, connect, why, now) {
            Some((attachment, trunk)) => (self.attachment, self.trunk) = (Some(attachment), trunk),
            None => self.close(CloseReason::Internal, now),
        }
        self.registration
            .info
            .attachment
            .borrow_mut()
            .clone_from(&self.attachment);
        self.with_session(|session, upstream, cx| {
            if let Some(upstream) = upstream {
                session.handle_ready(upstream, cx);
            }
        });
    }

    fn say_info(&self) {
        let socket = self.port.socket();
        let ends = (socket.local_addr(), socket.peer_addr());
        let Some((cell, id)) = &self.attachment else {
            return;
        };
        let mut trunk = cell.machine.borrow_mut();
        let most = trunk.max_payload();
        let info = frontend::info(
            ends,
            (
                self.registration.info.cid,
                self.registration.info.nonce.get().map(|nonce| &**nonce),
            ),
            most,
            &self.frontend,
        );
        trunk.say_info(*id, &info, &self.frontend.pool.bus.borrow());
    }

    fn note_closing(&mut self) {
        let Some((cell, id)) = &self.attachment else {
            return;
        };
        if self.closing.is_none() {
            let reason = cell.machine.borrow().closing(*id).cloned();
            if let Some(reason) = reason {
                self.close(reason, self.now + LAST_WORDS);
            }
        }
    }

    fn close(&mut self, reason: CloseReason, until: Instant) {
        self.closing = Some(Box::new((reason, until)));
    }

    /// Writes what waits; ready once the connection is over.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let flushed = loop {
            let before = self.pending_bytes();
            let flushed = self.flush_once();
            if self.pending_bytes() < before || flushed == Flush::Done {
                self.full_since = None;
            }
            if flushed != Flush::Full || self.port.poll_writable(cx).is_pending() {
                break flushed;
            }
        };
        let now = self.now;
        match (flushed, self.closing.as_deref()) {
            (Flush::Dead(_), Some((reason, _))) => Poll::Ready(reason.clone()),
            (Flush::Dead(_), None) => Poll::Ready(CloseReason::ComponentLost),
            (Flush::Done, Some((reason, _))) => Poll::Ready(reason.clone()),
            (Flush::Full, Some((reason, until))) if *until <= now => Poll::Ready(reason.clone()),
            (Flush::Full, None) => {
                let since = *self.full_since.get_or_insert(now);
                let due = since + self.write_deadline();
                if now > due + LATE {
                    // It was natsmux that didn't run (R9): the component has its full time again.
                    self.full_since = Some(now);
                } else if now >= due {
                    return Poll::Ready(CloseReason::SlowConsumer);
                }
                Poll::Pending
            }
            _ => Poll::Pending,
        }
    }

    fn flush_once(&mut self) -> Flush {
        if let Some((cell, id)) = &self.attachment {
            let mut trunk = cell.machine.borrow_mut();
            let Some(out) = trunk.out(*id) else {
                return Flush::Done;
            };
            let flushed = self.port.flush(out);
            trunk.account(*id, &self.frontend.pool.bus.borrow());
            return flushed;
        }
        self.port.flush(self.session.out())
    }

    fn pending_bytes(&mut self) -> usize {
        match &self.attachment {
            Some((cell, id)) => {
                let mut trunk = cell.machine.borrow_mut();
                trunk.out(*id).map_or(0, |out| out.pending_bytes())
            }
            None => self.session.out().pending_bytes(),
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let closing = self.closing.as_ref().map(|closing| closing.1);
        // Once it closes, that has a deadline of its own.
        let full = self.full_since.filter(|_| closing.is_none());
        let full = full.map(|since| since + self.write_deadline());
        let due = [self.session.poll_timeout(), closing, full];
        due.into_iter().flatten().min()
    }

    fn write_deadline(&self) -> Duration {
        self.frontend
            .pool
            .bus
            .borrow()
            .settings()
            .timings
            .write_deadline
    }

    fn wants_read(&mut self) -> bool {
        if self.session.is_identifying() {
            return false;
        }
        let Some((cell, id)) = &self.attachment else {
            // Natsmux's own answers are taken before more is asked.
            return self.session.out().pending_bytes() < UNREAD_MOST;
        };
        let wants = {
            let mut bus = self.frontend.pool.bus.borrow_mut();
            let mut trunk = cell.machine.borrow_mut();
            let wants = trunk.wants_read(*id, &Turn::new(self.now, &mut bus));
            let waits = !trunk.is_ready(*id) && !trunk.is_ending(*id);
            wants || (waits && self.session.may_wait_for_more(&bus))
        };
        if !wants {
            // Its timer may have to be set for the time that this may last.
            self.wake_trunk();
        }
        wants
    }

    /// Lets the trunk do what it was given; where this task drives it, it does so anyway.
    fn wake_trunk(&self) {
        if let Some((cell, _)) = &self.attachment
            && self.trunk.is_none()
        {
            cell.wake();
        }
    }

    fn with_session(
        &mut self,
        input: impl FnOnce(&mut Session, Option<session::Upstream<'_>>, &mut Turn<'_>),
    ) {
        let mut bus = self.frontend.pool.bus.borrow_mut();
        let cx = &mut Turn::new(self.now, &mut bus);
        match &self.attachment {
            Some((cell, id)) => {
                let mut trunk = cell.machine.borrow_mut();
                let upstream = session::Upstream {
                    trunk: &mut trunk,
                    id: *id,
                };
                input(&mut self.session, Some(upstream), cx);
            }
            None => input(&mut self.session, None, cx),
        }
    }
}

fn count(pool: &Pool, reason: &CloseReason) {
    let mut bus = pool.bus.borrow_mut();
    bus.observed_mut().closes.count(reason.as_str());
    let counters = bus.counters_mut();
    counters.sessions_closed += 1;
    match reason {
        CloseReason::SlowConsumer => counters.slow_consumers += 1,
        CloseReason::Refused(_) => counters.refused_sessions += 1,
        _ => {}
    }
}
