//! Accepts components, and says INFO to them (R17).

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use super::driver::{self, Shared};
use super::session::Session;
use crate::net::{Port, socket};
use crate::proto::info::{FirstInfo, first_info};

/// Pause after a failed accept, such as for want of descriptors: no spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What natsmux says of itself to components, and how many it takes.
#[derive(Debug)]
pub struct Identity {
    /// Stable over failovers; new at every start.
    pub server_id: String,
    /// The instance's name.
    pub server_name: String,
    /// Sessions that the daemon takes.
    pub max_connections: Cell<usize>,
    /// Sessions that the daemon has.
    pub connections: Cell<usize>,
    /// Sessions that the daemon has had.
    pub next_cid: Cell<u64>,
}

/// Accepts on one address until the bus drains.
pub async fn accept(listener: TcpListener, shared: Rc<Shared>, identity: Rc<Identity>) {
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
                welcome(stream, peer, &shared, &identity);
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

fn welcome(stream: TcpStream, peer: SocketAddr, shared: &Rc<Shared>, identity: &Rc<Identity>) {
    socket::tune(&stream);
    let cid = identity.next_cid.get() + 1;
    identity.next_cid.set(cid);
    let local = stream.local_addr().unwrap_or(peer);
    let (mut info, max_payload) = {
        let bus = shared.pool.bus.borrow();
        let infos: Vec<_> = bus.roster.infos().collect();
        let first = FirstInfo {
            server_id: &identity.server_id,
            server_name: &identity.server_name,
            host: &local.ip().to_string(),
            port: local.port(),
            client_ip: &peer.ip().to_string(),
            client_id: cid,
        };
        let max_payload = infos.iter().map(|info| info.max_payload).min();
        (
            first_info(&infos, &first),
            max_payload.unwrap_or(1024 * 1024),
        )
    };
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
    let now = Instant::now();
    let session = {
        let mut bus = shared.pool.bus.borrow_mut();
        bus.counters.sessions_opened += 1;
        Session::new(max_payload, now, &bus)
    };
    debug!(bus = shared.pool.name, cid, %peer, "session opened");
    let (read, write) = stream.into_split();
    let port = Rc::new(Port::new(write));
    let (shared, identity) = (Rc::clone(shared), Rc::clone(identity));
    identity.connections.set(identity.connections.get() + 1);
    let tasks = shared.tasks.clone();
    tasks.spawn_local(async move {
        driver::run(shared, session, read, port, cid).await;
        identity.connections.set(identity.connections.get() - 1);
    });
}
