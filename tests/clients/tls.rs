//! TLS: every form that brokers have it in, what is wrong with it said by its name, and what a
//! reload changes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::client::{Client, Kind, Mode};
use crate::support::{
    Authority, Broker, BrokerOptions, Certificate, Cluster, KeyKind, Natsmux, NatsmuxOptions,
    PATIENCE, RawClient, Version, wait_for,
};

/// Two brokers, natsmux, and TLS on both sides.
pub(crate) struct Secured {
    pub(crate) cluster: Cluster,
    pub(crate) natsmux: Natsmux,
    /// For clients: with the authority's file.
    pub(crate) url: String,
    pub(crate) authority: Authority,
}

impl Secured {
    pub(crate) fn start(version: Version, kind: KeyKind) -> Self {
        let authority = Authority::new();
        let broker = authority.certify("broker", kind);
        let options = BrokerOptions {
            extra: broker.broker_tls("timeout: 5"),
            ..BrokerOptions::new(version)
        };
        let cluster = Cluster::with(&options, 2);
        let own = authority.certify("natsmux", KeyKind::P256);
        let more = format!("[bus.listen_tls]\n{}", own.keys());
        let natsmux = launch(&cluster.urls(), &tls_of(&authority, ""), &more).wait_healthy();
        let url = format!("{}#{}", natsmux.url(), authority.ca().display());
        Self {
            cluster,
            natsmux,
            url,
            authority,
        }
    }
}

/// `[bus.tls]` that trusts this authority.
pub(crate) fn tls_of(authority: &Authority, more: &str) -> String {
    format!("[bus.tls]\nca = \"{}\"\n{more}", authority.ca().display())
}

pub(crate) fn config(brokers: &[String], tls: &str, more: &str) -> String {
    format!(
        "[http]\nlisten = \"{{http}}\"\n[log]\nlevel = \"debug\"\n[[bus]]\nname = \"default\"\n\
         listen = [\"{{listen}}\"]\nbrokers = {brokers:?}\n{tls}{more}"
    )
}

pub(crate) fn launch(brokers: &[String], tls: &str, more: &str) -> Natsmux {
    Natsmux::launch(&NatsmuxOptions {
        config: Some(config(brokers, tls, more)),
        ..NatsmuxOptions::default()
    })
}

fn launch_independent(brokers: &[String], tls: &str) -> Natsmux {
    let options = "topology = \"independent\"\n";
    let tls = options.to_owned() + tls;
    launch(brokers, &tls, "").wait_healthy()
}

pub(crate) fn broker(version: Version, extra: String) -> Broker {
    Broker::with(BrokerOptions {
        extra,
        ..BrokerOptions::new(version)
    })
}

/// A message goes to the broker and comes back.
fn round_trip(natsmux: &Natsmux) {
    assert_echo(&mut subscribed(natsmux));
}

/// A component that hears what it publishes.
fn subscribed(natsmux: &Natsmux) -> RawClient {
    let mut client = natsmux.client();
    client.send("SUB tls.x 1\r\nPING\r\n");
    client.pong();
    client
}

fn assert_echo(client: &mut RawClient) {
    client.send("PUB tls.x 2\r\nhi\r\nPING\r\n");
    client.expect("MSG tls.x 1 2\r\nhi\r\n");
    client.pong();
}

/// Every form in which a broker serves, with each of the versions that have it.
#[test]
fn brokers_are_reached_in_every_form_of_tls() {
    let authority = Authority::new();
    let own = authority.certify_name("client", "component.example");
    let ca = authority.ca();
    let verify = format!("ca_file: {:?}, verify: true", ca.display().to_string());
    let map = format!(
        "ca_file: {:?}, verify_and_map: true",
        ca.display().to_string()
    );
    let first = "handshake_first: true";
    let form = |name, kind, tls: &str, more, ours: &str| Form {
        name,
        kind,
        tls: tls.to_owned(),
        more,
        ours: ours.to_owned(),
    };
    for form in [
        form("required", KeyKind::P256, "", "", ""),
        form("rsa", KeyKind::Rsa, "", "", ""),
        form("p384", KeyKind::P384, "", "", "min_version = \"1.3\"\n"),
        form("verify", KeyKind::P256, &verify, "", &own.keys()),
        form("map", KeyKind::P256, &map, MAPPED, &own.keys()),
        form("available", KeyKind::P256, "", "allow_non_tls: true", ""),
        form("first", KeyKind::P256, first, "", "mode = \"first\"\n"),
        form("auto", KeyKind::P256, "handshake_first: auto", "", ""),
    ] {
        for version in Version::ALL {
            // 2.9 doesn't know it.
            if version == Version::V29 && form.tls.contains("handshake_first") {
                continue;
            }
            let certificate = authority.certify(form.name, form.kind);
            let text = format!("{}\n{}", certificate.broker_tls(&form.tls), form.more);
            let broker = broker(version, text);
            let tls = tls_of(&authority, &form.ours);
            let natsmux = launch(&[broker.url()], &tls, "").wait_healthy();
            round_trip(&natsmux);
        }
    }
}

