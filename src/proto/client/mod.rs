//! Operations that a component sends.
//!
//! [`scan`] is stateless: it looks at bytes that start where an operation starts and says what stands there, that it
//! isn't whole yet, or why a broker would close the connection. A fault is found at the byte at which nats-server finds
//! it. Runs of small publishes are the daemon's hot path, so a well-formed `PUB` takes a short way through
//! `publish_head` that neither allocates nor looks at a byte of payload.
//!
//! Stricter than nats-server, on purpose:
//! - CR or LF inside the arguments of a publish is [`ClientFault::BadArguments`]. nats-server accepts them, reads them
//!   differently depending on how the bytes were split over packets, and hands a broken `MSG` line to subscribers.
//! - `HMSG` is refused at `HM`; nats-server lexes the line first and refuses what follows.
//! - Blanks before an argument, and what follows `PING`, `PONG` and `+OK`, are bounded by `max_control_line`.

use thiserror::Error;

use super::info::ServerInfo;
use super::line::{self, Line, Verb};
use super::publish_head::{self, PublishHead};

/// Bounds on a component's input, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Longest argument of a control line, CONNECT's included. nats-server's default is 4096.
    pub max_control_line: usize,
    /// Largest payload, headers included. nats-server's default is 1 MiB.
    pub max_payload: usize,
}

impl ClientLimits {
    /// For what natsmux itself has written.
    pub const NONE: Self = Self {
        max_control_line: usize::MAX,
        max_payload: usize::MAX,
    };
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            max_control_line: 4096,
            max_payload: 1024 * 1024,
        }
    }
}

/// An operation that a component sent. All slices point into the scanned input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientOp<'a> {
    /// `CONNECT {…}`, not yet parsed.
    Connect {
        /// The options; for [`ConnectInfo`](super::connect::ConnectInfo).
        json: &'a [u8],
    },
    /// `PUB` or `HPUB` with its payload.
    Publish(Publish<'a>),
    /// `SUB`. The subject isn't judged here, see [`subject`](super::subject).
    Subscribe {
        /// As sent.
        subject: &'a [u8],
        /// As sent.
        queue_group: Option<&'a [u8]>,
        /// As sent; any bytes without blanks.
        sid: &'a [u8],
    },
    /// `UNSUB`.
    Unsubscribe {
        /// As sent.
        sid: &'a [u8],
        /// Messages since the SUB after which the subscription ends. `None` ends it at once, which is also what
        /// nats-server makes of `0` and of anything that is no number.
        max: Option<u64>,
    },
    /// `PING`, with whatever follows on its line.
    Ping,
    /// `PONG`, with whatever follows on its line.
    Pong,
    /// `+OK` or a well-formed `INFO`: a broker ignores them.
    Ignored,
}

/// A publish: `PUB subject [reply] size` or `HPUB subject [reply] header_len size`, and the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Publish<'a> {
    /// The whole frame as received, from the verb to the CRLF behind the payload.
    pub frame: &'a [u8],
    /// Whether `frame` may be forwarded as it is: upper-case verb, blanks only between the arguments, and a CRLF right
    /// behind the size. Otherwise forward [`encode`](Self::encode).
    pub canonical: bool,
    /// As sent, without blanks, CR or LF.
    pub subject: &'a [u8],
    /// As sent, without blanks, CR or LF.
    pub reply: Option<&'a [u8]>,
    /// Bytes of headers, for `HPUB`; at most `size`.
    pub header_len: Option<usize>,
    /// Bytes of payload, headers included.
    pub size: usize,
}

