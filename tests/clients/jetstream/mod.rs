//! JetStream over kills and freezes of a broker of three: what it promises, it keeps.

mod pulls;

use std::env;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::support::{
    BrokerOptions, Cluster, Natsmux, NatsmuxOptions, PATIENCE, RawClient, Version, wait_for,
};

const BROKERS: usize = 3;
/// A broker of a cluster of three needs a while until it has caught up with its peers.
const CAUGHT_UP: Duration = Duration::from_secs(45);
/// An open pull is answered at once.
const SOON: Duration = Duration::from_secs(1);
/// Brokers elect their JetStream leaders one after the other, and clients ask again.
const FLOWS_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn jetstream_keeps_its_promises_over_kills_and_freezes() {
    let rounds = rounds();
    let (mut cluster, natsmux) = start(Version::V215);
    let mut client = Client::jetstream(&natsmux.url(), "js", false);
    wait_flow(&mut client, "at the start");
    for round in 1..=rounds {
        let current = natsmux.current_broker();
        let victim = current.and_then(|current| cluster.index_of(&current));
        let victim = victim.expect("a broker in use");
        let frozen = round % 2 == 0;
        if frozen {
            cluster.broker(victim).freeze();
        } else {
            cluster.broker(victim).kill();
        }
        wait_flow(&mut client, &format!("after fault {round}"));
        if frozen {
            cluster.broker(victim).thaw();
        } else {
            cluster.restart(victim);
        }
        wait_caught_up(&cluster);
        wait_flow(&mut client, &format!("after return {round}"));
        // Routes and consumers settle a little after the broker calls itself healthy.
        thread::sleep(Duration::from_millis(500));
    }
    client.stop();
    let (events, content) = client.finish();
    let report = events.last().expect("a report");
    let _ = writeln!(io::stdout(), "jetstream: {rounds} faults: {report}");
    assert_eq!(report["event"], "report", "{events:?}");
    assert!(content, "{report}");
}

/// The brokers become 2.15 one after the other, each drained before it ends.
#[test]
fn jetstream_goes_on_over_a_rolling_upgrade() {
    let (mut cluster, natsmux) = start(Version::V29);
    let mut client = Client::jetstream(&natsmux.url(), "js", false);
    wait_flow(&mut client, "at the start");
    for index in 0..BROKERS {
        let addr = cluster.brokers()[index].address();
        let (status, said) = natsmux.order(&["drain", &addr]);
        assert!(status.success(), "{said}");
        cluster.broker(index).retire();
        cluster.upgrade(index, Version::V215);
        wait_caught_up(&cluster);
        let (status, said) = natsmux.order(&["undrain", &addr]);
        assert!(status.success(), "{said}");
        wait_flow(&mut client, &format!("after upgrade {}", index + 1));
    }
    client.stop();
    let (events, content) = client.finish();
    let report = events.last().expect("a report");
    let (moves, doubt) = (
        natsmux.counter("gapless_moves"),
        natsmux.counter("in_doubt"),
    );
    let _ = writeln!(
        io::stdout(),
        "jetstream: upgraded, {moves} moves, {doubt} in doubt: {report}"
    );
    assert_eq!(report["event"], "report", "{events:?}");
    assert!(content, "{report}");
    assert_eq!((doubt, natsmux.counter("link_failures")), (0, 0));
}

/// What the brokers take by themselves: for the figures in `docs/planned-moves.md`.
#[test]
#[ignore = "a measurement of brokers and library alone"]
fn a_rolling_upgrade_beside_a_direct_connection() {
    let (mut cluster, _natsmux) = start(Version::V29);
    let mut client = Client::jetstream(&cluster.brokers()[0].url(), "js", true);
    wait_flow(&mut client, "at the start");
    for index in 0..BROKERS {
        cluster.broker(index).retire();
        cluster.upgrade(index, Version::V215);
        wait_caught_up(&cluster);
        wait_flow(&mut client, &format!("after upgrade {}", index + 1));
    }
    client.stop();
    let (events, _) = client.finish();
    let report = events.last().expect("a report");
    let _ = writeln!(io::stdout(), "jetstream: upgraded, direct: {report}");
    assert_eq!(report["event"], "report", "{events:?}");
}

/// Asks JetStream something, and returns its answer.
fn api(client: &mut RawClient, subject: &str, request: &Value) -> Value {
    let body = request.to_string();
    let len = body.len();
    client.send(format!(
        "SUB _INBOX.api api\r\nUNSUB api 1\r\nPUB {subject} _INBOX.api {len}\r\n{body}\r\n"
    ));
    serde_json::from_slice(&client.message()).expect("JSON")
}

