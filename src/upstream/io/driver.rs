//! The driver of one trunk: it owns its links' sockets, and decides nothing.
//!
//! A trunk that sessions may share has a task of its own; one that is a single session's is
//! driven by that session's task, so that a message doesn't wait for another task's turn.
//!
//! One pass: let links read, let the clock tick, do what the machine asks, write to brokers
//! and to the sessions that were touched. Everything that is readable is read before
//! anything is written, so that a broker gets few large writes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tracing::{debug, error, warn};

use super::cell::{BusCell, TrunkCell};
use super::secure::tls_failure;
use crate::catch_panic::catch_panic;
use crate::clock::Instant;
use crate::net::socket::{self, ReadHalf, Stream};
use crate::net::{Flush, Port, Readiness, names, now, yield_after_io};
use crate::proto::error_text::{BrokerError, classify};
use crate::upstream::brokers::roster::{BrokerId, Failure};
use crate::upstream::bus::Turn;
use crate::upstream::trunk::{Action, LinkId, Report, Trunk};

/// Rounds of one pass, each with one read of every link, before the worker's other tasks get
/// a turn.
const ROUNDS_PER_PASS: usize = 4;

type Dial = Pin<Box<dyn Future<Output = io::Result<Stream>>>>;

enum Socket {
    Dialing(Dial),
    Open { read: ReadHalf, port: Port },
}

struct LinkIo {
    id: LinkId,
    watch: Readiness,
    socket: Socket,
}

/// The outcome of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// The trunk waits for its sockets, its timer, or another turn.
    Waits,
    /// The trunk has ended.
    Done,
    /// The trunk panicked.
    Panicked,
}

/// The driver of one trunk.
pub struct Driver {
    bus: Rc<BusCell>,
    cell: Rc<TrunkCell>,
    links: Vec<LinkIo>,
    /// When the present round began.
    now: Instant,
    /// The time that the machine waits for.
    due: Option<Instant>,
    done: bool,
}

impl Driver {
    pub(super) fn new(bus: Rc<BusCell>, cell: Rc<TrunkCell>) -> Self {
        Self {
            bus,
            cell,
            links: Vec::with_capacity(1),
            now: now(),
            due: None,
            done: false,
        }
    }

    /// The trunk.
    pub(super) fn cell(&self) -> &Rc<TrunkCell> {
        &self.cell
    }

    /// When the present round began.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Has another task woken from now on.
    pub(super) fn disarm(&mut self) {
        for link in &mut self.links {
            link.watch.disarm();
        }
    }

    /// When the trunk wants another pass, whatever happens until then.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// One pass, by the task that is to be woken for the next.
    pub(super) fn pass(&mut self, began: Instant, cx: &mut Context<'_>) -> Pass {
        catch_panic(|| self.play(began, cx)).unwrap_or(Pass::Panicked)
    }

    fn play(&mut self, began: Instant, cx: &mut Context<'_>) -> Pass {
        self.cell.register(cx);
        self.now = began;
        for _ in 0..ROUNDS_PER_PASS {
            let mut busy = self.poll_links(cx);
            self.tick();
            busy |= self.act();
            busy |= self.flush_links(cx);
            self.flush_sessions();
            if self.done {
                return Pass::Done;
            }
            if !busy && self.due.is_none_or(|due| due > self.now) {
                return Pass::Waits;
            }
            // Once a round: asking the clock costs as much as a frame.
            self.now = now();
        }
        yield_after_io(cx);
        Pass::Waits
    }

