//! The concern of a broker's `-ERR`: the identity, one operation, or only the link.
//!
//! The texts are those of nats-server 2.9 to 2.15 (its `server/errors.go` and the `sendErr` calls). Compared without
//! regard to case, since older servers capitalise differently.

use std::borrow::Cow;

/// Whom a broker's error concerns. Subjects are as they stand between the quotes: see [`unquote`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerError<'a> {
    /// The broker refuses the identity.
    Refused,
    /// Credentials that were good ran out or were taken back (R36): final for them.
    Expired,
    /// The broker, or `account` alone, takes no more connections.
    Full {
        /// Whether it concerns the identity's account, and others may connect.
        account: bool,
    },
    /// The broker takes no more TLS handshakes at the moment.
    Throttled,
    /// The broker waited in vain for a verdict on CONNECT, such as an auth callout's.
    NoVerdict,
    /// A publish was not allowed and is dropped.
    PublishViolation {
        /// The subject that was published to.
        subject: &'a [u8],
    },
    /// The reply subject of a publish was not allowed; [`first_quoted`] finds it.
    ReplyViolation,
    /// A subscription was not allowed, or no longer is.
    SubscriptionViolation {
        /// The subject that was subscribed to.
        subject: &'a [u8],
        /// 2.9.10 leaves it out on a reload.
        queue_group: Option<&'a [u8]>,
        /// Only on a reload that takes the permission away.
        sid: Option<&'a [u8]>,
    },
    /// A SUB with an empty token, or with `>` before the end.
    InvalidSubject,
    /// A pedantic session published to such a subject. The message is still delivered.
    InvalidPublishSubject,
    /// The server of 2012 has this SUB's sid already, or doesn't have an UNSUB's.
    BadSid,
    /// This SUB was one too many.
    MaxSubscriptions,
    /// All others: they concern the link, and a component never sees them.
    LinkOnly,
}

/// Says whom `text` (what stands between the quotes of `-ERR '…'`) concerns.
pub fn classify(text: &[u8]) -> BrokerError<'_> {
    if REFUSALS
        .iter()
        .any(|refusal| refusal.eq_ignore_ascii_case(text))
    {
        return BrokerError::Refused;
    }
    if EXPIRIES
        .iter()
        .any(|text_of| text_of.eq_ignore_ascii_case(text))
    {
        return BrokerError::Expired;
    }
    if let Some(rest) = after(text, b"Permissions Violation for ") {
        return violation(rest).unwrap_or(BrokerError::LinkOnly);
    }
    let whole = |known: &[u8]| known.eq_ignore_ascii_case(text);
    if whole(b"Invalid Subject") {
        BrokerError::InvalidSubject
    } else if whole(b"Invalid Publish Subject") {
        BrokerError::InvalidPublishSubject
    } else if whole(b"maximum subscriptions exceeded") {
        BrokerError::MaxSubscriptions
    } else if whole(b"maximum connections exceeded") {
        BrokerError::Full { account: false }
    } else if whole(b"maximum account active connections exceeded") {
        BrokerError::Full { account: true }
    } else if whole(b"Connection throttling is active. Please try again later.") {
        BrokerError::Throttled
    } else if BAD_SIDS.iter().any(|text| whole(text)) {
        BrokerError::BadSid
    } else if whole(b"Authentication Timeout") {
        BrokerError::NoVerdict
    } else {
        BrokerError::LinkOnly
    }
}

const REFUSALS: [&[u8]; 2] = [b"Authorization Violation", b"Authorization failed"];

/// To an UNSUB, and to a SUB.
const BAD_SIDS: [&[u8]; 2] = [
    b"Invalid Subject-Identifier (sid), no subscriber registered",
    b"Invalid Subject Identifier (sid), already taken",
];

const EXPIRIES: [&[u8]; 3] = [
    b"User Authentication Expired",
    b"User Authentication Revoked",
    b"Account Authentication Expired",
];

fn violation(text: &[u8]) -> Option<BrokerError<'_>> {
    if let Some(rest) = after(text, b"Publish to ") {
        let (subject, _) = quoted(rest)?;
        return Some(BrokerError::PublishViolation { subject });
    }
    if after(text, b"Publish with Reply of ").is_some() {
        return Some(BrokerError::ReplyViolation);
    }
    let (subject, mut rest) = quoted(after(text, b"Subscription to ")?)?;
    let mut queue_group = None;
    if let Some((name, tail)) = after(rest, b" using queue ").and_then(quoted) {
        queue_group = Some(name);
        rest = tail;
    }
    let sid = after(rest, b" (sid ").and_then(quoted).map(|(sid, _)| sid);
    Some(BrokerError::SubscriptionViolation {
        subject,
        queue_group,
        sid,
    })
}

