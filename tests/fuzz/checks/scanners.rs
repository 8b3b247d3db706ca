//! The parsers of both sides: any split of a stream reads the same, and what is encoded again
//! is read as what it was.

use std::hash::{DefaultHasher, Hash, Hasher};

use natsmux::proto::client::{self, ClientLimits, ClientOp, Scan};
use natsmux::proto::encode;
use natsmux::proto::server::{self, ServerLimits, ServerOp, ServerScan};

/// Limits that inputs of a fuzzer's size can reach.
const CLIENT_LIMITS: ClientLimits = ClientLimits {
    max_control_line: 64,
    max_payload: 48,
};

/// The first byte says how the rest is split; all of it is a component's stream.
pub fn client(data: &[u8]) {
    let Some((&split, stream)) = data.split_first() else {
        return;
    };
    for limits in [CLIENT_LIMITS, ClientLimits::default()] {
        let scan = |input: &[u8]| match client::scan(input, &limits) {
            Scan::Op { op, len } => {
                check_client_op(&op, &input[..len], &limits);
                Step::Op(digest(&op), len)
            }
            Scan::Incomplete { need } => Step::Incomplete(need),
            Scan::Fault(fault) => Step::Fault(digest(&fault)),
        };
        check_splits(stream, split, scan);
    }
}

/// The same for a broker's stream.
pub fn server(data: &[u8]) {
    let Some((&split, stream)) = data.split_first() else {
        return;
    };
    let limits = ServerLimits::default();
    let scan = |input: &[u8]| match server::scan(input, &limits) {
        ServerScan::Op { op, len } => {
            check_server_op(&op, &input[..len]);
            Step::Op(digest(&op), len)
        }
        ServerScan::Incomplete { need } => Step::Incomplete(need),
        ServerScan::Fault(fault) => Step::Fault(digest(&fault)),
    };
    check_splits(stream, split, scan);
}

/// What a scan came to. Operations are compared by their digests: texts of them would cost
/// more than the parsers.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Op(u64, usize),
    Incomplete(Option<usize>),
    Fault(u64),
}

fn digest(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Reads `stream` whole and in pieces, and compares.
fn check_splits(stream: &[u8], split: u8, scan: impl Fn(&[u8]) -> Step) {
    let whole = read(stream, stream.len().max(1), &scan);
    let pieces = read(stream, usize::from(split).max(1), &scan);
    assert_eq!(pieces, whole, "pieces of {split} bytes read otherwise");
}

/// All operations and the fault, if one ends them, of a stream that comes `piece` by `piece`.
fn read(stream: &[u8], piece: usize, scan: impl Fn(&[u8]) -> Step) -> Vec<Step> {
    let (mut start, mut end) = (0, 0);
    let mut steps = Vec::new();
    let mut promised = None;
    loop {
        match scan(&stream[start..end]) {
            Step::Op(op, len) => {
                assert!(len > 0 && len <= end - start, "an operation of {len} bytes");
                assert!(
                    promised.is_none_or(|need| need == len),
                    "{promised:?}, got {len}"
                );
                promised = None;
                start += len;
                steps.push(Step::Op(op, len));
            }
            Step::Fault(fault) => {
                steps.push(Step::Fault(fault));
                return steps;
            }
            Step::Incomplete(need) => {
                assert!(
                    need.is_none_or(|need| need > end - start),
                    "{need:?} is there"
                );
                promised = need.or(promised);
                if end == stream.len() {
                    return steps;
                }
                end = stream.len().min(end + piece);
            }
        }
    }
}

fn check_client_op(op: &ClientOp<'_>, frame: &[u8], limits: &ClientLimits) {
    let mut again = Vec::new();
    match op {
        ClientOp::Publish(publish) => {
            assert_eq!(publish.frame, frame);
            assert_eq!(publish.payload().len(), publish.size);
            assert!(publish.header_len.is_none_or(|len| len <= publish.size));
            publish.encode(&mut again);
            if publish.canonical {
                let verb: &[u8] = if publish.header_len.is_some() {
                    b"HPUB "
                } else {
                    b"PUB "
                };
                assert!(
                    frame.starts_with(verb) && frame.ends_with(b"\r\n"),
                    "{frame:?}"
                );
            }
            let Scan::Op {
                op: ClientOp::Publish(twin),
                len,
            } = client::scan(&again, limits)
            else {
                panic!("{again:?} isn't a publish any more");
            };
            assert_eq!(len, again.len());
            assert!(twin.canonical);
            let parts = |p: &client::Publish<'_>| {
                (
                    p.subject.to_vec(),
                    p.reply.map(<[u8]>::to_vec),
                    p.header_len,
                    p.payload().to_vec(),
                )
            };
            assert_eq!(parts(&twin), parts(publish));
        }
        ClientOp::Subscribe {
            subject,
            queue_group,
            sid,
        } => {
            encode::sub(&mut again, subject, *queue_group, sid);
            check_twin(op, &again);
        }
        ClientOp::Unsubscribe { sid, max } if max.is_none_or(|max| max < 1_000_000_000) => {
            encode::unsub(&mut again, sid, *max);
            check_twin(op, &again);
        }
        _ => {}
    }
}

/// What was encoded is read as what it was.
fn check_twin(op: &ClientOp<'_>, again: &[u8]) {
    let len = again.len();
    let twin = client::scan(again, &ClientLimits::default());
    assert_eq!(twin, Scan::Op { op: *op, len });
}

fn check_server_op(op: &ServerOp<'_>, frame: &[u8]) {
    let ServerOp::Msg(msg) = op else {
        return;
    };
    assert_eq!(msg.frame, frame);
    assert_eq!(msg.payload.len(), msg.size);
    assert!(msg.header_len <= msg.size);
    for sid in [&b"1"[..], b"another-sid"] {
        let mut again = Vec::new();
        encode::msg(&mut again, msg, sid);
        let ServerScan::Op {
            op: ServerOp::Msg(twin),
            len,
        } = server::scan(&again, &ServerLimits::default())
        else {
            panic!("{again:?} isn't a message any more");
        };
        assert_eq!((len, twin.sid), (again.len(), sid));
        assert_eq!(
            (twin.subject, twin.reply, twin.payload),
            (msg.subject, msg.reply, msg.payload)
        );
        let mut bare = Vec::new();
        encode::msg_without_headers(&mut bare, msg, sid);
        let ServerScan::Op {
            op: ServerOp::Msg(twin),
            ..
        } = server::scan(&bare, &ServerLimits::default())
        else {
            panic!("{bare:?} isn't a message any more");
        };
        assert!(!twin.headers);
        assert_eq!(twin.payload, &msg.payload[msg.header_len..]);
    }
}
