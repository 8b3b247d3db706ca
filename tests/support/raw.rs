//! A client that sends exactly the bytes it is told and shows exactly what comes back.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT: &str = r#""verbose":false,"pedantic":false,"protocol":1,"headers":true,"no_responders":true,"version":"1""#;

/// One operation from the broker's side: its line without CRLF, and its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Such as `MSG a 1 5` or `PONG`.
    pub line: String,
    /// Headers and body of MSG and HMSG, without the CRLF; empty otherwise.
    pub payload: Vec<u8>,
}

/// A blocking client on one socket. Every read has a deadline, after which it panics.
#[derive(Debug)]
pub struct RawClient {
    stream: TcpStream,
    unread: Vec<u8>,
    patience: Duration,
}

impl RawClient {
    /// Connects, and neither reads nor sends anything.
    ///
    /// # Panics
    ///
    /// If nobody listens.
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address)
            .unwrap_or_else(|error| panic!("no connection to {address}: {error}"));
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self {
            stream,
            unread: Vec::new(),
            patience: PATIENCE,
        }
    }

    /// Connects, reads INFO, sends a CONNECT that isn't verbose, and waits for its PONG.
    pub fn ready(address: &str) -> Self {
        Self::ready_with(address, r#""lang":"raw""#)
    }

    /// As [`RawClient::ready`], with more members in CONNECT, such as `"user":"u","pass":"p"`.
    pub fn ready_with(address: &str, members: &str) -> Self {
        let mut client = Self::connect(address);
        client.info();
        client.send(format!("CONNECT {{{CONNECT},{members}}}\r\nPING\r\n"));
        client.pong();
        client
    }

    /// How long reads wait from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    ///
    /// If the peer has closed.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the peer reads");
    }

    /// Sends bytes to a peer that may have closed.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Closes the sending side only.
    pub fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("a half-close");
    }

    /// Reads INFO.
    pub fn info(&mut self) -> Value {
        let line = self.line();
        let json = line.strip_prefix("INFO ");
        let json = json.unwrap_or_else(|| panic!("INFO expected, not {line:?}"));
        serde_json::from_str(json).expect("INFO holds JSON")
    }

    /// Reads a line and returns it without CRLF.
    pub fn line(&mut self) -> String {
        let deadline = Instant::now() + self.patience;
        let end = loop {
            match self.unread.windows(2).position(|pair| pair == b"\r\n") {
                Some(end) => break end,
                None => self.read_more(deadline, "a line"),
            }
        };
        let line: Vec<_> = self.unread.drain(..end + 2).take(end).collect();
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Reads a line, from a peer that may have closed: `None` then.
    pub fn try_line(&mut self) -> Option<String> {
        let mut byte = [0];
        let deadline = Instant::now() + self.patience;
        while !self.unread.ends_with(b"\r\n") {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).expect("possible");
            match self.stream.read(&mut byte) {
                Ok(1) => self.unread.push(byte[0]),
                _ => return None,
            }
        }
        Some(self.line())
    }

    /// Reads one operation with its payload.
    pub fn frame(&mut self) -> Frame {
        let line = self.line();
        let verb = line.split_ascii_whitespace().next().unwrap_or_default();
        if verb != "MSG" && verb != "HMSG" {
            let payload = Vec::new();
            return Frame { line, payload };
        }
        let size = line.split_ascii_whitespace().next_back();
        let size: usize = size.and_then(|s| s.parse().ok()).expect("a size");
        let mut payload = self.bytes(size + 2);
        assert_eq!(payload.split_off(size), b"\r\n", "the end of {line:?}");
        Frame { line, payload }
    }

    /// Reads one MSG and returns its payload. An INFO before it is skipped.
    pub fn message(&mut self) -> Vec<u8> {
        let frame = self.frame_after_info();
        assert!(frame.line.starts_with("MSG "), "MSG expected: {frame:?}");
        frame.payload
    }

    /// Reads exactly `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let deadline = Instant::now() + self.patience;
        while self.unread.len() < count {
            self.read_more(deadline, "more bytes");
        }
        self.unread.drain(..count).collect()
    }

    /// Reads exactly this text.
    pub fn expect(&mut self, text: &str) {
        let bytes = self.bytes(text.len());
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }

    /// Reads a PONG. An INFO before it is skipped, since 2.15 sends one of its own accord
    /// behind the first PONG; [`RawClient::expect`] is strict.
    pub fn pong(&mut self) {
        let frame = self.frame_after_info();
        assert_eq!(frame.line, "PONG");
    }

    fn frame_after_info(&mut self) -> Frame {
        loop {
            let frame = self.frame();
            if !frame.line.starts_with("INFO ") {
                return frame;
            }
        }
    }

    /// Sends PING and reads its PONG: all that was sent before is processed.
    pub fn flush(&mut self) {
        self.send("PING\r\n");
        self.pong();
    }

    /// Reads until the peer closes, and returns what came before.
    pub fn until_closed(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + self.patience;
        while self.try_read(deadline, "the end") {}
        std::mem::take(&mut self.unread)
    }

    /// Panics if anything comes, or the peer closes, within `duration`.
    pub fn expect_silence(&mut self, duration: Duration) {
        assert_eq!(String::from_utf8_lossy(&self.unread), "");
        let _ = self.stream.set_read_timeout(Some(duration));
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => panic!("the peer closed"),
            Ok(_) => panic!("silence expected, not {:?}", char::from(byte[0])),
            Err(error) => assert!(is_timeout(&error), "silence expected, not {error}"),
        }
    }

    fn read_more(&mut self, deadline: Instant, what: &str) {
        let open = self.try_read(deadline, what);
        let unread = String::from_utf8_lossy(&self.unread);
        assert!(
            open,
            "{what} expected, but the peer closed after {unread:?}"
        );
    }

    /// False at the end of the stream. A reset counts as an end.
    fn try_read(&mut self, deadline: Instant, what: &str) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let unread = String::from_utf8_lossy(&self.unread);
        assert!(!left.is_zero(), "{what} expected in time, got {unread:?}");
        let _ = self.stream.set_read_timeout(Some(left));
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.unread.extend_from_slice(&chunk[..count]);
                count > 0
            }
            Err(error) => is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
