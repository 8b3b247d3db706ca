//! `natsmux status` and `natsmux top`: what a running natsmux says of itself, in a terminal.

mod fetch;
pub(crate) mod table;

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) use fetch::{FetchError, Target, exchange};

/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Prints once. Returns whether every bus has a live broker.
///
/// # Errors
/// [`FetchError`], where nothing answers.
pub(crate) fn status(natsmux: &Target, json: bool) -> Result<bool, FetchError> {
    let varz = fetch::varz(natsmux)?;
    let text = if json {
        escape_controls(&format!("{varz:#}\n"))
    } else {
        table::page(&varz, None)
    };
    // A reader that went away (`| head`) has seen what it wanted.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(is_healthy(&varz))
}

/// Prints again and again until the terminal is gone, or `rounds` times.
pub(crate) fn top(
    natsmux: &Target,
    every: Duration,
    rounds: Option<u64>,
) -> Result<bool, FetchError> {
    let clear = if io::stdout().is_terminal() {
        CLEAR
    } else {
        ""
    };
    let mut before: Option<(Instant, Value)> = None;
    let mut round = 0;
    loop {
        let now = Instant::now();
        let (text, healthy) = match fetch::varz(natsmux) {
            Ok(varz) => {
                let since = before.as_ref().map(|(at, varz)| (now - *at, varz));
                let text = table::page(&varz, since);
                let healthy = is_healthy(&varz);
                before = Some((now, varz));
                (text, healthy)
            }
            // It may be started again.
            Err(error) if before.is_some() => (format!("natsmux: {error}\n"), false),
            Err(error) => return Err(error),
        };
        let written = write!(io::stdout(), "{clear}{text}").and_then(|()| io::stdout().flush());
        round += 1;
        if written.is_err() || rounds.is_some_and(|rounds| round >= rounds) {
            return Ok(healthy);
        }
        thread::sleep(every);
    }
}

/// JSON leaves the controls from U+007F to U+009F as they are, and a terminal may obey them. They
/// stand in texts alone, where they may be escaped.
pub(crate) fn escape_controls(json: &str) -> String {
    let escaped = json.chars().map(|c| match c {
        '\u{7f}'..='\u{9f}' => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    });
    escaped.collect()
}

fn is_healthy(varz: &Value) -> bool {
    let buses = varz["natsmux"]["buses"].as_array();
    buses.is_some_and(|buses| buses.iter().all(|bus| bus["healthy"] == true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_escaped_and_mean_the_same() {
        let value = serde_json::json!({ "name": "a\u{9b}2J\u{7f}\u{1b}é" });
        let text = escape_controls(&value.to_string());
        assert!(!text.chars().any(char::is_control), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(value));
    }
}
