//! The files of identities: read again when they change, and the operator told in time where
//! credentials expire and nobody has renewed them (R38).

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tracing::warn;

use super::files::Files;
use crate::config::Config;
use crate::identity::load::{Fingerprint, fingerprint};

/// How often the files are looked at.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// The part of their life, in percent, after which credentials should have been renewed.
const RENEWED_BY: u32 = 80;

/// When the credentials of one identity should be renewed, and when they expire.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Life {
    bus: String,
    identity: String,
    renewed_by: SystemTime,
    expires: SystemTime,
}

/// The state of the files when they were last read.
#[derive(Debug, Default)]
pub(super) struct CredentialWatch {
    read: Vec<Fingerprint>,
    lives: Vec<Life>,
    /// Those of which the operator knows.
    said: BTreeSet<Life>,
    /// Why they can't be used.
    unusable: Option<String>,
}

/// The state of all identities' files now.
pub(super) fn look(config: &Config) -> Vec<Fingerprint> {
    config.buses.iter().flat_map(fingerprint).collect()
}

impl CredentialWatch {
    /// Whether there is nothing to look at.
    pub(super) fn is_idle(config: &Config) -> bool {
        let has_files = |bus: &crate::config::BusConfig| {
            !bus.identities.is_empty() || bus.proxy_key_file.is_some()
        };
        !config.buses.iter().any(has_files)
    }

    /// The files are as they were when they were read last.
    pub(super) fn is_current(&self, files: &[Fingerprint]) -> bool {
        self.read == files
    }

    /// The files were read when they were in this state.
    pub(super) fn note(&mut self, state: Vec<Fingerprint>, files: &Files) {
        self.read = state;
        self.unusable = None;
        self.lives = files
            .identities()
            .filter_map(|(bus, identity, credentials)| {
                let (issued, expires) = (credentials.issued()?, credentials.expires()?);
                let life = expires.duration_since(issued).unwrap_or_default();
                Some(Life {
                    bus: bus.to_owned(),
                    identity: identity.to_owned(),
                    renewed_by: issued + life * RENEWED_BY / 100,
                    expires,
                })
            })
            .collect();
        self.said.retain(|life| self.lives.contains(life));
    }

    /// The files can't be used as they are, for this reason. Returns whether that is news.
    pub(super) fn is_news(&mut self, error: &str) -> bool {
        self.unusable.replace(error.to_owned()).as_deref() != Some(error)
    }

    /// Tells the operator once of each identity whose credentials should have been renewed by now.
    pub(super) fn warn_of_ends(&mut self, now: SystemTime) {
        for life in &self.lives {
            if life.renewed_by > now || !self.said.insert(life.clone()) {
                continue;
            }
            let expires = humantime::format_rfc3339_seconds(life.expires);
            let (bus, identity) = (&life.bus, &life.identity);
            warn!(bus, identity, %expires, "credentials expire, and the file has no newer ones");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_told_once() {
        let now = SystemTime::now();
        let life = |identity: &str, renewed_by| Life {
            bus: "b".to_owned(),
            identity: identity.to_owned(),
            renewed_by,
            expires: now + EVERY,
        };
        let mut watch = CredentialWatch {
            lives: vec![life("due", now), life("later", now + EVERY)],
            ..CredentialWatch::default()
        };
        watch.warn_of_ends(now);
        assert_eq!(watch.said.len(), 1);
        watch.warn_of_ends(now);
        assert_eq!(watch.said.len(), 1);
        watch.warn_of_ends(now + EVERY);
        assert_eq!(watch.said.len(), 2);
        watch.note(Vec::new(), &Files::default());
        assert!(watch.said.is_empty() && watch.is_current(&[]));
    }
}
