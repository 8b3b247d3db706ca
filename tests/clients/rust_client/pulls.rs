//! async-nats' pull consumers of stream S, on the contract of `python/pulls.py`.

use std::collections::HashSet;
use std::future::pending;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, Message};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{interval, sleep};

use super::{Counts, options};

const ACK_WAIT: Duration = Duration::from_secs(5);
const EXPIRES: Duration = Duration::from_secs(30);
const KINDS: [&str; 2] = ["messages", "batch"];
const TRIES: u32 = 300;

#[derive(Default)]
struct Numbers {
    received: u64,
    double: u64,
    failed: u64,
    gap: Duration,
    last: Option<Instant>,
    seen: HashSet<u64>,
}

impl Numbers {
    fn take(&mut self, message: &Message) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.gap = self.gap.max(now - last);
        }
        self.received += 1;
        let Ok(info) = message.info() else {
            self.failed += 1;
            return;
        };
        let is_new = self.seen.insert(info.stream_sequence);
        self.double += u64::from(!is_new && info.delivered == 1);
    }

    fn take_gap(&mut self) -> f64 {
        let now = Instant::now();
        let open = self.last.map_or(Duration::ZERO, |last| now - last);
        std::mem::take(&mut self.gap).max(open).as_secs_f64()
    }

    fn report(&self) -> Value {
        json!({
            "received": self.received,
            "distinct": self.seen.len(),
            "double": self.double,
            "failed": self.failed,
        })
    }
}

type Shared = Arc<Mutex<Numbers>>;

async fn consumer(js: &jetstream::Context, durable: String) -> PullConsumer {
    let config = pull::Config {
        durable_name: Some(durable),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: 50_000,
        num_replicas: 3,
        ..pull::Config::default()
    };
    for _ in 0..TRIES {
        if let Ok(consumer) = js.create_consumer_on_stream(config.clone(), "S").await {
            return consumer;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("no consumer");
}

async fn take(message: Message, numbers: &Shared) {
    numbers.lock().expect("numbers").take(&message);
    // A failure shows as a redelivery.
    let _ = message.ack().await;
}

/// Ends never, unless the library ends its stream of messages.
async fn messages(consumer: PullConsumer, numbers: Shared) {
    let Ok(mut messages) = consumer.messages().await else {
        return;
    };
    while let Some(message) = messages.next().await {
        match message {
            Ok(message) => take(message, &numbers).await,
            Err(_) => numbers.lock().expect("numbers").failed += 1,
        }
    }
    numbers.lock().expect("numbers").failed += 1;
    pending().await
}

async fn batches(consumer: PullConsumer, numbers: Shared) {
    loop {
        let batch = consumer.batch().max_messages(20).expires(EXPIRES);
        let Ok(mut batch) = batch.messages().await else {
            numbers.lock().expect("numbers").failed += 1;
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        while let Some(message) = batch.next().await {
            match message {
                Ok(message) => take(message, &numbers).await,
                Err(_) => numbers.lock().expect("numbers").failed += 1,
            }
        }
    }
}

/// Runs until the lines end.
pub(crate) async fn pulls(
    url: &str,
    name: &str,
    again: bool,
    mut lines: UnboundedReceiver<&'static str>,
    events: Sender<Value>,
) -> bool {
    let counts = Arc::new(Counts::default());
    let mut options = options(url, &counts);
    if again {
        options = options.max_reconnects(None);
    }
    let Ok(client) = options.connect(url).await else {
        return false;
    };
    let js = jetstream::new(client);
    let numbers = KINDS.map(|_| Shared::default());
    let [first, second] = &numbers;
    let one = consumer(&js, format!("{name}-{}", KINDS[0])).await;
    let other = consumer(&js, format!("{name}-{}", KINDS[1])).await;
    let tasks = [
        tokio::spawn(messages(one, Arc::clone(first))),
        tokio::spawn(batches(other, Arc::clone(second))),
    ];
    let mut progress = interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some("mark") => {
                    let gap = |numbers: &Shared| numbers.lock().expect("numbers").take_gap();
                    let gaps = json!({ "event": "gaps", "messages": gap(first), "batch": gap(second) });
                    let _ = events.send(gaps);
                }
                _ => break,
            },
            _ = progress.tick() => {
                let received = numbers.iter().map(|one| one.lock().expect("numbers").received).min();
                let _ = events.send(json!({ "event": "progress", "received": received }));
            }
        }
    }
    let report = |numbers: &Shared| numbers.lock().expect("numbers").report();
    let (disconnects, errors) = counts.values();
    let _ = events.send(json!({
        "event": "report",
        "consumers": { "messages": report(first), "batch": report(second) },
        "disconnects": disconnects,
        "errors": errors,
    }));
    tasks.into_iter().for_each(|task| task.abort());
    true
}
