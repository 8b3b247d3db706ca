//! Brokers that do exactly what a test tells them, byte by byte.
//!
//! A broker greets every connection in its own way. Connections that then say something
//! (CONNECT) are *links* and are handed to the test, which plays the broker on them with
//! blocking calls, each with a deadline; those that say nothing were probes. Links of a
//! component named [`WATCHER`] are served by the broker itself.

use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};

use super::{Port, wait_for};

const PATIENCE: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 128;

/// The name in a CONNECT whose link the broker serves by itself: it answers every PING.
/// natsmux watches a broker on the link that is there first; behind such a link, a test has
/// the others for itself.
pub const WATCHER: &str = "watcher";

/// The fields of an INFO, as one of the broker generations sends them.
#[derive(Debug, Clone)]
pub struct Flavour(Value);

impl Flavour {
    /// nats-server 2.15.
    pub fn v2_15() -> Self {
        Self(json!({
            "server_id": "NSCRIPTED", "server_name": "scripted", "version": "2.15.1",
            "proto": 1, "go": "go1.25", "host": "127.0.0.1", "port": 4222, "headers": true,
            "max_payload": 1_048_576, "client_id": 7, "client_ip": "127.0.0.1", "api_lvl": 3,
        }))
    }

    /// nats-server 2.9.
    pub fn v2_9() -> Self {
        Self::v2_15()
            .with("version", "2.9.10")
            .without("api_lvl")
            .with("go", "go1.19")
    }

    /// The Ruby server of 2012.
    pub fn ruby() -> Self {
        Self(json!({
            "server_id": "8a5c", "host": "127.0.0.1", "port": 4222, "version": "0.4.28",
            "auth_required": false, "ssl_required": false, "max_payload": 1_048_576,
        }))
    }

    /// With a field set.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0[field] = value.into();
        self
    }

    /// Without a field.
    #[must_use]
    pub fn without(mut self, field: &str) -> Self {
        if let Some(fields) = self.0.as_object_mut() {
            fields.remove(field);
        }
        self
    }

    /// Asking for credentials.
    #[must_use]
    pub fn with_auth(self) -> Self {
        self.with("auth_required", true)
    }

    /// The line, as Go servers send it.
    pub fn line(&self) -> String {
        format!("INFO {} \r\n", self.0)
    }
}

/// What a broker does with a new connection.
#[derive(Debug, Clone)]
pub enum Greeting {
    /// Sends its INFO and hands the connection to the test.
    Info(Flavour),
    /// Says nothing, ever.
    Silent,
    /// Sends these bytes, and closes.
    Close(Vec<u8>),
    /// Sends these bytes, and resets.
    Reset(Vec<u8>),
    /// Sends these bytes, and leaves it at that.
    Stay(Vec<u8>),
}

/// Brokers of one bus. Their links come in one queue.
#[derive(Debug)]
pub struct Brokers {
    brokers: Vec<ScriptedBroker>,
    links: Receiver<BrokerLink>,
}

impl Brokers {
    /// `count` brokers of 2.15 without authorization.
    pub fn start(count: usize) -> Self {
        Self::with_flavours(&vec![Flavour::v2_15(); count])
    }

    /// One broker for each INFO.
    pub fn with_flavours(flavours: &[Flavour]) -> Self {
        let brokers = Self::dead(flavours.len());
        for (broker, flavour) in brokers.brokers.iter().zip(flavours) {
            broker.greet(Greeting::Info(flavour.clone()));
        }
        brokers.revive()
    }

    /// One broker for each greeting.
    pub fn greeting(greetings: &[Greeting]) -> Self {
        let brokers = Self::dead(greetings.len());
        for (broker, greeting) in brokers.brokers.iter().zip(greetings) {
            broker.greet(greeting.clone());
        }
        brokers.revive()
    }

    /// Brokers of 2.15 on whose ports nobody listens yet.
    pub fn dead(count: usize) -> Self {
        let (sender, links) = channel();
        let brokers = (0..count).map(|index| ScriptedBroker::new(index, sender.clone()));
        Self {
            brokers: brokers.collect(),
            links,
        }
    }

