//! The HTTP listener in TLS, asked by `natsmux status` and by curl.

use std::fs;
use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::{
    Authority, Broker, Certificate, KeyKind, Natsmux, NatsmuxOptions, PATIENCE, Version, wait_for,
};

/// natsmux with `[http.tls]`.
fn start(broker: &Broker, own: &Certificate, more: &str) -> Natsmux {
    let config = format!(
        "[http]\nlisten = \"{{http}}\"\n[http.tls]\n{}{more}[[bus]]\nname = \"default\"\n\
         listen = [\"{{listen}}\"]\nbrokers = [\"{}\"]\n",
        own.keys(),
        broker.url(),
    );
    Natsmux::launch(&NatsmuxOptions {
        config: Some(config),
        ..NatsmuxOptions::default()
    })
}

fn status(natsmux: &Natsmux, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_natsmux"));
    command.args(["status", "--http", &natsmux.http_address()]);
    command.args(flags).output().expect("it runs")
}

/// Waits until it is well.
fn wait_well(natsmux: &Natsmux, flags: &[&str]) -> String {
    let well = || {
        let output = status(natsmux, flags);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code() == Some(0)).then_some(text)
    };
    wait_for("natsmux to be well", PATIENCE, well)
}

/// Its exit code, and its words on stderr.
fn refusal(natsmux: &Natsmux, flags: &[&str]) -> (Option<i32>, String) {
    let output = status(natsmux, flags);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn health_and_metrics_are_served_in_tls_and_renewed_by_a_reload() {
    let authority = Authority::new();
    let own = authority.certify("http", KeyKind::P256);
    let broker = Broker::start(Version::V215);
    let mut natsmux = start(&broker, &own, "");
    let ca = authority.ca();
    let trusting = ["--ca", text(&ca)];
    assert!(wait_well(&natsmux, &trusting).contains("default"));

    let url = format!("https://{}/metrics", natsmux.http_address());
    let curl = Command::new("curl")
        .args(["-sS", "--max-time", "10", "--cacert", text(&ca), &url])
        .output()
        .expect("curl runs: `make test` installs it");
    let metrics = String::from_utf8_lossy(&curl.stdout);
    let ends = "natsmux_certificate_expiry_timestamp_seconds{bus=\"\",towards=\"http\"}";
    assert!(metrics.contains(ends), "{metrics}");

    let (code, said) = refusal(&natsmux, &[]);
    assert!(code == Some(1) && said.contains("http://"), "{said}");
    let stranger = Authority::new();
    let (_, said) = refusal(&natsmux, &["--ca", text(&stranger.ca())]);
    assert!(
        said.contains("https://") && said.contains("UnknownIssuer"),
        "{said}"
    );

    // Clients that never finish a handshake keep nobody out.
    let address = natsmux.http_address();
    let silent: Vec<_> = (0..80)
        .map(|_| TcpStream::connect(&address).expect("it listens"))
        .collect();
    wait_well(&natsmux, &trusting);
    drop(silent);

    let renewed = authority.certify_name("renewed", "status.example");
    fs::copy(&renewed.cert, &own.cert).expect("a file");
    fs::copy(&renewed.key, &own.key).expect("a file");
    natsmux.sighup();
    let named = ["--ca", text(&ca), "--server-name", "status.example"];
    wait_well(&natsmux, &named);
    assert_eq!(
        refusal(&natsmux, &trusting).0,
        Some(1),
        "the name is another"
    );
}

#[test]
fn clients_show_certificates_where_they_are_asked_for() {
    let authority = Authority::new();
    let own = authority.certify("http", KeyKind::P256);
    let client = authority.certify_name("client", "prometheus.example");
    let broker = Broker::start(Version::V215);
    let ca = authority.ca();
    let natsmux = start(&broker, &own, &format!("client_ca = {:?}\n", text(&ca)));
    let (cert, key) = (text(&client.cert), text(&client.key));
    wait_well(&natsmux, &["--ca", text(&ca), "--cert", cert, "--key", key]);
    let (code, said) = refusal(&natsmux, &["--ca", text(&ca)]);
    assert!(code == Some(1) && !said.is_empty(), "{said}");
    let since = std::time::Instant::now();
    let _ = refusal(&natsmux, &[]);
    assert!(since.elapsed() < Duration::from_secs(6), "bounded");
}
