//! Accepts components, and says INFO to them (R17).

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use super::driver;
use super::session::Session;
use super::shared::{self, Identity, Shared};
use crate::net::{Port, socket};

/// Pause after a failed accept, such as for want of descriptors: no spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts on one address until the bus drains.
pub async fn accept(listener: TcpListener, shared: Rc<Shared>) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                welcome(stream, peer, &shared);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(bus = shared.pool.name, %error, "can't accept, trying on");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn welcome(stream: TcpStream, peer: SocketAddr, shared: &Rc<Shared>) {
    socket::tune(&stream);
    let identity = Rc::clone(&shared.identity);
    let cid = identity.next_cid.get() + 1;
    identity.next_cid.set(cid);
    let mut info = shared::info(&stream, cid, shared);
    let full = identity.connections.get() >= identity.max_connections.get();
    if full {
        info.extend_from_slice(b"-ERR 'maximum connections exceeded'\r\n");
    }
    // A new socket's buffer takes these few bytes at once; asking the runtime whether it
    // is writable would cost a turn of the loop.
    let sent = SockRef::from(&stream).send(&info);
    if full || !matches!(sent, Ok(count) if count == info.len()) {
        debug!(bus = shared.pool.name, %peer, full, "connection turned away");
        return;
    }
    let session = {
        let mut bus = shared.pool.bus.borrow_mut();
        bus.counters.sessions_opened += 1;
        Session::new(Instant::now(), &bus)
    };
    debug!(bus = shared.pool.name, cid, %peer, "session opened");
    let (read, write) = stream.into_split();
    let port = Rc::new(Port::new(write));
    let shared = Rc::clone(shared);
    let counted = Counted::new(identity);
    let tasks = shared.tasks.clone();
    tasks.spawn_local(async move {
        let _counted = counted;
        driver::run(shared, session, read, port, cid).await;
    });
}

/// One of the connections that the daemon has, until it is dropped.
struct Counted(Rc<Identity>);

impl Counted {
    fn new(identity: Rc<Identity>) -> Self {
        identity.connections.set(identity.connections.get() + 1);
        Self(identity)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}
