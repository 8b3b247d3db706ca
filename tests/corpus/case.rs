//! What is sent: the hand-written `cases.toml`, and the notation that it shares with the records.

use std::collections::BTreeMap;

use serde::Deserialize;

/// One connection's worth of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// CONNECT, if any, and what follows it.
    pub(crate) send: Vec<u8>,
    pub(crate) broker: Broker,
    /// Every byte is a write of its own.
    pub(crate) bytes: bool,
    /// All is sent before INFO is read.
    pub(crate) early: bool,
    /// PONGs that `send` causes.
    pub(crate) pongs: usize,
    pub(crate) end: End,
    /// The order of the answers is not compared.
    pub(crate) any_order: bool,
    /// natsmux answers otherwise on purpose, and why.
    pub(crate) differs: Option<String>,
}

/// Which configuration the broker of a case runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Broker {
    #[default]
    Open,
    Auth,
    Limits,
}

/// How a case ends where the broker doesn't close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    /// A further PING, and its PONG.
    #[default]
    Ping,
    /// The sending side is shut, and the broker closes.
    HalfClose,
    /// The broker closes of itself.
    Eof,
    /// Nothing more comes for a while.
    Quiet,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    connect: BTreeMap<String, String>,
    case: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    name: String,
    #[serde(default = "plain")]
    connect: String,
    #[serde(default)]
    broker: Broker,
    #[serde(default)]
    bytes: bool,
    #[serde(default)]
    early: bool,
    send: String,
    #[serde(default)]
    pongs: usize,
    #[serde(default)]
    end: End,
    #[serde(default)]
    any_order: bool,
    differs: Option<String>,
}

fn plain() -> String {
    "plain".into()
}

/// All cases, in the order of the file.
pub(crate) fn all() -> Vec<Case> {
    let file: File = toml::from_str(include_str!("cases.toml")).expect("cases.toml is well-formed");
    let File { connect, case } = file;
    case.into_iter()
        .map(|written| {
            let mut send = Vec::new();
            if written.connect != "none" {
                let options = connect
                    .get(&written.connect)
                    .expect("cases.toml defines its CONNECTs");
                send = format!("CONNECT {options}\r\n").into_bytes();
            }
            send.extend(unescaped(&written.send));
            Case {
                name: written.name,
                send,
                broker: written.broker,
                bytes: written.bytes,
                early: written.early,
                pongs: written.pongs,
                end: written.end,
                any_order: written.any_order,
                differs: written.differs,
            }
        })
        .collect()
}

/// Bytes as text: printable ASCII stands for itself, all else is `\r`, `\n`, `\t`, `\\` or `\xNN`.
pub(crate) fn escaped(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&b| match b {
            b'\r' => "\\r".into(),
            b'\n' => "\\n".into(),
            b'\t' => "\\t".into(),
            b'\\' => "\\\\".into(),
            b' '..=b'~' => char::from(b).to_string(),
            _ => format!("\\x{b:02x}"),
        })
        .collect()
}

/// The reverse of [`escaped`], which also knows `\{3*a}` for `aaa`.
pub(crate) fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let kind = after
            .chars()
            .next()
            .expect("a backslash is followed by something");
        rest = &after[1..];
        match kind {
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            '\\' => bytes.push(b'\\'),
            'x' => {
                bytes.push(
                    u8::from_str_radix(&rest[..2], 16)
                        .expect("\\x is followed by two hexadecimal digits"),
                );
                rest = &rest[2..];
            }
            '{' => {
                let (inner, after) = rest.split_once('}').expect("\\{ is closed");
                let (count, what) = inner
                    .split_once('*')
                    .expect("\\{ holds a count and what is repeated");
                bytes.extend(
                    what.repeat(count.parse().expect("a count is a number"))
                        .into_bytes(),
                );
                rest = after;
            }
            other => panic!("no escape: \\{other} in {text}"),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

#[test]
fn names_are_unique() {
    let cases = all();
    let mut names: Vec<_> = cases.iter().map(|case| &case.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), cases.len());
}

#[test]
fn who_differs_says_why() {
    for case in all() {
        assert!(
            case.differs.is_none_or(|reason| reason.len() > 10),
            "{}",
            case.name
        );
    }
}

#[test]
fn the_notation_says_any_bytes() {
    let every: Vec<u8> = (0..=255).collect();
    assert_eq!(unescaped(&escaped(&every)), every);
    assert_eq!(unescaped(r"a\{3*bc}\r\n"), b"abcbcbc\r\n");
}