    fn revive(mut self) -> Self {
        for broker in &mut self.brokers {
            broker.up();
        }
        self
    }

    /// `host:port` of each.
    pub fn addresses(&self) -> Vec<String> {
        self.brokers.iter().map(ScriptedBroker::address).collect()
    }

    /// One of them.
    pub fn get(&mut self, index: usize) -> &mut ScriptedBroker {
        &mut self.brokers[index]
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.brokers.len()
    }

    /// The next link that any of them got.
    ///
    /// # Panics
    ///
    /// If none comes in time.
    pub fn link(&self) -> BrokerLink {
        let link = self.links.recv_timeout(PATIENCE);
        link.expect("a link to a scripted broker")
    }

    /// A link that is there already or comes within `patience`.
    pub fn link_within(&self, patience: Duration) -> Option<BrokerLink> {
        self.links.recv_timeout(patience).ok()
    }
}

/// One broker: a listener that can die and come back on the same port.
#[derive(Debug)]
pub struct ScriptedBroker {
    index: usize,
    port: Port,
    greeting: Arc<Mutex<Greeting>>,
    receive_buffer: Option<usize>,
    accepted: Arc<AtomicUsize>,
    served: Arc<Mutex<Vec<TcpStream>>>,
    links: Sender<BrokerLink>,
    running: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl ScriptedBroker {
    fn new(index: usize, links: Sender<BrokerLink>) -> Self {
        Self {
            index,
            port: Port::reserve(),
            greeting: Arc::new(Mutex::new(Greeting::Info(Flavour::v2_15()))),
            receive_buffer: None,
            accepted: Arc::default(),
            served: Arc::default(),
            links,
            running: None,
        }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// How it greets from now on.
    pub fn greet(&self, greeting: Greeting) {
        *self.greeting.lock().expect("no panic with this lock held") = greeting;
    }

    /// The kernel's receive buffer of its connections, in bytes, from the next
    /// [`up`](Self::up) on.
    pub fn set_receive_buffer(&mut self, bytes: usize) {
        self.receive_buffer = Some(bytes);
    }

    /// Connections accepted so far, probes included.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Waits for one more connection than `before`, of whatever kind.
    pub fn wait_accepted(&self, before: usize) {
        wait_for("one more connection", PATIENCE, || {
            (self.accepted() > before).then_some(())
        });
    }

    /// Listens. Nothing happens if it does already.
    pub fn up(&mut self) {
        if self.running.is_some() {
            return;
        }
        // A process that another test has just forked has the last listener until it executes.
        let listener = wait_for("the reserved port to be free", PATIENCE, || {
            self.bind().ok()
        });
        let stop = Arc::new(AtomicBool::new(false));
        let desk = Desk {
            index: self.index,
            greeting: Arc::clone(&self.greeting),
            accepted: Arc::clone(&self.accepted),
            served: Arc::clone(&self.served),
            links: self.links.clone(),
        };
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || desk.serve(&listener, &stopped));
        self.running = Some((stop, thread));
    }

    /// Refuses connections, and closes the links that it serves by itself. Other links that
    /// are open stay with the test.
    pub fn down(&mut self) {
        let Some((stop, thread)) = self.running.take() else {
            return;
        };
        stop.store(true, Ordering::SeqCst);
        // Lets the blocking accept return.
        let _ = TcpStream::connect(self.address());
        let _ = thread.join();
        let served = self.served.lock();
        for stream in served.expect("no panic with this lock held").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn bind(&self) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.number()));
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }
}

impl Drop for ScriptedBroker {
    fn drop(&mut self) {
        self.down();
    }
}

/// What the accepting thread needs.
struct Desk {
    index: usize,
    greeting: Arc<Mutex<Greeting>>,
    accepted: Arc<AtomicUsize>,
    served: Arc<Mutex<Vec<TcpStream>>>,
    links: Sender<BrokerLink>,
}

