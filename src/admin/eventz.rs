//! `/eventz`: what happened lately, for the minute after the worst one.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Source;
use super::query::{BadValue, Query};
use super::shape::rfc3339;
use crate::telemetry::{Event, Snapshot};

/// The body of `/eventz`: the oldest first. `after=N` leaves out those up to number N, `limit=N`
/// shows the last N, `bus=name` those of one bus.
///
/// # Errors
/// [`BadValue`], where the query asks for what isn't there.
pub(super) fn eventz(
    snapshot: &Snapshot,
    source: &impl Source,
    query: Query<'_>,
) -> Result<Value, BadValue> {
    let after: u64 = query.number("after", 0)?;
    let limit: usize = query.number("limit", usize::MAX)?;
    let events = source.events(after);
    let bus = query.get("bus");
    let of_interest = |event: &Arc<Event>| {
        let field = event.fields.iter().find(|(name, _)| *name == "bus");
        let named = field.and_then(|(_, value)| value.as_str());
        bus.is_none_or(|bus| named == Some(bus))
    };
    let last = events.last().map_or(after, |event| event.seq);
    let mut shown: Vec<Arc<Event>> = events.into_iter().filter(of_interest).collect();
    let skipped = shown.len().saturating_sub(limit);
    let shown: Vec<Value> = shown.drain(skipped..).map(|one| event(&one)).collect();
    Ok(json!({
        "server_id": snapshot.server_id,
        "now": rfc3339(snapshot.now),
        "last": last,
        "events": shown,
    }))
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
