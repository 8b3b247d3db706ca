//! The scanner alone, without a socket, closes where the brokers on record closed, and with the same words.

use natsmux::proto::client::{ClientFault, ClientLimits, ClientOp, Scan, scan};
use natsmux::proto::connect::ConnectInfo;
use natsmux::proto::info::HeaderSupport;

use crate::broker::{V2_9, V2_15};
use crate::case::{self, Broker, Case, End};
use crate::record;

/// Why a session is closed, in the words of `-ERR`; `None` says nothing.
type Close = Option<&'static str>;

#[test]
fn the_scanner_closes_where_brokers_do() {
    for version in [&V2_9, &V2_15] {
        let record = record::read(version);
        let comparable = |case: &Case| {
            case.broker == Broker::Open && case.end != End::HalfClose && case.differs.is_none()
        };
        for case in case::all().into_iter().filter(comparable) {
            let expected = &record[&case.name];
            let last: &[u8] = if case.end == End::Ping {
                b"PING\r\n"
            } else {
                b""
            };
            let close = read_all(&[&case.send, last].concat());
            assert_eq!(
                close.is_some(),
                expected.closed,
                "{} at {}",
                case.name,
                version.number
            );
            if let Some(Some(text)) = close {
                let line = format!("-ERR '{text}'\r\n");
                assert!(
                    expected.output.ends_with(line.as_bytes()),
                    "{} at {}",
                    case.name,
                    version.number
                );
            } else if close.is_some() {
                let said_last = expected.output.ends_with(b"'\r\n");
                assert!(
                    !said_last,
                    "{} at {} isn't silent",
                    case.name, version.number
                );
            }
        }
    }
}

/// Reads what one session sends, as a broker without authorization does. `Some` when it closes.
fn read_all(mut input: &[u8]) -> Option<Close> {
    let mut options = ConnectInfo::default();
    loop {
        match scan(input, &ClientLimits::default()) {
            Scan::Op { op, len } => {
                if let Some(close) = judge(op, &mut options) {
                    return Some(close);
                }
                input = &input[len..];
            }
            Scan::Incomplete { .. } => return None,
            Scan::Fault(fault) => return Some(fault.error_text()),
        }
    }
}

/// What a broker closes for although the bytes are well-formed.
fn judge(op: ClientOp<'_>, options: &mut ConnectInfo) -> Option<Close> {
    match op {
        ClientOp::Connect { json } => match options.merge(json) {
            Ok(()) => options.refusal(HeaderSupport::On).map(Some),
            Err(fault) => Some(ClientFault::from(fault).error_text()),
        },
        ClientOp::Publish(publish) if publish.header_len.is_some() && !options.headers => {
            Some(None)
        }
        _ => None,
    }
}
