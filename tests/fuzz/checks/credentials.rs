//! Files of credentials, JWTs of components, hashes, and what a component proves with them.

use natsmux::identity::credentials::Credentials;
use natsmux::identity::{PasswordHash, Presented, PublicKey, Seed, Who};
use natsmux::proto::connect::ConnectInfo;
use natsmux::proto::jwt::Claims;

/// A key that nobody else's text may be taken for.
const SEED: &str = "SUANQDPB2RUOE4ETUA26CNX7FUKE5ZZKFCQIIW63OX225F2CO7UEXTM7ZY";

/// Whatever it is, it ends no process, is shown by nobody, and proves no key: as a file, and as
/// the CONNECT of a component.
pub fn credentials(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(creds) = Credentials::creds(&text) {
        let login = creds.login(Some("nonce"));
        let key = creds.public_key().expect("it has a key");
        assert!(key.verifies("nonce", login.sig.as_deref().unwrap_or_default()));
        assert!(login.nkey.is_none() && login.jwt.is_some());
        assert_eq!(format!("{creds:?}{login:?}"), "[credentials][login]");
    }
    if let Ok(nkey) = Credentials::nkey(&text) {
        assert_eq!(nkey.subject(), nkey.public_key().expect("a key").as_str());
    }
    if let Ok(jwt) = Credentials::jwt(&text) {
        assert!(jwt.login(None).sig.is_none());
        let _ = (jwt.expires(), jwt.issued(), jwt.account());
    }
    if let Some(key) = PublicKey::parse(&text) {
        assert_eq!(key.as_str(), text);
    }
    let _ = (Claims::of(&text), PasswordHash::parse(&text));
    let Some(seed) = Seed::parse(SEED) else {
        return;
    };
    assert!(!seed.public().verifies("nonce", &text));
    let who = Who {
        keys: vec![seed.public()],
        ..Who::default()
    };
    if let Ok(connect) = ConnectInfo::parse(data) {
        let presented = Presented {
            connect: &connect,
            nonce: "nonce",
            owner: None,
            names: &[],
        };
        assert!(!who.is_proven_by(&presented), "a key without its seed");
    }
}
