//! Pull requests that are open when the broker of their component dies (R44).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

use serde_json::{Value, json};

use super::{BROKERS, CAUGHT_UP, FLOWS_WITHIN, api, start, start_with, wait_caught_up};
use crate::client::{Client, Kind};
use crate::support::{Cluster, Natsmux, RawClient, Version, wait_for};

/// A message that a consumer waits for comes within half a second behind a broker's death, on a
/// machine that has nothing else to do: with `FAILOVER=full`. On any other it comes sooner than
/// libraries help themselves.
fn soon() -> Duration {
    if is_full() {
        Duration::from_millis(500)
    } else {
        Duration::from_secs(4)
    }
}

/// A broker that is frozen is noticed first.
fn soon_behind_a_freeze() -> Duration {
    Duration::from_secs(3) + soon()
}

fn is_full() -> bool {
    matches!(env::var("FAILOVER").as_deref(), Ok("full" | "soak"))
}

/// Brokers elect a leader 4 to 9 s behind the death of another one, and a busy machine twice.
const ELECTED_WITHIN: Duration = Duration::from_secs(25);
const ROUNDS: u32 = 3;
/// What a broker tells about who leads what.
const LEADERS: &str = "/jsz?accounts=true&streams=true&consumers=true";
const NEXT: &str = "$JS.API.CONSUMER.MSG.NEXT.S.C";
/// How long consumers are looked at behind a fault.
const SEEN_FOR: Duration = Duration::from_secs(8);

/// A stream and a durable consumer on all brokers, and a component that can ask about them.
struct Scene {
    cluster: Cluster,
    natsmux: Natsmux,
    client: RawClient,
}

