//! Operations as bytes, appended to the caller's buffer.
//!
//! Arguments are written as they are: they come from parsed operations, so they hold no blank, CR or LF.

use super::client::{self, ClientLimits, ClientOp, Scan};
use super::number::decimal;
use super::server::Msg;

/// `PING`, from either side.
pub const PING: &[u8] = b"PING\r\n";
/// `PONG`, from either side.
pub const PONG: &[u8] = b"PONG\r\n";
/// `+OK`, to a component.
pub const OK: &[u8] = b"+OK\r\n";

/// `SUB subject [queue_group] sid`, to a broker.
pub fn sub(out: &mut Vec<u8>, subject: &[u8], queue_group: Option<&[u8]>, sid: &[u8]) {
    out.extend_from_slice(b"SUB ");
    out.extend_from_slice(subject);
    if let Some(queue_group) = queue_group {
        out.push(b' ');
        out.extend_from_slice(queue_group);
    }
    out.push(b' ');
    out.extend_from_slice(sid);
    out.extend_from_slice(b"\r\n");
}

/// `PUB subject #bytes` and the payload, to a broker.
pub fn publish(out: &mut Vec<u8>, subject: &[u8], payload: &[u8]) {
    publish_to(out, subject, None, payload);
}

/// `PUB subject reply #bytes` and the payload, to a broker.
pub fn request(out: &mut Vec<u8>, subject: &[u8], reply: &[u8], payload: &[u8]) {
    publish_to(out, subject, Some(reply), payload);
}