/// Whom a broker makes of natsmux's certificate.
const MAPPED: &str = "authorization { users = [ { user: \"component.example\" } ] }";

/// One form in which a broker has TLS.
struct Form {
    name: &'static str,
    kind: KeyKind,
    /// Within the broker's `tls`, and beside it.
    tls: String,
    more: &'static str,
    /// Within natsmux's `[bus.tls]`.
    ours: String,
}

/// The scheme alone says that a broker speaks TLS; the next one of the bus doesn't.
#[test]
fn a_scheme_asks_one_broker_for_tls() {
    let authority = Authority::new();
    let certificate = authority.certify("broker", KeyKind::P256);
    let mut secured = broker(Version::V215, certificate.broker_tls(""));
    let plain = Broker::start(Version::V215);
    let brokers = [secured.url().replace("nats://", "tls://"), plain.url()];
    let tls = tls_of(&authority, "mode = \"off\"\n");
    let natsmux = launch(&brokers, &tls, "").wait_healthy();
    round_trip(&natsmux);
    secured.kill();
    wait_for("the other broker", PATIENCE, || {
        (natsmux.current_broker()? == plain.address()).then_some(())
    });
    round_trip(&natsmux);
}

/// Starts natsmux and waits until its log says why the broker can't be used.
fn assert_refused(broker: &Broker, tls: &str, cause: &str, said: &str) {
    let natsmux = launch(&[broker.url()], tls, "");
    let mut client = component(&natsmux);
    client.send("CONNECT {\"verbose\":false}\r\nPING\r\n");
    wait_for(&format!("{cause} in the log"), PATIENCE, || {
        let log = natsmux.log();
        (log.contains(&format!("cause=\"{cause}\"")) && log.contains(said)).then_some(())
    });
    wait_for("natsmux not to be healthy", PATIENCE, || {
        (!natsmux.is_healthy()).then_some(())
    });
}

/// A component, as soon as natsmux listens.
fn component(natsmux: &Natsmux) -> RawClient {
    let address = natsmux.address();
    wait_for("natsmux to listen", PATIENCE, || {
        TcpStream::connect(&address).ok()
    });
    RawClient::connect(&address)
}

#[test]
fn what_is_wrong_with_a_brokers_tls_is_said_by_its_name() {
    let authority = Authority::new();
    let good = authority.certify("good", KeyKind::P256);
    let trust = tls_of(&authority, "");
    let plain = Broker::start(Version::V215);
    assert_refused(&plain, &trust, "tls_not_offered", "has no `tls`");
    assert_refused(
        &plain,
        &tls_of(&authority, "mode = \"first\"\n"),
        "tls_not_first",
        "",
    );
    let secured = broker(Version::V215, good.broker_tls(""));
    assert_refused(&secured, "", "tls_required", "[bus.tls]");
    assert_refused(
        &secured,
        &tls_of(&Authority::new(), ""),
        "certificate_untrusted",
        "`ca`",
    );
    let with =
        |certificate: Certificate, more: &str| broker(Version::V215, certificate.broker_tls(more));
    let expired = with(authority.certify_expired("expired"), "");
    assert_refused(&expired, &trust, "certificate_expired", "clock");
    let named = with(authority.certify_name("named", "nats.example"), "");
    assert_refused(&named, &trust, "certificate_name", "server_name");
    let verify = format!(
        "ca_file: {:?}, verify: true",
        authority.ca().display().to_string()
    );
    let verifies = with(good, &verify);
    assert_refused(&verifies, &trust, "certificate_refused", "`cert` and `key`");
    let natsmux = launch(
        &[named.url()],
        &tls_of(&authority, "server_name = \"nats.example\"\n"),
        "",
    );
    round_trip(&natsmux.wait_healthy());
}

