//! Which components may be an identity.

use sha2::{Digest, Sha256};

use super::nkey::PublicKey;
use super::password::PasswordHash;
use crate::proto::connect::{ConnectInfo, Secret};
use crate::proto::jwt::Claims;

/// The process at the other end of a loopback connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user that it ran as when it opened the connection.
    pub uid: u32,
    /// The systemd unit that it belonged to, as far as it is known.
    pub unit: Option<String>,
}

/// A component, as far as an identity may be its own by it.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'p> {
    /// Its CONNECT.
    pub connect: &'p ConnectInfo,
    /// The nonce that it was told in INFO.
    pub nonce: &'p str,
    /// Its process, over loopback.
    pub owner: Option<&'p Owner>,
    /// The names in its certificate.
    pub names: &'p [String],
}

/// What must be true of a component, all of it.
#[derive(Debug, Default)]
pub struct Who {
    /// It signs with one of these keys.
    pub keys: Vec<PublicKey>,
    /// It sends this user, and a password with this hash.
    pub user: Option<(String, PasswordHash)>,
    /// It sends this token.
    pub token: Option<Secret>,
    /// Its process runs as this user.
    pub uid: Option<u32>,
    /// Its process belongs to this unit.
    pub unit: Option<String>,
    /// Its certificate has this name.
    pub certificate: Option<String>,
}

/// What a component is, as far as one identity is concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim<'w> {
    /// It doesn't claim to be this identity.
    None,
    /// It is.
    Proven,
    /// It claims to be, and isn't.
    False,
    /// It is, if its password has this hash.
    IfVerified(&'w PasswordHash),
}

impl Who {
    /// Whether a component has to send credentials for it.
    pub fn needs_credentials(&self) -> bool {
        !self.keys.is_empty() || self.user.is_some() || self.token.is_some()
    }

    /// Whether a component is this, whatever else it may be.
    pub fn is_proven_by(&self, presented: &Presented<'_>) -> bool {
        self.judge(presented) == Claim::Proven
    }

    /// Says what a component is. Who names a key or a user and can't prove it, makes a false claim.
    pub(super) fn judge(&self, presented: &Presented<'_>) -> Claim<'_> {
        if !self.fits_process(presented) {
            return Claim::None;
        }
        let connect = presented.connect;
        if let Some(token) = &self.token {
            let sent = connect.auth_token.as_ref();
            if sent.is_none_or(|sent| digest(sent) != digest(token)) {
                return Claim::None;
            }
        }
        if !self.keys.is_empty() {
            let named = named_key(connect);
            let Some(key) = self
                .keys
                .iter()
                .find(|key| named.as_deref() == Some(key.as_str()))
            else {
                return Claim::None;
            };
            let signature = connect.sig.as_ref();
            if !signature.is_some_and(|sig| key.verifies(presented.nonce, sig.expose())) {
                return Claim::False;
            }
        }
        let Some((user, hash)) = &self.user else {
            return Claim::Proven;
        };
        match (&connect.user, &connect.pass) {
            (Some(sent), _) if sent.expose() != user => Claim::None,
            (Some(_), Some(_)) => Claim::IfVerified(hash),
            (Some(_), None) => Claim::False,
            (None, _) => Claim::None,
        }
    }

    fn fits_process(&self, presented: &Presented<'_>) -> bool {
        let owner = presented.owner;
        let has_unit = |unit: &String| owner.is_some_and(|owner| owner.unit.as_ref() == Some(unit));
        self.uid
            .is_none_or(|uid| owner.is_some_and(|owner| owner.uid == uid))
            && self.unit.as_ref().is_none_or(has_unit)
            && (self.certificate.as_ref()).is_none_or(|name| presented.names.contains(name))
    }
}

/// The public key that a CONNECT names: what its JWT says is a claim, proven by the signature.
fn named_key(connect: &ConnectInfo) -> Option<String> {
    if let Some(nkey) = &connect.nkey {
        return Some(nkey.expose().to_owned());
    }
    let claims = Claims::of(connect.jwt.as_ref()?.expose())?;
    Some(claims.sub)
}

/// Compared in place of secrets: how far two digests agree tells nothing of these.
fn digest(secret: &Secret) -> [u8; 32] {
    Sha256::digest(secret.expose()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::nkey::Seed;

    fn connect(json: &str) -> ConnectInfo {
        ConnectInfo::parse(json.as_bytes()).expect("options")
    }

    fn judge<'w>(who: &'w Who, connect: &ConnectInfo, owner: Option<&Owner>) -> Claim<'w> {
        who.judge(&Presented {
            connect,
            nonce: "nonce",
            owner,
            names: &["orders.example".to_owned()],
        })
    }

