//! Reads `[[bus.identity]]`.

use super::error::{ConfigError, Fault};
use super::identity::{CredentialSource, CredentialsConfig, IdentityConfig, MatchConfig};
use super::section::{A_SHORT_NAME, Section, short_name};
use super::walk::Visitor;

const A_FILE: &str = "the path of a file";
const A_USER: &str = "a user name";
const A_HASH: &str = "the path of a file with the hash of `user`'s password";
const A_PASSWORD: &str = "the path of a file with the password of `user`";
const A_UID: &str = "the name of a user of this host, or its number, such as \"1000\"";
const A_UNIT: &str = "the name of a systemd unit, such as \"orders.service\"";
const A_KEY: &str = "a public user nkey: 56 characters, the first of them U";
const A_SUBJECT: &str = "the common name or DNS name in a certificate";
const A_MATCH: &str =
    "at least one of same_key, nkey, user, token_file, uid, unit, certificate, anybody";
const ONE_SOURCE: &str = "at most one of creds, nkey_file, user, token_file, jwt_file";
const OWN_KEY: &str = "false, as the identity has neither `creds` nor `nkey_file`";
const ONE_KEY: &str = "no other key, as same_key = true";
const ALONE: &str = "false, as something else is asked of components";

/// The most identities of one bus.
const MAX_IDENTITIES: usize = 256;
const IDENTITIES: &str = "at most 256 identities";

/// Reads all identities of a bus, in their order.
pub(super) fn read_identities(bus: &mut Section<'_>) -> Result<Vec<IdentityConfig>, ConfigError> {
    let mut identities: Vec<IdentityConfig> = Vec::new();
    for mut section in bus.sections("identity")? {
        let (name, location) = section.text("name", A_SHORT_NAME)?.ok_or_else(|| {
            ConfigError::wrong(section.location_of("name"), Fault::Missing(A_SHORT_NAME))
        })?;
        let name = short_name(name, &location)?;
        if identities.iter().any(|identity| identity.name == name) {
            let fault = Fault::DuplicateIdentity(name);
            return Err(ConfigError::wrong(location, fault));
        }
        if identities.len() == MAX_IDENTITIES {
            return Err(ConfigError::wrong(location, Fault::Expected(IDENTITIES)));
        }
        let credentials = read_credentials(&mut section)?;
        let matches = read_match(&mut section, &credentials)?;
        section.finish()?;
        identities.push(IdentityConfig {
            name,
            matches,
            credentials,
        });
    }
    Ok(identities)
}

fn read_credentials(section: &mut Section<'_>) -> Result<CredentialsConfig, ConfigError> {
    let mut found = Vec::new();
    if let Some((file, at)) = section.text("creds", A_FILE)? {
        found.push((CredentialSource::Creds(file.into()), at));
    }
    if let Some((file, at)) = section.text("nkey_file", A_FILE)? {
        found.push((CredentialSource::Nkey(file.into()), at));
    }
    let user = ("user", A_USER, A_USER);
    if let Some((user, at, file)) = section.pair([user, ("password_file", A_FILE, A_PASSWORD)])? {
        found.push((CredentialSource::User(user.to_owned(), file.into()), at));
    }
    if let Some((file, at)) = section.text("token_file", A_FILE)? {
        found.push((CredentialSource::Token(file.into()), at));
    }
    if let Some((file, at)) = section.text("jwt_file", A_FILE)? {
        found.push((CredentialSource::Jwt(file.into()), at));
    }
    let mut found = found.into_iter();
    let source = found.next().map(|(source, _)| source).unwrap_or_default();
    if let Some((_, at)) = found.next() {
        return Err(ConfigError::wrong(at, Fault::Expected(ONE_SOURCE)));
    }
    let pair = section.certificate()?;
    Ok(CredentialsConfig { source, pair })
}

fn read_match(
    identity: &mut Section<'_>,
    credentials: &CredentialsConfig,
) -> Result<MatchConfig, ConfigError> {
    let missing = ConfigError::wrong(identity.location_of("match"), Fault::Missing(A_MATCH));
    let Some(mut section) = identity.optional("match")? else {
        return Err(missing);
    };
    let mut matches = MatchConfig::default();
    section.flag("same_key", &mut matches.same_key)?;
    if matches.same_key && !credentials.source.has_key() {
        let fault = Fault::Expected(OWN_KEY);
        return Err(ConfigError::wrong(section.location_of("same_key"), fault));
    }
    if let Some((key, at)) = section.text("nkey", A_KEY)? {
        if matches.same_key {
            return Err(ConfigError::wrong(at, Fault::Expected(ONE_KEY)));
        }
        if key.len() != 56 || !key.starts_with('U') {
            return Err(ConfigError::wrong(at, Fault::Expected(A_KEY)));
        }
        matches.nkey = Some(key.to_owned());
    }
    let user = ("user", A_USER, A_USER);
    let user = section.pair([user, ("password_file", A_HASH, A_HASH)])?;
    matches.user = user.map(|(user, _, file)| (user.to_owned(), file.into()));
    if let Some((file, _)) = section.text("token_file", A_FILE)? {
        matches.token_file = Some(file.into());
    }
    let mut word = |key, expected| -> Result<Option<String>, ConfigError> {
        match section.text(key, expected)? {
            Some(("", at)) => Err(ConfigError::wrong(at, Fault::Expected(expected))),
            found => Ok(found.map(|(text, _)| text.to_owned())),
        }
    };
    matches.uid = word("uid", A_UID)?;
    matches.unit = word("unit", A_UNIT)?;
    matches.certificate = word("certificate", A_SUBJECT)?;
    section.flag("anybody", &mut matches.anybody)?;
    let others = MatchConfig {
        anybody: false,
        ..matches.clone()
    };
    if others == MatchConfig::default() && !matches.anybody {
        return Err(missing);
    }
    if others != MatchConfig::default() && matches.anybody {
        let fault = Fault::Expected(ALONE);
        return Err(ConfigError::wrong(section.location_of("anybody"), fault));
    }
    section.finish()?;
    Ok(matches)
}
