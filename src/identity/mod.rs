//! Identities of a bus: what natsmux says to brokers in components' place, and which components
//! it says it for.
//!
//! A component's CONNECT is judged once ([`Identities::judge`]). What goes on to the trunk names an
//! identity by its number, and holds no credentials; what a broker gets is put together for each
//! link ([`Identities::login`]). So the two never stand in one type.
//!
//! All of it is pure but for `load` and `secret_file`, which read files.

pub mod credentials;
pub mod load;
mod nkey;
mod password;
pub mod secret_file;
mod who;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::SystemTime;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::config::CredentialsConfig;
use crate::proto::connect::{IdentityId, Login, Secret};
use credentials::Credentials;
pub use load::{IdentityFault, Loaded, LoadedIdentity, load};
pub use nkey::{PublicKey, Seed};
pub use password::PasswordHash;
use who::Claim;
pub use who::{Owner, Presented, Who};

/// Passwords that were verified and are remembered; with more, all are verified anew.
const VERIFIED_MOST: usize = 4096;

/// The identities of a bus.
#[derive(Debug, Default)]
pub struct Identities {
    rules: Vec<Rule>,
    /// By [`IdentityId`]; those that are not configured any more keep their number.
    known: Vec<Known>,
    proxy: Option<Seed>,
    /// Counts what all links say, or ask for: the proxy's key, and the bus's certificates.
    common_generation: u32,
    /// Digests of passwords that were verified: hashing one takes a tenth of a second.
    verified: RefCell<BTreeSet<[u8; 32]>>,
    /// Of these digests; random.
    key: [u8; 32],
}

/// Which components are an identity.
#[derive(Debug)]
struct Rule {
    name: Box<str>,
    who: Who,
    id: IdentityId,
}

/// An identity, as brokers know it.
#[derive(Debug)]
struct Known {
    source: CredentialsConfig,
    /// `None`: it isn't configured any more.
    credentials: Option<Credentials>,
    /// Grows with each change of the credentials.
    generation: u32,
}

/// What a component is.
#[derive(Debug)]
pub enum Judgement {
    /// This identity, by this name.
    Is(IdentityId, Box<str>),
    /// None: its own credentials pass through.
    PassThrough,
    /// It claims to be somebody that it isn't.
    Refused,
    /// To be told once its password is verified.
    Verify(Verification),
}

/// A password that is to be verified, somewhere where that keeps nobody waiting.
#[derive(Debug)]
pub struct Verification {
    hash: PasswordHash,
    password: Secret,
    id: IdentityId,
    name: Box<str>,
    digest: [u8; 32],
}

impl Verification {
    /// Whether the password is right. Takes a processor's time.
    pub fn run(&self) -> bool {
        self.hash.verifies(&self.password)
    }
}

/// An identity as an operator may see it: no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityView {
    /// Its name in the configuration.
    pub name: String,
    /// Whom brokers know by it.
    pub subject: String,
    /// When it expires, if ever.
    pub expires: Option<SystemTime>,
}

