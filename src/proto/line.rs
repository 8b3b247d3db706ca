//! Verbs and control lines as nats-server's byte-driven parser sees them.
//!
//! That parser has quirks which decide what is accepted, and they are kept: the first byte behind the blanks belongs
//! to the argument whatever it is (even a line feed), and a carriage return anywhere behind it drops the last byte of
//! the line.

use memchr::memchr;

/// How the first bytes of an input compare with a set of verbs.
pub(super) enum Verb<T> {
    /// The input starts with this verb, which is so many bytes long.
    Is(T, usize),
    /// The input is shorter than a verb, and could become one.
    Partial,
    /// No verb starts like this.
    Unknown,
}

/// Matches the start of `input` with `verbs` (upper-case, none a prefix of another), in any case.
pub(super) fn verb<T: Copy>(input: &[u8], verbs: &[(&'static [u8], T)]) -> Verb<T> {
    let mut partial = input.is_empty();
    for &(name, value) in verbs {
        let seen = input.len().min(name.len());
        if input[..seen].eq_ignore_ascii_case(&name[..seen]) {
            if seen == name.len() {
                return Verb::Is(value, seen);
            }
            partial = true;
        }
    }
    if partial {
        Verb::Partial
    } else {
        Verb::Unknown
    }
}

/// The rest of a control line behind its verb.
pub(super) enum Line<'a> {
    /// The line is whole: its argument, and the length of verb, argument and line end.
    Whole {
        /// Without the blanks before it and without the line end.
        arg: &'a [u8],
        /// Bytes from the start of the input to behind the line feed.
        len: usize,
    },
    /// No line feed yet, and the line may still end within the limit.
    Partial,
    /// The argument is longer than the limit, or so many blanks stand before it.
    TooLong,
}

/// Reads the argument that follows a verb of `verb_len` bytes. `max` bounds the argument as nats-server's
/// `max_control_line` does, and also, which nats-server doesn't, the blanks before it.
pub(super) fn argument(input: &[u8], verb_len: usize, max: usize) -> Line<'_> {
    let rest = &input[verb_len..];
    let blanks = rest.iter().take_while(|&&b| is_blank(b)).count();
    if blanks > max {
        return Line::TooLong;
    }
    let rest = &rest[blanks..];
    if rest.is_empty() {
        return Line::Partial;
    }
    // An argument of `max` bytes, CR and LF.
    let window = &rest[..rest.len().min(max.saturating_add(2))];
    let end = memchr(b'\n', &window[1..]).map(|at| at + 1);
    let held = &window[..end.unwrap_or(window.len())];
    let behind_first = held.get(1..).unwrap_or_default();
    let dropped = usize::from(memchr(b'\r', behind_first).is_some());
    let arg = &held[..held.len() - dropped];
    if arg.len() > max {
        return Line::TooLong;
    }
    match end {
        Some(end) => Line::Whole {
            arg,
            len: verb_len + blanks + end + 1,
        },
        None => Line::Partial,
    }
}

/// Reads a line of which everything behind the verb is ignored (`PING`, `PONG`, `+OK`). nats-server ignores without
/// limit; here `max` bounds it, since the caller must hold the line.
pub(super) fn ignored_tail(input: &[u8], verb_len: usize, max: usize) -> Line<'_> {
    let rest = &input[verb_len..];
    let window = &rest[..rest.len().min(max.saturating_add(2))];
    match memchr(b'\n', window) {
        Some(at) => Line::Whole {
            arg: &[],
            len: verb_len + at + 1,
        },
        None if window.len() > max.saturating_add(1) => Line::TooLong,
        None => Line::Partial,
    }
}

