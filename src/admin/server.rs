//! Accepts connections, and bounds what each may do.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::Either;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Source;
use super::routes::Routes;

/// Connections at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// How long a client has for its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection lives at most, from accept to the last byte.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a stream of events. Browsers ask again.
const STREAM_TIMEOUT: Duration = Duration::from_secs(3600);
/// The most bytes of request line and headers.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// How long accepting rests after an error, such as too many open files.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// Serves health and metrics until `stop` is cancelled; what is then still
/// being answered is cut off.
///
/// Pages of `cors_origins` may read the answers in a browser; those of no other site may.
pub async fn serve<S: Source>(
    listener: TcpListener,
    source: Arc<S>,
    cors_origins: Vec<String>,
    stop: CancellationToken,
) {
    let routes = Arc::new(Routes::new(source, cors_origins));
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Some((stream, slot)) => {
                connections.spawn(connection(stream, slot, Arc::clone(&routes)));
            }
            None => break,
        }
        while connections.try_join_next().is_some() {}
    }
    connections.shutdown().await;
}

/// The next connection, once there is a slot for it. `None` never comes: the
/// semaphore isn't closed.
///
/// Cancel safe: a connection is either returned or left with the kernel.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Some((stream, slot)),
            Err(error) => rest(&error).await,
        }
    }
}

async fn rest(error: &io::Error) {
    tracing::warn!(%error, "http accept failed");
    sleep(ACCEPT_REST).await;
}

async fn connection<S: Source>(
    stream: TcpStream,
    slot: OwnedSemaphorePermit,
    routes: Arc<Routes<S>>,
) {
    let local = stream
        .local_addr()
        .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |addr| addr.ip());
    let streams = &AtomicBool::new(false);
    let service = service_fn(|request| {
        let routes = Arc::clone(&routes);
        async move {
            let response = routes.answer(request, local).await;
            let is_stream = matches!(response.body(), Either::Right(_));
            streams.store(is_stream, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
    );
    // A client that breaks off or is too slow concerns nobody.
    let ended = timeout(CONNECTION_TIMEOUT, &mut serving).await;
    if ended.is_err() && streams.load(Ordering::Relaxed) {
        let _ = timeout(STREAM_TIMEOUT, serving).await;
    }
    drop(slot);
}
