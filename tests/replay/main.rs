//! The corpora of the fuzz targets, as ordinary tests: what fuzzing once found stays found.

use std::fs;
use std::path::Path;

#[path = "../fuzz/checks/mod.rs"]
mod checks;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut count = 0;
    for file in files {
        let path = file.expect("a file").path();
        check(&fs::read(&path).expect("a corpus file"));
        count += 1;
    }
    assert!(count > 0, "{folder:?} holds nothing");
}

#[test]
fn client_streams() {
    replay("client", checks::client);
}

#[test]
fn server_streams() {
    replay("server", checks::server);
}

#[test]
fn connect_options() {
    replay("connect", checks::connect);
}

#[test]
fn broker_infos() {
    replay("info", checks::info);
}

#[test]
fn files_of_credentials() {
    replay("credentials", checks::credentials);
}

#[test]
fn pull_requests() {
    replay("pull", checks::pull);
}

#[test]
fn commands_of_operators() {
    replay("command", checks::command);
}

#[test]
fn words_ahead_of_a_handshake() {
    replay("handshake", checks::handshake);
}

#[test]
fn configuration_files() {
    replay("config", checks::config);
}

#[test]
fn subscriptions_at_a_limit() {
    replay("operations", checks::operations);
}

#[test]
fn subscription_tables() {
    replay("subscriptions", checks::subscriptions);
}
