//! Reads identities from their files.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::credentials::{Credentials, CredentialsFault, secret};
use super::nkey::{PublicKey, Seed};
use super::password::{HashFault, PasswordHash};
use super::secret_file::{SecretFileError, read_secret};
use super::who::Who;
use crate::config::{BusConfig, CredentialSource, CredentialsConfig, IdentityConfig, MatchConfig};

/// What the files of a bus's identities hold.
#[derive(Debug, Default)]
pub struct Loaded {
    /// In the order of the configuration.
    pub identities: Vec<LoadedIdentity>,
    /// The key with which natsmux signs as a proxy (ADR-55).
    pub proxy: Option<Seed>,
}

/// What the files of one identity hold.
#[derive(Debug)]
pub struct LoadedIdentity {
    /// Its name in the configuration.
    pub name: String,
    /// The components that may be it.
    pub who: Who,
    /// Where its credentials came from.
    pub source: CredentialsConfig,
    /// What natsmux says to brokers.
    pub credentials: Credentials,
}

/// Why an identity can't be had from its files: the operator's fault. Shows nothing of them.
#[derive(Debug, Error)]
pub enum IdentityFault {
    /// A file can't be read, or everybody may.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// A file holds no credentials.
    #[error("{}: {fault}", .path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        fault: CredentialsFault,
    },
    /// A file holds no hash.
    #[error("{}: {fault}", .path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// Why.
        fault: HashFault,
    },
    /// The users of this host can't be read.
    #[error("/etc/passwd: {0}")]
    NoUsers(std::io::Error),
    /// There is none of that name.
    #[error("{0}: this host has no user of that name")]
    NoUser(String),
    /// It is no key.
    #[error("{0}: expected a public user nkey")]
    NoKey(String),
}

/// Reads the files of a bus's identities.
///
/// # Errors
/// The first file that can't be used.
pub fn load(bus: &BusConfig) -> Result<Loaded, IdentityFault> {
    let proxy = bus.proxy_key_file.as_deref().map(|path| {
        let text = read_secret(path)?;
        let seed = text.lines().map(str::trim).find_map(Seed::parse);
        seed.ok_or_else(|| no_credentials(path, CredentialsFault::NoSeed))
    });
    Ok(Loaded {
        identities: bus
            .identities
            .iter()
            .map(load_one)
            .collect::<Result<_, _>>()?,
        proxy: proxy.transpose()?,
    })
}

/// A file's path, inode, length and time of change, of its mode as well.
pub type Fingerprint = (PathBuf, u64, u64, (i64, i64));

/// When and how the files of a bus's identities were last changed: another one where any was.
pub fn fingerprint(bus: &BusConfig) -> Vec<Fingerprint> {
    let files = bus.identities.iter().flat_map(|identity| {
        let matches = &identity.matches;
        let own = identity.credentials.source.file().into_iter();
        let pair = identity
            .credentials
            .pair
            .iter()
            .flat_map(|(cert, key)| [cert, key]);
        let hash = matches.user.iter().map(|(_, file)| file);
        own.chain(pair).chain(hash).chain(&matches.token_file)
    });
    let files = files.chain(&bus.proxy_key_file);
    let state = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok();
        let inode = metadata.as_ref().map_or(0, MetadataExt::ino);
        let length = metadata.as_ref().map_or(0, |metadata| metadata.len());
        let changed = metadata.map(|metadata| (metadata.ctime(), metadata.ctime_nsec()));
        (path.clone(), inode, length, changed.unwrap_or_default())
    };
    files.map(state).collect()
}

fn load_one(identity: &IdentityConfig) -> Result<LoadedIdentity, IdentityFault> {
    let source = &identity.credentials.source;
    let credentials = match source.file() {
        None => Credentials::nothing(),
        Some(path) => {
            let text = read_secret(path)?;
            let credentials = match source {
                CredentialSource::Nothing => Ok(Credentials::nothing()),
                CredentialSource::Creds(_) => Credentials::creds(&text),
                CredentialSource::Nkey(_) => Credentials::nkey(&text),
                CredentialSource::User(user, _) => Credentials::user(user, &text),
                CredentialSource::Token(_) => Credentials::token(&text),
                CredentialSource::Jwt(_) => Credentials::jwt(&text),
            };
            credentials.map_err(|fault| no_credentials(path, fault))?
        }
    };
    Ok(LoadedIdentity {
        name: identity.name.clone(),
        who: load_who(&identity.matches, &credentials)?,
        source: identity.credentials.clone(),
        credentials,
    })
}

fn load_who(matches: &MatchConfig, credentials: &Credentials) -> Result<Who, IdentityFault> {
    let own = matches.same_key.then(|| credentials.public_key()).flatten();
    let other = matches.nkey.as_deref().map(|text| {
        let key = PublicKey::parse(text);
        key.ok_or_else(|| IdentityFault::NoKey(text.to_owned()))
    });
    let user = matches.user.as_ref().map(|(user, path)| {
        let hash = PasswordHash::parse(&read_secret(path)?);
        let hash = hash.map_err(|fault| IdentityFault::Hash {
            path: path.clone(),
            fault,
        });
        Ok::<_, IdentityFault>((user.clone(), hash?))
    });
    let token = matches.token_file.as_deref().map(|path| {
        let token = secret(&read_secret(path)?);
        token.map_err(|fault| no_credentials(path, fault))
    });
    Ok(Who {
        keys: own.into_iter().chain(other.transpose()?).collect(),
        user: user.transpose()?,
        token: token.transpose()?,
        uid: matches.uid.as_deref().map(uid_of).transpose()?,
        unit: matches.unit.clone(),
        certificate: matches.certificate.clone(),
    })
}

/// The number of a user of this host.
fn uid_of(text: &str) -> Result<u32, IdentityFault> {
    const USERS: &str = "/etc/passwd";
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let users = std::fs::read_to_string(USERS);
    let users = users.map_err(IdentityFault::NoUsers)?;
    let uid = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_meant = fields.next() == Some(text);
        fields.nth(1).filter(|_| is_meant)?.parse().ok()
    });
    uid.ok_or_else(|| IdentityFault::NoUser(text.to_owned()))
}

fn no_credentials(path: &Path, fault: CredentialsFault) -> IdentityFault {
    let path = path.to_owned();
    IdentityFault::Credentials { path, fault }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_only_its_user_may_read_from_now_on_is_another_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        fs::write(&path, "x").expect("written");
        let mut bus = BusConfig::new("b", Vec::new());
        bus.proxy_key_file = Some(path.clone());
        let before = fingerprint(&bus);
        assert_eq!(before, fingerprint(&bus));
        // The kernel's clock of files has a grain.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("set");
        assert_ne!(before, fingerprint(&bus));
        fs::remove_file(&path).expect("removed");
        assert_ne!(before, fingerprint(&bus));
    }
}