/// `HPUB subject reply #headers #bytes`, headers and payload, to a broker; PUB where there are none.
pub fn request_with(
    out: &mut Vec<u8>,
    subject: &[u8],
    reply: &[u8],
    headers: &[u8],
    payload: &[u8],
) {
    if headers.is_empty() {
        return request(out, subject, reply, payload);
    }
    out.extend_from_slice(b"HPUB ");
    out.extend_from_slice(subject);
    out.push(b' ');
    out.extend_from_slice(reply);
    out.push(b' ');
    decimal(out, headers.len() as u64);
    out.push(b' ');
    decimal(out, (headers.len() + payload.len()) as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(headers);
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

fn publish_to(out: &mut Vec<u8>, subject: &[u8], reply: Option<&[u8]>, payload: &[u8]) {
    out.extend_from_slice(b"PUB ");
    out.extend_from_slice(subject);
    if let Some(reply) = reply {
        out.push(b' ');
        out.extend_from_slice(reply);
    }
    out.push(b' ');
    decimal(out, payload.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// `UNSUB sid [max]`, to a broker. `max` must be below 10⁹: a broker takes what is longer as no number and ends the
/// subscription at once, so a larger one is written as 999,999,999.
pub fn unsub(out: &mut Vec<u8>, sid: &[u8], max: Option<u64>) {
    out.extend_from_slice(b"UNSUB ");
    out.extend_from_slice(sid);
    if let Some(max) = max {
        out.push(b' ');
        decimal(out, max.min(999_999_999));
    }
    out.extend_from_slice(b"\r\n");
}

/// `-ERR 'text'`, to a component. Clients crash on any other form.
pub fn err(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(b"-ERR '");
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"'\r\n");
}

/// The frame of `msg` under another sid, to a component that asked for headers, or of a message without any.
pub fn msg(out: &mut Vec<u8>, msg: &Msg<'_>, sid: &[u8]) {
    out.extend_from_slice(if msg.headers { b"HMSG " } else { b"MSG " });
    out.extend_from_slice(msg.subject);
    out.push(b' ');
    out.extend_from_slice(sid);
    out.extend_from_slice(msg.after_sid);
}

/// The frame of `msg` under another sid, without its headers, as a broker writes it to a component that didn't ask
/// for headers.
pub fn msg_without_headers(out: &mut Vec<u8>, msg: &Msg<'_>, sid: &[u8]) {
    let body = &msg.payload[msg.header_len..];
    out.extend_from_slice(b"MSG ");
    out.extend_from_slice(msg.subject);
    out.push(b' ');
    out.extend_from_slice(sid);
    if let Some(reply) = msg.reply {
        out.push(b' ');
        out.extend_from_slice(reply);
    }
    out.push(b' ');
    decimal(out, body.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    out.extend_from_slice(b"\r\n");
}

/// Whole `PUB` and `HPUB` frames, for a broker that knows no headers: each `HPUB` becomes a `PUB` of its body.
/// Returns how many these were.
pub fn publishes_without_headers(out: &mut Vec<u8>, mut frames: &[u8]) -> u64 {
    let mut stripped = 0;
    while let Scan::Op { op, len } = client::scan(frames, &ClientLimits::NONE) {
        match op {
            ClientOp::Publish(publish) if publish.header_len.is_some() => {
                stripped += 1;
                let body = &publish.payload()[publish.header_len.unwrap_or(0)..];
                publish_to(out, publish.subject, publish.reply, body);
            }
            _ => out.extend_from_slice(&frames[..len]),
        }
        frames = &frames[len..];
    }
    debug_assert!(frames.is_empty(), "whole frames");
    stripped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::server::{ServerLimits, ServerOp, ServerScan, scan};

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"+".to_vec();
        write(&mut out);
        String::from_utf8(out).expect("the tests write text")
    }

    fn parsed(frame: &[u8]) -> Msg<'_> {
        match scan(frame, &ServerLimits::default()) {
            ServerScan::Op {
                op: ServerOp::Msg(msg),
                ..
            } => msg,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn operations_are_appended_in_canonical_form() {
        assert_eq!(
            written(|out| sub(out, b"a.>", None, b"7")),
            "+SUB a.> 7\r\n"
        );
        assert_eq!(
            written(|out| sub(out, b"a", Some(b"q"), b"7")),
            "+SUB a q 7\r\n"
        );
        assert_eq!(written(|out| unsub(out, b"7", None)), "+UNSUB 7\r\n");
        assert_eq!(written(|out| unsub(out, b"7", Some(12))), "+UNSUB 7 12\r\n");
        assert_eq!(
            written(|out| unsub(out, b"7", Some(u64::MAX))),
            "+UNSUB 7 999999999\r\n"
        );
        assert_eq!(
            written(|out| err(out, "Stale Connection")),
            "+-ERR 'Stale Connection'\r\n"
        );
    }

    #[test]
    fn a_message_keeps_all_but_its_sid() {
        let frame = b"MSG a.b 12  3\r\nxyz\r\n";
        assert_eq!(
            written(|out| msg(out, &parsed(frame), b"client-1")),
            "+MSG a.b client-1  3\r\nxyz\r\n"
        );
        let frame = b"HMSG a 12 r 012 014\r\nNATS/1.0\r\n\r\nok\r\n";
        let expected = "+HMSG a 1 r 012 014\r\nNATS/1.0\r\n\r\nok\r\n";
        assert_eq!(written(|out| msg(out, &parsed(frame), b"1")), expected);
    }

    #[test]
    fn stripping_headers_leaves_the_body_and_its_size() {
        let frame = b"HMSG a 12 r 12 14\r\nNATS/1.0\r\n\r\nok\r\n";
        assert_eq!(
            written(|out| msg_without_headers(out, &parsed(frame), b"1")),
            "+MSG a 1 r 2\r\nok\r\n"
        );
        let frame = b"HMSG a 12 12 12\r\nNATS/1.0\r\n\r\n\r\n";
        assert_eq!(
            written(|out| msg_without_headers(out, &parsed(frame), b"1")),
            "+MSG a 1 0\r\n\r\n"
        );
    }

    #[test]
    fn publishes_lose_their_headers_and_nothing_else() {
        let mut out = Vec::new();
        let frames = b"HPUB a r 12 14\r\nNATS/1.0\r\n\r\nok\r\nPUB b 5\r\nHPUB \r\n\
                       HPUB c 12 12\r\nNATS/1.0\r\n\r\n\r\nHPUB d 0 1\r\nx\r\n\
                       HPUB e\x01f 12 13\r\nNATS/1.0\r\n\r\ny\r\n";
        assert_eq!(publishes_without_headers(&mut out, frames), 4);
        let expected = "PUB a r 2\r\nok\r\nPUB b 5\r\nHPUB \r\nPUB c 0\r\n\r\nPUB d 1\r\nx\r\nPUB e\x01f 1\r\ny\r\n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
        assert_eq!(publishes_without_headers(&mut out, b""), 0);
    }
}
