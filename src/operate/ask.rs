//! One request to the control socket of a running natsmux.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use serde_json::Value;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::status::exchange;

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
pub(super) fn ask(socket: &Path, command: &super::Request) -> Result<Value, CommandError> {
    let name = socket.display().to_string();
    let unreachable = |error| CommandError::Unreachable(name.clone(), error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(unreachable)?;
    runtime.block_on(async {
        let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
        let strange = |error: String| CommandError::Strange(name.clone(), error);
        let request = Request::post(command.path)
            .header(hyper::header::HOST, "natsmux")
            .body(Full::new(Bytes::from(command.body.to_string())))
            .map_err(|error| strange(error.to_string()))?;
        let exchanged = timeout(WITHIN, exchange(stream, request, LONGEST)).await;
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