    #[test]
    fn a_key_is_proven_by_a_signature_of_this_nonce() {
        let text = nkeys::KeyPair::new_user().seed().expect("a seed");
        let seed = Seed::parse(&text).expect("a seed");
        let key = seed.public().to_string();
        let who = Who {
            keys: vec![seed.public()],
            ..Who::default()
        };
        let says = |nonce| {
            connect(&format!(
                r#"{{"nkey":"{key}","sig":"{}"}}"#,
                seed.sign(nonce)
            ))
        };
        assert_eq!(judge(&who, &says("nonce"), None), Claim::Proven);
        assert_eq!(judge(&who, &says("of another"), None), Claim::False);
        let unsigned = connect(&format!(r#"{{"nkey":"{key}"}}"#));
        assert_eq!(judge(&who, &unsigned, None), Claim::False);
        let other = connect(&format!(r#"{{"nkey":"U","sig":"{}"}}"#, seed.sign("nonce")));
        assert_eq!(judge(&who, &other, None), Claim::None);
        assert_eq!(judge(&who, &connect("{}"), None), Claim::None);
    }

    #[test]
    fn a_process_is_who_it_runs_as() {
        let who = Who {
            uid: Some(7),
            unit: Some("orders.service".to_owned()),
            ..Who::default()
        };
        let owner = |uid, unit: &str| Owner {
            uid,
            unit: Some(unit.to_owned()),
        };
        let judge = |owner: Option<Owner>| judge(&who, &connect("{}"), owner.as_ref());
        assert_eq!(judge(Some(owner(7, "orders.service"))), Claim::Proven);
        assert_eq!(judge(Some(owner(8, "orders.service"))), Claim::None);
        assert_eq!(judge(Some(owner(7, "other.service"))), Claim::None);
        let unknown = Owner { uid: 7, unit: None };
        assert_eq!(judge(Some(unknown)), Claim::None);
        assert_eq!(judge(None), Claim::None);
    }

    #[test]
    fn a_token_or_a_name_in_a_certificate_is_enough() {
        let who = Who {
            token: Some(Secret::new("t0ken")),
            certificate: Some("orders.example".to_owned()),
            ..Who::default()
        };
        assert_eq!(
            judge(&who, &connect(r#"{"auth_token":"t0ken"}"#), None),
            Claim::Proven
        );
        assert_eq!(
            judge(&who, &connect(r#"{"auth_token":"t0keN"}"#), None),
            Claim::None
        );
        let other = Who {
            certificate: Some("other.example".to_owned()),
            ..Who::default()
        };
        assert_eq!(judge(&other, &connect("{}"), None), Claim::None);
    }

    #[test]
    fn a_user_needs_its_password() {
        let hash = bcrypt::hash("s3cret", 4).expect("a hash");
        let hash = PasswordHash::parse(&hash).expect("a hash");
        let who = Who {
            user: Some(("orders".to_owned(), hash.clone())),
            ..Who::default()
        };
        let judge = |json: &str| judge(&who, &connect(json), None);
        assert_eq!(
            judge(r#"{"user":"orders","pass":"x"}"#),
            Claim::IfVerified(&hash)
        );
        assert_eq!(judge(r#"{"user":"orders"}"#), Claim::False);
        assert_eq!(judge(r#"{"user":"other","pass":"x"}"#), Claim::None);
        assert_eq!(judge("{}"), Claim::None);
    }
}
