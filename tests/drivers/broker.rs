//! Two model brokers of one cluster, whose routes take no time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::sleep;
use turmoil::net::{TcpListener, TcpStream};

use super::frames::{Publish, Splitter, Up, matches};
use super::plan::Plan;
use super::secured;
use super::verdict::Verdict;

/// Of the handshakes, those that come to nothing, and how long those take.
const STALLS_EVERY: u64 = 7;
const STALL: Duration = Duration::from_secs(3);

/// What both brokers know.
#[derive(Clone)]
pub struct Cluster(Rc<State>);

struct State {
    verdict: Verdict,
    at_least_once: bool,
    /// Connections are secured, and until then handshakes may stall.
    stalls_until: Option<Duration>,
    handshakes: Cell<u64>,
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
    pub fn new(verdict: Verdict, plan: &Plan) -> Self {
        Self(Rc::new(State {
            verdict,
            at_least_once: plan.at_least_once,
            stalls_until: plan.tls.then_some(plan.calm_at),
            handshakes: Cell::new(0),
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
                let _ = cluster.welcome(broker, stream).await;
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
        let tls = if self.0.stalls_until.is_some() {
            ",\"tls_required\":true"
        } else {
            ""
        };
        format!(
            "INFO {{\"server_id\":\"B{broker}\",\"version\":\"2.15.1\",\"proto\":1,\"host\":\"0.0.0.0\",\"port\":4222,\"headers\":true,\"max_payload\":1048576{tls}{duck}}} \r\n"
        )
    }

    /// Says INFO, and shakes hands where that is asked for.
    async fn welcome(self, broker: usize, mut stream: TcpStream) -> io::Result<()> {
        stream.write_all(self.info(broker).as_bytes()).await?;
        let Some(stalls_until) = self.0.stalls_until else {
            return self.talk(broker, stream).await;
        };
        let before = self.0.handshakes.get();
        self.0.handshakes.set(before + 1);
        if before % STALLS_EVERY == STALLS_EVERY - 1
            && turmoil::sim_elapsed().is_some_and(|now| now < stalls_until)
        {
            self.0.verdict.mark("TLS: a handshake stalls");
            sleep(STALL).await;
            return Ok(());
        }
        let secured = secured::acceptor().accept(stream).await?;
        self.0.verdict.mark("TLS: a link is secured");
        self.talk(broker, secured).await
    }

    async fn talk(
        self,
        broker: usize,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let wake = Rc::new(Notify::new());
        let id = self.0.next.get();
        self.0.next.set(id + 1);
        self.0.clients.borrow_mut().insert(
            id,
            Client {
                broker,
                subs: BTreeMap::new(),
                output: Vec::new(),
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
            // What is sealed is written only then.
            stream.flush().await?;
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
