//! Publishers that write as fast as they are read, and receivers that count what comes.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::cpu::Meter;
use crate::sample::Sample;
use crate::stream::Place;
use crate::ways::Site;

/// How long publishers write.
const DURATION: Duration = Duration::from_millis(1_000);
/// What may be on its way to one receiver: less than a broker calls a slow consumer for. And to
/// all of them: no more than fits into the memory of a broker, and of natsmux (`max_pending_total`).
const IN_FLIGHT_BYTES: u64 = 8 * 1024 * 1024;
const ALL_IN_FLIGHT_BYTES: u64 = 256 * 1024 * 1024;
/// Bytes of one write, where messages are smaller.
const WRITE: usize = 64 * 1024;
/// Subjects of a publisher, and subscriptions of a receiver for them.
const SUBJECTS: usize = 64;
const SUBSCRIPTIONS: usize = 16;
/// A payload begins with its publisher's number and its own, 4 and 8 bytes.
const LEAST_PAYLOAD: usize = 12;

/// Who publishes what to whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Connections that publish.
    pub(crate) publishers: usize,
    /// Connections that receive.
    pub(crate) receivers: usize,
    /// Every receiver gets everything, instead of each that of one publisher.
    pub(crate) to_all: bool,
    /// Whether receivers of the same subject use the same sid.
    pub(crate) equal_sids: bool,
    pub(crate) payload: usize,
    /// Messages in one write at most.
    pub(crate) burst: usize,
    /// Threads that write.
    pub(crate) threads: usize,
}

#[derive(Default)]
struct Stage {
    written: AtomicU64,
    received: AtomicU64,
    is_over: AtomicBool,
}

impl Stage {
    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// What one receiver saw.
#[derive(Default)]
struct Seen {
    next: Vec<u64>,
    lost: u64,
    /// Twice, or behind a later one.
    misplaced: u64,
}

impl Seen {
    fn note(&mut self, payload: &[u8]) {
        let (publisher, rest) = payload.split_at(4);
        let publisher = u32::from_le_bytes(publisher.try_into().expect("4 bytes")) as usize;
        let number = u64::from_le_bytes(rest[..8].try_into().expect("8 bytes"));
        if self.next.len() <= publisher {
            self.next.resize(publisher + 1, 0);
        }
        let next = &mut self.next[publisher];
        if number < *next {
            self.misplaced += 1;
        } else {
            self.lost += number - *next;
            *next = number + 1;
        }
    }
}

/// A connection that publishes.
struct Publisher {
    client: Client,
    next: u64,
    frames: Vec<u8>,
    /// Where in `frames` each message's number is.
    numbers: Vec<usize>,
}

impl Publisher {
    fn new(place: &Place, number: usize, shape: &Shape) -> Self {
        let most = (WRITE / (shape.payload + 40)).clamp(1, shape.burst);
        let mut frames = Vec::new();
        let mut numbers = Vec::new();
        for message in 0..most {
            let subject = subject(number, (message * 7 + number) % SUBJECTS, shape);
            frames.extend_from_slice(format!("PUB {subject} {}\r\n", shape.payload).as_bytes());
            frames.extend_from_slice(&(number as u32).to_le_bytes());
            numbers.push(frames.len());
            frames.resize(frames.len() + shape.payload - 4, b'x');
            frames.extend_from_slice(b"\r\n");
        }
        Self {
            client: Client::connect(place),
            next: 0,
            frames,
            numbers,
        }
    }

