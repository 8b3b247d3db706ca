//! Identities over brokers that aren't clustered.

use super::{Operator, User, answer, config, identity, signed};
use crate::support::{
    Broker, BrokerOptions, Natsmux, NatsmuxOptions, PATIENCE, RawClient, Version, write_secret,
};

/// A broker of each version, and natsmux, which is that user to them.
fn start(operator: &Operator, user: &User) -> ([Broker; 2], Natsmux) {
    let brokers = Version::ALL.map(|version| {
        Broker::with(BrokerOptions {
            extra: operator.broker_config(),
            ..BrokerOptions::new(version)
        })
    });
    let urls: Vec<String> = brokers.iter().map(Broker::url).collect();
    let more = "topology = \"independent\"\n".to_owned()
        + &identity("orders", "same_key = true", &super::creds(user));
    let natsmux = Natsmux::launch(&NatsmuxOptions {
        config: Some(config(&urls, &more)),
        ..NatsmuxOptions::default()
    });
    (brokers, natsmux.wait_healthy())
}

/// Each link of a renewed identity gives way to another, and what is published arrives once.
#[test]
fn links_to_independent_brokers_are_renewed_one_after_the_other() {
    const MESSAGES: usize = 4_000;
    let operator = Operator::new();
    let user = operator.user("orders");
    let (_brokers, natsmux) = start(&operator, &user);
    let mut client = RawClient::connect(&natsmux.address());
    let members = signed(&user, &client.info());
    assert_eq!(answer(&mut client, &members), "PONG");
    client.send("SUB a 1\r\nPING\r\n");
    client.pong();
    natsmux.wait_varz("a link to each", PATIENCE, |varz| varz["links"] == 2);
    let mut seen = 0;
    for at in 0..MESSAGES {
        if at % 1_000 == 500 {
            operator.issue(&user, None);
        }
        client.send(format!("PUB a 4\r\n{at:04}\r\n"));
        if at % 20 == 19 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            client.send("PING\r\n");
            while seen <= at {
                client.expect(&format!("MSG a 1 4\r\n{seen:04}\r\n"));
                seen += 1;
            }
            client.pong();
        }
    }
    let varz = natsmux.wait_varz("both links to be renewed each time", PATIENCE, |varz| {
        varz["renewed_links"].as_u64() >= Some(8) && varz["links"] == 2
    });
    assert_eq!(
        (&varz["in_doubt"], &varz["waiting"]),
        (&0.into(), &0.into()),
        "{varz}"
    );
    assert_eq!(varz["sessions_closed"], 0, "{varz}");
}

/// What others publish at a broker while natsmux's link there gives way to another arrives once.
#[test]
fn what_others_publish_while_links_are_renewed_arrives_once() {
    const ROUNDS: usize = 8;
    const EACH: usize = 600;
    let operator = Operator::new();
    let user = operator.user("orders");
    let (brokers, natsmux) = start(&operator, &user);
    let connect = |address: &str| {
        let mut client = RawClient::connect(address);
        let members = signed(&user, &client.info());
        assert_eq!(answer(&mut client, &members), "PONG");
        client
    };
    let mut subscriber = connect(&natsmux.address());
    subscriber.send("SUB b.* 1\r\nPING\r\n");
    subscriber.pong();
    natsmux.wait_varz("a link to each", PATIENCE, |varz| varz["links"] == 2);
    let mut others: Vec<_> = brokers
        .iter()
        .map(|broker| connect(&broker.address()))
        .collect();
    let mut seen = [0; 2];
    for round in 0..ROUNDS {
        operator.issue(&user, None);
        for at in round * EACH..(round + 1) * EACH {
            for (broker, other) in others.iter_mut().enumerate() {
                other.send(format!("PUB b.{broker} 4\r\n{at:04}\r\n"));
            }
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
        while seen.iter().any(|seen| *seen < (round + 1) * EACH) {
            let frame = subscriber.frame();
            let Some(broker) = frame.line.strip_prefix("MSG b.") else {
                continue;
            };
            let broker = usize::from(broker.starts_with('1'));
            let expected = format!("{:04}", seen[broker]);
            assert_eq!(
                String::from_utf8_lossy(&frame.payload),
                expected,
                "at {broker}"
            );
            seen[broker] += 1;
        }
    }
    let varz = natsmux.wait_varz("both links to be renewed each time", PATIENCE, |varz| {
        varz["renewed_links"].as_u64() >= Some(2 * ROUNDS as u64) && varz["links"] == 2
    });
    assert_eq!(varz["sessions_closed"], 0, "{varz}");
    assert_eq!(varz["link_failures"], 0, "{varz}");
}

/// Credentials that no broker takes yet change nothing on the links that live; once one takes them,
/// they are renewed.
#[test]
fn credentials_that_brokers_refuse_cost_no_link() {
    let (old, new) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let lets_in = |pairs: &[&nkeys::KeyPair]| {
        let users = pairs
            .iter()
            .map(|pair| format!("{{ nkey: {} }}", pair.public_key()));
        let users: Vec<String> = users.collect();
        format!("authorization {{ users = [ {} ] }}", users.join(", "))
    };
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("seed");
    let write = |pair: &nkeys::KeyPair| write_secret(&path, &pair.seed().expect("a seed"));
    for topology in ["independent", "cluster"] {
        write(&old);
        let mut brokers = Version::ALL.map(|version| {
            Broker::with(BrokerOptions {
                extra: lets_in(&[&old]),
                ..BrokerOptions::new(version)
            })
        });
        let urls: Vec<String> = brokers.iter().map(Broker::url).collect();
        let more = format!("topology = {topology:?}\n")
            + &identity("svc", "anybody = true", &format!("nkey_file = {path:?}"));
        let natsmux = Natsmux::launch(&NatsmuxOptions {
            config: Some(config(&urls, &more)),
            ..NatsmuxOptions::default()
        })
        .wait_healthy();
        let mut client = natsmux.client();
        client.send("SUB a 1\r\nPING\r\n");
        client.pong();
        let links = if topology == "cluster" { 1 } else { 2 };
        natsmux.wait_varz("its links", PATIENCE, |varz| varz["links"] == links);
        write(&new);
        natsmux.wait_varz("the file to be read", PATIENCE, |varz| {
            varz["buses"][0]["identities"][0]["subject"] == new.public_key()
        });
        for at in 0..30 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            client.send(format!("PUB a 2\r\n{at:02}\r\nPING\r\n"));
            client.expect(&format!("MSG a 1 2\r\n{at:02}\r\n"));
            client.pong();
        }
        let varz = natsmux.varz();
        assert_eq!(
            (&varz["links"], &varz["in_doubt"]),
            (&links.into(), &0.into()),
            "{varz}"
        );
        for broker in &mut brokers {
            broker.reload(&lets_in(&[&old, &new]));
        }
        natsmux.wait_varz("links with the new ones", 2 * PATIENCE, |varz| {
            varz["renewed_links"].as_u64() >= Some(links) && varz["links"] == links
        });
        client.send("PUB a 2\r\nok\r\nPING\r\n");
        client.expect("MSG a 1 2\r\nok\r\n");
        client.pong();
    }
}