/// A broker in front of which somebody has taken TLS out of INFO gets no credentials.
#[test]
fn nothing_is_written_in_plain_text_where_tls_is_required() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("bound");
    let authority = Authority::new();
    let natsmux = launch(&[format!("tls://{addr}")], &tls_of(&authority, ""), "");
    let mut client = component(&natsmux);
    client.send("CONNECT {\"user\":\"u\",\"pass\":\"secret\",\"verbose\":false}\r\nPING\r\n");
    for said in [
        "INFO {\"server_id\":\"a\",\"max_payload\":1048576}\r\n",
        "INFO {\"server_id\":\"b\",\"max_payload\":1048576,\"tls_required\":true}\r\n",
        "INFO {\"server_id\":\"c\",\"tls_required\":true}\r\n+OK\r\nPONG\r\n",
        "INFO {\"server_id\":\"d\",\"tls_required\":true}\r\n-ERR 'Authorization Violation'\r\n",
    ]
    .repeat(3)
    {
        let (mut stream, _) = listener.accept().expect("a dial or a probe");
        stream.write_all(said.as_bytes()).expect("it is read");
        stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("possible");
        let mut got = Vec::new();
        // Ends with the time-out, or natsmux's close.
        let _ = stream.read_to_end(&mut got);
        // Nothing, or a record of a handshake.
        assert!(got.first().is_none_or(|first| *first == 22), "{got:?}");
        assert!(!got.windows(6).any(|part| part == b"secret"));
    }
}

/// Renewed certificates, another authority, TLS turned on and off: a component notices nothing.
#[test]
fn a_reload_moves_links_to_new_certificates() {
    let authority = Authority::new();
    let certificate = authority.certify("broker", KeyKind::P256);
    let mut broker = broker(Version::V215, certificate.broker_tls(""));
    let (cert, key) = (&certificate.cert, &certificate.key);
    let trusted = authority.ca();
    let mut natsmux = launch(&[broker.url()], &tls_of(&authority, ""), "").wait_healthy();
    let mut client = subscribed(&natsmux);
    // The authority and the certificate are others now.
    let next = Authority::new();
    let renewed = next.certify("broker", KeyKind::P384);
    let replays = natsmux.counter("replays");
    fs::copy(next.ca(), &trusted).expect("a file");
    fs::copy(&renewed.cert, cert).expect("a file");
    fs::copy(&renewed.key, key).expect("a file");
    broker.signal(Signal::HUP);
    natsmux.sighup();
    natsmux.wait_varz("a link with the new certificate", PATIENCE, |varz| {
        varz["replays"].as_u64().is_some_and(|now| now > replays)
    });
    assert_echo(&mut client);
    assert_eq!(natsmux.counter("sessions_closed"), 0);
    assert_eq!(natsmux.counter("link_failures"), 0);
}

