//! Many sessions, and many subscriptions, that come back together.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::load::Load;
use crate::part::Part;
use crate::process::{cpu_hundredths, resident_kilobytes};
use crate::rig::{Delivery, KNOWN, config, natsmux};
use crate::size::{figures, number, turn};
use crate::support::{Broker, Cluster, Natsmux, PATIENCE, RawClient, Version, sharing, wait_for};

#[test]
fn many_subscriptions_are_replayed_and_fenced_within_1_s() {
    let _turn = turn();
    let sessions = number("replay_sessions", [50, 1_000, 1_000]);
    let each = number("replay_subscriptions", [100, 100, 100]);
    let mut cluster = Cluster::start(Version::V215, KNOWN);
    let natsmux = natsmux(config(&cluster.urls(), Delivery::AtMostOnce, "", ""));
    let parts = (0..sessions).map(|session| Part {
        address: natsmux.address(),
        subjects: (0..each).map(|i| format!("s{session}.{i}")).collect(),
        ..Part::default()
    });
    let load = Load::start(parts.collect());
    let took = back_after_kill(&mut cluster, &natsmux, sessions);
    load.check_faults();
    figures(&format!(
        "{sessions} sessions with {each} subscriptions back {} ms after SIGKILL",
        took.as_millis()
    ));
    assert!(took < Duration::from_secs(1), "back after {took:?}");
}

/// Two brokers that aren't clustered, so that the time is theirs and natsmux's, and not that of
/// what brokers tell each other; beside it, the same SUBs from a client at the one that is left.
#[test]
fn a_hundred_thousand_subscriptions_of_one_session_are_back_within_half_a_second() {
    let _turn = turn();
    let count = number("replay_of_one", [100_000, 100_000, 100_000]);
    let mut brokers = [(); 2].map(|()| Broker::start(Version::V215));
    let urls = brokers.each_ref().map(Broker::url);
    let natsmux = natsmux(config(&urls, Delivery::AtMostOnce, "", ""));
    let subscribe = |client: &mut RawClient| {
        client.set_patience(Duration::from_secs(60));
        let sids = (0..count).collect::<Vec<_>>();
        for sids in sids.chunks(1_000) {
            let subs = sids
                .iter()
                .map(|sid| format!("SUB s{}.{} {sid}\r\n", sid / 100, sid % 100));
            client.send(subs.collect::<String>());
        }
        client.flush();
    };
    let mut component = RawClient::ready(&natsmux.address());
    subscribe(&mut component);
    let current = natsmux.current_broker().expect("a broker in use");
    let victim = brokers
        .iter()
        .position(|broker| broker.address() == current);
    let victim = victim.expect("one of these");
    brokers[victim].kill();
    let killed = Instant::now();
    wait_for("the replay to be fenced", PATIENCE, || {
        let varz = natsmux.varz();
        (varz["replayed_subscriptions"] == count && varz["links"] == 1).then_some(())
    });
    let took = killed.elapsed();
    // Nothing of it is missing: the last one is there, and what it gets has its sid.
    let mut publisher = RawClient::ready(&brokers[1 - victim].address());
    publisher.send(format!(
        "PUB s{}.{} 1\r\nx\r\n",
        (count - 1) / 100,
        (count - 1) % 100
    ));
    publisher.flush();
    let message = component.line();
    assert!(message.contains(&format!(" {} 1", count - 1)), "{message}");
    assert_eq!(component.line(), "x");
    component.send("PING\r\n");
    assert_eq!(component.line(), "PONG", "and nothing else");
    let mut direct = RawClient::ready(&brokers[1 - victim].address());
    let begun = Instant::now();
    subscribe(&mut direct);
    let floor = begun.elapsed();
    figures(&format!(
        "{count} subscriptions of one session back {} ms after SIGKILL; a client at the broker \
         needs {} ms for them",
        took.as_millis(),
        floor.as_millis()
    ));
    let most = if cfg!(debug_assertions) { 5_000 } else { 500 };
    assert!(took < Duration::from_millis(most), "back after {took:?}");
}

#[test]
fn idle_sessions_cost_little_and_are_all_back_within_2_s() {
    let _turn = turn();
    raise_open_files();
    let sessions = number("idle_sessions", [500, 9_000, 9_000]);
    let seconds = number("idle_seconds", [3, 20, 20]);
    let mut cluster = Cluster::start(Version::V215, KNOWN);
    let natsmux = natsmux(config(&cluster.urls(), Delivery::AtMostOnce, "", ""));
    let pid = natsmux.pid();
    let empty = resident_kilobytes(pid);
    let parts = (0..sessions).map(|session| Part {
        address: natsmux.address(),
        subjects: vec![format!("s{session}")],
        ..Part::default()
    });
    let load = Load::start(parts.collect());
    let memory = resident_kilobytes(pid).saturating_sub(empty) as f64 / sessions as f64;
    let (begun, before) = (Instant::now(), cpu_hundredths(pid));
    thread::sleep(Duration::from_secs(seconds));
    let used = cpu_hundredths(pid) - before;
    let share = used as f64 / begun.elapsed().as_secs_f64();
    let took = back_after_kill(&mut cluster, &natsmux, sessions);
    let asked = Instant::now();
    let listing = natsmux.get("/connz?limit=65536").expect("an answer");
    let listed = asked.elapsed();
    let listing: Value = serde_json::from_str(&listing.body).expect("JSON");
    load.check_faults();
    figures(&format!(
        "{sessions} idle sessions: {memory:.1} kB each, {share:.1} % of a core over {seconds} s, \
         all back {} ms after SIGKILL, listed by /connz in {} ms",
        took.as_millis(),
        listed.as_millis()
    ));
    assert_eq!(listing["num_connections"], sessions);
    if !cfg!(debug_assertions) {
        assert!(
            listed < Duration::from_millis(200),
            "/connz took {listed:?}"
        );
    }
    let most = if cfg!(debug_assertions) { 15.0 } else { 3.0 };
    assert!(share < most, "{share} % of a core while idle");
    assert!(took < Duration::from_secs(2), "back after {took:?}");
}

/// From SIGKILL of the broker in use until every session's subscriptions are in place on the
/// next one.
fn back_after_kill(cluster: &mut Cluster, natsmux: &Natsmux, sessions: u64) -> Duration {
    let current = natsmux.current_broker();
    let victim = current.and_then(|current| cluster.index_of(&current));
    let before = natsmux.counter("replays");
    // Sessions of one identity may share one.
    let links = sharing().map_or(sessions, |_| 1);
    cluster.broker(victim.expect("a broker in use")).kill();
    // The kill itself waits for the process's end.
    let killed = Instant::now();
    wait_for("every session to be back", PATIENCE, || {
        let varz = natsmux.varz();
        let replays = varz["replays"].as_u64()? - before;
        (replays >= links && varz["links"] == links).then_some(())
    });
    killed.elapsed()
}

/// For this process and those that it starts from now on.
pub(crate) fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("the soft limit can be raised");
}
