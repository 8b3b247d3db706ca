//! One component of the load: a connection that is made once and never again.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::{self, MissedTickBehavior};

use crate::judge::Track;

const CONNECT: &str =
    r#"CONNECT {"verbose":false,"pedantic":false,"protocol":1,"lang":"raw","version":"1"}"#;
const HANDSHAKE: Duration = Duration::from_secs(10);
const READ_BUFFER: usize = 64 * 1024;

/// What a component does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    /// `127.0.0.1:PORT` of natsmux or a broker.
    pub(crate) address: String,
    pub(crate) subjects: Vec<String>,
    /// The queue group that it is a member of, for all subjects.
    pub(crate) group: Option<String>,
    /// Publishers of which it must get everything, by their place in the load.
    pub(crate) expects: Vec<u64>,
    pub(crate) publishes: Option<Publishes>,
    /// Between PINGs, if it sends any.
    pub(crate) ping: Option<Duration>,
}

/// What a publisher does.
#[derive(Debug, Clone)]
pub(crate) struct Publishes {
    pub(crate) subject: String,
    pub(crate) interval: Duration,
    /// Messages that are written at once.
    pub(crate) burst: u64,
    /// Bytes of a payload, at least.
    pub(crate) size: usize,
}

/// What the test sees of a component.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Messages written whole.
    pub(crate) published: AtomicU64,
    pub(crate) track: Mutex<Track>,
    /// Why the connection ended, or what was wrong on it.
    pub(crate) fault: Mutex<Option<String>>,
    /// PONGs that are owed.
    pinged: Notify,
    pings: Mutex<VecDeque<u64>>,
    pub(crate) pongs: AtomicU64,
    /// In microseconds.
    pub(crate) longest_pong: AtomicU64,
}

/// What all components share.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) start: Instant,
    pub(crate) publishing: AtomicBool,
    pub(crate) over: AtomicBool,
}

impl Stage {
    /// Microseconds since the load began.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).expect("a test ends before that")
    }
}

/// A connected component with its subscriptions in place.
#[derive(Debug)]
pub(crate) struct Player {
    ear: Ear,
    pen: Pen,
}

impl Player {
    /// Connects component `index`, subscribes and waits for the PONG behind that.
    pub(crate) async fn connect(
        index: u64,
        part: Part,
        stage: Arc<Stage>,
        state: Arc<State>,
    ) -> io::Result<Self> {
        let stream = TcpStream::connect(&part.address).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let ear = Ear {
            stage: Arc::clone(&stage),
            state: Arc::clone(&state),
            reader,
            unread: Vec::new(),
        };
        let pen = Pen {
            index,
            part,
            stage,
            state,
            writer,
        };
        let mut player = Self { ear, pen };
        let shaken = time::timeout(HANDSHAKE, player.shake_hands()).await;
        shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(player)
    }

    async fn shake_hands(&mut self) -> io::Result<()> {
        let mut text = format!("{CONNECT}\r\n");
        for (sid, subject) in self.pen.part.subjects.iter().enumerate() {
            let group = self.pen.part.group.as_deref().unwrap_or_default();
            let _ = write!(text, "SUB {subject} {group} {sid}\r\n");
        }
        self.pen.writer.write_all(text.as_bytes()).await?;
        self.pen.ping().await?;
        while self.ear.state.pongs.load(Ordering::Relaxed) == 0 {
            self.ear.read().await?;
        }
        Ok(())
    }

    /// Plays until the stage is over or the connection is.
    pub(crate) async fn play(mut self) {
        let (stage, state) = (Arc::clone(&self.pen.stage), Arc::clone(&self.pen.state));
        let listening = async {
            loop {
                if let Err(error) = self.ear.read().await {
                    return error;
                }
            }
        };
        let writing = async { self.pen.write().await.err() };
        let fault = tokio::select! {
            error = listening => Some(error),
            error = writing => error,
        };
        if let Some(fault) = fault.filter(|_| !stage.over.load(Ordering::Relaxed)) {
            let mut place = state.fault.lock().expect("no panic with this lock held");
            place.get_or_insert_with(|| format!("at {} µs: {fault}", stage.now()));
        }
    }
}

/// The side that publishes and pings.
#[derive(Debug)]
struct Pen {
    index: u64,
    part: Part,
    stage: Arc<Stage>,
    state: Arc<State>,
    writer: OwnedWriteHalf,
}

