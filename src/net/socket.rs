//! Opening, accepting and reading sockets.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};

pub use super::unacked::unacked_bytes;

/// Size of the buffer that a readable socket borrows, in bytes. Smaller ones cost CPU at
/// high rates; an idle connection owns none.
pub const READ_BYTES: usize = 256 * 1024;

/// Pending connections that the kernel keeps for a listener.
const BACKLOG: i32 = 4096;

/// Opens a listening socket.
///
/// # Errors
/// The operating system's: the address is taken, not on this host, or not permitted.
pub fn listen(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Hands a listening socket to the runtime of the calling thread.
///
/// # Errors
/// The operating system's, where it can't be registered.
pub fn into_listener(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    TcpListener::from_std(listener)
}

/// Sets what every connection has: no delay, and keepalive as a second net below the
/// protocol's own pings.
pub fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    // A socket that refuses an option works without it.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15)),
    );
}

/// Reads once from a readable socket into `buffer`. `Ready(Ok(0))` is the end of the
/// stream. A short read clears readiness, so a pass doesn't end in a read that blocks.
pub fn poll_read(
    half: &mut OwnedReadHalf,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    match ready!(Pin::new(half).poll_read(cx, &mut buffer)) {
        Ok(()) => Poll::Ready(Ok(buffer.filled().len())),
        Err(error) => Poll::Ready(Err(error)),
    }
}

/// Reads what a dead socket's buffer holds, whatever the runtime knows of its readiness (R10).
/// `Ok(0)` is its end.
///
/// # Errors
/// The socket's, `WouldBlock` where nothing is there.
pub fn read_now(half: &OwnedReadHalf, buffer: &mut [u8]) -> io::Result<usize> {
    let stream: &TcpStream = half.as_ref();
    (&*SockRef::from(stream)).read(buffer)
}

/// Closes with a reset: what the peer has not taken yet is thrown away (R5).
pub fn abort(stream: &TcpStream) {
    // Where the option can't be set, closing sends a FIN instead.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
