use super::*;

fn limits() -> ClientLimits {
    ClientLimits {
        max_control_line: 64,
        max_payload: 100,
    }
}

fn shown(input: &[u8]) -> String {
    input.escape_ascii().to_string()
}

fn op(input: &[u8]) -> ClientOp<'_> {
    match scan(input, &limits()) {
        Scan::Op { op, len } => {
            assert_eq!(len, input.len(), "{}", shown(input));
            op
        }
        other => panic!("{other:?} for {}", shown(input)),
    }
}

fn publish_of(input: &[u8]) -> Publish<'_> {
    match op(input) {
        ClientOp::Publish(publish) => publish,
        other => panic!("{other:?} for {}", shown(input)),
    }
}

fn fault(input: &[u8]) -> ClientFault {
    match scan(input, &limits()) {
        Scan::Fault(fault) => fault,
        other => panic!("{other:?} for {}", shown(input)),
    }
}

/// All prefixes are incomplete, then the operation is whole, whatever follows.
fn splits_anywhere(input: &[u8]) {
    let payload = matches!(op(input), ClientOp::Publish(_));
    let head = input.iter().position(|&b| b == b'\n').expect("a line") + 1;
    for split in 0..input.len() {
        let need = (payload && split >= head).then_some(input.len());
        assert_eq!(
            scan(&input[..split], &limits()),
            Scan::Incomplete { need },
            "{} at {split}",
            shown(input)
        );
    }
    let followed = [input, b"PUB x 1\r\n1\r\n"].concat();
    let Scan::Op { op: again, len } = scan(&followed, &limits()) else {
        panic!("{}", shown(input))
    };
    assert_eq!((again, len), (op(input), input.len()));
}

const WHOLE: &[&[u8]] = &[
    b"PUB a 1\r\nx\r\n",
    b"PUB a  1\r\nx\r\n",
    b"pub\ta\tr\t1\t\r\nx\r\n",
    b"PUB a.b reply 0005\r\nhello\r\n",
    b"PUB a 0\r\n\r\n",
    b"PUB a 1\nx\r\n",
    b"PUB a 25\r\n\r\nPING\r\nPUB a 1\r\nx\r\nSUB \0\r\n",
    b"HPUB a 12 14\r\nNATS/1.0\r\n\r\nok\r\n",
    b"HPUB a r 012 014\r\nNATS/1.0\r\n\r\nok\r\n",
    b"hpub a 0 2\r\nok\r\n",
    b"HPUB a 4 4\r\nXXXX\r\n",
    b"SUB a 1\r\n",
    b"SUB a  2\r\n",
    b"sub\t a.> q 300 \t\n",
    b"UNSUB 1\r\n",
    b"UNSUB  abc-1.x 5\r\n",
    b"PING\r\n",
    b"ping\n",
    b"PINGxyz hello\r\n",
    b"PONG\r\n",
    b"+OK\r\n",
    b"+OKxx\r\n",
    b"CONNECT {\"verbose\":false}\r\n",
    b"CONNECT{\"verbose\":false}\n",
    b"connect \t{}\r\n",
    b"INFO {}\r\n",
    b"INFO{\"port\":1}\r\n",
    b"INFO null\r\n",
];

#[test]
fn any_split_of_an_operation_reads_the_same() {
    for input in WHOLE {
        splits_anywhere(input);
    }
}

#[test]
fn publishes_have_all_their_parts() {
    let publish = publish_of(b"PUB a.b reply 0005\r\nhello\r\n");
    assert_eq!(
        (publish.subject, publish.reply),
        (&b"a.b"[..], Some(&b"reply"[..]))
    );
    assert_eq!(
        (publish.header_len, publish.size, publish.payload()),
        (None, 5, &b"hello"[..])
    );
    let publish = publish_of(b"HPUB a r 012 014\r\nNATS/1.0\r\n\r\nok\r\n");
    assert_eq!(
        (publish.subject, publish.reply),
        (&b"a"[..], Some(&b"r"[..]))
    );
    assert_eq!((publish.header_len, publish.size), (Some(12), 14));
}

