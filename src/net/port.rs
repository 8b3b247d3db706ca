//! The writing side of a socket, shared between the task that owns the connection and the
//! task whose machine has something for it.
//!
//! A trunk's pass writes to the components it touched at once, without waking their tasks;
//! only a socket that is full wakes its own task, which then waits until it can be written.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use super::Outbox;
use super::socket::{self, ReadHalf, WriteHalf};
use super::tls::Tls;
use super::yield_after_io::yield_after_io;

/// Chunks offered to one write.
const SLICES: usize = 64;

/// The state after a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing waits.
    Done,
    /// The socket is full.
    Full,
    /// The socket is dead.
    Dead(io::ErrorKind),
}

/// The writing side of one socket, what is between it and the machines' bytes, and the waker of the
/// task that owns it.
#[derive(Debug)]
pub struct Port {
    write: WriteHalf,
    tls: RefCell<Option<Box<Tls>>>,
    waker: RefCell<Option<Waker>>,
    woken: Cell<bool>,
    /// Its task is being polled.
    awake: Cell<bool>,
    full: Cell<bool>,
}

impl Port {
    /// Wraps the writing half of a connected socket.
    pub fn new(write: WriteHalf) -> Self {
        Self {
            write,
            tls: RefCell::new(None),
            waker: RefCell::new(None),
            woken: Cell::new(false),
            awake: Cell::new(false),
            full: Cell::new(false),
        }
    }

    /// Begins a poll of the task that owns the connection, which is the one to wake with
    /// [`Port::wake`]. Returns whether it was woken so.
    pub fn begin(&self, cx: &Context<'_>) -> bool {
        self.awake.set(true);
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        self.woken.take()
    }

    /// Ends a poll. A task that wakes itself would be polled before the runtime looks at its
    /// sockets: so it isn't woken at once by what it drives, but by
    /// [`yield_after_io`](fn@super::yield_after_io).
    pub fn rest(&self, cx: &mut Context<'_>) {
        self.awake.set(false);
        if self.woken.get() {
            yield_after_io(cx);
        }
    }

    /// Wakes the task that owns the connection.
    pub fn wake(&self) {
        self.woken.set(true);
        if self.awake.get() {
            return;
        }
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Whether the last flush found the socket full and it wasn't seen writable since.
    pub fn is_full(&self) -> bool {
        self.full.get()
    }

    /// Has everything from now on sealed and opened, beginning with a handshake.
    pub fn secure(&self, tls: Tls) {
        *self.tls.borrow_mut() = Some(Box::new(tls));
    }

    /// Whether a handshake is over since the last call.
    pub fn take_secured(&self) -> bool {
        let mut tls = self.tls.borrow_mut();
        tls.as_mut().is_some_and(|tls| tls.take_secured())
    }

    /// When the peer's certificate ends, where it has shown one.
    pub fn peer_ends(&self) -> Option<SystemTime> {
        self.tls.borrow().as_ref()?.peer_ends()
    }

    /// The names in the peer's certificate, where it has shown one.
    pub fn peer_names(&self) -> Vec<String> {
        let tls = self.tls.borrow();
        tls.as_ref().map_or_else(Vec::new, |tls| tls.peer_names())
    }

    /// Takes in what the peer has sent of a handshake, and answers it. What comes behind that stays
    /// to be read.
    pub fn poll_handshake(
        &self,
        read: &mut ReadHalf,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        match self.tls.borrow_mut().as_mut() {
            None => Poll::Ready(Ok(())),
            Some(tls) => tls.poll_handshake(read, &self.write, cx),
        }
    }

    /// Whether there is something to read that the socket doesn't know of any more.
    pub fn has_unread(&self) -> bool {
        self.tls
            .borrow()
            .as_ref()
            .is_some_and(|tls| tls.has_unread())
    }

    /// Reads once from a readable socket into `buffer`. `Ready(Ok(0))` is the end of the stream.
    pub fn poll_read(
        &self,
        read: &mut ReadHalf,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self.tls.borrow_mut().as_mut() {
            None => socket::poll_read(read, cx, buffer),
            Some(tls) => tls.poll_read(read, &self.write, cx, buffer),
        }
    }

    /// Reads what a dead socket still holds (R10). `Ok(0)` is its end.
    ///
    /// # Errors
    /// The socket's, `WouldBlock` where nothing is there.
    pub fn read_now(&self, read: &ReadHalf, buffer: &mut [u8]) -> io::Result<usize> {
        match self.tls.borrow_mut().as_mut() {
            None => socket::read_now(read, buffer),
            Some(tls) => tls.read_now(read, &self.write, buffer),
        }
    }

    /// How many written bytes the peer's host has not acknowledged.
    ///
    /// # Errors
    /// The operating system's.
    pub fn unacked_bytes(&self) -> io::Result<u64> {
        let unacked = socket::unacked_bytes(&self.write)?;
        let tls = self.tls.borrow();
        Ok(tls.as_ref().map_or(unacked, |tls| tls.unacked_of(unacked)))
    }

    /// Writes as much of `outbox` as the socket takes.
    pub fn flush(&self, outbox: &mut Outbox) -> Flush {
        if self.full.get() {
            return Flush::Full;
        }
        if let Some(tls) = self.tls.borrow_mut().as_mut() {
            return match tls.flush(&self.write, outbox) {
                Ok(()) => Flush::Done,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.full.set(true);
                    Flush::Full
                }
                Err(error) => Flush::Dead(error.kind()),
            };
        }
        while !outbox.is_empty() {
            match self.write_once(outbox) {
                Ok(count) => outbox.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.full.set(true);
                    return Flush::Full;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Flush::Dead(error.kind()),
            }
        }
        Flush::Done
    }

    fn write_once(&self, outbox: &Outbox) -> io::Result<usize> {
        if let Some(slice) = outbox.only_slice() {
            // Mostly: an array for all of them would be a kilobyte to fill.
            return socket::try_write(&self.write, &[IoSlice::new(slice)]);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = outbox.slices(&mut slices);
        socket::try_write(&self.write, &slices[..filled])
    }

    /// Ready once a full socket can be written again. Called by the owning task only.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let ready = socket::poll_writable(&self.write, cx);
        if ready.is_ready() {
            self.full.set(false);
        }
        ready
    }

    /// Tells the peer that nothing more comes, where TLS has a word for it.
    pub fn say_end(&self) {
        if let Some(tls) = self.tls.borrow_mut().as_mut() {
            tls.close(&self.write);
        }
    }

    /// The socket itself.
    pub fn socket(&self) -> &WriteHalf {
        &self.write
    }
}

#[cfg(all(test, not(feature = "turmoil")))]
mod tests {
    use std::future::poll_fn;
    use std::io;
    use std::rc::Rc;

    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn who_wakes_itself_is_polled_again_and_told_so() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let stream = TcpStream::connect(listener.local_addr()?).await?;
        let port = Rc::new(Port::new(stream.into_split().1));
        let mut woken = Vec::new();
        poll_fn(|cx| {
            woken.push(port.begin(cx));
            if woken.len() == 2 {
                return Poll::Ready(());
            }
            port.wake();
            port.rest(cx);
            Poll::Pending
        })
        .await;
        assert_eq!(woken, [false, true]);
        Ok(())
    }
}
