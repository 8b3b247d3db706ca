//! The header line of `PUB` and `HPUB`.
//!
//! [`canonical`] is the short way for what client libraries really send. It takes the line word by word and gives up
//! (`None`) at anything unusual, which [`PublishHead::parse`] then judges as nats-server does.

use memchr::memchr;

use super::line;

/// A parsed header line. Sizes are not yet compared with a limit.
pub(super) struct PublishHead<'a> {
    /// Bytes up to behind the line feed.
    pub(super) len: usize,
    /// Whether the line may be forwarded as it is.
    pub(super) canonical: bool,
    pub(super) subject: &'a [u8],
    pub(super) reply: Option<&'a [u8]>,
    /// At most `size`.
    pub(super) header_len: Option<usize>,
    pub(super) size: usize,
}

impl<'a> PublishHead<'a> {
    /// Judges the argument of any header line. `None` where nats-server closes for malformed arguments, and where CR
    /// or LF stand inside an argument (see the module `client`).
    pub(super) fn parse(whole: &'a [u8], arg: &'a [u8], headers: bool) -> Option<Self> {
        if arg.iter().any(|&b| b == b'\r' || b == b'\n') {
            return None;
        }
        let (parts, count) = line::split::<4>(arg, line::is_blank)?;
        let numbers = if headers { 2 } else { 1 };
        let (reply, numbers) = match count.checked_sub(numbers)? {
            1 => (None, &parts[1..count]),
            2 => (Some(parts[1]), &parts[2..count]),
            _ => return None,
        };
        let size = line::number(numbers.last()?)?;
        let header_len = if headers {
            Some(line::number(numbers.first()?)?)
        } else {
            None
        };
        if header_len.is_some_and(|len| len > size) {
            return None;
        }
        let verb: &[u8] = if headers { b"HPUB " } else { b"PUB " };
        let canonical = whole.starts_with(verb)
            && whole.ends_with(b"\r\n")
            && arg.last().is_some_and(u8::is_ascii_digit)
            && memchr(b'\t', whole).is_none();
        Some(Self {
            len: whole.len(),
            canonical,
            subject: parts[0],
            reply,
            header_len,
            size,
        })
    }
}

/// The head at the start of `input`, if it is whole, within the limit and in canonical form. `None` says nothing else
/// about the input.
#[inline]
pub(super) fn canonical(input: &[u8], max_control_line: usize) -> Option<PublishHead<'_>> {
    let (verb_len, headers) = match input.first_chunk::<5>()? {
        b"HPUB " => (5, true),
        [b'P', b'U', b'B', b' ', _] => (4, false),
        _ => return None,
    };
    // An argument of the longest length, and its CR.
    let line = &input[..input
        .len()
        .min(max_control_line.saturating_add(verb_len + 1))];
    let (subject, at) = word(line, verb_len)?;
    let (mut last, mut at) = word(line, at)?;
    let mut reply = None;
    let mut header_len = None;
    if headers {
        let (next, end) = word(line, at)?;
        (header_len, last, at) = (Some(last), next, end);
    }
    if line[at] != b'\r' {
        let (next, end) = word(line, at)?;
        reply = Some(header_len.unwrap_or(last));
        (header_len, last, at) = (header_len.map(|_| last), next, end);
    }
    if line[at] != b'\r' || input.get(at + 1) != Some(&b'\n') {
        return None;
    }
    let size = line::number(last)?;
    let header_len = match header_len {
        Some(digits) => Some(line::number(digits).filter(|&len| len <= size)?),
        None => None,
    };
    Some(PublishHead {
        len: at + 2,
        canonical: true,
        subject,
        reply,
        header_len,
        size,
    })
}

/// The word behind any blanks at `at`, and where it ends. It must be followed by a byte of `line`, and that byte is a
/// blank or a control character.
#[inline]
fn word(line: &[u8], mut at: usize) -> Option<(&[u8], usize)> {
    while *line.get(at)? == b' ' {
        at += 1;
    }
    let end = super::line::word_end(line, at)?;
    if end == at {
        return None;
    }
    Some((&line[at..end], end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what the short way makes of a line: subject, reply, length of headers, size.
    #[expect(clippy::type_complexity, reason = "four columns of a table")]
    fn short(line: &[u8]) -> Option<(&[u8], Option<&[u8]>, Option<usize>, usize)> {
        let head = canonical(line, 64)?;
        assert!(head.canonical);
        assert_eq!(head.len, line.len());
        Some((head.subject, head.reply, head.header_len, head.size))
    }

    #[test]
    fn lines_as_libraries_write_them_take_the_short_way() {
        for (line, expected) in [
            (&b"PUB a 5\r\n"[..], (&b"a"[..], None, None, 5)),
            (b"PUB a.b.c 0\r\n", (b"a.b.c", None, None, 0)),
            (b"PUB a reply 12\r\n", (b"a", Some(&b"reply"[..]), None, 12)),
            (b"PUB  a  12\r\n", (b"a", None, None, 12)),
            (b"HPUB a 12 30\r\n", (b"a", None, Some(12), 30)),
            (b"HPUB a r.x 30 30\r\n", (b"a", Some(b"r.x"), Some(30), 30)),
        ] {
            assert_eq!(short(line), Some(expected), "{:?}", line.escape_ascii());
            for cut in 0..line.len() {
                assert!(canonical(&line[..cut], 64).is_none(), "{cut}");
            }
        }
    }

    #[test]
    fn anything_unusual_goes_the_long_way() {
        for line in [
            &b"pub a 5\r\n"[..],
            b"PUBa 5\r\n",
            b"PUB\ta 5\r\n",
            b"PUB a\t5\r\n",
            b"PUB a 5 \r\n",
            b"PUB a 5\n",
            b"PUB a 5\r\r\n",
            b"PUB a 5\rx",
            b"PUB a x\r\n",
            b"PUB a\r\n",
            b"PUB a b c 5\r\n",
            b"HPUB a 5\r\n",
            b"HPUB a 6 5\r\n",
            b"HPUB a x 5\r\n",
            b"HPUB a r q 4 5\r\n",
            b"PUB a\x01b 5\r\n",
            b"SUB a 5\r\n",
        ] {
            assert!(canonical(line, 64).is_none(), "{:?}", line.escape_ascii());
        }
    }

    #[test]
    fn the_short_way_is_as_long_as_a_line_may_be() {
        let line = b"PUB subject 5\r\n";
        let argument = b"subject 5".len();
        assert!(canonical(line, argument).is_some());
        assert!(canonical(line, argument - 1).is_none());
        let line = b"HPUB subject 5 9\r\n";
        let argument = b"subject 5 9".len();
        assert!(canonical(line, argument).is_some());
        assert!(canonical(line, argument - 1).is_none());
    }
}
