//! The query of a request, behind its `?`.

use std::str::FromStr;

/// The query of a request. Of a key that comes twice, the first counts, as at nats-server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a>(Option<&'a str>);

/// A value isn't what its key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadValue(pub(super) String);

impl<'a> Query<'a> {
    pub(super) fn new(query: Option<&'a str>) -> Self {
        Self(query)
    }

    /// The value of a key, as it was sent.
    pub(super) fn get(self, key: &str) -> Option<&'a str> {
        let mut pairs = self.0?.split('&');
        pairs.find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    }

    /// A number; `default` where the key is missing or empty.
    pub(super) fn number<T: FromStr>(self, key: &str, default: T) -> Result<T, BadValue> {
        match self.get(key) {
            None | Some("") => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| BadValue(format!("{key}: {text} is no number"))),
        }
    }

    /// A switch: `1`, `true`, `0`, `false`, or nothing.
    pub(super) fn flag(self, key: &str) -> Result<bool, BadValue> {
        match self.get(key) {
            None | Some("" | "0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(text) => Err(BadValue(format!("{key}: {text} is neither 0 nor 1"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_and_the_first_counts() {
        let query = Query::new(Some("sublimit=9&limit=3&limit=4&subs=&auth=1&x"));
        assert_eq!(query.number("limit", 7), Ok(3));
        assert_eq!(query.number("offset", 7), Ok(7));
        assert_eq!(query.flag("auth"), Ok(true));
        assert_eq!(query.flag("subs"), Ok(false));
        assert_eq!(query.get("x"), None);
        assert_eq!(Query::new(None).number("limit", 7), Ok(7));
    }

    #[test]
    fn what_is_no_number_and_no_switch_is_said() {
        let query = Query::new(Some("limit=-1&auth=maybe&offset=99999999999999999999"));
        let text = |key| query.number::<usize>(key, 0).map_err(|bad| bad.0);
        assert_eq!(text("limit"), Err("limit: -1 is no number".to_owned()));
        assert!(text("offset").is_err());
        assert!(query.flag("auth").is_err());
    }
}
