//! The socket's file: nobody's but natsmux's own user's, and root's.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::umask;
use thiserror::Error;

/// A socket that is bound, and removed with this.
#[derive(Debug)]
pub struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
    /// The file that was made: another natsmux may have put its own there since.
    file: Identity,
}

/// Device, number and time of a file: numbers are used again.
type Identity = (u64, u64, (i64, i64));

/// Why there is no control socket: the operator's fault, mostly.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("{}: another natsmux listens there", .0.display())]
    Taken(PathBuf),
    /// Something else is there.
    #[error("{}: is there, and no socket", .0.display())]
    Other(PathBuf),
    /// The operating system's word.
    #[error("{}: {error}", path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Socket {
    /// Makes the socket, for its owner alone. One that nobody listens on any more is replaced. To
    /// be called while the process has one thread: the mode of files is the whole process's.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let system = |error| SocketError::System {
            path: path.to_owned(),
            error,
        };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::Other(path.to_owned()));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(SocketError::Taken(path.to_owned()));
            }
            Ok(_) => fs::remove_file(path).map_err(system)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system(error)),
        }
        let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let file = identity(path).map_err(system)?;
        Ok(Self {
            listener: Some(listener),
            path: path.to_owned(),
            file,
        })
    }

    /// Its listener; asked once.
    pub fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let found = fs::symlink_metadata(path)?;
    let time = (found.ctime(), found.ctime_nsec());
    Ok((found.dev(), found.ino(), time))
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.file) {
            // Without it, nothing is lost: the next natsmux replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}