/// Whether nats-server's parser skips this byte between verb and argument.
pub(super) fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Where the first blank or control character stands, from `at` on: eight bytes at a time, since a call into a vector
/// search costs more than the words here are long.
#[inline]
pub(super) fn word_end(line: &[u8], mut at: usize) -> Option<usize> {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = EACH << 7;
    while let Some(eight) = line[at..].first_chunk::<8>() {
        let eight = u64::from_le_bytes(*eight);
        // The lowest high bit stands in the first byte below 0x21; borrows spoil only what is above it.
        let below = eight.wrapping_sub(EACH * 0x21) & !eight & HIGH;
        if below != 0 {
            return Some(at + (below.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    line[at..]
        .iter()
        .position(|&b| b <= b' ')
        .map(|found| at + found)
}

/// Splits `arg` on runs of bytes for which `separates` holds. `None` when there are more than `N` parts.
pub(super) fn split<const N: usize>(
    arg: &[u8],
    separates: fn(u8) -> bool,
) -> Option<([&[u8]; N], usize)> {
    let mut parts: [&[u8]; N] = [&[]; N];
    let mut count = 0;
    for part in arg.split(|&b| separates(b)).filter(|part| !part.is_empty()) {
        *parts.get_mut(count)? = part;
        count += 1;
    }
    Some((parts, count))
}

/// A decimal number of one to nine digits, which is what nats-server's `parseSize` takes.
pub(super) fn number(digits: &[u8]) -> Option<usize> {
    const MAX_DIGITS: usize = 9;
    if digits.is_empty() || digits.len() > MAX_DIGITS {
        return None;
    }
    digits.iter().try_fold(0usize, |sum, &b| {
        b.is_ascii_digit().then(|| sum * 10 + usize::from(b - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_to_nine_digits_and_nothing_else() {
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b"000000001"), Some(1));
        assert_eq!(number(b"999999999"), Some(999_999_999));
        for refused in [&b""[..], b"0000000001", b"+2", b"-2", b"1x", b"1.0", b" 1"] {
            assert_eq!(number(refused), None, "{refused:?}");
        }
    }

    #[test]
    fn a_verb_is_known_as_soon_as_no_other_is_possible() {
        let verbs: &[(&'static [u8], u8)] = &[(b"PING", 1), (b"PUB", 2)];
        assert!(matches!(verb(b"", verbs), Verb::Partial));
        assert!(matches!(verb(b"p", verbs), Verb::Partial));
        assert!(matches!(verb(b"pUb", verbs), Verb::Is(2, 3)));
        assert!(matches!(verb(b"PI!", verbs), Verb::Unknown));
        assert!(matches!(verb(b"X", verbs), Verb::Unknown));
    }

    #[test]
    fn the_limit_is_on_the_argument_without_line_end_and_leading_blanks() {
        let line = |text: &[u8]| matches!(argument(text, 3, 4), Line::Whole { .. });
        assert!(line(b"SUB  abcd\r\n"));
        assert!(line(b"SUB abcd\n"));
        assert!(matches!(argument(b"SUB abcd", 3, 4), Line::Partial));
        assert!(matches!(argument(b"SUB abcd\r", 3, 4), Line::Partial));
        assert!(matches!(argument(b"SUB abcde", 3, 4), Line::TooLong));
        assert!(matches!(argument(b"SUB abcde\r\n", 3, 4), Line::TooLong));
        assert!(matches!(argument(b"SUB      ", 3, 4), Line::TooLong));
    }

    #[test]
    fn a_carriage_return_inside_costs_the_last_byte_as_at_nats_server() {
        let Line::Whole { arg, len } = argument(b"SUB a\rb 12\nPING", 3, 100) else {
            panic!("whole")
        };
        assert_eq!((arg, len), (&b"a\rb 1"[..], 11));
        let Line::Whole { arg, .. } = argument(b"SUB \r\n", 3, 100) else {
            panic!("whole")
        };
        assert_eq!(arg, b"\r");
    }

    #[test]
    fn a_word_ends_at_the_first_byte_below_a_letter_wherever_it_stands() {
        for len in [1, 7, 8, 9, 16, 23] {
            for at in 0..len {
                for byte in 0..=u8::MAX {
                    let mut line = vec![b'\xff'; len];
                    line[at] = byte;
                    let expected = (byte <= b' ').then_some(at);
                    assert_eq!(word_end(&line, 0), expected, "{byte} at {at} of {len}");
                }
            }
        }
        assert_eq!(word_end(b"ab cd ef", 3), Some(5));
        assert_eq!(word_end(b"!!!!!!!! ", 0), Some(8), "the lowest letter");
    }

    #[test]
    fn an_argument_and_the_blanks_before_it_may_be_as_long_as_the_limit() {
        let whole = |input: &[u8]| match argument(input, 3, 5) {
            Line::Whole { arg, len } => {
                assert_eq!(len, input.len());
                Some(arg.to_vec())
            }
            _ => None,
        };
        assert_eq!(whole(b"SUB abcde\r\n").as_deref(), Some(&b"abcde"[..]));
        assert_eq!(whole(b"SUB abcde\n").as_deref(), Some(&b"abcde"[..]));
        assert_eq!(whole(b"SUB abcdef\r\n"), None);
        assert_eq!(whole(b"SUB     a\r\n").as_deref(), Some(&b"a"[..]));
        assert_eq!(whole(b"SUB      a\r\n"), None);
        assert!(matches!(argument(b"SUB abcdef", 3, 5), Line::TooLong));
        assert!(matches!(argument(b"SUB abcde", 3, 5), Line::Partial));
        assert!(matches!(argument(b"SUB      ", 3, 5), Line::TooLong));
        assert!(matches!(argument(b"SUB     ", 3, 5), Line::Partial));
        // A CR that may belong to the line end doesn't count.
        assert!(matches!(argument(b"SUB abcde\r", 3, 5), Line::Partial));
    }

    #[test]
    fn what_is_ignored_is_bounded_too() {
        let is = |input: &[u8]| match ignored_tail(input, 4, 5) {
            Line::Whole { len, .. } => len,
            Line::Partial => 0,
            Line::TooLong => usize::MAX,
        };
        assert_eq!(is(b"PING12345\r\n"), 11);
        assert_eq!(is(b"PING123456"), 0);
        assert_eq!(is(b"PING1234567"), usize::MAX);
        assert_eq!(is(b"PING123456\n"), 11);
        assert_eq!(is(b"PING1234567\n"), usize::MAX);
    }
}
