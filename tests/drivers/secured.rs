//! TLS of the model brokers.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::certificates::{Authority, KeyKind};

/// What all runs of the process use: keys are chance, and change no trace.
static TLS: OnceLock<(Authority, Arc<ServerConfig>)> = OnceLock::new();

fn tls() -> &'static (Authority, Arc<ServerConfig>) {
    TLS.get_or_init(|| {
        let authority = Authority::new();
        let files = authority.certify("broker", KeyKind::P256);
        let certificate = CertificateDer::from_pem_file(&files.cert).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("they belong together");
        (authority, Arc::new(config))
    })
}

/// The broker's side.
pub fn acceptor() -> TlsAcceptor {
    Arc::clone(&tls().1).into()
}

/// Whom natsmux is to trust.
pub fn authority() -> PathBuf {
    tls().0.ca()
}
