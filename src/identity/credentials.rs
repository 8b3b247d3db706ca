//! What natsmux says to brokers in a component's place.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use hmac::digest::Digest;
use sha2::Sha256;

use super::nkey::{PublicKey, Seed};
use crate::proto::connect::{Login, Secret};
use crate::proto::jwt::Claims;

/// Credentials of natsmux's own. They never stand in one type with a component's, and their
/// `Debug` shows nothing.
pub struct Credentials {
    kind: Kind,
    claims: Option<Claims>,
}

enum Kind {
    Nothing,
    Creds { jwt: Secret, seed: Seed },
    Nkey(Seed),
    User { user: String, password: Secret },
    Token(Secret),
    Jwt(Secret),
}

/// Why a text holds no credentials. Shows nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsFault {
    /// A `.creds` file without its first block.
    #[error("expected a user JWT between BEGIN NATS USER JWT and its END")]
    NoJwt,
    /// No seed, or one of something else than a user.
    #[error("expected the seed of a user nkey: SU and 56 more characters")]
    NoSeed,
    /// The JWT is for another key than the seed's.
    #[error("the seed isn't the one of the JWT's user")]
    OtherSeed,
    /// A JWT that brokers don't take without a signature.
    #[error("expected a bearer JWT: this one needs its seed, as in a .creds file")]
    NotBearer,
    /// Nothing, or more than a password is.
    #[error("expected one line of 1 to 4096 bytes")]
    NoText,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[credentials]")
    }
}

impl Credentials {
    /// Nothing at all.
    pub fn nothing() -> Self {
        Self::new(Kind::Nothing, None)
    }

    /// Reads a `.creds` file.
    ///
    /// # Errors
    /// Its JWT or its seed is missing, or they don't belong together.
    pub fn creds(text: &str) -> Result<Self, CredentialsFault> {
        let mut blocks = blocks(text);
        let jwt = blocks.next().ok_or(CredentialsFault::NoJwt)?;
        let claims = Claims::of(jwt).ok_or(CredentialsFault::NoJwt)?;
        let seed = blocks.next().and_then(Seed::parse);
        let seed = seed.ok_or(CredentialsFault::NoSeed)?;
        if claims.sub != seed.public().to_string() {
            return Err(CredentialsFault::OtherSeed);
        }
        let jwt = Secret::new(jwt);
        Ok(Self::new(Kind::Creds { jwt, seed }, Some(claims)))
    }

    /// Reads the seed of a user nkey, alone or as it stands in a `.creds` file.
    ///
    /// # Errors
    /// There is none.
    pub fn nkey(text: &str) -> Result<Self, CredentialsFault> {
        let mut lines = text.lines().map(str::trim);
        let seed = lines.find_map(Seed::parse);
        Ok(Self::new(
            Kind::Nkey(seed.ok_or(CredentialsFault::NoSeed)?),
            None,
        ))
    }

    /// A user and a password.
    ///
    /// # Errors
    /// There is no password, or a very long one.
    pub fn user(user: &str, password: &str) -> Result<Self, CredentialsFault> {
        let (user, password) = (user.to_owned(), secret(password)?);
        Ok(Self::new(Kind::User { user, password }, None))
    }

    /// A token.
    ///
    /// # Errors
    /// There is none, or a very long one.
    pub fn token(text: &str) -> Result<Self, CredentialsFault> {
        Ok(Self::new(Kind::Token(secret(text)?), None))
    }

    /// Reads a JWT that brokers take without a signature, alone or as it stands in a `.creds` file.
    ///
    /// # Errors
    /// There is none.
    pub fn jwt(text: &str) -> Result<Self, CredentialsFault> {
        let jwt = blocks(text).next().unwrap_or(text.trim());
        let claims = Claims::of(jwt).ok_or(CredentialsFault::NoJwt)?;
        if !claims.is_bearer() {
            return Err(CredentialsFault::NotBearer);
        }
        Ok(Self::new(Kind::Jwt(Secret::new(jwt)), Some(claims)))
    }