/// Returns the text behind `prefix`, compared without regard to case.
fn after<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Splits a leading `"…"` into what stands between the quotes, still escaped, and the rest.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = text.strip_prefix(b"\"")?;
    let mut at = 0;
    loop {
        match inner.get(at)? {
            b'"' => return Some((&inner[..at], &inner[at + 1..])),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Returns the text between the first pair of double quotes, still escaped.
pub fn first_quoted(text: &[u8]) -> Option<&[u8]> {
    let start = memchr::memchr(b'"', text)?;
    quoted(&text[start..]).map(|(inner, _)| inner)
}

/// Undoes Go's `%q`: what stands between the quotes becomes the bytes that were quoted. What is no Go escape stays as
/// it is.
pub fn unquote(quoted: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', quoted).is_none() {
        return Cow::Borrowed(quoted);
    }
    let mut out = Vec::with_capacity(quoted.len());
    let mut rest = quoted;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\'
            && let Some(used) = unescape(tail, &mut out)
        {
            rest = &tail[used..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    Cow::Owned(out)
}

/// Appends what the escape behind a backslash means, and says how many bytes it takes.
fn unescape(tail: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let (&kind, digits) = tail.split_first()?;
    let simple = match kind {
        b'a' => 0x07,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        b'\\' | b'"' | b'\'' => kind,
        b'x' => {
            out.push(u8::try_from(hex(digits, 2)?).ok()?);
            return Some(3);
        }
        b'u' | b'U' => {
            let count = if kind == b'u' { 4 } else { 8 };
            let char = char::from_u32(hex(digits, count)?)?;
            out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(1 + count);
        }
        _ => return None,
    };
    out.push(simple);
    Some(1)
}

fn hex(digits: &[u8], count: usize) -> Option<u32> {
    digits
        .get(..count)?
        .iter()
        .try_fold(0u32, |sum, &b| Some(sum << 4 | char::from(b).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_five_texts_refuse_an_identity() {
        for text in REFUSALS {
            assert_eq!(classify(text), BrokerError::Refused);
            assert_eq!(classify(&text.to_ascii_lowercase()), BrokerError::Refused);
        }
        for text in EXPIRIES {
            assert_eq!(classify(text), BrokerError::Expired);
            assert_eq!(classify(&text.to_ascii_uppercase()), BrokerError::Expired);
        }
        for other in ["Authorization is required", "Authorization Violation!", ""] {
            assert_eq!(classify(other.as_bytes()), BrokerError::LinkOnly, "{other}");
        }
    }

    #[test]
    fn a_violation_names_what_was_refused() {
        let text = br#"Permissions Violation for Publish to "a.b""#;
        assert_eq!(
            classify(text),
            BrokerError::PublishViolation { subject: b"a.b" }
        );
        let text = br#"Permissions Violation for Publish with Reply of "$JS.ACK.x""#;
        assert_eq!(classify(text), BrokerError::ReplyViolation);
        assert_eq!(first_quoted(text), Some(&b"$JS.ACK.x"[..]));
    }

    #[test]
    fn a_subscription_violation_may_name_queue_group_and_sid() {
        let refused = |subject, queue_group, sid| BrokerError::SubscriptionViolation {
            subject,
            queue_group,
            sid,
        };
        let text = br#"Permissions Violation for Subscription to "a""#;
        assert_eq!(classify(text), refused(b"a", None, None));
        let text = br#"Permissions Violation for Subscription to "a" using queue "q""#;
        assert_eq!(classify(text), refused(b"a", Some(b"q"), None));
        let text = br#"Permissions Violation for Subscription to "a" (sid "77")"#;
        assert_eq!(classify(text), refused(b"a", None, Some(b"77")));
        let text = br#"Permissions Violation for Subscription to "a" using queue "q" (sid "77")"#;
        assert_eq!(classify(text), refused(b"a", Some(b"q"), Some(b"77")));
        let text = br#"Permissions Violation for Subscription to "a.b", too many tokens"#;
        assert_eq!(classify(text), refused(b"a.b", None, None));
    }

    #[test]
    fn a_quote_inside_a_subject_does_not_end_it() {
        let text = br#"Permissions Violation for Publish to "a\"b\\""#;
        let BrokerError::PublishViolation { subject } = classify(text) else {
            panic!("violation")
        };
        assert_eq!(subject, br#"a\"b\\"#);
        assert_eq!(&*unquote(subject), br#"a"b\"#);
    }

    #[test]
    fn errors_about_one_operation_differ_from_errors_about_the_link() {
        assert_eq!(classify(b"Invalid Subject"), BrokerError::InvalidSubject);
        assert_eq!(
            classify(b"Invalid Publish Subject"),
            BrokerError::InvalidPublishSubject
        );
        assert_eq!(
            classify(b"maximum subscriptions exceeded"),
            BrokerError::MaxSubscriptions
        );
        for link in [
            &b"Stale Connection"[..],
            b"Unknown Protocol Operation",
            b"Permissions Violation for Publish to \"a",
            b"Permissions Violation for ",
        ] {
            assert_eq!(classify(link), BrokerError::LinkOnly, "{link:?}");
        }
    }

    #[test]
    fn a_broker_that_is_full_says_for_whom() {
        let full = |account| BrokerError::Full { account };
        assert_eq!(classify(b"maximum connections exceeded"), full(false));
        let account = b"maximum account active connections exceeded";
        assert_eq!(classify(account), full(true));
        assert_eq!(classify(b"Authentication Timeout"), BrokerError::NoVerdict);
    }

    #[test]
    fn unquoting_undoes_every_escape_that_go_writes() {
        assert_eq!(&*unquote(br"\a\b\f\n\r\t\v"), b"\x07\x08\x0c\n\r\t\x0b");
        assert_eq!(
            &*unquote(br"\x00\xff\u00fc\U0001f600"),
            b"\x00\xff\xc3\xbc\xf0\x9f\x98\x80"
        );
        assert_eq!(&*unquote("grün".as_bytes()), "grün".as_bytes());
        for broken in [&br"\q"[..], br"\x1", br"\ud800", br"\U00110000", b"\\"] {
            assert_eq!(&*unquote(broken), broken);
        }
    }
}