impl Desk {
    fn serve(&self, listener: &TcpListener, stop: &AtomicBool) {
        while let Ok((stream, _)) = listener.accept() {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            self.accepted.fetch_add(1, Ordering::SeqCst);
            let greeting = self.greeting.lock().map(|greeting| greeting.clone());
            let Ok(greeting) = greeting else {
                return;
            };
            let (index, links) = (self.index, self.links.clone());
            let served = Arc::clone(&self.served);
            // Ends when natsmux closes, or at the read deadline.
            thread::spawn(move || welcome(stream, greeting, index, &links, &served));
        }
    }
}

fn welcome(
    mut stream: TcpStream,
    greeting: Greeting,
    index: usize,
    links: &Sender<BrokerLink>,
    served: &Mutex<Vec<TcpStream>>,
) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(PATIENCE));
    match greeting {
        Greeting::Info(flavour) => {
            let greeted = stream.write_all(flavour.line().as_bytes());
            // A probe reads INFO and closes; a link speaks.
            let mut first = [0; 4096];
            let seen = stream.peek(&mut first).unwrap_or_default();
            if greeted.is_err() || seen == 0 {
                return;
            }
            // natsmux sends CONNECT in one piece.
            let watcher = format!(r#""name":"{WATCHER}""#);
            if String::from_utf8_lossy(&first[..seen]).contains(&watcher) {
                serve(stream, served);
            } else {
                // The test may be over.
                let _ = links.send(BrokerLink::new(index, stream));
            }
        }
        Greeting::Silent => drain(&mut stream),
        Greeting::Close(bytes) => {
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            drain(&mut stream);
        }
        Greeting::Reset(bytes) => {
            let _ = stream.write_all(&bytes);
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        Greeting::Stay(bytes) => {
            let _ = stream.write_all(&bytes);
            drain(&mut stream);
        }
    }
}

/// Answers every PING, until the connection ends.
fn serve(stream: TcpStream, served: &Mutex<Vec<TcpStream>>) {
    let (Ok(twin), Ok(mut served)) = (stream.try_clone(), served.lock()) else {
        return;
    };
    served.push(twin);
    drop(served);
    let _ = stream.set_read_timeout(None);
    let Ok(read) = stream.try_clone() else {
        return;
    };
    let mut write = stream;
    for line in io::BufReader::new(read).lines() {
        match line.as_deref() {
            Ok("PING") if write.write_all(b"PONG\r\n").is_ok() => {}
            Ok("PING") | Err(_) => return,
            Ok(_) => {}
        }
    }
}

fn drain(stream: &mut TcpStream) {
    let mut chunk = [0; 4096];
    while matches!(stream.read(&mut chunk), Ok(count) if count > 0) {}
}

/// One operation that natsmux sent: its line without CRLF, and a publish's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Such as `PUB a 5`, `SUB foo 0` or `PING`.
    pub line: String,
    /// Headers and body of PUB and HPUB, without the CRLF; empty otherwise.
    pub payload: Vec<u8>,
}

impl Received {
    /// The first word.
    pub fn verb(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    /// A word of the line.
    pub fn word(&self, index: usize) -> &str {
        self.line.split(' ').nth(index).unwrap_or_default()
    }

    fn is_publish(&self) -> bool {
        matches!(self.verb(), "PUB" | "HPUB")
    }
}

/// A link from natsmux, on which the test is the broker.
#[derive(Debug)]
pub struct BrokerLink {
    /// Which of the brokers it came to.
    pub broker: usize,
    /// What its CONNECT said, once that was read.
    pub connect: Value,
    stream: TcpStream,
    unread: Vec<u8>,
}

impl BrokerLink {
    fn new(broker: usize, stream: TcpStream) -> Self {
        Self {
            broker,
            connect: Value::Null,
            stream,
            unread: Vec::new(),
        }
    }

