//! Components that sign with keys that natsmux doesn't hold: as good as direct.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{answer, broker, cluster_of, creds, identity, launch, signed};
use crate::client::{Client, Kind, Mode};
use crate::support::{Cluster, Natsmux, Operator, PATIENCE, RawClient, User, Version, wait_for};

const REFUSED: &str = "-ERR 'Authorization Violation'";

/// A cluster that lets in an operator's users, and natsmux without any key.
fn start(version: Version, operator: &Operator) -> (Cluster, Natsmux) {
    let cluster = cluster_of(version, operator);
    let natsmux = launch(&cluster.urls(), "").wait_healthy();
    (cluster, natsmux)
}

/// A component that has signed what it was told, and subscribed; `None`: it was closed without a
/// word, and may come again.
fn connect(natsmux: &Natsmux, user: &User) -> Option<RawClient> {
    let mut client = RawClient::connect(&natsmux.address());
    let members = signed(user, &client.info());
    let options = r#""verbose":false,"pedantic":false,"protocol":1,"headers":true"#;
    client
        .try_send(format!(
            "CONNECT {{{options},{members}}}\r\nSUB a 1\r\nPING\r\n"
        ))
        .ok()?;
    (client.try_line()? == "PONG").then_some(client)
}

fn echo(client: &mut RawClient) {
    client.send("PUB a 2\r\nhi\r\nPING\r\n");
    client.expect("MSG a 1 2\r\nhi\r\n");
    client.pong();
}

/// What a component finds at a broker, it finds through natsmux, whatever it is written in.
#[test]
fn clients_with_keys_of_their_own_are_served() {
    for version in Version::ALL {
        let operator = Operator::new();
        let user = operator.user("own");
        let (_cluster, natsmux) = start(version, &operator);
        let url = format!("{}#creds={}", natsmux.url(), user.path().display());
        for kind in Kind::ALL {
            let client = Client::start(kind, &url, &format!("{kind:?}"), Mode::Basic);
            let (events, content) = client.finish();
            assert!(content, "{version:?} {kind:?}: {events:#?}");
        }
        assert!(natsmux.counter("relayed_sessions") >= Kind::ALL.len() as u64);
        assert_eq!(natsmux.counter("in_doubt"), 0);
    }
}

/// A link that ends takes its component along, without `-ERR`, and it comes back to another broker:
/// after a kill at once, after a freeze within seconds.
#[test]
fn a_component_is_let_go_with_its_link_and_comes_back() {
    for version in Version::ALL {
        let operator = Operator::new();
        let user = operator.user("own");
        let (mut cluster, natsmux) = start(version, &operator);
        let mut client = connect(&natsmux, &user).expect("it is let in");
        echo(&mut client);
        let current = natsmux.current_broker().expect("a broker");
        let victim = cluster.index_of(&current).expect("of the cluster");
        cluster.broker(victim).kill();
        closed_without_a_word(&mut client);
        let mut client = again(&natsmux, &user);
        echo(&mut client);
        cluster.restart(victim);
        let current = natsmux.current_broker().expect("a broker");
        let frozen = cluster.index_of(&current).expect("of the cluster");
        client.set_patience(PATIENCE);
        let began = Instant::now();
        cluster.broker(frozen).signal(Signal::STOP);
        client.send("PUB a 2\r\nhi\r\n");
        closed_without_a_word(&mut client);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(4), "{took:?}");
        let mut client = again(&natsmux, &user);
        echo(&mut client);
        cluster.broker(frozen).signal(Signal::CONT);
        let varz = natsmux.wait_varz("no publish to wait", PATIENCE, |varz| varz["waiting"] == 0);
        println!(
            "{version:?}: let go {took:?} after a freeze; in doubt {}",
            varz["in_doubt"]
        );
        assert_eq!(varz["refused"], 0, "{varz}");
    }
}

/// R42: a move would be noticed, so it stays; a broker that is drained goes anyway.
#[test]
fn a_component_stays_in_a_move_and_leaves_a_drained_broker() {
    let operator = Operator::new();
    let user = operator.user("own");
    let (cluster, natsmux) = start(Version::V215, &operator);
    let mut client = connect(&natsmux, &user).expect("it is let in");
    echo(&mut client);
    let first = natsmux.current_broker().expect("a broker");
    let (status, said) = natsmux.order(&["move", "default"]);
    assert!(status.success(), "{said}");
    let bus = &said["buses"][0];
    assert_eq!(
        (&bus["moved"], &bus["left"]),
        (&0.into(), &0.into()),
        "{said}"
    );
    echo(&mut client);
    let used = |address: &str| {
        let broker = cluster.index_of(address).expect("of the cluster");
        let connz = cluster.brokers()[broker].monitoring("/connz")?;
        connz["num_connections"].as_u64()
    };
    assert_eq!(used(&first), Some(1));
    let (status, said) = natsmux.order(&["drain", &first]);
    assert!(status.success(), "{said}");
    assert_eq!(said["buses"][0]["moved"], 1, "{said}");
    closed_without_a_word(&mut client);
    let mut client = again(&natsmux, &user);
    echo(&mut client);
    wait_for("nobody to be left there", PATIENCE, || {
        (used(&first)? == 0).then_some(())
    });
}

