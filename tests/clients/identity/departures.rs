//! Brokers that freeze, leave by themselves or change what they permit, under clients that sign.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{answer, broker, creds, identity, launch, signed};
use crate::client::Kind;
use crate::kills::{lose_active, start_all, totals};
use crate::support::{
    Authority, Broker, BrokerOptions, Cluster, KeyKind, Operator, PATIENCE, RawClient, Version,
    write_secret,
};
use crate::tls;

/// The shortest that a broker takes; it closes clients from the grace on.
const LAME_DUCK: &str = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"3s\"\n";

#[test]
fn clients_with_creds_notice_no_freeze_and_no_lame_duck_of_2_15() {
    freezes_and_lame_ducks(Version::V215);
}

#[test]
fn clients_with_creds_notice_no_freeze_and_no_lame_duck_of_2_9() {
    freezes_and_lame_ducks(Version::V29);
}

fn freezes_and_lame_ducks(version: Version) {
    const ROUNDS: u64 = 2;
    let operator = Operator::new();
    let user = operator.user("orders");
    let options = BrokerOptions {
        extra: operator.broker_config() + LAME_DUCK,
        ..BrokerOptions::new(version)
    };
    let mut cluster = Cluster::with(&options, 2);
    let more = identity("orders", "same_key = true", &creds(&user));
    let natsmux = launch(&cluster.urls(), &more).wait_healthy();
    let url = format!("{}#creds={}", natsmux.url(), user.path().display());
    let mut clients = start_all(&url);
    for round in 1..=ROUNDS {
        let what = format!("freeze {round}");
        let freeze = |broker: &mut Broker| broker.signal(Signal::STOP);
        let frozen = lose_active(&mut cluster, &natsmux, &mut clients, &what, freeze);
        cluster.broker(frozen).signal(Signal::CONT);
        cluster.wait_routed();
        // What waited for it between the brokers is older than a move remembers.
        thread::sleep(Duration::from_secs(1));
        let what = format!("lame duck {round}");
        let leave = |broker: &mut Broker| broker.signal(Signal::USR2);
        let duck = lose_active(&mut cluster, &natsmux, &mut clients, &what, leave);
        cluster.restart(duck);
    }
    let totals = totals(clients);
    let varz = natsmux.wait_varz("no publish to wait", PATIENCE, |varz| varz["waiting"] == 0);
    let in_doubt = varz["in_doubt"].as_u64().expect("a counter");
    println!("{version:?}: {ROUNDS} freezes and lame ducks, in doubt {in_doubt}, {totals:?}");
    assert_eq!((totals.disconnects, totals.errors), (0, 0), "{totals:?}");
    assert_eq!(totals.duplicates, 0, "{totals:?}");
    // A broker that thaws still delivers what was in doubt, to both who receive it.
    assert!(totals.out_of_order <= 2 * in_doubt, "{totals:?}");
    assert!(totals.missing <= in_doubt, "{totals:?}");
}

/// Components whose keys natsmux doesn't hold lose each connection once for each broker that dies,
/// and come back by themselves.
#[test]
fn clients_that_are_relayed_reconnect_once_for_each_kill() {
    const KILLS: u64 = 2;
    /// Each program has one to publish with and one more.
    const CONNECTIONS: u64 = 2 * Kind::ALL.len() as u64;
    for version in Version::ALL {
        let operator = Operator::new();
        let user = operator.user("own");
        let mut cluster = super::cluster_of(version, &operator);
        let natsmux = launch(&cluster.urls(), "").wait_healthy();
        let url = format!("{}#again={}", natsmux.url(), user.path().display());
        let mut clients = start_all(&url);
        for round in 1..=KILLS {
            let what = format!("kill {round}");
            let victim = lose_active(&mut cluster, &natsmux, &mut clients, &what, Broker::kill);
            cluster.restart(victim);
            // Without any broker, who comes back is let go again.
            natsmux.wait_varz("both brokers to be up", PATIENCE, |varz| {
                let brokers = varz["buses"][0]["brokers"].as_array().expect("a list");
                brokers.iter().all(|broker| broker["state"] == "up")
            });
        }
        let totals = totals(clients);
        println!("{version:?}: {KILLS} kills under relays, {totals:?}");
        assert_eq!(totals.disconnects, KILLS * CONNECTIONS, "{totals:?}");
        assert_eq!(totals.duplicates, 0, "{totals:?}");
    }
}

