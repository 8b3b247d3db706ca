//! A second CONNECT under load, at brokers that keep subscriptions: nothing missing, nothing double
//! (R20).

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::size::{figures, number};
use crate::support::{Broker, Natsmux, NatsmuxOptions, PATIENCE, RawClient, Version};

/// The longest that a test may take.
const MOST: Duration = Duration::from_secs(300);

/// Publishes numbers at a broker until it is told to end, and returns how many.
pub(crate) fn publish(address: &str, subject: &str, is_over: &AtomicBool) -> u64 {
    let mut client = RawClient::ready(address);
    let (mut count, until) = (0, Instant::now() + MOST);
    while !is_over.load(Ordering::Relaxed) && Instant::now() < until {
        for _ in 0..4 {
            client.send(format!("PUB {subject} 8\r\n{count:08}\r\n"));
            count += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    // A broker has a PING of its own.
    client.send("PONG\r\nPING\r\n");
    while client.frame().line != "PONG" {}
    count
}

fn options_change_under_load(topology: &str, brokers: usize) {
    let rounds = number("connects", [20, 100, 1_000]);
    let brokers: Vec<Broker> = (0..brokers).map(|_| Broker::start(Version::V29)).collect();
    let urls: Vec<String> = brokers.iter().map(Broker::url).collect();
    let natsmux = Natsmux::launch(&NatsmuxOptions {
        config: Some(format!(
            "[http]\nlisten = \"{{http}}\"\n[[bus]]\nname = \"default\"\ntopology = \"{topology}\"\n\
             listen = [\"{{listen}}\"]\nbrokers = {urls:?}\n"
        )),
        ..NatsmuxOptions::default()
    })
    .wait_healthy();
    let mut client = RawClient::ready(&natsmux.address());
    // One that leaves others may miss something (R22): it is alone from now on.
    client.send("CONNECT {}\r\nSUB load.* 1\r\nSUB load.* members 2\r\nPING\r\n");
    client.pong();
    natsmux.wait_varz("a link to each", PATIENCE, |varz| {
        varz["links"].as_u64()
            == varz["trunks"]
                .as_u64()
                .map(|all| all * brokers.len() as u64)
    });
    let is_over = AtomicBool::new(false);
    let mut heard: Vec<Heard> = brokers.iter().map(|_| Heard::default()).collect();
    let published = thread::scope(|scope| {
        let publishers = brokers.iter().enumerate().map(|(no, broker)| {
            let is_over = &is_over;
            scope.spawn(move || publish(&broker.address(), &format!("load.{no}"), is_over))
        });
        let publishers: Vec<_> = publishers.collect();
        let _end = EndOnDrop(&is_over);
        for round in 0..rounds {
            let has = round % 2 == 0;
            let options = format!("\"headers\":{has},\"no_responders\":{has}");
            client.send(format!(
                "CONNECT {{\"name\":\"{round}\",{options}}}\r\nPING\r\n"
            ));
            hear(&mut client, &mut heard);
        }
        is_over.store(true, Ordering::Relaxed);
        let ended = publishers.into_iter();
        let ended = ended.map(|publisher| publisher.join().expect("it publishes"));
        ended.collect::<Vec<u64>>()
    });
    client.send("PING\r\n");
    hear(&mut client, &mut heard);
    let all: u64 = published.iter().sum();
    figures(&format!(
        "{rounds} second CONNECTs over {topology} brokers, {all} messages, 0 missing, 0 double"
    ));
    for (heard, all) in heard.iter().zip(&published) {
        heard.assert_all(*all);
    }
    let varz = natsmux.varz();
    assert_eq!(varz["sessions_closed"], 0, "{varz}");
    assert_eq!(varz["in_doubt"], 0, "{varz}");
    assert_eq!(varz["link_failures"], 0, "{varz}");
}

/// Ends publishers where a test fails.
pub(crate) struct EndOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Numbers of one broker's publisher that came: in order to the plain subscription, in any order to
/// the only member of the queue group.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    plain: u64,
    member: HashSet<u64>,
}

impl Heard {
    /// Whether as many came as were published.
    pub(crate) fn assert_all(&self, all: u64) {
        assert_eq!((self.plain, self.member.len() as u64), (all, all));
    }
}

/// Reads until the next PONG, and returns the INFOs before it.
pub(crate) fn hear(client: &mut RawClient, heard: &mut [Heard]) -> Vec<String> {
    let mut infos = Vec::new();
    loop {
        let frame = client.frame();
        if frame.line == "PONG" {
            return infos;
        }
        if frame.line.starts_with("INFO ") {
            infos.push(frame.line);
            continue;
        }
        let Some(rest) = frame.line.strip_prefix("MSG load.") else {
            assert!(frame.line.starts_with("MSG large 3 "), "{}", frame.line);
            continue;
        };
        let (broker, sid) = rest.split_once(' ').expect("a sid");
        let heard = &mut heard[broker.parse::<usize>().expect("a number")];
        let number: u64 = String::from_utf8_lossy(&frame.payload)
            .parse()
            .expect("a number");
        if sid.starts_with('1') {
            assert_eq!(number, heard.plain, "at broker {broker}");
            heard.plain += 1;
        } else {
            assert!(
                heard.member.insert(number),
                "{number} at broker {broker} twice"
            );
        }
    }
}

#[test]
fn a_second_connect_is_noticed_by_nobody() {
    options_change_under_load("cluster", 1);
}

#[test]
fn a_second_connect_over_independent_brokers_is_noticed_by_nobody() {
    options_change_under_load("independent", 2);
}
