//! CONNECT, INFO and the configuration file: nothing panics, and what is accepted means the
//! same when it is written again.

use natsmux::config::Config;
use natsmux::proto::client::{self, ClientLimits, ClientOp, Scan};
use natsmux::proto::connect::ConnectInfo;
use natsmux::proto::info::HeaderSupport;
use natsmux::proto::info::{FirstInfo, ServerInfo, first_info};

/// INFO is at most this long, with `INFO ` and CRLF (R17).
const INFO_MOST: usize = 512;

/// The options of a CONNECT.
pub fn connect(data: &[u8]) {
    let Ok(options) = ConnectInfo::parse(data) else {
        return;
    };
    let mut line = Vec::new();
    options.encode(1, true, &mut line);
    let limits = ClientLimits {
        max_control_line: usize::MAX,
        ..ClientLimits::default()
    };
    let Scan::Op {
        op: ClientOp::Connect { json },
        len,
    } = client::scan(&line, &limits)
    else {
        panic!("{line:?} isn't a CONNECT");
    };
    assert_eq!(len, line.len());
    let twin = ConnectInfo::parse(json).expect("what natsmux writes");
    let mut again = Vec::new();
    twin.encode(1, true, &mut again);
    assert_eq!(again, line, "R20: the same options are the same CONNECT");
    assert_eq!(twin.is_signed(), options.is_signed());
    // The protocol is natsmux's own from here on.
    if (0..=1).contains(&options.protocol) {
        assert_eq!(
            twin.refusal(HeaderSupport::On),
            options.refusal(HeaderSupport::On)
        );
    }
}

/// A broker's INFO.
pub fn info(data: &[u8]) {
    let Ok(info) = ServerInfo::parse(data) else {
        return;
    };
    let _ = info.version_numbers();
    let local = FirstInfo {
        server_id: "NATSMUX0000000000000000000000000000000000000000000000000",
        server_name: "a name that is longer than what a client of 2012 takes",
        host: "127.0.0.1",
        port: 4222,
        client_ip: "127.0.0.1",
        client_id: u64::MAX,
        jetstream: true,
        auth_required: false,
        max_payload: usize::MAX,
        nonce: "0123456789abcde",
        is_signed: false,
        tls: None,
    };
    for brokers in [
        &[&info][..],
        &[&info, &ServerInfo::parse(b"{}").expect("empty")],
    ] {
        let line = first_info(brokers, &local);
        assert!(line.len() <= INFO_MOST, "R17: {} bytes", line.len());
        let json = line.strip_prefix(b"INFO ").expect("INFO");
        let twin = ServerInfo::parse(json.trim_ascii()).expect("what natsmux writes");
        assert!(twin.max_payload <= info.max_payload, "R17: the smallest");
        assert!(!twin.headers || info.headers, "R17: the common denominator");
    }
}

/// A configuration file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Config::parse(text) {
        Ok(config) => assert!(!config.describe().to_string().is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
