//! Certificates and keys from PEM files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::{Resumption, WebPkiServerVerifier};
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs::default_provider;
#[cfg(not(feature = "aws-lc-rs"))]
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::config::{TlsFiles, TlsVersion};

/// The type of a subject's field that is its common name.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

static ONLY_13: &[&SupportedProtocolVersion] = &[&TLS13];

/// Why TLS can't be had from what was written: the operator's fault. Shows no key.
#[derive(Debug, Error)]
pub enum TlsFileError {
    /// It can't be read, or isn't PEM.
    #[error("{}: {error}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: rustls::pki_types::pem::Error,
    },
    /// There is no certificate in it.
    #[error("{}: expected certificates in PEM", .0.display())]
    NoCertificate(PathBuf),
    /// Certificate and key don't belong together, or can't be used.
    #[error("{}: {error}", .path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        error: rustls::Error,
    },
    /// A listener has nothing to show.
    #[error("expected `cert` and `key`")]
    NoPair,
    /// The host has no roots.
    #[error("this host has no certificates of authorities that are trusted: write `ca`")]
    NoRoots,
    /// The name isn't one.
    #[error("server_name {0:?}: expected a host name or an IP address")]
    Name(String),
}

/// TLS where natsmux connects: its certificate, if any, and the authorities that it trusts.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    /// For handshakes that resume no session.
    anew: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    digest: [u8; 32],
    ends: Option<SystemTime>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

/// TLS where natsmux accepts: its certificate, and the authorities of clients, if they need one.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    ends: Option<SystemTime>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files: the authorities that are trusted, or the host's; the certificate to show,
    /// if any. `server_name` is what peers must prove to be, in place of what was dialled.
    ///
    /// # Errors
    /// [`TlsFileError`]: the first file that can't be used.
    pub fn load(files: &TlsFiles, server_name: Option<&str>) -> Result<Self, TlsFileError> {
        let provider = Arc::new(default_provider());
        let mut digest = Sha256::new();
        digest.update(format!("{:?} {server_name:?}", files.min_version));
        let trusted = match &files.ca {
            Some(ca) => certificates(ca)?,
            None => Vec::new(),
        };
        for one in &trusted {
            digest.update(one);
        }
        let roots = Arc::new(match &files.ca {
            Some(ca) => roots(ca, trusted)?,
            None => system_roots(&mut digest)?,
        });
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|_| TlsFileError::NoRoots)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(files.min_version))
            .map_err(|error| unusable(files.ca.as_deref(), error))?
            .with_webpki_verifier(verifier);
        let mut ends = None;
        let config = match &files.pair {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates(cert)?;
                for one in &chain {
                    digest.update(one);
                }
                ends = first_end(&chain);
                let config = builder.with_client_auth_cert(chain, private_key(key)?);
                config.map_err(|error| unusable(Some(cert), error))?
            }
        };
        let mut anew = config.clone();
        anew.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            anew: Arc::new(anew),
            server_name: server_name.map(name).transpose()?,
            digest: digest.finalize().into(),
            ends,
        })
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// This side of a handshake that resumes nothing: the peer shows its certificate, and it is
    /// verified.
    pub fn anew(mut self) -> Self {
        self.config = Arc::clone(&self.anew);
        self
    }

    /// For a stream of tokio's: what isn't on the data path.
    pub fn connector(&self) -> TlsConnector {
        self.config().into()
    }

    /// A digest of authorities, certificate, name and versions.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// When the certificate that is shown ends, or one between it and its authority.
    pub fn ends(&self) -> Option<SystemTime> {
        self.ends
    }

    /// The name that a peer at `host` must have in its certificate.
    ///
    /// # Errors
    /// `host` is neither a name nor an address.
    pub fn name_of(&self, host: &str) -> Result<ServerName<'static>, TlsFileError> {
        self.server_name.clone().map_or_else(|| name(host), Ok)
    }
}

impl ServerTls {
    /// Reads the files: the certificate to show, and the authorities of clients' certificates, if
    /// these must have any.
    ///
    /// # Errors
    /// [`TlsFileError`]: the first file that can't be used.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsFileError> {
        let (cert, key) = files.pair.as_ref().ok_or(TlsFileError::NoPair)?;
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions(files.min_version))
            .map_err(|error| unusable(Some(cert), error))?;
        let builder = match &files.ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(roots(ca, certificates(ca)?)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|_| TlsFileError::NoCertificate(ca.clone()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates(cert)?;
        let ends = first_end(&chain);
        let config = builder.with_single_cert(chain, private_key(key)?);
        let config = config.map_err(|error| unusable(Some(cert), error))?;
        Ok(Self {
            config: Arc::new(config),
            ends,
        })
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// For a stream of tokio's: what isn't on the data path.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.config().into()
    }

    /// When the certificate that is shown ends, or one between it and its authority.
    pub fn ends(&self) -> Option<SystemTime> {
        self.ends
    }
}

/// When the first of these certificates ends; `None` where none can be read.
pub(super) fn first_end(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let ends = chain.iter().filter_map(|der| {
        let certificate = x509_cert::Certificate::from_der(der).ok()?;
        let not_after = certificate.tbs_certificate.validity.not_after;
        UNIX_EPOCH.checked_add(not_after.to_unix_duration())
    });
    ends.min()
}

/// The common names and DNS names in a certificate; none where it can't be read.
pub(super) fn names_in(der: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = x509_cert::Certificate::from_der(der) else {
        return Vec::new();
    };
    let certificate = certificate.tbs_certificate;
    let fields = certificate
        .subject
        .0
        .iter()
        .flat_map(|field| field.0.iter());
    let common = fields.filter(|field| field.oid == COMMON_NAME);
    let common = common.filter_map(|field| {
        let text = std::str::from_utf8(field.value.value());
        text.ok().map(str::to_owned)
    });
    let mut names: Vec<String> = common.collect();
    if let Ok(Some((_, others))) = certificate.get::<SubjectAltName>() {
        names.extend(others.0.into_iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.to_string()),
            _ => None,
        }));
    }
    names
}

fn unusable(path: Option<&Path>, error: rustls::Error) -> TlsFileError {
    let path = path.unwrap_or_else(|| Path::new("tls")).to_owned();
    TlsFileError::Unusable { path, error }
}

fn versions(least: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match least {
        TlsVersion::Tls12 => ALL_VERSIONS,
        TlsVersion::Tls13 => ONLY_13,
    }
}

fn name(text: &str) -> Result<ServerName<'static>, TlsFileError> {
    ServerName::try_from(text.to_owned()).map_err(|_| TlsFileError::Name(text.to_owned()))
}

fn unreadable(path: &Path, error: rustls::pki_types::pem::Error) -> TlsFileError {
    let path = path.to_owned();
    TlsFileError::Unreadable { path, error }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, error))?;
    let found: Result<Vec<_>, _> = found.collect();
    let found = found.map_err(|error| unreadable(path, error))?;
    if found.is_empty() {
        return Err(TlsFileError::NoCertificate(path.to_owned()));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, error))
}

fn roots(
    path: &Path,
    trusted: Vec<CertificateDer<'static>>,
) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for found in trusted {
        roots
            .add(found)
            .map_err(|error| unusable(Some(path), error))?;
    }
    Ok(roots)
}

fn system_roots(digest: &mut Sha256) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for one in &found.certs {
        digest.update(one);
    }
    // One that the library can't read is one that isn't trusted.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(TlsFileError::NoRoots);
    }
    Ok(roots)
}
