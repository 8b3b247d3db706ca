//! The twin of `socket` for a simulated network (feature `turmoil`): the same names, for
//! drivers that don't know the difference.
//!
//! Turmoil's sockets lack two things: nothing is ever reset, only closed, and the
//! kernel's queue of unacknowledged bytes is always empty.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

/// Size of the buffer that a readable socket borrows, in bytes.
pub const READ_BYTES: usize = 64 * 1024;

/// A socket that will listen: its address.
pub type Bound = SocketAddr;

/// A listening socket.
pub struct Listener(TcpListener);

/// A connection.
#[derive(Clone, Debug)]
pub struct Stream(Rc<RefCell<TcpStream>>);

/// The half of a connection that is read.
pub type ReadHalf = Stream;
/// The half of a connection that is written.
pub type WriteHalf = Stream;

impl Listener {
    /// Waits for the next connection.
    ///
    /// # Errors
    /// None in a simulation.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((Stream::new(stream), peer))
    }
}

impl Stream {
    fn new(stream: TcpStream) -> Self {
        Self(Rc::new(RefCell::new(stream)))
    }

    /// Splits a connection into its halves.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.clone(), self)
    }

    /// The address on this side.
    ///
    /// # Errors
    /// None in a simulation.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.borrow().local_addr()
    }

    /// The address on the other side.
    ///
    /// # Errors
    /// None in a simulation.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.borrow().peer_addr()
    }
}

/// Opens a listening socket.
///
/// # Errors
/// None: an address that is taken is found by [`into_listener`].
pub fn bind(addr: SocketAddr) -> io::Result<Bound> {
    Ok(addr)
}

/// The address that a socket will listen on.
///
/// # Errors
/// None in a simulation.
pub fn local_addr(bound: &Bound) -> io::Result<SocketAddr> {
    Ok(*bound)
}

/// Begins to listen.
///
/// # Errors
/// The simulation's, where the address is taken.
pub async fn into_listener(bound: Bound) -> io::Result<Listener> {
    TcpListener::bind(bound).await.map(Listener)
}

/// Opens a connection.
///
/// # Errors
/// The simulation's, where nobody listens.
pub async fn connect(addr: SocketAddr) -> io::Result<Stream> {
    TcpStream::connect(addr).await.map(Stream::new)
}

/// Does nothing: a simulated connection has no options.
pub fn tune(_stream: &Stream) {}

/// Sends the first bytes of a connection. Returns whether all of them went out.
pub fn send_first(stream: &Stream, bytes: &[u8]) -> bool {
    matches!(stream.0.borrow().try_write(bytes), Ok(count) if count == bytes.len())
}

/// Ready once there is something to read, or the end.
pub fn poll_readable(half: &ReadHalf, cx: &mut Context<'_>) -> Poll<()> {
    let mut byte = [0];
    let mut byte = ReadBuf::new(&mut byte);
    half.0.borrow_mut().poll_peek(cx, &mut byte).map(drop)
}

/// Whether there may be something to read: a simulation can't be asked without being told whom to
/// wake.
pub fn may_be_readable(_half: &ReadHalf) -> bool {
    true
}

/// Reads once. `Ready(Ok(0))` is the end of the stream.
pub fn poll_read(
    half: &mut ReadHalf,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    let mut stream = half.0.borrow_mut();
    ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}

/// Ready with the first byte that waits to be read, which stays there; with `None` at the end.
pub fn poll_peek(half: &mut ReadHalf, cx: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    let count = ready!(half.0.borrow_mut().poll_peek(cx, &mut buffer))?;
    Poll::Ready(Ok((count > 0).then_some(byte[0])))
}

/// Reads what is there already.
///
/// # Errors
/// The simulation's, `WouldBlock` where nothing is there.
pub fn read_now(half: &ReadHalf, buffer: &mut [u8]) -> io::Result<usize> {
    let mut cx = Context::from_waker(Waker::noop());
    match poll_read(&mut half.clone(), &mut cx, buffer) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Writes once.
///
/// # Errors
/// The simulation's, `WouldBlock` where there is no room.
pub fn try_write(half: &WriteHalf, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
    half.0.borrow().try_write(&bytes)
}

/// Ready once there is room for a write.
pub fn poll_writable(half: &WriteHalf, cx: &mut Context<'_>) -> Poll<()> {
    let stream = half.0.borrow();
    pin!(stream.writable()).poll(cx).map(drop)
}

/// Closes: a simulated connection can't be reset.
pub fn abort(_half: &WriteHalf) {}

/// Closes one direction.
pub fn shutdown(half: &WriteHalf) {
    let mut stream = half.0.borrow_mut();
    let mut cx = Context::from_waker(Waker::noop());
    // Where it is closed already, that is what was wanted.
    let _ = Pin::new(&mut *stream).poll_shutdown(&mut cx);
}

/// Closes both directions.
pub fn shutdown_both(half: &WriteHalf) {
    shutdown(half);
}

/// Nothing: a simulated network takes what is written.
///
/// # Errors
/// None in a simulation.
pub fn unacked_bytes(_half: &WriteHalf) -> io::Result<u64> {
    Ok(0)
}

/// Waits for something to read, and reads once.
///
/// # Errors
/// The simulation's.
pub async fn read(half: &mut ReadHalf, buffer: &mut [u8]) -> io::Result<usize> {
    poll_fn(|cx| poll_read(half, cx, buffer)).await
}
