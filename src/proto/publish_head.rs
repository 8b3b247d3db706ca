//! The header line of `PUB` and `HPUB`.
//!
//! [`canonical`] is the short way for what client libraries really send. It reads the sizes from the end of the line
//! backwards and the subject from its start, and gives up (`None`) at anything unusual, which [`Head::parse`] then
//! judges as nats-server does.

use memchr::{memchr, memchr3};

use super::line;

/// A parsed header line. Sizes are not yet compared with a limit.
pub(super) struct Head<'a> {
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

impl<'a> Head<'a> {
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
pub(super) fn canonical(input: &[u8], max_control_line: usize) -> Option<Head<'_>> {
    let (verb_len, headers) = match input.first_chunk::<5>()? {
        b"HPUB " => (5, true),
        [b'P', b'U', b'B', b' ', _] => (4, false),
        _ => return None,
    };
    let rest = &input[verb_len..];
    let window = &rest[..rest.len().min(max_control_line.saturating_add(2))];
    let line_feed = memchr(b'\n', window)?;
    let arg = window[..line_feed].strip_suffix(b"\r")?;
    let (mut args, size) = trailing_number(arg)?;
    let header_len = if headers {
        let (before, header_len) = trailing_number(args)?;
        if header_len > size {
            return None;
        }
        args = before;
        Some(header_len)
    } else {
        None
    };
    let (subject, reply) = names(args)?;
    let len = verb_len + line_feed + 1;
    Some(Head {
        len,
        canonical: true,
        subject,
        reply,
        header_len,
        size,
    })
}

/// Splits a number of one to nine digits, and the blanks before it, off the end of `arg`. At least one blank must
/// stand there.
#[inline]
fn trailing_number(arg: &[u8]) -> Option<(&[u8], usize)> {
    let mut at = arg.len();
    let (mut number, mut scale) = (0usize, 1usize);
    while let Some(&b) = arg[..at].last() {
        if !b.is_ascii_digit() {
            break;
        }
        if scale > 100_000_000 {
            return None;
        }
        number += usize::from(b - b'0') * scale;
        scale *= 10;
        at -= 1;
    }
    if at == arg.len() || arg[..at].last() != Some(&b' ') {
        return None;
    }
    while arg[..at].last() == Some(&b' ') {
        at -= 1;
    }
    Some((&arg[..at], number))
}

/// Splits `subject` or `subject reply`.
#[inline]
fn names(args: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let Some(at) = memchr3(b' ', b'\t', b'\r', args) else {
        return (!args.is_empty()).then_some((args, None));
    };
    let (subject, mut reply) = args.split_at(at);
    while let [b' ', tail @ ..] = reply {
        reply = tail;
    }
    if subject.is_empty() || reply.is_empty() || memchr3(b' ', b'\t', b'\r', reply).is_some() {
        return None;
    }
    Some((subject, Some(reply)))
}
