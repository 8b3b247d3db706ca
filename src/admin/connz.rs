//! `/connz` and `/subsz` in nats-server's shapes: sessions as connections, and what they
//! subscribe to.
//!
//! The Prometheus exporter panics at a text that isn't one, and nats-top refuses a whole
//! reply for a wrong type, so every key has nats-server's type whatever a component chose to
//! call itself. natsmux's own additions are under `natsmux`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};

use super::Source;
use super::query::{BadValue, Query};
use super::time_format::{nats_duration, rfc3339};
use crate::telemetry::{SessionSnapshot, Snapshot, SubscriptionSnapshot};

/// Connections, or subscriptions, in one answer where nothing else is asked for.
const LIMIT: usize = 1024;
/// And at most, whatever is asked for.
const MOST: usize = 65_536;

/// A request's parameters.
struct PageRequest {
    offset: usize,
    limit: usize,
}

impl PageRequest {
    fn of(query: Query<'_>) -> Result<Self, BadValue> {
        let limit = query.number("limit", LIMIT)?;
        Ok(Self {
            offset: query.number("offset", 0)?,
            limit: if limit == 0 { LIMIT } else { limit.min(MOST) },
        })
    }
}

/// Which details of subscriptions are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subs {
    None,
    Subjects,
    Detail,
}

impl Subs {
    fn of(query: Query<'_>) -> Result<Self, BadValue> {
        match query.get("subs") {
            Some("detail") => Ok(Self::Detail),
            _ if query.flag("subs")? => Ok(Self::Subjects),
            _ => Ok(Self::None),
        }
    }
}

/// The body of `/connz`; `None` where a worker doesn't answer.
///
/// # Errors
/// [`BadValue`], where the query asks for what isn't there.
pub(super) async fn connz<S: Source>(
    source: &S,
    snapshot: &Snapshot,
    query: Query<'_>,
) -> Result<Option<String>, BadValue> {
    let page = PageRequest::of(query)?;
    let subs = Subs::of(query)?;
    let auth = query.flag("auth")?;
    let cid: u64 = query.number("cid", 0)?;
    // natsmux keeps nothing of connections that are closed.
    let open = match query.get("state").unwrap_or_default() {
        "" | "open" | "any" | "all" => true,
        "closed" => false,
        other => {
            return Err(BadValue(format!(
                "state: {other} isn't open, closed or any"
            )));
        }
    };
    let mut sessions = if open {
        match source.sessions().await {
            Some(sessions) => sessions,
            None => return Ok(None),
        }
    } else {
        Vec::new()
    };
    if cid > 0 {
        sessions.retain(|session| session.cid == cid);
    }
    sort(&mut sessions, query.get("sort").unwrap_or_default())?;
    let total = sessions.len();
    let shown = sessions.into_iter().skip(page.offset).take(page.limit);
    let shown: Vec<_> = shown.collect();
    let mut lists: BTreeMap<u64, Vec<SubscriptionSnapshot>> = BTreeMap::new();
    if subs != Subs::None {
        let cids: Vec<u64> = shown.iter().map(|session| session.cid).collect();
        match source.subscriptions(&cids, MOST).await {
            Some(found) => found
                .into_iter()
                .for_each(|sub| lists.entry(sub.cid).or_default().push(sub)),
            None => return Ok(None),
        }
    }
    let connections: Vec<ConnzEntry<'_>> = shown
        .iter()
        .map(|session| {
            let own = lists.get(&session.cid).map_or(&[][..], Vec::as_slice);
            connection(session, snapshot.now, auth, subs, own)
        })
        .collect();
    let listing = Connz {
        server_id: &snapshot.server_id,
        now: rfc3339(snapshot.now),
        num_connections: connections.len(),
        total,
        offset: page.offset,
        limit: page.limit,
        connections,
    };
    Ok(serde_json::to_string(&listing).ok())
}

/// nats-server's keys. The largest comes first, but for numbers, starts and times of life.
fn sort(sessions: &mut [SessionSnapshot], key: &str) -> Result<(), BadValue> {
    let largest_first: fn(&SessionSnapshot) -> u64 = match key {
        "" | "cid" | "start" => return Ok(()),
        "uptime" => {
            sessions.sort_by_key(|session| session.uptime);
            return Ok(());
        }
        "idle" => {
            sessions.sort_by_key(|session| Reverse(session.idle));
            return Ok(());
        }
        "last" => {
            sessions.sort_by_key(|session| session.idle);
            return Ok(());
        }
        "subs" => |session| session.subscriptions,
        "pending" => |session| session.pending_bytes,
        "msgs_to" => |session| session.out_msgs,
        "msgs_from" => |session| session.in_msgs,
        "bytes_to" => |session| session.out_bytes,
        "bytes_from" => |session| session.in_bytes,
        // Not measured towards components: all are equal.
        "rtt" => |_| 0,
        other => return Err(BadValue(format!("sort: {other} is no key to sort by"))),
    };
    sessions.sort_by_key(|session| Reverse(largest_first(session)));
    Ok(())
}

