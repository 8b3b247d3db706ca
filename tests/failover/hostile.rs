//! Components that flood, churn, say nonsense, read nothing or die, and what their neighbours
//! notice of it: no more than they would at a broker.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::process::{cpu_hundredths, open_files, resident_kilobytes};
use crate::rig::{Delivery, KNOWN, config, natsmux, pause, shared_config};
use crate::size::{figures, number, percentile, spread, turn};
use crate::support::{
    Broker, BrokerOptions, Cluster, Natsmux, NatsmuxOptions, PATIENCE, RawClient, Version, sharing,
    wait_for,
};

const CONNECT: &[u8] = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1}\r\n";
/// Between two messages of the neighbour.
const PERIOD: Duration = Duration::from_millis(2);
/// Written at once by one that floods.
const BLOCK: usize = 32 * 1024;

/// What a hostile component does, over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    /// Publishes as fast as it is read.
    Publishes,
    /// PINGs as fast as it is read, and reads the PONGs.
    Pings,
    /// Subscribes and unsubscribes.
    Churn,
    /// Connects, says nonsense, and is closed.
    Nonsense,
    /// Connects, subscribes a thousandfold, and dies.
    Deaths,
}

const ATTACKS: [Attack; 5] = [
    Attack::Publishes,
    Attack::Pings,
    Attack::Churn,
    Attack::Nonsense,
    Attack::Deaths,
];

