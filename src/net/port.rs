//! The writing side of a socket, shared between the task that owns the connection and the
//! task whose machine has something for it.
//!
//! A trunk's pass writes to the components it touched at once, without waking their tasks;
//! only a socket that is full wakes its own task, which then waits until it can be written.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker};

use super::Outbox;
use super::socket::{self, WriteHalf};

/// Chunks offered to one write.
const SLICES: usize = 64;

/// What a flush left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing waits.
    Done,
    /// The socket is full.
    Full,
    /// The socket is dead.
    Dead(io::ErrorKind),
}

/// The writing side of one socket, and the waker of the task that owns it.
#[derive(Debug)]
pub struct Port {
    write: WriteHalf,
    waker: RefCell<Option<Waker>>,
    woken: Cell<bool>,
    full: Cell<bool>,
}

impl Port {
    /// Wraps the writing half of a connected socket.
    pub fn new(write: WriteHalf) -> Self {
        Self {
            write,
            waker: RefCell::new(None),
            woken: Cell::new(false),
            full: Cell::new(false),
        }
    }

    /// Remembers the task to wake with [`Port::wake`].
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Wakes the task that owns the connection.
    pub fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Whether [`Port::wake`] was called since this was asked.
    pub fn take_woken(&self) -> bool {
        self.woken.take()
    }

    /// Whether the last flush found the socket full and it wasn't seen writable since.
    pub fn is_full(&self) -> bool {
        self.full.get()
    }

    /// Writes as much of `outbox` as the socket takes.
    pub fn flush(&self, outbox: &mut Outbox) -> Flush {
        if self.full.get() {
            return Flush::Full;
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

    /// The socket itself.
    pub fn socket(&self) -> &WriteHalf {
        &self.write
    }
}
