//! Cells that the tasks of one worker share: the bus, and each trunk.

use std::cell::{Cell, OnceCell, Ref, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::SystemTime;

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::operator_log::OperatorLog;
use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::net::Port;
use crate::net::tls::ClientTls;
use crate::proto::connect::IdentityId;
use crate::upstream::bus::{Bus, Turn};
use crate::upstream::trunk::Trunk;

/// The buffer that a readable socket borrows: one per worker.
pub type ReadBuffer = Rc<RefCell<Vec<u8>>>;

/// The machine of a bus, and what those share who drive its trunks.
#[derive(Debug)]
pub struct BusCell {
    /// The bus's name, for logs.
    pub name: String,
    /// The worker's read buffer.
    pub buffer: ReadBuffer,
    machine: RefCell<Bus>,
    /// TLS towards brokers: natsmux's certificate, and the authorities that it trusts.
    pub(super) tls: RefCell<Option<ClientTls>>,
    /// The same for identities that have a certificate of their own.
    identity_tls: RefCell<BTreeMap<IdentityId, ClientTls>>,
    pub(super) log: RefCell<OperatorLog>,
}

impl BusCell {
    pub(super) fn new(name: String, machine: Bus, buffer: ReadBuffer) -> Self {
        Self {
            log: RefCell::new(OperatorLog::new(name.clone())),
            name,
            buffer,
            machine: RefCell::new(machine),
            tls: RefCell::new(None),
            identity_tls: RefCell::default(),
        }
    }

    /// Sets what natsmux says to brokers in TLS from now on. Returns whether that is another than
    /// before.
    pub fn set_tls(&self, tls: Option<ClientTls>) -> bool {
        let digest = |tls: &Option<ClientTls>| tls.as_ref().map(ClientTls::digest);
        let is_new = digest(&self.tls.borrow()) != digest(&tls);
        *self.tls.borrow_mut() = tls;
        is_new
    }

    /// Sets the certificates that identities show in place of the bus's. Returns those that show
    /// another one than before.
    pub fn set_identity_tls(&self, tls: BTreeMap<IdentityId, ClientTls>) -> Vec<IdentityId> {
        let digest = |tls: &ClientTls| tls.digest();
        let before = self.identity_tls.replace(tls);
        let now = self.identity_tls.borrow();
        let ids: BTreeSet<_> = before.keys().chain(now.keys()).copied().collect();
        let is_other = |id: &IdentityId| before.get(id).map(digest) != now.get(id).map(digest);
        ids.into_iter().filter(is_other).collect()
    }

    /// What an identity says to brokers in TLS.
    pub(super) fn tls_of(&self, identity: Option<IdentityId>) -> Option<ClientTls> {
        let own = self.identity_tls.borrow();
        let own = identity.and_then(|id| own.get(&id).cloned());
        own.or_else(|| self.tls.borrow().clone())
    }

    /// What a probe says in TLS: where the bus has no certificate, an identity's.
    pub(super) fn tls_of_probes(&self) -> Option<ClientTls> {
        let own = self.tls.borrow().clone();
        let has_one = own.as_ref().is_some_and(|tls| tls.ends().is_some());
        let identity = self.identity_tls.borrow().values().next().cloned();
        identity.filter(|_| !has_one).or(own)
    }

    /// When the certificate ends that natsmux shows to brokers.
    pub fn certificate_ends(&self) -> Option<SystemTime> {
        self.tls.borrow().as_ref()?.ends()
    }

    /// Borrows the machine to look at it.
    pub fn borrow(&self) -> Ref<'_, Bus> {
        self.machine.borrow()
    }

    /// Calls a machine of the bus at `now`.
    pub fn turn<T>(&self, now: Instant, call: impl FnOnce(&mut Turn<'_>) -> T) -> T {
        call(&mut Turn::new(now, &mut self.machine.borrow_mut()))
    }

    /// Borrows the machine to change it.
    pub fn borrow_mut(&self) -> RefMut<'_, Bus> {
        self.machine.borrow_mut()
    }
}

/// A trunk, and what its driver and its sessions share.
#[derive(Debug)]
pub struct TrunkCell {
    /// The machine.
    pub machine: RefCell<Trunk>,
    ports: RefCell<SmallVec<[Option<Rc<Port>>; 1]>>,
    waker: RefCell<Option<Waker>>,
    woken: Cell<bool>,
    failed: Cell<bool>,
    /// Of a relay: told once its broker has said INFO, or won't.
    pub(super) greeted: OnceCell<Box<Notify>>,
}

impl TrunkCell {
    pub(super) fn new(machine: Trunk) -> Self {
        Self {
            machine: RefCell::new(machine),
            ports: RefCell::default(),
            waker: RefCell::new(None),
            woken: Cell::new(false),
            failed: Cell::new(false),
            greeted: OnceCell::new(),
        }
    }

    /// Notes that it panicked. Returns whether that is news.
    pub(super) fn fail(&self) -> bool {
        !self.failed.replace(true)
    }

    /// Has its machine look at what the bus has changed.
    pub(super) fn wake_machine(&self) {
        self.woken.set(true);
        self.wake();
    }

    /// Wakes the tasks of its sessions.
    pub(super) fn wake_sessions(&self) {
        for port in self.ports.borrow().iter().flatten() {
            port.wake();
        }
    }

    /// Whether it panicked: its sessions must close.
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// Lets the trunk's driver run: its machine has something to do.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }

    pub(super) fn take_woken(&self) -> bool {
        self.woken.take()
    }

    /// The socket of a session, for a flush.
    pub(super) fn port(&self, session: SessionId) -> Option<Rc<Port>> {
        self.ports.borrow().get(session.0 as usize)?.clone()
    }

    pub(super) fn set_port(&self, session: SessionId, port: Option<Rc<Port>>) {
        let mut ports = self.ports.borrow_mut();
        let at = session.0 as usize;
        if ports.len() <= at {
            ports.resize(at + 1, None);
        }
        ports[at] = port;
    }
}
