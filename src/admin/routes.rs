//! Which path answers what.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{Either, Full};
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, HeaderValue, ORIGIN, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::connz::{connz, subsz};
use super::eventz::{Filter, eventz, stream};
use super::hosts;
use super::metrics::{self, metrics};
use super::process::CpuMeter;
use super::query::{BadValue, Query};
use super::varz::{brokerz, varz};
use super::{Access, Source};
use crate::telemetry::{BusSnapshot, Snapshot};

/// How long a picture may take before natsmux counts as stuck.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

/// The content type of most answers.
const JSON: &str = "application/json";
/// The header with which a browser resumes a stream.
const LAST_EVENT_ID: &str = "last-event-id";
/// The content type of server-sent events, in requests and answers.
const EVENT_STREAM: &str = "text/event-stream";
/// Streams of events at once.
const STREAMS: usize = 16;
/// Lists of sessions or subscriptions that are made at once.
const LISTINGS: usize = 2;

/// The body of an answer: a text, or a stream of events.
pub(super) type Body = Either<Full<Bytes>, Channel<Bytes>>;

const PATHS: [&str; 11] = [
    "/",
    "/livez",
    "/readyz",
    "/healthz",
    "/varz",
    "/connz",
    "/subsz",
    "/subscriptionsz",
    "/brokerz",
    "/metrics",
    "/eventz",
];

/// The state that all requests share.
pub(super) struct Routes<S> {
    source: Arc<S>,
    cpu: CpuMeter,
    access: Access,
    streams: Arc<Semaphore>,
    listings: Semaphore,
    requests: [AtomicU64; PATHS.len()],
}

impl<S: Source> Routes<S> {
    pub(super) fn new(source: Arc<S>, access: Access) -> Self {
        Self {
            source,
            cpu: CpuMeter::new(),
            access,
            streams: Arc::new(Semaphore::new(STREAMS)),
            listings: Semaphore::new(LISTINGS),
            requests: Default::default(),
        }
    }

    /// Answers one request, and lets a page of an allowed origin read it.
    pub(super) async fn answer<B>(&self, request: Request<B>, local: IpAddr) -> Response<Body> {
        let origin = request.headers().get(ORIGIN).cloned();
        let mut response = self.answer_anybody(request, local).await;
        if self.access.cors_origins.is_empty() {
            return response;
        }
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = origin
            && self
                .access
                .cors_origins
                .iter()
                .any(|allowed| origin.as_bytes().eq_ignore_ascii_case(allowed.as_bytes()))
        {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
        response
    }

    /// Answers one request that came over a connection to `local`. The body of
    /// the request isn't read.
    async fn answer_anybody<B>(&self, request: Request<B>, local: IpAddr) -> Response<Body> {
        if !hosts::is_allowed(&request, local, &self.access.hosts) {
            let error =
                "Host must be a loopback name, this machine's name or the address of this listener";
            return reply(StatusCode::FORBIDDEN, &json!({ "error": error }));
        }
        let path = request.uri().path();
        let Some(index) = PATHS.iter().position(|known| *known == path) else {
            let body = json!({ "error": "not found", "paths": PATHS });
            return reply(StatusCode::NOT_FOUND, &body);
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let error = json!({ "error": "only GET and HEAD" });
            let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, &error);
            let allowed = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allowed);
            return response;
        }
        self.requests[index].fetch_add(1, Ordering::Relaxed);
        if path == "/" {
            return page();
        }
        let Ok(Some(snapshot)) = timeout(SNAPSHOT_TIMEOUT, self.source.snapshot()).await else {
            return unavailable("a worker doesn't answer");
        };
        let query = Query::new(request.uri().query());
        match path {
            "/livez" => ok(),
            "/readyz" => readyz(&snapshot),
            "/healthz" => healthz(&snapshot, request.uri().query()),
            "/connz" => self.listing(connz(&*self.source, &snapshot, query)).await,
            "/subsz" | "/subscriptionsz" => {
                self.listing(subsz(&*self.source, &snapshot, query)).await
            }
            "/eventz" => match Filter::new(query) {
                Ok(wanted) if takes_stream(&request) => self.stream(&request, &snapshot, wanted),
                Ok(wanted) => reply(StatusCode::OK, &eventz(&snapshot, &*self.source, wanted)),
                Err(bad) => bad_value(bad),
            },
            "/brokerz" => reply(StatusCode::OK, &brokerz(&snapshot)),
            "/metrics" => match metrics(snapshot, &self.cpu) {
                Ok(body) => text_reply(StatusCode::OK, body, metrics::CONTENT_TYPE),
                Err(_) => unavailable("the metrics can't be written"),
            },
            _ => reply(
                StatusCode::OK,
                &varz(&snapshot, &self.cpu, self.request_counts()),
            ),
        }
    }

    /// The events from now on, and those behind the last one that the client has.
    fn stream<B>(
        &self,
        request: &Request<B>,
        snapshot: &Snapshot,
        mut wanted: Filter,
    ) -> Response<Body> {
        let Ok(place) = Arc::clone(&self.streams).try_acquire_owned() else {
            return unavailable("too many event streams");
        };
        if let Some(id) = request.headers().get(LAST_EVENT_ID) {
            wanted.resume(id.to_str().unwrap_or_default(), &snapshot.server_id);
        }
        let source = Arc::clone(&self.source);
        let events = stream(snapshot.server_id.clone(), source, wanted, place);
        respond(StatusCode::OK, Either::Right(events), EVENT_STREAM)
    }

    /// An answer that may take several looks at the workers. Few are made at once: each may be
    /// long, and takes memory while it is gathered.
    async fn listing(
        &self,
        answer: impl Future<Output = Result<Option<String>, BadValue>>,
    ) -> Response<Body> {
        let Ok(Ok(_place)) = timeout(SNAPSHOT_TIMEOUT, self.listings.acquire()).await else {
            return unavailable("other lists are being made");
        };
        match timeout(SNAPSHOT_TIMEOUT, answer).await {
            Ok(Ok(Some(body))) => text_reply(StatusCode::OK, body + "\n", JSON),
            Ok(Err(bad)) => bad_value(bad),
            Ok(Ok(None)) | Err(_) => unavailable("a worker doesn't answer"),
        }
    }

    fn request_counts(&self) -> Value {
        let counts = PATHS.iter().zip(&self.requests);
        let counts = counts.map(|(path, count)| {
            (
                String::from(*path),
                Value::from(count.load(Ordering::Relaxed)),
            )
        });
        Value::Object(counts.collect::<Map<_, _>>())
    }
}

