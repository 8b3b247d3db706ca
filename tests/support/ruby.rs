//! The Ruby server of 2012 (the gem `nats` 0.4.22), as far as a client can tell.
//!
//! Written from what that server was seen to do on the wire: its INFO has seven fields and no
//! `proto`; CONNECT is answered `+OK` whatever it asks for, unless credentials are required;
//! without these, operations are answered `Authorization is required` and the connection
//! closes, as it does after a second without CONNECT; errors take the place of `+OK`, but for that of a publish,
//! which comes before it; a line of more than 1,024 bytes that comes
//! in pieces closes without a word; what it doesn't know is an error, and the connection stays;
//! it knows neither headers nor `echo`, and sends no PING.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Port;

const AUTH_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_LINE: usize = 1024;
const MAX_PAYLOAD: usize = 1024 * 1024;
const TAKEN: &str = "Invalid Subject Identifier (sid), already taken";
const NO_SUBSCRIBER: &str = "Invalid Subject-Identifier (sid), no subscriber registered";
const POLL: Duration = Duration::from_millis(20);

/// A server with its listener, which can die and come back on the same port.
#[derive(Debug)]
pub struct RubyServer {
    port: Port,
    user: Option<(String, String)>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    over: Arc<AtomicBool>,
    hub: Arc<Mutex<Hub>>,
    thread: JoinHandle<()>,
}

/// Its connections.
#[derive(Debug, Default)]
struct Hub {
    next: u64,
    /// Of a queue group, whose turn it is.
    turn: usize,
    clients: BTreeMap<u64, Client>,
    /// Every line that any of them sent.
    lines: Vec<String>,
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    verbose: bool,
    pedantic: bool,
    authorized: bool,
    subscriptions: BTreeMap<String, Subscription>,
}

#[derive(Debug, Clone)]
struct Subscription {
    subject: String,
    group: Option<String>,
    max: Option<u64>,
    delivered: u64,
}

/// What becomes of a connection behind an operation.
#[derive(PartialEq, Eq)]
enum Then {
    Stay,
    Close,
}

impl RubyServer {
    /// Listens; with a user and a password, these are required.
    pub fn start(user: Option<(&str, &str)>) -> Self {
        let mut server = Self {
            port: Port::reserve(),
            user: user.map(|(user, pass)| (user.to_owned(), pass.to_owned())),
            running: None,
        };
        server.up();
        server
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// Listens again.
    pub fn up(&mut self) {
        if self.running.is_some() {
            return;
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port.number()));
        let listener = listener.expect("the reserved port can be listened on");
        listener.set_nonblocking(true).expect("a listener");
        let (over, hub) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Hub>>::default());
        let desk = Desk {
            over: Arc::clone(&over),
            hub: Arc::clone(&hub),
            user: self.user.clone(),
            port: self.port.number(),
        };
        let thread = thread::spawn(move || desk.accept(&listener));
        self.running = Some(Running { over, hub, thread });
    }

    /// Closes every connection and the listener, as a process that dies does.
    pub fn kill(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        running.over.store(true, Ordering::SeqCst);
        for client in lock(&running.hub).clients.values() {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
        // A panic there shows as a connection that closed.
        let _ = running.thread.join();
    }

    /// Every line that its clients have sent since it was started.
    pub fn lines(&self) -> Vec<String> {
        let running = self.running.as_ref().expect("a running server");
        lock(&running.hub).lines.clone()
    }
}

impl Drop for RubyServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().expect("no panic with this lock held")
}

#[derive(Clone)]
struct Desk {
    over: Arc<AtomicBool>,
    hub: Arc<Mutex<Hub>>,
    user: Option<(String, String)>,
    port: u16,
}

impl Desk {
    fn accept(&self, listener: &TcpListener) {
        let mut serving = Vec::new();
        while !self.over.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let desk = self.clone();
                    serving.push(thread::spawn(move || desk.serve(stream)));
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        for thread in serving {
            let _ = thread.join();
        }
    }