    fn new(kind: Kind, claims: Option<Claims>) -> Self {
        Self { kind, claims }
    }

    /// What CONNECT says on a link whose INFO had this nonce. A signature is of this link alone.
    pub fn login(&self, nonce: Option<&str>) -> Login<'_> {
        let sign = |seed: &Seed| nonce.map(|nonce| Cow::Owned(seed.sign(nonce)));
        fn text(secret: &Secret) -> Option<Cow<'_, str>> {
            Some(Cow::Borrowed(secret.expose()))
        }
        match &self.kind {
            Kind::Nothing => Login::default(),
            // A broker closes a connection that says `nkey` beside `jwt` at each of its reloads.
            Kind::Creds { jwt, seed } => Login {
                jwt: text(jwt),
                sig: sign(seed),
                ..Login::default()
            },
            Kind::Nkey(seed) => Login {
                nkey: Some(Cow::Owned(seed.public().to_string())),
                sig: sign(seed),
                ..Login::default()
            },
            Kind::User { user, password } => Login {
                user: Some(Cow::Borrowed(user)),
                pass: text(password),
                ..Login::default()
            },
            Kind::Token(token) => Login {
                auth_token: text(token),
                ..Login::default()
            },
            Kind::Jwt(jwt) => Login {
                jwt: text(jwt),
                ..Login::default()
            },
        }
    }

    /// The public key with which natsmux signs, if it does.
    pub fn public_key(&self) -> Option<PublicKey> {
        match &self.kind {
            Kind::Creds { seed, .. } | Kind::Nkey(seed) => Some(seed.public()),
            _ => None,
        }
    }

    /// When they expire, if ever.
    pub fn expires(&self) -> Option<SystemTime> {
        self.claims.as_ref()?.expires()
    }

    /// When they were issued, where they say so.
    pub fn issued(&self) -> Option<SystemTime> {
        self.claims.as_ref().map(Claims::issued)
    }

    /// Whom brokers know by them: a public key, or a user. Never a secret.
    pub fn subject(&self) -> Cow<'_, str> {
        match &self.kind {
            Kind::Nothing => Cow::Borrowed("(nothing)"),
            Kind::Token(_) => Cow::Borrowed("(token)"),
            Kind::User { user, .. } => Cow::Borrowed(user),
            Kind::Nkey(seed) => Cow::Owned(seed.public().to_string()),
            Kind::Creds { .. } | Kind::Jwt(_) => {
                let claims = self.claims.as_ref();
                Cow::Borrowed(claims.map_or("", |claims| &claims.sub))
            }
        }
    }

    /// The account that they are of, where they say so.
    pub fn account(&self) -> Option<&str> {
        self.claims.as_ref().map(Claims::account)
    }

    /// A digest of all that is said: others have another one.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let mut part = |kind: &str, texts: [&str; 2]| {
            digest.update(kind);
            for text in texts {
                digest.update((text.len() as u64).to_le_bytes());
                digest.update(text);
            }
        };
        match &self.kind {
            Kind::Nothing => part("nothing", ["", ""]),
            Kind::Creds { jwt, seed } => {
                part("creds", [jwt.expose(), &seed.public().to_string()]);
            }
            Kind::Nkey(seed) => part("nkey", [&seed.public().to_string(), ""]),
            Kind::User { user, password } => part("user", [user, password.expose()]),
            Kind::Token(token) => part("token", [token.expose(), ""]),
            Kind::Jwt(jwt) => part("jwt", [jwt.expose(), ""]),
        }
        digest.finalize().into()
    }
}

/// One line that is a password or a token, without what surrounds it.
pub(super) fn secret(text: &str) -> Result<Secret, CredentialsFault> {
    let text = text.trim_end_matches(['\r', '\n']);
    let is_line = (1..=4096).contains(&text.len()) && !text.contains(['\r', '\n']);
    is_line
        .then(|| Secret::new(text))
        .ok_or(CredentialsFault::NoText)
}

