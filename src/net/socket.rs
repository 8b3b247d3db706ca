//! Opening, accepting and reading sockets.

use std::future::poll_fn;
use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, Interest, ReadBuf};
pub use tokio::net::tcp::{OwnedReadHalf as ReadHalf, OwnedWriteHalf as WriteHalf};
pub use tokio::net::{TcpListener as Listener, TcpStream as Stream};

use super::unacked;

/// A socket that listens and belongs to no runtime yet.
pub type Bound = std::net::TcpListener;

/// Size of the buffer that a readable socket borrows, in bytes. Smaller ones cost CPU at
/// high rates; an idle connection owns none.
pub const READ_BYTES: usize = 256 * 1024;

/// Opens a listening socket.
///
/// # Errors
/// The operating system's: the address is taken, not on this host, or not permitted.
pub fn bind(addr: SocketAddr) -> io::Result<Bound> {
    super::listen(addr)
}

/// The address that a socket listens on.
///
/// # Errors
/// The operating system's.
pub fn local_addr(bound: &Bound) -> io::Result<SocketAddr> {
    bound.local_addr()
}

/// Hands a listening socket to the runtime of the calling task.
///
/// # Errors
/// The operating system's, where it can't be registered.
pub async fn into_listener(bound: Bound) -> io::Result<Listener> {
    Listener::from_std(bound)
}

/// Opens a connection.
///
/// # Errors
/// The operating system's.
pub async fn connect(addr: SocketAddr) -> io::Result<Stream> {
    let stream = Stream::connect(addr).await?;
    tune(&stream);
    Ok(stream)
}

/// Sets what every connection has: no delay, and keepalive as a second net below the
/// protocol's own pings.
pub fn tune(stream: &Stream) {
    let socket = SockRef::from(stream);
    // A socket that refuses an option works without it.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15)),
    );
}

/// Sends the first bytes of a connection, whatever the runtime knows of it: a new socket's
/// buffer takes them at once, and asking whether it is writable would cost a turn of the
/// loop. Returns whether all of them went out.
pub fn send_first(stream: &Stream, bytes: &[u8]) -> bool {
    matches!(SockRef::from(stream).send(bytes), Ok(count) if count == bytes.len())
}

/// Ready once there is something to read, the end, or an error, which the read finds.
pub fn poll_readable(half: &ReadHalf, cx: &mut Context<'_>) -> Poll<()> {
    half.as_ref().poll_read_ready(cx).map(drop)
}

/// Whether the runtime has seen that there is something to read since [`poll_readable`] was last
/// pending. Asks nothing of it: whoever was to be woken then, still is.
pub fn may_be_readable(half: &ReadHalf) -> bool {
    let stream: &Stream = half.as_ref();
    stream.try_io(Interest::READABLE, || Ok(())).is_ok()
}

/// Reads once from a readable socket into `buffer`. `Ready(Ok(0))` is the end of the
/// stream. A short read clears readiness, so a pass doesn't end in a read that blocks.
pub fn poll_read(
    half: &mut ReadHalf,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    match ready!(Pin::new(half).poll_read(cx, &mut buffer)) {
        Ok(()) => Poll::Ready(Ok(buffer.filled().len())),
        Err(error) => Poll::Ready(Err(error)),
    }
}

/// Ready with the first byte that waits to be read, which stays there; with `None` at the end.
pub fn poll_peek(half: &mut ReadHalf, cx: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
    let mut byte = [0];
    let count = ready!(half.poll_peek(cx, &mut ReadBuf::new(&mut byte)))?;
    Poll::Ready(Ok((count > 0).then_some(byte[0])))
}

/// Reads what a dead socket's buffer holds, whatever the runtime knows of its readiness (R10).
/// `Ok(0)` is its end.
///
/// # Errors
/// The socket's, `WouldBlock` where nothing is there.
pub fn read_now(half: &ReadHalf, buffer: &mut [u8]) -> io::Result<usize> {
    let stream: &Stream = half.as_ref();
    (&*SockRef::from(stream)).read(buffer)
}

/// Closes with a reset: what the peer has not taken yet is thrown away (R5).
pub fn abort(half: &WriteHalf) {
    let stream: &Stream = half.as_ref();
    // Where the option can't be set, closing sends a FIN instead.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Waits for something to read, and reads once. `Ok(0)` is the end of the stream.
///
/// # Errors
/// The socket's.
pub async fn read(half: &mut ReadHalf, buffer: &mut [u8]) -> io::Result<usize> {
    poll_fn(|cx| poll_read(half, cx, buffer)).await
}

/// Writes once.
///
/// # Errors
/// The socket's, `WouldBlock` where it is full.
pub fn try_write(half: &WriteHalf, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    match slices {
        // Most writes are of one slice, which is a little less work for the kernel.
        [slice] => half.try_write(slice),
        _ => half.try_write_vectored(slices),
    }
}

/// Ready once there is room for a write, or an error, which the write finds.
pub fn poll_writable(half: &WriteHalf, cx: &mut Context<'_>) -> Poll<()> {
    half.as_ref().poll_write_ready(cx).map(drop)
}

/// Closes the direction towards the peer.
pub fn shutdown(half: &WriteHalf) {
    let stream: &Stream = half.as_ref();
    // Where it is closed already, that is what was wanted.
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
}

/// Closes both directions.
pub fn shutdown_both(half: &WriteHalf) {
    let stream: &Stream = half.as_ref();
    let _ = SockRef::from(stream).shutdown(Shutdown::Both);
}

/// How many written bytes the peer's host has not acknowledged.
///
/// # Errors
/// The operating system's.
pub fn unacked_bytes(half: &WriteHalf) -> io::Result<u64> {
    let stream: &Stream = half.as_ref();
    unacked::unacked_bytes(stream)
}