impl Identities {
    /// None yet. `key` is random: nobody can guess which passwords were verified.
    pub fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }

    /// Takes over what was read from the files. Returns the identities that brokers know by other
    /// credentials from now on, and those that there are no more.
    pub fn replace(&mut self, loaded: Loaded) -> Changes {
        let mut changes = Changes::default();
        let mut kept = vec![false; self.known.len()];
        self.rules.clear();
        for one in loaded.identities {
            let at = self
                .known
                .iter()
                .position(|known| known.source == one.source);
            let at = at.unwrap_or_else(|| {
                self.known.push(Known {
                    source: one.source,
                    credentials: None,
                    generation: 0,
                });
                kept.push(false);
                self.known.len() - 1
            });
            let id = IdentityId(at as u32);
            let known = &mut self.known[at];
            if !std::mem::replace(&mut kept[at], true) {
                let old = known.credentials.replace(one.credentials);
                let new = known.credentials.as_ref().map(Credentials::digest);
                if old.as_ref().map(Credentials::digest) != new {
                    known.generation = known.generation.wrapping_add(1);
                    let is_other = |old: &Credentials| {
                        let new = known.credentials.as_ref().map(Credentials::subject);
                        new != Some(old.subject())
                    };
                    changes.renewed.extend(old.is_some().then_some(id));
                    let is_other = old.as_ref().is_some_and(is_other);
                    changes.others.extend(is_other.then_some(id));
                }
            }
            self.rules.push(Rule {
                name: one.name.into(),
                who: one.who,
                id,
            });
        }
        for (at, known) in self.known.iter_mut().enumerate() {
            if !kept[at] && known.credentials.take().is_some() {
                known.generation = known.generation.wrapping_add(1);
                changes.removed.push(IdentityId(at as u32));
            }
        }
        let key = |proxy: &Option<Seed>| proxy.as_ref().map(Seed::public);
        changes.is_other_proxy = key(&self.proxy) != key(&loaded.proxy);
        if changes.is_other_proxy {
            self.renew_all();
        }
        self.proxy = loaded.proxy;
        self.verified.borrow_mut().clear();
        changes
    }

    /// Brokers are shown another certificate of an identity's.
    pub fn renew(&mut self, id: IdentityId) {
        if let Some(known) = self.known.get_mut(id.0 as usize) {
            known.generation = known.generation.wrapping_add(1);
        }
    }

    /// Brokers are shown, or asked for, other certificates on all links.
    pub fn renew_all(&mut self) {
        self.common_generation = self.common_generation.wrapping_add(1);
    }

    /// Whether there is none: components' own credentials pass through.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a component may have to send credentials.
    pub fn need_credentials(&self) -> bool {
        self.rules.iter().any(|rule| rule.who.needs_credentials())
    }

    /// Whether a component may have to sign natsmux's nonce.
    pub fn need_signatures(&self) -> bool {
        self.rules.iter().any(|rule| !rule.who.keys.is_empty())
    }

    /// Whether a component's process is to be looked up.
    pub fn ask_for_owners(&self) -> bool {
        let asks = |rule: &Rule| rule.who.uid.is_some() || rule.who.unit.is_some();
        self.rules.iter().any(asks)
    }

    /// Whether the names in a component's certificate are to be read.
    pub fn ask_for_names(&self) -> bool {
        self.rules.iter().any(|rule| rule.who.certificate.is_some())
    }

    /// Whether a unit is to be found for a component's process.
    pub fn ask_for_units(&self) -> bool {
        self.rules.iter().any(|rule| rule.who.unit.is_some())
    }

    /// Says what a component is: the first identity that matches it.
    pub fn judge(&self, presented: &Presented<'_>) -> Judgement {
        for rule in &self.rules {
            match rule.who.judge(presented) {
                Claim::None => {}
                Claim::Proven => return Judgement::Is(rule.id, rule.name.clone()),
                Claim::False => return Judgement::Refused,
                Claim::IfVerified(hash) => {
                    let Some(password) = presented.connect.pass.clone() else {
                        return Judgement::Refused;
                    };
                    let digest = self.digest(hash, &password);
                    if self.verified.borrow().contains(&digest) {
                        return Judgement::Is(rule.id, rule.name.clone());
                    }
                    return Judgement::Verify(Verification {
                        hash: hash.clone(),
                        password,
                        id: rule.id,
                        name: rule.name.clone(),
                        digest,
                    });
                }
            }
        }
        Judgement::PassThrough
    }

    /// A password was verified: says what its component is.
    pub fn verified(&self, verification: &Verification, is_right: bool) -> Judgement {
        let is_asked = |rule: &Rule| {
            let asked = rule.who.user.as_ref().map(|(_, hash)| hash);
            rule.id == verification.id && asked == Some(&verification.hash)
        };
        // The files may have changed meanwhile.
        if !is_right || !self.rules.iter().any(is_asked) {
            return Judgement::Refused;
        }
        let mut verified = self.verified.borrow_mut();
        if verified.len() >= VERIFIED_MOST {
            verified.clear();
        }
        verified.insert(verification.digest);
        Judgement::Is(verification.id, verification.name.clone())
    }

    fn digest(&self, hash: &PasswordHash, password: &Secret) -> [u8; 32] {
        // A key of any length will do.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else {
            return [0; 32];
        };
        mac.update(hash.as_str().as_bytes());
        mac.update(&[0]);
        mac.update(password.expose().as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// What CONNECT says for an identity on a link whose INFO had this nonce; `None`: it isn't
    /// configured any more.
    pub fn login(&self, id: IdentityId, nonce: Option<&str>) -> Option<Login<'_>> {
        let known = self.known.get(id.0 as usize)?;
        Some(known.credentials.as_ref()?.login(nonce))
    }

    /// Whether natsmux signs as a proxy.
    pub fn is_proxy(&self) -> bool {
        self.proxy.is_some()
    }

    /// natsmux's own signature of a link's nonce, as a proxy that brokers trust (ADR-55).
    pub fn proxy_signature(&self, nonce: Option<&str>) -> Option<String> {
        Some(self.proxy.as_ref()?.sign(nonce?))
    }

    /// Which credentials a link is opened with now, by an identity or with a component's own; `None`:
    /// the identity isn't configured any more.
    pub fn generation_for(&self, id: Option<IdentityId>) -> Option<u64> {
        let own = match id {
            Some(id) => {
                let known = self.known.get(id.0 as usize);
                u64::from(
                    known
                        .filter(|known| known.credentials.is_some())?
                        .generation,
                )
            }
            None => 0,
        };
        Some(own << 32 | u64::from(self.common_generation))
    }

    /// The name of the first that is configured with these credentials.
    pub fn name(&self, id: IdentityId) -> Option<&str> {
        let rule = self.rules.iter().find(|rule| rule.id == id)?;
        Some(&rule.name)
    }

    /// The number of the identity with these credentials.
    pub fn id_of(&self, source: &CredentialsConfig) -> Option<IdentityId> {
        let at = self
            .known
            .iter()
            .position(|known| known.source == *source)?;
        Some(IdentityId(at as u32))
    }

    /// All that are configured, in their order.
    pub fn views(&self) -> impl Iterator<Item = IdentityView> {
        self.rules.iter().filter_map(|rule| {
            let credentials = self.known[rule.id.0 as usize].credentials.as_ref()?;
            Some(IdentityView {
                name: rule.name.to_string(),
                subject: credentials.subject().into_owned(),
                expires: credentials.expires(),
            })
        })
    }
}

