//! A stand-in for the daemon.

use std::path::PathBuf;

use crate::config::Config;

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
#[error("the daemon isn't built yet")]
pub struct DaemonError;

/// Runs the daemon.
///
/// # Errors
/// Always.
pub fn run(_config: Config, _file: Option<PathBuf>) -> Result<(), DaemonError> {
    Err(DaemonError)
}
