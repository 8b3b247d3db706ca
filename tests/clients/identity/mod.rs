//! Identities: real clients that sign, or carry nothing at all.

mod callout;
mod departures;
mod independent;
mod relay;
mod who;

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::kills::{kill_in_turn, start_all, totals, wait_for_flow};
use crate::support::{
    BrokerOptions, Cluster, Natsmux, Operator, PATIENCE, RawClient, User, Version, wait_for,
    write_secret,
};
use crate::tls::{self, broker};

/// As many as with TLS.
const KILLS: u64 = 8;

/// One bus with these lines behind its brokers.
fn config(brokers: &[String], more: &str) -> String {
    tls::config(brokers, "", more)
}

fn launch(brokers: &[String], more: &str) -> Natsmux {
    tls::launch(brokers, "", more)
}

/// An identity with credentials, for whoever this lets in.
fn identity(name: &str, who: &str, credentials: &str) -> String {
    format!("[[bus.identity]]\nname = \"{name}\"\nmatch = {{ {who} }}\n{credentials}\n")
}

fn creds(user: &User) -> String {
    format!("creds = {:?}", user.path().display().to_string())
}

/// The members of CONNECT of a component that signs what it was told.
fn signed(user: &User, info: &Value) -> String {
    let nonce = info["nonce"].as_str().expect("a nonce");
    format!(r#""jwt":"{}","sig":"{}""#, user.jwt(), user.sign(nonce))
}

/// Sends CONNECT with these members, and returns all that comes until the answer to a PING, or the
/// end.
fn answer(client: &mut RawClient, members: &str) -> String {
    let options = r#""verbose":false,"pedantic":false,"protocol":1,"headers":true"#;
    client.send(format!("CONNECT {{{options},{members}}}\r\nPING\r\n"));
    let line = client.frame().line;
    if line != "PONG" {
        assert!(client.until_closed().is_empty());
    }
    line
}

#[test]
fn clients_with_creds_notice_no_kill_of_a_2_15_broker() {
    kills_with_creds(Version::V215);
}

#[test]
fn clients_with_creds_notice_no_kill_of_a_2_9_broker() {
    kills_with_creds(Version::V29);
}

/// Components keep their `.creds`, of which natsmux has the same file.
fn kills_with_creds(version: Version) {
    let operator = Operator::new();
    let user = operator.user("orders");
    let (cluster, natsmux, url) = signing(version, &operator, &user);
    kill_in_turn(version, KILLS, cluster, &natsmux, &url);
}

/// Brokers that let in an operator's users alone.
fn cluster_of(version: Version, operator: &Operator) -> Cluster {
    let options = BrokerOptions {
        extra: operator.broker_config(),
        ..BrokerOptions::new(version)
    };
    Cluster::with(&options, 2)
}

/// Such brokers, natsmux with a user's key, and what clients are given that have it too.
fn signing(version: Version, operator: &Operator, user: &User) -> (Cluster, Natsmux, String) {
    let cluster = cluster_of(version, operator);
    let more = identity("orders", "same_key = true", &creds(user));
    let natsmux = launch(&cluster.urls(), &more).wait_healthy();
    let url = format!("{}#creds={}", natsmux.url(), user.path().display());
    (cluster, natsmux, url)
}

/// Every kind of credentials that a broker takes is said by natsmux, for a component that has none.
#[test]
fn natsmux_says_every_kind_of_credentials_for_components_without_any() {
    let operator = Operator::new();
    let signed = operator.user("signed");
    let bearer = operator.user("bearer");
    operator.issue_as(&bearer, None, &json!({ "bearer_token": true }));
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        write_secret(&path, text);
        path.display().to_string()
    };
    let nkeys = format!(
        "authorization {{ users = [ {{ nkey: {} }} ] }}",
        signed.key()
    );
    let password = "authorization { user: svc, password: \"s3 cret\" }".to_owned();
    let token = "authorization { token: t0ken }".to_owned();
    let seed = file("seed", &signed.seed());
    let pass = file("password", "s3 cret\n");
    let token_file = file("token", "t0ken");
    let jwt = file("jwt", &bearer.jwt());
    for version in Version::ALL {
        for (config, says, subject) in [
            (operator.broker_config(), creds(&signed), signed.key()),
            (
                operator.broker_config(),
                format!("jwt_file = {jwt:?}"),
                bearer.key(),
            ),
            (nkeys.clone(), format!("nkey_file = {seed:?}"), signed.key()),
            (
                password.clone(),
                format!("user = \"svc\"\npassword_file = {pass:?}"),
                "svc".to_owned(),
            ),
            (
                token.clone(),
                format!("token_file = {token_file:?}"),
                "(token)".to_owned(),
            ),
        ] {
            let broker = broker(version, config);
            let more = identity("svc", "anybody = true", &says);
            let natsmux = launch(&[broker.url()], &more).wait_healthy();
            let mut client = natsmux.client();
            client.send("SUB a 1\r\nPUB a 2\r\nhi\r\nPING\r\n");
            client.expect("MSG a 1 2\r\nhi\r\n");
            client.pong();
            let connz = natsmux.get("/connz?auth=1").expect("an answer").body;
            assert!(connz.contains("\"identity\":\"svc\""), "{connz}");
            let varz = natsmux.varz();
            assert_eq!(
                varz["buses"][0]["identities"][0]["subject"], *subject,
                "{varz}"
            );
        }
    }
}

