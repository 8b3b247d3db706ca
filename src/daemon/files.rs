//! Files that the configuration names: keys, and certificates.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::{BusConfig, Config, CredentialsConfig, TlsConfig, TlsFiles};
use crate::identity::credentials::Credentials;
use crate::identity::secret_file::{SecretFileError, read_secret};
use crate::identity::{self, IdentityFault, Loaded};
use crate::net::tls::{ClientTls, ServerTls, TlsFileError};
use crate::proto::connect::Secret;

/// The shortest and the longest key, in bytes.
const KEY_LEAST: usize = 16;
const KEY_MOST: usize = 4096;

/// The keys and certificates of one bus.
#[derive(Debug, Default)]
pub(super) struct BusFiles {
    /// The key with which hosts authenticate what they announce (R29).
    pub(super) presence_key: Option<Secret>,
    /// TLS towards brokers.
    pub(super) tls: Option<ClientTls>,
    /// TLS towards components.
    pub(super) listen_tls: Option<ServerTls>,
    /// Whom natsmux is to brokers, and for whom.
    pub(super) identities: Loaded,
    /// TLS of identities that have a certificate of their own.
    pub(super) identity_tls: Vec<(CredentialsConfig, ClientTls)>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Files {
    /// Those of each bus.
    pub(super) buses: BTreeMap<String, BusFiles>,
    /// TLS of the HTTP listener.
    pub(super) http_tls: Option<ServerTls>,
}

impl Files {
    /// All identities: the bus's name, their own, and their credentials.
    pub(super) fn identities(&self) -> impl Iterator<Item = (&str, &str, &Credentials)> {
        self.buses.iter().flat_map(|(bus, files)| {
            let identities = files.identities.identities.iter();
            identities.map(|one| (&**bus, &*one.name, &one.credentials))
        })
    }

    /// What the identities are that the files hold, for an operator. No secret.
    pub fn describe(&self) -> impl Display {
        let mut lines = String::new();
        for (bus, files) in &self.buses {
            for one in &files.identities.identities {
                let (name, credentials) = (&one.name, &one.credentials);
                let subject = credentials.subject();
                let account = credentials.account();
                let account = account.map(|account| format!(", account {account}"));
                let expires = credentials.expires().map(|at| {
                    let at = humantime::format_rfc3339_seconds(at);
                    format!(", expires {at}")
                });
                let (account, expires) = (account.unwrap_or_default(), expires.unwrap_or_default());
                lines += &format!("identity {bus}/{name} is {subject}{account}{expires}\n");
            }
            if let Some(proxy) = &files.identities.proxy {
                lines += &format!("bus {bus} signs as proxy {}\n", proxy.public());
            }
        }
        lines
    }
}

/// Why a file can't be used: the operator's fault. Never shows what is in it.
#[derive(Debug, Error)]
pub enum FileError {
    /// A certificate, or its key.
    #[error("bus {bus}: TLS: {error}")]
    Tls {
        /// The bus.
        bus: String,
        /// Why.
        error: TlsFileError,
    },
    /// The certificate of the HTTP listener, or its key.
    #[error("http: TLS: {0}")]
    Http(TlsFileError),
    /// A file of an identity.
    #[error("bus {bus}: identity: {error}")]
    Identity {
        /// The bus.
        bus: String,
        /// Why.
        error: IdentityFault,
    },
    /// It can't be read, or everybody may.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// It is no key.
    #[error("{}: expected a text of {KEY_LEAST} to {KEY_MOST} bytes", .0.display())]
    Malformed(PathBuf),
}

/// Reads all files that the configuration names.
///
/// # Errors
/// The first file that can't be used.
pub fn read_files(config: &Config) -> Result<Files, FileError> {
    let read = |bus: &BusConfig| -> Result<_, FileError> { Ok((bus.name.clone(), read_bus(bus)?)) };
    let http_tls = config.http_tls.as_ref().map(ServerTls::load);
    Ok(Files {
        buses: config.buses.iter().map(read).collect::<Result<_, _>>()?,
        http_tls: http_tls.transpose().map_err(FileError::Http)?,
    })
}

fn read_bus(bus: &BusConfig) -> Result<BusFiles, FileError> {
    let fault = |error| FileError::Tls {
        bus: bus.name.clone(),
        error,
    };
    let tls = bus.needs_tls().then(|| {
        let default = TlsConfig::default();
        let tls = bus.tls.as_ref().unwrap_or(&default);
        ClientTls::load(&tls.files, tls.server_name.as_deref())
    });
    let identities = identity::load(bus).map_err(|error| FileError::Identity {
        bus: bus.name.clone(),
        error,
    })?;
    let sources = bus.identities.iter().map(|identity| &identity.credentials);
    let identity_tls = sources.filter_map(|source| {
        let pair = source.pair.clone()?;
        let default = TlsConfig::default();
        let tls = bus.tls.as_ref().unwrap_or(&default);
        let files = TlsFiles {
            pair: Some(pair),
            ..tls.files.clone()
        };
        let loaded = ClientTls::load(&files, tls.server_name.as_deref());
        Some(loaded.map(|loaded| (source.clone(), loaded)))
    });
    let listen_tls = bus
        .listen_tls
        .as_ref()
        .map(|tls| ServerTls::load(&tls.files));
    Ok(BusFiles {
        presence_key: bus.presence_key_file.as_deref().map(read).transpose()?,
        tls: tls.transpose().map_err(fault)?,
        listen_tls: listen_tls.transpose().map_err(fault)?,
        identity_tls: identity_tls.collect::<Result<_, _>>().map_err(fault)?,
        identities,
    })
}

fn read(path: &Path) -> Result<Secret, FileError> {
    let text = read_secret(path)?;
    let key = text.trim();
    if key.len() < KEY_LEAST || key.len() > KEY_MOST {
        return Err(FileError::Malformed(path.to_owned()));
    }
    Ok(Secret::new(key))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_read_from_a_file_that_is_not_everybodys() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        assert!(matches!(
            read(&path),
            Err(FileError::Secret(SecretFileError::Unreadable { .. }))
        ));
        fs::write(&path, "0123456789abcdef\n").expect("written");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("set");
        assert!(matches!(
            read(&path),
            Err(FileError::Secret(SecretFileError::Exposed(_)))
        ));
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("set");
        assert_eq!(read(&path).expect("good").expose(), "0123456789abcdef");
        for bad in ["too short", &"x".repeat(5000)] {
            fs::write(&path, bad).expect("written");
            let error = read(&path).expect_err("refused");
            assert!(!error.to_string().contains(bad), "{error}");
        }
    }
}
