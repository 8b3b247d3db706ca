//! A broker's reload that changes `max_payload` under its links: components hear of it, and nothing
//! is missing (R43).

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::numbers::{Heard, hear, launch, while_published};
use crate::size::figures;
use crate::support::{Broker, BrokerOptions, PATIENCE, RawClient, Version};

const SMALL: usize = 50_000;
const MIDDLE: usize = 100_000;
const LARGE: usize = 300_000;

fn offer(max_payload: usize) -> String {
    format!("max_payload: {max_payload}")
}

/// The bound that an INFO tells.
fn told(line: &str) -> Option<u64> {
    let info: Value = serde_json::from_str(line.strip_prefix("INFO ")?).ok()?;
    info["max_payload"].as_u64()
}

/// Reads until the component is told of this bound.
fn await_info(client: &mut RawClient, heard: &mut [Heard], max_payload: usize) {
    loop {
        client.send("PING\r\n");
        let infos = hear(client, heard);
        let mut told = infos.iter().filter_map(|line| told(line));
        if told.next_back() == Some(max_payload as u64) {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn reloads_of_brokers(topology: &str, versions: &[Version]) {
    let mut brokers: Vec<Broker> = versions
        .iter()
        .map(|version| {
            Broker::with(BrokerOptions {
                extra: offer(MIDDLE),
                ..BrokerOptions::new(*version)
            })
        })
        .collect();
    let urls: Vec<String> = brokers.iter().map(Broker::url).collect();
    let addresses: Vec<String> = brokers.iter().map(Broker::address).collect();
    let probes = "timings = { probe_interval = \"100ms\" }\n";
    let natsmux = launch(topology, &urls, probes);
    let mut quiet = RawClient::ready(&natsmux.address());
    let mut client = RawClient::ready(&natsmux.address());
    client.send("SUB load.* 1\r\nSUB load.* members 2\r\nSUB large 3\r\nPING\r\n");
    client.pong();
    natsmux.wait_varz("a link to each", PATIENCE, |varz| {
        varz["links"].as_u64()
            == varz["trunks"]
                .as_u64()
                .map(|all| all * addresses.len() as u64)
    });
    let mut heard: Vec<Heard> = addresses.iter().map(|_| Heard::default()).collect();
    let published = while_published(&addresses, || {
        for max_payload in [LARGE, SMALL, MIDDLE, LARGE] {
            for broker in &mut brokers {
                broker.reload(&offer(max_payload));
            }
            await_info(&mut client, &mut heard, max_payload);
            // One that sends nothing and gets nothing hears of it as well.
            while told(&quiet.frame().line) != Some(max_payload as u64) {}
            let payload = "x".repeat(max_payload);
            client.send(format!("PUB large {max_payload}\r\n{payload}\r\nPING\r\n"));
            hear(&mut client, &mut heard);
        }
    });
    client.send("PING\r\n");
    hear(&mut client, &mut heard);
    let all: u64 = published.iter().sum();
    figures(&format!(
        "4 reloads of {topology} brokers, {all} messages, 0 missing, 0 double"
    ));
    for (heard, all) in heard.iter().zip(&published) {
        heard.assert_all(*all);
    }
    let varz = natsmux.varz();
    assert!(varz["revised_links"].as_u64() >= Some(4), "{varz}");
    for count in ["sessions_closed", "in_doubt", "link_failures"] {
        assert_eq!(varz[count], 0, "{count}: {varz}");
    }
}

#[test]
fn what_a_reload_of_a_broker_offers_is_found_out() {
    for version in Version::ALL {
        reloads_of_brokers("cluster", &[version]);
    }
}

#[test]
fn what_reloads_of_independent_brokers_offer_is_found_out() {
    reloads_of_brokers("independent", &Version::ALL);
}