    /// Lets dials and reads get on. Returns whether there may be more.
    fn poll_links(&mut self, cx: &mut Context<'_>) -> bool {
        let mut busy = false;
        for at in 0..self.links.len() {
            let link = &mut self.links[at];
            let id = link.id;
            match &mut link.socket {
                Socket::Dialing(dial) => {
                    let Poll::Ready(result) = dial.as_mut().poll(cx) else {
                        continue;
                    };
                    busy = true;
                    match result {
                        Ok(stream) => {
                            let (read, write) = stream.into_split();
                            let port = Port::new(write);
                            link.socket = Socket::Open { read, port };
                            self.with_machine(|trunk, cx| {
                                trunk.handle_connected(id, cx);
                            });
                        }
                        Err(error) => self.fail(id, dial_failure(&error)),
                    }
                }
                Socket::Open { .. } => busy |= self.read_link(at, cx),
            }
        }
        busy
    }

    /// Reads what a link has. Returns whether there may be more.
    fn read_link(&mut self, at: usize, cx: &mut Context<'_>) -> bool {
        let LinkIo { id, watch, socket } = &mut self.links[at];
        let id = *id;
        let Socket::Open { read, port } = socket else {
            return false;
        };
        let most = {
            let mut bus = self.bus.borrow_mut();
            let mut trunk = self.cell.machine.borrow_mut();
            if !trunk.wants_link_read(id, &mut Turn::new(self.now, &mut bus)) {
                // The component takes what it has first, and its socket wakes this task.
                return false;
            }
            trunk.link_read_at_most(&bus)
        };
        if !port.has_unread() && watch.poll_readable(read, cx).is_pending() {
            return false;
        }
        let buffer = Rc::clone(&self.bus.buffer);
        let mut buffer = buffer.borrow_mut();
        let most = most.min(buffer.len());
        let polled = port.poll_read(read, cx, &mut buffer[..most]);
        if port.take_secured() {
            let ends = port.peer_ends();
            self.with_machine(|trunk, cx| {
                if let Some(broker) = trunk.broker_of(id) {
                    cx.bus.roster_mut().note_certificate(broker, ends);
                }
                trunk.handle_secured(id, cx);
            });
        }
        let LinkIo { watch, socket, .. } = &mut self.links[at];
        let Socket::Open { read, port } = socket else {
            return false;
        };
        match polled {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => self.fail(id, Failure::Closed),
            Poll::Ready(Ok(count)) => {
                // Mostly that was all: asking costs less than another round.
                let more = port.has_unread() || watch.poll_readable(read, cx).is_ready();
                let bytes = &buffer[..count];
                self.with_machine(|trunk, cx| trunk.handle_link_bytes(id, bytes, cx));
                return more;
            }
            Poll::Ready(Err(error)) => self.fail_read(id, &error),
        }
        true
    }

    /// A link's socket can't be read, or what it brings can't be opened.
    fn fail_read(&self, id: LinkId, error: &io::Error) {
        let failure = tls_failure(error);
        let broker = self.cell.machine.borrow().broker_of(id);
        if let (Some(failure), Some(broker)) = (failure, broker) {
            self.bus.log_tls(broker, failure, error, self.now);
        }
        self.fail(id, failure.unwrap_or(Failure::Reset));
    }

    fn tick(&mut self) {
        let now = self.now;
        if self.cell.take_woken() {
            self.with_machine(|trunk, cx| trunk.handle_wake(cx));
        }
        let mut bus = self.bus.borrow_mut();
        let mut trunk = self.cell.machine.borrow_mut();
        self.due = trunk.poll_timeout(&bus);
        if self.due.is_some_and(|due| due <= now) {
            trunk.handle_timeout(&mut Turn::new(now, &mut bus));
            self.due = trunk.poll_timeout(&bus);
        }
        trunk.note_timer(self.due);
    }

    /// Does what the machine asks for. Returns whether it asked for anything.
    fn act(&mut self) -> bool {
        let mut acted = false;
        loop {
            let action = self.cell.machine.borrow_mut().poll_action();
            let Some(action) = action else {
                return acted;
            };
            acted = true;
            match action {
                Action::Dial { link, broker } => self.dial(link, broker),
                Action::Close { link, abort } => self.close(link, abort),
                Action::Secure { link, broker } => self.secure(link, broker),
                Action::Measure { link } => self.measure(link),
                Action::Greeted => {
                    if let Some(greeted) = self.cell.greeted.get() {
                        greeted.notify_one();
                    }
                }
                Action::Report(report) => self.log(&report),
                Action::Done => self.done = true,
            }
        }
    }