/// An INFO may have been on its way, and a broker that is told to stop may still serve a publish.
fn closed_without_a_word(client: &mut RawClient) {
    let words = client.until_closed();
    let words = String::from_utf8_lossy(&words).replacen("MSG a 1 2\r\nhi\r\n", "", 1);
    let mut lines = words.lines();
    assert!(lines.all(|line| line.starts_with("INFO ")), "{words}");
}

fn again(natsmux: &Natsmux, user: &User) -> RawClient {
    wait_for("it to be let in again", PATIENCE, || connect(natsmux, user))
}

/// A signature is used once: on the link whose nonce it signs. Who is refused hears the broker.
#[test]
fn a_relayed_signature_is_the_brokers_to_judge() {
    let operator = Operator::new();
    let user = operator.user("own");
    let (_cluster, natsmux) = start(Version::V215, &operator);
    let mut first = RawClient::connect(&natsmux.address());
    let members = signed(&user, &first.info());
    assert_eq!(answer(&mut first, &members), "PONG");
    let mut second = RawClient::connect(&natsmux.address());
    second.info();
    assert_eq!(answer(&mut second, &members), REFUSED);
    let stranger = Operator::new();
    let stranger = stranger.user("stranger");
    let mut third = RawClient::connect(&natsmux.address());
    let members = signed(&stranger, &third.info());
    assert_eq!(answer(&mut third, &members), REFUSED);
    // A relay has one link, which has had its CONNECT.
    assert_eq!(answer(&mut first, &members), REFUSED);
    // Those who never sign leave nothing behind, and are few at a time.
    let idle: Vec<RawClient> = (0..100)
        .map(|_| {
            let mut client = RawClient::connect(&natsmux.address());
            client.info();
            client
        })
        .collect();
    // Before auth_timeout would end them.
    natsmux.wait_varz(
        "the links of the oldest to be closed",
        Duration::from_secs(1),
        |varz| varz["trunks"].as_u64() <= Some(64),
    );
    let mut client = connect(&natsmux, &user).expect("others are let in meanwhile");
    echo(&mut client);
    drop(idle);
    natsmux.wait_varz("their links to be gone", PATIENCE, |varz| {
        varz["trunks"] == 1
    });
}

/// Where natsmux holds keys, others are let go once, and relayed when they come back.
#[test]
fn beside_identities_with_keys_others_are_relayed_at_their_second_try() {
    let operator = Operator::new();
    let (held, own) = (operator.user("held"), operator.user("own"));
    let broker = broker(Version::V215, operator.broker_config());
    let more = identity("held", "same_key = true", &creds(&held));
    let natsmux = launch(&[broker.url()], &more).wait_healthy();
    echo(&mut connect(&natsmux, &held).expect("it is let in"));
    assert!(connect(&natsmux, &own).is_none());
    echo(&mut connect(&natsmux, &own).expect("it is let in"));
    echo(&mut connect(&natsmux, &held).expect("it is let in"));
    natsmux.wait_varz("one relay", PATIENCE, |varz| varz["relayed_sessions"] == 1);
    let more = "signed = \"refuse\"\n".to_owned() + &more;
    let natsmux = launch(&[broker.url()], &more).wait_healthy();
    for _ in 0..2 {
        let mut client = RawClient::connect(&natsmux.address());
        let members = signed(&own, &client.info());
        assert_eq!(answer(&mut client, &members), REFUSED);
    }
}

/// Brokers that ask for a password have no use for a signature: who signs hears so, and isn't told
/// to come back.
#[test]
fn who_signs_for_brokers_that_ask_for_a_password_is_refused() {
    let broker = broker(
        Version::V215,
        "authorization { user: a, password: b }".to_owned(),
    );
    let natsmux = launch(&[broker.url()], "").wait_healthy();
    let mut client = RawClient::connect(&natsmux.address());
    assert!(client.info()["nonce"].is_null());
    assert_eq!(answer(&mut client, r#""nkey":"U","sig":"c2ln""#), REFUSED);
}
