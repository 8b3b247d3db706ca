//! The options that a component states in CONNECT.
//!
//! They are parsed as nats-server parses them and written again from the parsed value: what natsmux doesn't know
//! never reaches a broker. A [`ConnectInfo`] is comparable and hashable, so that it can be the key under which
//! sessions share an upstream.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};

use secrecy::{ExposeSecret, SecretString};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use thiserror::Error;

use super::info::HeaderSupport;
use super::json::{self, LossyText};
use super::jwt::Claims;

/// A credential. It has no readable `Debug`, and its memory is zeroed when it is dropped.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Wraps a credential.
    pub fn new(text: &str) -> Self {
        Self(SecretString::from(text))
    }

    /// The credential itself, for a broker or a hash; never for a log.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl Hash for Secret {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.expose().hash(state);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The number of an identity of natsmux's own, whose credentials stand in for a component's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityId(pub u32);

/// The credentials in one CONNECT.
#[derive(Clone, Default)]
pub struct Login<'l> {
    /// User name.
    pub user: Option<Cow<'l, str>>,
    /// Password.
    pub pass: Option<Cow<'l, str>>,
    /// Token.
    pub auth_token: Option<Cow<'l, str>>,
    /// User JWT.
    pub jwt: Option<Cow<'l, str>>,
    /// Public user key.
    pub nkey: Option<Cow<'l, str>>,
    /// Signature of the nonce by the user's key.
    pub sig: Option<Cow<'l, str>>,
    /// Signature of the nonce by the key of a proxy (ADR-55).
    pub proxy_sig: Option<Cow<'l, str>>,
}

impl fmt::Debug for Login<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[login]")
    }
}

/// A component's CONNECT: its options and its credentials. Absent and empty strings are the same to
/// a broker, so both are `None`.
///
/// [`Default`] is what nats-server assumes of a connection that never sent CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectInfo {
    /// `+OK` for every operation.
    pub verbose: bool,
    /// `Invalid Publish Subject` for publishes to wildcards.
    pub pedantic: bool,
    /// Whether own publishes come back to own subscriptions.
    pub echo: bool,
    /// Whether the component understands `HMSG`.
    pub headers: bool,
    /// Whether it wants a 503 when nobody listens.
    pub no_responders: bool,
    /// 0 or 1; what else was asked for is refused, see [`refusal`](Self::refusal).
    pub protocol: i64,
    /// User name.
    pub user: Option<Secret>,
    /// Password.
    pub pass: Option<Secret>,
    /// Token, in place of user and password.
    pub auth_token: Option<Secret>,
    /// User JWT.
    pub jwt: Option<Secret>,
    /// Public user key.
    pub nkey: Option<Secret>,
    /// Signature over the nonce of the broker's INFO: worthless on any other connection.
    pub sig: Option<Secret>,
    /// Cosmetic: name of the connection.
    pub name: Option<String>,
    /// Cosmetic: language of the client library.
    pub lang: Option<String>,
    /// Cosmetic: version of the client library.
    pub version: Option<String>,
    /// Once chose an account; brokers refuse any value.
    pub account: Option<String>,
    /// Once made an account; brokers refuse `true`.
    pub new_account: bool,
    /// The identity that stands in for the component's credentials, which aren't here then.
    pub identity: Option<IdentityId>,
}

impl Default for ConnectInfo {
    fn default() -> Self {
        Self {
            verbose: true,
            pedantic: true,
            echo: true,
            headers: false,
            no_responders: false,
            protocol: 0,
            user: None,
            pass: None,
            auth_token: None,
            jwt: None,
            nkey: None,
            sig: None,
            name: None,
            lang: None,
            version: None,
            account: None,
            new_account: false,
            identity: None,
        }
    }
}

/// Why a CONNECT is answered by closing without a word. Holds nothing of what was sent, which may be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum ConnectFault {
    /// No JSON, or something behind it.
    #[error("the options are not JSON")]
    NotJson,
    /// No object, or a value of the wrong type.
    #[error("an option has the wrong type")]
    WrongType,
}

