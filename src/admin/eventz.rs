//! `/eventz`: what happened lately, for the minute after the worst one; as a JSON object, or as
//! server-sent events that go on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::Source;
use super::query::{BadValue, Query};
use super::time_format::rfc3339;
use crate::telemetry::{Event, Snapshot};

/// Pause after which a stream shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a browser waits before it asks again, in milliseconds.
const RETRY_MS: u64 = 1000;
/// Answers that a stream's client may leave unread, each with all events that there were.
const UNREAD: usize = 4;

/// Which events are asked for.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    after: u64,
    /// The last so many.
    limit: usize,
    bus: Option<String>,
}

impl Filter {
    /// `after=N` leaves out those up to number N, `limit=N` shows the last N, `bus=name` those
    /// of one bus.
    ///
    /// # Errors
    /// [`BadValue`], where the query asks for what isn't there.
    pub(super) fn new(query: Query<'_>) -> Result<Self, BadValue> {
        Ok(Self {
            after: query.number("after", 0)?,
            limit: query.number("limit", usize::MAX)?,
            bus: query.get("bus").map(str::to_owned),
        })
    }

    /// Goes on behind the last event that a client got, if this process told it: of another
    /// one, all are new to it.
    pub(super) fn resume(&mut self, last_event_id: &str, server_id: &str) {
        let own = last_event_id.strip_prefix(server_id);
        let seq = own.and_then(|rest| rest.strip_prefix(':')?.parse().ok());
        self.after = seq.unwrap_or(0);
    }

    /// Takes those that there are; `after` moves behind them.
    fn take(&mut self, source: &impl Source) -> Vec<Arc<Event>> {
        let mut events = source.events(self.after);
        self.after = events.last().map_or(self.after, |event| event.seq);
        events.retain(|event| {
            let field = event.fields.iter().find(|(name, _)| *name == "bus");
            let named = field.and_then(|(_, value)| value.as_str());
            self.bus.as_deref().is_none_or(|bus| named == Some(bus))
        });
        let skipped = events.len().saturating_sub(self.limit);
        events.drain(..skipped);
        events
    }
}

/// The body of `/eventz`: the oldest first.
pub(super) fn eventz(snapshot: &Snapshot, source: &impl Source, mut wanted: Filter) -> Value {
    let events = wanted.take(source);
    let shown: Vec<Value> = events.iter().map(|one| event(one)).collect();
    json!({
        "server_id": snapshot.server_id,
        "now": rfc3339(snapshot.now),
        "last": wanted.after,
        "events": shown,
    })
}

/// Streams events from now on as server-sent events: the body ends with its client, or with
/// natsmux. `place` is its place among the streams that there may be.
pub(super) fn stream<S: Source>(
    server_id: String,
    source: Arc<S>,
    wanted: Filter,
    place: OwnedSemaphorePermit,
) -> Channel<Bytes> {
    let (sender, body) = Channel::new(UNREAD);
    tokio::spawn(async move {
        // An error says that the client is gone.
        let _ = tell(&server_id, &*source, wanted, sender).await;
        drop(place);
    });
    body
}

async fn tell(
    server_id: &str,
    source: &impl Source,
    mut wanted: Filter,
    mut sender: Sender<Bytes>,
) -> Result<(), http_body_util::channel::SendError> {
    let mut text = format!("retry: {RETRY_MS}\n\n");
    loop {
        for told in wanted.take(source) {
            let seq = told.seq;
            text += &format!("id: {server_id}:{seq}\ndata: {}\n\n", event(&told));
        }
        // Only what there was at the start is limited.
        wanted.limit = usize::MAX;
        if !text.is_empty() {
            sender.send_data(std::mem::take(&mut text).into()).await?;
        }
        if timeout(HEARTBEAT, source.event_behind(wanted.after))
            .await
            .is_err()
        {
            text.push_str(":\n\n");
        }
    }
}

fn event(event: &Event) -> Value {
    let mut object = Map::new();
    object.insert("seq".to_owned(), event.seq.into());
    object.insert("time".to_owned(), rfc3339(event.time).into());
    object.insert("level".to_owned(), event.level.into());
    object.insert("event".to_owned(), event.message.as_str().into());
    for (name, value) in &event.fields {
        object.insert((*name).to_owned(), value.clone());
    }
    Value::Object(object)
}