    /// One write; returns how many messages that were.
    fn publish(&mut self) -> u64 {
        for at in &self.numbers {
            self.frames[*at..at + 8].copy_from_slice(&self.next.to_le_bytes());
            self.next += 1;
        }
        self.client.send(&self.frames);
        self.numbers.len() as u64
    }
}

fn subject(publisher: usize, number: usize, shape: &Shape) -> String {
    let publisher = if shape.to_all {
        0
    } else {
        publisher % shape.receivers
    };
    format!("bench.{publisher}.{}.{number:04}", number % SUBSCRIPTIONS)
}

fn receiver(place: &Place, number: usize, shape: &Shape) -> Client {
    let mut client = Client::connect(place);
    let of = if shape.to_all { 0 } else { number };
    for subscription in 0..SUBSCRIPTIONS {
        let sid = if shape.equal_sids {
            subscription + 1
        } else {
            1 + subscription + 1_000 * number
        };
        client.subscribe(&format!("bench.{of}.{subscription}.*"), sid as u64);
    }
    client.flush();
    client
}

/// Plays a shape, publishers and receivers at these addresses.
pub(crate) fn play(site: &Site, publish_at: &Place, receive_at: &Place, shape: &Shape) -> Sample {
    assert!(shape.payload >= LEAST_PAYLOAD);
    let receivers: Vec<Client> = (0..shape.receivers)
        .map(|number| receiver(receive_at, number, shape))
        .collect();
    let mut publishers: Vec<Vec<Publisher>> = (0..shape.threads).map(|_| Vec::new()).collect();
    for number in 0..shape.publishers {
        publishers[number % shape.threads].push(Publisher::new(publish_at, number, shape));
    }
    let copies = if shape.to_all {
        shape.receivers as u64
    } else {
        1
    };
    let bytes = shape.payload as u64 + 40;
    let credit = IN_FLIGHT_BYTES.min(ALL_IN_FLIGHT_BYTES / copies) / bytes;
    let credit = credit.max(4);
    let stage = Stage::default();
    let meter = Meter::start(site);
    let start = Instant::now();
    let (published, seen) = thread::scope(|scope| {
        let receiving: Vec<_> = receivers
            .into_iter()
            .map(|client| scope.spawn(|| receive(client, &stage, copies)))
            .collect();
        let writing: Vec<_> = publishers
            .into_iter()
            .map(|publishers| scope.spawn(|| write(publishers, &stage, start, credit, copies)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Vec<Publisher>>| {
            thread.join().expect("a publisher doesn't panic")
        };
        let publishers: Vec<Publisher> = writing.into_iter().flat_map(join).collect();
        stage.is_over.store(true, Ordering::SeqCst);
        let receivers: Vec<(Seen, Instant)> = receiving
            .into_iter()
            .map(|thread| thread.join().expect("a receiver doesn't panic"))
            .collect();
        (publishers, receivers)
    });
    let used = meter.stop();
    let written: u64 = published.iter().map(|publisher| publisher.next).sum();
    let end = seen.iter().map(|(_, last)| *last).max().unwrap_or(start);
    let received = stage.received();
    let misplaced: u64 = seen.iter().map(|(seen, _)| seen.misplaced).sum();
    let inner: u64 = seen.iter().map(|(seen, _)| seen.lost).sum();
    let owed = written * copies;
    Sample::rate(received - misplaced, end - start, used).with_faults(
        owed.saturating_sub(received - misplaced).max(inner),
        misplaced,
    )
}

fn write(
    mut publishers: Vec<Publisher>,
    stage: &Stage,
    start: Instant,
    credit: u64,
    copies: u64,
) -> Vec<Publisher> {
    while start.elapsed() < DURATION {
        for publisher in &mut publishers {
            while stage
                .written
                .load(Ordering::Relaxed)
                .saturating_sub(stage.received() / copies)
                > credit
            {
                thread::sleep(Duration::from_micros(50));
                if start.elapsed() > 2 * DURATION {
                    // Something is lost: what was written stays unread for ever.
                    return publishers;
                }
            }
            let count = publisher.publish();
            stage.written.fetch_add(count, Ordering::Relaxed);
        }
    }
    publishers
}

fn receive(mut client: Client, stage: &Stage, copies: u64) -> (Seen, Instant) {
    let mut seen = Seen::default();
    let mut last = Instant::now();
    client.set_patience(Duration::from_millis(500));
    let (own, mut noted) = (Cell::new(0), 0);
    client.receive(
        |delivery| {
            seen.note(delivery.payload);
            own.set(own.get() + 1);
        },
        || {
            if own.get() > noted {
                stage
                    .received
                    .fetch_add(own.get() - noted, Ordering::Relaxed);
                noted = own.get();
                last = Instant::now();
            }
            let all = stage.written.load(Ordering::SeqCst) * copies;
            stage.is_over.load(Ordering::SeqCst) && stage.received() >= all
        },
    );
    (seen, last)
}
