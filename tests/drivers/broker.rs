//! Two model brokers of one cluster, whose routes take no time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use turmoil::net::{TcpListener, TcpStream};

use super::frames::{Publish, Splitter, Up, matches};
use super::verdict::Verdict;

/// What both brokers know.
#[derive(Clone)]
pub struct Cluster(Rc<State>);

struct State {
    verdict: Verdict,
    at_least_once: bool,
    /// A broker was frozen: what it thaws with may be late.
    late: Cell<bool>,
    ducks: [Cell<bool>; 2],
    clients: RefCell<BTreeMap<u64, Client>>,
    next: Cell<u64>,
}

/// A subject, and a queue group if it is a member of one.
type Sub = (Vec<u8>, Option<Vec<u8>>);

struct Client {
    broker: usize,
    subs: BTreeMap<Vec<u8>, Sub>,
    output: Vec<u8>,
    wake: Rc<Notify>,
    ended: bool,
}

impl Cluster {
    pub fn new(verdict: Verdict, at_least_once: bool) -> Self {
        Self(Rc::new(State {
            verdict,
            at_least_once,
            late: Cell::new(false),
            ducks: Default::default(),
            clients: RefCell::default(),
            next: Cell::new(0),
        }))
    }

    /// From now on, publishes may come late.
    pub fn expect_late(&self) {
        self.0.late.set(true);
    }

    /// Whether anything is connected to a broker.
    pub fn is_used(&self, broker: usize) -> bool {
        let clients = self.0.clients.borrow();
        clients.values().any(|client| client.broker == broker)
    }

    /// One of the brokers, from its start to its end.
    pub async fn serve(self, broker: usize) -> turmoil::Result {
        self.0.ducks[broker].set(false);
        let listener = TcpListener::bind("0.0.0.0:4222").await?;
        loop {
            let (stream, _) = listener.accept().await?;
            if self.0.ducks[broker].get() {
                continue;
            }
            let cluster = self.clone();
            spawn_local(async move {
                // A connection that breaks is the end of it.
                let _ = cluster.talk(broker, stream).await;
            });
        }
    }

    /// The broker says that it is a lame duck.
    pub fn make_lame(&self, broker: usize) {
        self.0.ducks[broker].set(true);
        self.tell_all(broker, &self.info(broker));
    }

    fn tell_all(&self, broker: usize, line: &str) {
        for client in self.0.clients.borrow_mut().values_mut() {
            if client.broker == broker {
                client.output.extend_from_slice(line.as_bytes());
                client.wake.notify_one();
            }
        }
    }

    fn info(&self, broker: usize) -> String {
        let duck = if self.0.ducks[broker].get() {
            ",\"ldm\":true"
        } else {
            ""
        };
        format!(
            "INFO {{\"server_id\":\"B{broker}\",\"version\":\"2.15.1\",\"proto\":1,\"host\":\"0.0.0.0\",\"port\":4222,\"headers\":true,\"max_payload\":1048576{duck}}} \r\n"
        )
    }

    async fn talk(self, broker: usize, mut stream: TcpStream) -> io::Result<()> {
        let wake = Rc::new(Notify::new());
        let id = self.0.next.get();
        self.0.next.set(id + 1);
        self.0.clients.borrow_mut().insert(
            id,
            Client {
                broker,
                subs: BTreeMap::new(),
                output: self.info(broker).into_bytes(),
                wake: Rc::clone(&wake),
                ended: false,
            },
        );
        let _registered = Registered(self.clone(), id);
        let mut input = Splitter::default();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let (output, ended) = self.take_output(id);
            stream.write_all(&output).await?;
            if ended {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = wake.notified() => {}
                read = stream.read(&mut buffer) => {
                    let count = read?;
                    if count == 0 {
                        return Ok(());
                    }
                    input.feed(&buffer[..count]);
                    loop {
                        match input.next_up() {
                            Ok(Some(op)) => self.handle(id, op),
                            Ok(None) => break,
                            Err(what) => {
                                self.0.verdict.fail("I4 upstream framing", what);
                                return Ok(());
                            }
                        }
                    }
                }
            }
        }
    }

    fn take_output(&self, id: u64) -> (Vec<u8>, bool) {
        let mut clients = self.0.clients.borrow_mut();
        let client = clients.get_mut(&id).expect("registered");
        (std::mem::take(&mut client.output), client.ended)
    }

    fn handle(&self, id: u64, op: Up) {
        if let Up::Publish(publish) = op {
            return self.publish(&publish);
        }
        let mut clients = self.0.clients.borrow_mut();
        let client = clients.get_mut(&id).expect("registered");
        match op {
            Up::Ping => client.output.extend_from_slice(b"PONG\r\n"),
            Up::Subscribe {
                subject,
                group,
                sid,
            } => {
                client.subs.entry(sid).or_insert((subject, group));
            }
            Up::Unsubscribe { sid, .. } => {
                client.subs.remove(&sid);
            }
            Up::Connect(_) | Up::Pong | Up::Publish(_) => {}
        }
    }

    /// Every plain subscription gets it, and the first member of each queue group.
    fn publish(&self, publish: &Publish) {
        let text = String::from_utf8_lossy(&publish.payload);
        let mut numbers = text.split(' ').map_while(|word| word.parse().ok());
        if let (Some(publisher), Some(number)) = (numbers.next(), numbers.next()) {
            let state = &self.0;
            let identity = (publisher as usize, number);
            state
                .verdict
                .processed(identity, state.at_least_once, state.late.get());
        }
        let mut served = Vec::new();
        for client in self.0.clients.borrow_mut().values_mut() {
            for (sid, (subject, group)) in &client.subs {
                if !matches(subject, &publish.subject) {
                    continue;
                }
                if let Some(group) = group {
                    if served.contains(group) {
                        continue;
                    }
                    served.push(group.clone());
                }
                publish.encode(Some(sid), &mut client.output);
                client.wake.notify_one();
            }
        }
    }
}

/// A client of a broker, until its task ends.
struct Registered(Cluster, u64);

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.0.clients.borrow_mut().remove(&self.1);
    }
}
