//! Accepts connections, and bounds what each may do.

use std::collections::VecDeque;
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::routes::Routes;
use super::{Access, Source};

/// Connections at once. For a further one, the oldest that has asked for nothing is closed.
const MAX_CONNECTIONS: usize = 64;
/// How long a client has for its TLS handshake, and then for its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection lives at most, from accept to the last byte.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest life of a stream of events. Browsers ask again.
const STREAM_TIMEOUT: Duration = Duration::from_secs(3600);
/// The most bytes of request line and headers.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// How long accepting rests after an error, such as too many open files.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// Serves health and metrics until `stop` is cancelled; what is then still
/// being answered is cut off.
pub async fn serve<S: Source>(
    listener: TcpListener,
    source: Arc<S>,
    access: Access,
    stop: CancellationToken,
) {
    let tls = access.tls.clone();
    let routes = Arc::new(Routes::new(source, access));
    let mut connections = JoinSet::new();
    let mut clients = Clients::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                rest(&error).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        while !clients.has_room() {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = connections.join_next() => {}
            }
        }
        let answering = Arc::new(AtomicBool::new(false));
        let acceptor = tls.as_ref().map(|tls| tls.borrow().acceptor());
        let task = connection(
            stream,
            acceptor,
            Arc::clone(&routes),
            Arc::clone(&answering),
        );
        clients.enter(connections.spawn(task), answering);
    }
    connections.shutdown().await;
}

/// The connections, the oldest first. A place is nobody's to hold: where there is none, the oldest
/// that has asked for nothing yet loses its own.
#[derive(Default)]
struct Clients(VecDeque<(AbortHandle, Arc<AtomicBool>)>);

impl Clients {
    /// Whether another connection may be served; one that has asked for nothing may make room.
    fn has_room(&mut self) -> bool {
        self.0.retain(|(task, _)| !task.is_finished());
        if self.0.len() < MAX_CONNECTIONS {
            return true;
        }
        let is_idle = |(_, answering): &(_, Arc<AtomicBool>)| !answering.load(Ordering::Relaxed);
        let Some(at) = self.0.iter().position(is_idle) else {
            return false;
        };
        if let Some((task, _)) = self.0.remove(at) {
            task.abort();
        }
        true
    }

    fn enter(&mut self, task: AbortHandle, answering: Arc<AtomicBool>) {
        self.0.push_back((task, answering));
    }
}

async fn rest(error: &io::Error) {
    tracing::warn!(%error, "http accept failed");
    sleep(ACCEPT_REST).await;
}

async fn connection<S: Source>(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    routes: Arc<Routes<S>>,
    answering: Arc<AtomicBool>,
) {
    let local = stream
        .local_addr()
        .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |addr| addr.ip());
    let Some(acceptor) = acceptor else {
        return answer(stream, local, routes, &answering).await;
    };
    match timeout(HEADER_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(secured)) => answer(secured, local, routes, &answering).await,
        Ok(Err(error)) => tracing::debug!(%error, "http: TLS handshake failed"),
        Err(_) => tracing::debug!("http: TLS handshake timed out"),
    }
}

async fn answer<S: Source>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    local: IpAddr,
    routes: Arc<Routes<S>>,
    answering: &AtomicBool,
) {
    let streams = &AtomicBool::new(false);
    let service = service_fn(|request| {
        let routes = Arc::clone(&routes);
        answering.store(true, Ordering::Relaxed);
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
}
