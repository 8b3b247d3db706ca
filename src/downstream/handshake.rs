//! What comes with a component before it has a session: TLS, and a broker's nonce.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::time::timeout_at;
use tracing::debug;

use super::connection;
use super::frontend::{self, Counted, Ends, Frontend, ListenTls};
use crate::net::socket::{self, ReadHalf, Stream};
use crate::net::tls::Tls;
use crate::net::{Flush, Outbox, Port, Retention, now};
use crate::upstream::brokers::roster::Offer;

/// The first byte of a TLS record that begins a handshake.
const HANDSHAKE: u8 = 22;

/// Runs one connection: its handshake within `auth_timeout`, and then its session.
pub(super) async fn run(
    frontend: Rc<Frontend>,
    tls: Option<Rc<ListenTls>>,
    stream: Stream,
    (cid, peer): (u64, SocketAddr),
    counted: Counted,
) {
    let accepted_at = now();
    let until = accepted_at + frontend.pool.bus.borrow().settings().timings.auth_timeout;
    let ends = (stream.local_addr(), stream.peer_addr());
    let (mut read, write) = stream.into_split();
    let port = Rc::new(Port::new(write));
    let until = std::time::Instant::from(until).into();
    // Boxed, since a session doesn't need its room.
    let secured = Box::pin(timeout_at(until, async {
        let relay = frontend.open_relay().await;
        let nonce = relay.as_ref().map(|relay| &*relay.nonce);
        let to = (ends, cid, nonce);
        let offer = match &tls {
            Some(tls) => secure(&frontend, tls, &port, &mut read, to).await?,
            None => Some(say_info(&frontend, &port, to).await?),
        };
        Ok::<_, io::Error>(offer.map(|offer| (offer, relay)))
    }));
    let ended = tokio::select! {
        biased;
        () = frontend.closed.cancelled() => return,
        ended = secured => ended,
    };
    let (offer, relay) = match ended {
        Ok(Ok(Some(begun))) => begun,
        // It has gone before it began: somebody who looks whether anything listens.
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return note_failure(&frontend, cid, peer, &error.to_string()),
        Err(_) => return note_failure(&frontend, cid, peer, "not over within auth_timeout"),
    };
    if frontend.rejects_in_outage() {
        return;
    }
    let (session, registration) = frontend.open_session((cid, peer), offer, accepted_at);
    if let Some(relay) = &relay {
        // It has none yet.
        let _ = registration.info.nonce.set(relay.nonce.clone());
    }
    let entry = (registration, counted);
    connection::run(frontend, session, read, port, relay, entry).await;
}

fn note_failure(frontend: &Frontend, cid: u64, peer: SocketAddr, error: &str) {
    let bus = &frontend.pool.bus;
    bus.borrow_mut().counters_mut().failed_handshakes += 1;
    debug!(bus = bus.name, cid, %peer, error, "TLS handshake failed");
}

/// Says INFO and has everything sealed, in the order that the listener asks for. Returns the offer
/// that the component was told; `None` where it has gone without a word.
async fn secure(
    frontend: &Frontend,
    tls: &ListenTls,
    port: &Port,
    read: &mut ReadHalf,
    to: Addressee<'_>,
) -> io::Result<Option<Offer>> {
    if tls.handshake_first {
        if first_byte(read).await?.is_none() {
            return Ok(None);
        }
        shake_hands(frontend, tls, port, read).await?;
        return say_info(frontend, port, to).await.map(Some);
    }
    let offer = say_info(frontend, port, to).await?;
    match first_byte(read).await? {
        None => return Ok(None),
        Some(first) if tls.available && first != HANDSHAKE => {}
        Some(_) => shake_hands(frontend, tls, port, read).await?,
    }
    Ok(Some(offer))
}

/// Waits for the component to begin: one that says nothing takes nobody's place.
async fn first_byte(read: &mut ReadHalf) -> io::Result<Option<u8>> {
    poll_fn(|cx| socket::poll_peek(read, cx)).await
}

/// Whom INFO is for: its ends, its number, and the nonce of its relay.
type Addressee<'a> = (Ends, u64, Option<&'a str>);

async fn say_info(
    frontend: &Frontend,
    port: &Port,
    (ends, cid, nonce): Addressee<'_>,
) -> io::Result<Offer> {
    let offer = frontend.offer();
    let mut out = Outbox::new(Retention::UntilWritten);
    out.push(&frontend::info(ends, (cid, nonce), usize::MAX, frontend));
    write_all(port, &mut out).await?;
    Ok(offer)
}

async fn shake_hands(
    frontend: &Frontend,
    tls: &ListenTls,
    port: &Port,
    read: &mut ReadHalf,
) -> io::Result<()> {
    let place = frontend.handshakes.enter().await;
    port.secure(Tls::server(&tls.server)?);
    tokio::select! {
        biased;
        shaken = poll_fn(|cx| poll_handshake(port, read, cx)) => shaken,
        () = place.ended.cancelled() => Err(io::Error::other("gave way to others")),
    }
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
