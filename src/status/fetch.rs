//! One request to the HTTP port of a running natsmux.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use natsmux::net::tls::ClientTls;
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const LONGEST: usize = 8 << 20;

/// A natsmux that is asked, and how.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Where its HTTP listens.
    pub(crate) addr: SocketAddr,
    /// TLS towards it; `None`: it is asked in plain text.
    pub(crate) tls: Option<ClientTls>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.addr)
    }
}

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub(crate) enum FetchError {
    /// Nobody listens there, or the connection broke.
    #[error("no natsmux answers at {0}: {1}")]
    Unreachable(String, io::Error),
    /// Somebody listens, and says nothing in time.
    #[error("nothing answered at {0} within 5 s")]
    TimedOut(String),
    /// Somebody else, or a natsmux that is stuck.
    #[error("no healthy natsmux at {0}: {1}")]
    Strange(String, String),
}

/// The answer to `/varz`.
pub(super) fn varz(target: &Target) -> Result<Value, FetchError> {
    let unreachable = |error| FetchError::Unreachable(target.to_string(), error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(unreachable)?;
    let answer = runtime.block_on(async { timeout(WITHIN, get(target)).await });
    answer.map_err(|_| FetchError::TimedOut(target.to_string()))?
}

async fn get(target: &Target) -> Result<Value, FetchError> {
    let unreachable = |error| FetchError::Unreachable(target.to_string(), error);
    let stream = TcpStream::connect(target.addr).await.map_err(unreachable)?;
    let Some(tls) = &target.tls else {
        return ask(stream, target).await;
    };
    let name = tls
        .name_of(&target.addr.ip().to_string())
        .map_err(|error| FetchError::Strange(target.to_string(), error.to_string()))?;
    let secured = tls.connector().connect(name, stream).await;
    ask(secured.map_err(unreachable)?, target).await
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
) -> Result<Value, FetchError> {
    let strange = |what: String| FetchError::Strange(target.to_string(), what);
    let request = Request::get("/varz")
        .header(hyper::header::HOST, target.addr.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| strange(error.to_string()))?;
    let (status, body) = exchange(stream, request, LONGEST).await.map_err(strange)?;
    if status != StatusCode::OK {
        return Err(strange(status.to_string()));
    }
    let varz: Value = serde_json::from_slice(&body).map_err(|error| strange(error.to_string()))?;
    if varz["natsmux"].is_object() {
        Ok(varz)
    } else {
        Err(strange("its /varz is another program's".to_owned()))
    }
}

/// Sends one request, and returns the answer, of `longest` bytes at most.
pub(crate) async fn exchange<B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<B>,
    longest: usize,
) -> Result<(StatusCode, Bytes), String>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        // Whatever breaks, the request sees it.
        let _ = connection.await;
    });
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), longest).collect().await;
    let body = body.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}
