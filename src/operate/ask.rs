//! One request to the control socket of a running natsmux.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request as HttpRequest, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Request;

/// How long an answer may take: longer than natsmux waits for a move.
const WITHIN: Duration = Duration::from_secs(620);
/// The longest answer that is read, in bytes: a million sessions.
const LONGEST: usize = 512 << 20;

/// Why a command wasn't carried out.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    /// Nobody listens there, or natsmux broke off.
    #[error("no natsmux answers at {0}: {1}")]
    Unreachable(String, io::Error),
    /// natsmux refuses it: nothing has changed.
    #[error("{1}")]
    Refused(StatusCode, String),
    /// Somebody else listens there.
    #[error("what answers at {0} isn't natsmux: {1}")]
    Strange(String, String),
}

impl CommandError {
    /// Whether the command was written wrong.
    pub(crate) fn is_wrong_input(&self) -> bool {
        matches!(self, Self::Refused(StatusCode::BAD_REQUEST, _))
    }
}

/// Returns the answer to a command.
pub(super) fn ask(socket: &Path, request: &Request) -> Result<Value, CommandError> {
    let name = socket.display().to_string();
    let unreachable = |error| CommandError::Unreachable(name.clone(), error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(unreachable)?;
    runtime.block_on(async {
        let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
        let exchanged = timeout(WITHIN, exchange(stream, request)).await;
        let strange = |error: String| CommandError::Strange(name.clone(), error);
        let (status, body) = exchanged
            .map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?
            .map_err(|error| unreachable(io::Error::other(error)))?;
        let answer: Value =
            serde_json::from_slice(&body).map_err(|error| strange(error.to_string()))?;
        match answer["error"].as_str() {
            None if status == StatusCode::OK => Ok(answer),
            Some(error) => Err(CommandError::Refused(status, error.to_owned())),
            None => Err(strange(status.to_string())),
        }
    })
}

async fn exchange(stream: UnixStream, request: &Request) -> Result<(StatusCode, Bytes), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        // Whatever breaks, the request sees it.
        let _ = connection.await;
    });
    let body = Full::new(Bytes::from(request.body.to_string()));
    let request = HttpRequest::post(request.path)
        .header(hyper::header::HOST, "natsmux")
        .body(body)
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    let body = body.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}
