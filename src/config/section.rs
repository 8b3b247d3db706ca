//! One table of the file, read key by key.
//!
//! The table is walked as the TOML parser left it, not through serde: serde's
//! messages repeat the value that they refuse, and it could be a password.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::choice::Choice;
use super::error::{ConfigError, Fault, Location};
use super::options::PongHold;
use super::units::{parse_duration, parse_size, show_duration, show_size};
use super::walk::Visitor;

const A_DURATION: &str = "a duration such as \"50ms\", \"10s\" or \"2m\"";
const A_SIZE: &str = "a size such as \"64KiB\", \"8MiB\" or a number of bytes";
const A_FILE: &str = "the path of a file";
const A_PAIR: &str = "the path of a file, as `cert` and `key` belong together";
pub(super) const A_SHORT_NAME: &str = "a name of 1 to 32 of a-z, 0-9, _ and -";
const A_NUMBER: &str = "a whole number";

/// A value of the file, with where it stands.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// A table of the file. Remembers which keys were asked for: the others are
/// unknown, which [`Section::finish`] refuses.
pub(super) struct Section<'t> {
    text: &'t str,
    path: String,
    table: Option<&'t DeTable<'t>>,
    span: Range<usize>,
    known: Vec<&'static str>,
}

impl<'t> Section<'t> {
    /// The whole file.
    pub(super) fn root(text: &'t str, table: &'t Spanned<DeTable<'t>>) -> Self {
        Self {
            text,
            path: String::new(),
            table: Some(table.get_ref()),
            span: 0..0,
            known: Vec::new(),
        }
    }

    /// The table under `key`; an absent one is read as an empty one.
    pub(super) fn section(&mut self, key: &'static str) -> Result<Self, ConfigError> {
        match self.take(key) {
            Some(value) => self.as_section(key, value),
            None => Ok(Self {
                text: self.text,
                path: self.key_path(key),
                table: None,
                span: self.span.clone(),
                known: Vec::new(),
            }),
        }
    }

    /// The table under `key`, if it is there.
    pub(super) fn optional(&mut self, key: &'static str) -> Result<Option<Self>, ConfigError> {
        let value = self.take(key);
        value.map(|value| self.as_section(key, value)).transpose()
    }

    /// The tables of the array of tables under `key`.
    pub(super) fn sections(&mut self, key: &'static str) -> Result<Vec<Self>, ConfigError> {
        let Some(value) = self.take(key) else {
            return Ok(Vec::new());
        };
        let expected = match key {
            "bus" => Fault::Expected("tables, each under [[bus]]"),
            _ => Fault::Expected("tables, each under [[bus.identity]]"),
        };
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.fault(key, value, expected));
        };
        items
            .iter()
            .map(|item| self.as_section(key, item))
            .collect()
    }

    fn as_section(&self, key: &'static str, value: &'t Value<'t>) -> Result<Self, ConfigError> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.fault(key, value, Fault::Expected("a table")));
        };
        Ok(Self {
            text: self.text,
            path: self.key_path(key),
            table: Some(table),
            span: value.span(),
            known: Vec::new(),
        })
    }

    /// The text under `key`.
    pub(super) fn text(
        &mut self,
        key: &'static str,
        expected: &'static str,
    ) -> Result<Option<(&'t str, Location)>, ConfigError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value.get_ref().as_str() {
            Some(text) => Ok(Some((text, self.location(key, value.span())))),
            None => Err(self.fault(key, value, Fault::Expected(expected))),
        }
    }

    /// The texts under two keys that belong together, the first with its location. Each key comes
    /// with what is expected there, and where it alone is missing.
    pub(super) fn pair(
        &mut self,
        keys: [(&'static str, &'static str, &'static str); 2],
    ) -> Result<Option<(&'t str, Location, &'t str)>, ConfigError> {
        let [(first_key, expected, first_missing), (key, other, missing)] = keys;
        let first = self.text(first_key, expected)?;
        let second = self.text(key, other)?;
        let (key, missing) = match (first, second) {
            (Some((first, at)), Some((second, _))) => return Ok(Some((first, at, second))),
            (None, None) => return Ok(None),
            (Some(_), None) => (key, missing),
            (None, Some(_)) => (first_key, first_missing),
        };
        let fault = Fault::Missing(missing);
        Err(ConfigError::wrong(self.location_of(key), fault))
    }

    /// The paths of a certificate and its key, which belong together.
    pub(super) fn certificate(&mut self) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
        let pair = self.pair([("cert", A_FILE, A_PAIR), ("key", A_FILE, A_PAIR)])?;
        Ok(pair.map(|(cert, _, key)| (cert.into(), key.into())))
    }

    /// The list of texts under `key`.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        expected: &'static str,
    ) -> Result<Option<Vec<(&'t str, Location)>>, ConfigError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.fault(key, value, Fault::Expected(expected)));
        };
        let texts = items.iter().map(|item| match item.get_ref().as_str() {
            Some(text) => Ok((text, self.location(key, item.span()))),
            None => Err(self.fault(key, item, Fault::Expected(expected))),
        });
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// Refuses keys that nobody asked for.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        for (key, _) in self.table.into_iter().flatten() {
            let name = key.get_ref();
            if !self.known.iter().any(|known| known == name) {
                let location = self.location(&shown_key(name), key.span());
                return Err(ConfigError::wrong(location, Fault::UnknownKey(self.known)));
            }
        }
        Ok(())
    }

    /// The location of the table itself, for a key that is missing in it.
    pub(super) fn location_of(&self, key: &str) -> Location {
        self.location(key, self.span.clone())
    }

    fn take(&mut self, key: &'static str) -> Option<&'t Value<'t>> {
        self.known.push(key);
        self.table?.get(key)
    }

    fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn location(&self, key: &str, span: Range<usize>) -> Location {
        Location {
            file: None,
            line: Some(line_of(self.text, span.start)),
            key: self.key_path(key),
        }
    }

    fn fault(&self, key: &str, value: &Value<'_>, fault: Fault) -> ConfigError {
        ConfigError::wrong(self.location(key, value.span()), fault)
    }

    /// A number within bounds, read from what `parse` makes of the value.
    fn number(
        &mut self,
        key: &'static str,
        value: &mut usize,
        (kind, expected): (&'static str, &'static str),
        bounds: RangeInclusive<u64>,
        parse: impl Fn(&DeValue<'_>) -> Option<u64>,
    ) -> Result<(), ConfigError> {
        let Some(found) = self.take(key) else {
            return Ok(());
        };
        let number = parse(found.get_ref())
            .ok_or_else(|| self.fault(key, found, Fault::Expected(expected)))?;
        let in_bounds = bounds
            .contains(&number)
            .then(|| usize::try_from(number).ok());
        *value = in_bounds.flatten().ok_or_else(|| {
            let show: fn(u64) -> String = match kind {
                "a size" => show_size,
                _ => |number| number.to_string(),
            };
            let fault = Fault::Bounds {
                what: kind,
                min: show(*bounds.start()),
                max: show(*bounds.end()),
            };
            self.fault(key, found, fault)
        })?;
        Ok(())
    }

    fn duration_of(
        &self,
        key: &str,
        found: &Value<'_>,
        bounds: &RangeInclusive<Duration>,
        expected: &'static str,
    ) -> Result<Duration, ConfigError> {
        let parsed = found.get_ref().as_str().and_then(parse_duration);
        let duration = parsed.ok_or_else(|| self.fault(key, found, Fault::Expected(expected)))?;
        if !bounds.contains(&duration) {
            let fault = Fault::Bounds {
                what: "a duration",
                min: show_duration(*bounds.start()),
                max: show_duration(*bounds.end()),
            };
            return Err(self.fault(key, found, fault));
        }
        Ok(duration)
    }
}