#[test]
fn only_a_canonical_frame_may_be_forwarded_as_it_is() {
    for canonical in [
        &b"PUB a 1\r\nx\r\n"[..],
        b"PUB a  1\r\nx\r\n",
        b"PUB  a   r  0001\r\nx\r\n",
        b"HPUB a 1 1\r\nx\r\n",
        b"HPUB  a r 1  1\r\nx\r\n",
    ] {
        assert!(publish_of(canonical).canonical, "{}", shown(canonical));
    }
    for other in [
        &b"pub a 1\r\nx\r\n"[..],
        b"PUB\ta 1\r\nx\r\n",
        b"PUB a\t1\r\nx\r\n",
        b"PUB a r\t1\r\nx\r\n",
        b"PUB a 1\nx\r\n",
        b"PUB a 1 \r\nx\r\n",
        b"HPUB a 1\t1\r\nx\r\n",
        b"hPUB a 1 1\r\nx\r\n",
    ] {
        assert!(!publish_of(other).canonical, "{}", shown(other));
    }
}

#[test]
fn encoding_keeps_digits_and_payload_and_is_canonical() {
    for (input, encoded) in [
        (&b"pub\ta\tr\t1\t\r\nx\r\n"[..], &b"PUB a r 1\r\nx\r\n"[..]),
        (b"PUB a 0002\nxy\r\n", b"PUB a 0002\r\nxy\r\n"),
        (
            b"hpub a  012\t014 \r\nNATS/1.0\r\n\r\nok\r\n",
            b"HPUB a 012 014\r\nNATS/1.0\r\n\r\nok\r\n",
        ),
        (b"PUB a 0 \r\n\r\n", b"PUB a 0\r\n\r\n"),
    ] {
        let publish = publish_of(input);
        let mut out = Vec::new();
        publish.encode(&mut out);
        assert_eq!(shown(&out), shown(encoded));
        let again = publish_of(&out);
        assert!(again.canonical);
        assert_eq!(
            Publish {
                frame: publish.frame,
                canonical: publish.canonical,
                ..again
            },
            publish
        );
    }
}

#[test]
fn the_short_way_and_the_long_way_read_the_same() {
    for input in WHOLE
        .iter()
        .filter(|input| input.starts_with(b"PUB ") || input.starts_with(b"HPUB "))
    {
        let Some(short) = publish_head::canonical(input, 64) else {
            continue;
        };
        let headers = input[0] == b'H';
        let Line::Whole { arg, len } = line::argument(input, if headers { 4 } else { 3 }, 64)
        else {
            panic!("whole")
        };
        let long = PublishHead::parse(&input[..len], arg, headers)
            .expect("the long way accepts what the short way does");
        assert!(long.canonical);
        assert_eq!(
            (short.subject, short.reply, short.len),
            (long.subject, long.reply, long.len)
        );
        assert_eq!((short.header_len, short.size), (long.header_len, long.size));
    }
}

#[test]
fn subscriptions_keep_subject_group_and_sid_as_sent() {
    let subscribe = |subject, queue_group, sid| ClientOp::Subscribe {
        subject,
        queue_group,
        sid,
    };
    assert_eq!(op(b"SUB a  2\r\n"), subscribe(b"a", None, b"2"));
    assert_eq!(
        op(b"SUB a q abc-1.x\r\n"),
        subscribe(b"a", Some(b"q"), b"abc-1.x")
    );
    assert_eq!(
        op(b"SUB \xff\x01 1\r\n"),
        subscribe(b"\xff\x01", None, b"1")
    );
    assert_eq!(op(b"SUB a..b 1\r\n"), subscribe(b"a..b", None, b"1"));
    assert_eq!(op(b"SUB a\rb 1\r\n"), subscribe(b"a", Some(b"b"), b"1"));
    assert_eq!(op(b"SUB \na 1\r\n"), subscribe(b"a", None, b"1"));
}

#[test]
fn only_a_positive_number_defers_an_unsubscribe() {
    let unsubscribe = |max| ClientOp::Unsubscribe { sid: b"9", max };
    assert_eq!(op(b"UNSUB 9\r\n"), unsubscribe(None));
    assert_eq!(op(b"UNSUB 9 5\r\n"), unsubscribe(Some(5)));
    for at_once in [
        &b"UNSUB 9 0\r\n"[..],
        b"UNSUB 9 x\r\n",
        b"UNSUB 9 -1\r\n",
        b"UNSUB 9 0000000001\r\n",
    ] {
        assert_eq!(op(at_once), unsubscribe(None), "{}", shown(at_once));
    }
}

