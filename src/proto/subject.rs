//! Validity and matching of subjects, as nats-server judges them.
//!
//! A subject is a run of tokens between dots. `*` and `>` are wildcards only as a whole token: `foo*` is a literal.

/// Whether a broker accepts a SUB on this subject. It answers `Invalid Subject` to an empty token and to a `>` that
/// isn't the last token.
pub fn is_valid_subscription(subject: &[u8]) -> bool {
    let mut tokens = subject.split(|&b| b == b'.').peekable();
    while let Some(token) = tokens.next() {
        if token.is_empty() || (token == b">" && tokens.peek().is_some()) {
            return false;
        }
    }
    true
}

/// Whether the server of 2012 accepts it: there, `foo*` is no token either.
pub fn is_valid_subscription_of_2012(subject: &[u8]) -> bool {
    let has_wildcard = |token: &[u8]| token.iter().any(|byte| matches!(byte, b'*' | b'>'));
    is_valid_subscription(subject)
        && subject
            .split(|&b| b == b'.')
            .all(|token| token == b"*" || token == b">" || !has_wildcard(token))
}

/// Whether a subscription on `pattern` gets what is published to `subject`.
///
/// Wildcards in a published subject are literal tokens, and a subject with an empty token matches nothing, not even
/// `>`.
pub fn matches(pattern: &[u8], subject: &[u8]) -> bool {
    if !is_valid_subscription(pattern) || subject.split(|&b| b == b'.').any(<[u8]>::is_empty) {
        return false;
    }
    let mut tokens = subject.split(|&b| b == b'.');
    for wanted in pattern.split(|&b| b == b'.') {
        match (wanted, tokens.next()) {
            (b">", Some(_)) => return true,
            (b"*", Some(_)) => {}
            (literal, Some(token)) if literal == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_tokens_and_an_inner_full_wildcard_are_invalid() {
        for valid in [
            "a", "a.b", "*", ">", "a.*", "a.>", "*.*.>", "foo*", "a.>x", "a*.b", "\u{fc}",
        ] {
            assert!(is_valid_subscription(valid.as_bytes()), "{valid}");
        }
        for invalid in ["", ".", ".a", "a.", "a..b", ">.a", "a.>.b"] {
            assert!(!is_valid_subscription(invalid.as_bytes()), "{invalid}");
        }
    }

    #[test]
    fn wildcards_match_whole_tokens_only() {
        let matching = [
            ("a.b", "a.b"),
            ("a.*", "a.b"),
            ("*", "a"),
            (">", "a.b.c"),
            ("a.>", "a.b.c"),
            ("*.b.>", "a.b.c"),
            ("foo*", "foo*"),
            ("a.*", "a.*"),
            ("a.>", "a.>"),
        ];
        for (pattern, subject) in matching {
            assert!(
                matches(pattern.as_bytes(), subject.as_bytes()),
                "{pattern} {subject}"
            );
        }
        let different = [
            ("a.b", "a.c"),
            ("a.*", "a"),
            ("a.*", "a.b.c"),
            ("a.>", "a"),
            ("foo*", "foox"),
            ("a", "A"),
            ("a.b", "a.*"),
        ];
        for (pattern, subject) in different {
            assert!(
                !matches(pattern.as_bytes(), subject.as_bytes()),
                "{pattern} {subject}"
            );
        }
    }

    #[test]
    fn a_malformed_subject_matches_nothing() {
        for subject in ["a..b", ".a", "a.", ""] {
            assert!(!matches(b">", subject.as_bytes()), "{subject}");
        }
    }
}
