//! The program as an operator meets it: every refusal beside what is accepted.
//!
//! `run` is only started with input that is refused; what it does with good
//! input is for `tests/broker`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const GOOD_BUS: &str = "[[bus]]\nname = \"a\"\nbrokers = [\"10.0.0.1\"]\n";

/// What the program did.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn natsmux(args: &[&str]) -> Outcome {
    let program = Command::new(env!("CARGO_BIN_EXE_natsmux"))
        .args(args)
        .output();
    let Output {
        status,
        stdout,
        stderr,
    } = program.expect("natsmux starts");
    Outcome {
        code: status.code(),
        stdout: String::from_utf8(stdout).expect("text"),
        stderr: String::from_utf8(stderr).expect("text"),
    }
}

fn refused(args: &[&str], expected: &str) {
    let outcome = natsmux(args);
    assert_eq!(outcome.code, Some(2), "{args:?}: {}", outcome.stderr);
    assert!(
        outcome.stderr.contains(expected),
        "{args:?}: {}",
        outcome.stderr
    );
    assert_eq!(outcome.stdout, "", "{args:?}");
}

/// A configuration file with this text, in a directory of its own.
fn file(text: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("natsmux.toml");
    fs::write(&path, text).expect("written");
    let path = path.to_str().expect("text").to_owned();
    (dir, path)
}

fn checked(text: &str) -> Outcome {
    let (_dir, path) = file(text);
    natsmux(&["check", "-c", &path])
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(name)
}

#[test]
fn version_and_help_are_no_faults() {
    let version = natsmux(&["--version"]);
    assert_eq!(version.code, Some(0));
    assert_eq!(
        version.stdout,
        format!("natsmux {}\n", env!("CARGO_PKG_VERSION"))
    );
    let help = natsmux(&["run", "--help"]);
    assert_eq!(help.code, Some(0));
    for flag in [
        "--listen",
        "--http",
        "--broker",
        "--topology",
        "--sharing",
        "--delivery",
        "--name",
        "--log",
        "--log-level",
        "-c",
    ] {
        assert!(help.stdout.contains(flag), "{flag}: {}", help.stdout);
    }
}

