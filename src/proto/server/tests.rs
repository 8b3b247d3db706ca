use super::*;

fn limits() -> ServerLimits {
    ServerLimits {
        max_control_line: 200,
        max_payload: 1000,
    }
}

fn op(input: &[u8]) -> ServerOp<'_> {
    match scan(input, &limits()) {
        ServerScan::Op { op, len } => {
            assert_eq!(len, input.len());
            op
        }
        other => panic!("{other:?} for {:?}", input.escape_ascii().to_string()),
    }
}

fn msg(input: &[u8]) -> Msg<'_> {
    match op(input) {
        ServerOp::Msg(msg) => msg,
        other => panic!("{other:?}"),
    }
}

#[test]
fn single_line_operations_are_read_in_any_case() {
    assert_eq!(op(b"PING\r\n"), ServerOp::Ping);
    assert_eq!(op(b"pong\r\n"), ServerOp::Pong);
    assert_eq!(op(b"+OK\r\n"), ServerOp::Ok);
    assert_eq!(op(b"+ok\n"), ServerOp::Ok);
}

#[test]
fn info_has_its_blanks_taken_off() {
    assert_eq!(
        op(b"INFO {\"a\":1} \r\n"),
        ServerOp::Info { json: b"{\"a\":1}" }
    );
    assert_eq!(op(b"info {}\r\n"), ServerOp::Info { json: b"{}" });
}

