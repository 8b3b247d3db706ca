use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::Duration;

use super::*;

#[test]
fn a_command_is_a_path_and_its_keys() {
    let read = |path, body: &str| Command::read(path, body.as_bytes());
    assert_eq!(
        read("/drain", r#"{"broker":"10.0.0.1:4222","within":"5s"}"#),
        Ok(Command::Drain {
            broker: "10.0.0.1:4222".to_owned(),
            bus: None,
            within: Duration::from_secs(5),
        })
    );
    let pause = Command::Pause {
        bus: "control".to_owned(),
        lasts: Duration::from_secs(30),
    };
    assert_eq!(read("/pause", r#"{"bus":"control"}"#), Ok(pause));
    assert_eq!(read("/reload", ""), Ok(Command::Reload));
    for (path, body) in [
        ("/pause", r#"{"bus":"control","for":"11m"}"#),
        ("/pause", r#"{"bus":"control","for":"0s"}"#),
        ("/pause", "{}"),
        ("/kill", "{}"),
        ("/kill", r#"{"cid":-1}"#),
        ("/move", r#"{"bus":"control","broker_":"x"}"#),
        ("/move", "nothing"),
    ] {
        let refused = read(path, body);
        assert!(
            matches!(refused, Err(Refusal::BadRequest(_))),
            "{path} {body}: {refused:?}"
        );
    }
    assert!(matches!(read("/stop", ""), Err(Refusal::Unknown(_))));
}

#[test]
fn the_socket_is_its_owners_alone_and_goes_with_natsmux() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("control.sock");
    let socket = Socket::bind(&path).expect("free");
    let metadata = path.metadata().expect("there");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(matches!(Socket::bind(&path), Err(SocketError::Taken(_))));
    drop(socket);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_a_killed_natsmux_left_is_replaced_and_a_file_isnt() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("control.sock");
    let mut killed = Socket::bind(&path).expect("free");
    drop(killed.take_listener());
    let after = Socket::bind(&path).expect("nobody listens");
    drop(killed);
    assert!(path.exists(), "it is another natsmux's by now");
    drop(after);
    std::fs::write(&path, "a file").expect("written");
    assert!(matches!(Socket::bind(&path), Err(SocketError::Other(_))));
    assert_eq!(std::fs::read(&path).expect("there"), b"a file");
}