impl Pen {
    async fn write(&mut self) -> io::Result<()> {
        let (state, publish) = (Arc::clone(&self.state), self.part.publishes.clone());
        let mut publish_tick = ticker(publish.as_ref().map(|publish| publish.interval), self.index);
        let mut ping_tick = ticker(self.part.ping, self.index);
        while !self.stage.over.load(Ordering::Relaxed) {
            tokio::select! {
                biased;
                () = state.pinged.notified() => self.writer.write_all(b"PONG\r\n").await?,
                _ = ping_tick.tick() => if self.part.ping.is_some() {
                    self.ping().await?;
                },
                _ = publish_tick.tick() => if let Some(publish) = &publish
                    && self.stage.publishing.load(Ordering::Relaxed)
                {
                    self.publish(publish).await?;
                },
            }
        }
        Ok(())
    }

    async fn publish(&mut self, publish: &Publishes) -> io::Result<()> {
        let first = self.state.published.load(Ordering::Relaxed);
        let mut frames = String::new();
        for sequence in first..first + publish.burst {
            let mut payload = format!("{} {sequence} {} ", self.index, self.stage.now());
            let padding = publish.size.saturating_sub(payload.len());
            payload.extend(std::iter::repeat_n('.', padding));
            let (subject, size) = (&publish.subject, payload.len());
            let _ = write!(frames, "PUB {subject} {size}\r\n{payload}\r\n");
        }
        self.writer.write_all(frames.as_bytes()).await?;
        let published = &self.state.published;
        published.fetch_add(publish.burst, Ordering::Relaxed);
        Ok(())
    }

    async fn ping(&mut self) -> io::Result<()> {
        let now = self.stage.now();
        let pings = self.state.pings.lock();
        pings.expect("no panic with this lock held").push_back(now);
        self.writer.write_all(b"PING\r\n").await
    }
}

/// Ticks every `interval`, shifted by the component's number, or as good as never.
fn ticker(interval: Option<Duration>, index: u64) -> time::Interval {
    let interval = interval.unwrap_or(Duration::from_secs(3600));
    let shift = interval.mul_f64((index * 37 % 100) as f64 / 100.0);
    let mut ticker = time::interval_at(time::Instant::now() + shift + interval, interval);
    // A publisher that wasn't read for a while doesn't make up for it.
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// The side that listens.
#[derive(Debug)]
struct Ear {
    stage: Arc<Stage>,
    state: Arc<State>,
    reader: OwnedReadHalf,
    unread: Vec<u8>,
}

impl Ear {
    /// Reads once. The end is an error: nobody may close.
    async fn read(&mut self) -> io::Result<()> {
        self.unread.reserve(READ_BUFFER);
        if self.reader.read_buf(&mut self.unread).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let used = self.take_frames()?;
        self.unread.drain(..used);
        Ok(())
    }

    fn take_frames(&mut self) -> io::Result<usize> {
        let at = self.stage.now();
        let mut used = 0;
        while let Some(end) = memchr::memchr(b'\n', &self.unread[used..]) {
            let line = &self.unread[used..used + end + 1];
            let Some(line) = line.strip_suffix(b"\r\n") else {
                return Err(strange(line));
            };
            let body = used + end + 1;
            if line.starts_with(b"MSG ") {
                let size = line.rsplit(|byte| *byte == b' ').next();
                let size = size.and_then(|size| std::str::from_utf8(size).ok()?.parse().ok());
                let size: usize = size.ok_or_else(|| strange(line))?;
                let Some(payload) = self.unread.get(body..body + size + 2) else {
                    break;
                };
                let Some(payload) = payload.strip_suffix(b"\r\n") else {
                    return Err(strange(payload));
                };
                let track = self.state.track.lock();
                let mut track = track.expect("no panic with this lock held");
                track.message(payload, at);
                used = body + size + 2;
                continue;
            }
            match line {
                b"PONG" => self.state.pong(at),
                b"PING" => self.state.pinged.notify_one(),
                _ if line.starts_with(b"INFO ") => {}
                _ => return Err(strange(line)),
            }
            used = body;
        }
        Ok(used)
    }
}

impl State {
    fn pong(&self, at: u64) {
        let pings = self.pings.lock();
        let sent = pings.expect("no panic with this lock held").pop_front();
        self.pongs.fetch_add(1, Ordering::Relaxed);
        if let Some(sent) = sent {
            self.longest_pong
                .fetch_max(at.saturating_sub(sent), Ordering::Relaxed);
        }
    }
}

fn strange(bytes: &[u8]) -> io::Error {
    io::Error::other(format!("got {:?}", String::from_utf8_lossy(bytes)))
}
