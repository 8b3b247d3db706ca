//! Identities of a bus (`[[bus.identity]]`): what natsmux says to brokers in a component's place,
//! and which components it says it for.

use std::path::PathBuf;

/// One identity. Changes on reload: yes, and its files are read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityConfig {
    /// The name in logs, metrics and listings, 1 to 32 of `a-z 0-9 _ -`, unique in the bus. No
    /// default.
    pub name: String,
    /// The components that may be it.
    pub matches: MatchConfig,
    /// The credentials that natsmux says to brokers.
    pub credentials: CredentialsConfig,
}

/// Conditions on a component, all of which must hold. At least one must be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MatchConfig {
    /// It signs with the key of the identity's own `creds` or `nkey_file`.
    pub same_key: bool,
    /// It signs with this public key.
    pub nkey: Option<String>,
    /// It sends this user, and a password whose hash (argon2 or bcrypt) is in this file.
    pub user: Option<(String, PathBuf)>,
    /// It sends the token that is in this file.
    pub token_file: Option<PathBuf>,
    /// Its process runs as this user: a name in `/etc/passwd`, or a number. Only over loopback.
    pub uid: Option<String>,
    /// Its process belongs to this systemd unit. Only over loopback, with cgroup v2.
    pub unit: Option<String>,
    /// Its certificate has this name: common name or DNS name.
    pub certificate: Option<String>,
    /// Whoever comes. Only where all listeners are loopback's.
    pub anybody: bool,
}

/// Credentials that natsmux says to brokers. Equal ones are one identity to brokers, and sessions that are
/// one of them share connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CredentialsConfig {
    /// In CONNECT.
    pub source: CredentialSource,
    /// A certificate and its key, in PEM, where brokers map certificates to users. Default: those
    /// of `[bus.tls]`.
    pub pair: Option<(PathBuf, PathBuf)>,
}

/// The part of them that stands in CONNECT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum CredentialSource {
    /// Nothing.
    #[default]
    Nothing,
    /// A `.creds` file: a user JWT and its seed.
    Creds(PathBuf),
    /// The seed of a user nkey.
    Nkey(PathBuf),
    /// A user, and the file that holds its password.
    User(String, PathBuf),
    /// The file that holds a token.
    Token(PathBuf),
    /// The file that holds a bearer JWT.
    Jwt(PathBuf),
}

impl MatchConfig {
    /// Whether it asks for something that components must send in CONNECT.
    pub fn needs_credentials(&self) -> bool {
        self.same_key || self.nkey.is_some() || self.user.is_some() || self.token_file.is_some()
    }
}

impl CredentialSource {
    /// The file that it is in, if any.
    pub fn file(&self) -> Option<&PathBuf> {
        match self {
            Self::Nothing => None,
            Self::Creds(file)
            | Self::Nkey(file)
            | Self::User(_, file)
            | Self::Token(file)
            | Self::Jwt(file) => Some(file),
        }
    }

    /// Whether natsmux signs with a key of its own.
    pub fn has_key(&self) -> bool {
        matches!(self, Self::Creds(_) | Self::Nkey(_))
    }
}
