//! TLS with a component, before it has a session.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::time::timeout_at;
use tracing::debug;

use super::connection;
use super::frontend::{Counted, Frontend, ListenTls};
use crate::net::socket::{self, ReadHalf, Stream};
use crate::net::tls::Tls;
use crate::net::{Flush, Outbox, Port, Retention, now};

/// The first byte of a TLS record that begins a handshake.
const HANDSHAKE: u8 = 22;

/// Runs one connection: its handshake within `auth_timeout`, and then its session.
pub(super) async fn run(
    frontend: Rc<Frontend>,
    tls: Rc<ListenTls>,
    stream: Stream,
    (cid, peer): (u64, SocketAddr),
    (info, counted): (Vec<u8>, Counted),
) {
    let accepted_at = now();
    let until = accepted_at + frontend.pool.bus.borrow().settings().timings.auth_timeout;
    let (mut read, write) = stream.into_split();
    let port = Rc::new(Port::new(write));
    let until = std::time::Instant::from(until).into();
    // Boxed, since a session doesn't need its room.
    let secured = Box::pin(timeout_at(
        until,
        secure(&frontend, &tls, &port, &mut read, info),
    ));
    let failed = match secured.await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("not over within auth_timeout".to_owned()),
    };
    if let Some(error) = failed {
        frontend
            .pool
            .bus
            .borrow_mut()
            .counters_mut()
            .failed_handshakes += 1;
        debug!(bus = frontend.pool.bus.name, cid, %peer, error, "TLS handshake failed");
        return;
    }
    if frontend.turns_away() {
        return;
    }
    let (session, registration) = frontend.open_session((cid, peer), accepted_at);
    connection::run(frontend, session, read, port, (registration, counted)).await;
}

/// Says INFO and has everything sealed, in the order that the listener asks for.
async fn secure(
    frontend: &Frontend,
    tls: &ListenTls,
    port: &Port,
    read: &mut ReadHalf,
    info: Vec<u8>,
) -> io::Result<()> {
    let mut out = Outbox::new(Retention::UntilWritten);
    if !tls.handshake_first {
        out.push(&info);
        write_all(port, &mut out).await?;
    }
    // A component that says nothing keeps nobody waiting.
    let first = poll_fn(|cx| socket::poll_peek(read, cx)).await?;
    if tls.available && first.is_some_and(|first| first != HANDSHAKE) {
        return Ok(());
    }
    let _turn = frontend.handshakes.acquire().await;
    port.secure(Tls::server(&tls.server)?);
    poll_fn(|cx| poll_handshake(port, read, cx)).await?;
    if tls.handshake_first {
        out.push(&info);
        write_all(port, &mut out).await?;
    }
    Ok(())
}

fn poll_handshake(port: &Port, read: &mut ReadHalf, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut nothing = Outbox::new(Retention::UntilWritten);
    loop {
        // Nothing is opened before the handshake is over, and then it is the session's to read.
        let opened = port.poll_handshake(read, cx);
        if let Flush::Dead(kind) = port.flush(&mut nothing) {
            return Poll::Ready(Err(kind.into()));
        }
        ready!(opened)?;
        if port.take_secured() {
            return Poll::Ready(Ok(()));
        }
    }
}

async fn write_all(port: &Port, out: &mut Outbox) -> io::Result<()> {
    poll_fn(|cx| {
        loop {
            match port.flush(out) {
                Flush::Done => return Poll::Ready(Ok(())),
                Flush::Dead(kind) => return Poll::Ready(Err(kind.into())),
                Flush::Full => ready!(port.poll_writable(cx)),
            }
        }
    })
    .await
}
