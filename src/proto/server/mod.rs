//! Operations that a broker sends.
//!
//! [`scan`] is stateless, as in [`client`](super::client). It is tolerant in what brokers are known to do (a blank
//! before INFO's CRLF, two blanks where JetStream of 2.9 has no reply) and strict in what keeps the stream in step:
//! sizes, and the CRLF behind a payload. A fault here means that the link is worthless, never that a component is
//! closed.

use memchr::{memchr, memrchr};
use thiserror::Error;

use super::line::{self, Verb};

/// Bounds on a broker's input, in bytes: against a broken peer, far above a broker's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Longest control line with its line end. INFO of a large cluster is long.
    pub max_control_line: usize,
    /// Largest payload, headers included.
    pub max_payload: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_control_line: 64 * 1024,
            max_payload: 64 * 1024 * 1024,
        }
    }
}

/// Payload that every broker may send, in bytes: the most that nats-server takes without a warning.
const MAX_PAYLOAD_LEAST: usize = 8 * 1024 * 1024;

impl ServerLimits {
    /// Those of a broker whose INFO has this `max_payload`. A stream may hold messages of a time
    /// when it was larger, and brokers add headers.
    pub fn of_broker(max_payload: usize) -> Self {
        let limits = Self::default();
        let most = limits.max_payload;
        Self {
            max_payload: max_payload.saturating_mul(2).clamp(MAX_PAYLOAD_LEAST, most),
            ..limits
        }
    }
}

/// An operation that a broker sent. All slices point into the scanned input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerOp<'a> {
    /// `INFO {…}`, not yet parsed.
    Info {
        /// For [`ServerInfo`](super::info::ServerInfo), without blanks around it.
        json: &'a [u8],
    },
    /// `MSG` or `HMSG` with its payload.
    Msg(Msg<'a>),
    /// `PING`.
    Ping,
    /// `PONG`.
    Pong,
    /// `+OK`.
    Ok,
    /// `-ERR`.
    Err {
        /// The text between the quotes, or the rest of the line without blanks where there are
        /// none. See [`classify`](super::error_text::classify).
        text: &'a [u8],
        /// The whole line as received, with its line end.
        line: &'a [u8],
    },
}

/// A message: `MSG subject sid [reply] size` or `HMSG subject sid [reply] header_len size`, and the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Msg<'a> {
    /// The whole frame as received, from the verb to the CRLF behind the payload.
    pub frame: &'a [u8],
    /// Whether it is an `HMSG`.
    pub headers: bool,
    /// The published subject, which says nothing about the subscription's.
    pub subject: &'a [u8],
    /// The subscription that the message is for.
    pub sid: &'a [u8],
    /// Where an answer goes.
    pub reply: Option<&'a [u8]>,
    /// Bytes of headers; 0 for `MSG`, at most `size`.
    pub header_len: usize,
    /// Bytes of payload, headers included.
    pub size: usize,
    /// From the verb to the blank before the sid, as received.
    pub before_sid: &'a [u8],
    /// From the blank behind the sid to the end of the frame: what is copied when the sid is rewritten.
    pub after_sid: &'a [u8],
    /// Headers and body, without the final CRLF.
    pub payload: &'a [u8],
}

/// A status that says that nobody listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoResponders<'a> {
    /// To what.
    pub subject: Option<&'a [u8]>,
}

impl Msg<'_> {
    /// Whether this may be the status by which a broker tells a requester that nobody listens: to
    /// the letter, and the subject that it names, which brokers do since 2.12. Applications may
    /// publish the same.
    pub fn no_responders(&self) -> Option<NoResponders<'_>> {
        const STATUS: &[u8] = b"NATS/1.0 503\r\n";
        const SUBJECT: &[u8] = b"Nats-Subject: ";
        const END: &[u8] = b"\r\n";
        if !self.headers || self.header_len != self.size || self.reply.is_some() {
            return None;
        }
        let rest = self.payload.strip_prefix(STATUS)?.strip_suffix(END)?;
        if rest.is_empty() {
            return Some(NoResponders { subject: None });
        }
        let subject = rest.strip_prefix(SUBJECT)?.strip_suffix(END)?;
        let is_one = !subject.iter().any(u8::is_ascii_whitespace);
        is_one.then_some(NoResponders {
            subject: Some(subject),
        })
    }
}

