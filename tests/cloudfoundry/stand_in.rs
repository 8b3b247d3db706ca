//! A component of 2012: it speaks as the Ruby client 0.4.22 does, and exits at the first thing
//! that this client doesn't survive: an error, a line that it doesn't know, a closed connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::PATIENCE;

/// How often a component looks at its clock.
const TICK: Duration = Duration::from_millis(5);
/// The first sid of the Ruby client.
const FIRST_SID: u32 = 2;

/// What a component does.
pub(crate) trait Role: Send + 'static {
    /// Its subscriptions and first messages.
    fn start(&mut self, wire: &mut Wire);
    /// A message came.
    fn handle(&mut self, message: &Message, wire: &mut Wire);
    /// Time went by.
    fn tick(&mut self, now: Instant, wire: &mut Wire);
}

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) subject: String,
    pub(crate) sid: u32,
    pub(crate) reply: Option<String>,
    pub(crate) payload: String,
}

impl Message {
    /// The number at the end of the payload.
    pub(crate) fn number(&self) -> u64 {
        let last = self.payload.rsplit(' ').next();
        last.and_then(|text| text.parse().ok()).expect("a number")
    }
}

/// What it writes.
#[derive(Debug)]
pub(crate) struct Wire {
    out: Vec<u8>,
    next_sid: u32,
    inboxes: u32,
    name: String,
}

impl Wire {
    pub(crate) fn subscribe(&mut self, subject: &str, group: Option<&str>) -> u32 {
        let sid = self.next_sid;
        self.next_sid += 1;
        // Two blanks where no group is: an empty slot.
        let group = group.unwrap_or_default();
        self.write(&format!("SUB {subject} {group} {sid}\r\n"));
        sid
    }

    pub(crate) fn publish(&mut self, subject: &str, payload: &str) {
        self.publish_with(subject, "", payload);
    }

    /// Publishes with an inbox of its own that takes `most` answers; returns its sid.
    pub(crate) fn request(&mut self, subject: &str, payload: &str, most: u32) -> u32 {
        self.inboxes += 1;
        let inbox = format!("_INBOX.{}{:010}", self.name, self.inboxes);
        let sid = self.subscribe(&inbox, None);
        self.write(&format!("UNSUB {sid} {most}\r\n"));
        self.publish_with(subject, &inbox, payload);
        sid
    }

    pub(crate) fn unsubscribe(&mut self, sid: u32) {
        self.write(&format!("UNSUB {sid} \r\n"));
    }

    fn publish_with(&mut self, subject: &str, reply: &str, payload: &str) {
        let size = payload.len();
        self.write(&format!("PUB {subject} {reply} {size}\r\n{payload}\r\n"));
    }

    fn write(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }
}

/// A running component.
#[derive(Debug)]
pub(crate) struct StandIn {
    pub(crate) name: String,
    over: Arc<AtomicBool>,
    exit: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Starts one whose `mbus` is `address`, and waits until it is subscribed.
    pub(crate) fn start(name: &str, address: &str, user: &str, role: impl Role) -> Self {
        let (over, exit) = (Arc::<AtomicBool>::default(), Arc::default());
        let component = Component {
            name: name.to_owned(),
            over: Arc::clone(&over),
            unread: Vec::new(),
            wire: Wire {
                out: Vec::new(),
                next_sid: FIRST_SID,
                inboxes: 0,
                name: name.to_owned(),
            },
        };
        let (ready, is_ready) = channel();
        let end: Arc<Mutex<Option<String>>> = Arc::clone(&exit);
        let (address, user) = (address.to_owned(), user.to_owned());
        let thread = thread::spawn(move || {
            if let Err(error) = component.run(&address, &user, role, &ready) {
                *end.lock().expect("no panic with this lock held") = Some(error.to_string());
            }
        });
        // One that exits before that shows it by its exit.
        let _ = is_ready.recv_timeout(PATIENCE);
        Self {
            name: name.to_owned(),
            over,
            exit,
            thread: Some(thread),
        }
    }

    /// Why it exited, if it did.
    pub(crate) fn exit(&self) -> Option<String> {
        let exit = self.exit.lock().expect("no panic with this lock held");
        let panicked = || {
            let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            ended.then(|| "a panic".to_owned())
        };
        let why = exit.clone().or_else(panicked)?;
        Some(format!("{}: {why}", self.name))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic there has shown itself.
            let _ = thread.join();
        }
    }
}

struct Component {
    name: String,
    over: Arc<AtomicBool>,
    unread: Vec<u8>,
    wire: Wire,
}

impl Component {
    fn run(
        mut self,
        address: &str,
        user: &str,
        mut role: impl Role,
        ready: &Sender<()>,
    ) -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        // It doesn't wait for INFO.
        stream.write_all(
            format!(
                "CONNECT {{\"verbose\":false,\"pedantic\":false,\"user\":\"{user}\",\
                 \"pass\":\"{user}\"}}\r\nPING\r\n"
            )
            .as_bytes(),
        )?;
        let (mut begun, mut subscribed) = (false, false);
        let mut chunk = [0; 16 * 1024];
        while !self.over.load(Ordering::SeqCst) {
            match stream.read(&mut chunk) {
                Ok(0) => return Err(io::Error::other("the connection was closed")),
                Ok(count) => self.unread.extend_from_slice(&chunk[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
            while let Some(operation) = self.next()? {
                match operation {
                    Operation::Message(message) => role.handle(&message, &mut self.wire),
                    Operation::Ping => self.wire.write("PONG\r\n"),
                    Operation::Pong if begun => subscribed = true,
                    Operation::Pong => {
                        begun = true;
                        role.start(&mut self.wire);
                        // The answer says that all of it is in place.
                        self.wire.write("PING\r\n");
                    }
                    Operation::Nothing => {}
                }
            }
            if subscribed {
                role.tick(Instant::now(), &mut self.wire);
                let _ = ready.send(());
            }
            if !self.wire.out.is_empty() {
                stream.write_all(&self.wire.out)?;
                self.wire.out.clear();
            }
        }
        Ok(())
    }

    /// The next operation that has come whole.
    fn next(&mut self) -> io::Result<Option<Operation>> {
        let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") else {
            return Ok(None);
        };
        let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
        let mut whole = end + 2;
        let words: Vec<&str> = line.split(' ').collect();
        let operation = match words[..] {
            ["PING"] => Operation::Ping,
            ["PONG"] => Operation::Pong,
            ["+OK"] => Operation::Nothing,
            ["INFO", _] if line.len() + 2 <= 512 => Operation::Nothing,
            ["MSG", subject, sid, ref reply @ .., size] if reply.len() < 2 => {
                let size: usize = size.parse().map_err(io::Error::other)?;
                whole += size + 2;
                if self.unread.len() < whole {
                    return Ok(None);
                }
                let payload = &self.unread[end + 2..whole - 2];
                Operation::Message(Message {
                    subject: subject.to_owned(),
                    sid: sid.parse().map_err(io::Error::other)?,
                    reply: reply.first().map(|reply| (*reply).to_owned()),
                    payload: String::from_utf8_lossy(payload).into_owned(),
                })
            }
            _ => return Err(io::Error::other(format!("{} read {line:?}", self.name))),
        };
        self.unread.drain(..whole);
        Ok(Some(operation))
    }
}

enum Operation {
    Message(Message),
    Ping,
    Pong,
    Nothing,
}