/// A running attack. Dropping it ends it.
struct Attacker {
    over: Arc<AtomicBool>,
    /// Blocks written, or connections made.
    turns: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Attacker {
    fn start(attack: Attack, address: &str) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let turns = Arc::new(AtomicU64::new(0));
        let (stop, count, address) = (Arc::clone(&over), Arc::clone(&turns), address.to_owned());
        let thread = thread::spawn(move || {
            let mut stream = None;
            while !stop.load(Ordering::Relaxed) {
                // One that is closed comes back: that is hostile too.
                if attack.turn(&address, &mut stream).is_err() {
                    stream = None;
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            over,
            turns,
            thread: Some(thread),
        }
    }

    fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Attack {
    fn turn(self, address: &str, kept: &mut Option<TcpStream>) -> std::io::Result<()> {
        if kept.is_none() {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(CONNECT)?;
            *kept = Some(stream);
        }
        let Some(stream) = kept.as_mut() else {
            return Ok(());
        };
        match self {
            Self::Publishes => stream.write_all(&repeated(b"PUB flood 128\r\n", 128)),
            Self::Pings => {
                let pings = b"PING\r\n".repeat(BLOCK / 6);
                stream.write_all(&pings)?;
                let mut pongs = vec![0; pings.len()];
                stream.read_exact(&mut pongs)
            }
            Self::Churn => {
                let operations = b"SUB flood.churn 7\r\nUNSUB 7\r\n";
                stream.write_all(&operations.repeat(BLOCK / operations.len()))
            }
            Self::Nonsense => {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n")?;
                let mut rest = Vec::new();
                let end = stream.read_to_end(&mut rest);
                *kept = None;
                end.map(drop)
            }
            Self::Deaths => {
                let subscriptions: String = (0..1_000)
                    .map(|sid| format!("SUB flood.{sid} {sid}\r\n"))
                    .collect();
                stream.write_all(subscriptions.as_bytes())?;
                SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
                *kept = None;
                pause(1);
                Ok(())
            }
        }
    }
}

/// About a block of one operation with a payload of `size` bytes.
fn repeated(line: &[u8], size: usize) -> Vec<u8> {
    let mut operation = line.to_vec();
    operation.extend(std::iter::repeat_n(b'x', size));
    operation.extend(b"\r\n");
    operation.repeat(BLOCK / operation.len())
}

/// How long messages of a component to itself take at `address` for a while, in microseconds.
/// They are sent on a fixed schedule: one that is late makes the next ones late too.
fn latencies(address: &str, lasting: Duration) -> Vec<u64> {
    let mut client = RawClient::ready(address);
    client.set_patience(PATIENCE);
    client.send("SUB quiet 1\r\n");
    client.flush();
    let begun = Instant::now();
    let mut due = begun;
    let mut took = Vec::new();
    while begun.elapsed() < lasting {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        client.send("PUB quiet 2\r\nhi\r\n");
        client.message();
        took.push(u64::try_from(due.elapsed().as_micros()).expect("short"));
        due += PERIOD;
    }
    took
}

#[test]
fn a_hostile_component_slows_its_neighbours_no_more_than_at_a_broker() {
    let _turn = turn();
    let rounds = number("attack_rounds", [3, 9, 15]);
    let lasting = Duration::from_millis(number("attack_ms", [500, 2_000, 4_000]));
    // A short run's p99 is a handful of messages, on whatever else the machine does; and what
    // natsmux takes for a flood without the compiler's help says nothing but that it lives.
    let most = if cfg!(debug_assertions) {
        f64::INFINITY
    } else {
        number("attack_ratio", [4, 2, 2]) as f64
    };
    let cluster = Cluster::start(Version::V215, KNOWN);
    let natsmux = natsmux(config(&cluster.urls(), Delivery::AtMostOnce, "", ""));
    let used = natsmux.current_broker().expect("a broker in use");
    let mut neighbour = RawClient::ready(&natsmux.address());
    for attack in ATTACKS {
        // Side by side, since the machine's own noise is in both.
        let (mut ratios, mut direct, mut through) = (Vec::new(), Vec::new(), Vec::new());
        let mut turns = 0;
        for _ in 0..rounds {
            let mut quantile = |address: &str, all: &mut Vec<u64>| {
                let attacker = Attacker::start(attack, address);
                let mut took = latencies(address, lasting);
                turns += attacker.turns();
                let worst = percentile(&mut took, 99);
                all.extend(took);
                worst
            };
            let at_broker = quantile(&used, &mut direct);
            let at_natsmux = quantile(&natsmux.address(), &mut through);
            ratios.push(at_natsmux * 100 / at_broker.max(1));
        }
        let ratio = percentile(&mut ratios, 50) as f64 / 100.0;
        figures(&format!(
            "beside {attack:?} ({turns} turns): direct {}, through {}, p99 {ratio:.2} of direct",
            spread(&mut direct),
            spread(&mut through),
        ));
        assert!(turns > rounds, "{attack:?} did something");
        assert!(
            ratio <= most,
            "{attack:?}: a neighbour's p99 is {ratio} of direct"
        );
    }
    neighbour.flush();
    assert_eq!(natsmux.counter("failovers"), 0, "R9: false failovers");
}

#[test]
fn a_million_unsubs_and_a_sudden_death_leave_nothing_behind() {
    let _turn = turn();
    let millions = number("unsubs", [1_000_000, 1_000_000, 10_000_000]);
    let cluster = Cluster::start(Version::V215, KNOWN);
    let natsmux = natsmux(config(&cluster.urls(), Delivery::AtMostOnce, "", ""));
    let index = cluster.index_of(&natsmux.current_broker().expect("a broker"));
    let broker = &cluster.brokers()[index.expect("a broker in use")];
    let mut neighbour = RawClient::ready(&natsmux.address());
    let before = resident_kilobytes(natsmux.pid());

    let mut client = RawClient::ready(&natsmux.address());
    client.set_patience(PATIENCE * 4);
    for block in 0..millions / 1_000 {
        let unsubs: String = (0..1_000)
            .map(|i| format!("UNSUB {} {}\r\n", block * 1_000 + i, i % 3))
            .collect();
        client.send(unsubs);
    }
    client.flush();
    neighbour.flush();
    let after = resident_kilobytes(natsmux.pid());

    let subscriptions: String = (0..10_000).map(|i| format!("SUB s.{i} {i}\r\n")).collect();
    client.send(subscriptions);
    client.flush();
    let held = |varz: &serde_json::Value| varz["connections"].as_u64();
    assert!(client_subscriptions(broker) >= 10_000);
    let connections = held(&broker.monitoring("/varz").expect("/varz"));
    drop(client);
    let died = Instant::now();
    wait_for("the broker to forget the dead component", PATIENCE, || {
        let varz = broker.monitoring("/varz")?;
        let closed = sharing().is_some() || held(&varz) < connections;
        (closed && client_subscriptions(broker) == 0).then_some(())
    });
    let forgotten = died.elapsed();
    neighbour.flush();
    figures(&format!(
        "{millions} UNSUBs: {before} kB before, {after} kB after; 10,000 subscriptions gone \
         {forgotten:.1?} after their component"
    ));
    assert!(after < before + 8 * 1_024, "memory grows with UNSUBs");
}

/// Subscriptions of clients at a broker.
fn client_subscriptions(broker: &crate::support::Broker) -> u64 {
    let connz = broker.monitoring("/connz").expect("/connz answers");
    let connections = connz["connections"].as_array().expect("a list").iter();
    connections
        .map(|connection| connection["subscriptions"].as_u64().unwrap_or(0))
        .sum()
}

#[test]
fn a_component_that_reads_nothing_is_closed_at_its_limit_and_nobody_else_is() {
    let _turn = turn();
    let limit_kib = 8 * 1_024;
    let cluster = Cluster::start(Version::V215, KNOWN);
    let limits = format!("max_pending = \"{limit_kib}KiB\"");
    let natsmux = natsmux(config(&cluster.urls(), Delivery::AtMostOnce, "", &limits));
    let mut deaf = TcpStream::connect(natsmux.address()).expect("a connection");
    deaf.write_all(&[CONNECT, b"SUB flood 1\r\nPING\r\n"].concat())
        .expect("natsmux reads");
    let mut neighbour = RawClient::ready(&natsmux.address());
    neighbour.send("SUB flood 1\r\n");
    neighbour.flush();
    let before = resident_kilobytes(natsmux.pid());
    let mut peak = 0;
    let payload = "x".repeat(1_000);
    let mut sent = 0;
    wait_for("the deaf component to be closed", PATIENCE, || {
        for _ in 0..100 {
            neighbour.send(format!("PUB flood 1000\r\n{payload}\r\n"));
        }
        for _ in 0..100 {
            assert_eq!(neighbour.message().len(), 1_000, "a neighbour gets all");
        }
        sent += 100;
        peak = peak.max(resident_kilobytes(natsmux.pid()));
        (natsmux.counter("sessions") == 1).then_some(())
    });
    let used = peak.saturating_sub(before);
    figures(&format!(
        "a deaf component closed after {sent} messages of 1 kB; natsmux took {used} kB for a \
         limit of {limit_kib} KiB"
    ));
    assert!(used <= limit_kib * 12 / 10 + 2_048, "R25: {used} kB");
    neighbour.flush();
    let _ = deaf.shutdown(Shutdown::Both);
}

/// A real broker closes a shared connection for what one component gets: twice, and no more.
#[test]
fn one_that_gets_more_than_a_broker_writes_has_its_own_connection() {
    const PAYLOAD: usize = 900_000;
    let _turn = turn();
    let mut options = BrokerOptions::new(Version::V215);
    options.extra = "max_pending: 2MB".to_owned();
    let broker = Broker::with(options);
    let natsmux = natsmux(shared_config(&[broker.url()]));
    let mut neighbour = RawClient::ready(&natsmux.address());
    neighbour.send("SUB quiet 1\r\n");
    neighbour.flush();
    let mut greedy = TcpStream::connect(natsmux.address()).expect("a connection");
    let connect = "CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1,\
                   \"headers\":true,\"no_responders\":true}\r\n";
    let subs: String = (1..=100).map(|sid| format!("SUB fire {sid}\r\n")).collect();
    greedy
        .write_all(format!("{connect}{subs}PING\r\n").as_bytes())
        .expect("natsmux reads");
    let ending = greedy.try_clone().expect("a second handle");
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while greedy.read(&mut buffer).is_ok_and(|count| count > 0) {}
    });
    let subscribed = |natsmux: &Natsmux| natsmux.varz()["buses"][0]["subscriptions"] == 101;
    wait_for("the subscriptions", PATIENCE, || {
        subscribed(&natsmux).then_some(())
    });
    assert_eq!(natsmux.counter("trunks"), 1);
    let mut publisher = RawClient::ready(&broker.address());
    let fire = format!("PUB fire {PAYLOAD}\r\n{}\r\n", "x".repeat(PAYLOAD));
    wait_for("a connection of its own", PATIENCE, || {
        publisher.send(&fire);
        publisher.flush();
        pause(200);
        (natsmux.counter("trunks") == 2).then_some(())
    });
    let closed_before = natsmux.counter("link_failures");
    neighbour.flush();
    for _ in 0..10 {
        publisher.send(&fire);
        neighbour.send("PUB quiet 2\r\nhi\r\n");
        assert_eq!(neighbour.message(), b"hi", "nothing of a neighbour is lost");
        pause(100);
    }
    figures(&format!(
        "a greedy component had its own connection after {closed_before} closings"
    ));
    let _ = ending.shutdown(Shutdown::Both);
    reader.join().expect("it only reads");
}

#[test]
fn publishers_in_an_outage_stay_within_their_buffers() {
    let _turn = turn();
    let total_kib = number("buffer_kib", [32 * 1_024, 128 * 1_024, 256 * 1_024]);
    let publishers = 16;
    let mut cluster = Cluster::start(Version::V215, KNOWN);
    let each = format!("publish_buffer = \"{}KiB\"", total_kib / 8);
    let all = format!("[limits]\npublish_buffer_total = \"{total_kib}KiB\"\n");
    let urls = cluster.urls();
    let text = config(&urls, Delivery::AtMostOnce, "block_for = \"1s\"", &each);
    let natsmux = natsmux(text + &all);
    let mut clients: Vec<_> = (0..publishers)
        .map(|_| RawClient::ready(&natsmux.address()))
        .collect();
    let before = resident_kilobytes(natsmux.pid());
    for broker in 0..KNOWN {
        cluster.broker(broker).kill();
    }
    natsmux.wait_varz("no link", PATIENCE, |varz| varz["links"] == 0);
    let block = format!("PUB load {}\r\n{}\r\n", 1_000, "x".repeat(1_000)).repeat(64);
    let stop = Instant::now() + Duration::from_secs(6);
    let writers: Vec<_> = clients
        .drain(..)
        .map(|mut client| {
            let block = block.clone();
            thread::spawn(move || {
                let mut sent = 0_u64;
                // Twice what fits: the rest is dropped, and that doesn't end the session.
                while Instant::now() < stop && sent < total_kib * 1_024 / 8 {
                    client.send(&block);
                    sent += block.len() as u64;
                }
                client
            })
        })
        .collect();
    let mut peak = 0;
    while Instant::now() < stop {
        peak = peak.max(resident_kilobytes(natsmux.pid()));
        pause(20);
    }
    let kept: Vec<_> = writers
        .into_iter()
        .map(|w| w.join().expect("lives"))
        .collect();
    let waiting = natsmux.counter("waiting");
    let used = peak.saturating_sub(before);
    figures(&format!(
        "{publishers} publishers in an outage: {used} kB for a limit of {total_kib} KiB, \
         {waiting} publishes wait"
    ));
    assert!(
        waiting * 1_000 > total_kib * 1_024 / 2,
        "the buffers filled"
    );
    assert!(used <= total_kib * 12 / 10, "{used} kB of {total_kib} KiB");
    cluster.broker(0).restart();
    for mut client in kept {
        client.set_patience(PATIENCE);
        client.flush();
    }
}

#[test]
fn without_descriptors_nothing_spins_and_everything_recovers() {
    let _turn = turn();
    let cluster = Cluster::start(Version::V215, KNOWN);
    // More sessions than there are descriptors for: accepts and dials both fail.
    let text = config(&cluster.urls(), Delivery::AtMostOnce, "", "");
    let natsmux = Natsmux::launch(&NatsmuxOptions {
        config: Some(text + "[limits]\nmax_connections = 1000\n"),
        open_files: Some(60),
        ..NatsmuxOptions::default()
    })
    .wait_healthy();
    let pid = natsmux.pid();
    let mut lucky = RawClient::ready(&natsmux.address());
    let others: Vec<_> = (0..80)
        .map(|_| {
            let mut stream = TcpStream::connect(natsmux.address()).expect("the backlog takes it");
            let _ = stream.write_all(&[CONNECT, b"PING\r\n"].concat());
            stream
        })
        .collect();
    wait_for("all descriptors to be taken", PATIENCE, || {
        (open_files(pid) >= 60).then_some(())
    });
    let (lines, before) = (natsmux.log().lines().count(), cpu_hundredths(pid));
    pause(2_000);
    let used = cpu_hundredths(pid) - before;
    let said = natsmux.log().lines().count() - lines;
    lucky.flush();
    drop(others);
    let freed = Instant::now();
    let mut next = RawClient::connect(&natsmux.address());
    next.set_patience(PATIENCE);
    next.info();
    next.send([CONNECT, b"PING\r\n"].concat());
    next.pong();
    let back = freed.elapsed();
    lucky.flush();
    figures(&format!(
        "no descriptors left: {used} % of a core over 2 s and {said} log lines; a new component \
         served {back:.1?} after there were some"
    ));
    // Hundredths of a second over two seconds.
    assert!(used <= 20, "natsmux spins: {used} of 200");
    assert!(said <= 40, "natsmux says {said} lines");
    assert_eq!(natsmux.counter("failovers"), 0, "no broker is to blame");
}
