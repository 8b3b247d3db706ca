//! Accepts components, and says INFO to them (R17).

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tracing::{debug, warn};

use super::connection;
use super::frontend::{self, Counted, Frontend};
use super::handshake;
use crate::catch_panic::catch_panic;
use crate::net::socket::{self, Listener, Stream};
use crate::net::{Port, now};

/// Pause after a failed accept, such as for want of descriptors: no spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts on one address until the bus drains.
pub async fn accept(listener: Listener, frontend: Rc<Frontend>) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = frontend.closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                // Others must still be let in.
                let _ = catch_panic(|| welcome(stream, peer, &frontend));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(bus = frontend.pool.bus.name, %error, "can't accept connections, retrying");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn welcome(stream: Stream, peer: SocketAddr, frontend: &Rc<Frontend>) {
    socket::tune(&stream);
    let identity = Rc::clone(&frontend.identity);
    let cid = identity.next_cid.get() + 1;
    identity.next_cid.set(cid);
    if frontend.rejects_in_outage() {
        debug!(bus = frontend.pool.bus.name, %peer, "connection turned away in an outage");
        return;
    }
    let ends = (stream.local_addr(), stream.peer_addr());
    let full = identity.connections.get() >= identity.max_connections.get();
    let tls = frontend.tls();
    if !full && (tls.is_some() || frontend.wants_relay(now())) {
        let (frontend, counted) = (Rc::clone(frontend), Counted::new(identity));
        let tasks = frontend.tasks.clone();
        tasks.spawn_local(handshake::run(frontend, tls, stream, (cid, peer), counted));
        return;
    }
    let mut info = frontend::info(ends, (cid, None), usize::MAX, frontend);
    if full {
        info.extend_from_slice(b"-ERR 'maximum connections exceeded'\r\n");
    }
    if !socket::send_first(&stream, &info) || full {
        debug!(bus = frontend.pool.bus.name, %peer, full, "connection turned away");
        return;
    }
    let (session, registration) = frontend.open_session((cid, peer), frontend.offer(), now());
    let (read, write) = stream.into_split();
    let port = Rc::new(Port::new(write));
    let counted = Counted::new(identity);
    let connection = connection::run(
        Rc::clone(frontend),
        session,
        read,
        port,
        None,
        (registration, counted),
    );
    frontend.tasks.spawn_local(connection);
}