/// The interest in an open pull's reply never ends, so the consumer keeps the pull.
fn an_open_pull_survives(version: Version) {
    let (_cluster, natsmux) = start(version);
    let mut client = natsmux.client();
    let stream = json!({ "name": "S", "subjects": ["s"], "num_replicas": BROKERS });
    wait_for("a stream", CAUGHT_UP, || {
        let made = api(&mut client, "$JS.API.STREAM.CREATE.S", &stream);
        made["config"].is_object().then_some(())
    });
    let config = json!({ "durable_name": "C", "ack_policy": "explicit" });
    let consumer = json!({ "stream_name": "S", "config": config });
    let made = api(
        &mut client,
        "$JS.API.CONSUMER.DURABLE.CREATE.S.C",
        &consumer,
    );
    assert_eq!(made["name"], "C", "{made}");
    let pull = json!({ "batch": 8, "expires": 60_000_000_000_u64 }).to_string();
    client.send(format!(
        "SUB _INBOX.pull pull\r\nPUB $JS.API.CONSUMER.MSG.NEXT.S.C _INBOX.pull {}\r\n{pull}\r\n",
        pull.len()
    ));
    client.flush();
    let mut longest = Duration::ZERO;
    for round in 1..=4 {
        let (status, said) = natsmux.order(&["move", "default"]);
        assert!(status.success(), "{said}");
        // The consumer looks for interest when it has a message, and when it is asked.
        let info = api(&mut client, "$JS.API.CONSUMER.INFO.S.C", &json!({}));
        assert_eq!(info["num_waiting"], 1, "{info}");
        let (body, began) = (format!("{round}"), Instant::now());
        client.send(format!("PUB s {}\r\n{body}\r\n", body.len()));
        assert_eq!(client.message(), body.as_bytes());
        longest = longest.max(began.elapsed());
    }
    let _ = writeln!(
        io::stdout(),
        "jetstream: {version:?}, an open pull over 4 moves: {longest:?}"
    );
    assert!(longest < SOON, "{longest:?}");
    assert!(natsmux.counter("gapless_moves") >= 4);
}

#[test]
fn an_open_pull_survives_moves_at_2_15() {
    an_open_pull_survives(Version::V215);
}

#[test]
fn an_open_pull_survives_moves_at_2_9() {
    an_open_pull_survives(Version::V29);
}

/// As `tests/failover` has it: short by default, more with `FAILOVER=full`.
fn rounds() -> u32 {
    match env::var("FAILOVER").as_deref() {
        Ok("full" | "soak") => 12,
        _ => 3,
    }
}

/// A cluster with JetStream, and natsmux in front of it.
fn start(version: Version) -> (Cluster, Natsmux) {
    start_with(version, "", &[])
}

/// The same, with more lines of the brokers' configuration and more arguments of natsmux.
fn start_with(version: Version, extra: &str, args: &[&str]) -> (Cluster, Natsmux) {
    let mut options = BrokerOptions::new(version);
    (options.jetstream, options.extra) = (true, extra.to_owned());
    let cluster = Cluster::with(&options, BROKERS);
    wait_leader(&cluster);
    let natsmux = Natsmux::launch(&NatsmuxOptions {
        brokers: cluster.urls(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..NatsmuxOptions::default()
    });
    (cluster, natsmux.wait_healthy())
}

fn wait_leader(cluster: &Cluster) {
    wait_for("JetStream to have a leader", CAUGHT_UP, || {
        let jsz = cluster.brokers()[0].monitoring("/jsz")?;
        jsz["meta_cluster"]["leader"].as_str()?;
        Some(())
    });
    wait_caught_up(cluster);
}

fn wait_caught_up(cluster: &Cluster) {
    wait_for("JetStream to be healthy everywhere", CAUGHT_UP, || {
        let brokers = cluster.brokers().iter();
        let healthy = |answer: serde_json::Value| answer["status"] == "ok";
        brokers
            .map(|broker| broker.monitoring("/healthz"))
            .all(|answer| answer.is_some_and(healthy))
            .then_some(())
    });
}

/// Waits until every consumer has a message that was published from now on.
fn wait_flow(client: &mut Client, when: &str) {
    client.refresh();
    let goal = client.published + 20;
    let what = format!("consumers to have message {goal} {when}");
    wait_for(&what, PATIENCE.max(FLOWS_WITHIN), || {
        client.refresh();
        (client.received >= goal).then_some(())
    });
}