impl Visitor for Section<'_> {
    fn duration(
        &mut self,
        key: &'static str,
        value: &mut Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Result<(), ConfigError> {
        if let Some(found) = self.take(key) {
            *value = self.duration_of(key, found, &bounds, A_DURATION)?;
        }
        Ok(())
    }

    fn pong_hold(
        &mut self,
        key: &'static str,
        value: &mut PongHold,
        bounds: RangeInclusive<Duration>,
    ) -> Result<(), ConfigError> {
        let Some(found) = self.take(key) else {
            return Ok(());
        };
        *value = match found.get_ref().as_str() {
            Some("never") => PongHold::Never,
            _ => {
                let expected = "a duration such as \"15s\", or \"never\"";
                PongHold::After(self.duration_of(key, found, &bounds, expected)?)
            }
        };
        Ok(())
    }

    fn size(
        &mut self,
        key: &'static str,
        value: &mut usize,
        bounds: RangeInclusive<u64>,
    ) -> Result<(), ConfigError> {
        self.number(
            key,
            value,
            ("a size", A_SIZE),
            bounds,
            |found| match found {
                DeValue::String(text) => parse_size(text),
                other => whole_number(other),
            },
        )
    }

    fn count(
        &mut self,
        key: &'static str,
        value: &mut usize,
        bounds: RangeInclusive<u64>,
    ) -> Result<(), ConfigError> {
        self.number(key, value, ("a number", A_NUMBER), bounds, whole_number)
    }

    fn choice<T: Choice>(&mut self, key: &'static str, value: &mut T) -> Result<(), ConfigError> {
        let Some(found) = self.take(key) else {
            return Ok(());
        };
        let chosen = found.get_ref().as_str().and_then(T::from_word);
        *value = chosen.ok_or_else(|| self.fault(key, found, Fault::Choice(T::words())))?;
        Ok(())
    }

    fn flag(&mut self, key: &'static str, value: &mut bool) -> Result<(), ConfigError> {
        if let Some(found) = self.take(key) {
            *value = found
                .get_ref()
                .as_bool()
                .ok_or_else(|| self.fault(key, found, Fault::Expected("true or false")))?;
        }
        Ok(())
    }
}

/// The line of a byte of the text, counted from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|&&byte| byte == b'\n').count()
}

/// The name of a bus, or of an identity.
pub(super) fn short_name(text: &str, location: &Location) -> Result<String, ConfigError> {
    let known = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
    };
    if text.is_empty() || text.len() > 32 || !text.bytes().all(known) {
        let fault = Fault::Expected(A_SHORT_NAME);
        return Err(ConfigError::wrong(location.clone(), fault));
    }
    Ok(text.to_owned())
}

fn whole_number(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A key that nobody knows, as far as it can't be a secret: a password in the
/// location of a key isn't one bare word.
fn shown_key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.len() <= 64 && name.bytes().all(bare) {
        name.to_owned()
    } else {
        "(a quoted key)".to_owned()
    }
}
