//! The state that the listeners and connections of a bus share, and natsmux's identity.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::places::Places;
use super::registry::{Registration, Registry};
use super::session::Session;
use crate::clock::Instant;
use crate::net::tls::ServerTls;
use crate::proto::info::{FirstInfo, TlsOffer, first_info};
use crate::upstream::Turn;
use crate::upstream::brokers::roster::Offer;
use crate::upstream::io::pool::Pool;

/// Passwords that are verified at a time.
const VERIFICATIONS: usize = 2;

/// How the components of a bus are spoken to.
#[derive(Clone, Debug)]
pub struct ListenTls {
    /// The certificate, and whom it believes.
    pub server: ServerTls,
    /// Whether the handshake comes before INFO.
    pub handshake_first: bool,
    /// Whether plain text will do.
    pub available: bool,
    /// Whether components need a certificate.
    pub verify: bool,
}

/// The state that all connections of a bus share.
#[derive(Debug)]
pub struct Frontend {
    /// The bus's trunks.
    pub pool: Rc<Pool>,
    /// Listeners that don't take components yet.
    pub starting: Cell<usize>,
    /// Its connections, for monitoring.
    pub connections: Rc<Registry>,
    /// Natsmux as components see it.
    pub identity: Rc<Identity>,
    tls: RefCell<Option<Rc<ListenTls>>>,
    /// Handshakes on their way.
    pub(super) handshakes: Rc<Places>,
    /// Links that wait for a component's signature.
    pub(super) relays: Rc<Places>,
    /// When a component last signed with a key that natsmux doesn't hold.
    pub(super) relay_asked_at: Cell<Option<Instant>>,
    /// Passwords that are being verified: each takes a processor.
    pub(super) verifications: Arc<Semaphore>,
    /// Ends the listeners.
    pub(super) closed: CancellationToken,
    /// Connections end once what they sent is carried out. `closed` says the same behind a lock,
    /// and each pass looks here.
    pub(super) draining: Cell<bool>,
    /// The bus's listeners and connections.
    pub tasks: TaskTracker,
}

impl Frontend {
    /// A bus with so many listeners that don't take components yet, and no connections.
    pub fn new(pool: Rc<Pool>, starting: usize, identity: Rc<Identity>) -> Self {
        Self {
            pool,
            starting: Cell::new(starting),
            connections: Rc::default(),
            identity,
            tls: RefCell::new(None),
            handshakes: Rc::default(),
            relays: Rc::default(),
            relay_asked_at: Cell::new(None),
            verifications: Arc::new(Semaphore::new(VERIFICATIONS)),
            closed: CancellationToken::new(),
            draining: Cell::new(false),
            tasks: TaskTracker::new(),
        }
    }

    /// How components that come from now on are spoken to; `None`: in plain text.
    pub fn tls(&self) -> Option<Rc<ListenTls>> {
        self.tls.borrow().clone()
    }

    /// Sets how components that come from now on are spoken to.
    pub fn set_tls(&self, tls: Option<ListenTls>) {
        *self.tls.borrow_mut() = tls.map(Rc::new);
    }

    /// A session for a component that was accepted at `now` and told `offer`, and its entry for
    /// monitoring.
    pub(super) fn open_session(
        &self,
        (cid, peer): (u64, SocketAddr),
        offer: Offer,
        now: Instant,
    ) -> (Session, Registration) {
        let session = {
            let mut bus = self.pool.bus.borrow_mut();
            bus.counters_mut().sessions_opened += 1;
            Session::new(offer, &Turn::new(now, &mut bus))
        };
        debug!(bus = self.pool.bus.name, cid, %peer, "session opened");
        (session, self.connections.enter(cid, peer, now))
    }

    /// The offer that all brokers have in common now.
    pub(super) fn offer(&self) -> Offer {
        self.pool.bus.borrow().roster().offer()
    }

    /// Whether who comes now is let go before INFO: no broker has served for long (R37).
    pub(super) fn rejects_in_outage(&self) -> bool {
        let mut bus = self.pool.bus.borrow_mut();
        let is_revealed = bus.reveals_outage();
        bus.counters_mut().outage_rejections += u64::from(is_revealed);
        is_revealed
    }

    /// Has each connection look at an outage that is to be revealed, for as long as the bus takes
    /// components.
    pub async fn watch_outage(self: Rc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.closed.cancelled() => return,
                () = self.pool.outage_revealed() => self.connections.wake_all(),
            }
        }
    }

    /// natsmux shuts down, or the bus is removed: nobody is let in, and everybody is let go once
    /// what it sent is carried out.
    pub fn drain(&self) {
        self.closed.cancel();
        self.draining.set(true);
        self.connections.wake_all();
    }
}

/// Natsmux as components see it, and how many it takes.
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
    /// Of the nonces; random.
    pub key: [u8; 32],
}

impl Identity {
    /// The nonce of one connection: nobody can guess another's, and none comes twice.
    pub(super) fn nonce(&self, cid: u64) -> String {
        // A key of any length will do.
        let mac = Hmac::<Sha256>::new_from_slice(&self.key).map(|mut mac| {
            mac.update(&cid.to_be_bytes());
            mac.finalize().into_bytes()
        });
        mac.map(|mac| BASE64URL_NOPAD.encode(&mac[..NONCE]))
            .unwrap_or_default()
    }
}

/// Random bytes of a nonce, as many as nats-server has.
const NONCE: usize = 11;

/// One of the connections that the daemon has, until it is dropped.
#[derive(Debug)]
pub(super) struct Counted(Rc<Identity>);

impl Counted {
    pub(super) fn new(identity: Rc<Identity>) -> Self {
        identity.connections.set(identity.connections.get() + 1);
        Self(identity)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

/// The two addresses of a connection, natsmux's own first.
pub(super) type Ends = (io::Result<SocketAddr>, io::Result<SocketAddr>);

/// The INFO for one component (R17), whose account takes payloads of `most` bytes; with a broker's
/// nonce where it is to sign that one.
pub(super) fn info(
    (local, peer): Ends,
    (cid, nonce): (u64, Option<&str>),
    most: usize,
    frontend: &Frontend,
) -> Vec<u8> {
    let address = |addr: io::Result<SocketAddr>| addr.ok().map(|addr| (addr.ip(), addr.port()));
    let unknown = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let (host, port) = address(local).unwrap_or(unknown);
    let (client_ip, _) = address(peer).unwrap_or(unknown);
    let nonce = nonce.map_or_else(|| frontend.identity.nonce(cid), str::to_owned);
    let bus = frontend.pool.bus.borrow();
    let brokers = bus.roster().offered();
    let tls = frontend.tls.borrow();
    let tls = tls.as_deref();
    let local = FirstInfo {
        server_id: &frontend.identity.server_id,
        server_name: &frontend.identity.server_name,
        host: &host.to_string(),
        port,
        client_ip: &client_ip.to_string(),
        client_id: cid,
        jetstream: !bus.settings().is_independent(),
        auth_required: bus.auth_required(),
        max_payload: most,
        nonce: &nonce,
        is_signed: bus.identities().need_signatures(),
        tls: tls.map(|tls| TlsOffer {
            is_required: !tls.available,
            verifies: tls.verify,
        }),
    };
    first_info(&brokers, &local)
}
