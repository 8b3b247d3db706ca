//! One request to the HTTP port of a running natsmux.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const LONGEST: usize = 8 << 20;

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub(crate) enum FetchError {
    /// Nobody listens there, or the connection broke.
    #[error("no natsmux answers at http://{0}: {1}")]
    Unreachable(SocketAddr, io::Error),
    /// Somebody listens, and says nothing in time.
    #[error("nothing answered at http://{0} within 5 s")]
    TimedOut(SocketAddr),
    /// Somebody else, or a natsmux that is stuck.
    #[error("no healthy natsmux at http://{0}: {1}")]
    Strange(SocketAddr, String),
}

/// The answer to `/varz`.
pub(super) fn varz(addr: SocketAddr) -> Result<Value, FetchError> {
    let unreachable = |error| FetchError::Unreachable(addr, error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(unreachable)?;
    let answer = runtime.block_on(async { timeout(WITHIN, get(addr)).await });
    answer.map_err(|_| FetchError::TimedOut(addr))?
}

async fn get(addr: SocketAddr) -> Result<Value, FetchError> {
    let strange = |what: String| FetchError::Strange(addr, what);
    let stream = TcpStream::connect(addr)
        .await
        .map_err(|error| FetchError::Unreachable(addr, error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| strange(error.to_string()))?;
    tokio::spawn(async move {
        // Whatever breaks, the request sees it.
        let _ = connection.await;
    });
    let request = Request::get("/varz")
        .header(hyper::header::HOST, addr.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| strange(error.to_string()))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| strange(error.to_string()))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST)
        .collect()
        .await
        .map_err(|error| strange(error.to_string()))?;
    if status != StatusCode::OK {
        return Err(strange(status.to_string()));
    }
    let varz: Value =
        serde_json::from_slice(&body.to_bytes()).map_err(|error| strange(error.to_string()))?;
    if varz["natsmux"].is_object() {
        Ok(varz)
    } else {
        Err(strange("its /varz is another program's".to_owned()))
    }
}