impl<'a> Publish<'a> {
    /// Headers and body, without the final CRLF.
    pub fn payload(&self) -> &'a [u8] {
        let end = self.frame.len().saturating_sub(2);
        &self.frame[end.saturating_sub(self.size)..end]
    }

    /// Appends the frame in canonical form. Digits stay as they were sent (`0002` reaches subscribers like that).
    pub fn encode(&self, out: &mut Vec<u8>) {
        let head_len = self.frame.len().saturating_sub(self.size + 2);
        let (head, payload) = self.frame.split_at(head_len);
        let mut numbers = head
            .split(|b| b.is_ascii_whitespace())
            .filter(|part| !part.is_empty())
            .rev();
        let size = numbers.next().unwrap_or_default();
        out.extend_from_slice(if self.header_len.is_some() {
            b"HPUB "
        } else {
            b"PUB "
        });
        out.extend_from_slice(self.subject);
        if let Some(reply) = self.reply {
            out.push(b' ');
            out.extend_from_slice(reply);
        }
        if self.header_len.is_some() {
            out.push(b' ');
            out.extend_from_slice(numbers.next().unwrap_or_default());
        }
        out.push(b' ');
        out.extend_from_slice(size);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(payload);
    }
}

/// The first thing in an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan<'a> {
    /// A whole operation.
    Op {
        /// The operation.
        op: ClientOp<'a>,
        /// Bytes that it takes, from the start of the input.
        len: usize,
    },
    /// An operation that may become whole.
    Incomplete {
        /// Bytes of the whole frame, once the head of a publish is known; it is within the limits.
        need: Option<usize>,
    },
    /// The connection is to be closed.
    Fault(ClientFault),
}

/// Why a component's connection is closed: always its own fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum ClientFault {
    /// No NATS operation, or a payload that isn't followed by CRLF.
    #[error("unknown protocol operation")]
    UnknownOperation,
    /// A control line over `max_control_line`.
    #[error("control line over the limit")]
    MaxControlLine,
    /// A payload over `max_payload`, found at its header line.
    #[error("payload over the limit")]
    MaxPayload,
    /// Wrong number of arguments, a size that is no number, a header longer than its payload.
    #[error("malformed arguments")]
    BadArguments,
    /// CONNECT's options are no JSON, or of wrong types.
    #[error("malformed CONNECT")]
    BadConnect,
    /// The component sent an INFO that doesn't parse.
    #[error("malformed INFO")]
    BadInfo,
    /// The component sent `-ERR`.
    #[error("the component sent an error")]
    ClientError,
}

impl ClientFault {
    /// Returns the text of nats-server's `-ERR '…'` before it closes. `None` where it closes
    /// without a word.
    pub fn error_text(&self) -> Option<&'static str> {
        match self {
            Self::UnknownOperation => Some("Unknown Protocol Operation"),
            Self::MaxControlLine => Some("maximum control line exceeded"),
            Self::MaxPayload => Some("Maximum Payload Violation"),
            Self::BadArguments | Self::BadConnect | Self::BadInfo | Self::ClientError => None,
        }
    }
}