impl From<ConnectFault> for super::client::ClientFault {
    fn from(_: ConnectFault) -> Self {
        Self::BadConnect
    }
}

impl ConnectInfo {
    /// Parses the options of a first CONNECT.
    pub fn parse(json: &[u8]) -> Result<Self, ConnectFault> {
        let mut options = Self::default();
        options.merge(json)?;
        Ok(options)
    }

    /// Takes over the options of a further CONNECT; those that it doesn't mention stay. Unchanged on a fault.
    pub fn merge(&mut self, json: &[u8]) -> Result<(), ConnectFault> {
        let json = json::checked(json).map_err(|_| ConnectFault::NotJson)?;
        let mut merged = self.clone();
        let visitor = Merge(&mut merged);
        serde_json::Deserializer::from_slice(&json)
            .deserialize_any(visitor)
            .map_err(|_| ConnectFault::WrongType)?;
        *self = merged;
        Ok(())
    }

    /// Whether a nonce was signed, so that this CONNECT can't be replayed on another connection.
    pub fn is_signed(&self) -> bool {
        self.sig.is_some()
    }

    /// Whether its JWT is one that brokers take without a signature.
    pub fn is_bearer(&self) -> bool {
        let jwt = self.jwt.as_ref();
        let claims = jwt.and_then(|jwt| Claims::of(jwt.expose()));
        claims.is_some_and(|claims| claims.is_bearer())
    }

    /// Leaves out the signature of a nonce, and the key that it is by.
    pub fn unsign(&mut self) {
        (self.sig, self.nkey) = (None, None);
    }

    /// These options with an identity in place of all credentials.
    pub fn as_identity(&self, identity: IdentityId) -> Self {
        Self {
            user: None,
            pass: None,
            auth_token: None,
            jwt: None,
            nkey: None,
            sig: None,
            identity: Some(identity),
            ..self.clone()
        }
    }

    /// The credentials that the component sent.
    pub fn login(&self) -> Login<'_> {
        fn text(secret: &Option<Secret>) -> Option<Cow<'_, str>> {
            secret.as_ref().map(|secret| Cow::Borrowed(secret.expose()))
        }
        Login {
            user: text(&self.user),
            pass: text(&self.pass),
            auth_token: text(&self.auth_token),
            jwt: text(&self.jwt),
            nkey: text(&self.nkey),
            sig: text(&self.sig),
            proxy_sig: None,
        }
    }

    /// Leaves out all credentials that are signed: for brokers that ask for none.
    pub fn forget_keys(&mut self) {
        self.unsign();
        self.jwt = None;
    }

    /// Returns the text of a broker's `-ERR '…'` before it closes where it accepted the credentials
    /// but can't serve the options.
    pub fn refusal(&self, support: HeaderSupport) -> Option<&'static str> {
        let headers = self.headers && support == HeaderSupport::On;
        if self.new_account || self.account.is_some() {
            Some("Authorization Violation")
        } else if !(0..=1).contains(&self.protocol) {
            Some("invalid client protocol")
        } else if self.no_responders && !headers && support != HeaderSupport::Unheard {
            Some("no responders requires headers support")
        } else {
            None
        }
    }

    /// Appends `CONNECT {…}` with its line end and the component's own credentials.
    pub fn encode(&self, protocol: u8, headers: bool, out: &mut Vec<u8>) {
        self.encode_as(&self.login(), protocol, headers, out);
    }

    /// Appends `CONNECT {…}` with its line end and these credentials, under this `protocol` in place of the
    /// component's, and without what needs headers where the broker has none.
    pub fn encode_as(&self, login: &Login<'_>, protocol: u8, headers: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"CONNECT {");
        flag(out, "verbose", self.verbose);
        out.push(b',');
        flag(out, "pedantic", self.pedantic);
        out.push(b',');
        flag(out, "echo", self.echo);
        for (key, value) in [
            ("headers", self.headers && headers),
            ("no_responders", self.no_responders && headers),
            ("new_account", self.new_account),
        ] {
            if value {
                out.push(b',');
                flag(out, key, value);
            }
        }
        for (key, value) in self.texts(login) {
            if let Some(value) = value {
                out.push(b',');
                name(out, key);
                json::push_string(out, value);
            }
        }
        out.extend_from_slice(b",\"protocol\":");
        super::number::decimal(out, u64::from(protocol));
        out.extend_from_slice(b"}\r\n");
    }

    fn texts<'t>(&'t self, login: &'t Login<'_>) -> [(&'static str, Option<&'t str>); 11] {
        [
            ("user", login.user.as_deref()),
            ("pass", login.pass.as_deref()),
            ("auth_token", login.auth_token.as_deref()),
            ("jwt", login.jwt.as_deref()),
            ("nkey", login.nkey.as_deref()),
            ("sig", login.sig.as_deref()),
            ("proxy_sig", login.proxy_sig.as_deref()),
            ("name", self.name.as_deref()),
            ("lang", self.lang.as_deref()),
            ("version", self.version.as_deref()),
            ("account", self.account.as_deref()),
        ]
    }
}

