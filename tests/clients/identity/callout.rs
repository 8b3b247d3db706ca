//! An auth callout judges what natsmux says for components.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use super::{answer, broker, identity, launch};
use crate::support::{PATIENCE, RawClient, Version, target_dir, write_secret};

/// The service that a broker asks.
struct Callout {
    child: Child,
    /// It says whom it judged; where nobody could read that, it would end.
    _lines: BufReader<ChildStdout>,
}

impl Callout {
    fn start(url: &str, issuer: &nkeys::KeyPair) -> Self {
        let seed = issuer.seed().expect("a seed");
        let mut child = Command::new(target_dir().join("tools/venv/bin/python"))
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/clients/python/callout.py"
            ))
            .args([url, "auth", "auth", &seed, "APP"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs: `make test` installs it");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("it speaks");
        assert_eq!(line.trim(), "ready");
        Self {
            child,
            _lines: lines,
        }
    }
}

impl Drop for Callout {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_callout_judges_what_natsmux_says_for_a_component() {
    let issuer = nkeys::KeyPair::new_account();
    let config = format!(
        "accounts {{ AUTH {{ users = [ {{ user: auth, password: auth }} ] }}, APP {{}} }}\n\
         authorization {{ auth_callout {{ issuer: {}, account: AUTH, auth_users: [ auth ] }} }}",
        issuer.public_key()
    );
    // 2.9 knows no callouts.
    let broker = broker(Version::V215, config);
    let callout = Callout::start(&broker.url(), &issuer);
    let folder = TempDir::new().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        write_secret(&path, text);
        path.display().to_string()
    };
    let (good, bad) = (file("good", "ecila"), file("bad", "yrollam"));
    let (one, two) = (file("one", "1"), file("two", "2"));
    let says =
        |user: &str, password: &str| format!("user = \"{user}\"\npassword_file = {password:?}");
    let more = identity(
        "good",
        &format!("token_file = {one:?}"),
        &says("alice", &good),
    ) + &identity(
        "bad",
        &format!("token_file = {two:?}"),
        &says("mallory", &bad),
    );
    let natsmux = launch(&[broker.url()], &more).wait_healthy();
    let connect = |token: &str| {
        let mut client = RawClient::connect(&natsmux.address());
        client.set_patience(PATIENCE);
        client.info();
        let heard = answer(&mut client, &format!(r#""auth_token":"{token}""#));
        (client, heard)
    };
    let (mut client, heard) = connect("1");
    assert_eq!(heard, "PONG");
    assert_eq!(connect("2").1, "-ERR 'Authorization Violation'");
    client.send("SUB a 1\r\nPUB a 2\r\nhi\r\nPING\r\n");
    client.expect("MSG a 1 2\r\nhi\r\n");
    client.pong();
    drop(callout);
}