#[test]
fn bytes_that_are_no_operation_are_refused_at_the_first_wrong_one() {
    for (input, wrong) in [
        (&b"GET / HTTP/1.1\r\n"[..], 1),
        (b" PING\r\n", 1),
        (b"\r\n", 1),
        (b"\n", 1),
        (b"\x16\x03\x01", 1),
        (b"MSG a 1 1\r\n", 1),
        (b"RS+ a\r\n", 1),
        (b"LS+ a\r\n", 1),
        (b"A+ a\r\n", 1),
        (b"PX", 2),
        (b"PIG", 3),
        (b"HMSG a 1 1 1\r\n", 2),
        (b"PUB\r\n", 4),
        (b"PUBx", 4),
        (b"SUB\r\n", 4),
        (b"UNSUB\r\n", 6),
        (b"-ERR\r\n", 5),
        (b"+O\r\n", 3),
    ] {
        for len in 0..wrong {
            assert_eq!(
                scan(&input[..len], &limits()),
                Scan::Incomplete { need: None },
                "{} {len}",
                shown(input)
            );
        }
        assert_eq!(
            fault(&input[..wrong]),
            ClientFault::UnknownOperation,
            "{}",
            shown(input)
        );
        assert_eq!(
            fault(input),
            ClientFault::UnknownOperation,
            "{}",
            shown(input)
        );
    }
}

#[test]
fn a_payload_ends_strictly_with_crlf() {
    for wrong in [
        &b"PUB a 1\r\nxy"[..],
        b"PUB a 1\r\nx\n",
        b"PUB a 1\r\nx\rx",
        b"PUB a 0\r\nx",
        b"HPUB a 0 1\r\nxx",
    ] {
        assert_eq!(
            fault(wrong),
            ClientFault::UnknownOperation,
            "{}",
            shown(wrong)
        );
        let one_less = &wrong[..wrong.len() - 1];
        assert!(
            matches!(
                scan(one_less, &limits()),
                Scan::Incomplete { need: Some(_) }
            ),
            "{}",
            shown(wrong)
        );
    }
}

#[test]
fn malformed_arguments_close_silently() {
    for input in [
        &b"PUB \r\n"[..],
        b"PUB a\r\n",
        b"PUB a b c 1\r\n",
        b"PUB a +2\r\n",
        b"PUB a -2\r\n",
        b"PUB a 2x\r\n",
        b"PUB a 9999999999\r\n",
        b"PUB a 0000000001\r\n",
        b"PUB 1\r\n",
        b"HPUB a 2\r\n",
        b"HPUB a 3 2\r\n",
        b"HPUB a x 2\r\n",
        b"HPUB a -1 2\r\n",
        b"HPUB a b c 1 2\r\n",
        b"HPUB a 101 100\r\n",
        b"SUB \r\n",
        b"SUB a\r\n",
        b"SUB a b c d\r\n",
        b"UNSUB \r\n",
        b"UNSUB  \t \r\n",
        b"UNSUB a b c\r\n",
    ] {
        assert_eq!(fault(input), ClientFault::BadArguments, "{}", shown(input));
        assert_eq!(fault(input).error_text(), None);
    }
}

#[test]
fn line_ends_inside_the_arguments_of_a_publish_are_refused() {
    for input in [
        &b"PUB a\rb 1\r\nx\r\n"[..],
        b"PUB a b\rc 1\r\nx\r\n",
        b"PUB \na 1\r\nx\r\n",
        b"PUB a 1\r\r\nx\r\n",
        b"PUB \ra 1\r\nx\r\n",
        b"HPUB a\rb 0 1\r\nx\r\n",
    ] {
        assert_eq!(fault(input), ClientFault::BadArguments, "{}", shown(input));
    }
}

#[test]
fn an_over_long_line_is_refused_before_it_ends() {
    let long =
        |verb: &str, len: usize, end: &str| format!("{verb}{}{end}", "a".repeat(len)).into_bytes();
    for verb in [
        "SUB ", "UNSUB  ", "PUB ", "HPUB ", "CONNECT ", "INFO ", "-ERR ",
    ] {
        assert_eq!(
            scan(&long(verb, 64, ""), &limits()),
            Scan::Incomplete { need: None },
            "{verb}"
        );
        assert_eq!(
            scan(&long(verb, 64, "\r"), &limits()),
            Scan::Incomplete { need: None },
            "{verb}"
        );
        assert_eq!(
            fault(&long(verb, 65, "")),
            ClientFault::MaxControlLine,
            "{verb}"
        );
        assert_eq!(
            fault(&long(verb, 65, "\r\n")),
            ClientFault::MaxControlLine,
            "{verb}"
        );
    }
    assert!(matches!(
        op(&long("UNSUB ", 64, "\r\n")),
        ClientOp::Unsubscribe { .. }
    ));
    assert!(matches!(
        op(&long("PUB ", 62, " 1\r\nx\r\n")),
        ClientOp::Publish(_)
    ));
    assert_eq!(
        fault(&long("PUB ", 63, " 1\r\nx\r\n")),
        ClientFault::MaxControlLine
    );
    assert_eq!(
        fault(&long("PUB ", 63, " 1 \r\nx\r\n")),
        ClientFault::MaxControlLine
    );
    assert_eq!(fault(&long("PING", 66, "")), ClientFault::MaxControlLine);
    assert_eq!(
        fault(&[&b"PUB"[..], &[b' '; 70]].concat()),
        ClientFault::MaxControlLine
    );
}

