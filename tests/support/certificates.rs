//! Certificates of an authority of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, date_time_ymd,
};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

/// Names that a broker or natsmux on loopback is dialled by.
const OWN_NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// The kind of a certificate's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA of 2,048 bits.
    Rsa,
}

/// An authority, and the folder with what it has signed.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate's file.
    pub cert: PathBuf,
    /// The key's file.
    pub key: PathBuf,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two of the same name would be taken for one whose signature is wrong.
        let name = format!("authority of {}", folder.path().display());
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let own = params.self_signed(&key).expect("a certificate");
        fs::write(folder.path().join("ca.pem"), own.pem()).expect("a file");
        let issuer = Issuer::new(params, key);
        Self { folder, issuer }
    }

    /// The file of its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A client that trusts it, and shows no certificate.
    pub fn client_config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.ca()).expect("a certificate");
        roots.add(ca).expect("an authority");
        ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// A client that trusts it, and shows this certificate.
    pub fn client_config_with(&self, certificate: &Certificate) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.ca()).expect("a certificate");
        roots.add(ca).expect("an authority");
        let own = CertificateDer::from_pem_file(&certificate.cert).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("a key");
        ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![own], key)
            .expect("a certificate and its key")
    }

    /// A certificate for a broker or natsmux on loopback.
    pub fn certify(&self, file: &str, kind: KeyKind) -> Certificate {
        self.sign(file, kind, &OWN_NAMES, |_| {})
    }

    /// A certificate for another name.
    pub fn certify_name(&self, file: &str, name: &str) -> Certificate {
        self.sign(file, KeyKind::P256, &[name], |_| {})
    }

    /// One that has run out.
    pub fn certify_expired(&self, file: &str) -> Certificate {
        self.sign(file, KeyKind::P256, &OWN_NAMES, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        })
    }

    fn sign(
        &self,
        file: &str,
        kind: KeyKind,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("good names");
        change(&mut params);
        let path = |end: &str| self.folder.path().join(format!("{file}.{end}"));
        let (cert, key) = (path("pem"), path("key"));
        let pair = match kind {
            KeyKind::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            KeyKind::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
            KeyKind::Rsa => KeyPair::from_pem(&rsa_key(&key)),
        };
        let pair = pair.expect("a key");
        let signed = params.signed_by(&pair, &self.issuer);
        fs::write(&cert, signed.expect("a certificate").pem()).expect("a file");
        fs::write(&key, pair.serialize_pem()).expect("a file");
        Certificate { cert, key }
    }
}

/// No Rust library of the tests makes one.
fn rsa_key(path: &Path) -> String {
    let status = Command::new("openssl")
        .args([
            "genpkey",
            "-quiet",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
        ])
        .arg("-out")
        .arg(path)
        .status();
    assert!(
        status
            .expect("openssl runs: `make test` installs it")
            .success()
    );
    fs::read_to_string(path).expect("a key")
}

impl Certificate {
    /// A broker's `tls` with it, and `more` in that.
    pub fn broker_tls(&self, more: &str) -> String {
        let (cert, key) = (self.cert.display(), self.key.display());
        format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\"\n {more} }}")
    }

    /// The keys `cert` and `key` of natsmux's configuration.
    pub fn keys(&self) -> String {
        let (cert, key) = (self.cert.display(), self.key.display());
        format!("cert = \"{cert}\"\nkey = \"{key}\"\n")
    }
}
