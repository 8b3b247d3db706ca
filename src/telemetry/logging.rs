//! Where log lines go: to stderr, through a thread of its own.
//!
//! A stderr that nobody reads must never stop the data path, so lines wait in a
//! bounded queue and are dropped, and counted, where it is full.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use thiserror::Error;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::events::{EventLayer, Events};

/// Lines that may wait for stderr; further ones are dropped.
const MAX_WAITING_LINES: usize = 8192;

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFormat {
    /// Words for people, in colour where stderr is a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging couldn't be set up.
#[derive(Debug, Error)]
#[error("logging was set up before in this process")]
pub struct LogError;

/// Keeps logging alive; dropping it writes the lines that still wait, for at
/// most about a second.
pub struct LogGuard {
    filter: reload::Handle<Targets, Registry>,
    dropped: ErrorCounter,
    events: Arc<Events>,
    _worker: WorkerGuard,
}

impl LogGuard {
    /// Changes the level from now on.
    pub fn set_level(&self, level: LevelFilter) {
        // Fails only where the subscriber is gone, and the lines with it.
        let _ = self.filter.reload(targets(level));
    }

    /// Returns the latest events at `info` or above.
    pub fn events(&self) -> Arc<Events> {
        Arc::clone(&self.events)
    }

    /// Lines dropped since start because stderr didn't take them.
    pub fn dropped_lines(&self) -> u64 {
        u64::try_from(self.dropped.dropped_lines()).unwrap_or(u64::MAX)
    }
}

/// Sends this process's log lines to stderr from now on.
///
/// # Errors
/// [`LogError`] where it was called before.
pub fn init(format: LineFormat, level: LevelFilter) -> Result<LogGuard, LogError> {
    let ansi = io::stderr().is_terminal();
    let (subscriber, guard) = build(io::stderr(), ansi, format, level);
    subscriber.try_init().map_err(|_| LogError)?;
    Ok(guard)
}

fn build(
    writer: impl Write + Send + 'static,
    ansi: bool,
    format: LineFormat,
    level: LevelFilter,
) -> (impl Subscriber + Send + Sync + 'static, LogGuard) {
    let (writer, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING_LINES)
        .thread_name("natsmux-log")
        .finish(writer);
    let dropped = writer.error_counter();
    let events = Arc::new(Events::default());
    let (filter, handle) = reload::Layer::new(targets(level));
    let subscriber = tracing_subscriber::registry()
        .with(lines(writer, ansi, format).with_filter(filter))
        .with(EventLayer(Arc::clone(&events)).with_filter(targets(LevelFilter::INFO)));
    let guard = LogGuard {
        filter: handle,
        dropped,
        events,
        _worker: worker,
    };
    (subscriber, guard)
}

fn lines<S>(
    writer: NonBlocking,
    ansi: bool,
    format: LineFormat,
) -> Box<dyn Layer<S> + Send + Sync + 'static>
where
    S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = fmt::layer().with_writer(writer).with_ansi(ansi);
    match format {
        LineFormat::Text => layer.boxed(),
        LineFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

/// natsmux's own lines at `level`; those of libraries at most at `warn`, since
/// their debugging output may quote what they send.
fn targets(level: LevelFilter) -> Targets {
    Targets::new()
        .with_target("natsmux", level)
        .with_default(level.min(LevelFilter::WARN))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::{Duration, Instant};

    use tracing::subscriber::with_default;

    use super::*;

    /// Hands each line to the test.
    struct Lines(Sender<String>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A stderr that takes nothing until the test ends.
    struct Blocked(Receiver<()>);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_at_the_level_that_holds_now() {
        let (sender, lines) = channel();
        let info = LevelFilter::INFO;
        let (subscriber, guard) = build(Lines(sender), false, LineFormat::Text, info);
        with_default(subscriber, || {
            tracing::debug!("before");
            guard.set_level(LevelFilter::DEBUG);
            tracing::debug!(bus = "control", "after");
            tracing::debug!(target: "hyper", "quiet");
        });
        let kept = guard.events().after(0).len();
        assert_eq!(kept, 0, "debug is nobody's event");
        drop(guard);
        let all: String = lines.iter().collect();
        assert!(all.contains("after bus=\"control\""), "{all}");
        assert!(!all.contains("before") && !all.contains("quiet"), "{all}");
    }

    #[test]
    fn json_lines_are_objects_with_the_fields_on_top() {
        let (sender, lines) = channel();
        let info = LevelFilter::INFO;
        let (subscriber, guard) = build(Lines(sender), false, LineFormat::Json, info);
        with_default(subscriber, || tracing::info!(bus = "control", "live"));
        drop(guard);
        let line = lines.iter().next().expect("a line");
        let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(
            (&object["bus"], &object["level"]),
            (&"control".into(), &"INFO".into())
        );
    }

    #[test]
    fn blocked_stderr_drops_lines_and_stops_nobody() {
        let (release, blocked) = channel();
        let info = LevelFilter::INFO;
        let (subscriber, guard) = build(Blocked(blocked), false, LineFormat::Text, info);
        let started = Instant::now();
        with_default(subscriber, || {
            for number in 0..2 * MAX_WAITING_LINES {
                tracing::info!(number, "line");
            }
        });
        assert!(started.elapsed() < Duration::from_secs(10));
        assert!(guard.dropped_lines() > 0);
        drop(release);
    }
}