    fn dial(&mut self, id: LinkId, broker: BrokerId) {
        let bus = self.bus.borrow();
        let broker = bus.roster().broker(broker);
        let (ips, port) = (broker.ips().to_vec(), broker.addr().port);
        let within = bus.settings().timings.connect_timeout;
        let dial = async move { names::connect(&ips, port, within).await };
        self.links.push(LinkIo {
            id,
            watch: Readiness::default(),
            socket: Socket::Dialing(Box::pin(dial)),
        });
    }

    fn close(&mut self, id: LinkId, abort: bool) {
        let Some(at) = self.links.iter().position(|link| link.id == id) else {
            return;
        };
        let link = self.links.swap_remove(at);
        if let Socket::Open { port, .. } = &link.socket
            && abort
        {
            socket::abort(port.socket());
        }
    }

    fn secure(&mut self, id: LinkId, broker: BrokerId) {
        let link = self.links.iter().find(|link| link.id == id);
        let Some(Socket::Open { port, .. }) = link.map(|link| &link.socket) else {
            return;
        };
        let identity = self.cell.machine.borrow().connect().identity;
        if let Err(error) = self.bus.secure(port, broker, identity) {
            let failure = Failure::TlsHandshake;
            self.bus.log_tls(broker, failure, &error, self.now);
            self.fail(id, failure);
        }
    }

    fn measure(&self, id: LinkId) {
        let link = self.links.iter().find(|link| link.id == id);
        if let Some(Socket::Open { port, .. }) = link.map(|link| &link.socket)
            && let Ok(bytes) = port.unacked_bytes()
        {
            self.with_machine(|trunk, cx| trunk.handle_unacked(id, bytes, cx.now));
        }
    }

    /// Writes what waits for brokers. Returns whether a link turned out to be dead.
    fn flush_links(&mut self, cx: &mut Context<'_>) -> bool {
        let mut busy = false;
        for at in 0..self.links.len() {
            let id = self.links[at].id;
            let Socket::Open { port, .. } = &self.links[at].socket else {
                continue;
            };
            let flushed = loop {
                let mut trunk = self.cell.machine.borrow_mut();
                let Some(out) = trunk.link_out(id) else {
                    break Flush::Done;
                };
                let flushed = port.flush(out);
                drop(trunk);
                if flushed != Flush::Full || port.poll_writable(cx).is_pending() {
                    break flushed;
                }
            };
            if let Flush::Dead(_) = flushed {
                self.read_out(at);
                self.fail(id, Failure::WriteError);
                busy = true;
            }
        }
        let mut trunk = self.cell.machine.borrow_mut();
        self.bus.turn(self.now, |cx| trunk.unpark(cx));
        busy
    }

    /// R10: what a dead socket still holds is delivered and counted before the replay is
    /// computed.
    fn read_out(&self, at: usize) {
        let id = self.links[at].id;
        let buffer = Rc::clone(&self.bus.buffer);
        let mut buffer = buffer.borrow_mut();
        loop {
            let Socket::Open { read, port } = &self.links[at].socket else {
                return;
            };
            match port.read_now(read, &mut buffer) {
                Ok(count) if count > 0 => {
                    let bytes = &buffer[..count];
                    self.with_machine(|trunk, cx| {
                        trunk.handle_link_bytes(id, bytes, cx);
                    });
                }
                _ => return,
            }
        }
    }

