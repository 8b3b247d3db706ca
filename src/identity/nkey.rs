//! nkeys: Ed25519 keys as NATS writes them, in base32 with a prefix and a checksum.

use std::fmt;

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use secrecy::zeroize::Zeroizing;

/// The prefix of a user's key, and of a seed, before they are shifted into place.
const USER: u8 = 20 << 3;
const SEED: u8 = 18 << 3;
/// Bytes of a key.
const KEY: usize = 32;

/// The private key of a user nkey. Its memory is zeroed when it is dropped.
pub struct Seed(SigningKey);

impl Seed {
    /// Reads a user's seed (`SU…`).
    pub fn parse(text: &str) -> Option<Self> {
        let raw = decode(text)?;
        let (&[first, second], key) = raw.split_first_chunk()?;
        let kind = (first & 7) << 5 | second >> 3;
        if first & 0xf8 != SEED || kind != USER {
            return None;
        }
        let key = Zeroizing::new(<[u8; KEY]>::try_from(key).ok()?);
        Some(Self(SigningKey::from_bytes(&key)))
    }

    /// Signs a nonce as CONNECT wants it: in base64 for URLs, without padding.
    pub fn sign(&self, nonce: &str) -> String {
        BASE64URL_NOPAD.encode(&self.0.sign(nonce.as_bytes()).to_bytes())
    }

    /// Returns the public key.
    pub fn public(&self) -> PublicKey {
        PublicKey::new(self.0.verifying_key())
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[seed]")
    }
}

/// The public key of a user nkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
    text: String,
}

impl PublicKey {
    fn new(key: VerifyingKey) -> Self {
        let mut raw = vec![USER];
        raw.extend_from_slice(key.as_bytes());
        raw.extend_from_slice(&checksum(&raw).to_le_bytes());
        let text = BASE32_NOPAD.encode(&raw);
        Self { key, text }
    }

    /// The key as NATS writes it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Reads a user's public key (`U…`).
    pub fn parse(text: &str) -> Option<Self> {
        let raw = decode(text)?;
        let (&prefix, key) = raw.split_first()?;
        let key = <[u8; KEY]>::try_from(key).ok()?;
        let key = VerifyingKey::from_bytes(&key).ok()?;
        (prefix == USER).then(|| Self::new(key))
    }

    /// Whether `signature`, as a client writes it in CONNECT, is this key's of the nonce.
    pub fn verifies(&self, nonce: &str, signature: &str) -> bool {
        // Clients of either kind exist: brokers take both.
        let signature = signature.trim_end_matches('=').replace('+', "-");
        let signature = signature.replace('/', "_");
        let raw = BASE64URL_NOPAD.decode(signature.as_bytes());
        let signature = raw.ok().and_then(|raw| Signature::from_slice(&raw).ok());
        signature.is_some_and(|signature| {
            let verified = self.key.verify_strict(nonce.as_bytes(), &signature);
            verified.is_ok()
        })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The bytes of a key with their prefix, once the checksum behind them is right.
fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut raw = Zeroizing::new(BASE32_NOPAD.decode(text.as_bytes()).ok()?);
    let end = raw.len().checked_sub(2)?;
    let sum = u16::from_le_bytes([raw[end], raw[end + 1]]);
    raw.truncate(end);
    (checksum(&raw) == sum).then_some(raw)
}

/// CRC-16/XMODEM.
fn checksum(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte) << 8, |sum, _| {
            sum << 1 ^ if sum & 0x8000 == 0 { 0 } else { 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pair that nats-server's own tests use.
    const SEED: &str = "SUANQDPB2RUOE4ETUA26CNX7FUKE5ZZKFCQIIW63OX225F2CO7UEXTM7ZY";
    const PUBLIC: &str = "UDFE2QAQBGMKQ6VYHR37GZQLPFP2QBN2UHWWHTZVCSBXU4DCSHHTKKRL";

    #[test]
    fn a_seed_has_its_public_key() {
        let library = nkeys::KeyPair::from_seed(SEED)
            .expect("a seed")
            .public_key();
        let own = Seed::parse(SEED).expect("a seed").public().to_string();
        assert_eq!(own, library);
        assert_eq!(PublicKey::parse(&own).expect("a key").to_string(), own);
        assert!(PublicKey::parse(PUBLIC).is_none() || PUBLIC.len() == 56);
    }

    #[test]
    fn what_one_signs_the_other_verifies() {
        let pair = nkeys::KeyPair::new_user();
        let seed = Seed::parse(&pair.seed().expect("a seed")).expect("a seed");
        let raw = BASE64URL_NOPAD
            .decode(seed.sign("nonce").as_bytes())
            .expect("base64");
        pair.verify(b"nonce", &raw).expect("it verifies");
        let key = seed.public();
        for encoding in [data_encoding::BASE64, data_encoding::BASE64URL_NOPAD] {
            let theirs = encoding.encode(&pair.sign(b"nonce").expect("signed"));
            assert!(key.verifies("nonce", &theirs));
            assert!(!key.verifies("another", &theirs));
        }
        let other = nkeys::KeyPair::new_user();
        let theirs = BASE64URL_NOPAD.encode(&other.sign(b"nonce").expect("signed"));
        assert!(!key.verifies("nonce", &theirs));
        for bad in ["", "AA", "no base64!", &"A".repeat(86)] {
            assert!(!key.verifies("nonce", bad), "{bad}");
        }
    }

    #[test]
    fn what_is_no_users_key_is_refused() {
        let account = nkeys::KeyPair::new_account();
        assert!(Seed::parse(&account.seed().expect("a seed")).is_none());
        assert!(PublicKey::parse(&account.public_key()).is_none());
        let user = nkeys::KeyPair::new_user();
        let (seed, key) = (user.seed().expect("a seed"), user.public_key());
        assert!(Seed::parse(&key).is_none() && PublicKey::parse(&seed).is_none());
        for at in 0..seed.len() {
            let mut wrong = seed.clone().into_bytes();
            wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
            let wrong = String::from_utf8(wrong).expect("text");
            // The last character has bits that mean nothing.
            assert!(Seed::parse(&wrong).is_none() || at + 1 == seed.len());
        }
        assert!(Seed::parse("").is_none() && Seed::parse("SU").is_none());
    }

    #[test]
    fn a_seed_shows_nothing() {
        let seed = Seed::parse(SEED).expect("a seed");
        assert_eq!(format!("{seed:?}"), "[seed]");
    }
}