    fn serve(&self, stream: TcpStream) {
        stream.set_nonblocking(false).expect("a socket");
        stream.set_read_timeout(Some(POLL)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        let mut reading = stream.try_clone().expect("a socket");
        let number = {
            let mut hub = lock(&self.hub);
            hub.next += 1;
            let number = hub.next;
            let client = Client {
                stream,
                verbose: true,
                pedantic: true,
                authorized: self.user.is_none(),
                subscriptions: BTreeMap::new(),
            };
            client.say(&self.info());
            hub.clients.insert(number, client);
            number
        };
        let since = Instant::now();
        let (mut unread, mut chunk) = (Vec::new(), [0; 64 * 1024]);
        while !self.over.load(Ordering::SeqCst) {
            if let Some(client) = lock(&self.hub).clients.get(&number)
                && !client.authorized
                && since.elapsed() > AUTH_TIMEOUT
            {
                client.error("Authorization is required");
                break;
            }
            match reading.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => unread.extend_from_slice(&chunk[..count]),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(_) => break,
            }
            // Control-D and control-F, wherever they are.
            if unread.iter().any(|byte| matches!(byte, 4 | 6)) {
                break;
            }
            if self.operate(number, &mut unread) == Then::Close {
                break;
            }
        }
        let client = lock(&self.hub).clients.remove(&number);
        let _ = client.map(|client| client.stream.shutdown(Shutdown::Both));
    }

    fn info(&self) -> String {
        format!(
            "INFO {{\"server_id\":\"8a5c1f2e9b7d4c6a8e0f1{:05x}\",\"host\":\"127.0.0.1\",\"port\":{},\
             \"version\":\"0.4.22\",\"auth_required\":{},\"ssl_required\":false,\
             \"max_payload\":{MAX_PAYLOAD}}}\r\n",
            self.port,
            self.port,
            self.user.is_some()
        )
    }

    /// Carries out the whole operations at the start of `unread`.
    fn operate(&self, number: u64, unread: &mut Vec<u8>) -> Then {
        loop {
            let Some(end) = unread.windows(2).position(|pair| pair == b"\r\n") else {
                return if unread.len() > LONGEST_LINE {
                    Then::Close
                } else {
                    Then::Stay
                };
            };
            let line = String::from_utf8_lossy(&unread[..end]).into_owned();
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let verb = words.first().map(|verb| verb.to_ascii_uppercase());
            let size = match (verb.as_deref(), words.last()) {
                (Some("PUB"), Some(size)) if words.len() > 2 => size.parse::<usize>().ok(),
                _ => None,
            };
            if size.is_some_and(|size| size > MAX_PAYLOAD) {
                lock(&self.hub).clients[&number].error("Payload size exceeded");
                return Then::Close;
            }
            let whole = end + 2 + size.map_or(0, |size| size + 2);
            if unread.len() < whole {
                return Then::Stay;
            }
            let operation: Vec<u8> = unread.drain(..whole).collect();
            let payload = size.map(|size| &operation[end + 2..end + 2 + size]);
            let mut hub = lock(&self.hub);
            hub.lines.push(line.clone());
            let then = hub.handle(number, verb.as_deref(), &words, payload, &self.user);
            if verb.as_deref() == Some("INFO") {
                hub.clients[&number].say(&self.info());
            }
            if then == Then::Close {
                return then;
            }
        }
    }
}

