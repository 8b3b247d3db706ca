//! Serves the control socket: one command a connection, with a bound on everything.

use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Command, Operator, Refusal};

/// Commands at once.
const MAX_CONNECTIONS: usize = 16;
/// How long a client has for its request line and headers, and then for its body.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest life of a connection: longer than any command may be waited for.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(620);
/// The longest body, in bytes.
const MAX_BODY: usize = 16 << 10;
/// How long accepting rests after an error, such as too many open files.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// Serves commands until `stop` is cancelled.
pub async fn serve<O: Operator>(listener: UnixListener, operator: Arc<O>, stop: CancellationToken) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return warn!(%error, "the control socket can't be served"),
    };
    let mut connections = JoinSet::new();
    loop {
        let has_room = connections.len() < MAX_CONNECTIONS;
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if has_room => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, Arc::clone(&operator)));
            }
            Err(error) => {
                warn!(%error, "control socket: accept failed");
                sleep(ACCEPT_REST).await;
            }
        }
    }
    connections.shutdown().await;
}

async fn connection<O: Operator>(stream: UnixStream, operator: Arc<O>) {
    let peer = stream.peer_cred().ok();
    let by = peer.map(|peer| (peer.uid(), peer.pid().unwrap_or_default()));
    let service = service_fn(|request| {
        let operator = Arc::clone(&operator);
        async move { Ok::<_, Infallible>(answer(request, &*operator, by).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, serving).await {
        debug!(%error, "control socket: a client broke off");
    }
}

async fn answer<O: Operator>(
    request: Request<Incoming>,
    operator: &O,
    by: Option<(u32, i32)>,
) -> Response<Full<Bytes>> {
    if *request.method() != Method::POST {
        let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, &error("only POST"));
        let allowed = HeaderValue::from_static("POST");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    let path = request.uri().path().to_owned();
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let Ok(Ok(body)) = timeout(READ_TIMEOUT, body).await else {
        let text = "the body is too long, or too late";
        return reply(StatusCode::BAD_REQUEST, &error(text));
    };
    let done = match Command::read(&path, &body.to_bytes()) {
        Ok(command) => carry_out(command, operator, by).await,
        Err(refusal) => Err(refusal),
    };
    match done {
        Ok(value) => reply(StatusCode::OK, &value),
        Err(refusal) => {
            let status = match refusal {
                Refusal::BadRequest(_) => StatusCode::BAD_REQUEST,
                Refusal::Unknown(_) => StatusCode::NOT_FOUND,
                Refusal::Conflict(_) => StatusCode::CONFLICT,
                Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            reply(status, &error(&refusal.to_string()))
        }
    }
}

/// Whoever looks for the cause of a move later finds it in the log.
async fn carry_out<O: Operator>(
    command: Command,
    operator: &O,
    by: Option<(u32, i32)>,
) -> Result<Value, Refusal> {
    if command.only_tells() {
        return operator.run(command).await;
    }
    let (uid, pid) = by.unzip();
    let words = command.to_string();
    info!(command = words, uid, pid, "command of an operator");
    let done = operator.run(command).await;
    if let Err(refusal) = &done {
        warn!(command = words, %refusal, "command refused");
    }
    done
}

fn error(text: &str) -> Value {
    json!({ "error": text })
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let text = format!("{body}\n");
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