    /// Reads CONNECT and its PING, and leaves the answer to the test.
    pub fn connecting(&mut self) {
        let line = self.receive().line;
        let json = line.strip_prefix("CONNECT ");
        let json = json.unwrap_or_else(|| panic!("CONNECT expected, not {line:?}"));
        self.connect = serde_json::from_str(json).expect("CONNECT holds JSON");
        self.expect("PING");
    }

    /// Reads CONNECT and PING, and accepts.
    pub fn accept(&mut self) {
        self.connecting();
        if self.connect["verbose"] == true {
            self.send("+OK\r\n");
        }
        self.send("PONG\r\n");
    }

    /// Accepts, reads the replay of exactly these subjects, each `subject` or
    /// `subject group`, answers its fence and returns their upstream sids. A verbose link
    /// gets its `+OK`s.
    pub fn accept_replay(&mut self, subjects: &[&str]) -> Vec<String> {
        self.accept();
        let sids: Vec<_> = subjects.iter().map(|subject| self.sub(subject)).collect();
        self.answer_ping();
        sids
    }

    /// Reads one SUB of `subject` (or `subject group`) and returns its sid.
    pub fn sub(&mut self, subject: &str) -> String {
        let line = self.receive().line;
        let sid = line.strip_prefix(&format!("SUB {subject} "));
        let sid = sid.unwrap_or_else(|| panic!("SUB {subject} expected, not {line:?}"));
        if self.connect["verbose"] == true {
            self.send("+OK\r\n");
        }
        sid.to_owned()
    }

    /// Reads a PING, and nothing before it, and answers it.
    pub fn answer_ping(&mut self) {
        self.expect("PING");
        self.send("PONG\r\n");
    }

    /// Reads a publish with this line and this payload.
    pub fn publish(&mut self, line: &str, payload: impl AsRef<[u8]>) {
        let received = self.receive();
        let payload = payload.as_ref().to_vec();
        let line = line.to_owned();
        assert_eq!(received, Received { line, payload });
    }

    /// Reads exactly this line.
    pub fn expect(&mut self, line: &str) {
        assert_eq!(self.receive().line, line);
    }

    /// Sends a MSG.
    pub fn msg(&mut self, subject: &str, sid: &str, payload: &str) {
        self.send(message(subject, sid, payload));
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.stream.write_all(bytes.as_ref());
        sent.expect("natsmux reads");
    }

    /// Sends bytes to a natsmux that may have closed.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Reads one operation.
    ///
    /// # Panics
    ///
    /// If the link ends, or nothing comes in time.
    pub fn receive(&mut self) -> Received {
        let received = self.next();
        received.unwrap_or_else(|| {
            let unread = String::from_utf8_lossy(&self.unread);
            panic!("an operation expected, but natsmux closed after {unread:?}")
        })
    }

    /// Reads one operation; `None` at the end. What is left then is [`unread`](Self::unread).
    pub fn next(&mut self) -> Option<Received> {
        let deadline = Instant::now() + PATIENCE;
        let end = loop {
            match self.unread.windows(2).position(|pair| pair == b"\r\n") {
                Some(end) => break end,
                None if !self.read_more(deadline) => return None,
                None => {}
            }
        };
        let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
        let mut received = Received {
            line,
            payload: Vec::new(),
        };
        let mut used = end + 2;
        if received.is_publish() {
            let size = received.line.split(' ').next_back();
            let size: usize = size.and_then(|size| size.parse().ok()).expect("a size");
            while self.unread.len() < used + size + 2 {
                if !self.read_more(deadline) {
                    return None;
                }
            }
            received.payload = self.unread[used..used + size].to_vec();
            used += size + 2;
            assert_eq!(&self.unread[used - 2..used], b"\r\n", "end of a payload");
        }
        self.unread.drain(..used);
        Some(received)
    }

    /// Reads exactly `count` bytes, whatever they are, and not one more.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.unread.drain(..count.min(self.unread.len())).collect();
        let buffered = bytes.len();
        bytes.resize(count, 0);
        let read = self.stream.read_exact(&mut bytes[buffered..]);
        read.expect("as many bytes as that");
        bytes
    }