/// The lines that stand between a line of dashes and the next.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    let is_mark = |line: &str| line.starts_with("---") && line.ends_with("---");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for three in lines.windows(3) {
        if is_mark(three[0]) && is_mark(three[2]) && !three[1].is_empty() && !is_mark(three[1]) {
            found.push(three[1]);
        }
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;

    use super::*;

    fn jwt_of(key: &str, bearer: bool) -> String {
        let claims = format!(
            r#"{{"sub":"{key}","iss":"AA","iat":1,"exp":100,"nats":{{"bearer_token":{bearer}}}}}"#
        );
        format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(claims.as_bytes()))
    }

    fn creds_file(jwt: &str, seed: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }

    #[test]
    fn a_creds_file_signs_each_nonce_and_never_says_nkey() {
        let pair = nkeys::KeyPair::new_user();
        let (key, seed) = (pair.public_key(), pair.seed().expect("a seed"));
        let jwt = jwt_of(&key, false);
        let text = creds_file(&jwt, &seed);
        for text in [text.clone(), text.replace('\n', "\r\n")] {
            let creds = Credentials::creds(&text).expect("credentials");
            let login = creds.login(Some("first"));
            assert_eq!(login.jwt.as_deref(), Some(&*jwt));
            assert!(login.nkey.is_none() && login.user.is_none());
            let sig = login.sig.expect("signed");
            assert!(creds.public_key().expect("a key").verifies("first", &sig));
            assert_ne!(creds.login(Some("second")).sig.expect("signed"), sig);
            assert!(creds.login(None).sig.is_none());
            assert_eq!((&*creds.subject(), creds.account()), (&*key, Some("AA")));
            assert_eq!(format!("{creds:?}"), "[credentials]");
        }
        let nkey = Credentials::nkey(&text).expect("the seed in it");
        let login = nkey.login(Some("n"));
        assert_eq!(login.nkey.as_deref(), Some(&*key));
        assert!(login.sig.is_some() && login.jwt.is_none());
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        use CredentialsFault::*;
        let pair = nkeys::KeyPair::new_user();
        let (key, seed) = (pair.public_key(), pair.seed().expect("a seed"));
        let other = nkeys::KeyPair::new_user().seed().expect("a seed");
        let jwt = jwt_of(&key, false);
        let fault = |text: &str| Credentials::creds(text).expect_err("refused");
        assert_eq!(fault(""), NoJwt);
        assert_eq!(fault(&creds_file("no jwt", &seed)), NoJwt);
        assert_eq!(fault(&creds_file(&jwt, "no seed")), NoSeed);
        assert_eq!(fault(&creds_file(&jwt, &other)), OtherSeed);
        // Cut while it is written.
        let whole = creds_file(&jwt, &seed);
        let cut = &whole[..whole.find("------END USER").expect("its end")];
        assert_eq!(fault(cut), NoSeed);
        let bearer = |text: &str| Credentials::jwt(text).map(|_| ());
        assert_eq!(bearer(&jwt), Err(NotBearer));
        assert_eq!(bearer(&jwt_of(&key, true)), Ok(()));
        assert_eq!(bearer("x"), Err(NoJwt));
        let password = |text: &str| Credentials::user("u", text).map(|_| ());
        assert_eq!(password("secret\n"), Ok(()));
        assert_eq!(password("two\nlines"), Err(NoText));
        assert_eq!(password("\n"), Err(NoText));
    }

    #[test]
    fn others_have_another_digest() {
        let of = |user, password| Credentials::user(user, password).expect("good").digest();
        assert_eq!(of("a", "b"), of("a", "b\n"));
        assert_ne!(of("a", "bc"), of("ab", "c"));
        let token = Credentials::token("a").expect("good").digest();
        assert_ne!(token, Credentials::token("b").expect("good").digest());
        assert_ne!(token, Credentials::nothing().digest());
    }
}
