//! A client that costs as little as it can: blocking sockets, whole buffers.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use memchr::memchr;

use crate::stream::{Place, Stream, Writer};

const CONNECT: &[u8] =
    b"CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1,\"lang\":\"bench\",\"version\":\"1\"}\r\n";
const READ_BUFFER: usize = 256 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

/// A message as it came.
pub(crate) struct Delivery<'a> {
    pub(crate) reply: Option<&'a [u8]>,
    pub(crate) payload: &'a [u8],
}

/// One connection.
pub(crate) struct Client {
    stream: Stream,
    out: Writer,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Client {
    /// Connects, and is past the PONG behind CONNECT.
    pub(crate) fn connect(place: &Place) -> Self {
        let stream = Stream::connect(place, PATIENCE);
        let mut client = Self {
            out: stream.writer(),
            stream,
            buffer: Vec::new(),
            start: 0,
            end: 0,
        };
        client.handshake(place);
        client
    }

    fn handshake(&mut self, place: &Place) {
        self.buffer.resize(4096, 0);
        while memchr(b'\n', &self.buffer[self.start..self.end]).is_none() {
            assert!(self.fill(), "INFO");
        }
        self.start = 0;
        self.end = 0;
        if let Some(tls) = &place.tls {
            self.stream.secure(tls);
            self.out = self.stream.writer();
        }
        self.send(&[CONNECT, b"PING\r\n"].concat());
        self.pong();
    }

    pub(crate) fn subscribe(&mut self, subject: &str, sid: u64) {
        self.send(format!("SUB {subject} {sid}\r\n").as_bytes());
    }

    /// Waits until all that was sent is processed.
    pub(crate) fn flush(&mut self) {
        self.send(b"PING\r\n");
        self.pong();
    }

    fn pong(&mut self) {
        while memchr::memmem::find(&self.buffer[self.start..self.end], b"PONG\r\n").is_none() {
            assert!(self.fill(), "PONG");
        }
        self.start = 0;
        self.end = 0;
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.out.write_all(bytes).expect("the peer reads");
    }

    /// How long a read waits from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.stream.set_patience(patience);
    }

    /// The writing half, for another thread: this client sends no more.
    pub(crate) fn writer(&self) -> Writer {
        self.stream.writer()
    }

    /// Whether any message comes within `patience`.
    pub(crate) fn message_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.set_patience(patience);
        let mut came = 0;
        while came == 0 && Instant::now() < deadline && self.fill() {
            came = self.take(&mut |_| {});
        }
        self.set_patience(PATIENCE);
        came > 0
    }

    /// Handles whole messages until `done` says that it was enough, or nothing comes for long.
    pub(crate) fn receive(
        &mut self,
        mut handle: impl FnMut(&Delivery<'_>),
        mut done: impl FnMut() -> bool,
    ) {
        self.buffer.resize(READ_BUFFER, 0);
        while !done() && self.fill() {
            self.take(&mut handle);
        }
    }

    /// False where nothing came in time, or the peer has closed.
    fn fill(&mut self) -> bool {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end == self.buffer.len() {
                self.buffer.resize(2 * self.end.max(4096), 0);
            }
        }
        match self.stream.read(&mut self.buffer[self.end..]) {
            Ok(count) => {
                self.end += count;
                count > 0
            }
            Err(error) => error.kind() == ErrorKind::Interrupted,
        }
    }

    /// Handles the whole messages that are there; other lines are skipped.
    fn take(&mut self, handle: &mut impl FnMut(&Delivery<'_>)) -> u64 {
        let mut count = 0;
        loop {
            let unread = &self.buffer[self.start..self.end];
            let Some(line_end) = memchr(b'\n', unread) else {
                return count;
            };
            let mut whole = line_end + 1;
            if unread.starts_with(b"MSG ") {
                let line = &unread[4..line_end - 1];
                let size = size(line);
                whole += size + 2;
                if unread.len() < whole {
                    if whole > self.buffer.len() {
                        self.buffer.resize(2 * whole, 0);
                    }
                    return count;
                }
                handle(&Delivery {
                    reply: reply(line),
                    payload: &unread[line_end + 1..line_end + 1 + size],
                });
                count += 1;
            } else {
                assert!(!unread.starts_with(b"-ERR"), "an error");
            }
            self.start += whole;
        }
    }
}

/// The last word, as a number.
fn size(line: &[u8]) -> usize {
    let digits = line.iter().rev().take_while(|byte| **byte != b' ');
    let (mut size, mut place) = (0, 1);
    for digit in digits {
        size += place * usize::from(digit - b'0');
        place *= 10;
    }
    size
}

/// The third of four words.
fn reply(line: &[u8]) -> Option<&[u8]> {
    let mut words = line.split(|byte| *byte == b' ');
    let third = words.nth(2)?;
    words.next().map(|_| third)
}