/// Each of independent brokers has what others don't, and none of it is missing while links give
/// way to those with natsmux's renewed certificate; one that brokers refuse changes nothing.
#[test]
fn renewed_certificates_cost_nothing_that_independent_brokers_have() {
    const EACH: usize = 300;
    let authority = Authority::new();
    let own = authority.certify_name("client", "component.example");
    let brokers = Version::ALL.map(|version| {
        let certificate = authority.certify("broker", KeyKind::P256);
        let verify = format!(
            "ca_file: {:?}, verify: true",
            authority.ca().display().to_string()
        );
        broker(
            version,
            certificate.broker_tls(&verify) + "\nallow_non_tls: true",
        )
    });
    let urls: Vec<String> = brokers.iter().map(Broker::url).collect();
    let ours = "mode = \"required\"\n".to_owned() + &own.keys();
    let tls = tls_of(&authority, &ours);
    let mut natsmux = launch_independent(&urls, &tls);
    let mut client = subscribed(&natsmux);
    client.send("SUB b.* 2\r\nPING\r\n");
    client.pong();
    natsmux.wait_varz("a link to each", PATIENCE, |varz| varz["links"] == 2);
    let mut others = brokers
        .each_ref()
        .map(|broker| RawClient::ready(&broker.address()));
    let mut seen = [0; 2];
    for (round, is_known) in [true, true, false, true].into_iter().enumerate() {
        // One of an authority that brokers don't know is taken for none.
        let stranger = Authority::new();
        let issuer = if is_known { &authority } else { &stranger };
        let next = issuer.certify_name(&format!("renewed-{round}"), "component.example");
        fs::copy(&next.cert, &own.cert).expect("a file");
        fs::copy(&next.key, &own.key).expect("a file");
        natsmux.sighup();
        for at in round * EACH..(round + 1) * EACH {
            for (broker, other) in others.iter_mut().enumerate() {
                other.send(format!("PUB b.{broker} 4\r\n{at:04}\r\n"));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        while seen.iter().any(|seen| *seen < (round + 1) * EACH) {
            let frame = client.frame();
            let Some(broker) = frame.line.strip_prefix("MSG b.") else {
                continue;
            };
            let broker = usize::from(broker.starts_with('1'));
            let number = String::from_utf8_lossy(&frame.payload).into_owned();
            assert_eq!(number, format!("{:04}", seen[broker]), "at {broker}");
            seen[broker] += 1;
        }
    }
    let varz = natsmux.wait_varz("the links to be renewed", PATIENCE, |varz| {
        varz["renewed_links"] == 6 && varz["links"] == 2
    });
    assert_eq!(varz["sessions_closed"], 0, "{varz}");
    assert_eq!(varz["link_failures"], 0, "{varz}");
}

/// What a broker's own reload changes is found at the next dial, and no component notices.
#[test]
fn a_broker_that_turns_tls_off_is_not_believed_and_is_taken_back() {
    let authority = Authority::new();
    let with_tls = authority
        .certify("broker", KeyKind::P256)
        .broker_tls("timeout: 5");
    let mut broker = broker(Version::V215, with_tls.clone());
    let natsmux = launch(&[broker.url()], &tls_of(&authority, ""), "").wait_healthy();
    let mut client = subscribed(&natsmux);
    broker.reload("");
    // The link stays until somebody ends it.
    broker.kill();
    broker.restart();
    natsmux.wait_varz("the cause", PATIENCE, |varz| {
        varz["buses"][0]["brokers"][0]["last_error"] == "tls_not_offered"
    });
    broker.reload(&with_tls);
    natsmux.wait_varz("a link again", PATIENCE, |varz| varz["links"] == 1);
    assert_echo(&mut client);
    assert_eq!(natsmux.counter("sessions_closed"), 0);
}

/// A bus without TLS, and a broker that has it from now on: said by its name.
#[test]
fn a_broker_that_turns_tls_on_is_unfit_for_a_bus_without_it() {
    let authority = Authority::new();
    let with_tls = authority
        .certify("broker", KeyKind::P256)
        .broker_tls("timeout: 5");
    let mut broker = broker(Version::V215, String::new());
    let natsmux = launch(&[broker.url()], "", "").wait_healthy();
    let mut client = subscribed(&natsmux);
    broker.reload(&with_tls);
    broker.kill();
    broker.restart();
    natsmux.wait_varz("the cause", PATIENCE, |varz| {
        varz["buses"][0]["brokers"][0]["last_error"] == "tls_required"
    });
    broker.reload("");
    natsmux.wait_varz("a link again", PATIENCE, |varz| varz["links"] == 1);
    assert_echo(&mut client);
}

/// natsmux in front of a plain broker, with this in `[bus.listen_tls]`.
fn listening(authority: &Authority, broker: &Broker, more: &str) -> Natsmux {
    let own = authority.certify("natsmux", KeyKind::P256);
    let tls = format!("[bus.listen_tls]\n{}{more}", own.keys());
    launch(&[broker.url()], &tls, "").wait_healthy()
}

/// A component in TLS that trusts this authority and shows no certificate.
fn secured(natsmux: &Natsmux, authority: &Authority) -> StreamOwned<ClientConnection, TcpStream> {
    let config = authority.client_config();
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
    let stream = TcpStream::connect(natsmux.address()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("possible");
    StreamOwned::new(connection, stream)
}

/// The handshake comes ahead of INFO, and all that follows is in it.
#[test]
fn a_listener_has_the_handshake_first_where_it_is_told_so() {
    let (authority, broker) = (Authority::new(), Broker::start(Version::V215));
    let natsmux = listening(&authority, &broker, "handshake_first = true\n");
    RawClient::connect(&natsmux.address()).expect_silence(Duration::from_millis(100));
    let mut stream = BufReader::new(secured(&natsmux, &authority));
    let begin = "CONNECT {\"verbose\":false}\r\nPING\r\n";
    stream.get_mut().write_all(begin.as_bytes()).expect("open");
    let mut line = String::new();
    stream.read_line(&mut line).expect("INFO");
    assert!(
        line.starts_with("INFO {") && line.contains("\"tls_required\":true"),
        "{line}"
    );
    line.clear();
    stream.read_line(&mut line).expect("PONG");
    assert_eq!(line, "PONG\r\n");
}

/// Plain text where TLS may be had, and only there.
#[test]
fn a_listener_takes_plain_text_only_where_it_is_told_so() {
    let (authority, broker) = (Authority::new(), Broker::start(Version::V215));
    let natsmux = listening(&authority, &broker, "available = true\n");
    let info = RawClient::connect(&natsmux.address()).info();
    assert_eq!(
        (&info["tls_required"], &info["tls_available"]),
        (&false.into(), &true.into())
    );
    round_trip(&natsmux);
    assert_eq!(natsmux.counter("failed_handshakes"), 0);
    let natsmux = listening(&authority, &broker, "");
    let mut plain = RawClient::connect(&natsmux.address());
    assert_eq!(plain.info()["tls_required"], true);
    plain.send("CONNECT {\"verbose\":false}\r\nPING\r\n");
    assert!(!String::from_utf8_lossy(&plain.until_closed()).contains("PONG"));
    natsmux.wait_varz("it to be counted", PATIENCE, |varz| {
        varz["failed_handshakes"] == 1
    });
    assert_eq!(natsmux.counter("sessions_opened"), 0);
}

/// A component that shows no certificate, or says nothing, has no session and is gone in time.
#[test]
fn a_handshake_of_a_component_that_fails_or_stalls_is_counted_and_ended() {
    let (authority, broker) = (Authority::new(), Broker::start(Version::V215));
    let client_ca = format!("client_ca = {:?}\n", authority.ca().display().to_string());
    let natsmux = listening(&authority, &broker, &client_ca);
    let mut silent = RawClient::connect(&natsmux.address());
    assert_eq!(silent.info()["tls_verify"], true);
    let mut stream = secured(&natsmux, &authority);
    // INFO comes first, in plain text.
    let mut info = BufReader::new(stream.sock.try_clone().expect("possible"));
    let mut line = String::new();
    info.read_line(&mut line).expect("INFO");
    // The refusal comes behind the handshake.
    let _ = stream.write_all(b"CONNECT {}\r\n");
    assert!(stream.read(&mut [0; 64]).map_or(true, |count| count == 0));
    assert!(silent.until_closed().is_empty());
    natsmux.wait_varz("both to be counted", PATIENCE, |varz| {
        varz["failed_handshakes"] == 2
    });
    assert_eq!(natsmux.counter("sessions_opened"), 0);
}

/// Those who begin a handshake and say no more keep nobody out.
#[test]
fn handshakes_that_stall_give_way_to_others() {
    let (authority, broker) = (Authority::new(), Broker::start(Version::V215));
    let natsmux = listening(&authority, &broker, "");
    let stalled: Vec<_> = (0..200)
        .map(|_| {
            let mut client = RawClient::connect(&natsmux.address());
            client.info();
            client.send([22]);
            client
        })
        .collect();
    let since = std::time::Instant::now();
    let mut stream = secured(&natsmux, &authority);
    let mut info = BufReader::new(stream.sock.try_clone().expect("possible"));
    let mut line = String::new();
    info.read_line(&mut line).expect("INFO");
    stream
        .write_all(b"CONNECT {\"verbose\":false}\r\nPING\r\n")
        .expect("a handshake");
    let mut pong = [0; 6];
    stream.read_exact(&mut pong).expect("an answer");
    assert_eq!(&pong, b"PONG\r\n");
    assert!(since.elapsed() < Duration::from_millis(1_800), "in time");
    drop(stalled);
}

/// Nor do they keep natsmux from ending.
#[test]
fn a_handshake_that_stalls_does_not_hold_up_the_drain() {
    let (authority, broker) = (Authority::new(), Broker::start(Version::V215));
    let mut natsmux = listening(&authority, &broker, "");
    let mut stalled = RawClient::connect(&natsmux.address());
    stalled.info();
    stalled.send([22]);
    let since = std::time::Instant::now();
    assert!(natsmux.terminate().success());
    assert!(
        since.elapsed() < Duration::from_secs(1),
        "before auth_timeout"
    );
}

/// Each client library, with TLS on both sides.
#[test]
fn every_library_does_what_it_does_in_plain_text() {
    let secured = Secured::start(Version::V215, KeyKind::P256);
    for kind in Kind::ALL {
        let prefix = format!("{kind:?}");
        let mut client = Client::start(kind, &secured.url, &prefix, Mode::Steady);
        wait_for(&format!("messages of {kind:?}"), PATIENCE, || {
            client.refresh();
            (client.received > 200).then_some(())
        });
    }
}