/// What a look at the files has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those with other credentials, or another certificate.
    pub renewed: Vec<IdentityId>,
    /// Those of them that brokers know as somebody else.
    pub others: Vec<IdentityId>,
    /// Those that there are no more.
    pub removed: Vec<IdentityId>,
    /// natsmux is another proxy to brokers.
    pub is_other_proxy: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CredentialSource;
    use crate::proto::connect::ConnectInfo;

    /// An identity that says this password for whoever has the token.
    fn one(name: &str, file: &str, password: &str) -> LoadedIdentity {
        LoadedIdentity {
            name: name.to_owned(),
            who: Who {
                token: Some(Secret::new(name)),
                ..Who::default()
            },
            source: CredentialsConfig {
                source: CredentialSource::User("u".to_owned(), file.into()),
                pair: None,
            },
            credentials: Credentials::user("u", password).expect("a password"),
        }
    }

    fn of(identities: Vec<LoadedIdentity>) -> Loaded {
        Loaded {
            identities,
            proxy: None,
        }
    }

    fn judge(identities: &Identities, json: &str) -> Judgement {
        let connect = ConnectInfo::parse(json.as_bytes()).expect("options");
        identities.judge(&Presented {
            connect: &connect,
            nonce: "nonce",
            owner: None,
            names: &[],
        })
    }

    fn id(identities: &Identities, token: &str) -> Option<IdentityId> {
        match judge(identities, &format!(r#"{{"auth_token":"{token}"}}"#)) {
            Judgement::Is(id, name) => {
                assert_eq!(&*name, token);
                Some(id)
            }
            _ => None,
        }
    }

    #[test]
    fn one_file_is_one_identity_by_whatever_name() {
        let mut identities = Identities::new([0; 32]);
        identities.replace(of(vec![
            one("a", "f", "x"),
            one("b", "f", "x"),
            one("c", "g", "x"),
        ]));
        let [a, b, c] = ["a", "b", "c"].map(|token| id(&identities, token));
        assert!(a.is_some() && a == b && c.is_some() && a != c);
        assert_eq!(id(&identities, "d"), None);
        assert_eq!(identities.views().count(), 3);
    }

    #[test]
    fn renewed_ones_have_another_generation_and_those_removed_none() {
        let mut identities = Identities::new([0; 32]);
        identities.replace(of(vec![one("a", "f", "x"), one("b", "g", "x")]));
        let (a, b) = (IdentityId(0), IdentityId(1));
        let generation = |identities: &Identities, id| identities.generation_for(Some(id));
        let before = [generation(&identities, a), generation(&identities, b)];
        let same = identities.replace(of(vec![one("a", "f", "x"), one("b", "g", "x")]));
        assert_eq!(same, Changes::default());
        let changes = identities.replace(of(vec![one("b", "g", "y")]));
        assert_eq!((&*changes.renewed, &*changes.removed), (&[b][..], &[a][..]));
        assert!(
            changes.others.is_empty(),
            "brokers know it by the same user"
        );
        assert_eq!(generation(&identities, a), None);
        assert!(identities.login(a, None).is_none());
        assert_ne!(generation(&identities, b), before[1]);
        let login = identities.login(b, None).expect("credentials");
        assert_eq!(login.pass.as_deref(), Some("y"));
        // One that returns is the same identity, and its links have said something else.
        identities.replace(of(vec![one("a", "f", "x")]));
        assert_eq!(id(&identities, "a"), Some(a));
        assert_ne!(generation(&identities, a), before[0]);
    }

    #[test]
    fn a_password_is_verified_once_until_the_files_change() {
        let hash = |password: &str| {
            let text = bcrypt::hash(password, 4).expect("a hash");
            PasswordHash::parse(&text).expect("a hash")
        };
        let with = |hash: &PasswordHash| {
            let mut loaded = one("a", "f", "x");
            loaded.who = Who {
                user: Some(("orders".to_owned(), hash.clone())),
                ..Who::default()
            };
            of(vec![loaded])
        };
        let (first, second) = (hash("pass"), hash("other"));
        let mut identities = Identities::new([0; 32]);
        identities.replace(with(&first));
        let connect = r#"{"user":"orders","pass":"pass"}"#;
        let Judgement::Verify(verification) = judge(&identities, connect) else {
            panic!("it is to be verified");
        };
        assert!(verification.run());
        let wrong = identities.verified(&verification, false);
        assert!(matches!(wrong, Judgement::Refused));
        let right = identities.verified(&verification, true);
        assert!(matches!(right, Judgement::Is(..)));
        assert!(matches!(judge(&identities, connect), Judgement::Is(..)));
        // A password that was taken back meanwhile lets nobody in.
        identities.replace(with(&second));
        let late = identities.verified(&verification, true);
        assert!(matches!(late, Judgement::Refused));
        assert!(matches!(judge(&identities, connect), Judgement::Verify(_)));
    }

    #[test]
    fn a_proxy_signs_every_link_and_another_key_has_all_of_them_renewed() {
        let mut identities = Identities::new([0; 32]);
        assert_eq!(identities.generation_for(None), Some(0));
        let seed = nkeys::KeyPair::new_user().seed().expect("a seed");
        let seed = Seed::parse(&seed).expect("a seed");
        let key = seed.public();
        let changes = identities.replace(Loaded {
            identities: Vec::new(),
            proxy: Some(seed),
        });
        assert!(changes.is_other_proxy);
        let signature = identities.proxy_signature(Some("nonce")).expect("signed");
        assert!(key.verifies("nonce", &signature));
        assert_eq!(identities.proxy_signature(None), None);
        assert_ne!(identities.generation_for(None), Some(0));
    }
}
