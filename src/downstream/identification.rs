//! Finds out who a component is, without keeping anybody waiting for it.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep_until, timeout_at};
use tracing::warn;

use super::description::Description;
use super::frontend::Frontend;
use super::session::Identified;
use crate::clock::Instant;
use crate::identity::{Judgement, Owner, Presented, Verification};
use crate::net::{Port, peer};
use crate::proto::connect::ConnectInfo;

/// A wrong component hears so as long after its CONNECT, whatever was wrong.
const REFUSED_AFTER: Duration = Duration::from_millis(500);
/// A component that is being identified.
pub(super) type Identification = Pin<Box<dyn Future<Output = Identified>>>;

/// Who somebody is: known now, or later.
pub(super) enum Answer {
    Now(Identified),
    Later(Identification),
}

impl Frontend {
    /// Says who a component is, by its CONNECT, its process and its certificate.
    pub(super) fn identify(
        self: &Rc<Self>,
        connect: &ConnectInfo,
        (cid, nonce): (u64, Option<&str>),
        port: &Port,
        description: &RefCell<Option<Box<Description>>>,
        now: Instant,
    ) -> Answer {
        let bus = self.pool.bus.borrow();
        let identities = bus.identities();
        let socket = port.socket();
        let ends = (socket.peer_addr().ok()).zip(socket.local_addr().ok());
        let owner = ends
            .filter(|_| identities.ask_for_owners())
            .and_then(|ends| self.owner(ends, identities.ask_for_units(), now));
        let names = identities.ask_for_names().then(|| port.peer_names());
        let nonce = match nonce {
            Some(nonce) => nonce.to_owned(),
            None if connect.is_signed() => self.identity.nonce(cid),
            None => String::new(),
        };
        let judgement = identities.judge(&Presented {
            connect,
            nonce: &nonce,
            owner: owner.as_ref(),
            names: &names.unwrap_or_default(),
        });
        *description.borrow_mut() = Some(Box::new(Description {
            user: connect.user.as_ref().map(|user| user.expose().to_owned()),
            owner,
            identity: match &judgement {
                Judgement::Is(_, name) => Some(name.clone()),
                _ => None,
            },
        }));
        let relays = bus.relays_signatures() && connect.is_signed() && !connect.is_bearer();
        drop(bus);
        match judgement {
            Judgement::Is(id, _) => Answer::Now(Identified::As(id)),
            Judgement::PassThrough if relays => Answer::Now(Identified::Relayed),
            Judgement::PassThrough => Answer::Now(Identified::Unknown),
            Judgement::Refused => Answer::Later(Box::pin(refuse(now))),
            Judgement::Verify(verification) => {
                Answer::Later(Box::pin(verify(Rc::clone(self), cid, verification, now)))
            }
        }
    }

    /// The process at the other end of a connection.
    fn owner(
        &self,
        (peer, local): (SocketAddr, SocketAddr),
        with_unit: bool,
        now: Instant,
    ) -> Option<Owner> {
        match peer::owner(peer, local) {
            Ok(found) => {
                let found = found?;
                let cgroup = found.cgroup.filter(|_| with_unit);
                Some(Owner {
                    uid: found.uid,
                    unit: cgroup.and_then(|cgroup| peer::unit_of(cgroup, now)),
                })
            }
            Err(error) => {
                let pool = &self.pool;
                let text = error.to_string();
                if let Some(repeated) = pool.note_repeated(text.as_bytes(), now) {
                    let bus = &pool.bus.name;
                    warn!(
                        bus,
                        error = text,
                        repeated,
                        "can't ask the kernel whose a connection is"
                    );
                }
                None
            }
        }
    }
}

async fn refuse(asked: Instant) -> Identified {
    sleep_until(std::time::Instant::from(asked + REFUSED_AFTER).into()).await;
    Identified::Refused
}

async fn verify(
    frontend: Rc<Frontend>,
    cid: u64,
    verification: Verification,
    asked: Instant,
) -> Identified {
    let patience = frontend.pool.bus.borrow().settings().timings.auth_timeout;
    let until = std::time::Instant::from(asked + patience).into();
    let run = async {
        // It is never closed.
        let turns = Arc::clone(&frontend.verifications);
        let turn = turns.acquire_owned().await.ok()?;
        let running = tokio::task::spawn_blocking(move || {
            // It runs to its end, whether anybody waits for it or not.
            let _turn = turn;
            let is_right = verification.run();
            (verification, is_right)
        });
        running.await.ok()
    };
    let ran = timeout_at(until, run).await;
    let Ok(Some((verification, is_right))) = ran else {
        return refuse(asked).await;
    };
    let judgement = frontend
        .pool
        .bus
        .borrow()
        .identities()
        .verified(&verification, is_right);
    match judgement {
        Judgement::Is(id, name) => {
            if let Some(info) = frontend.connections.get(cid)
                && let Some(description) = &mut *info.description.borrow_mut()
            {
                description.identity = Some(name);
            }
            Identified::As(id)
        }
        _ => refuse(asked).await,
    }
}
