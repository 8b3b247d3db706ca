//! Plays one case on one connection and notes what came back.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use natsmux::proto::server::{ServerLimits, ServerOp, ServerScan, scan};

use crate::case::{Case, End, escaped};

/// No case takes longer.
const DEADLINE: Duration = Duration::from_secs(8);
/// How long nothing must come where only silence can be seen.
const QUIET: Duration = Duration::from_millis(300);

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// All frames but INFO, as they came (sorted, where the case has no order). The PONG of the final PING is in it.
    pub(crate) output: Vec<u8>,
    /// Whether the other side closed the connection.
    pub(crate) closed: bool,
}

/// Plays `case` against what listens on `addr`. An error says what was awaited in vain.
pub(crate) fn play(addr: SocketAddr, case: &Case) -> Result<Outcome, String> {
    let mut connection = Connection::open(addr).map_err(|error| format!("connect: {error}"))?;
    if !case.early {
        connection.read_until(|read| read.contains(&b'\n'))?;
    }
    connection.write(&case.send, case.bytes);
    match case.end {
        End::Ping => {
            connection.write(b"PING\r\n", false);
            connection.read_until(|read| {
                frames(read).filter(|frame| *frame == b"PONG\r\n").count() > case.pongs
            })?;
        }
        End::HalfClose => {
            let _ = connection.stream.shutdown(Shutdown::Write);
            connection.read_until(|_| false)?;
        }
        End::Eof => connection.read_until(|_| false)?,
        End::Quiet => connection.read_while_it_comes()?,
    }
    let closed = connection.closed;
    let mut output: Vec<&[u8]> = frames(&connection.read)
        .filter(|frame| !frame.starts_with(b"INFO "))
        .collect();
    if case.any_order {
        output.sort();
    }
    let output = output.concat();
    connection.end();
    Ok(Outcome { output, closed })
}

struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    closed: bool,
    deadline: Instant,
}

impl Connection {
    fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self {
            stream,
            read: Vec::new(),
            closed: false,
            deadline: Instant::now() + DEADLINE,
        })
    }

    /// A write fails where the other side has closed; what it said before is then still to be read.
    fn write(&mut self, bytes: &[u8], one_by_one: bool) {
        let size = if one_by_one { 1 } else { bytes.len().max(1) };
        for chunk in bytes.chunks(size) {
            if self.stream.write_all(chunk).is_err() {
                return;
            }
        }
    }

    /// Reads until `done` or until the other side closes.
    fn read_until(&mut self, done: impl Fn(&[u8]) -> bool) -> Result<(), String> {
        while !self.closed && !done(&self.read) {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if !self.read_some(left) {
                return Err(format!("time-out; read so far: {}", escaped(&self.read)));
            }
        }
        Ok(())
    }

    /// Reads until nothing came for [`QUIET`], or until the other side closes.
    fn read_while_it_comes(&mut self) -> Result<(), String> {
        while !self.closed && Instant::now() < self.deadline {
            if !self.read_some(QUIET) {
                return Ok(());
            }
        }
        if self.closed {
            Ok(())
        } else {
            Err("it never ended".into())
        }
    }

    /// Reads what comes within `timeout`. False when nothing did.
    fn read_some(&mut self, timeout: Duration) -> bool {
        if timeout.is_zero() || self.stream.set_read_timeout(Some(timeout)).is_err() {
            return false;
        }
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.closed = true,
            Ok(count) => self.read.extend_from_slice(&buffer[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                return false;
            }
            Err(_) => self.closed = true,
        }
        true
    }

    /// Leaves, and waits until the other side noticed, so that the next case doesn't meet this one's subscriptions.
    fn end(mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let _ = self.read_until(|_| false);
    }
}

/// The frames of what a broker sent. One that isn't whole is the last; what is no
/// frame counts line by line.
fn frames(read: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = read;
    std::iter::from_fn(move || {
        let len = match scan(rest, &ServerLimits::default()) {
            ServerScan::Op {
                op: ServerOp::Msg(msg),
                ..
            } => msg.frame.len(),
            ServerScan::Op { len, .. } => len,
            ServerScan::Incomplete { .. } => rest.len(),
            ServerScan::Fault(_) => {
                let line_feed = rest.iter().position(|&b| b == b'\n');
                line_feed.map_or(rest.len(), |at| at + 1)
            }
        };
        let (frame, tail) = rest.split_at(len);
        rest = tail;
        (!frame.is_empty()).then_some(frame)
    })
}