/// The first thing in an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerScan<'a> {
    /// A whole operation.
    Op {
        /// The operation.
        op: ServerOp<'a>,
        /// Bytes that it takes, from the start of the input.
        len: usize,
    },
    /// An operation that may become whole.
    Incomplete {
        /// Bytes of the whole frame, once the head of a message is known; it is within the limits.
        need: Option<usize>,
    },
    /// The link is out of step and must be left.
    Fault(ServerFault),
}

/// How a broker, or what answers on its port, broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum ServerFault {
    /// No operation of a NATS broker.
    #[error("unknown protocol operation from the broker")]
    UnknownOperation,
    /// A control line over the limit.
    #[error("control line from the broker over the limit")]
    LineTooLong,
    /// A payload over the limit.
    #[error("payload from the broker over the limit")]
    PayloadTooLarge,
    /// Wrong number of arguments, a size that is no number, a header longer than its payload.
    #[error("malformed arguments from the broker")]
    BadArguments,
    /// A payload isn't followed by CRLF.
    #[error("payload from the broker doesn't end where it should")]
    BadPayloadEnd,
}

/// Says what stands at the start of `input`, which must be where an operation starts.
pub fn scan<'a>(input: &'a [u8], limits: &ServerLimits) -> ServerScan<'a> {
    if let Some((head, len)) = MsgHead::short(input, limits.max_control_line) {
        return message(input, &head, len, limits);
    }
    let (verb, verb_len) = match line::verb(input, VERBS) {
        Verb::Is(verb, verb_len) => (verb, verb_len),
        Verb::Partial => return ServerScan::Incomplete { need: None },
        Verb::Unknown => return ServerScan::Fault(ServerFault::UnknownOperation),
    };
    let window = &input[..input.len().min(limits.max_control_line)];
    let Some(line_feed) = memchr(b'\n', &window[verb_len.min(window.len())..]) else {
        return if window.len() < limits.max_control_line {
            ServerScan::Incomplete { need: None }
        } else {
            ServerScan::Fault(ServerFault::LineTooLong)
        };
    };
    let len = verb_len + line_feed + 1;
    let line = &input[..len];
    let arg = &line[verb_len..len - 1];
    let arg = arg.strip_suffix(b"\r").unwrap_or(arg);
    let op = match verb {
        ServerVerb::Msg | ServerVerb::Hmsg => {
            return match MsgHead::parse(arg, verb_len, verb == ServerVerb::Hmsg) {
                Some(head) => message(input, &head, len, limits),
                None => ServerScan::Fault(ServerFault::BadArguments),
            };
        }
        ServerVerb::Info => ServerOp::Info {
            json: arg.trim_ascii(),
        },
        ServerVerb::Ping => ServerOp::Ping,
        ServerVerb::Pong => ServerOp::Pong,
        ServerVerb::Ok => ServerOp::Ok,
        ServerVerb::Err => ServerOp::Err {
            text: unquoted(arg),
            line,
        },
    };
    ServerScan::Op { op, len }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ServerVerb {
    Info,
    Msg,
    Hmsg,
    Ping,
    Pong,
    Ok,
    Err,
}

const VERBS: &[(&[u8], ServerVerb)] = &[
    (b"MSG", ServerVerb::Msg),
    (b"HMSG", ServerVerb::Hmsg),
    (b"PING", ServerVerb::Ping),
    (b"PONG", ServerVerb::Pong),
    (b"+OK", ServerVerb::Ok),
    (b"-ERR", ServerVerb::Err),
    (b"INFO", ServerVerb::Info),
];

/// The arguments of a message.
struct MsgHead<'a> {
    headers: bool,
    subject: &'a [u8],
    sid: &'a [u8],
    /// Where the sid ends, from the start of the line.
    sid_end: usize,
    reply: Option<&'a [u8]>,
    header_len: usize,
    size: usize,
}

