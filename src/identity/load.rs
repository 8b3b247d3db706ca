//! Reads identities from their files.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::zeroize::Zeroizing;
use thiserror::Error;

use super::credentials::{Credentials, CredentialsFault, secret};
use super::nkey::{PublicKey, Seed};
use super::password::{HashFault, PasswordHash};
use super::who::Who;
use crate::config::{BusConfig, CredentialSource, CredentialsConfig, IdentityConfig, MatchConfig};

/// The longest file, in bytes: a JWT with many permissions is the longest.
const FILE_MOST: u64 = 64 * 1024;

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
#[error("{}: {fault}", path.display())]
pub struct IdentityFault {
    path: PathBuf,
    fault: FileFault,
}

#[derive(Debug, Error)]
enum FileFault {
    #[error(transparent)]
    Unreadable(std::io::Error),
    #[error("everybody may read it; set its mode to 0640 or less")]
    Exposed,
    #[error("expected text of at most 64 KiB")]
    NoText,
    #[error(transparent)]
    Credentials(#[from] CredentialsFault),
    #[error(transparent)]
    Hash(#[from] HashFault),
    #[error("this host has no user of that name")]
    NoUser,
    #[error("expected a public user nkey")]
    NoKey,
}

/// Reads the files of a bus's identities.
///
/// # Errors
/// The first file that can't be used.
pub fn load(bus: &BusConfig) -> Result<Loaded, IdentityFault> {
    let proxy = bus.proxy_key_file.as_deref().map(|path| {
        let text = read(path)?;
        let seed = text.lines().map(str::trim).find_map(Seed::parse);
        seed.ok_or_else(|| at(path, CredentialsFault::NoSeed))
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
            let text = read(path)?;
            let credentials = match source {
                CredentialSource::Nothing => Ok(Credentials::nothing()),
                CredentialSource::Creds(_) => Credentials::creds(&text),
                CredentialSource::Nkey(_) => Credentials::nkey(&text),
                CredentialSource::User(user, _) => Credentials::user(user, &text),
                CredentialSource::Token(_) => Credentials::token(&text),
                CredentialSource::Jwt(_) => Credentials::jwt(&text),
            };
            credentials.map_err(|fault| at(path, fault))?
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
        key.ok_or_else(|| at(Path::new(text), FileFault::NoKey))
    });
    let user = matches.user.as_ref().map(|(user, path)| {
        let hash = PasswordHash::parse(&read(path)?);
        Ok((user.clone(), hash.map_err(|fault| at(path, fault))?))
    });
    let token = matches.token_file.as_deref().map(|path| {
        let token = secret(&read(path)?);
        token.map_err(|fault| at(path, fault))
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
    let users = users.map_err(|error| at(Path::new(USERS), FileFault::Unreadable(error)))?;
    let uid = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_meant = fields.next() == Some(text);
        fields.nth(1).filter(|_| is_meant)?.parse().ok()
    });
    uid.ok_or_else(|| at(Path::new(text), FileFault::NoUser))
}

fn at(path: &Path, fault: impl Into<FileFault>) -> IdentityFault {
    IdentityFault {
        path: path.to_owned(),
        fault: fault.into(),
    }
}

/// A file that holds a secret: nobody but its user and group may read it.
fn read(path: &Path) -> Result<Zeroizing<String>, IdentityFault> {
    let unreadable = |error| at(path, FileFault::Unreadable(error));
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(at(path, FileFault::Exposed));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_MOST as usize + 1));
    let read = file.take(FILE_MOST + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    let text = std::str::from_utf8(&bytes)
        .ok()
        .filter(|_| bytes.len() as u64 <= FILE_MOST);
    let text = text.ok_or_else(|| at(path, FileFault::NoText))?;
    Ok(Zeroizing::new(text.to_owned()))
}
