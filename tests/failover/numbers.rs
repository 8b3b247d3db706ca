//! Publishers of numbers at several brokers, and who hears them: each number once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Natsmux, NatsmuxOptions, RawClient};

/// natsmux over these brokers; `more` are options of the bus.
pub(crate) fn launch(topology: &str, brokers: &[String], more: &str) -> Natsmux {
    let natsmux = Natsmux::launch(&NatsmuxOptions {
        config: Some(format!(
            "[http]\nlisten = \"{{http}}\"\n[[bus]]\nname = \"default\"\ntopology = \"{topology}\"\n\
             listen = [\"{{listen}}\"]\nbrokers = {brokers:?}\n{more}"
        )),
        ..NatsmuxOptions::default()
    });
    natsmux.wait_healthy()
}

/// Runs `test` while numbers are published at each address, to `load.` and its place. Returns how
/// many were.
pub(crate) fn while_published(addresses: &[String], test: impl FnOnce()) -> Vec<u64> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let publishers = addresses.iter().enumerate().map(|(no, address)| {
            let is_over = &is_over;
            scope.spawn(move || publish(address, &format!("load.{no}"), is_over))
        });
        let publishers: Vec<_> = publishers.collect();
        let end = EndOnDrop(&is_over);
        test();
        drop(end);
        let ended = publishers.into_iter();
        ended
            .map(|publisher| publisher.join().expect("it publishes"))
            .collect()
    })
}

/// The longest that a test may take.
const MOST: Duration = Duration::from_secs(300);

/// Publishes numbers at a broker until it is told to end, and returns how many.
fn publish(address: &str, subject: &str, is_over: &AtomicBool) -> u64 {
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

/// Ends publishers where a test fails.
struct EndOnDrop<'a>(&'a AtomicBool);

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