#[test]
fn shipped_files_pass_the_check() {
    for (name, shown) in [
        ("natsmux.toml", "bus default\n  listen    127.0.0.1:4222\n"),
        (
            "cloudfoundry-v1.toml",
            "bus services\n  listen    127.0.0.1:4223\n",
        ),
    ] {
        let path = shipped(name);
        let outcome = natsmux(&["check", "-c", path.to_str().expect("text")]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert!(outcome.stdout.contains(shown), "{}", outcome.stdout);
        assert_eq!(outcome.stderr, "");
    }
}

#[test]
fn check_prints_brokers_in_order_and_what_is_no_default() {
    let outcome = checked(
        "[[bus]]\nname = \"a\"\nbrokers = [\"nats://b:1\", \"a\"]\nlimits.publish_buffer = \"1MiB\"",
    );
    for line in [
        "  brokers   1. b:1\n            2. a:4222\n",
        "  topology = cluster\n",
        "  limits.publish_buffer = 1MiB (default 8MiB)\n",
    ] {
        assert!(outcome.stdout.contains(line), "{}", outcome.stdout);
    }
}

#[test]
fn wrong_files_name_line_key_and_what_was_expected() {
    assert_eq!(checked(GOOD_BUS).code, Some(0));
    for (tail, expected) in [
        (
            "listn = []",
            "natsmux.toml: line 4: bus.listn: unknown key; expected one of name, listen",
        ),
        (
            "topology = \"ring\"",
            "line 4: bus.topology: expected one of cluster, independent",
        ),
        (
            "timings.block_for = \"0s\"",
            "line 4: bus.timings.block_for: out of bounds: expected a duration from 1ms to 1h",
        ),
        (
            "timings.block_for = 30",
            "line 4: bus.timings.block_for: expected a duration such as",
        ),
        (
            "limits.fence_bytes = \"1TB\"",
            "line 4: bus.limits.fence_bytes: expected a size such as",
        ),
        (
            "lenient_connect = 1",
            "line 4: bus.lenient_connect: expected true or false",
        ),
        (
            "listen = [",
            "line 4: listen: not valid TOML: unclosed array",
        ),
    ] {
        let (_dir, path) = file(&format!("{GOOD_BUS}{tail}\n"));
        refused(&["check", "-c", &path], expected);
        refused(&["run", "-c", &path], expected);
    }
    refused(
        &["check", "-c", "/nonexistent/natsmux.toml"],
        "/nonexistent/natsmux.toml: can't be read",
    );
    refused(&["check"], "--config <FILE>");
}

#[test]
fn every_word_of_a_choice_is_taken_and_no_other() {
    refused(&["run", "--broker", "b", "--sharing", "x"], "identity");
    for sharing in ["none", "identity"] {
        let text = format!("{GOOD_BUS}sharing = \"{sharing}\"\n");
        assert_eq!(checked(&text).code, Some(0));
    }
    for delivery in ["at-most-once", "at-least-once"] {
        let tail = format!("{GOOD_BUS}delivery = \"{delivery}\"\n");
        assert_eq!(checked(&tail).code, Some(0));
    }
    for admit in ["known", "verified", "always"] {
        assert_eq!(
            checked(&format!("{GOOD_BUS}admit = \"{admit}\"\n")).code,
            Some(0)
        );
    }
}

#[test]
fn wrong_flags_are_refused_by_name() {
    refused(&[], "Usage: natsmux <COMMAND>");
    refused(
        &["run"],
        "--broker: missing; expected a broker, such as --broker nats://",
    );
    refused(&["run", "--broker", ""], "--broker: expected a host name");
    refused(
        &["run", "--broker", "a,,b"],
        "--broker: expected a host name",
    );
    refused(
        &["run", "--broker", "a,A:4222"],
        "--broker: a:4222 is listed twice",
    );
    refused(
        &["run", "--broker", "a", "--broker", "a"],
        "--broker: a:4222 is listed twice",
    );
    refused(
        &["run", "--broker", "a:0"],
        "--broker: expected a port from 1 to 65535",
    );
    refused(
        &["run", "--broker", "a", "--listen", "4222"],
        "--listen: expected an IP address and a port",
    );
    refused(
        &[
            "run",
            "--broker",
            "a",
            "--listen",
            "127.0.0.1:1",
            "--listen",
            "127.0.0.1:1",
        ],
        "--listen: 127.0.0.1:1 is listened on twice",
    );
    refused(
        &["run", "--broker", "a", "--http", "on"],
        "--http: expected \"off\", or an IP address",
    );
    refused(
        &["run", "--broker", "a", "--http", "127.0.0.1:4222"],
        "127.0.0.1:4222 is listened on twice",
    );
    refused(
        &["run", "--broker", "a", "--name", "two words"],
        "--name: expected a name",
    );
    refused(
        &["run", "--broker", "a", "--log", "xml"],
        "[possible values: text, json]",
    );
    refused(
        &["run", "--broker", "a", "--log-level", "loud"],
        "[possible values: error, warn, info, debug, trace]",
    );
    refused(
        &["run", "--brokers", "a"],
        "unexpected argument '--brokers'",
    );
}

#[test]
fn a_plain_listener_for_other_hosts_must_be_wanted() {
    let bus = |more: &str| {
        format!(
            "[[bus]]\nname = \"a\"\nlisten = [\"10.0.0.9:4222\"]\nbrokers = [\"10.0.0.1\"]\n{more}"
        )
    };
    let (_dir, open) = file(&bus(""));
    refused(
        &["check", "-c", &open],
        "bus a: other hosts may speak plain text to 10.0.0.9:4222",
    );
    let (_dir, wanted) = file(&bus("allow_plain = true\n"));
    assert_eq!(natsmux(&["check", "-c", &wanted]).code, Some(0));
}

#[test]
fn what_is_wrong_with_files_of_tls_is_said_by_check() {
    let bus = |tls: &str| {
        format!(
            "[[bus]]\nname = \"a\"\nlisten = [\"127.0.0.1:4222\"]\nbrokers = [\"10.0.0.1\"]\n{tls}"
        )
    };
    for (tls, expected) in [
        (
            "[bus.tls]\nca = \"/nowhere/ca.pem\"\n",
            "bus a: TLS: /nowhere/ca.pem",
        ),
        (
            "[bus.tls]\nca = \"/dev/null\"\n",
            "expected certificates in PEM",
        ),
        ("[bus.tls]\ncert = \"/dev/null\"\n", "bus.tls.key: missing"),
        (
            "[bus.tls]\nmode = \"maybe\"\n",
            "expected one of off, required, first",
        ),
        (
            "[bus.tls]\nmin_version = \"1.1\"\n",
            "expected one of 1.2, 1.3",
        ),
        ("[bus.listen_tls]\n", "bus.listen_tls.cert: missing"),
    ] {
        let (_dir, path) = file(&bus(tls));
        refused(&["check", "-c", &path], expected);
    }
}

#[test]
fn natsmux_is_not_its_own_broker() {
    for (listen, broker) in [
        ("127.0.0.1:4222", "127.0.0.1"),
        ("127.0.0.1:4222", "localhost:4222"),
        ("0.0.0.0:4222", "127.0.0.1:4222"),
        ("[::1]:4300", "[::1]:4300"),
    ] {
        let args = ["run", "--listen", listen, "--broker", broker];
        refused(&args, "is natsmux's own listen address");
    }
    refused(
        &["run", "--broker", "localhost"],
        "--broker: localhost:4222 is natsmux's own",
    );
    refused(
        &["run", "--broker", "localhost:8222"],
        "--broker: localhost:8222 is natsmux's own",
    );
}

#[test]
fn flags_of_one_bus_need_a_file_with_one_bus() {
    let second = "[[bus]]\nname = \"b\"\nlisten = [\"127.0.0.1:4223\"]\nbrokers = [\"10.0.0.2\"]\n";
    let (_dir, two) = file(&format!("{GOOD_BUS}{second}"));
    for flags in [
        ["--listen", "127.0.0.1:1"],
        ["--broker", "a"],
        ["--topology", "cluster"],
        ["--sharing", "none"],
        ["--delivery", "at-most-once"],
    ] {
        let [flag, value] = flags;
        let expected = format!("{flag}: describes one bus, but the file has 2");
        refused(&["run", "-c", &two, flag, value], &expected);
    }
    // With one bus the flag is taken: what is refused is what it says.
    let (_dir, one) = file(GOOD_BUS);
    refused(
        &["run", "-c", &one, "--broker", "localhost"],
        "localhost:4222 is natsmux's own",
    );
    // Flags of the daemon go with any file.
    refused(&["run", "-c", &two, "--http", "on"], "--http: expected");
}

#[test]
fn no_output_shows_a_secret() {
    let url = "nats://user:hunter2@127.0.0.1:4301";
    let token = "nats://hunter2@127.0.0.1:4301";
    let (_dir, path) = file(&format!("[[bus]]\nname = \"a\"\nbrokers = [\"{url}\"]\n"));
    let (_dir2, broken) = file(&format!("[[bus]]\nname = \"a\"\nbrokers = [\"{url}]\n"));
    let joined = format!("--broker={url}");
    let misspelt = format!("--brokers={url}");
    let list = format!("a,{url}");
    for args in [
        &["run", "--broker", url][..],
        &["run", "--broker", token],
        &["run", "--broker", &list],
        &["run", &joined],
        &["run", &misspelt],
        &["run", url],
        &[url],
        &["run", "--topology", url],
        &["run", "--broker", "a", "--listen", url],
        &["run", "--broker", "a", "--http", url],
        &["run", "--log", url],
        &["run", "-c", &path],
        &["check", "-c", &path],
        &["check", "-c", &broken],
        &["check", url],
    ] {
        let outcome = natsmux(args);
        assert_eq!(outcome.code, Some(2), "{args:?}");
        let shown = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(!shown.contains("hunter2"), "{args:?}: {shown}");
        assert!(!outcome.stderr.is_empty(), "{args:?}");
    }
    refused(
        &["run", "--broker", url],
        "--broker: expected nats://host:port without credentials",
    );
}
