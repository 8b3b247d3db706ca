//! Accepts components, and says INFO to them (R17).

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
    let mut info = info(&stream, cid, shared);
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
    identity.connections.set(identity.connections.get() + 1);
    let tasks = shared.tasks.clone();
    tasks.spawn_local(async move {
        driver::run(shared, session, read, port, cid).await;
        identity.connections.set(identity.connections.get() - 1);
    });
}

/// The INFO for one component (R17), from the last INFO of each broker.
pub(super) fn info(stream: &TcpStream, cid: u64, shared: &Shared) -> Vec<u8> {
    let address = |addr: io::Result<SocketAddr>| addr.ok().map(|addr| (addr.ip(), addr.port()));
    let unknown = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let (host, port) = address(stream.local_addr()).unwrap_or(unknown);
    let (client_ip, _) = address(stream.peer_addr()).unwrap_or(unknown);
    let bus = shared.pool.bus.borrow();
    let brokers: Vec<_> = bus.roster.infos().collect();
    let local = FirstInfo {
        server_id: &shared.identity.server_id,
        server_name: &shared.identity.server_name,
        host: &host.to_string(),
        port,
        client_ip: &client_ip.to_string(),
        client_id: cid,
    };
    first_info(&brokers, &local)
}
