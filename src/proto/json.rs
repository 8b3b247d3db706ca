//! JSON as Go's `encoding/json` reads it, where that differs from serde_json and a peer could notice: keys match in
//! any case, invalid UTF-8 and lone surrogates become U+FFFD, anything behind the value is an error.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, Visitor};

/// Checks the syntax of `json`, and makes its UTF-8 valid: Go puts one U+FFFD for every byte that isn't.
///
/// The check stands on its own because [`LossyText`] reads strings as bytes, where serde_json lets raw control characters
/// pass.
pub(super) fn checked(json: &[u8]) -> Result<Cow<'_, [u8]>, serde_json::Error> {
    let json = match std::str::from_utf8(json) {
        Ok(_) => Cow::Borrowed(json),
        Err(_) => Cow::Owned(replaced(json, |_| 1).into_bytes()),
    };
    serde_json::from_slice::<IgnoredAny>(&json)?;
    Ok(json)
}

/// `bytes` as text, with one U+FFFD for as many of the invalid bytes at a time as `width` says.
fn replaced(bytes: &[u8], width: fn(&[u8]) -> usize) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(chunk) = rest.utf8_chunks().next() {
        text.push_str(chunk.valid());
        rest = &rest[chunk.valid().len()..];
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &rest[width(rest).clamp(1, rest.len())..];
        }
    }
    text
}

/// A key as Go compares it: lower case, with the two letters outside ASCII that its simple folding maps into it.
pub(super) fn folded(key: &str) -> String {
    key.chars()
        .map(|char| match char {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            other => other.to_ascii_lowercase(),
        })
        .collect()
}

/// A string in which `\ud800` and other lone surrogates became U+FFFD. Only for JSON that was [`checked`].
pub(super) struct LossyText(pub(super) String);

impl<'de> Deserialize<'de> for LossyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl Visitor<'_> for TextVisitor {
            type Value = LossyText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<LossyText, E> {
                // serde_json writes a lone surrogate as the three bytes that UTF-8 forbids.
                Ok(LossyText(replaced(bytes, |_| 3)))
            }
        }

        deserializer.deserialize_bytes(TextVisitor)
    }
}

/// Appends `text` as a JSON string.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text)
        .expect("a string is always serialisable, and writing to a vector cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &[u8]) -> Option<String> {
        serde_json::from_slice::<LossyText>(&checked(json).ok()?)
            .ok()
            .map(|text| text.0)
    }

    #[test]
    fn invalid_text_is_replaced_as_go_does() {
        assert_eq!(
            text(b"\"a\xff\xfeb\"").as_deref(),
            Some("a\u{fffd}\u{fffd}b")
        );
        assert_eq!(text(b"\"\xe2\x82\"").as_deref(), Some("\u{fffd}\u{fffd}"));
        assert_eq!(text(br#""a\ud800b""#).as_deref(), Some("a\u{fffd}b"));
        assert_eq!(
            text(br#""\ud83d\ude00 \u00fc\n""#).as_deref(),
            Some("\u{1f600} \u{fc}\n")
        );
    }

    #[test]
    fn raw_control_characters_and_trailing_bytes_are_errors() {
        assert_eq!(text(b"\"a\x01b\""), None);
        assert_eq!(text(b"\"a\" x"), None);
        assert_eq!(text(b"5"), None);
        assert_eq!(text(b"[1]"), None);
        assert_eq!(text(b" \"a\"\n").as_deref(), Some("a"));
    }

    #[test]
    fn keys_fold_to_ascii_lower_case() {
        assert_eq!(folded("VerboSe"), "verbose");
        assert_eq!(folded("verbo\u{17f}e"), "verbose");
        assert_eq!(folded("n\u{212a}ey"), "nkey");
    }
}
