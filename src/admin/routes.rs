//! Which path answers what.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    HeaderValue, ORIGIN, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::Source;
use super::connz::{connz, subsz};
use super::eventz::eventz;
use super::hosts;
use super::metrics::{self, metrics};
use super::process::CpuMeter;
use super::query::{BadValue, Query};
use super::varz::{brokerz, varz};
use crate::telemetry::{BusSnapshot, Snapshot};

/// How long a picture may take before natsmux counts as stuck.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

/// The content type of most answers.
const JSON: &str = "application/json";

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

/// What all requests share.
pub(super) struct Routes<S> {
    source: Arc<S>,
    cpu: CpuMeter,
    cors_origins: Vec<String>,
    requests: [AtomicU64; PATHS.len()],
}

impl<S: Source> Routes<S> {
    pub(super) fn new(source: Arc<S>, cors_origins: Vec<String>) -> Self {
        Self {
            source,
            cpu: CpuMeter::new(),
            cors_origins,
            requests: Default::default(),
        }
    }

    /// Answers one request, and lets a page of an allowed origin read it.
    pub(super) async fn answer<B>(
        &self,
        request: Request<B>,
        local: IpAddr,
    ) -> Response<Full<Bytes>> {
        let origin = request.headers().get(ORIGIN).cloned();
        let mut response = self.answer_anybody(request, local).await;
        if self.cors_origins.is_empty() {
            return response;
        }
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = origin
            && self
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
    async fn answer_anybody<B>(&self, request: Request<B>, local: IpAddr) -> Response<Full<Bytes>> {
        if !hosts::is_allowed(&request, local) {
            let error = "Host must be a loopback name or the address of this listener";
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
            "/connz" => listing(connz(&*self.source, &snapshot, query)).await,
            "/subsz" | "/subscriptionsz" => listing(subsz(&*self.source, &snapshot, query)).await,
            "/eventz" => match eventz(&snapshot, &*self.source, query) {
                Ok(body) => reply(StatusCode::OK, &body),
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

/// The status page: one file that needs no other, and asks natsmux alone.
fn page() -> Response<Full<Bytes>> {
    const POLICY: &str = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; \
        script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let text = include_str!("page.html").to_owned();
    let mut response = text_reply(StatusCode::OK, text, "text/html; charset=utf-8");
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

/// An answer that may take several looks at the workers.
async fn listing(
    answer: impl Future<Output = Result<Option<String>, BadValue>>,
) -> Response<Full<Bytes>> {
    match timeout(SNAPSHOT_TIMEOUT, answer).await {
        Ok(Ok(Some(body))) => text_reply(StatusCode::OK, body + "\n", JSON),
        Ok(Err(bad)) => bad_value(bad),
        Ok(Ok(None)) | Err(_) => unavailable("a worker doesn't answer"),
    }
}

fn bad_value(BadValue(error): BadValue) -> Response<Full<Bytes>> {
    reply(StatusCode::BAD_REQUEST, &json!({ "error": error }))
}

/// Ready once every bus listens and has had a live broker; it stays so through an outage,
/// in which sessions are kept and components are still taken (R16).
fn readyz(snapshot: &Snapshot) -> Response<Full<Bytes>> {
    let waits = |bus: &&BusSnapshot| !bus.listening || !bus.attached;
    let faults: Vec<String> = snapshot
        .buses
        .iter()
        .filter(waits)
        .map(|bus| match bus.listening {
            true => format!("bus {}: no broker has answered yet", bus.name),
            false => format!("bus {}: not listening yet", bus.name),
        })
        .collect();
    match faults.is_empty() {
        true => ok(),
        false => unavailable(&faults.join("; ")),
    }
}

/// Healthy while every bus asked for has a live broker; `?bus=NAME` asks for one.
fn healthz(snapshot: &Snapshot, query: Option<&str>) -> Response<Full<Bytes>> {
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

fn ok() -> Response<Full<Bytes>> {
    reply(StatusCode::OK, &json!({ "status": "ok" }))
}

fn unavailable(error: &str) -> Response<Full<Bytes>> {
    let body = json!({ "status": "unavailable", "error": error });
    reply(StatusCode::SERVICE_UNAVAILABLE, &body)
}

/// A JSON reply.
fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut text = body.to_string();
    text.push('\n');
    text_reply(status, text, JSON)
}

fn text_reply(status: StatusCode, text: String, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