impl Hub {
    fn handle(
        &mut self,
        number: u64,
        verb: Option<&str>,
        words: &[&str],
        payload: Option<&[u8]>,
        user: &Option<(String, String)>,
    ) -> Then {
        let Some(client) = self.clients.get_mut(&number) else {
            return Then::Close;
        };
        match verb {
            Some("PING") => {
                client.say("PONG\r\n");
                return Then::Stay;
            }
            Some("PONG") => return Then::Stay,
            Some("CONNECT") => {
                let json = words[1..].concat();
                return client.connect(&json, user.as_ref());
            }
            _ if !client.authorized => {
                client.error("Authorization is required");
                return Then::Close;
            }
            _ => {}
        }
        match (verb, words, payload) {
            (Some("PUB"), [_, subject, reply @ .., _], Some(payload)) if reply.len() < 2 => {
                if client.pedantic && !is_subject(subject, false) {
                    client.error("Invalid Subject");
                }
                client.ok();
                self.route(subject, reply.first().copied(), payload);
            }
            (Some("SUB"), [_, subject, group @ .., sid], _) if group.len() < 2 => {
                if !is_subject(subject, true) {
                    client.error("Invalid Subject");
                    return Then::Stay;
                }
                if client.subscriptions.contains_key(*sid) {
                    client.error(TAKEN);
                    return Then::Stay;
                }
                let subscription = Subscription {
                    subject: (*subject).to_owned(),
                    group: group.first().map(|group| (*group).to_owned()),
                    max: None,
                    delivered: 0,
                };
                client.subscriptions.insert((*sid).to_owned(), subscription);
                client.ok();
            }
            (Some("UNSUB"), [_, sid, max @ ..], _) if max.len() < 2 => {
                let max = max.first().and_then(|max| max.parse::<u64>().ok());
                match (client.subscriptions.get_mut(*sid), max) {
                    (Some(subscription), Some(max)) if max > subscription.delivered => {
                        subscription.max = Some(max);
                    }
                    (Some(_), _) => {
                        client.subscriptions.remove(*sid);
                    }
                    (None, _) => {
                        if client.pedantic {
                            client.error(NO_SUBSCRIBER);
                        }
                        return Then::Stay;
                    }
                }
                client.ok();
            }
            (Some("INFO"), ..) => {}
            _ => client.error("Unknown Protocol Operation"),
        }
        Then::Stay
    }

    /// To every plain subscription, and to one of each queue group.
    fn route(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) {
        let mut groups: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
        let mut plain = Vec::new();
        for (number, client) in &self.clients {
            for (sid, subscription) in &client.subscriptions {
                if !matches(&subscription.subject, subject) {
                    continue;
                }
                let place = (*number, sid.clone());
                match &subscription.group {
                    Some(group) => groups.entry(group.clone()).or_default().push(place),
                    None => plain.push(place),
                }
            }
        }
        for members in groups.into_values() {
            self.turn += 1;
            plain.push(members[self.turn % members.len()].clone());
        }
        for (number, sid) in plain {
            let Some(client) = self.clients.get_mut(&number) else {
                continue;
            };
            let reply = reply.map(|reply| format!("{reply} ")).unwrap_or_default();
            let mut frame =
                format!("MSG {subject} {sid} {reply}{}\r\n", payload.len()).into_bytes();
            frame.extend_from_slice(payload);
            frame.extend_from_slice(b"\r\n");
            client.write(&frame);
            let Some(subscription) = client.subscriptions.get_mut(&sid) else {
                continue;
            };
            subscription.delivered += 1;
            if subscription.max == Some(subscription.delivered) {
                client.subscriptions.remove(&sid);
            }
        }
    }
}

impl Client {
    fn connect(&mut self, json: &str, user: Option<&(String, String)>) -> Then {
        let Ok(options) = serde_json::from_str::<Value>(json) else {
            self.error("Invalid config, valid JSON required for connection configuration");
            return Then::Stay;
        };
        let flag = |key: &str| options[key].as_bool();
        self.verbose = flag("verbose").unwrap_or(self.verbose);
        self.pedantic = flag("pedantic").unwrap_or(self.pedantic);
        match user {
            // Even where it asked for none.
            None => self.say("+OK\r\n"),
            Some((user, pass)) if options["user"] == **user && options["pass"] == **pass => {
                self.authorized = true;
                self.ok();
            }
            Some(_) => {
                self.error("Authorization failed");
                return Then::Close;
            }
        }
        Then::Stay
    }

    fn ok(&self) {
        if self.verbose {
            self.say("+OK\r\n");
        }
    }

    fn error(&self, text: &str) {
        self.say(&format!("-ERR '{text}'\r\n"));
    }

    fn say(&self, text: &str) {
        self.write(text.as_bytes());
    }

    /// A client that is gone is noticed where it is read.
    fn write(&self, bytes: &[u8]) {
        let _ = (&self.stream).write_all(bytes);
    }
}

/// Whether its pattern for subjects, with wildcards or without, fits.
fn is_subject(subject: &str, wildcards: bool) -> bool {
    let count = subject.split('.').count();
    let is_token = |(at, token): (usize, &str)| match token {
        "*" => wildcards,
        ">" => wildcards && at + 1 == count,
        _ => !token.is_empty() && !token.contains(['*', '>']),
    };
    subject.split('.').enumerate().all(is_token)
}

fn matches(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    for token in pattern.split('.') {
        match (token, subject.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}