#[test]
fn an_over_large_payload_is_refused_at_its_header_line() {
    assert_eq!(
        scan(b"PUB a 100\r\n", &limits()),
        Scan::Incomplete { need: Some(113) }
    );
    assert_eq!(fault(b"PUB a 101\r\n"), ClientFault::MaxPayload);
    assert_eq!(fault(b"pub a 101 \n"), ClientFault::MaxPayload);
    assert_eq!(fault(b"PUB a 999999999\r\n"), ClientFault::MaxPayload);
    assert_eq!(fault(b"HPUB a 0 101\r\n"), ClientFault::MaxPayload);
}

#[test]
fn what_a_broker_says_to_itself_is_ignored_or_closes() {
    assert_eq!(op(b"INFO {\"x\":1}\r\n"), ClientOp::Ignored);
    for bad in [
        &b"INFO\r\n"[..],
        b"INFO []\r\n",
        b"INFO {\"port\":\"x\"}\r\n",
        b"INFO {} y\r\n",
    ] {
        assert_eq!(fault(bad), ClientFault::BadInfo, "{}", shown(bad));
    }
    assert_eq!(scan(b"-ERR ", &limits()), Scan::Incomplete { need: None });
    assert_eq!(fault(b"-ERR 'x'\r\n"), ClientFault::ClientError);
}

#[test]
fn connect_hands_on_its_argument() {
    assert_eq!(
        op(b"CONNECT {\"a\":1}\r\n"),
        ClientOp::Connect { json: b"{\"a\":1}" }
    );
    assert_eq!(op(b"CONNECT{}\n"), ClientOp::Connect { json: b"{}" });
    assert_eq!(op(b"CONNECT\n{}\n"), ClientOp::Connect { json: b"\n{}" });
    assert_eq!(op(b"CONNECT\r\n"), ClientOp::Connect { json: b"\r" });
}

#[test]
fn each_fault_has_the_brokers_answer() {
    assert_eq!(
        ClientFault::UnknownOperation.error_text(),
        Some("Unknown Protocol Operation")
    );
    assert_eq!(
        ClientFault::MaxControlLine.error_text(),
        Some("maximum control line exceeded")
    );
    assert_eq!(
        ClientFault::MaxPayload.error_text(),
        Some("Maximum Payload Violation")
    );
    for silent in [
        ClientFault::BadArguments,
        ClientFault::BadConnect,
        ClientFault::BadInfo,
        ClientFault::ClientError,
    ] {
        assert_eq!(silent.error_text(), None);
    }
}

/// Deterministic noise (xorshift), so that a failure can be repeated.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }
}

#[test]
fn a_verdict_never_changes_with_what_comes_after_it() {
    const BYTES: &[u8] = b"\r\n\t 0129aHPUBSN+-{}\"\xff\0";
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let mut input = [
            WHOLE[noise.below(WHOLE.len())],
            WHOLE[noise.below(WHOLE.len())],
        ]
        .concat();
        for _ in 0..noise.below(4) {
            let at = noise.below(input.len());
            match noise.below(3) {
                0 => input[at] = BYTES[noise.below(BYTES.len())],
                1 => input.insert(at, BYTES[noise.below(BYTES.len())]),
                _ => drop(input.remove(at)),
            }
        }
        let whole = scan(&input, &limits());
        for split in 0..input.len() {
            let verdict = scan(&input[..split], &limits());
            if !matches!(verdict, Scan::Incomplete { .. }) {
                assert_eq!(verdict, whole, "{} at {split}", shown(&input));
            }
        }
    }
}
