//! Files that hold a secret.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::zeroize::Zeroizing;
use thiserror::Error;

/// The longest file, in bytes: a JWT with many permissions is the longest.
const MOST: u64 = 64 * 1024;

/// Why a file can't be used: the operator's fault. Never shows what is in it.
#[derive(Debug, Error)]
pub enum SecretFileError {
    /// It can't be read.
    #[error("{}: {error}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        error: std::io::Error,
    },
    /// Others on the host may read it.
    #[error("{}: everybody may read it; set its mode to 0640 or less", .0.display())]
    Exposed(PathBuf),
    /// It is too long, or no text.
    #[error("{}: expected text of at most 64 KiB", .0.display())]
    NoText(PathBuf),
}

/// Reads a file that nobody but its user and group may read.
///
/// # Errors
/// Others may, or it can't be read.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    let unreadable = |error| SecretFileError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(SecretFileError::Exposed(path.to_owned()));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MOST as usize + 1));
    let read = file.take(MOST + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    let text = std::str::from_utf8(&bytes).ok();
    let text = text.filter(|_| bytes.len() as u64 <= MOST);
    let text = text.ok_or_else(|| SecretFileError::NoText(path.to_owned()))?;
    Ok(Zeroizing::new(text.to_owned()))
}
