//! A network namespace of a test's own, whose packets it can drop and whose names it can move.

use std::env;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Set in the process that runs inside.
const INSIDE: &str = "FAILOVER_NAMESPACE";

/// Runs a test, named as `module::name`, in network and mount namespaces of its own: in a
/// second process of this program.
pub(crate) fn alone(test: &str, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return body();
    }
    let program = env::current_exe().expect("the path of this program");
    let root = rustix::process::geteuid().is_root();
    let status = Command::new("unshare")
        .args((!root).then_some("--map-root-user"))
        .args(["--net", "--mount", "--"])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--quiet"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare runs: `make test` installs it");
    assert!(status.success(), "{test} in a namespace of its own");
}

/// Drops incoming packets that match any of these, such as `tcp dport 4222`, in place of what
/// was dropped before.
pub(crate) fn drop_packets(matches: &[String]) {
    let rules: String = matches
        .iter()
        .map(|rule| format!("{rule} drop\n"))
        .collect();
    let table = format!(
        "table inet faults {{}}\ndelete table inet faults\ntable inet faults {{\n\
         chain input {{ type filter hook input priority 0\n{rules}}}\n}}\n"
    );
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft runs: `make test` installs it");
    let mut stdin = nft.stdin.take().expect("stdin is piped");
    stdin.write_all(table.as_bytes()).expect("nft reads");
    drop(stdin);
    assert!(nft.wait().expect("nft ends").success(), "{table}");
}

/// A file that stands for `/etc/hosts` here.
#[derive(Debug)]
pub(crate) struct Names(tempfile::NamedTempFile);

impl Names {
    pub(crate) fn new() -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let path = file.path().to_str().expect("a path in UTF-8");
        run("mount", &["--bind", path, "/etc/hosts"]);
        Self(file)
    }

    /// Makes `name` mean `address`, and forgets all other names.
    pub(crate) fn point(&self, name: &str, address: &str) {
        let text = format!("127.0.0.1 localhost\n{address} {name}\n");
        // Written in place: another file wouldn't be the mounted one.
        fs::write(self.0.path(), text).expect("the file of names is written");
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        // The mount ends with the namespace at the latest.
        let hosts = Path::new("/etc/hosts");
        let _ = Command::new("umount").arg(hosts).status();
    }
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {args:?}");
}
