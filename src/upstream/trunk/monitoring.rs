//! Monitoring of a trunk and its sessions.

use super::Trunk;
use super::slot::Traffic;
use crate::ledger::{SessionId, Subscriptions};
use crate::proto::connect::ConnectInfo;

/// One session for monitoring.
#[derive(Debug)]
pub struct View<'a> {
    /// The CONNECT that it sent.
    pub connect: &'a ConnectInfo,
    /// Its traffic, both ways.
    pub traffic: Traffic,
    /// Bytes that it has not taken yet.
    pub pending_bytes: usize,
    /// Publishes that wait for a broker.
    pub held: u64,
    /// Live subscriptions.
    pub subscription_count: usize,
    /// The table that has them.
    pub subscriptions: &'a Subscriptions,
}

/// Numbers for monitoring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Sessions.
    pub sessions: u64,
    /// Live links.
    pub links: u64,
    /// Subscriptions.
    pub subscriptions: u64,
    /// Publishes that are held, or written to a live link and not yet fenced (R4).
    pub waiting: u64,
    /// Bytes of publishes that wait for a link.
    pub held_bytes: u64,
    /// Bytes in buffers, either way.
    pub buffered_bytes: u64,
    /// Subscriptions with open requests of JetStream consumers (R44).
    pub pulls: u64,
}

impl Trunk {
    /// Returns one session as monitoring shows it.
    pub fn view(&self, session: SessionId) -> Option<View<'_>> {
        let slot = self.sessions.get(session)?;
        Some(View {
            connect: slot.label.as_deref().unwrap_or(&self.connect),
            traffic: slot.traffic,
            pending_bytes: slot.out.pending_bytes(),
            held: slot.held.messages(),
            subscription_count: match self.sessions.len() {
                1 => self.subscriptions.len(),
                _ => self.subscriptions.of(session, None).count(),
            },
            subscriptions: &self.subscriptions,
        })
    }

    /// Numbers for monitoring.
    pub fn gauges(&self) -> Gauges {
        let held = self.sessions.iter().map(|(_, slot)| &slot.held);
        let held = held.chain(std::iter::once(&self.orphans));
        let (messages, bytes) = held.fold((0, 0), |(messages, bytes), held| {
            (messages + held.messages(), bytes + held.bytes())
        });
        let unsettled: u64 = self.links.iter().map(|link| link.account.unsettled()).sum();
        let outboxes = self.sessions.iter().map(|(_, slot)| slot.out.held_bytes());
        let links = self.links.iter().map(|link| link.out.held_bytes());
        Gauges {
            sessions: self.sessions.len() as u64,
            links: self.links.iter().filter(|link| link.is_attached()).count() as u64,
            subscriptions: self.subscriptions.len() as u64,
            waiting: messages + unsettled,
            held_bytes: bytes as u64,
            pulls: self.pulls.as_ref().map_or(0, |pulls| pulls.len() as u64),
            buffered_bytes: (bytes + outboxes.chain(links).sum::<usize>()) as u64,
        }
    }
}
