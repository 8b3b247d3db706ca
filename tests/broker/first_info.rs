//! The first INFO that a component gets (R17), and what it can't offer (R18).

use serde_json::{Value, json};

use crate::setup::{SOON, Setup, component, component_as, subscribe};
use crate::support::{Brokers, Flavour, Greeting, Natsmux, RawClient, message};

const LIMIT: usize = 512;

/// Waits until natsmux has heard all of its brokers.
fn wait_seen(natsmux: &Natsmux) {
    natsmux.wait_varz("every broker to be seen", SOON, |varz| {
        let brokers = varz["buses"][0]["brokers"].as_array();
        brokers.is_some_and(|brokers| brokers.iter().all(|broker| !broker["version"].is_null()))
    });
}

/// The line, CRLF included, and what it says.
fn first_info(natsmux: &Natsmux) -> (String, Value) {
    let mut client = RawClient::connect(&natsmux.address());
    let line = client.line();
    let info = line.strip_prefix("INFO ").expect("INFO");
    let info = serde_json::from_str(info).expect("INFO holds JSON");
    (line + "\r\n", info)
}

fn info_of(flavours: &[Flavour]) -> (String, Value) {
    let brokers = Brokers::with_flavours(flavours);
    let natsmux = Setup::new(&brokers).bus("signed", "\"refuse\"").start();
    wait_seen(&natsmux);
    first_info(&natsmux)
}

#[test]
fn the_first_info_is_short_whatever_brokers_say() {
    let long = "é".repeat(400);
    let urls: Vec<_> = (0..200).map(|port| format!("10.0.0.1:{port}")).collect();
    let texts = [
        "server_name",
        "cluster",
        "domain",
        "go",
        "git_commit",
        "xkey",
        "host",
    ];
    for count in 0..=texts.len() {
        let mut flavour = Flavour::v2_15()
            .with_auth()
            .with("connect_urls", urls.clone())
            .with("nonce", "bGVuZ3RoIG9mIDE1")
            .with("ldm", true);
        for text in &texts[..count] {
            flavour = flavour.with(text, long.as_str());
        }
        let (line, info) = info_of(&[flavour.clone(), flavour.with("ldm", false)]);
        assert!(line.len() <= LIMIT, "{} bytes: {line}", line.len());
        assert_ne!(info["nonce"], "bGVuZ3RoIG9mIDE1", "a broker's own");
        for field in ["connect_urls", "ldm", "git_commit", "xkey"] {
            assert_eq!(info[field], Value::Null, "{field} in {line}");
        }
        for field in ["server_id", "version", "proto", "max_payload", "headers"] {
            assert_ne!(info[field], Value::Null, "no {field} in {line}");
        }
        assert_eq!(info["auth_required"], true);
        assert!(!info.to_string().contains("10.0.0.1"), "{line}");
    }
}

#[test]
fn the_first_info_is_what_the_broker_in_use_takes_whatever_spares_offer() {
    let flavours = [
        Flavour::v2_15().with("max_payload", 2_000_000),
        Flavour::v2_9().with("max_payload", 10),
        Flavour::v2_15()
            .with("version", "1.0.0")
            .with("headers", false),
    ];
    let brokers = Brokers::with_flavours(&flavours);
    let natsmux = Setup::new(&brokers).start();
    wait_seen(&natsmux);
    let used = natsmux.varz()["buses"][0]["current"].clone();
    let at = (0..flavours.len()).find(|at| used == brokers.addresses()[*at].as_str());
    let at = at.expect("one is in use");
    let (_, info) = first_info(&natsmux);
    assert_eq!(info["max_payload"], [2_000_000, 10, 1_048_576][at]);
    assert_eq!(info["version"], ["2.15.1", "2.9.10", "1.0.0"][at]);
    assert_eq!(info["headers"], [true, true, false][at]);
    assert_eq!(info["auth_required"], false);
    assert_eq!(info["proto"], 1);
    let (_, info) = info_of(&[Flavour::v2_15(), Flavour::v2_15().with_auth()]);
    assert_eq!(info["max_payload"], 1_048_576);
    assert_eq!(info["version"], "2.15.1");
    assert_eq!(info["headers"], true);
    assert_eq!(info["auth_required"], true);
}

#[test]
fn before_any_broker_was_seen_the_first_info_asks_for_credentials() {
    let brokers = Brokers::dead(2);
    let natsmux = Setup::new(&brokers).start_in_outage();
    let (line, info) = first_info(&natsmux);
    assert!(line.len() <= LIMIT);
    assert_eq!(info["auth_required"], true);
    assert_eq!(info["headers"], true);
    assert_eq!(info["max_payload"], 1_048_576);
    assert_eq!(info["version"], "2.9.0");
    assert_eq!(info["nonce"], Value::Null);
}

