use serde_json::{Value, json};

use super::*;

const INFO_29: &str = r#"{"server_id":"NB","server_name":"NB","version":"2.9.10","proto":1,"git_commit":"","go":"go1.19.4","host":"127.0.0.1","port":4222,"headers":true,"max_payload":1048576,"client_id":4,"client_ip":"127.0.0.1","xkey":"X"} "#;

fn broker(json: &str) -> ServerInfo {
    ServerInfo::parse(json.as_bytes()).expect("the test's INFO is well-formed")
}

fn local() -> FirstInfo<'static> {
    FirstInfo {
        server_id: "MUX",
        server_name: "mux-on-host",
        host: "127.0.0.1",
        port: 4222,
        client_ip: "127.0.0.1",
        client_id: 7,
        jetstream: true,
        auth_required: false,
        max_payload: usize::MAX,
        nonce: "0123456789abcde",
        is_signed: false,
        tls: None,
    }
}

fn said(line: &[u8]) -> Value {
    let json = line
        .strip_prefix(b"INFO ")
        .and_then(|rest| rest.strip_suffix(b"\r\n"))
        .expect("an INFO line");
    serde_json::from_slice(json).expect("the line is JSON")
}

#[test]
fn a_brokers_info_is_read_with_defaults_for_what_is_missing() {
    let info = broker(INFO_29);
    assert_eq!(
        (info.version.as_str(), info.proto, info.client_id),
        ("2.9.10", 1, Some(4))
    );
    assert!(info.headers && !info.auth_required && !info.ldm && info.nonce.is_none());
    assert_eq!(broker("{}"), ServerInfo::default());
    assert_eq!(
        broker(r#"{"max_payload":null,"connect_urls":null,"ldm":null}"#),
        ServerInfo::default()
    );
    assert_eq!(broker(r#"{"max_payload":-1}"#).max_payload, 1_048_576);
}

#[test]
fn what_is_no_object_of_the_right_types_is_a_fault() {
    for json in [
        "",
        "null",
        "[]",
        "{",
        "{} x",
        r#"{"port":"x"}"#,
        r#"{"port":70000}"#,
        r#"{"headers":1}"#,
    ] {
        assert_eq!(
            ServerInfo::parse(json.as_bytes()),
            Err(InfoFault::Malformed),
            "{json}"
        );
    }
}

#[test]
fn before_any_broker_was_seen_credentials_are_asked_for() {
    let said = said(&first_info(&[], &local()));
    let expected = json!({
        "server_id": "MUX", "version": "2.9.0", "proto": 1, "host": "127.0.0.1", "port": 4222,
        "max_payload": 1_048_576, "headers": true, "auth_required": true, "tls_required": false,
        "server_name": "mux-on-host", "client_id": 7, "jetstream": false, "ssl_required": false,
        "client_ip": "127.0.0.1",
    });
    assert_eq!(said, expected);
}

#[test]
fn the_common_denominator_of_all_brokers_is_said() {
    let a = broker(
        r#"{"version":"2.15.1","headers":true,"max_payload":100,"jetstream":true,"cluster":"c","domain":"d","api_lvl":4,"go":"go1.26"}"#,
    );
    let b = broker(
        r#"{"version":"2.9.10","headers":false,"max_payload":2000,"auth_required":true,"cluster":"c","domain":"e","go":"go1.19"}"#,
    );
    let said = said(&first_info(&[&a, &b], &local()));
    assert_eq!(said["version"], "2.9.10");
    assert_eq!(said["max_payload"], 100);
    assert_eq!(said["headers"], false);
    assert_eq!(said["auth_required"], true);
    assert_eq!(said["jetstream"], false);
    assert_eq!(said["cluster"], "c");
    assert_eq!(said["go"], "go1.19");
    assert_eq!(said.get("domain"), None);
    assert_eq!(said.get("api_lvl"), None);
}

#[test]
fn addresses_a_brokers_nonce_and_lame_duck_are_never_passed_on() {
    let info = broker(
        r#"{"version":"2.15.1","nonce":"n","connect_urls":["h:1"],"ldm":true,"tls_required":true}"#,
    );
    let said = said(&first_info(&[&info], &local()));
    // A component signs what it likes: its signature goes to no broker.
    assert_eq!(said["nonce"], local().nonce);
    for key in ["connect_urls", "ldm"] {
        assert_eq!(said.get(key), None, "{key}");
    }
    assert_eq!(said["tls_required"], false);
}

#[test]
fn the_first_info_is_at_most_512_bytes_and_loses_its_last_fields_first() {
    let long = "x".repeat(600);
    for used in 0..600 {
        let server_id = &long[..used];
        let info = ServerInfo {
            cluster: Some("c".repeat(80)),
            ..broker(INFO_29)
        };
        let line = first_info(
            &[&info],
            &FirstInfo {
                server_id,
                ..local()
            },
        );
        assert!(line.len() <= MAX_FIRST_INFO, "{}", line.len());
        let said = said(&line);
        if said.get("cluster").is_some() {
            assert!(said.get("server_name").is_some());
        }
        if said.get("server_name").is_some() {
            assert!(said.get("max_payload").is_some());
        }
        if used < 150 {
            assert_eq!(said["tls_required"], false);
        }
    }
}

#[test]
fn a_name_is_cut_to_32_bytes_between_characters() {
    let server_name = &"ü".repeat(40);
    let named = said(&first_info(
        &[],
        &FirstInfo {
            server_name,
            ..local()
        },
    ));
    assert_eq!(named["server_name"], "ü".repeat(16));
    let server_name = &format!("a{server_name}");
    let named = said(&first_info(
        &[],
        &FirstInfo {
            server_name,
            ..local()
        },
    ));
    assert_eq!(named["server_name"], format!("a{}", "ü".repeat(15)));
}

#[test]
fn versions_compare_by_number() {
    let version = |text: &str| {
        ServerInfo {
            version: text.into(),
            ..ServerInfo::default()
        }
        .version_numbers()
    };
    assert!(version("2.9.10") < version("2.15.1"));
    assert!(version("0.4.22") < version("2.9.0"));
    assert_eq!(version("v2.15.0-dev"), [2, 15, 0]);
    assert_eq!(version("odd"), [0, 0, 0]);
}

#[test]
fn a_brokers_long_version_crowds_nothing_out() {
    let broker = ServerInfo {
        version: "\u{fffd}".repeat(200),
        max_payload: 77,
        ..ServerInfo::default()
    };
    let local = FirstInfo {
        server_id: &"N".repeat(56),
        server_name: "natsmux",
        host: "127.0.0.1",
        port: 4222,
        client_ip: "127.0.0.1",
        client_id: 1,
        jetstream: true,
        auth_required: false,
        max_payload: usize::MAX,
        nonce: "0123456789abcde",
        is_signed: false,
        tls: None,
    };
    let line = first_info(&[&broker], &local);
    let told = ServerInfo::parse(line[b"INFO ".len()..].trim_ascii()).expect("INFO");
    assert_eq!(told.max_payload, 77);
}

#[test]
fn a_last_field_that_just_fits_is_said() {
    // The domain grows by a byte at a time, until the address behind it has no room.
    let lens: Vec<usize> = (1..300)
        .map(|len| {
            let domain = "d".repeat(len);
            let json = format!(r#"{{"version":"2.15.1","jetstream":true,"domain":"{domain}"}}"#);
            let line = first_info(&[&broker(&json)], &local());
            match said(&line)["domain"].as_str() {
                Some(said) => {
                    assert_eq!(said, domain);
                    line.len()
                }
                None => 0,
            }
        })
        .collect();
    assert!(lens.contains(&MAX_FIRST_INFO), "{lens:?}");
    assert!(lens.contains(&0));
}

#[test]
fn old_brokers_take_shorter_lines() {
    for (json, longest) in [
        (r#"{"version":"0.4.22"}"#, 1024),
        (r#"{"version":"1.3.0","go":"go1.11"}"#, 1024),
        (r#"{"version":"1.4.1","go":"go1.11"}"#, usize::MAX),
        (r#"{"version":"2.15.1","headers":true}"#, usize::MAX),
        (r#"{"version":"2.15.1","headers":false}"#, usize::MAX),
    ] {
        assert_eq!(broker(json).max_control_line(), longest, "{json}");
    }
}

#[test]
fn headers_are_unheard_of_before_2_2_and_may_be_off_later() {
    for (json, support) in [
        (r#"{"version":"0.4.22"}"#, HeaderSupport::Unheard),
        (r#"{"version":"2.1.9"}"#, HeaderSupport::Unheard),
        (r#"{"version":"2.2.0"}"#, HeaderSupport::Off),
        (r#"{"version":"2.15.1","headers":true}"#, HeaderSupport::On),
    ] {
        assert_eq!(broker(json).header_support(), support, "{json}");
    }
}
