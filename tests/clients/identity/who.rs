//! Which components may be an identity, by each thing that may be asked of them.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use argon2::password_hash::SaltString;
use argon2::{Argon2, Params, PasswordHasher};
use rustls::StreamOwned;
use rustls::pki_types::ServerName;
use tempfile::TempDir;

use super::{answer, broker, creds, identity, launch};
use crate::support::{
    Authority, Broker, BrokerOptions, Certificate, KeyKind, Natsmux, Operator, PATIENCE, RawClient,
    Version, wait_for, write_secret,
};

const REFUSED: &str = "-ERR 'Authorization Violation'";
/// A user without any right, on every host.
const NOBODY: u32 = 65534;

/// What a component hears to its CONNECT with these members.
fn hears(natsmux: &Natsmux, members: &str) -> String {
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    answer(&mut client, members)
}

/// A file with this secret.
fn file(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    write_secret(&path, text);
    path.display().to_string()
}

/// A broker that lets in two users, and the files with their passwords.
fn two_users(version: Version, folder: &TempDir) -> (Broker, String, String) {
    let users =
        "authorization { users = [ { user: a, password: pa }, { user: b, password: pb } ] }";
    let broker = broker(version, users.to_owned());
    (broker, file(folder, "pa", "pa"), file(folder, "pb", "pb"))
}

fn says(user: &str, file: &str) -> String {
    format!("user = \"{user}\"\npassword_file = {file:?}")
}

/// The users that a broker knows its connections by.
fn users_at(broker: &Broker) -> Vec<String> {
    let connz = broker.monitoring("/connz?auth=1").expect("an answer");
    let connections = connz["connections"].as_array().expect("a list");
    let user = |one: &serde_json::Value| one["authorized_user"].as_str().map(str::to_owned);
    let mut users: Vec<String> = connections.iter().filter_map(user).collect();
    users.sort();
    users
}

