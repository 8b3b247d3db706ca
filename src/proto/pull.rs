//! Pull requests of JetStream consumers, and the statuses by which brokers end them.
//!
//! A request is a publish to `<prefix>.CONSUMER.MSG.NEXT.<stream>.<consumer>` whose messages come to its reply. Names
//! of streams and consumers hold no dot, so any prefix (`$JS.API`, `$JS.<domain>.API`, a mapped one) is told alike.

use std::time::Duration;

use serde_json::{Map, Value};

use super::json::folded;
use super::server::Msg;

/// The tokens ahead of the names of stream and consumer.
const NEXT: &[u8] = b".CONSUMER.MSG.NEXT";
const INFO: &[u8] = b".CONSUMER.INFO";

/// The longest body of a request that is read, in bytes.
const BODY_MOST: usize = 512;
/// The longest answer about a consumer that is read, in bytes.
const ANSWER_MOST: usize = 64 * 1024;

const KEYS: [&str; 5] = ["batch", "expires", "max_bytes", "no_wait", "idle_heartbeat"];

/// A request, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullRequest {
    /// Messages.
    pub batch: u64,
    /// Bytes, where they are bounded.
    pub max_bytes: Option<u64>,
    /// How long the broker keeps it; without, for ever.
    pub expires: Option<Duration>,
}

/// Where the names of stream and consumer begin, of a request's subject.
fn names_at(subject: &[u8]) -> Option<usize> {
    let consumer = memchr::memrchr(b'.', subject)?;
    let stream = memchr::memrchr(b'.', &subject[..consumer])?;
    subject[..stream].ends_with(NEXT).then_some(stream)
}

/// Whether a publish to this subject is a pull request.
pub fn is_pull(subject: &[u8]) -> bool {
    names_at(subject).is_some()
}

/// The subject at which brokers tell about the consumer of a request.
pub fn info_subject(subject: &[u8]) -> Option<Vec<u8>> {
    let names = names_at(subject)?;
    let prefix = &subject[..names - NEXT.len()];
    Some([prefix, INFO, &subject[names..]].concat())
}

fn digits(body: &[u8]) -> Option<u64> {
    let is_number = !body.is_empty() && body.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(body)
        .ok()?
        .parse()
        .ok()
        .filter(|_| is_number)
}

/// The body as an object whose keys are written as brokers do.
fn object(body: &[u8]) -> Option<Map<String, Value>> {
    let Ok(Value::Object(object)) = serde_json::from_slice(body) else {
        return None;
    };
    // Go matches keys in any case.
    let is_exact = |key: &String| {
        let folded = folded(key);
        *key == folded || !KEYS.contains(&folded.as_str())
    };
    object.keys().all(is_exact).then_some(object)
}

impl PullRequest {
    /// Reads the body of a request, without headers. `None`: it asks for nothing that is kept, or
    /// for something that natsmux doesn't know how to ask for again.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let one = |batch| Self {
            batch,
            max_bytes: None,
            expires: None,
        };
        if body.len() > BODY_MOST {
            return None;
        }
        if body.trim_ascii().is_empty() {
            return Some(one(1));
        }
        if let Some(batch) = digits(body.trim_ascii()) {
            return Some(one(batch.max(1)));
        }
        let object = object(body)?;
        let number = |key: &str| match object.get(key) {
            None | Some(Value::Null) => Some(0),
            Some(value) => value.as_u64(),
        };
        let expires = number("expires")?;
        let max_bytes = number("max_bytes")?;
        if object.get("no_wait") == Some(&Value::Bool(true)) && expires == 0 {
            return None;
        }
        Some(Self {
            max_bytes: (max_bytes > 0).then_some(max_bytes),
            expires: (expires > 0).then(|| Duration::from_nanos(expires)),
            ..one(number("batch")?.max(1))
        })
    }

    /// The body of a request for what is left of another one, whose body was `body`.
    pub fn encode(&self, body: &[u8]) -> Vec<u8> {
        let Some(mut object) = object(body) else {
            return self.batch.to_string().into_bytes();
        };
        let mut set = |key: &str, number: u64| object.insert(key.to_owned(), number.into());
        set("batch", self.batch);
        if let Some(bytes) = self.max_bytes {
            set("max_bytes", bytes);
        }
        if let Some(expires) = self.expires {
            let nanos = u64::try_from(expires.as_nanos()).unwrap_or(u64::MAX);
            set("expires", nanos);
            // Brokers refuse a heartbeat that is longer than half of it.
            let beat = object.get("idle_heartbeat").and_then(Value::as_u64);
            if let Some(beat) = beat.filter(|beat| *beat > nanos / 2) {
                object.insert("idle_heartbeat".to_owned(), beat.min(nanos / 2).into());
            }
        }
        Value::Object(object).to_string().into_bytes()
    }
}

