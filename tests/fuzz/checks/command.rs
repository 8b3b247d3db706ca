//! Commands of the control socket.

use std::time::Duration;

use natsmux::control::Command;

/// The longest that a command may pause, or be waited for.
const LONGEST: Duration = Duration::from_secs(600);

/// The first line is the path, the rest is the body. What is taken for a command has its bounds and
/// a name; what isn't says why.
pub fn command(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n');
    let (path, body) = data.split_at(end.unwrap_or(data.len()));
    let body = body.get(1..).unwrap_or_default();
    let path = String::from_utf8_lossy(path);
    match Command::read(&path, body) {
        Ok(command) => {
            let lasts = match &command {
                Command::Move { within, .. } | Command::Drain { within, .. } => Some(*within),
                Command::Pause { lasts, .. } => Some(*lasts),
                _ => None,
            };
            assert!(lasts.is_none_or(|lasts| !lasts.is_zero() && lasts <= LONGEST));
            assert!(!command.to_string().is_empty());
            assert_eq!(Command::read(&path, body).ok(), Some(command));
        }
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
}
