//! R16: who may start while no broker lives.
//!
//! A component gives up when INFO…PONG takes more than about 2 s, so a CONNECT whose
//! credentials a broker of this bus has accepted before is answered at once. Only a salted
//! digest of the credentials is remembered, in memory.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use super::trouble::IdentityDigest;
use crate::config::Admit;
use crate::proto::connect::ConnectInfo;

/// Digests kept; beyond that, new ones aren't remembered.
const KNOWN_MAX: usize = 65_536;

/// The credentials that a broker of this bus has accepted.
#[derive(Debug)]
pub struct Admission {
    salt: RandomState,
    known: BTreeSet<u64>,
}

impl Admission {
    /// Nobody is known. The salt is an input, so that this stays free of randomness.
    pub fn new(salt: RandomState) -> Self {
        Self {
            salt,
            known: BTreeSet::new(),
        }
    }

    /// A broker accepted these credentials.
    pub fn remember(&mut self, connect: &ConnectInfo) {
        if self.known.len() < KNOWN_MAX {
            self.known.insert(self.digest(connect));
        }
    }

    /// A broker refused credentials that were accepted before.
    pub fn forget(&mut self, connect: &ConnectInfo) {
        let digest = self.digest(connect);
        self.known.remove(&digest);
    }

    /// Whether a CONNECT may be answered before a broker has judged it.
    pub fn admits(&self, connect: &ConnectInfo, policy: Admit, no_auth_anywhere: bool) -> bool {
        match policy {
            Admit::Always => true,
            Admit::Verified => false,
            Admit::Known => no_auth_anywhere || self.known.contains(&self.digest(connect)),
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
        self.salt.hash_one(credentials)
    }
}