/// Says what stands at the start of `input`, which must be where an operation starts.
pub fn scan<'a>(input: &'a [u8], limits: &ClientLimits) -> Scan<'a> {
    if let Some(head) = publish_head::canonical(input, limits.max_control_line) {
        return publish(input, &head, limits);
    }
    match line::verb(input, VERBS) {
        Verb::Is(verb, verb_len) => operation(input, verb, verb_len, limits),
        Verb::Partial => Scan::Incomplete { need: None },
        Verb::Unknown => Scan::Fault(ClientFault::UnknownOperation),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientVerb {
    Connect,
    Ping,
    Pong,
    Pub,
    Hpub,
    Sub,
    Unsub,
    Ok,
    Err,
    Info,
}

const VERBS: &[(&[u8], ClientVerb)] = &[
    (b"PUB", ClientVerb::Pub),
    (b"HPUB", ClientVerb::Hpub),
    (b"PING", ClientVerb::Ping),
    (b"PONG", ClientVerb::Pong),
    (b"SUB", ClientVerb::Sub),
    (b"UNSUB", ClientVerb::Unsub),
    (b"CONNECT", ClientVerb::Connect),
    (b"INFO", ClientVerb::Info),
    (b"+OK", ClientVerb::Ok),
    (b"-ERR", ClientVerb::Err),
];

fn operation<'a>(
    input: &'a [u8],
    verb: ClientVerb,
    verb_len: usize,
    limits: &ClientLimits,
) -> Scan<'a> {
    use ClientVerb::{Connect, Err, Hpub, Info, Ok, Ping, Pong, Pub, Sub, Unsub};
    let needs_blank = matches!(verb, Pub | Hpub | Sub | Unsub | Err);
    if needs_blank && input.get(verb_len).is_some_and(|&b| !line::is_blank(b)) {
        return Scan::Fault(ClientFault::UnknownOperation);
    }
    let line = match verb {
        Ping | Pong | Ok => line::ignored_tail(input, verb_len, limits.max_control_line),
        _ => line::argument(input, verb_len, limits.max_control_line),
    };
    let (arg, len) = match line {
        Line::Whole { arg, len } => (arg, len),
        Line::Partial => return Scan::Incomplete { need: None },
        Line::TooLong => return Scan::Fault(ClientFault::MaxControlLine),
    };
    let op = match verb {
        Pub | Hpub => {
            return match PublishHead::parse(&input[..len], arg, verb == Hpub) {
                Some(head) => publish(input, &head, limits),
                None => Scan::Fault(ClientFault::BadArguments),
            };
        }
        Connect => Some(ClientOp::Connect { json: arg }),
        Ping => Some(ClientOp::Ping),
        Pong => Some(ClientOp::Pong),
        Sub => subscribe(arg),
        Unsub => unsubscribe(arg),
        Ok => Some(ClientOp::Ignored),
        Err => return Scan::Fault(ClientFault::ClientError),
        Info if ServerInfo::is_acceptable(arg) => Some(ClientOp::Ignored),
        Info => return Scan::Fault(ClientFault::BadInfo),
    };
    op.map_or(Scan::Fault(ClientFault::BadArguments), |op| Scan::Op {
        op,
        len,
    })
}

/// Payload and line end behind a head.
#[inline]
fn publish<'a>(input: &'a [u8], head: &PublishHead<'a>, limits: &ClientLimits) -> Scan<'a> {
    if head.size > limits.max_payload {
        return Scan::Fault(ClientFault::MaxPayload);
    }
    let end = head.len + head.size;
    let len = end + 2;
    let Some(frame) = input.get(..len) else {
        // The payload ends strictly with CRLF, and nats-server looks at each of the two bytes as it comes.
        return match input.get(end) {
            Some(&b) if b != b'\r' => Scan::Fault(ClientFault::UnknownOperation),
            _ => Scan::Incomplete { need: Some(len) },
        };
    };
    if frame[end] != b'\r' || frame[end + 1] != b'\n' {
        return Scan::Fault(ClientFault::UnknownOperation);
    }
    let op = ClientOp::Publish(Publish {
        frame,
        canonical: head.canonical,
        subject: head.subject,
        reply: head.reply,
        header_len: head.header_len,
        size: head.size,
    });
    Scan::Op { op, len }
}

fn subscribe(arg: &[u8]) -> Option<ClientOp<'_>> {
    match line::split::<3>(arg, separates_subscription)? {
        ([subject, sid, _], 2) => Some(ClientOp::Subscribe {
            subject,
            queue_group: None,
            sid,
        }),
        ([subject, queue_group, sid], 3) => Some(ClientOp::Subscribe {
            subject,
            queue_group: Some(queue_group),
            sid,
        }),
        _ => None,
    }
}

fn unsubscribe(arg: &[u8]) -> Option<ClientOp<'_>> {
    match line::split::<2>(arg, separates_subscription)? {
        ([sid, _], 1) => Some(ClientOp::Unsubscribe { sid, max: None }),
        ([sid, max], 2) => {
            let max = line::number(max)
                .filter(|&max| max > 0)
                .map(|max| max as u64);
            Some(ClientOp::Unsubscribe { sid, max })
        }
        _ => None,
    }
}

/// nats-server splits the arguments of SUB and UNSUB, but not those of PUB, on CR and LF too.
fn separates_subscription(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

#[cfg(test)]
mod tests;
