//! Operations of a component that has a trunk, made of its frames.

use super::{Session, Upstream};
use crate::proto::client::{self, ClientFault, ClientLimits, ClientOp, Publish, Scan};
use crate::proto::connect::ConnectInfo;
use crate::upstream::{Bus, CloseReason, Turn, may_be_pull};

/// The next step for the bytes behind those that were handled.
pub(super) enum Then {
    /// They are the beginning of a frame of this length, if it is known.
    Unfinished(Option<usize>),
    /// Nothing now: the session waits for something, or is over.
    Later,
}

impl Session {
    /// Handles the whole frames at the start of `bytes` and returns how many bytes they were,
    /// and what is to be done with the rest.
    pub(super) fn consume(
        &mut self,
        bytes: &[u8],
        upstream: &mut Option<Upstream<'_>>,
        cx: &mut Turn<'_>,
    ) -> (usize, Then) {
        let limits = self.limits(upstream, cx.bus);
        let mut run = Run::default();
        let mut used = 0;
        loop {
            let scanned = client::scan(&bytes[used..], &limits);
            if let (
                Scan::Op {
                    op: ClientOp::Publish(publish),
                    len,
                },
                Some(upstream),
            ) = (&scanned, upstream.as_mut())
                && publish.canonical
                && (publish.header_len.is_none() || self.headers)
                && !cx.bus.presence().is_subject(publish.subject)
            {
                used += len;
                run.messages += 1;
                run.payload_bytes += publish.size;
                run.has_request |= publish.reply.is_some();
                if run.is_full(used, cx.bus) {
                    run.flush(bytes, used, upstream, cx);
                }
                if may_be_pull(publish) {
                    run.flush_pull(bytes, used, publish, upstream, cx);
                }
                continue;
            }
            if let Some(upstream) = upstream.as_mut() {
                run.flush(bytes, used, upstream, cx);
            }
            match scanned {
                Scan::Op { op, .. } if self.must_await_answer(&op, upstream, cx) => {
                    return (used, Then::Later);
                }
                Scan::Op { op, len } => {
                    let frame = &bytes[used..used + len];
                    used += len;
                    run.start = used;
                    self.pings.active = true;
                    self.operations = self.operations.saturating_add(1);
                    self.handle_op(op, frame, upstream, cx);
                    if self.action.is_some() || self.must_wait(upstream) || !self.is_open(upstream)
                    {
                        return (used, Then::Later);
                    }
                }
                Scan::Incomplete { need } => {
                    self.pings.active |= used > 0;
                    return (used, Then::Unfinished(need));
                }
                Scan::Fault(fault) => {
                    cx.bus.counters_mut().protocol_errors += 1;
                    self.end(CloseReason::Fault(fault), upstream, cx);
                    return (used, Then::Later);
                }
            }
        }
    }

    pub(super) fn must_await_answer(
        &self,
        op: &ClientOp<'_>,
        upstream: &mut Option<Upstream<'_>>,
        cx: &mut Turn<'_>,
    ) -> bool {
        match (op, upstream) {
            (ClientOp::Subscribe { sid, .. }, Some(upstream)) => {
                upstream.trunk.must_await_answer(upstream.id, sid, cx)
            }
            (ClientOp::Connect { json }, Some(upstream)) => {
                // One that can't be read changes nothing.
                ConnectInfo::parse(json).is_ok() && upstream.trunk.must_depart(upstream.id, cx)
            }
            _ => false,
        }
    }

    pub(super) fn limits(&self, upstream: &Option<Upstream<'_>>, bus: &Bus) -> ClientLimits {
        let of_broker = upstream
            .as_ref()
            .map(|upstream| upstream.trunk.max_payload());
        ClientLimits {
            max_control_line: self.max_control_line.min(bus.roster().max_control_line()),
            max_payload: of_broker
                .unwrap_or(usize::MAX)
                .min(bus.roster().offer().max_payload),
        }
    }