fn takes_stream<B>(request: &Request<B>) -> bool {
    let accept = request.headers().get(ACCEPT);
    accept.is_some_and(|kinds| kinds.to_str().is_ok_and(|text| text.contains(EVENT_STREAM)))
}

/// The status page: one file that needs no other, and asks natsmux alone.
fn page() -> Response<Body> {
    const POLICY: &str = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; \
        script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let text = include_str!("page.html").to_owned();
    let mut response = text_reply(StatusCode::OK, text, "text/html; charset=utf-8");
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

fn bad_value(BadValue(error): BadValue) -> Response<Body> {
    reply(StatusCode::BAD_REQUEST, &json!({ "error": error }))
}

/// Ready once every bus listens and has had a live broker; it stays so through an outage,
/// in which sessions are kept and components are still taken (R16), unless components are to know
/// of it (R37).
fn readyz(snapshot: &Snapshot) -> Response<Body> {
    let waits = |bus: &&BusSnapshot| !bus.listening || !bus.attached || bus.outage_revealed;
    let faults: Vec<String> = snapshot
        .buses
        .iter()
        .filter(waits)
        .map(|bus| {
            let name = &bus.name;
            if !bus.listening {
                format!("bus {name}: not listening yet")
            } else if bus.outage_revealed {
                let lasts = bus.outage.unwrap_or_default().as_secs();
                format!("bus {name}: no broker for {lasts} s, components are turned away")
            } else {
                format!("bus {name}: no broker has answered yet")
            }
        })
        .collect();
    if faults.is_empty() {
        ok()
    } else {
        unavailable(&faults.join("; "))
    }
}

/// Healthy while every bus asked for has a live broker; `?bus=NAME` asks for one.
fn healthz(snapshot: &Snapshot, query: Option<&str>) -> Response<Body> {
    let asked = query.and_then(|query| query.split('&').find_map(|p| p.strip_prefix("bus=")));
    let of_interest = |bus: &&BusSnapshot| asked.is_none_or(|name| name == bus.name);
    let mut buses = snapshot.buses.iter().filter(of_interest).peekable();
    if asked.is_some() && buses.peek().is_none() {
        let body = json!({ "status": "unavailable", "error": "no such bus" });
        return reply(StatusCode::NOT_FOUND, &body);
    }
    let faults: Vec<String> = buses.filter(|bus| !bus.healthy).map(fault_text).collect();
    if faults.is_empty() {
        ok()
    } else {
        unavailable(&faults.join("; "))
    }
}

fn fault_text(bus: &BusSnapshot) -> String {
    match &bus.reason {
        Some(reason) => format!("bus {}: no live broker: {reason}", bus.name),
        None => format!("bus {}: no live broker", bus.name),
    }
}

fn ok() -> Response<Body> {
    reply(StatusCode::OK, &json!({ "status": "ok" }))
}

fn unavailable(error: &str) -> Response<Body> {
    let body = json!({ "status": "unavailable", "error": error });
    reply(StatusCode::SERVICE_UNAVAILABLE, &body)
}

/// A JSON reply.
fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    let mut text = body.to_string();
    text.push('\n');
    text_reply(status, text, JSON)
}

fn text_reply(status: StatusCode, text: String, kind: &'static str) -> Response<Body> {
    respond(status, Either::Left(Full::new(Bytes::from(text))), kind)
}

fn respond(status: StatusCode, body: Body, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