#[test]
fn the_first_info_names_natsmux_and_not_a_broker() {
    let brokers = Brokers::with_flavours(&[Flavour::v2_15().with("host", "10.9.8.7")]);
    let natsmux = Setup::new(&brokers).start();
    let (_, first) = first_info(&natsmux);
    let (_, second) = first_info(&natsmux);
    assert_eq!(first["host"], "127.0.0.1");
    assert_eq!(format!("127.0.0.1:{}", first["port"]), natsmux.address());
    assert_ne!(first["server_id"], "NSCRIPTED");
    assert_eq!(first["server_id"], second["server_id"]);
    assert_ne!(first["client_id"], second["client_id"]);
}

#[test]
fn a_signed_connect_is_refused_without_asking_a_broker() {
    let brokers = Brokers::with_flavours(&[Flavour::v2_15()
        .with_auth()
        .with("nonce", "bGVuZ3RoIG9mIDE1")]);
    let natsmux = Setup::new(&brokers).bus("signed", "\"refuse\"").start();
    let signed = [
        json!({"verbose": false, "nkey": "UABC", "sig": "c2ln"}),
        json!({"verbose": false, "jwt": "e.y.J", "sig": "c2ln"}),
    ];
    for connect in signed {
        let mut client = RawClient::connect(&natsmux.address());
        client.info();
        client.send(format!("CONNECT {connect}\r\nPING\r\n"));
        let last = client.until_closed();
        let last = String::from_utf8_lossy(&last);
        assert_eq!(last, "-ERR 'Authorization Violation'\r\n", "{connect}");
    }
    // The next link is that of a session that signs nothing.
    component(&natsmux, &brokers);
}

#[test]
fn a_connect_is_passed_on_from_what_it_means() {
    let brokers = Brokers::with_flavours(&[Flavour::v2_15().with_auth()]);
    let natsmux = Setup::new(&brokers).start();
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client.send(
        "CONNECT {\"VERBOSE\":true,\"verbose\":false,\"User\":\"u\",\"pass\":\"p\\u0022\",\
         \"protocol\":0,\"unheard_of\":{\"a\":[1]},\"tls_required\":true}\r\nPING\r\n",
    );
    let mut link = brokers.link();
    link.accept();
    client.pong();
    assert_eq!(link.connect["verbose"], false);
    assert_eq!(link.connect["user"], "u");
    assert_eq!(link.connect["pass"], "p\"");
    assert_eq!(link.connect["protocol"], 1);
    assert_eq!(link.connect["unheard_of"], Value::Null);
}

#[test]
fn a_connect_with_an_account_or_an_unknown_protocol_is_answered_as_brokers_do() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    for (connect, text) in [
        (
            json!({"verbose": false, "account": "A"}),
            "Authorization Violation",
        ),
        (
            json!({"verbose": false, "new_account": true}),
            "Authorization Violation",
        ),
        (
            json!({"verbose": false, "protocol": 2}),
            "invalid client protocol",
        ),
        (
            json!({"verbose": false, "no_responders": true, "headers": false}),
            "no responders requires headers support",
        ),
    ] {
        let mut client = RawClient::connect(&natsmux.address());
        client.info();
        client.send(format!("CONNECT {connect}\r\n"));
        // Also where the broker doesn't mind.
        let mut link = brokers.link();
        link.accept();
        let last = client.until_closed();
        assert_eq!(String::from_utf8_lossy(&last), format!("-ERR '{text}'\r\n"));
    }
}

#[test]
fn a_later_info_tells_a_lower_max_payload_to_sessions_of_protocol_1_only() {
    let mut brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, link) = component(&natsmux, &brokers);
    let old_client = r#"CONNECT {"verbose":false,"protocol":0}"#;
    let (mut old, mut its_link) = component_as(&natsmux, &brokers, old_client);
    let small = Flavour::v2_15().with("max_payload", 100);
    brokers.get(0).greet(Greeting::Info(small));
    link.reset();
    brokers.link().accept();
    let info = client.info();
    assert_eq!(info["max_payload"], 100);
    let sid = subscribe(&mut old, &mut its_link, "foo", "1");
    its_link.msg("foo", &sid, "x");
    old.expect(&message("foo", "1", "x"));
}

#[test]
fn independent_brokers_have_no_jetstream_to_offer() {
    let flavour = Flavour::v2_15().with("jetstream", true);
    for (topology, expected) in [("\"cluster\"", true), ("\"independent\"", false)] {
        let other = flavour.clone().with("server_id", "ANOTHER");
        let brokers = Brokers::with_flavours(&[flavour.clone(), other]);
        let natsmux = Setup::new(&brokers).bus("topology", topology).start();
        wait_seen(&natsmux);
        let (line, info) = first_info(&natsmux);
        assert_eq!(info["jetstream"], expected, "R32: {line}");
    }
}
