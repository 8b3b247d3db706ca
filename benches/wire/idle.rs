//! What an idle session with subscriptions costs the proxy, and the broker, in memory.

use std::thread;
use std::time::Duration;

use crate::client::Client;
use crate::cpu::{self, Used};
use crate::sample::Sample;
use crate::ways::Site;

const SESSIONS: usize = 1_000;
const SUBSCRIPTIONS: usize = 10;
/// What goes to each session first, in the variant with traffic.
const TRAFFIC: usize = 16 * 1024;

/// Bytes for each session in the proxy, or in the broker where there is none.
pub(crate) fn play(site: &Site, traffic: bool) -> Sample {
    measure(site, SESSIONS, SUBSCRIPTIONS, traffic)
}

/// The same for other numbers.
pub(crate) fn grow(site: &Site, sessions: usize, subscriptions: usize) -> Sample {
    measure(site, sessions, subscriptions, false)
}

fn measure(site: &Site, sessions: usize, subscriptions: usize, traffic: bool) -> Sample {
    let session = |number| session(site, number, subscriptions);
    let pid = site.proxy_pid().unwrap_or(site.broker_pid());
    // What the first sessions cost once is no session's.
    let mut clients: Vec<Client> = (0..50).map(session).collect();
    thread::sleep(Duration::from_millis(500));
    let before = cpu::resident(pid);
    clients.extend((50..50 + sessions).map(session));
    if traffic {
        let mut publisher = Client::connect(&site.far());
        let payload = "x".repeat(TRAFFIC);
        for number in 0..50 + sessions {
            let frame = format!("PUB idle.{number}.0 {TRAFFIC}\r\n{payload}\r\n");
            publisher.send(frame.as_bytes());
        }
        publisher.flush();
        for client in &mut clients {
            assert!(client.message_within(Duration::from_secs(10)), "a message");
        }
    }
    thread::sleep(Duration::from_millis(1_000));
    let grown = cpu::resident(pid).saturating_sub(before);
    Sample::bytes(grown as f64 / sessions as f64, Used::default())
}

fn session(site: &Site, number: usize, subscriptions: usize) -> Client {
    let mut client = Client::connect(&site.near());
    for subscription in 0..subscriptions {
        let sid = 100 + subscription as u64;
        client.subscribe(&format!("idle.{number}.{subscription}"), sid);
    }
    client.flush();
    client
}