/// The meaning of a message to the reply of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullStatus {
    /// Nothing: it is a consumer's message.
    Message,
    /// That its consumer lives.
    Heartbeat,
    /// It is over, and so many of its messages weren't delivered.
    Ended {
        /// How many.
        messages: u64,
    },
    /// The newest one is refused.
    Refused,
    /// The newest one is refused, since too many wait there.
    Full,
    /// The newest one is over: there is nothing for it.
    NoMessages,
    /// Nobody takes requests for its consumer.
    NoResponders,
    /// Its consumer has another leader, which may know nothing of it.
    LeaderChanged,
    /// Its consumer is gone.
    Gone,
}

impl PullStatus {
    /// Reads a message.
    pub fn of(msg: &Msg<'_>) -> Self {
        if !msg.headers || msg.header_len != msg.size {
            return Self::Message;
        }
        let line_end = memchr::memchr(b'\r', msg.payload).unwrap_or(msg.payload.len());
        let (line, rest) = msg.payload.split_at(line_end);
        let Some(status) = line.strip_prefix(b"NATS/1.0 ") else {
            return Self::Message;
        };
        let (code, text) = status.split_at(status.len().min(3));
        let number = |name: &[u8]| header(rest, name).and_then(digits);
        let messages = number(b"Nats-Pending-Messages:");
        let says = |words: &[u8]| text.trim_ascii().eq_ignore_ascii_case(words);
        match (code, messages) {
            (b"100", _) => Self::Heartbeat,
            (b"503", _) => Self::NoResponders,
            (_, Some(messages)) => Self::Ended { messages },
            (b"409", _) if says(b"Leadership Change") || says(b"Server Shutdown") => {
                Self::LeaderChanged
            }
            (b"409", _) if says(b"Exceeded MaxWaiting") => Self::Full,
            (b"409", _) if says(b"Consumer Deleted") || says(b"Consumer is push based") => {
                Self::Gone
            }
            (b"404" | b"408", _) => Self::NoMessages,
            (b"400" | b"409" | b"423", _) => Self::Refused,
            _ => Self::Message,
        }
    }
}

/// The value of a header, without blanks around it.
fn header<'h>(block: &'h [u8], name: &[u8]) -> Option<&'h [u8]> {
    let mut lines = block.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(name))?;
    Some(value.trim_ascii())
}

/// A broker's answer about a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumerInfo {
    /// It is there.
    Waiting {
        /// Requests that wait for messages.
        requests: u64,
        /// Messages that nobody has got.
        messages: u64,
    },
    /// There is no such consumer.
    Missing,
    /// Nobody can tell now.
    Unavailable,
}

