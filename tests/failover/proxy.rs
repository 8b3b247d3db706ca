//! A TCP proxy before one broker that cuts its connections in the middle of whatever.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::time::{self, Instant};

use crate::size::Dice;
use crate::support::Port;

/// A connection on which nothing moves is cut after this.
const CUT_WITHIN: Duration = Duration::from_millis(20);
/// How long the peer of a FIN has for its own.
const FIN_WITHIN: Duration = Duration::from_secs(2);

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

#[derive(Debug, Clone, Copy)]
enum Order {
    Run,
    /// Every `each`-th connection is cut.
    Cut {
        end: End,
        each: u64,
        seed: u64,
    },
    Stop,
}

/// A running proxy. Dropping it closes all.
pub(crate) struct Proxy {
    address: SocketAddr,
    /// Kept, not read.
    _reserved: Option<Port>,
    orders: watch::Sender<Order>,
    cuts: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy of `broker` on a port of its own.
    pub(crate) fn start(broker: &str) -> Self {
        let port = Port::reserve();
        let broker = broker.parse().expect("a broker's address");
        let mut proxy = Self::at((Ipv4Addr::LOCALHOST, port.number()).into(), broker);
        proxy._reserved = Some(port);
        proxy
    }

    /// A proxy of `broker` on this address.
    pub(crate) fn at(address: SocketAddr, broker: SocketAddr) -> Self {
        let (orders, heard) = watch::channel(Order::Run);
        let cuts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&cuts);
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let listener = TcpListener::bind(address).await;
                let listener = listener.expect("the address can be listened on");
                let _ = ready.send(());
                serve(&listener, broker, heard, &counted).await;
            });
        });
        listening.recv().expect("the proxy listens");
        Self {
            address,
            _reserved: None,
            orders,
            cuts,
            thread: Some(thread),
        }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Cuts every `each`-th connection, each after some bytes more.
    pub(crate) fn cut(&self, end: End, each: u64, seed: u64) {
        let _ = self.orders.send(Order::Cut { end, each, seed });
    }

    /// Connections cut so far.
    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: &TcpListener,
    broker: SocketAddr,
    mut orders: watch::Receiver<Order>,
    cuts: &Arc<AtomicU64>,
) {
    let mut number = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { return };
                number += 1;
                let mut orders = orders.clone();
                // A new connection isn't meant by an old order.
                orders.mark_unchanged();
                let pipe = Pipe { near, number, orders, cuts: Arc::clone(cuts) };
                tokio::spawn(pipe.run(broker));
            }
            changed = orders.changed() => {
                if changed.is_err() || matches!(*orders.borrow_and_update(), Order::Stop) {
                    return;
                }
            }
        }
    }
}

/// One connection.
struct Pipe {
    near: TcpStream,
    number: u64,
    orders: watch::Receiver<Order>,
    cuts: Arc<AtomicU64>,
}

/// What may still pass of a connection that is cut.
struct Sentence {
    end: End,
    up: usize,
    down: usize,
    at: Instant,
}

impl Pipe {
    async fn run(mut self, broker: SocketAddr) {
        let Ok(mut far) = TcpStream::connect(broker).await else {
            return reset(&self.near);
        };
        let _ = (self.near.set_nodelay(true), far.set_nodelay(true));
        let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
        let mut sentence: Option<Sentence> = None;
        loop {
            let at = sentence.as_ref().map_or_else(Instant::now, |s| s.at);
            tokio::select! {
                biased;
                () = time::sleep_until(at), if sentence.is_some() => break,
                read = self.near.read(&mut up) => {
                    let Some(count) = read.ok().filter(|count| *count > 0) else { return };
                    let (count, last) = grant(count, sentence.as_mut().map(|s| &mut s.up));
                    if far.write_all(&up[..count]).await.is_err() || last { break }
                }
                read = far.read(&mut down) => {
                    let Some(count) = read.ok().filter(|count| *count > 0) else {
                        return reset(&self.near);
                    };
                    let (count, last) = grant(count, sentence.as_mut().map(|s| &mut s.down));
                    if self.near.write_all(&down[..count]).await.is_err() || last { break }
                }
                changed = self.orders.changed(), if sentence.is_none() => {
                    if changed.is_err() { return }
                    sentence = self.sentence();
                }
            }
        }
        let Some(sentence) = sentence else { return };
        self.cuts.fetch_add(1, Ordering::Relaxed);
        match sentence.end {
            End::Reset => reset(&self.near),
            End::Fin => fin(self.near, &mut up).await,
        }
    }

    fn sentence(&mut self) -> Option<Sentence> {
        let order = *self.orders.borrow_and_update();
        let Order::Cut { end, each, seed } = order else {
            return None;
        };
        let mut dice = Dice::new(seed ^ (self.number << 20));
        let mut bytes = || usize::try_from(dice.roll(600)).expect("small");
        let (up, down) = (bytes(), bytes());
        (self.number.wrapping_add(seed) % each == 0).then(|| Sentence {
            end,
            up,
            down,
            at: Instant::now() + CUT_WITHIN,
        })
    }
}

/// How much of `count` bytes passes, and whether that is the last of them.
fn grant(count: usize, left: Option<&mut usize>) -> (usize, bool) {
    match left {
        None => (count, false),
        Some(left) if *left > count => {
            *left -= count;
            (count, false)
        }
        Some(left) => (*left, true),
    }
}

fn reset(stream: &TcpStream) {
    // Closing sends RST then.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// FIN, and reads on: closing with unread bytes would send RST.
async fn fin(mut stream: TcpStream, chunk: &mut [u8]) {
    let _ = stream.shutdown().await;
    let rest = async { while matches!(stream.read(chunk).await, Ok(count) if count > 0) {} };
    let _ = time::timeout(FIN_WITHIN, rest).await;
}