/// The whole answer. It is long where there are many sessions, so it is written at once, without
/// a tree of values between.
#[derive(Serialize)]
struct Connz<'a> {
    server_id: &'a str,
    now: String,
    num_connections: usize,
    total: usize,
    offset: usize,
    limit: usize,
    connections: Vec<ConnzEntry<'a>>,
}

#[derive(Serialize)]
struct ConnzEntry<'a> {
    cid: u64,
    kind: &'static str,
    #[serde(rename = "type")]
    protocol: &'static str,
    ip: IpAddr,
    port: u16,
    start: String,
    last_activity: String,
    uptime: String,
    idle: String,
    pending_bytes: u64,
    in_msgs: u64,
    out_msgs: u64,
    in_bytes: u64,
    out_bytes: u64,
    subscriptions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lang: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorized_user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriptions_list: Option<Vec<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriptions_list_detail: Option<Vec<Value>>,
    natsmux: Own<'a>,
}

/// Fields that nats-server doesn't have.
#[derive(Serialize)]
struct Own<'a> {
    bus: &'a str,
    trunk: Option<u64>,
    broker: Option<&'a str>,
    held: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
}

fn connection<'a>(
    session: &'a SessionSnapshot,
    now: SystemTime,
    auth: bool,
    subs: Subs,
    list: &'a [SubscriptionSnapshot],
) -> ConnzEntry<'a> {
    let ago = |duration: Duration| rfc3339(now.checked_sub(duration).unwrap_or(now));
    let subjects = || list.iter().map(|sub| sub.subject.as_str()).collect();
    let details = || list.iter().map(subscription).collect();
    ConnzEntry {
        cid: session.cid,
        kind: "Client",
        protocol: "nats",
        ip: session.peer.ip(),
        port: session.peer.port(),
        start: ago(session.uptime),
        last_activity: ago(session.idle),
        uptime: nats_duration(session.uptime),
        idle: nats_duration(session.idle),
        pending_bytes: session.pending_bytes,
        in_msgs: session.in_msgs,
        out_msgs: session.out_msgs,
        in_bytes: session.in_bytes,
        out_bytes: session.out_bytes,
        subscriptions: session.subscriptions,
        name: session.name.as_deref(),
        lang: session.lang.as_deref(),
        version: session.version.as_deref(),
        authorized_user: session.user.as_deref().filter(|_| auth),
        subscriptions_list: (subs == Subs::Subjects).then(subjects),
        subscriptions_list_detail: (subs == Subs::Detail).then(details),
        natsmux: Own {
            bus: &session.bus,
            trunk: session.trunk,
            broker: session.broker.as_deref(),
            held: session.held,
            identity: session.identity.as_deref(),
            uid: session.uid.filter(|_| auth),
            unit: session.unit.as_deref().filter(|_| auth),
        },
    }
}

fn subscription(sub: &SubscriptionSnapshot) -> Value {
    let mut detail = json!({
        "subject": sub.subject,
        "sid": sub.sid,
        "msgs": sub.msgs,
        "cid": sub.cid,
    });
    if let Some(group) = &sub.queue_group {
        detail["qgroup"] = group.as_str().into();
    }
    if let Some(max) = sub.max {
        detail["max"] = max.into();
    }
    detail
}

/// The body of `/subsz`; `None` where a worker doesn't answer. natsmux matches no subjects,
/// so what nats-server says of its matching is zero here.
///
/// # Errors
/// [`BadValue`], where the query asks for what isn't there.
pub(super) async fn subsz<S: Source>(
    source: &S,
    snapshot: &Snapshot,
    query: Query<'_>,
) -> Result<Option<String>, BadValue> {
    let page = PageRequest::of(query)?;
    let wanted = Subs::of(query)?;
    let mut body = json!({
        "server_id": snapshot.server_id,
        "now": rfc3339(snapshot.now),
        "num_subscriptions": snapshot.subscriptions,
        "num_cache": 0,
        "num_inserts": 0,
        "num_removes": 0,
        "num_matches": 0,
        "cache_hit_rate": 0.0,
        "max_fanout": 0,
        "avg_fanout": 0.0,
        "total": 0,
        "offset": page.offset,
        "limit": page.limit,
    });
    if wanted == Subs::None {
        return Ok(Some(body.to_string()));
    }
    let Some(sessions) = source.sessions().await else {
        return Ok(None);
    };
    // Only those are asked whose subscriptions are on the page.
    let (mut skip, mut count) = (page.offset as u64, 0);
    let mut cids = Vec::new();
    for session in &sessions {
        if cids.is_empty() && session.subscriptions <= skip {
            skip -= session.subscriptions;
        } else if count < skip.saturating_add(page.limit as u64) {
            cids.push(session.cid);
            count += session.subscriptions;
        }
    }
    let most = usize::try_from(skip).unwrap_or(usize::MAX);
    let most = most.saturating_add(page.limit);
    let Some(subs) = source.subscriptions(&cids, most).await else {
        return Ok(None);
    };
    let shown = subs.iter().skip(skip as usize).take(page.limit);
    let list: Vec<Value> = shown.map(subscription).collect();
    body["total"] = sessions
        .iter()
        .map(|session| session.subscriptions)
        .sum::<u64>()
        .into();
    body["subscriptions_list"] = list.into();
    Ok(Some(body.to_string()))
}