/// natsmux verifies a component's signature by the key that it holds, of its own nonce, once.
#[test]
fn a_signature_is_believed_for_the_nonce_that_was_told_and_for_no_other() {
    let operator = Operator::new();
    let (user, other) = (operator.user("orders"), operator.user("other"));
    let broker = broker(Version::V215, operator.broker_config());
    let more = identity("orders", "same_key = true", &creds(&user));
    let natsmux = launch(&[broker.url()], &more).wait_healthy();
    let mut first = RawClient::connect(&natsmux.address());
    let info = first.info();
    assert_eq!(info["auth_required"], true);
    let once = signed(&user, &info);
    assert_eq!(answer(&mut first, &once), "PONG");
    let mut second = RawClient::connect(&natsmux.address());
    assert_ne!(second.info()["nonce"], info["nonce"]);
    assert_eq!(answer(&mut second, &once), "-ERR 'Authorization Violation'");
    // The right key and no signature, and another's signature for it.
    let jwt = format!(r#""jwt":"{}""#, user.jwt());
    let mut third = RawClient::connect(&natsmux.address());
    third.info();
    assert_eq!(answer(&mut third, &jwt), "-ERR 'Authorization Violation'");
    let mut fourth = RawClient::connect(&natsmux.address());
    let nonce = fourth.info()["nonce"].clone();
    let forged = other.sign(nonce.as_str().expect("a nonce"));
    let forged = format!(r#"{jwt},"sig":"{forged}""#);
    assert_eq!(
        answer(&mut fourth, &forged),
        "-ERR 'Authorization Violation'"
    );
    assert_canary(&natsmux, &[&user]);
}

/// JWTs of 10 s, of which each is replaced after 5: components notice nothing.
#[test]
fn renewed_credentials_are_noticed_by_no_client() {
    const LIFE: Duration = Duration::from_secs(10);
    const RENEWALS: u64 = 4;
    for version in Version::ALL {
        let operator = Operator::new();
        let user = operator.user("orders");
        operator.issue(&user, Some(LIFE));
        let (_cluster, natsmux, url) = signing(version, &operator, &user);
        let mut clients = start_all(&url);
        // However long they took to start.
        operator.issue(&user, Some(LIFE));
        for round in 1..=RENEWALS {
            thread::sleep(LIFE / 2);
            operator.issue(&user, Some(LIFE));
            natsmux.wait_varz("links with the new ones", PATIENCE, |varz| {
                varz["renewed_links"].as_u64() >= Some((round + 1) * clients.len() as u64)
                    || varz["trunks"].as_u64().is_some_and(|trunks| {
                        varz["renewed_links"].as_u64() >= Some((round + 1) * trunks)
                    })
            });
            wait_for_flow(&mut clients, &format!("behind renewal {round}"));
        }
        let totals = totals(clients);
        let varz = natsmux.varz();
        println!("{version:?}: {RENEWALS} renewals, {totals:?}");
        assert_eq!((totals.disconnects, totals.errors), (0, 0), "{totals:?}");
        assert_eq!(totals.duplicates, 0, "{totals:?}");
        assert_eq!(varz["in_doubt"], 0, "{varz}");
        assert_eq!(totals.missing, 0, "R41: {totals:?}");
        assert_canary(&natsmux, &[&user]);
    }
}

/// Credentials that nobody renews: the operator hears of it ahead, and the component the broker's
/// own words, as it would directly.
#[test]
fn credentials_that_nobody_renews_end_as_they_would_directly() {
    const LIFE: Duration = Duration::from_secs(4);
    let operator = Operator::new();
    let user = operator.user("orders");
    operator.issue(&user, Some(LIFE));
    let broker = broker(Version::V215, operator.broker_config());
    let more = identity("orders", "anybody = true", &creds(&user));
    let natsmux = launch(&[broker.url()], &more).wait_healthy();
    let mut client = natsmux.client();
    let metrics = natsmux.get("/metrics").expect("an answer").body;
    let series = "natsmux_credential_expires_seconds{bus=\"default\",identity=\"orders\"}";
    assert!(metrics.contains(series), "{metrics}");
    client.set_patience(2 * LIFE);
    assert_eq!(client.line(), "-ERR 'User Authentication Expired'");
    assert!(client.until_closed().is_empty());
    assert!(
        natsmux.log().contains("credentials expire"),
        "the operator is told"
    );
    // The broker counts in seconds.
    thread::sleep(Duration::from_secs(1));
    // A broker that refuses them is believed at once: nobody is let in, live or not.
    let mut late = RawClient::connect(&natsmux.address());
    late.info();
    assert_eq!(
        answer(&mut late, "\"lang\":\"raw\""),
        "-ERR 'Authorization Violation'"
    );
    // With new ones, everybody is.
    operator.issue(&user, None);
    wait_for("newcomers to be let in", PATIENCE, || {
        let mut client = RawClient::connect(&natsmux.address());
        client.info();
        (answer(&mut client, "\"lang\":\"raw\"") == "PONG").then_some(())
    });
}

/// No seed and no JWT stands in anything that natsmux says.
fn assert_canary(natsmux: &Natsmux, users: &[&User]) {
    let mut said = natsmux.log();
    for path in [
        "/varz",
        "/connz?auth=1&subs=detail",
        "/metrics",
        "/eventz",
        "/",
    ] {
        if let Some(answer) = natsmux.get(path) {
            said.push_str(&answer.body);
        }
    }
    for user in users {
        for secret in [user.seed(), user.jwt()] {
            assert!(!said.contains(&secret), "a secret was said");
        }
    }
}