#[test]
fn a_local_user_needs_the_password_whose_hash_natsmux_has() {
    let folder = TempDir::new().expect("a folder");
    let (broker, pa, pb) = two_users(Version::V215, &folder);
    let bcrypt = file(&folder, "bcrypt", &bcrypt::hash("x1", 4).expect("a hash"));
    let argon = file(&folder, "argon", &argon2_of("x2"));
    let who = |user: &str, hash: &str| format!("user = \"{user}\", password_file = {hash:?}");
    let more = identity("one", &who("one", &bcrypt), &says("a", &pa))
        + &identity("two", &who("two", &argon), &says("b", &pb));
    let natsmux = launch(&[broker.url()], &more).wait_healthy();
    let as_user =
        |user: &str, pass: &str| hears(&natsmux, &format!(r#""user":"{user}","pass":"{pass}""#));
    assert_eq!(as_user("one", "x1"), "PONG");
    assert_eq!(as_user("two", "x2"), "PONG");
    // It is remembered: nobody waits for a hash again.
    let began = Instant::now();
    for _ in 0..50 {
        assert_eq!(as_user("two", "x2"), "PONG");
    }
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    // Who is none of them passes through, to the broker's own verdict.
    assert_eq!(as_user("a", "pa"), "PONG");
    assert_eq!(as_user("a", "x1"), REFUSED);
    // Also for one that says no more than CONNECT.
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client.send("CONNECT {\"verbose\":true,\"user\":\"one\",\"pass\":\"x1\"}\r\n");
    assert_eq!(client.line(), "+OK");
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client.send("CONNECT {\"verbose\":true,\"user\":\"two\",\"pass\":\"wrong\"}\r\n");
    assert_eq!(client.line(), REFUSED);
    // Whatever is wrong takes as long.
    let took = |members: &str| {
        let began = Instant::now();
        assert_eq!(hears(&natsmux, members), REFUSED);
        began.elapsed()
    };
    let wrong = [
        took(r#""user":"one","pass":"wrong""#),
        took(r#""user":"two","pass":"wrong""#),
        took(r#""user":"one""#),
    ];
    for took in wrong {
        let expected = Duration::from_millis(500);
        assert!(took >= expected && took < 2 * expected, "{wrong:?}");
    }
    let counted = natsmux.counter("refused_identities");
    assert_eq!(counted, 4);
    let log = natsmux.log();
    assert!(
        !log.contains("wrong") && !log.contains("x1"),
        "a password in the log"
    );
}

fn argon2_of(password: &str) -> String {
    // Little of it: a build for tests is slow.
    let params = Params::new(64, 1, 1, None).expect("parameters");
    let salt = SaltString::encode_b64(b"saltsalt").expect("a salt");
    let hasher = Argon2::default();
    let hash = hasher.hash_password_customized(password.as_bytes(), None, None, params, &salt);
    hash.expect("a hash").to_string()
}

#[test]
fn a_local_nkey_or_token_is_enough_and_another_one_passes_through() {
    let folder = TempDir::new().expect("a folder");
    let (broker, pa, pb) = two_users(Version::V29, &folder);
    let operator = Operator::new();
    let user = operator.user("local");
    let token = file(&folder, "token", "t0ken\n");
    let more = identity(
        "key",
        &format!("nkey = \"{}\"", user.key()),
        &says("a", &pa),
    ) + &identity("token", &format!("token_file = {token:?}"), &says("b", &pb));
    let natsmux = launch(&[broker.url()], &more).wait_healthy();
    let mut client = RawClient::connect(&natsmux.address());
    let nonce = client.info()["nonce"].as_str().expect("a nonce").to_owned();
    let members = format!(r#""nkey":"{}","sig":"{}""#, user.key(), user.sign(&nonce));
    assert_eq!(answer(&mut client, &members), "PONG");
    assert_eq!(hears(&natsmux, r#""auth_token":"t0ken""#), "PONG");
    assert_eq!(hears(&natsmux, r#""auth_token":"t0keN""#), REFUSED);
    // With sharing, the link of the other one is still there.
    assert!(users_at(&broker).contains(&"a".to_owned()));
}

/// A process is who it runs as, and needs nothing else; another gets nothing.
#[test]
fn a_process_is_an_identity_by_the_user_that_it_runs_as() {
    if !rustix::process::getuid().is_root() {
        println!("skipped: only root runs processes as others");
        return;
    }
    let folder = TempDir::new().expect("a folder");
    let (broker, pa, pb) = two_users(Version::V215, &folder);
    let more = identity("root", "uid = \"root\"", &says("a", &pa))
        + &identity("nobody", &format!("uid = \"{NOBODY}\""), &says("b", &pb));
    let natsmux = launch(&[broker.url()], &more).wait_healthy();
    let mut own = RawClient::connect(&natsmux.address());
    assert_eq!(own.info()["auth_required"], true, "others need credentials");
    assert_eq!(answer(&mut own, r#""name":"x""#), "PONG");
    assert_eq!(users_at(&broker), ["a"]);
    assert_eq!(as_user(NOBODY, &natsmux.address()), "PONG");
    assert_eq!(as_user(12_345, &natsmux.address()), REFUSED, "it is nobody");
    let connz = natsmux.get("/connz?auth=1").expect("an answer").body;
    assert!(connz.contains("\"identity\":\"root\",\"uid\":0"), "{connz}");
}

/// What a process of this user hears to a CONNECT without credentials.
fn as_user(uid: u32, address: &str) -> String {
    const PROGRAM: &str = "import socket,sys
host, port = sys.argv[1].split(':')
s = socket.create_connection((host, int(port)), 5)
f = s.makefile('rb')
f.readline()
s.sendall(b'CONNECT {\"verbose\":false}\\r\\nPING\\r\\n')
print(f.readline().decode().strip())";
    let ran = Command::new("python3")
        .args(["-c", PROGRAM, address])
        .uid(uid)
        .current_dir(Path::new("/"))
        .output()
        .expect("python3 runs");
    String::from_utf8_lossy(&ran.stdout).trim().to_owned()
}

/// A component's certificate names it; natsmux shows one of its own, by which the broker maps it.
#[test]
fn certificates_are_identities_on_both_sides() {
    let authority = Authority::new();
    let broker_tls = authority
        .certify("broker", KeyKind::P256)
        .broker_tls(&format!(
            "ca_file: {:?}, verify_and_map: true",
            authority.ca().display().to_string()
        ));
    for version in Version::ALL {
        let users = "authorization { users = [ { user: \"orders.example\" } ] }";
        let broker = Broker::with(BrokerOptions {
            extra: format!("{broker_tls}\n{users}"),
            ..BrokerOptions::new(version)
        });
        let upstream = authority.certify_name("upstream", "orders.example");
        let component = authority.certify_name("component", "local.example");
        let stranger = authority.certify_name("stranger", "stranger.example");
        let listen = authority.certify("natsmux", KeyKind::P256);
        let ca = authority.ca().display().to_string();
        let more = identity(
            "orders",
            "certificate = \"local.example\"",
            &upstream.keys(),
        ) + &format!("[bus.tls]\nca = {ca:?}\n")
            + &format!(
                "[bus.listen_tls]\nclient_ca = {ca:?}\nhandshake_first = true\n{}",
                listen.keys()
            );
        let natsmux = launch(&[broker.url()], &more).wait_healthy();
        let hears = |certificate| hears_with(&authority, certificate, &natsmux.address());
        assert_eq!(hears(&component), "PONG");
        assert_eq!(hears(&stranger), REFUSED);
        // What a broker says of one certificate is nothing to the others.
        assert!(natsmux.is_healthy());
        assert_eq!(hears(&component), "PONG");
    }
}

/// What a component with a certificate hears to a CONNECT without credentials.
fn hears_with(authority: &Authority, certificate: &Certificate, address: &str) -> String {
    let config = Arc::new(authority.client_config_with(certificate));
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = rustls::ClientConnection::new(config, name).expect("a connection");
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("possible");
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let begin = b"CONNECT {\"verbose\":false}\r\nPING\r\n";
    stream.get_mut().write_all(begin).expect("open");
    let mut lines = String::new();
    stream.read_line(&mut lines).expect("INFO");
    lines.clear();
    stream.read_line(&mut lines).expect("an answer");
    lines.trim().to_owned()
}

/// Where nothing that a broker sees differs, components share a link, whoever they are here.
#[test]
fn components_of_different_local_users_share_links() {
    let folder = TempDir::new().expect("a folder");
    let (broker, pa, _) = two_users(Version::V215, &folder);
    let hash = file(&folder, "hash", &bcrypt::hash("x", 4).expect("a hash"));
    let who = |user: &str| format!("user = \"{user}\", password_file = {hash:?}");
    let more = "sharing = \"identity\"\n".to_owned()
        + &identity("one", &who("one"), &says("a", &pa))
        + &identity("two", &who("two"), &says("a", &pa));
    let natsmux = launch(&[broker.url()], &more).wait_healthy();
    let mut clients: Vec<RawClient> = ["one", "two", "one"]
        .iter()
        .map(|user| {
            let mut client = RawClient::connect(&natsmux.address());
            client.info();
            let members = format!(r#""user":"{user}","pass":"x""#);
            assert_eq!(answer(&mut client, &members), "PONG");
            client
        })
        .collect();
    assert_eq!(users_at(&broker), ["a"], "one connection");
    clients[0].send("SUB s 1\r\nPING\r\n");
    clients[0].pong();
    clients[1].send("PUB s 2\r\nhi\r\nPING\r\n");
    clients[1].pong();
    clients[0].expect("MSG s 1 2\r\nhi\r\n");
    let connz = natsmux.get("/connz?auth=1").expect("an answer").body;
    assert!(connz.contains("\"identity\":\"one\"") && connz.contains("\"identity\":\"two\""));
    assert!(connz.contains("\"authorized_user\":\"two\""), "{connz}");
}

/// An identity that a reload takes away is nobody's any more, and so is a user that the broker
/// takes away.
#[test]
fn whoever_is_taken_away_is_let_go() {
    let folder = TempDir::new().expect("a folder");
    let (mut broker, pa, pb) = two_users(Version::V215, &folder);
    let one = identity("one", "token_file = \"TOKEN\"", &says("a", &pa));
    let two = identity("two", "anybody = true", &says("b", &pb));
    let token = file(&folder, "token", "t");
    let one = one.replace("TOKEN", &token);
    let mut natsmux = launch(&[broker.url()], &(one + &two)).wait_healthy();
    let connect = |members: &str| {
        let mut client = RawClient::connect(&natsmux.address());
        client.info();
        assert_eq!(answer(&mut client, members), "PONG");
        client
    };
    let mut first = connect(r#""auth_token":"t""#);
    let mut second = connect(r#""name":"x""#);
    natsmux.rewrite_config(&super::config(&[broker.url()], &two));
    natsmux.sighup();
    first.set_patience(PATIENCE);
    assert_eq!(first.line(), REFUSED);
    assert!(first.until_closed().is_empty());
    second.flush();
    broker.reload("authorization { users = [ { user: a, password: pa } ] }");
    second.set_patience(PATIENCE);
    assert_eq!(second.line(), REFUSED);
    broker.kill();
    // Nothing of it is left that would let it in while there is no broker.
    let mut late = RawClient::connect(&natsmux.address());
    late.info();
    late.send("CONNECT {\"verbose\":false}\r\nPING\r\n");
    late.expect_silence(Duration::from_millis(700));
}

/// What is wrong in the file is said by its line and key, and no secret is shown.
#[test]
fn wrong_identities_are_refused_by_their_line() {
    let folder = TempDir::new().expect("a folder");
    let secret = file(&folder, "pass", "s3cret");
    let check = |listen: &str, more: &str| {
        let text = super::config(&["nats://127.0.0.1:1".to_owned()], more)
            .replace("{listen}", listen)
            .replace("{http}", "127.0.0.1:2");
        let path = folder.path().join("natsmux.toml");
        std::fs::write(&path, text).expect("a file");
        let ran = Command::new(env!("CARGO_BIN_EXE_natsmux"))
            .args(["check", "-c"])
            .arg(&path)
            .output()
            .expect("natsmux runs");
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(!said.contains("s3cret"), "{said}");
        (ran.status.code(), said)
    };
    let local = "127.0.0.1:3";
    let exposed = file(&folder, "exposed", "s3cret");
    std::fs::set_permissions(&exposed, Permissions::from_mode(0o644)).expect("its mode");
    let says = says("a", &secret);
    for (listen, more, expected) in [
        (local, identity("x", "", &says), "at least one of same_key"),
        (
            local,
            identity("x", "same_key = true", &says),
            "neither `creds` nor `nkey_file`",
        ),
        (
            local,
            identity("x", "anybody = true, uid = \"0\"", &says),
            "something else is asked",
        ),
        (
            local,
            identity("x", "uid = \"no such user\"", &says),
            "no user of that name",
        ),
        (local, identity("x", "nkey = \"U\"", &says), "56 characters"),
        (local, identity("X", "anybody = true", &says), "a-z"),
        (
            "0.0.0.0:3",
            identity("x", "anybody = true", &says),
            "0.0.0.0:3 is no loopback",
        ),
        (
            local,
            identity("x", "anybody = true", "user = \"a\""),
            "password",
        ),
        (
            local,
            identity(
                "x",
                "anybody = true",
                "creds = \"/none\"\ntoken_file = \"/none\"",
            ),
            "at most one of",
        ),
        (
            local,
            identity("x", "anybody = true", &format!("creds = {exposed:?}")),
            "everybody may read it",
        ),
        (
            local,
            identity("x", "anybody = true", "creds = \"/none\""),
            "/none: ",
        ),
        (
            local,
            identity("x", "anybody = true", &format!("creds = {secret:?}")),
            "BEGIN NATS USER JWT",
        ),
        (
            local,
            identity(
                "x",
                &format!("user = \"u\", password_file = {secret:?}"),
                &says,
            ),
            "expected one line with a hash",
        ),
    ] {
        let (code, said) = check(listen, &more);
        assert_eq!(code, Some(2), "{more}: {said}");
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let operator = Operator::new();
    let user = operator.user("u");
    operator.issue(&user, Some(Duration::from_secs(100)));
    let more = identity("orders", "same_key = true", &creds(&user));
    let (code, said) = check(local, &more);
    assert_eq!(code, Some(0), "{said}");
    let expected = format!("identity default/orders is {}, account A", user.key());
    assert!(
        said.contains(&expected) && said.contains(", expires 20"),
        "{said}"
    );
    assert!(said.contains("signs with the same key"), "{said}");
    assert!(
        !said.contains(&user.seed()) && !said.contains(&user.jwt()),
        "{said}"
    );
}

/// natsmux signs as a proxy that brokers trust, and users that ask for one are reached through it
/// alone (ADR-55).
#[test]
fn users_that_require_a_proxy_are_reached_through_natsmux_alone() {
    let folder = TempDir::new().expect("a folder");
    let (proxy, other) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let seed =
        |name: &str, pair: &nkeys::KeyPair| file(&folder, name, &pair.seed().expect("a seed"));
    let trusted = format!(
        "proxies {{ trusted = [ {{ key: {} }} ] }}\n\
         authorization {{ users = [ {{ user: a, password: pa, proxy_required: true }} ] }}",
        proxy.public_key()
    );
    let broker = broker(Version::V215, trusted);
    let direct = {
        let mut client = RawClient::connect(&broker.address());
        client.info();
        answer(&mut client, r#""user":"a","pass":"pa""#)
    };
    assert_eq!(direct, REFUSED);
    let through = |name: &str, pair: &nkeys::KeyPair| {
        let more = format!("proxy_key_file = {:?}\n", seed(name, pair));
        let natsmux = launch(&[broker.url()], &more).wait_healthy();
        let heard = hears(&natsmux, r#""user":"a","pass":"pa""#);
        (natsmux, heard)
    };
    let (natsmux, heard) = through("proxy", &proxy);
    assert_eq!(heard, "PONG");
    drop(natsmux);
    let (natsmux, heard) = through("other", &other);
    assert_eq!(heard, REFUSED);
    wait_for("the log to say what may be wrong", PATIENCE, || {
        natsmux.log().contains("proxy_key_file").then_some(())
    });
}