impl Scene {
    fn new(version: Version) -> Self {
        Self::of(start(version), r#""lang":"raw""#)
    }

    /// `members` are more of the component's CONNECT.
    fn of((cluster, natsmux): (Cluster, Natsmux), members: &str) -> Self {
        let mut client = RawClient::ready_with(&natsmux.address(), members);
        let stream = json!({ "name": "S", "subjects": ["s"], "num_replicas": BROKERS });
        wait_for("a stream", CAUGHT_UP, || {
            let made = api(&mut client, "$JS.API.STREAM.CREATE.S", &stream);
            made["config"].is_object().then_some(())
        });
        let config =
            json!({ "durable_name": "C", "ack_policy": "explicit", "max_ack_pending": 1_000_000 });
        let consumer = json!({ "stream_name": "S", "config": config });
        let create = "$JS.API.CONSUMER.DURABLE.CREATE.S.C";
        let made = api(&mut client, create, &consumer);
        assert_eq!(made["name"], "C", "{made}");
        // Its leader may not have told all brokers yet that it takes requests.
        let mut prober = RawClient::ready_with(&natsmux.address(), members);
        prober.send("SUB _INBOX.probe probe\r\n");
        let probe = r#"{"batch":1,"no_wait":true}"#;
        wait_for("a consumer that takes requests", CAUGHT_UP, || {
            let len = probe.len();
            prober.send(format!("PUB {NEXT} _INBOX.probe {len}\r\n{probe}\r\n"));
            let status = prober.frame().payload;
            status.starts_with(b"NATS/1.0 404").then_some(())
        });
        Self {
            cluster,
            natsmux,
            client,
        }
    }

    fn info(&mut self) -> Value {
        api(&mut self.client, "$JS.API.CONSUMER.INFO.S.C", &json!({}))
    }

    /// Waits until the leader, which answers before it has taken a request, says that one waits, and
    /// makes sure that it isn't one of two.
    fn assert_one_waits(&mut self, when: &str) {
        let what = format!("one request to wait {when}");
        wait_for(&what, soon(), || {
            (self.info()["num_waiting"] == 1).then_some(())
        });
        thread::sleep(Duration::from_millis(50));
        let info = self.info();
        assert_eq!(info["num_waiting"], 1, "{when}: {info}");
    }

    /// Moves natsmux to a broker that leads neither stream nor consumer, and returns it.
    fn leave_leaders(&mut self) -> usize {
        let index = wait_for("a broker that leads nothing", CAUGHT_UP, || {
            let brokers = self.cluster.brokers();
            let jsz = brokers[0].monitoring(LEADERS)?;
            let meta = &jsz["meta_cluster"]["leader"];
            let stream = &jsz["account_details"][0]["stream_detail"][0];
            let consumer = &stream["consumer_detail"][0];
            let leaders = [stream, consumer].map(|thing| &thing["cluster"]["leader"]);
            leaders
                .iter()
                .all(|leader| leader.is_string())
                .then_some(())?;
            let leads = |name: &str| leaders.iter().any(|leader| **leader == name);
            let mut apart: Vec<_> = (0..brokers.len())
                .filter(|index| !leads(brokers[*index].name()))
                .collect();
            // Rather one that doesn't lead the cluster either.
            apart.sort_by_key(|index| *meta == brokers[*index].name());
            apart.first().copied()
        });
        self.go_to(index);
        index
    }

    /// Moves natsmux to a broker, once it has found that this one lives.
    fn go_to(&self, index: usize) {
        let addr = self.cluster.brokers()[index].address();
        wait_for("natsmux to move", CAUGHT_UP, || {
            let is_there = self.natsmux.current_broker().as_deref() == Some(&addr);
            let move_there = || self.natsmux.order(&["move", "default", "--to", &addr]).0;
            (is_there || move_there().success()).then_some(())
        });
    }

    /// The broker that natsmux is connected to.
    fn in_use(&self) -> usize {
        let current = self.natsmux.current_broker().expect("a broker in use");
        self.cluster.index_of(&current).expect("one of the cluster")
    }

    /// Has the stream and all its consumers led by other brokers than this one.
    fn lead_elsewhere(&mut self, index: usize) {
        let broker = &self.cluster.brokers()[index];
        let name = Value::from(broker.name());
        let led = |thing: &Value| thing["cluster"]["leader"] == name;
        wait_for("leaders elsewhere", CAUGHT_UP, || {
            let jsz = broker.monitoring(LEADERS)?;
            let stream = &jsz["account_details"][0]["stream_detail"][0];
            let consumers = stream["consumer_detail"].as_array()?;
            let here = consumers.iter().filter(|consumer| led(consumer));
            let here = here.filter_map(|consumer| consumer["name"].as_str());
            let mut step_down: Vec<_> = here
                .map(|name| format!("CONSUMER.LEADER.STEPDOWN.S.{name}"))
                .collect();
            step_down.extend(led(stream).then(|| "STREAM.LEADER.STEPDOWN.S".to_owned()));
            for what in &step_down {
                self.client
                    .send(format!("PUB $JS.API.{what} _INBOX.void 0\r\n\r\n"));
            }
            // The new ones have told the others by then.
            thread::sleep(Duration::from_millis(200));
            step_down.is_empty().then_some(())
        });
    }

    fn pull(&mut self, batch: u32) {
        let expires = 60_000_000_000_u64;
        let pull =
            json!({ "batch": batch, "expires": expires, "idle_heartbeat": 30_000_000_000_u64 });
        let pull = pull.to_string();
        self.client.send(format!(
            "PUB {NEXT} _INBOX.pull {}\r\n{pull}\r\n",
            pull.len()
        ));
    }

    /// A component of its own that pulls far more than comes.
    fn worker(&self) -> RawClient {
        let mut worker = self.natsmux.client();
        worker.set_patience(ELECTED_WITHIN);
        let sub = "SUB _INBOX.w 1\r\n";
        worker.send(format!("{sub}PUB {NEXT} _INBOX.w 6\r\n100000\r\n"));
        worker.flush();
        worker
    }

    /// Publishes, and returns how long the message took to come to the pull.
    fn receive(&mut self, body: &str) -> Duration {
        let began = Instant::now();
        self.client
            .send(format!("PUB s {}\r\n{body}\r\n", body.len()));
        assert_eq!(self.client.message(), body.as_bytes());
        began.elapsed()
    }
}

fn a_pull_goes_on_behind_kills(version: Version) {
    let mut scene = Scene::new(version);
    scene.client.send("SUB _INBOX.pull pull\r\n");
    scene.pull(100);
    scene.client.flush();
    let mut longest = Duration::ZERO;
    for round in 1..=ROUNDS {
        let victim = scene.leave_leaders();
        scene.receive(&format!("before {round}"));
        scene.cluster.broker(victim).kill();
        let took = scene.receive(&format!("behind {round}"));
        longest = longest.max(took);
        scene.assert_one_waits(&format!("behind kill {round}"));
        scene.cluster.restart(victim);
        wait_caught_up(&scene.cluster);
    }
    let resumed = scene.natsmux.counter("pulls_resumed");
    let _ = writeln!(
        io::stdout(),
        "pulls: {version:?}, {ROUNDS} kills, {resumed} asked again, longest {longest:?}"
    );
    assert!(longest < soon(), "{longest:?}");
    assert_eq!(resumed, u64::from(ROUNDS));
    assert_eq!(scene.natsmux.varz()["buses"][0]["pulls_open"], 1);
}

#[test]
fn a_pull_goes_on_behind_kills_at_2_15() {
    a_pull_goes_on_behind_kills(Version::V215);
}

#[test]
fn a_pull_goes_on_behind_kills_at_2_9() {
    a_pull_goes_on_behind_kills(Version::V29);
}

/// What goes to the frozen broker meanwhile comes again behind `ack_wait`, and uses up the pull.
#[test]
fn a_pull_goes_on_behind_a_freeze() {
    let mut scene = Scene::new(Version::V215);
    let mut worker = scene.worker();
    let mut longest = Duration::ZERO;
    for _ in 0..2 {
        let victim = scene.leave_leaders();
        let other = scene.cluster.brokers()[(victim + 1) % BROKERS].address();
        let publisher = Publisher::start(&other);
        worker.message();
        scene.cluster.broker(victim).freeze();
        let began = Instant::now();
        let mut last = began;
        while began.elapsed() < SEEN_FOR {
            worker.message();
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        publisher.stop();
        scene.cluster.broker(victim).thaw();
        wait_caught_up(&scene.cluster);
    }
    let _ = writeln!(io::stdout(), "pulls: 2 freezes, longest {longest:?}");
    // Brokers of a busy machine may elect other leaders meanwhile.
    let most = if is_full() {
        soon_behind_a_freeze()
    } else {
        ELECTED_WITHIN
    };
    assert!(longest < most, "{longest:?}");
}

/// What was asked may be told by silence alone: the request is published again behind a second.
#[test]
fn a_pull_goes_on_where_natsmux_may_not_ask() {
    let deny = "permissions: { publish: { deny: [\"$JS.API.CONSUMER.INFO.>\"] } }";
    let users = format!(
        "authorization {{ users: [{{ user: u, password: p, {deny} }}, {{ user: admin, password: p }}] }}"
    );
    let (cluster, natsmux) = start_with(Version::V215, &users, &[]);
    let mut admin = Scene::of((cluster, natsmux), r#""user":"admin","pass":"p""#);
    let mut worker = RawClient::ready_with(&admin.natsmux.address(), r#""user":"u","pass":"p""#);
    worker.send(format!("SUB _INBOX.w 1\r\nPUB {NEXT} _INBOX.w 2\r\n10\r\n"));
    worker.flush();
    for round in 0..2 {
        let victim = admin.leave_leaders();
        admin.client.send("PUB s 1\r\na\r\n");
        assert_eq!(worker.message(), b"a");
        admin.cluster.broker(victim).kill();
        let began = Instant::now();
        admin.client.send("PUB s 1\r\nb\r\n");
        // Neither an error nor a status comes in front of it.
        assert_eq!(worker.message(), b"b", "round {round}");
        assert!(
            began.elapsed() < Duration::from_secs(1) + soon(),
            "{:?}",
            began.elapsed()
        );
        admin.cluster.restart(victim);
        wait_caught_up(&admin.cluster);
    }
}

/// A consumer whose leader dies with the broker in use goes on once the brokers have elected.
#[test]
fn a_pull_goes_on_behind_the_death_of_its_leader() {
    let args = ["--delivery", "at-least-once"];
    let mut scene = Scene::of(start_with(Version::V215, "", &args), r#""lang":"raw""#);
    let mut worker = scene.worker();
    let mut longest = Duration::ZERO;
    for _ in 0..2 {
        let leader = scene.info()["cluster"]["leader"].clone();
        let mut brokers = scene.cluster.brokers().iter();
        let victim = brokers.position(|broker| leader == broker.name());
        let victim = victim.expect("a broker that leads");
        scene.go_to(victim);
        let other = scene.cluster.brokers()[(victim + 1) % BROKERS].address();
        let publisher = Publisher::start(&other);
        worker.message();
        scene.cluster.broker(victim).kill();
        let began = Instant::now();
        // Some were on their way.
        while began.elapsed() < Duration::from_millis(500) {
            worker.message();
        }
        longest = longest.max(began.elapsed());
        publisher.stop();
        scene.cluster.restart(victim);
        wait_caught_up(&scene.cluster);
    }
    let _ = writeln!(
        io::stdout(),
        "pulls: 2 kills of the leader, longest {longest:?}"
    );
    assert!(longest < ELECTED_WITHIN, "{longest:?}");
}

/// A worker that takes one message at a time is never given two.
#[test]
fn a_quiet_worker_has_one_request_waiting_behind_a_kill() {
    let mut scene = Scene::new(Version::V215);
    scene.client.send("SUB _INBOX.pull pull\r\n");
    scene.pull(1);
    scene.client.flush();
    for round in 1..=ROUNDS {
        let victim = scene.leave_leaders();
        scene.cluster.broker(victim).kill();
        scene.client.flush();
        scene.assert_one_waits(&format!("behind kill {round}"));
        scene.cluster.restart(victim);
        wait_caught_up(&scene.cluster);
    }
    scene.receive("one");
    scene.client.send("PUB s 3\r\ntwo\r\n");
    scene.client.expect_silence(Duration::from_millis(300));
    scene.pull(1);
    assert_eq!(scene.client.message(), b"two");
}

/// Messages a second while brokers are killed under libraries.
const RATE: u32 = 200;
/// Libraries that have pull consumers.
const LIBRARIES: [Kind; 3] = [Kind::Python, Kind::Node, Kind::Rust];

/// Publishes to the stream at a broker until it is told to stop.
struct Publisher {
    over: Arc<AtomicBool>,
    handle: Option<thread::JoinHandle<u64>>,
}

impl Publisher {
    fn start(address: &str) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (mut publisher, stop) = (RawClient::ready(address), Arc::clone(&over));
        let handle = thread::spawn(move || {
            let (began, mut sent) = (Instant::now(), 0);
            while !stop.load(Ordering::Relaxed) {
                publisher.send("PUB s 1\r\nx\r\n");
                sent += 1;
                let due = began + Duration::from_secs(1) * u32::try_from(sent).unwrap_or(0) / RATE;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            publisher.half_close();
            sent
        });
        Self {
            over,
            handle: Some(handle),
        }
    }

    fn stop(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        let handle = self.handle.take().expect("it runs");
        handle.join().expect("a publisher")
    }
}

/// What each consumer of each library missed in silence over one kind of fault, and the worst.
#[derive(Default)]
struct Gaps(BTreeMap<String, Vec<f64>>);

impl Gaps {
    fn note(&mut self, clients: &mut [Client]) {
        for client in clients {
            client.say("mark");
            let gaps = client.await_event("gaps");
            for (consumer, gap) in gaps.as_object().expect("gaps") {
                let name = format!("{:?} {consumer}", client.kind);
                if let Some(gap) = gap.as_f64() {
                    self.0.entry(name).or_default().push(gap);
                }
            }
        }
    }

    fn longest(&self) -> f64 {
        self.0.values().flatten().copied().fold(0.0, f64::max)
    }
}

impl fmt::Display for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gaps = self.0.iter();
        gaps.try_for_each(|(consumer, gaps)| writeln!(f, "  {consumer}: {gaps:?} s"))
    }
}

/// Kills and then freezes the broker in use under the libraries' consumers, whose leaders are
/// elsewhere, `direct`ly or behind natsmux.
fn faults_under_libraries(version: Version, direct: bool, faults: [u32; 2]) -> [Gaps; 2] {
    let [kills, freezes] = faults;
    let mut scene = Scene::new(version);
    let mut victim = scene.in_use();
    let url = if direct {
        scene.cluster.brokers()[victim].url()
    } else {
        scene.natsmux.url()
    };
    let start = |kind: &Kind| Client::pulls(*kind, &url, &format!("{kind:?}"), direct);
    let mut clients: Vec<_> = LIBRARIES.iter().map(start).collect();
    let [mut killed, mut frozen] = [Gaps::default(), Gaps::default()];
    for round in 0..kills + freezes {
        let publisher =
            Publisher::start(&scene.cluster.brokers()[(victim + 1) % BROKERS].address());
        wait_received(&mut clients);
        scene.lead_elsewhere(victim);
        Gaps::default().note(&mut clients);
        thread::sleep(Duration::from_millis(300));
        let is_kill = round < kills;
        if is_kill {
            scene.cluster.broker(victim).kill();
        } else {
            scene.cluster.broker(victim).freeze();
        }
        thread::sleep(SEEN_FOR);
        if is_kill { &mut killed } else { &mut frozen }.note(&mut clients);
        publisher.stop();
        if is_kill {
            scene.cluster.restart(victim);
        } else {
            scene.cluster.broker(victim).thaw();
        }
        wait_caught_up(&scene.cluster);
        victim = scene.in_use();
    }
    let resumed = scene.natsmux.counter("pulls_resumed");
    let repeated = scene.natsmux.counter("pulls_repeated");
    let _ = writeln!(
        io::stdout(),
        "pulls: {resumed} asked again, {repeated} that may live"
    );
    for mut client in clients {
        client.say("stop");
        let report = client.await_event("report");
        let _ = writeln!(io::stdout(), "pulls: {:?} {report}", client.kind);
        for (consumer, counts) in report["consumers"].as_object().expect("consumers") {
            assert_eq!(counts["double"], 0, "{consumer}: {report}");
        }
        assert!(direct || report["disconnects"] == 0, "{report}");
    }
    [killed, frozen]
}

/// Waits until every consumer gets what is published now.
fn wait_received(clients: &mut [Client]) {
    for client in clients {
        client.refresh();
        let goal = client.received + 20;
        let what = format!("consumers of {:?} to have {goal}", client.kind);
        wait_for(&what, FLOWS_WITHIN, || {
            client.refresh();
            (client.received >= goal).then_some(())
        });
    }
}

#[test]
fn pull_consumers_of_libraries_go_on_behind_kills_and_freezes() {
    let faults = if is_full() { [10, 5] } else { [2, 1] };
    let [killed, frozen] = faults_under_libraries(Version::V215, false, faults);
    let _ = writeln!(
        io::stdout(),
        "pulls: {faults:?} kills and freezes\n{killed}{frozen}"
    );
    assert!(killed.longest() < soon().as_secs_f64(), "{killed}");
    assert!(
        frozen.longest() < soon_behind_a_freeze().as_secs_f64(),
        "{frozen}"
    );
}

/// What the libraries do by themselves: for the table in `docs/jetstream.md`.
#[test]
#[ignore = "a measurement of the libraries alone"]
fn pull_consumers_of_libraries_at_a_broker() {
    for _ in 0..3 {
        let [killed, _] = faults_under_libraries(Version::V215, true, [1, 0]);
        let _ = writeln!(io::stdout(), "pulls: direct, 1 kill\n{killed}");
    }
}
