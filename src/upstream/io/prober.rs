//! R11: asks brokers without a link how they are, and those with links seldom, what they offer:
//! connect, read the INFO, close.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_local;
use tokio::time::{sleep_until, timeout};
use tracing::{debug, info, warn};

use super::pool::Pool;
use super::secure::{self, HandshakeError};
use crate::clock::Instant;
use crate::config::TlsMode;
use crate::net::socket::ReadHalf;
use crate::net::{Port, names, now};
use crate::proto::info::ServerInfo;
use crate::proto::server::{self, ServerLimits, ServerOp, ServerScan};
use crate::upstream::brokers::roster::{BrokerId, Failure};

/// How long a probe waits for a refusal of natsmux's certificate, at least and at most.
const REFUSAL_LEAST: Duration = Duration::from_millis(20);
const REFUSAL_MOST: Duration = Duration::from_millis(250);

impl Pool {
    /// Probes the bus's brokers for as long as the worker runs.
    pub async fn probe(self: Rc<Self>) {
        while !self.is_closed() {
            let now = now();
            let due = self.bus.borrow_mut().roster_mut().poll_probe(now);
            if let Some(broker) = due {
                self.bus.borrow_mut().counters_mut().probes += 1;
                spawn_local(Rc::clone(&self).probe_one(broker));
                continue;
            }
            let next = {
                let mut bus = self.bus.borrow_mut();
                bus.presence_mut().set_wall(now, SystemTime::now());
                bus.review(now);
                bus.poll_timeout()
            };
            self.probe_at.set(next);
            // Trunks may wait for what the look at the roster has found due.
            self.wake_freed(now);
            self.wait(next).await;
        }
    }

    /// Waits until `due`, or until the roster has changed.
    async fn wait(&self, due: Option<Instant>) {
        let far = now() + Duration::from_secs(3600);
        let due = std::time::Instant::from(due.unwrap_or(far));
        let mut sleep = pin!(sleep_until(due.into()));
        let mut first = true;
        poll_fn(|cx| {
            self.register_prober(cx);
            if std::mem::take(&mut first) {
                return sleep.as_mut().poll(cx);
            }
            Poll::Ready(())
        })
        .await;
    }

    async fn probe_one(self: Rc<Self>, broker: BrokerId) {
        let start = now();
        // A panic over an INFO ends as a task, and the broker is probed again.
        let asked = spawn_local(Rc::clone(&self).ask(broker)).await;
        let result = asked.unwrap_or(Err(Failure::Garbage));
        let now = now();
        let mut bus = self.bus.borrow_mut();
        let before = bus.roster().broker(broker).health();
        let addr = bus.roster().broker(broker).label();
        let is_look = bus.roster().is_look(broker);
        match result {
            result if is_look => bus.roster_mut().handle_probe(broker, result, now),
            Ok(info) => {
                let version = info.version.clone();
                let unfit = bus.roster().unfit(broker, &info);
                bus.roster_mut().handle_probe(broker, Ok(info), now);
                let took = now.saturating_duration_since(start);
                bus.roster_mut().note_probe(broker, took);
                let is_changed = bus.roster().broker(broker).health() != before;
                if let Some(failure) = unfit.filter(|_| is_changed) {
                    let (cause, hint) = (failure.as_str(), failure.hint());
                    warn!(
                        bus = self.bus.name,
                        broker = addr,
                        cause,
                        hint,
                        "broker unfit"
                    );
                } else if is_changed {
                    info!(bus = self.bus.name, broker = addr, version, "broker up");
                }
            }
            Err(failure) => {
                let cause = failure.as_str();
                bus.roster_mut().handle_probe(broker, Err(failure), now);
                if bus.roster().broker(broker).health() != before {
                    warn!(bus = self.bus.name, broker = addr, cause, "broker down");
                } else {
                    debug!(
                        bus = self.bus.name,
                        broker = addr,
                        cause,
                        "broker still down"
                    );
                }
            }
        }
        drop(bus);
        self.wake_freed(now);
        self.wake_prober();
    }

