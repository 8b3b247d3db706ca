//! Mode `steady`: a numbered message every 2 ms, received on two connections.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::{Counts, PATIENCE, connect};

const PERIOD: Duration = Duration::from_millis(2);
const PROGRESS: Duration = Duration::from_millis(100);
const LAST_ONES: Duration = Duration::from_secs(2);

/// What one connection received of the numbered messages.
#[derive(Default)]
struct Received {
    seen: HashSet<u32>,
    last: u32,
    duplicates: u32,
    out_of_order: u32,
}

impl Received {
    /// Notes a message; what isn't a number is ignored.
    fn note(&mut self, message: &Message) {
        let text = str::from_utf8(&message.payload).unwrap_or_default();
        let Ok(number) = text.parse() else { return };
        if !self.seen.insert(number) {
            self.duplicates += 1;
        } else if number < self.last {
            self.out_of_order += 1;
        }
        self.last = self.last.max(number);
    }
}

struct Steady {
    publisher: Client,
    subject: String,
    subs: [Subscriber; 2],
    received: [Received; 2],
    published: u32,
    /// Publishes without a number.
    others: u32,
    counts: Arc<Counts>,
}

/// Publishes until `stop` resolves or `most` are out; true if nothing went wrong.
pub(crate) async fn steady(
    url: &str,
    prefix: &str,
    most: u32,
    mut stop: oneshot::Receiver<()>,
    events: Sender<Value>,
) -> bool {
    let mut state = match Steady::start(url, format!("{prefix}.steady")).await {
        Ok(state) => state,
        Err(error) => {
            let _ = events.send(json!({"event": "error", "text": error.to_string()}));
            return false;
        }
    };
    let (mut tick, mut progress) = (interval(PERIOD), interval(PROGRESS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while state.published < most {
        tokio::select! {
            _ = &mut stop => break,
            _ = progress.tick() => {
                let _ = events.send(state.progress());
            }
            _ = tick.tick() => state.publish().await,
            () = state.receive() => {}
        }
    }
    state.last_ones().await;
    let (report, content) = state.report();
    let _ = events.send(report);
    content
}

impl Steady {
    async fn start(url: &str, subject: String) -> Result<Self, Box<dyn std::error::Error>> {
        let counts = Arc::new(Counts::default());
        let (a, b) = (connect(url, &counts).await?, connect(url, &counts).await?);
        let mut subs = [
            a.subscribe(subject.clone()).await?,
            b.subscribe(subject.clone()).await?,
        ];
        // async-nats's flush is no round trip. b's own message is: behind it, b's
        // subscription is known; a's goes the way of a's publishes.
        b.publish(subject.clone(), "hello".into()).await?;
        timeout(PATIENCE, subs[1].next()).await?;
        Ok(Self {
            publisher: a,
            subject,
            subs,
            received: Default::default(),
            published: 0,
            others: 1,
            counts,
        })
    }

    async fn publish(&mut self) {
        self.published += 1;
        let body = self.published.to_string().into();
        let sent = self.publisher.publish(self.subject.clone(), body).await;
        if sent.is_err() {
            self.counts
                .errors
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Takes one message from either connection. Cancel safe: as `Stream::next` is.
    async fn receive(&mut self) {
        let [same, other] = &mut self.subs;
        let (message, index) = tokio::select! {
            message = same.next() => (message, 0),
            message = other.next() => (message, 1),
        };
        match message {
            Some(message) => self.received[index].note(&message),
            // A subscription that ended is ready at once, always: don't spin on it.
            None => tokio::time::sleep(PERIOD).await,
        }
    }

    fn progress(&self) -> Value {
        let received = self.last_of_both();
        json!({"event": "progress", "published": self.published, "received": received})
    }

    fn last_of_both(&self) -> u32 {
        self.received[0].last.min(self.received[1].last)
    }

    async fn last_ones(&mut self) {
        let deadline = Instant::now() + LAST_ONES;
        while self.last_of_both() < self.published && Instant::now() < deadline {
            tokio::select! {
                () = self.receive() => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn report(&self) -> (Value, bool) {
        let [same, other] = &self.received;
        let received = same.seen.intersection(&other.seen).count() as u32;
        let duplicates = same.duplicates + other.duplicates;
        let out_of_order = same.out_of_order + other.out_of_order;
        let (disconnects, errors) = self.counts.values();
        let report = json!({
            "event": "report",
            "published": self.published,
            "others": self.others,
            "received": received,
            "missing": self.published - received,
            "duplicates": duplicates,
            "out_of_order": out_of_order,
            "disconnects": disconnects,
            "errors": errors,
        });
        let wrong = disconnects + errors + u64::from(duplicates + out_of_order);
        (report, wrong == 0)
    }
}
