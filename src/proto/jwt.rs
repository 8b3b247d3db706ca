//! User JWTs: what they say, read and never judged. Brokers judge them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;

/// What a user JWT says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Claims {
    /// The user's public key.
    pub sub: String,
    /// Who issued it: the account's key, or one of its signing keys.
    pub iss: String,
    /// Its name.
    pub name: String,
    /// Seconds since 1970 at which it was issued.
    pub iat: u64,
    /// Seconds since 1970 at which it expires; 0: never.
    pub exp: u64,
    nats: Nats,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Nats {
    bearer_token: bool,
    issuer_account: String,
}

impl Claims {
    /// Reads the claims of a JWT, whoever signed it.
    pub fn of(jwt: &str) -> Option<Self> {
        let mut parts = jwt.split('.');
        let payload = parts.nth(1)?;
        parts.next()?;
        let payload = BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?;
        let claims: Self = serde_json::from_slice(&payload).ok()?;
        (!claims.sub.is_empty()).then_some(claims)
    }

    /// Whether brokers take it without a signature of the nonce.
    pub fn is_bearer(&self) -> bool {
        self.nats.bearer_token
    }

    /// The account that its user belongs to.
    pub fn account(&self) -> &str {
        match &*self.nats.issuer_account {
            "" => &self.iss,
            account => account,
        }
    }

    /// When it was issued.
    pub fn issued(&self) -> SystemTime {
        at(self.iat)
    }

    /// When it expires, if ever.
    pub fn expires(&self) -> Option<SystemTime> {
        (self.exp > 0).then(|| at(self.exp))
    }
}

/// A time so many seconds after 1970; the last one that can be told, where that is later.
fn at(seconds: u64) -> SystemTime {
    let most = Duration::from_secs(253_402_300_799);
    UNIX_EPOCH + Duration::from_secs(seconds).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(claims.as_bytes()))
    }

    #[test]
    fn claims_are_read_and_what_is_missing_is_none() {
        let text = r#"{"sub":"UA","iss":"AS","iat":5,"exp":9,"nats":{"issuer_account":"AA","bearer_token":true}}"#;
        let claims = Claims::of(&jwt(text)).expect("claims");
        assert!(claims.is_bearer());
        assert_eq!(claims.account(), "AA");
        assert_eq!(claims.expires(), Some(UNIX_EPOCH + Duration::from_secs(9)));
        let claims = Claims::of(&jwt(r#"{"sub":"UA","iss":"AS"}"#)).expect("claims");
        assert_eq!((claims.account(), claims.expires()), ("AS", None));
        assert!(!claims.is_bearer());
    }

    #[test]
    fn numbers_that_lie_and_what_is_no_jwt_do_no_harm() {
        let claims = Claims::of(&jwt(&format!(r#"{{"sub":"U","exp":{}}}"#, u64::MAX)));
        assert!(claims.expect("claims").expires().is_some());
        for bad in [
            "",
            "a.b",
            "a.b.c",
            "..",
            &jwt("{}"),
            &jwt("[]"),
            &jwt(r#"{"sub":1}"#),
        ] {
            assert_eq!(Claims::of(bad), None, "{bad}");
        }
    }
}
