//! An operator with one account, whose users sign: what `nsc` would make.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

/// An operator, and the folder in which its users' credentials are.
pub struct Operator {
    operator: KeyPair,
    account: KeyPair,
    folder: TempDir,
}

impl Operator {
    /// A new one, with one account.
    pub fn new() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            account: KeyPair::new_account(),
            folder: TempDir::new().expect("a temporary folder"),
        }
    }

    /// Lines of a broker's configuration: it lets in this operator's users and nobody else.
    pub fn broker_config(&self) -> String {
        self.broker_config_with(&json!({}))
    }

    /// The same, where the account says also this.
    pub fn broker_config_with(&self, more: &Value) -> String {
        let operator = self.operator.public_key();
        let account = self.account.public_key();
        let of_operator = sign(
            &self.operator,
            &operator,
            json!({ "type": "operator", "version": 2 }),
            None,
        );
        let mut nats = json!({
            "type": "account",
            "version": 2,
            "limits": {
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
                "wildcards": true, "conn": -1, "leaf": -1,
            },
            "default_permissions": { "pub": {}, "sub": {} },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            nats[key] = value.clone();
        }
        let of_account = sign(&self.operator, &account, nats, None);
        format!(
            "operator: {of_operator}\nresolver: MEMORY\nresolver_preload: {{ {account}: {of_account} }}\n"
        )
    }

    /// Credentials of a new user, in a file that only its owner reads.
    pub fn user(&self, name: &str) -> User {
        let pair = KeyPair::new_user();
        let user = User {
            path: self.folder.path().join(format!("{name}.creds")),
            pair,
        };
        self.issue(&user, None);
        user
    }

    /// Writes a JWT into a user's file that is good for so long.
    pub fn issue(&self, user: &User, lasts: Option<Duration>) {
        self.issue_as(user, lasts, &json!({}));
    }

    /// The same, where the JWT says also this.
    pub fn issue_as(&self, user: &User, lasts: Option<Duration>, more: &Value) {
        let mut nats = json!({
            "type": "user",
            "version": 2,
            "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1,
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            nats[key] = value.clone();
        }
        let jwt = sign(&self.account, &user.key(), nats, lasts);
        let seed = user.pair.seed().expect("a seed");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        write_secret(&user.path, &text);
    }
}

/// A user's file of credentials.
pub struct User {
    path: PathBuf,
    pair: KeyPair,
}

impl User {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The public key.
    pub fn key(&self) -> String {
        self.pair.public_key()
    }

    /// The seed.
    pub fn seed(&self) -> String {
        self.pair.seed().expect("a seed")
    }

    /// A signature as CONNECT has it.
    pub fn sign(&self, nonce: &str) -> String {
        BASE64URL_NOPAD.encode(&self.pair.sign(nonce.as_bytes()).expect("signed"))
    }

    /// The JWT that is in the file.
    pub fn jwt(&self) -> String {
        let text = fs::read_to_string(&self.path).expect("a file");
        text.lines().nth(1).expect("a JWT").to_owned()
    }
}

/// Writes a file that only its owner reads, at one stroke.
pub fn write_secret(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).expect("a file");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).expect("its mode");
    fs::rename(&fresh, path).expect("in place");
}

fn sign(issuer: &KeyPair, subject: &str, nats: Value, lasts: Option<Duration>) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock");
    let mut claims = json!({
        "jti": format!("{now:?}"),
        "iat": now.as_secs(),
        "iss": issuer.public_key(),
        "sub": subject,
        "name": "test",
        "nats": nats,
    });
    if let Some(lasts) = lasts {
        claims["exp"] = json!((now + lasts).as_secs());
    }
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let head = part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let text = format!("{head}.{}", part(&claims));
    let signature = issuer.sign(text.as_bytes()).expect("signed");
    format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
}
