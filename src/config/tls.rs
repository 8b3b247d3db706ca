//! TLS towards brokers (`[bus.tls]`) and components (`[bus.listen_tls]`).

use std::path::PathBuf;

use super::choice::{TlsMode, TlsVersion};
/// Files and versions of one side of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that are trusted, in PEM.
    pub ca: Option<PathBuf>,
    /// The certificate, with those between it and its authority, and its key, in PEM.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// The oldest version that is spoken. Default: 1.2.
    pub min_version: TlsVersion,
}

/// How the brokers of a bus are spoken to. Changes on reload: yes, and the files are read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// For brokers that are written without `tls://`. Default: off without the table, required
    /// with it.
    pub mode: TlsMode,
    /// `ca`: the authorities of brokers' certificates; default: the host's. `cert` and `key`: the
    /// certificate that natsmux shows; default: none. `min_version`.
    pub files: TlsFiles,
    /// The name in brokers' certificates, where it isn't what was dialled. Default: none.
    pub server_name: Option<String>,
}

/// How components are spoken to. Changes on reload: the files are read again, the rest not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenTlsConfig {
    /// `client_ca`: the authorities of components' certificates, which they must have then;
    /// default: none. `cert` and `key`: the certificate of the listener. `min_version`.
    pub files: TlsFiles,
    /// Whether the handshake comes before INFO. Default: false.
    pub handshake_first: bool,
    /// Whether components may speak without TLS as well. Some libraries upgrade by themselves
    /// where it is offered. Default: false.
    pub available: bool,
}