    /// Writes to the sessions that the pass touched; those that are full, closing or were
    /// parked have their own task woken.
    fn flush_sessions(&mut self) {
        loop {
            let touched = self.cell.machine.borrow_mut().poll_touched();
            let Some(session) = touched else {
                return;
            };
            let Some(port) = self.cell.port(session) else {
                continue;
            };
            let mut trunk = self.cell.machine.borrow_mut();
            let closing = trunk.closing(session).is_some();
            let Some(out) = trunk.out(session) else {
                continue;
            };
            let flushed = port.flush(out);
            trunk.account(session, &self.bus.borrow());
            if flushed != Flush::Done || closing || trunk.take_released(session) {
                port.wake();
            }
        }
    }

    fn fail(&self, id: LinkId, failure: Failure) {
        self.with_machine(|trunk, cx| trunk.handle_link_failed(id, failure, cx));
    }

    fn with_machine(&self, input: impl FnOnce(&mut Trunk, &mut Turn<'_>)) {
        let mut trunk = self.cell.machine.borrow_mut();
        self.bus.turn(self.now, |cx| input(&mut trunk, cx));
    }

    fn log(&self, report: &Report) {
        let bus = self.bus.borrow();
        let addr = |broker: BrokerId| bus.roster().broker(broker).label();
        let (name, trunk) = (&self.bus.name, self.cell.machine.borrow().id().0);
        match report {
            Report::Attached {
                link,
                broker,
                after,
                replayed,
                held,
                took,
            } => debug!(
                bus = name,
                trunk,
                link = link.0,
                broker = addr(*broker),
                cause = after.map(|(_, cause)| cause.as_str()),
                replayed,
                held,
                took_ms = took.as_millis() as u64,
                "link attached"
            ),
            Report::Lost {
                link,
                broker,
                cause,
                first,
            } => {
                let (broker, cause) = (addr(*broker), cause.as_str());
                if *first {
                    warn!(bus = name, broker, cause, "broker lost, failing over");
                }
                debug!(bus = name, trunk, link = link.0, broker, cause, "link lost");
            }
            Report::DialFailed { broker, failure } => debug!(
                bus = name,
                trunk,
                broker = addr(*broker),
                cause = failure.as_str(),
                "dial failed"
            ),
            Report::BrokerError { broker, text } => {
                let mut known = self.bus.log.borrow_mut();
                let repeated = known.limit.note(Some(*broker), text, self.now);
                let broker = addr(*broker);
                let refused = classify(text) == BrokerError::Refused;
                let by_proxy = refused && self.bus.borrow().identities().is_proxy();
                let text = String::from_utf8_lossy(text);
                let text = text.escape_debug();
                match repeated {
                    Some(repeated) if by_proxy => {
                        let hint = "the broker may not trust the key of proxy_key_file";
                        warn!(bus = name, trunk, broker, %text, hint, repeated, "broker error");
                    }
                    Some(repeated) => {
                        warn!(bus = name, trunk, broker, %text, repeated, "broker error");
                    }
                    None => debug!(bus = name, trunk, broker, %text, "broker error"),
                }
            }
            Report::WrongTopology { broker } => error!(
                bus = name,
                broker = addr(*broker),
                "wrong topology: brokers are routed to each other, one of them is used"
            ),
            Report::PresenceForbidden { broker } => warn!(
                bus = name,
                broker = addr(*broker),
                "presence isn't permitted to this identity, asked again later"
            ),
            Report::Unproven { pongs } => {
                warn!(bus = name, trunk, pongs, "pongs released without proof");
            }
            Report::Dropping { held_bytes } => {
                warn!(
                    bus = name,
                    trunk, held_bytes, "publish buffer full, dropping publishes"
                );
            }
        }
    }
}

pub(super) fn dial_failure(error: &io::Error) -> Failure {
    match error.kind() {
        _ if is_out_of_files(error) => Failure::OutOfFiles,
        io::ErrorKind::ConnectionRefused => Failure::ConnectionRefused,
        io::ErrorKind::NotFound => Failure::NameNotFound,
        io::ErrorKind::TimedOut => Failure::ConnectTimeout,
        _ => Failure::Unreachable,
    }
}

fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|out| errno == Some(out.raw_os_error()))
}
