//! Accepts components, and says INFO to them (R17).

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tracing::{debug, warn};

use super::driver;
use super::session::Session;
use super::shared::{self, Counted, Shared};
use crate::contained::contained;
use crate::net::socket::{self, Listener, Stream};
use crate::net::{Port, now};

/// Pause after a failed accept, such as for want of descriptors: no spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts on one address until the bus drains.
pub async fn accept(listener: Listener, shared: Rc<Shared>) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                // Others must still be let in.
                let _ = contained(|| welcome(stream, peer, &shared));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(bus = shared.pool.name, %error, "can't accept connections, retrying");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn welcome(stream: Stream, peer: SocketAddr, shared: &Rc<Shared>) {
    socket::tune(&stream);
    let identity = Rc::clone(&shared.identity);
    let cid = identity.next_cid.get() + 1;
    identity.next_cid.set(cid);
    let ends = (stream.local_addr(), stream.peer_addr());
    let mut info = shared::info(ends, cid, usize::MAX, shared);
    let full = identity.connections.get() >= identity.max_connections.get();
    if full {
        info.extend_from_slice(b"-ERR 'maximum connections exceeded'\r\n");
    }
    if !socket::send_first(&stream, &info) || full {
        debug!(bus = shared.pool.name, %peer, full, "connection turned away");
        return;
    }
    let session = {
        let mut bus = shared.pool.bus.borrow_mut();
        bus.counters.sessions_opened += 1;
        Session::new(now(), &bus)
    };
    debug!(bus = shared.pool.name, cid, %peer, "session opened");
    let (read, write) = stream.into_split();
    let port = Rc::new(Port::new(write));
    let entry = shared.cards.enter(cid, peer, now());
    let counted = Counted::new(identity);
    let connection = driver::run(Rc::clone(shared), session, read, port, (entry, counted));
    shared.tasks.spawn_local(connection);
}