impl ConsumerInfo {
    /// Reads an answer.
    pub fn of(msg: &Msg<'_>) -> Self {
        let body = &msg.payload[msg.header_len.min(msg.payload.len())..];
        if body.len() > ANSWER_MOST {
            return Self::Unavailable;
        }
        let Ok(Value::Object(answer)) = serde_json::from_slice(body) else {
            return Self::Unavailable;
        };
        let number = |key: &str| answer.get(key).and_then(Value::as_u64);
        let code = |error: &Value| error.get("code").and_then(Value::as_u64);
        match answer.get("error").map(code) {
            Some(Some(404)) => Self::Missing,
            // What there is none of, some servers leave out.
            None if answer.contains_key("config") => Self::Waiting {
                requests: number("num_waiting").unwrap_or(0),
                messages: number("num_pending").unwrap_or(0),
            },
            _ => Self::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::server::{ServerLimits, ServerOp, ServerScan, scan};

    #[test]
    fn requests_are_told_by_their_subjects_whatever_the_prefix() {
        for (subject, info) in [
            ("$JS.API.CONSUMER.MSG.NEXT.S.C", "$JS.API.CONSUMER.INFO.S.C"),
            (
                "$JS.hub.API.CONSUMER.MSG.NEXT.S.C",
                "$JS.hub.API.CONSUMER.INFO.S.C",
            ),
            ("my.CONSUMER.MSG.NEXT.a-b.c_d", "my.CONSUMER.INFO.a-b.c_d"),
        ] {
            assert!(is_pull(subject.as_bytes()));
            let found = info_subject(subject.as_bytes());
            assert_eq!(found.as_deref(), Some(info.as_bytes()));
        }
        for other in [
            "",
            "a",
            "a.b",
            "CONSUMER.MSG.NEXT.S.C",
            "$JS.API.CONSUMER.MSG.NEXT.S",
            "$JS.API.CONSUMER.MSG.NEXT.S.C.D",
            "$JS.API.CONSUMER.MSG.PREVIOUS.S.C",
        ] {
            assert!(!is_pull(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn bodies_of_all_libraries_are_read() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (body, batch, max_bytes, expires) in [
            ("", 1, None, None),
            ("10", 10, None, None),
            (r#"{"batch":5,"expires":30000000000}"#, 5, None, seconds(30)),
            (
                r#"{"expires":1000000000,"no_wait":true}"#,
                1,
                None,
                seconds(1),
            ),
            (
                r#"{"batch":1000,"max_bytes":4096,"group":"g"}"#,
                1000,
                Some(4096),
                None,
            ),
        ] {
            let expected = PullRequest {
                batch,
                max_bytes,
                expires,
            };
            assert_eq!(
                PullRequest::parse(body.as_bytes()),
                Some(expected),
                "{body}"
            );
        }
        let long = format!("{{\"group\":\"{}\"}}", "g".repeat(BODY_MOST));
        for body in [
            "x",
            "-1",
            r#"{"batch":"1"}"#,
            r#"{"Batch":1}"#,
            r#"{"batch":-1}"#,
            r#"{"no_wait":true}"#,
            "[]",
            long.as_str(),
        ] {
            assert_eq!(PullRequest::parse(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn the_rest_of_a_request_asks_for_what_is_left_and_keeps_all_else() {
        let left = PullRequest {
            batch: 3,
            max_bytes: Some(100),
            expires: Some(Duration::from_secs(4)),
        };
        let body = br#"{"batch":9,"max_bytes":900,"expires":9000000000,"idle_heartbeat":3000000000,"group":"g","min_pending":7}"#;
        let again = left.encode(body);
        assert_eq!(PullRequest::parse(&again), Some(left));
        let object = object(&again).expect("an object");
        assert_eq!(object["idle_heartbeat"], 2_000_000_000_u64);
        assert_eq!(
            (&object["group"], &object["min_pending"]),
            (&"g".into(), &7.into())
        );
        let plain = PullRequest {
            max_bytes: None,
            expires: None,
            ..left
        };
        assert_eq!(plain.encode(b"9"), b"3");
        assert_eq!(plain.encode(b""), b"3");
    }

    fn read<T>(frame: &str, of: impl Fn(&Msg<'_>) -> T) -> T {
        match scan(frame.as_bytes(), &ServerLimits::default()) {
            ServerScan::Op {
                op: ServerOp::Msg(msg),
                ..
            } => of(&msg),
            other => panic!("{other:?}"),
        }
    }

    fn status(headers: &str) -> PullStatus {
        let len = headers.len();
        read(
            &format!("HMSG r 1 {len} {len}\r\n{headers}\r\n"),
            PullStatus::of,
        )
    }

    #[test]
    fn statuses_say_what_is_left() {
        let ended = PullStatus::Ended { messages: 4 };
        let pending = "Nats-Pending-Messages: 4\r\nNats-Pending-Bytes: 17\r\n\r\n";
        assert_eq!(
            status(&format!("NATS/1.0 408 Request Timeout\r\n{pending}")),
            ended
        );
        assert_eq!(
            status(&format!("NATS/1.0 409 Batch Completed\r\n{pending}")),
            ended
        );
        for (line, expected) in [
            ("100 Idle Heartbeat", PullStatus::Heartbeat),
            ("503", PullStatus::NoResponders),
            ("409 Leadership Change", PullStatus::LeaderChanged),
            ("409 Server Shutdown", PullStatus::LeaderChanged),
            ("409 Consumer Deleted", PullStatus::Gone),
            ("409 Exceeded MaxWaiting", PullStatus::Full),
            ("409 Exceeded MaxRequestBatch of 5", PullStatus::Refused),
            ("404 No Messages", PullStatus::NoMessages),
            ("400 Bad Request", PullStatus::Refused),
            ("777 Other", PullStatus::Message),
            ("4", PullStatus::Message),
        ] {
            assert_eq!(
                status(&format!("NATS/1.0 {line}\r\n\r\n")),
                expected,
                "{line}"
            );
        }
        assert_eq!(status("NATS/1.0\r\nA: b\r\n\r\n"), PullStatus::Message);
        assert_eq!(
            read("MSG r 1 1\r\nx\r\n", PullStatus::of),
            PullStatus::Message
        );
    }

    #[test]
    fn answers_about_a_consumer_say_whether_requests_wait() {
        let of = |body: &str| {
            let frame = format!("MSG r 1 {}\r\n{body}\r\n", body.len());
            read(&frame, ConsumerInfo::of)
        };
        let waiting = |requests| ConsumerInfo::Waiting {
            requests,
            messages: requests / 2,
        };
        assert_eq!(
            of(r#"{"config":{},"num_waiting":2,"num_pending":1}"#),
            waiting(2)
        );
        assert_eq!(of(r#"{"config":{}}"#), waiting(0));
        assert_eq!(
            of(r#"{"error":{"code":404,"err_code":10014}}"#),
            ConsumerInfo::Missing
        );
        assert_eq!(of(r#"{"error":{"code":503}}"#), ConsumerInfo::Unavailable);
        assert_eq!(of("x"), ConsumerInfo::Unavailable);
    }
}
