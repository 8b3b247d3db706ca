//! R38, R39: components that are identities of natsmux's own, whose credentials are renewed.

use natsmux::config::{CredentialSource, CredentialsConfig};
use natsmux::identity::credentials::Credentials;
use natsmux::identity::{
    Identities, Judgement, Loaded, LoadedIdentity, Presented, PublicKey, Seed, Who,
};
use natsmux::proto::connect::{ConnectInfo, Secret};
use nkeys::{KeyPair, KeyPairType};

use super::broker::Flavour;
use super::daemon::Daemon;
use super::net::{ConnId, Ends, MS, SECOND};
use super::oracle::frames::json_value;
use super::plan::Plan;
use super::rng::Rng;
use super::world::{Event, World};
use natsmux::downstream::session::Identified;

/// What a broker says whose user has newer credentials: natsmux goes on with those, and nobody else
/// hears of it.
const REVOKED: &str = "User Authentication Revoked";
/// The users that natsmux holds keys of. There are more components, and others.
const USERS: u8 = 3;

impl Plan {
    /// Components prove to natsmux who they are, and natsmux signs for them.
    pub fn identify(&mut self, rng: &mut Rng) {
        if !self.auth || self.flavours.contains(&Flavour::V0_4) {
            return;
        }
        self.identities = true;
        self.renewals = rng.below(4);
    }
}

/// The key of a user, in its so many-th generation.
fn seed(user: u8, generation: u8) -> String {
    let mut raw = [7; 32];
    (raw[0], raw[1]) = (user, generation);
    let pair = KeyPair::new_from_raw(KeyPairType::User, raw).expect("a key");
    pair.seed().expect("a seed")
}

fn key(user: u8, generation: u8) -> PublicKey {
    Seed::parse(&seed(user, generation))
        .expect("a seed")
        .public()
}

/// What natsmux has read from its files.
fn loaded(generation: u8) -> Loaded {
    let one = |user: u8| LoadedIdentity {
        name: format!("user{user}"),
        who: Who {
            token: Some(Secret::new(&format!("user{user}"))),
            ..Who::default()
        },
        source: CredentialsConfig {
            source: CredentialSource::Nkey(format!("user{user}").into()),
            pair: None,
        },
        credentials: Credentials::nkey(&seed(user, generation)).expect("a seed"),
    };
    Loaded {
        identities: (0..USERS).map(one).collect(),
        proxy: None,
    }
}

/// The identities of a host that begins.
pub fn identities() -> Identities {
    let mut identities = Identities::new([1; 32]);
    identities.replace(loaded(0));
    identities
}

/// Who a component is.
pub fn identify(daemon: &Daemon, connect: &ConnectInfo) -> Identified {
    let judgement = daemon.bus.identities().judge(&Presented {
        connect,
        nonce: "",
        owner: None,
        names: &[],
    });
    match judgement {
        Judgement::Is(id, _) => Identified::As(id),
        Judgement::PassThrough => Identified::Unknown,
        Judgement::Refused | Judgement::Verify(_) => Identified::Refused,
    }
}

/// What a broker asks who connects to sign.
pub fn nonce(conn: ConnId) -> String {
    format!("nonce{conn}")
}

impl World {
    /// Schedules the renewals.
    pub fn schedule_renewals(&mut self) {
        for _ in 0..self.plan.renewals {
            let at = self.rng.below(self.plan.safety_end);
            self.at(at, Event::Renew);
        }
    }

    /// All users have new keys, which brokers take, and natsmux has read; the former run out soon.
    pub fn renew(&mut self) {
        self.generation += 1;
        let generation = self.generation;
        self.trace(|| format!("credentials are renewed: {generation}"));
        self.oracle.mark("identity: renewed");
        for host in 0..self.plan.hosts {
            self.focus(host);
            let identities = self.daemon.bus.identities_mut();
            identities.replace(loaded(generation));
            self.wake_trunks();
            self.touch(host);
        }
        if !self.plan.is_flawless {
            let pause = self.rng.range(300 * MS, 2 * SECOND);
            self.after(pause, Event::Expire { generation });
        }
    }

    /// Credentials older than these run out.
    pub fn expire(&mut self, generation: u8) {
        self.trace(|| format!("credentials before {generation} run out"));
        for broker in 0..self.brokers.len() {
            let clients = self.brokers[broker].clients.iter();
            let old = clients
                .filter(|(_, client)| client.generation.is_some_and(|used| used < generation));
            let old: Vec<ConnId> = old.map(|(conn, _)| *conn).collect();
            for conn in old {
                self.oracle.mark("identity: ran out before it was renewed");
                self.broker_close(broker, conn, Some(REVOKED));
            }
        }
    }

    /// A reload of one broker removes a user, whom the others know.
    pub fn remove_user(&mut self, no: usize) {
        let user = format!("user{}", self.rng.below(u64::from(USERS)));
        self.trace(|| format!("broker {no} doesn't know {user} any more"));
        self.oracle.mark("identity: removed at one broker");
        let clients = self.brokers[no].clients.iter();
        let own = clients.filter(|(_, client)| client.user == user);
        let own: Vec<ConnId> = own.map(|(conn, _)| *conn).collect();
        self.brokers[no].removed.insert(user);
        for conn in own {
            self.broker_close(no, conn, Some("Authorization Violation"));
        }
    }

    /// Judges the credentials on a link, and says whose they are, and how old.
    pub fn judge_credentials(&mut self, conn: ConnId, json: &str) -> Option<(String, u8)> {
        let token = json_value(json, "auth_token").unwrap_or_default();
        if token.starts_with("user") {
            let text = format!("a broker was told a component's own credentials: {token}");
            self.oracle.fail("I26 identity", text);
        }
        let nkey = json_value(json, "nkey")?.to_owned();
        let all = (0..USERS).flat_map(|user| (0..=self.generation).map(move |at| (user, at)));
        let found = all.map(|(user, at)| (user, at, key(user, at)));
        let mut found = found.filter(|(.., key)| key.to_string() == nkey);
        let (user, generation, key) = found.next()?;
        let signature = json_value(json, "sig").unwrap_or_default();
        if !key.verifies(&nonce(conn), signature) {
            let text = format!("the signature on connection {conn} isn't of its nonce");
            self.oracle.fail("I26 identity", text);
        }
        let user = format!("user{user}");
        self.judge_sessions(conn, &user);
        Some((user, generation))
    }

    /// A link is of one identity, and so are all sessions of its trunk.
    fn judge_sessions(&mut self, conn: ConnId, user: &str) {
        let (host, ends) = (self.conns[&conn].host, self.conns[&conn].ends);
        let Ends::NatsmuxToBroker { link, .. } = ends else {
            return;
        };
        let sessions = self.daemon_of(host).sessions_of_link(link);
        let others = self.components.iter().filter(|component| {
            let session = component.session;
            component.host == host && session.is_some_and(|session| sessions.contains(&session))
        });
        let other = others
            .map(|component| component.user.clone())
            .find(|other| other != user);
        if let Some(other) = other {
            let text = format!("a link of {other}'s says that it is {user}'s");
            self.oracle.fail("I26 identity", text);
        }
    }

    /// At rest, every link has the newest credentials.
    pub fn judge_generations(&mut self) {
        let newest = self.generation;
        let clients = self
            .brokers
            .iter()
            .flat_map(|broker| broker.clients.values());
        let mut used = clients.filter_map(|client| client.generation);
        if let Some(old) = used.find(|used| *used < newest) {
            let text = format!("a link still has credentials {old}, and {newest} are the newest");
            self.oracle.fail("R38 renewal", text);
        }
    }
}