/// What a reload of the broker takes from a user, its components hear in the broker's own words,
/// and keep the rest.
#[test]
fn permissions_that_a_reload_takes_are_missed_by_the_component_that_has_them() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let passwords = ["pa", "pb"].map(|text| {
        let path = folder.path().join(text);
        write_secret(&path, text);
        path.display().to_string()
    });
    let [pa, pb] = &passwords;
    let users = |permissions: &str| {
        format!(
            "authorization {{ users = [ {{ user: a, password: pa{permissions} }}, \
             {{ user: b, password: pb }} ] }}"
        )
    };
    let says = |user: &str, file: &str| format!("user = \"{user}\"\npassword_file = {file:?}");
    let token = |text: &str| {
        format!("token_file = {:?}", {
            let path = folder.path().join(format!("token-{text}"));
            write_secret(&path, text);
            path.display().to_string()
        })
    };
    for version in Version::ALL {
        let mut broker = broker(version, users(""));
        let more = identity("one", &token("one"), &says("a", pa))
            + &identity("two", &token("two"), &says("b", pb));
        let natsmux = launch(&[broker.url()], &more).wait_healthy();
        let through = |token: &str| {
            RawClient::ready_with(&natsmux.address(), &format!(r#""auth_token":"{token}""#))
        };
        let (mut one, mut two) = (through("one"), through("two"));
        let direct = r#""user":"a","pass":"pa""#;
        let mut direct = RawClient::ready_with(&broker.address(), direct);
        for client in [&mut one, &mut two, &mut direct] {
            client.send("SUB secret 1\r\nSUB open 2\r\nPING\r\n");
            client.pong();
        }
        let denied = ", permissions: { subscribe: { deny: secret }, publish: { deny: other } }";
        broker.reload(&users(denied));
        for client in [&mut one, &mut direct] {
            let text = client.line();
            assert!(
                text.starts_with("-ERR 'Permissions Violation for Subscription to \"secret\""),
                "{version:?}: {text}"
            );
            client.send("PUB other 1\r\nx\r\nPING\r\n");
            let text = client.line();
            assert_eq!(
                text,
                "-ERR 'Permissions Violation for Publish to \"other\"'"
            );
            client.pong();
        }
        two.send("PUB secret 2\r\nhi\r\nPUB open 2\r\nho\r\nPING\r\n");
        two.expect("MSG secret 1 2\r\nhi\r\nMSG open 2 2\r\nho\r\n");
        two.pong();
        for client in [&mut one, &mut direct] {
            client.expect("MSG open 2 2\r\nho\r\n");
            client.send("PING\r\n");
            client.pong();
        }
        assert_eq!(natsmux.counter("sessions_closed"), 0);
    }
}

/// A program that connects, publishes, flushes and ends needs one round trip to a broker that is far,
/// whatever TLS and signatures cost directly.
#[test]
fn a_short_program_waits_for_one_round_trip() {
    const ONE_WAY: Duration = Duration::from_millis(100);
    let operator = Operator::new();
    let user = operator.user("orders");
    let authority = Authority::new();
    let certificate = authority.certify("broker", KeyKind::P256);
    let extra = operator.broker_config() + &certificate.broker_tls("");
    let broker = broker(Version::V215, extra);
    let far = Far::start(&broker, ONE_WAY);
    let tls = "sharing = \"identity\"\n".to_owned() + &tls::tls_of(&authority, "");
    let more = identity("orders", "same_key = true", &creds(&user));
    let brokers = [format!("tls://{}", far.address)];
    let natsmux = tls::launch(&brokers, &tls, &more).wait_healthy();
    let run = || {
        let began = Instant::now();
        let mut client = RawClient::connect(&natsmux.address());
        let members = signed(&user, &client.info());
        assert_eq!(answer(&mut client, &members), "PONG");
        client.send("PUB a 2\r\nhi\r\nPING\r\n");
        client.pong();
        began.elapsed()
    };
    run();
    let links = natsmux.counter("links_opened");
    let mut times: Vec<Duration> = (0..5).map(|_| run()).collect();
    times.sort();
    println!("a broker {ONE_WAY:?} away, TLS and a signature: {times:?}");
    assert!(times[0] >= 2 * ONE_WAY, "{times:?}");
    assert!(times[0] < 3 * ONE_WAY, "{times:?}");
    assert_eq!(natsmux.counter("links_opened"), links);
}

/// The way to a broker that is far: whatever passes is late.
struct Far {
    address: String,
}

impl Far {
    fn start(broker: &Broker, late: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let broker = broker.address();
        thread::spawn(move || {
            for near in listener.incoming().take(100) {
                let near = near.expect("a connection");
                let Ok(far) = TcpStream::connect(&broker) else {
                    continue;
                };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    to.set_nodelay(true).expect("a socket");
                    let ends = (from.try_clone(), to.try_clone());
                    let (Ok(from), Ok(to)) = ends else { continue };
                    carry(from, to, late);
                }
            }
        });
        Self { address }
    }
}

/// Carries what one end says to the other, each part so much later.
fn carry(mut from: TcpStream, mut to: TcpStream, late: Duration) {
    let (parts, waiting) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || -> io::Result<()> {
        let mut room = [0; 16 * 1024];
        loop {
            let len = from.read(&mut room)?;
            let part = (Instant::now() + late, room[..len].to_vec());
            if len == 0 || parts.send(part).is_err() {
                return Ok(());
            }
        }
    });
    thread::spawn(move || -> io::Result<()> {
        for (due, part) in waiting {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            to.write_all(&part)?;
        }
        to.shutdown(Shutdown::Write)
    });
}