#[test]
fn an_error_is_what_stands_between_the_quotes() {
    let text = |line| match op(line) {
        ServerOp::Err { text, line: whole } => {
            assert_eq!(whole, line);
            text
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(text(b"-ERR 'Stale Connection'\r\n"), b"Stale Connection");
    assert_eq!(text(b"-ERR 'a 'b' c'\r\n"), b"a 'b' c");
    assert_eq!(text(b"-ERR  bare text \r\n"), b"bare text");
    assert_eq!(text(b"-ERR '\r\n"), b"'");
    assert_eq!(text(b"-ERR\r\n"), b"");
}

#[test]
fn a_message_has_all_its_parts() {
    let msg = msg(b"MSG a.b 12 r.1 5\r\nhello\r\n");
    assert_eq!(
        (msg.subject, msg.sid, msg.reply),
        (&b"a.b"[..], &b"12"[..], Some(&b"r.1"[..]))
    );
    assert_eq!((msg.headers, msg.header_len, msg.size), (false, 0, 5));
    assert_eq!(msg.after_sid, b" r.1 5\r\nhello\r\n");
    assert_eq!(msg.payload, b"hello");
}

#[test]
fn two_blanks_in_place_of_a_reply_are_no_reply() {
    let plain = msg(b"MSG _INBOX.r.4 1  3\r\nabc\r\n");
    assert_eq!(
        (plain.reply, plain.size, plain.after_sid),
        (None, 3, &b"  3\r\nabc\r\n"[..])
    );
    let status = msg(b"HMSG _INBOX.r.7 1  12 12\r\nNATS/1.0\r\n\r\n\r\n");
    assert_eq!(
        (status.reply, status.header_len, status.size),
        (None, 12, 12)
    );
}

#[test]
fn headers_are_counted_within_the_size() {
    let msg = msg(b"HMSG a 1 r 012 014\r\nNATS/1.0\r\n\r\nok\r\n");
    assert_eq!(
        (msg.headers, msg.header_len, msg.size, msg.reply),
        (true, 12, 14, Some(&b"r"[..]))
    );
}

#[test]
fn payload_is_never_looked_at() {
    let msg = msg(b"MSG a 1 20\r\n\r\nPING\r\nMSG a 1 1\r\n\0\r\n");
    assert_eq!(msg.payload, b"\r\nPING\r\nMSG a 1 1\r\n\0".as_slice());
}

#[test]
fn a_status_that_nobody_listens_is_a_503_to_the_letter() {
    let said = |frame: &'static [u8]| {
        let msg = msg(frame);
        let status = msg.no_responders()?;
        Some(status.subject.map(<[u8]>::to_vec))
    };
    assert_eq!(
        said(b"HMSG r 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"),
        Some(None)
    );
    assert_eq!(
        said(b"HMSG r 1 38 38\r\nNATS/1.0 503\r\nNats-Subject: nobody\r\n\r\n\r\n"),
        Some(Some(b"nobody".to_vec()))
    );
    for other in [
        &b"HMSG r 1 24 24\r\nNATS/1.0 503 No Help\r\n\r\n\r\n"[..],
        b"HMSG r 1 16 17\r\nNATS/1.0 503\r\n\r\nx\r\n",
        b"HMSG r 1 16 16\r\nNATS/1.0 404\r\n\r\n\r\n",
        b"HMSG r 1 17 17\r\nNATS/1.0 5031\r\n\r\n\r\n",
        b"HMSG r 1 x 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
        b"HMSG r 1 22 22\r\nNATS/1.0 503\r\nK: v\r\n\r\n\r\n",
        b"HMSG r 1 44 44\r\nNATS/1.0 503\r\nNats-Subject: nobody\r\nK: v\r\n\r\n\r\n",
        b"MSG r 1 16\r\nNATS/1.0 503\r\n\r\n\r\n",
    ] {
        assert_eq!(said(other), None, "{}", other.escape_ascii());
    }
}

#[test]
fn every_split_is_incomplete_until_the_last_byte() {
    for frame in [
        &b"INFO {\"a\":1} \r\n"[..],
        b"MSG a.b 12 r.1 5\r\nhello\r\n",
        b"HMSG a 1 r 12 14\r\nNATS/1.0\r\n\r\nok\r\n",
        b"MSG a 1 0\r\n\r\n",
        b"-ERR 'x'\r\n",
        b"PING\r\n",
        b"+OK\r\n",
    ] {
        let head = frame.iter().position(|&b| b == b'\n').expect("a line") + 1;
        for split in 0..frame.len() {
            let need = (split >= head).then_some(frame.len());
            assert_eq!(
                scan(&frame[..split], &limits()),
                ServerScan::Incomplete { need },
                "{split}"
            );
        }
        op(frame);
        let followed = [frame, b"PING\r\n"].concat();
        assert!(
            matches!(scan(&followed, &limits()), ServerScan::Op { len, .. } if len == frame.len())
        );
    }
}

#[test]
fn what_is_no_broker_is_a_fault() {
    for (input, fault) in [
        (&b"HTTP/1.1 400"[..], ServerFault::UnknownOperation),
        (b"\r\n", ServerFault::UnknownOperation),
        (b"PUB a 1\r\n", ServerFault::UnknownOperation),
        (b"MSG a 1\r\n", ServerFault::BadArguments),
        (b"MSGa 1 1\r\n", ServerFault::BadArguments),
        (b"MSG a 1 r x 1\r\n", ServerFault::BadArguments),
        (b"MSG a 1 +1\r\n", ServerFault::BadArguments),
        (b"MSG a 1 9999999999\r\n", ServerFault::BadArguments),
        (b"HMSG a 1 1\r\n", ServerFault::BadArguments),
        (b"HMSG a 1 3 2\r\n", ServerFault::BadArguments),
        (b"MSG a 1 1001\r\n", ServerFault::PayloadTooLarge),
        (b"MSG a 1 1\r\nxyz", ServerFault::BadPayloadEnd),
    ] {
        assert_eq!(
            scan(input, &limits()),
            ServerScan::Fault(fault),
            "{:?}",
            input.escape_ascii().to_string()
        );
    }
}

#[test]
fn a_line_is_bounded_before_it_ends() {
    let mut line = b"INFO ".to_vec();
    line.resize(199, b'x');
    assert_eq!(
        scan(&line, &limits()),
        ServerScan::Incomplete { need: None }
    );
    line.push(b'x');
    assert_eq!(
        scan(&line, &limits()),
        ServerScan::Fault(ServerFault::LineTooLong)
    );
    line[199] = b'\n';
    assert!(matches!(
        scan(&line, &limits()),
        ServerScan::Op { len: 200, .. }
    ));
}

#[test]
fn a_payload_of_exactly_the_limit_is_taken() {
    let limits = ServerLimits {
        max_payload: 4,
        ..ServerLimits::default()
    };
    for (frame, taken) in [
        (&b"MSG a 1 4\r\nabcd\r\n"[..], true),
        (b"MSG a 1 5\r\nabcde\r\n", false),
    ] {
        let is_op = matches!(scan(frame, &limits), ServerScan::Op { .. });
        assert_eq!(is_op, taken);
    }
}

#[test]
fn a_payload_may_be_twice_what_the_broker_takes_within_bounds() {
    const MIB: usize = 1024 * 1024;
    for (max_payload, most) in [
        (0, 8 * MIB),
        (MIB, 8 * MIB),
        (16 * MIB, 32 * MIB),
        (64 * MIB, 64 * MIB),
        (usize::MAX, 64 * MIB),
    ] {
        assert_eq!(ServerLimits::of_broker(max_payload).max_payload, most);
    }
}

#[test]
fn only_blanks_end_a_word() {
    let frame = b"MSG a\x01\x02b\x03 s\x1fid re\x7fply\x00 2\r\nhi\r\n";
    let ServerScan::Op {
        op: ServerOp::Msg(msg),
        len,
    } = scan(frame, &ServerLimits::default())
    else {
        panic!("it is a message");
    };
    assert_eq!(len, frame.len());
    assert_eq!(msg.subject, b"a\x01\x02b\x03");
    assert_eq!((msg.sid, msg.payload), (&b"s\x1fid"[..], &b"hi"[..]));
    assert_eq!(msg.reply, Some(&b"re\x7fply\x00"[..]));
}

/// Lines as brokers write them take a short way, whose verb is upper-case; the long one reads the same.
#[test]
fn the_short_way_reads_what_the_long_one_does() {
    for args in [
        "a 1 0",
        "a.b.c Z9-4 3",
        "a 1 reply.to 3",
        "a 1  3",
        "a  1 3",
        "a 1 3 ",
        "a\t1 3",
        "a\u{1}b 1 3",
        "a 1 b 3 4",
        "a 1",
        "a 1 x",
        "a 1 0000000003",
        " a 1 3",
        "a 1 3\r",
        "a\rb 1 3",
        "a 1\r2 3",
        "a 1 b\rc 3",
        "",
    ] {
        let size = args
            .split_ascii_whitespace()
            .last()
            .and_then(|last| last.parse().ok());
        let payload = "x".repeat(size.unwrap_or(0));
        let [short, long] = ["MSG", "msg"].map(|verb| format!("{verb} {args}\r\n{payload}\r\n"));
        for cut in 0..=short.len() {
            let (short, long) = (&short.as_bytes()[..cut], &long.as_bytes()[..cut]);
            let parts = |input| match scan(input, &limits()) {
                ServerScan::Op {
                    op: ServerOp::Msg(msg),
                    len,
                } => {
                    let names = (msg.subject, msg.sid, msg.reply, msg.size);
                    Ok((names, msg.before_sid.len(), msg.after_sid, msg.payload, len))
                }
                other => Err(format!("{other:?}")),
            };
            assert_eq!(parts(short), parts(long), "{args:?} cut at {cut}");
        }
    }
}
