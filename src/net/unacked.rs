//! How many written bytes the peer's host has not acknowledged (SIOCOUTQ).
//!
//! The only module that may be unsafe: no safe wrapper of this request exists.
#![expect(unsafe_code, reason = "an ioctl that no crate wraps")]

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl};

/// `SIOCOUTQ` of linux/sockios.h: for TCP, the bytes that were sent and not acknowledged,
/// and those that wait to be sent.
const SIOCOUTQ: Opcode = 0x5411;

/// Asks the kernel.
///
/// # Errors
/// The operating system's, where the socket is no stream.
pub(super) fn unacked_bytes(socket: impl AsFd) -> io::Result<u64> {
    // SAFETY: SIOCOUTQ writes one C int to the pointer that it is given, and nothing else;
    // that is what `Getter` provides.
    let bytes = unsafe { ioctl(socket, Getter::<SIOCOUTQ, std::ffi::c_int>::new()) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_nobody_takes_stays_unacknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("bound");
        let mut stream = TcpStream::connect(addr).expect("listening");
        assert_eq!(unacked_bytes(&stream).expect("a stream"), 0);
        stream.set_nonblocking(true).expect("possible");
        while stream.write(&[0; 65_536]).is_ok() {}
        assert!(unacked_bytes(&stream).expect("a stream") > 0);
    }
}