impl<'a> MsgHead<'a> {
    /// The short way for a `MSG` as brokers write it, word by word, and the length of its line. `None`
    /// says nothing about the input.
    #[inline]
    fn short(input: &'a [u8], max_control_line: usize) -> Option<(Self, usize)> {
        if input.first_chunk::<4>() != Some(b"MSG ") {
            return None;
        }
        let line = &input[..input.len().min(max_control_line)];
        let (subject, at) = short_word(line, 4)?;
        let (sid, sid_end) = short_word(line, at + 1)?;
        if line[at] != b' ' || line[sid_end] != b' ' {
            return None;
        }
        let (mut last, mut at) = short_word(line, sid_end + 1)?;
        let mut reply = None;
        if line[at] == b' ' {
            let (next, end) = short_word(line, at + 1)?;
            (reply, last, at) = (Some(last), next, end);
        }
        if line[at] != b'\r' || line.get(at + 1) != Some(&b'\n') {
            return None;
        }
        let head = Self {
            headers: false,
            subject,
            sid,
            sid_end,
            reply,
            header_len: 0,
            size: line::number(last)?,
        };
        Some((head, at + 2))
    }

    fn parse(arg: &'a [u8], verb_len: usize, headers: bool) -> Option<Self> {
        if !line::is_blank(*arg.first()?) {
            return None;
        }
        let mut at = 0;
        let subject = word(arg, &mut at);
        let sid = word(arg, &mut at);
        let sid_end = verb_len + at;
        let numbers = if headers { 2 } else { 1 };
        let mut words: [&[u8]; 3] = [&[]; 3];
        let mut count = 0;
        loop {
            let next = word(arg, &mut at);
            if next.is_empty() {
                break;
            }
            *words.get_mut(count)? = next;
            count += 1;
        }
        let (reply, sizes) = match count.checked_sub(numbers)? {
            0 => (None, &words[..count]),
            1 => (Some(words[0]), &words[1..count]),
            _ => return None,
        };
        let size = line::number(sizes.last()?)?;
        let header_len = if headers {
            line::number(sizes.first()?)?
        } else {
            0
        };
        (header_len <= size).then_some(Self {
            headers,
            subject,
            sid,
            sid_end,
            reply,
            header_len,
            size,
        })
    }
}

/// The word at `at`, and where it ends: before a blank or a control character.
#[inline]
fn short_word(line: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = line::word_end(line.get(at..)?, 0)? + at;
    (end > at).then(|| (&line[at..end], end))
}

/// The next word of `arg` from `at` on, which moves behind it. Empty at the end.
#[inline]
fn word<'a>(arg: &'a [u8], at: &mut usize) -> &'a [u8] {
    while arg.get(*at).is_some_and(|&b| line::is_blank(b)) {
        *at += 1;
    }
    let start = *at;
    loop {
        *at = line::word_end(arg, *at).unwrap_or(arg.len());
        if arg.get(*at).is_none_or(|&b| line::is_blank(b)) {
            return &arg[start..*at];
        }
        *at += 1;
    }
}

/// Payload and line end behind a head.
#[inline]
fn message<'a>(
    input: &'a [u8],
    head: &MsgHead<'a>,
    head_len: usize,
    limits: &ServerLimits,
) -> ServerScan<'a> {
    if head.size > limits.max_payload {
        return ServerScan::Fault(ServerFault::PayloadTooLarge);
    }
    let end = head_len + head.size;
    let len = end + 2;
    let Some(frame) = input.get(..len) else {
        return ServerScan::Incomplete { need: Some(len) };
    };
    if &frame[end..] != b"\r\n" {
        return ServerScan::Fault(ServerFault::BadPayloadEnd);
    }
    let op = ServerOp::Msg(Msg {
        frame,
        headers: head.headers,
        subject: head.subject,
        sid: head.sid,
        reply: head.reply,
        header_len: head.header_len,
        size: head.size,
        before_sid: &frame[..head.sid_end - head.sid.len()],
        after_sid: &frame[head.sid_end..],
        payload: &frame[head_len..end],
    });
    ServerScan::Op { op, len }
}

/// Returns the text between the outermost single quotes, or all of it without blanks around.
fn unquoted(arg: &[u8]) -> &[u8] {
    match (memchr(b'\'', arg), memrchr(b'\'', arg)) {
        (Some(first), Some(last)) if first < last => &arg[first + 1..last],
        _ => arg.trim_ascii(),
    }
}

#[cfg(test)]
mod tests;
