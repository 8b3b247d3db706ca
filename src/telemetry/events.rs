//! The last log lines of an operator's interest, kept for `/eventz`: what was said at `info`
//! or above, whatever level is written to stderr.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::Value;
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Events that are kept.
const KEPT: usize = 1_000;

/// Characters of a field that are kept.
const LONGEST_TEXT: usize = 256;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Counts from 1 at the start of the process.
    pub seq: u64,
    /// When.
    pub time: SystemTime,
    /// `info`, `warn` or `error`.
    pub level: &'static str,
    /// The kind of event, such as `failover`: the log line without its fields.
    pub message: String,
    /// Numbers and names, in the order of the log line.
    pub fields: Vec<(&'static str, Value)>,
}

/// The last thousand events of this process.
#[derive(Debug, Default)]
pub struct Events {
    ring: Mutex<Ring>,
    /// The number of the last one.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    last: u64,
}

impl Events {
    /// Events with larger numbers than `after`, the oldest first.
    pub fn after(&self, after: u64) -> Vec<Arc<Event>> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = ring.events.iter().filter(|event| event.seq > after);
        newer.cloned().collect()
    }

    /// Waits until there is an event with a larger number than `after`.
    ///
    /// Cancel safe.
    pub async fn wait_behind(&self, after: u64) {
        // It ends with its sender alone, which lives here.
        let _ = self.newest.subscribe().wait_for(|last| *last > after).await;
    }

    fn push(&self, mut event: Event) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        event.seq = ring.last;
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        ring.events.push_back(Arc::new(event));
        self.newest.send_replace(ring.last);
    }
}

/// Keeps what is logged.
pub(super) struct EventLayer(pub(super) Arc<Events>);

impl<S: Subscriber> Layer<S> for EventLayer {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.0.push(Event {
            seq: 0,
            time: SystemTime::now(),
            level: match *event.metadata().level() {
                Level::ERROR => "error",
                Level::WARN => "warn",
                _ => "info",
            },
            message: fields.message,
            fields: fields.others,
        });
    }
}

/// A text that a broker chose may be as long as it likes.
fn cut(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).collect()
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, cut(value).into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, cut(&format!("{value:?}")).into());
    }
}

#[cfg(test)]
mod tests {
    use tracing::subscriber::with_default;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn events_keep_their_fields_and_the_oldest_go_first() {
        let events = Arc::new(Events::default());
        let layer = EventLayer(Arc::clone(&events));
        with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(bus = "control", took_ms = 7_u64, "failover");
            for number in 1..=KEPT {
                tracing::info!(number, whole = true, addr = %"10.0.0.1", "line");
            }
        });
        let kept = events.after(0);
        assert_eq!((kept.len(), kept[0].seq), (KEPT, 2), "the first is gone");
        let last = kept.last().expect("a thousand");
        assert_eq!((last.message.as_str(), last.level), ("line", "info"));
        assert_eq!(
            last.fields,
            [
                ("number", Value::from(KEPT)),
                ("whole", true.into()),
                ("addr", "10.0.0.1".into())
            ]
        );
        assert_eq!(events.after(KEPT as u64).len(), 1);
        assert_eq!(events.after(KEPT as u64 + 1).len(), 0);
    }
}