    pub(super) fn handle_op(
        &mut self,
        op: ClientOp<'_>,
        frame: &[u8],
        upstream: &mut Option<Upstream<'_>>,
        cx: &mut Turn<'_>,
    ) {
        match (op, upstream.as_mut()) {
            (ClientOp::Connect { json }, upstream) => self.handle_connect(json, upstream, cx),
            (ClientOp::Ignored, _) => {}
            (ClientOp::Pong, _) => self.pings.outstanding = 0,
            (op, Some(upstream)) => self.forward(op, upstream, cx),
            (op, None) => self.handle_before_connect(op, frame, cx),
        }
    }

    pub(super) fn forward(
        &mut self,
        op: ClientOp<'_>,
        upstream: &mut Upstream<'_>,
        cx: &mut Turn<'_>,
    ) {
        let (trunk, id) = (&mut *upstream.trunk, upstream.id);
        match op {
            ClientOp::Publish(publish) => self.publish(&publish, upstream, cx),
            ClientOp::Subscribe {
                subject,
                queue_group,
                sid,
            } => trunk.subscribe(id, subject, queue_group, sid, cx),
            ClientOp::Unsubscribe { sid, max } => trunk.unsubscribe(id, sid, max, cx),
            ClientOp::Ping => trunk.ping(id, cx),
            ClientOp::Connect { .. } | ClientOp::Pong | ClientOp::Ignored => {}
        }
    }

    /// A publish that can't go on as it came: brought into canonical form, or refused.
    pub(super) fn publish(
        &mut self,
        publish: &Publish<'_>,
        upstream: &mut Upstream<'_>,
        cx: &mut Turn<'_>,
    ) {
        if publish.header_len.is_some() && !self.headers {
            cx.bus.counters_mut().protocol_errors += 1;
            let reason = CloseReason::Fault(ClientFault::BadArguments);
            return upstream.trunk.finish(upstream.id, reason, cx);
        }
        if cx.bus.presence().is_subject(publish.subject) {
            return upstream
                .trunk
                .refuse_publish(upstream.id, publish.subject, cx.bus);
        }
        let mut frame = Vec::with_capacity(publish.frame.len());
        publish.encode(&mut frame);
        upstream
            .trunk
            .note_sent(upstream.id, 1, publish.size as u64, cx.bus);
        if publish.reply.is_some() {
            upstream.trunk.note_request(upstream.id, cx.bus);
        }
        upstream.trunk.publish(upstream.id, &frame, 1, cx);
        upstream.trunk.note_pull(upstream.id, publish, cx);
    }
}

/// A run of publishes that goes on as one slice of the read buffer.
#[derive(Default)]
struct Run {
    start: usize,
    messages: u64,
    payload_bytes: usize,
    /// Whether one of them asks for an answer.
    has_request: bool,
}

impl Run {
    /// Whether a fence is due behind it (R7).
    fn is_full(&self, end: usize, bus: &Bus) -> bool {
        let limits = &bus.settings().limits;
        self.messages >= limits.fence_messages as u64 || end - self.start >= limits.fence_bytes
    }

    /// The last one is a request of a JetStream consumer.
    #[cold]
    #[inline(never)]
    fn flush_pull(
        &mut self,
        bytes: &[u8],
        end: usize,
        publish: &Publish<'_>,
        upstream: &mut Upstream<'_>,
        cx: &mut Turn<'_>,
    ) {
        self.flush(bytes, end, upstream, cx);
        upstream.trunk.note_pull(upstream.id, publish, cx);
    }

    fn flush(&mut self, bytes: &[u8], end: usize, upstream: &mut Upstream<'_>, cx: &mut Turn<'_>) {
        if self.messages > 0 {
            let frames = &bytes[self.start..end];
            let payload_bytes = self.payload_bytes as u64;
            upstream
                .trunk
                .note_sent(upstream.id, self.messages, payload_bytes, cx.bus);
            if std::mem::take(&mut self.has_request) {
                upstream.trunk.note_request(upstream.id, cx.bus);
            }
            upstream
                .trunk
                .publish(upstream.id, frames, self.messages, cx);
            self.messages = 0;
            self.payload_bytes = 0;
        }
        self.start = end;
    }
}