    async fn ask(self: Rc<Self>, broker: BrokerId) -> Result<ServerInfo, Failure> {
        let (ips, port, timings, mode) = {
            let bus = self.bus.borrow();
            let mode = bus.roster().tls_mode(broker);
            let broker = bus.roster().broker(broker);
            let (ips, port) = (broker.ips().to_vec(), broker.addr().port);
            (ips, port, bus.settings().timings, mode)
        };
        let dial = names::connect(&ips, port, timings.connect_timeout);
        let stream = match timeout(timings.connect_timeout, dial).await {
            Err(_) => return Err(Failure::ConnectTimeout),
            Ok(Err(error)) => return Err(super::driver::dial_failure(&error)),
            Ok(Ok(stream)) => stream,
        };
        let (mut read, write) = stream.into_split();
        let port = Port::new(write);
        let read = &mut read;
        if mode == TlsMode::First {
            self.handshake(broker, &port, read).await?;
        }
        let info = timeout(timings.info_timeout, self.read_info(broker, &port, read));
        let info = info.await.unwrap_or(Err(Failure::InfoTimeout))?;
        if mode == TlsMode::Required && info.offers_tls() {
            let began = now();
            match self.handshake(broker, &port, read).await {
                Ok(()) => {
                    let took = now().saturating_duration_since(began);
                    self.await_refusal(broker, &port, read, took).await?;
                }
                // It lives, and has no time for one more.
                Err(Failure::Throttled | Failure::Full) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(info)
    }

    async fn handshake(
        &self,
        broker: BrokerId,
        port: &Port,
        read: &mut ReadHalf,
    ) -> Result<(), Failure> {
        let within = self.bus.borrow().settings().timings.tls_timeout;
        if let Err(error) = self.bus.secure_anew(port, broker) {
            let failure = Failure::TlsHandshake;
            self.bus.log_tls(broker, failure, &error, now());
            return Err(failure);
        }
        match timeout(within, secure::handshake(port, read)).await {
            Err(_) => Err(Failure::TlsTimeout),
            Ok(Ok(())) => {
                let mut bus = self.bus.borrow_mut();
                bus.roster_mut().note_certificate(broker, port.peer_ends());
                Ok(())
            }
            Ok(Err(HandshakeError::Plain(failure))) => Err(failure),
            Ok(Err(HandshakeError::Socket(error))) => Err(self.failure_of(broker, &error)),
        }
    }

    /// With TLS 1.3 a broker refuses natsmux's certificate behind the handshake, which has taken
    /// `took`: one round trip later.
    async fn await_refusal(
        &self,
        broker: BrokerId,
        port: &Port,
        read: &mut ReadHalf,
        took: Duration,
    ) -> Result<(), Failure> {
        let mut buffer = [0; 512];
        let next = poll_fn(|cx| port.poll_read(read, cx, &mut buffer));
        match timeout(took.clamp(REFUSAL_LEAST, REFUSAL_MOST), next).await {
            // It waits for CONNECT, or has something to say.
            Err(_) | Ok(Ok(1..)) => Ok(()),
            Ok(Ok(0)) => Err(Failure::Closed),
            Ok(Err(error)) => Err(self.failure_of(broker, &error)),
        }
    }

    /// The failure behind an error of a probe's socket, logged where it is TLS's.
    fn failure_of(&self, broker: BrokerId, error: &io::Error) -> Failure {
        let Some(failure) = secure::tls_failure(error) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Failure::Closed,
                _ => Failure::Reset,
            };
        };
        self.bus.log_tls(broker, failure, error, now());
        failure
    }

    async fn read_info(
        &self,
        broker: BrokerId,
        port: &Port,
        read: &mut ReadHalf,
    ) -> Result<ServerInfo, Failure> {
        let mut buffer = [0; 1024];
        let limits = ServerLimits::default();
        let mut line = Vec::with_capacity(1024);
        loop {
            match poll_fn(|cx| port.poll_read(read, cx, &mut buffer)).await {
                Ok(0) => return Err(Failure::Closed),
                Err(error) => return Err(self.failure_of(broker, &error)),
                Ok(count) => line.extend_from_slice(&buffer[..count]),
            }
            return match server::scan(&line, &limits) {
                ServerScan::Incomplete { need: None } => continue,
                ServerScan::Op {
                    op: ServerOp::Info { json },
                    ..
                } => ServerInfo::parse(json).map_err(|_| Failure::Garbage),
                // A message ahead of INFO is not waited for.
                ServerScan::Op { .. } | ServerScan::Fault(_) | ServerScan::Incomplete { .. } => {
                    Err(Failure::Garbage)
                }
            };
        }
    }
}