fn name(out: &mut Vec<u8>, key: &str) {
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn flag(out: &mut Vec<u8>, key: &str, value: bool) {
    name(out, key);
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

/// Reads an object over the options that are there: in document order, `null` leaves a value as it is.
struct Merge<'a>(&'a mut ConnectInfo);

impl<'de> Visitor<'de> for Merge<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let options = self.0;
        while let Some(LossyText(key)) = map.next_key()? {
            match json::folded(&key).as_str() {
                "verbose" => take(&mut map, &mut options.verbose)?,
                "pedantic" => take(&mut map, &mut options.pedantic)?,
                "echo" => take(&mut map, &mut options.echo)?,
                "headers" => take(&mut map, &mut options.headers)?,
                "no_responders" => take(&mut map, &mut options.no_responders)?,
                "new_account" => take(&mut map, &mut options.new_account)?,
                "protocol" => take(&mut map, &mut options.protocol)?,
                "user" => take_secret(&mut map, &mut options.user)?,
                "pass" => take_secret(&mut map, &mut options.pass)?,
                "auth_token" => take_secret(&mut map, &mut options.auth_token)?,
                "jwt" => take_secret(&mut map, &mut options.jwt)?,
                "nkey" => take_secret(&mut map, &mut options.nkey)?,
                "sig" => take_secret(&mut map, &mut options.sig)?,
                "name" => take_text(&mut map, &mut options.name)?,
                "lang" => take_text(&mut map, &mut options.lang)?,
                "version" => take_text(&mut map, &mut options.version)?,
                "account" => take_text(&mut map, &mut options.account)?,
                // Without effect on a client's connection, but of the wrong type they close it.
                "tls_required" => take(&mut map, &mut false)?,
                "import" | "export" => {
                    map.next_value::<Option<std::collections::HashMap<String, IgnoredAny>>>()?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

fn take<'de, A: MapAccess<'de>, T: serde::Deserialize<'de>>(
    map: &mut A,
    value: &mut T,
) -> Result<(), A::Error> {
    if let Some(new) = map.next_value()? {
        *value = new;
    }
    Ok(())
}

fn take_text<'de, A: MapAccess<'de>>(
    map: &mut A,
    value: &mut Option<String>,
) -> Result<(), A::Error> {
    if let Some(LossyText(new)) = map.next_value()? {
        *value = (!new.is_empty()).then_some(new);
    }
    Ok(())
}

fn take_secret<'de, A: MapAccess<'de>>(
    map: &mut A,
    value: &mut Option<Secret>,
) -> Result<(), A::Error> {
    if let Some(LossyText(new)) = map.next_value()? {
        *value = (!new.is_empty()).then(|| Secret(SecretString::from(new)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
