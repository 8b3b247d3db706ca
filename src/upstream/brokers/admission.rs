//! R16: who may start while no broker lives.
//!
//! A component gives up when INFO…PONG takes more than about 2 s, so a CONNECT whose
//! credentials a broker of this bus has accepted before is answered at once. Only a salted
//! digest of the credentials is remembered, in memory.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::trouble::IdentityDigest;
use crate::clock::Instant;
use crate::config::Admit;
use crate::proto::connect::ConnectInfo;

/// Digests kept; beyond that, the oldest is forgotten.
const KNOWN_MAX: usize = 65_536;
/// How long an acceptance is believed in an outage, since a broker last had a link of it.
const KNOWN_FOR: Duration = Duration::from_secs(3600);

/// The credentials that a broker of this bus has accepted.
#[derive(Debug)]
pub struct Admission {
    salt: RandomState,
    /// When a broker accepted them last.
    known: BTreeMap<IdentityDigest, Instant>,
}

impl Admission {
    /// Nobody is known. The salt is an input, so that this stays free of randomness.
    pub fn new(salt: RandomState) -> Self {
        Self {
            salt,
            known: BTreeMap::new(),
        }
    }

    /// The secret of this bus's digests.
    pub fn salt(&self) -> RandomState {
        self.salt.clone()
    }

    /// A broker accepted these credentials.
    pub fn remember(&mut self, connect: &ConnectInfo, now: Instant) {
        let digest = self.digest(connect);
        if self.known.len() >= KNOWN_MAX && !self.known.contains_key(&digest) {
            let oldest = self.known.iter().min_by_key(|(_, at)| **at);
            if let Some(oldest) = oldest.map(|(digest, _)| *digest) {
                self.known.remove(&oldest);
            }
        }
        self.known.insert(digest, now);
    }

    /// A broker has just had a link with these credentials, and hasn't refused them since.
    pub fn refresh(&mut self, connect: &ConnectInfo, now: Instant) {
        let digest = self.digest(connect);
        if let Some(at) = self.known.get_mut(&digest) {
            *at = now;
        }
    }

    /// A broker refused credentials that were accepted before.
    pub fn forget(&mut self, connect: &ConnectInfo) {
        let digest = self.digest(connect);
        self.known.remove(&digest);
    }

    /// Whether a broker accepted them within this time.
    pub fn is_fresh(&self, connect: &ConnectInfo, within: Duration, now: Instant) -> bool {
        let at = self.known.get(&self.digest(connect));
        at.is_some_and(|at| now.saturating_duration_since(*at) < within)
    }

    /// Whether a CONNECT may be answered before a broker has judged it.
    pub fn admits(
        &self,
        connect: &ConnectInfo,
        policy: Admit,
        no_auth_anywhere: bool,
        now: Instant,
    ) -> bool {
        match policy {
            Admit::Always => true,
            Admit::Verified => false,
            Admit::Known => no_auth_anywhere || self.is_fresh(connect, KNOWN_FOR, now),
        }
    }

    /// The identity of a CONNECT: whatever else it says, brokers judge its credentials.
    pub fn digest(&self, connect: &ConnectInfo) -> IdentityDigest {
        let credentials = (
            &connect.user,
            &connect.pass,
            &connect.auth_token,
            &connect.jwt,
            &connect.nkey,
        );
        match connect.identity {
            // There are no others beside it.
            Some(identity) => self.salt.hash_one(identity),
            None => self.salt.hash_one(credentials),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acceptance_is_believed_for_a_while_and_a_refusal_ends_it() {
        let mut admission = Admission::new(RandomState::new());
        let now = Instant::now();
        let user = |name: &str| {
            let json = format!(r#"{{"user":"{name}","pass":"x"}}"#);
            ConnectInfo::parse(json.as_bytes()).expect("options")
        };
        let (alice, bob) = (user("alice"), user("bob"));
        let admits =
            |admission: &Admission, connect, at| admission.admits(connect, Admit::Known, false, at);
        admission.refresh(&alice, now);
        assert!(!admits(&admission, &alice, now), "nobody accepted her");
        admission.remember(&alice, now);
        let minute = Duration::from_secs(60);
        assert!(admits(&admission, &alice, now + minute));
        assert!(admission.is_fresh(&alice, minute, now));
        assert!(!admission.is_fresh(&alice, minute, now + minute));
        assert!(!admits(&admission, &bob, now));
        assert!(!admits(&admission, &alice, now + KNOWN_FOR), "too long ago");
        admission.refresh(&alice, now + minute);
        assert!(admits(&admission, &alice, now + KNOWN_FOR));
        admission.forget(&alice);
        assert!(!admits(&admission, &alice, now));
    }
}