    /// Everything that natsmux sends until it closes, PINGs answered: whole operations.
    pub fn until_closed(&mut self) -> Vec<Received> {
        let mut all = Vec::new();
        while let Some(received) = self.next() {
            if received.verb() == "PING" {
                self.try_send("PONG\r\n");
            }
            all.push(received);
        }
        all
    }

    /// Reads operations up to and including the first for which `test` holds, PINGs
    /// answered, and returns them all.
    pub fn until(&mut self, test: impl Fn(&Received) -> bool) -> Vec<Received> {
        let mut all = Vec::new();
        loop {
            let received = self.receive();
            if received.verb() == "PING" {
                self.send("PONG\r\n");
            }
            let found = test(&received);
            all.push(received);
            if found {
                return all;
            }
        }
    }

    /// Runs `test` while every PING that comes is answered.
    ///
    /// # Panics
    ///
    /// If anything else comes.
    pub fn answering<T>(&mut self, test: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(5)));
        let result = thread::scope(|scope| {
            let answerer = scope.spawn(|| {
                loop {
                    while self.unread.starts_with(b"PING\r\n") {
                        self.unread.drain(..6);
                        self.try_send("PONG\r\n");
                    }
                    let done = over.load(Ordering::SeqCst) || !self.unread.is_empty();
                    if done || !self.read_more(Instant::now() + PATIENCE) {
                        break;
                    }
                }
            });
            let result = {
                // Also where the test panics: the scope waits for its thread.
                let _ends = EndOnDrop(&over);
                test()
            };
            answerer.join().expect("the answering thread");
            result
        });
        let _ = self.stream.set_read_timeout(Some(PATIENCE));
        let unread = String::from_utf8_lossy(&self.unread);
        assert_eq!(unread, "", "only PINGs were expected");
        result
    }

    /// What was read and is no whole operation.
    pub fn unread(&self) -> &[u8] {
        &self.unread
    }

    /// Panics if natsmux sends anything, or closes, within `duration`.
    pub fn expect_silence(&mut self, duration: Duration) {
        assert_eq!(String::from_utf8_lossy(&self.unread), "");
        let _ = self.stream.set_read_timeout(Some(duration));
        let result = self.stream.read(&mut [0]);
        let _ = self.stream.set_read_timeout(Some(PATIENCE));
        match result {
            Err(error) if is_timeout(&error) => {}
            other => panic!("silence expected, not {other:?}"),
        }
    }

    /// Closes with FIN, and waits until natsmux has closed too. Returns what it sent.
    pub fn fin(mut self) -> Vec<Received> {
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut all = Vec::new();
        while let Some(received) = self.next() {
            all.push(received);
        }
        all
    }

    /// Closes with RST.
    pub fn reset(self) {
        let socket = SockRef::from(&self.stream);
        let linger = socket.set_linger(Some(Duration::ZERO));
        linger.expect("SO_LINGER");
    }

    /// False at the end of the stream. A reset counts as an end.
    fn read_more(&mut self, deadline: Instant) -> bool {
        let unread = String::from_utf8_lossy(&self.unread);
        assert!(
            Instant::now() < deadline,
            "waited in vain for natsmux, got {unread:?}"
        );
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.unread.extend_from_slice(&chunk[..count]);
                count > 0
            }
            Err(error) => is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted,
        }
    }
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A MSG frame.
pub fn message(subject: &str, sid: &str, payload: &str) -> String {
    format!("MSG {subject} {sid} {}\r\n{payload}\r\n", payload.len())
}

/// What a broker since 2.12 sends where nobody listens to the subject of a request.
pub fn no_responders(reply: &str, sid: &str, subject: &str) -> String {
    let header = format!("NATS/1.0 503\r\nNats-Subject: {subject}\r\n\r\n");
    let size = header.len();
    format!("HMSG {reply} {sid} {size} {size}\r\n{header}\r\n")
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
