//! Passwords of components against hashes in files: argon2 and bcrypt.

use argon2::password_hash::PasswordHash as PhcHash;
use argon2::{Argon2, Params, PasswordVerifier};

use super::credentials::CredentialsFault;
use crate::proto::connect::Secret;

/// The most memory that one verification may take, in KiB: a hash that asks for more would be a
/// way to end the daemon.
const MEMORY_MOST: u32 = 256 * 1024;
/// The most passes, and the highest cost of bcrypt: seconds of a processor.
const PASSES_MOST: u32 = 32;
const COST_MOST: u32 = 15;

/// The hash of a password, as its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswordHash(Box<str>);

/// Why a text is no hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashFault {
    /// Another kind, or none.
    #[error("expected one line with a hash: $argon2id$… or $2a$… (bcrypt)")]
    Form,
    /// Verifying it would take too long, or too much memory.
    #[error("expected a hash of at most 256 MiB and 32 passes, or cost 15 for bcrypt")]
    Costly,
}

impl From<CredentialsFault> for HashFault {
    fn from(_: CredentialsFault) -> Self {
        Self::Form
    }
}

impl PasswordHash {
    /// Reads a hash.
    ///
    /// # Errors
    /// It is none, or one that costs too much.
    pub fn parse(text: &str) -> Result<Self, HashFault> {
        let text = text.trim();
        if let Some(cost) = bcrypt_cost(text) {
            if cost > COST_MOST {
                return Err(HashFault::Costly);
            }
        } else {
            let hash = PhcHash::new(text).map_err(|_| HashFault::Form)?;
            let params = Params::try_from(&hash).map_err(|_| HashFault::Form)?;
            if !text.starts_with("$argon2") || hash.hash.is_none() {
                return Err(HashFault::Form);
            }
            if params.m_cost() > MEMORY_MOST || params.t_cost() > PASSES_MOST {
                return Err(HashFault::Costly);
            }
        }
        Ok(Self(text.into()))
    }

    /// Whether it is this password's. Takes a processor's time: a tenth of a second is common.
    pub fn verifies(&self, password: &Secret) -> bool {
        let password = password.expose();
        if bcrypt_cost(&self.0).is_some() {
            return bcrypt::verify(password, &self.0).unwrap_or(false);
        }
        let Ok(hash) = PhcHash::new(&self.0) else {
            return false;
        };
        let verified = Argon2::default().verify_password(password.as_bytes(), &hash);
        verified.is_ok()
    }

    /// The hash's text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The cost in a bcrypt hash of 60 characters.
fn bcrypt_cost(text: &str) -> Option<u32> {
    let rest = ["$2a$", "$2b$", "$2x$", "$2y$"]
        .iter()
        .find_map(|kind| text.strip_prefix(kind))?;
    let (cost, rest) = rest.split_once('$')?;
    (rest.len() == 53 && cost.len() == 2).then_some(cost.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_both_kinds_are_verified() {
        let bcrypt = bcrypt::hash("s3cret", 4).expect("a hash");
        let argon = argon2_of("s3cret");
        for text in [bcrypt, argon] {
            let hash = PasswordHash::parse(&format!("{text}\n")).expect("a hash");
            assert!(hash.verifies(&Secret::new("s3cret")), "{text}");
            assert!(!hash.verifies(&Secret::new("other")), "{text}");
            assert!(!hash.verifies(&Secret::new("")), "{text}");
        }
    }

    #[test]
    fn what_is_no_hash_or_costs_too_much_is_refused() {
        let rest = "a".repeat(53);
        for (text, fault) in [
            (String::new(), HashFault::Form),
            ("plain".to_owned(), HashFault::Form),
            ("$2a$10$short".to_owned(), HashFault::Form),
            (format!("$2a$31${rest}"), HashFault::Costly),
            (
                "$argon2id$v=19$m=65536,t=3,p=1$c2FsdHNhbHQ".to_owned(),
                HashFault::Form,
            ),
            (
                argon2_of("x").replace("m=64,", "m=2097152,"),
                HashFault::Costly,
            ),
        ] {
            assert_eq!(PasswordHash::parse(&text), Err(fault), "{text}");
        }
    }

    fn argon2_of(password: &str) -> String {
        use argon2::PasswordHasher;
        use argon2::password_hash::SaltString;
        let params = Params::new(64, 1, 1, None).expect("parameters");
        let salt = SaltString::encode_b64(b"saltsalt").expect("a salt");
        let hasher = Argon2::default();
        let hash = hasher.hash_password_customized(password.as_bytes(), None, None, params, &salt);
        hash.expect("a hash").to_string()
    }
}
