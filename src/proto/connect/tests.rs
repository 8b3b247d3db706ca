use super::*;
use crate::proto::client::{ClientLimits, ClientOp, Scan, scan};

fn parsed(json: &str) -> ConnectInfo {
    ConnectInfo::parse(json.as_bytes()).expect("the test's options are well-formed")
}

#[test]
fn a_bearer_jwt_needs_no_signature() {
    let jwt = |claims: &str| {
        let payload = data_encoding::BASE64URL_NOPAD.encode(claims.as_bytes());
        let json = format!(r#"{{"jwt":"e30.{payload}.c2ln","sig":"c2ln","nkey":"U"}}"#);
        ConnectInfo::parse(json.as_bytes()).expect("options")
    };
    let mut bearer = jwt(r#"{"sub":"U","nats":{"bearer_token":true,"type":"user"}}"#);
    assert!(bearer.is_bearer() && bearer.is_signed());
    bearer.unsign();
    assert!(bearer.is_bearer() && !bearer.is_signed() && bearer.nkey.is_none());
    for claims in [
        r#"{"nats":{}}"#,
        r#"{"nats":{"bearer_token":false}}"#,
        "{}",
        "no JSON",
    ] {
        assert!(!jwt(claims).is_bearer(), "{claims}");
    }
    bearer.forget_keys();
    assert!(bearer.jwt.is_none());
    let broken = ConnectInfo::parse(br#"{"jwt":"x.%.y"}"#).expect("options");
    assert!(!broken.is_bearer());
}

#[test]
fn the_defaults_are_those_of_a_session_without_connect() {
    let options = parsed("{}");
    assert_eq!(options, ConnectInfo::default());
    assert!(options.verbose && options.pedantic && options.echo && !options.headers);
    assert_eq!(parsed("null"), ConnectInfo::default());
}

#[test]
fn keys_match_in_any_case_and_the_last_one_wins() {
    assert!(!parsed(r#"{"Verbose":true,"VERBOSE":false}"#).verbose);
    assert!(parsed(r#"{"verbose":false,"\u0076erbose":true}"#).verbose);
    assert!(parsed(r#"{"verbose":false,"verboſe":true}"#).verbose);
    assert_eq!(
        parsed(r#"{"USER":"a","user":"b"}"#).user,
        Some(Secret::new("b"))
    );
}

#[test]
fn null_leaves_a_value_and_unknown_keys_are_ignored() {
    assert!(!parsed(r#"{"echo":false,"echo":null}"#).echo);
    assert_eq!(
        parsed(r#"{"x":[1,{"a":null}],"token":5,"ssl_required":5}"#),
        ConnectInfo::default()
    );
}

#[test]
fn wrong_types_and_malformed_json_are_faults() {
    for json in [
        r#"{"verbose":"no"}"#,
        r#"{"verbose":1}"#,
        r#"{"protocol":1.0}"#,
        r#"{"protocol":1e0}"#,
        r#"{"protocol":"1"}"#,
        r#"{"name":5}"#,
        r#"{"user":["a"]}"#,
        r#"{"tls_required":5}"#,
        r#"{"import":5}"#,
        "[]",
        "5",
    ] {
        assert_eq!(
            ConnectInfo::parse(json.as_bytes()),
            Err(ConnectFault::WrongType),
            "{json}"
        );
    }
    for json in [
        "",
        "\r",
        "{",
        "{}x",
        "{\"verbose\":false,}",
        "{'verbose':false}",
        "{\"name\":\"a\u{1}\"}",
    ] {
        assert_eq!(
            ConnectInfo::parse(json.as_bytes()),
            Err(ConnectFault::NotJson),
            "{json}"
        );
    }
}

#[test]
fn a_second_connect_is_merged_over_the_first() {
    let mut options = parsed(r#"{"verbose":false,"user":"u","pass":"p"}"#);
    options
        .merge(br#"{"headers":true,"pass":"q"}"#)
        .expect("well-formed");
    assert!(!options.verbose && options.headers);
    assert_eq!(
        (options.user.clone(), options.pass.clone()),
        (Some(Secret::new("u")), Some(Secret::new("q")))
    );
    let before = options.clone();
    assert_eq!(
        options.merge(br#"{"user":"x","verbose":"x"}"#),
        Err(ConnectFault::WrongType)
    );
    assert_eq!(options, before);
}

#[test]
fn what_is_written_parses_to_the_same_options() {
    for json in [
        "{}",
        r#"{"verbose":false,"pedantic":false,"echo":false,"headers":true,"no_responders":true}"#,
        r#"{"user":"ü\"\\\n","pass":"\u0000\ud800","name":"n","lang":"go","version":"1","protocol":1}"#,
        r#"{"auth_token":"t","jwt":"j","nkey":"k","sig":"s","account":"a","new_account":true}"#,
    ] {
        let options = parsed(json);
        let mut line = Vec::new();
        options.encode(1, true, &mut line);
        let Scan::Op {
            op: ClientOp::Connect { json },
            len,
        } = scan(&line, &ClientLimits::default())
        else {
            panic!("{json}")
        };
        assert_eq!(len, line.len());
        assert_eq!(
            ConnectInfo::parse(json),
            Ok(ConnectInfo {
                protocol: 1,
                ..options
            })
        );
    }
}

#[test]
fn unknown_keys_and_empty_texts_are_not_written() {
    let mut line = Vec::new();
    parsed(r#"{"verbose":false,"pedantic":false,"user":"","x":1,"tls_required":true}"#)
        .encode(0, true, &mut line);
    assert_eq!(
        line,
        b"CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":true,\"protocol\":0}\r\n"
    );
}

#[test]
fn only_a_signature_makes_a_connect_unrepeatable() {
    assert!(parsed(r#"{"nkey":"U","sig":"x"}"#).is_signed());
    assert!(!parsed(r#"{"jwt":"bearer","sig":""}"#).is_signed());
}

#[test]
fn options_that_no_broker_serves_have_its_answer() {
    assert_eq!(parsed(r#"{"protocol":1}"#).refusal(HeaderSupport::On), None);
    assert_eq!(
        parsed(r#"{"protocol":2}"#).refusal(HeaderSupport::On),
        Some("invalid client protocol")
    );
    assert_eq!(
        parsed(r#"{"protocol":-1}"#).refusal(HeaderSupport::On),
        Some("invalid client protocol")
    );
    assert_eq!(
        parsed(r#"{"account":"x","protocol":2}"#).refusal(HeaderSupport::On),
        Some("Authorization Violation")
    );
    assert_eq!(parsed(r#"{"account":""}"#).refusal(HeaderSupport::On), None);
    let wants_both = parsed(r#"{"headers":true,"no_responders":true}"#);
    assert_eq!(wants_both.refusal(HeaderSupport::On), None);
    assert_eq!(
        wants_both.refusal(HeaderSupport::Off),
        Some("no responders requires headers support")
    );
    assert!(
        parsed(r#"{"no_responders":true}"#)
            .refusal(HeaderSupport::On)
            .is_some()
    );
    assert_eq!(wants_both.refusal(HeaderSupport::Unheard), None);
}

#[test]
fn debug_output_shows_no_credential() {
    let shown = format!(
        "{:?}",
        parsed(r#"{"user":"hunter1","pass":"hunter2","jwt":"hunter3","sig":"hunter4"}"#)
    );
    assert!(!shown.contains("hunter"), "{shown}");
}

#[test]
fn every_key_sets_its_own_option() {
    let options = parsed(
        r#"{"verbose":false,"pedantic":false,"echo":false,"headers":true,"no_responders":true,
        "new_account":true,"protocol":1,"user":"u","pass":"p","auth_token":"t","jwt":"j",
        "nkey":"n","sig":"s","name":"na","lang":"la","version":"ve","account":"ac"}"#,
    );
    let flags = [options.verbose, options.pedantic, options.echo];
    assert_eq!(flags, [false; 3]);
    let flags = [options.headers, options.no_responders, options.new_account];
    assert_eq!((flags, options.protocol), ([true; 3], 1));
    let secrets = [
        &options.user,
        &options.pass,
        &options.auth_token,
        &options.jwt,
        &options.nkey,
        &options.sig,
    ];
    let secrets = secrets.map(|secret| secret.as_ref().map(Secret::expose));
    assert_eq!(secrets, ["u", "p", "t", "j", "n", "s"].map(Some));
    let texts = [
        &options.name,
        &options.lang,
        &options.version,
        &options.account,
    ];
    let texts = texts.map(|text| text.as_deref());
    assert_eq!(texts, ["na", "la", "ve", "ac"].map(Some));
}

#[test]
fn secrets_are_compared_and_hashed_by_their_text_and_never_shown() {
    let hash = |secret: &Secret| {
        let mut hasher = std::hash::DefaultHasher::new();
        secret.hash(&mut hasher);
        hasher.finish()
    };
    let [one, same, other] = ["s3cret", "s3cret", "s3creT"].map(Secret::new);
    assert_eq!(one, same);
    assert_ne!(one, other);
    assert_eq!(hash(&one), hash(&same));
    assert_ne!(hash(&one), hash(&other));
    assert_eq!(format!("{one:?}"), "[secret]");
}
