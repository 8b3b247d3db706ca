//! async-nats as a component, on the contract of the other client programs.
//!
//! async-nats can't be told never to reconnect; with `max_reconnects(1)` it may once, and
//! every disconnect is counted, so that one shows.

mod basic;
mod pulls;
mod steady;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;

pub(crate) use basic::basic;
pub(crate) use pulls::pulls;
pub(crate) use steady::steady;

const PATIENCE: Duration = Duration::from_secs(5);
const START_PATIENCE: Duration = Duration::from_secs(20);

/// What went wrong on all connections of one client.
#[derive(Default)]
struct Counts {
    disconnects: AtomicU64,
    errors: AtomicU64,
}

impl Counts {
    fn values(&self) -> (u64, u64) {
        let disconnects = self.disconnects.load(Ordering::Relaxed);
        (disconnects, self.errors.load(Ordering::Relaxed))
    }
}

/// async-nats takes no credentials from the URL.
/// A URL may name, behind a `#`, the authorities of a listener's certificate, or a file of
/// credentials as `creds=`; as `again=`, the library reconnects.
fn options(url: &str, counts: &Arc<Counts>) -> ConnectOptions {
    let counts = Arc::clone(counts);
    let (address, ca) = url.split_once('#').unzip();
    let address = address.unwrap_or(url).parse::<ServerAddr>().ok();
    let user = address.as_ref().and_then(ServerAddr::username);
    let password = address.as_ref().and_then(ServerAddr::password);
    let options = match (user, password) {
        (Some(user), Some(password)) => {
            ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        }
        _ => ConnectOptions::new(),
    };
    let again = ca.and_then(|ca| ca.strip_prefix("again="));
    let creds = again.or(ca.and_then(|ca| ca.strip_prefix("creds=")));
    let options = match ca {
        Some(_) if let Some(creds) = creds => {
            let text = std::fs::read_to_string(creds).expect("a file of credentials");
            options.credentials(&text).expect("credentials")
        }
        Some(ca) => options.add_root_certificates(ca.into()).require_tls(true),
        None => options,
    };
    options
        .max_reconnects(if again.is_some() { 100 } else { 1 })
        .connection_timeout(PATIENCE)
        .event_callback(move |event| {
            let counter = match event {
                Event::Disconnected => Some(&counts.disconnects),
                Event::ServerError(_) | Event::ClientError(_) | Event::SlowConsumer(_) => {
                    Some(&counts.errors)
                }
                _ => None,
            };
            if let Some(counter) = counter {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            async {}
        })
}

async fn connect(url: &str, counts: &Arc<Counts>) -> Result<Client, ConnectError> {
    let address = url.split('#').next().unwrap_or(url);
    options(url, counts).connect(address).await
}

/// The transcript: what was got, held against what is expected.
struct Transcript {
    events: Sender<Value>,
    content: bool,
}

impl Transcript {
    fn new(events: Sender<Value>) -> Self {
        Self {
            events,
            content: true,
        }
    }

    fn step(&mut self, name: &str, got: Value, expected: Value) {
        let ok = got == expected;
        self.content &= ok;
        // The test may have given up already.
        let _ = self
            .events
            .send(json!({"event": "step", "name": name, "got": got, "ok": ok}));
    }
}

/// Connects with a wrong password.
pub(crate) async fn refused(url: &str, events: Sender<Value>) -> bool {
    let mut transcript = Transcript::new(events);
    let got = match connect(url, &Arc::default()).await {
        Ok(_) => "admitted".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    let expected = format!("{:?}", ConnectErrorKind::AuthorizationViolation);
    transcript.step("refused", json!(got), json!(expected));
    transcript.content
}

/// Started while no broker may be alive: says when it was let in, and when a message of its
/// own had come back.
pub(crate) async fn start(url: &str, prefix: &str, events: Sender<Value>) -> bool {
    let begun = Instant::now();
    let say = |event: &str| {
        let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        // The test may have given up already.
        let _ = events.send(json!({"event": event, "ms": took}));
    };
    let options = options(url, &Arc::default()).connection_timeout(START_PATIENCE);
    let client = options.connect(url).await.expect("a connection");
    say("connected");
    let subject = format!("{prefix}.start");
    let own = client.subscribe(subject.clone()).await;
    let mut own = own.expect("a subscription");
    let published = client.publish(subject, "early".into()).await;
    published.expect("a publish");
    let message = timeout(START_PATIENCE, own.next()).await.ok().flatten();
    say("received");
    message.is_some_and(|message| message.payload == "early")
}
