//! The HTTP port over a real loopback socket, with a made-up picture behind it.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Access;
use super::{Source, serve};
use crate::telemetry::{
    BrokerSnapshot, BusSnapshot, Counters, Event, IdentitySnapshot, Observed, SessionSnapshot,
    Snapshot, SubscriptionSnapshot,
};

/// The behaviour of the made-up workers.
enum Fake {
    Answers(Box<Snapshot>),
    /// With these sessions, and subscriptions as many as they say.
    Lists(Box<Snapshot>, Vec<SessionSnapshot>),
    Declines,
    Hangs,
}

impl Source for Fake {
    async fn snapshot(&self) -> Option<Snapshot> {
        match self {
            Self::Answers(snapshot) | Self::Lists(snapshot, _) => Some(Snapshot::clone(snapshot)),
            Self::Declines => None,
            Self::Hangs => pending().await,
        }
    }

    fn events(&self, after: u64) -> Vec<Arc<Event>> {
        let event = |seq, bus: &str| Event {
            seq,
            time: UNIX_EPOCH,
            level: "warn",
            message: "failover".to_owned(),
            fields: vec![("bus", bus.into()), ("took_ms", 7.into())],
        };
        let all = [
            event(5, "control"),
            event(6, "services"),
            event(7, "control"),
        ];
        let newer = all.into_iter().filter(|event| event.seq > after);
        newer.map(Arc::new).collect()
    }

    async fn event_behind(&self, after: u64) {
        if after >= 7 {
            pending().await
        }
    }

    async fn sessions(&self) -> Option<Vec<SessionSnapshot>> {
        match self {
            Self::Lists(_, sessions) => Some(sessions.clone()),
            _ => None,
        }
    }

    async fn subscriptions(&self, cids: &[u64], most: usize) -> Option<Vec<SubscriptionSnapshot>> {
        let Self::Lists(_, sessions) = self else {
            return None;
        };
        let wanted = sessions.iter().filter(|s| cids.contains(&s.cid));
        let subs = wanted.flat_map(|session| {
            (0..session.subscriptions).map(|no| SubscriptionSnapshot {
                cid: session.cid,
                subject: format!("s.{}.{no}", session.cid),
                queue_group: (no == 1).then(|| "q\"\u{fffd}".to_owned()),
                sid: no.to_string(),
                msgs: 7,
                max: (no == 0).then_some(9),
            })
        });
        Some(subs.take(most).collect())
    }
}

fn session(cid: u64, subscriptions: u64) -> SessionSnapshot {
    SessionSnapshot {
        cid,
        bus: "control".to_owned(),
        peer: SocketAddr::from(([127, 0, 0, 1], 50_000)),
        uptime: Duration::from_secs(3 * cid),
        idle: Duration::from_secs(cid % 3),
        in_msgs: cid * 2,
        in_bytes: 1000 - cid % 1000,
        out_msgs: cid % 7,
        out_bytes: 5,
        pending_bytes: cid % 5,
        held: 1,
        subscriptions,
        name: Some(format!("comp\"{cid}\r\n\u{fffd}")),
        lang: None,
        version: Some("0.4.22".to_owned()),
        user: Some("alice".to_owned()),
        identity: Some("svc".to_owned()),
        uid: Some(7),
        unit: None,
        trunk: Some(cid),
        broker: Some("10.0.0.1:4222".to_owned()),
    }
}

fn listing(sessions: Vec<SessionSnapshot>) -> Fake {
    let Fake::Answers(mut snapshot) = picture([true, true]) else {
        panic!("a picture answers");
    };
    snapshot.subscriptions = sessions.iter().map(|s| s.subscriptions).sum();
    Fake::Lists(snapshot, sessions)
}

fn observed() -> Observed {
    let mut observed = Observed::default();
    observed.fences.observe(Duration::from_micros(300));
    observed.fences.observe(Duration::from_secs(60));
    observed.failover_causes.count("silent");
    observed.dial_failures.count("connection_refused");
    observed.closes.count("component_closed");
    observed.closes.count("component_closed");
    observed
}

fn bus(name: &str, healthy: bool) -> BusSnapshot {
    BusSnapshot {
        name: name.to_owned(),
        listening: true,
        attached: true,
        healthy,
        outage: None,
        outage_revealed: false,
        paused: None,
        moving: 0,
        wrong_topology: false,
        reason: (!healthy).then(|| "10.0.0.1:4222: connection refused".to_owned()),
        sessions: 2,
        trunks: 2,
        links: 2,
        subscriptions: 5,
        waiting: 3,
        buffered_bytes: 70,
        pulls_open: 0,
        current: healthy.then(|| "10.0.0.1:4222".to_owned()),
        brokers: vec![BrokerSnapshot {
            addr: "10.0.0.1:4222".to_owned(),
            state: "live",
            drained: false,
            since: Duration::from_millis(1500),
            last_error: None,
            version: Some("2.15.1".to_owned()),
            round_trip: Some(Duration::from_millis(2)),
            links: 2,
            hosts: None,
            failures: 1,
            certificate_ends: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000)),
        }],
        identities: vec![IdentitySnapshot {
            name: "svc".to_owned(),
            subject: "UABC".to_owned(),
            expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000)),
        }],
        certificate_ends: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2_100_000_000)),
        listen_certificate_ends: None,
        counters: Counters::default(),
        observed: observed(),
    }
}

fn picture(healthy: [bool; 2]) -> Fake {
    let counters = Counters {
        failovers: 4,
        in_msgs: 9,
        stale_sessions: 1,
        ..Counters::default()
    };
    Fake::Answers(Box::new(Snapshot {
        http_certificate_ends: None,
        server_id: "NMX1".to_owned(),
        name: "host7".to_owned(),
        version: "0.1.0".to_owned(),
        start: UNIX_EPOCH,
        now: UNIX_EPOCH + Duration::from_secs(3605),
        max_connections: 100,
        connections: 4,
        total_connections: 40,
        subscriptions: 10,
        listen: SocketAddr::from(([127, 0, 0, 1], 4222)),
        max_payload: 1 << 20,
        worker_busy_ratio: 0.25,
        counters,
        buses: vec![bus("control", healthy[0]), bus("services", healthy[1])],
    }))
}

async fn start(source: Fake) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("its address");
    let origins = vec!["https://dash.example:8443".to_owned()];
    let stop = CancellationToken::new();
    let access = Access {
        tls: None,
        cors_origins: origins,
        hosts: Vec::new(),
    };
    tokio::spawn(serve(listener, Arc::new(source), access, stop));
    addr
}

async fn connect(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.expect("a connection")
}

/// Sends bytes and reads until the end: status line with headers, and body.
async fn exchange(addr: SocketAddr, request: &str) -> (String, String) {
    let mut stream = connect(addr).await;
    stream.write_all(request.as_bytes()).await.expect("sent");
    read_reply(&mut stream).await
}

async fn read_reply(stream: &mut TcpStream) -> (String, String) {
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.expect("an answer");
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    (head.to_owned(), body.to_owned())
}

async fn get(addr: SocketAddr, path: &str) -> (u16, Value) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:8222\r\n\r\n");
    let (head, body) = exchange(addr, &request).await;
    assert!(head.contains("content-type: application/json"), "{head}");
    let status = head[9..12].parse().expect("a status");
    (status, serde_json::from_str(&body).expect("JSON"))
}

#[tokio::test]
async fn health_is_ok_while_every_bus_has_a_live_broker() {
    let addr = start(picture([true, true])).await;
    for path in [
        "/livez",
        "/healthz",
        "/healthz?js-enabled-only=true",
        "/healthz?bus=services",
    ] {
        let (status, body) = get(addr, path).await;
        assert_eq!(
            (status, body.to_string().as_str()),
            (200, r#"{"status":"ok"}"#),
            "{path}"
        );
    }
}

#[tokio::test]
async fn health_names_the_bus_without_a_live_broker_and_why() {
    let addr = start(picture([false, true])).await;
    let (status, body) = get(addr, "/healthz").await;
    assert_eq!((status, &body["status"]), (503, &"unavailable".into()));
    let error = "bus control: no live broker: 10.0.0.1:4222: connection refused";
    assert_eq!(body["error"], error);
    assert_eq!(get(addr, "/healthz?bus=control").await.0, 503);
    assert_eq!(get(addr, "/healthz?bus=services").await.0, 200);
    assert_eq!(get(addr, "/healthz?bus=other").await.0, 404);
    assert_eq!(get(addr, "/livez").await.0, 200);
}

#[tokio::test]
async fn nothing_is_alive_while_workers_do_not_answer() {
    let declining = start(Fake::Declines).await;
    for path in ["/livez", "/healthz", "/varz"] {
        assert_eq!(get(declining, path).await.0, 503, "{path}");
    }
    let hanging = start(Fake::Hangs).await;
    assert_eq!(get(hanging, "/livez").await.0, 503);
}

#[tokio::test]
async fn varz_has_the_types_of_nats_server_and_the_numbers_of_natsmux() {
    let addr = start(picture([true, false])).await;
    let (status, body) = get(addr, "/varz").await;
    assert_eq!(status, 200);
    for key in [
        "server_id",
        "server_name",
        "version",
        "go",
        "host",
        "start",
        "now",
        "uptime",
    ] {
        assert!(body[key].is_string(), "{key}");
    }
    for key in [
        "proto",
        "port",
        "max_connections",
        "max_payload",
        "mem",
        "cores",
        "connections",
        "total_connections",
        "routes",
        "remotes",
        "leafnodes",
        "in_msgs",
        "out_msgs",
        "in_bytes",
        "out_bytes",
        "slow_consumers",
        "subscriptions",
    ] {
        assert!(body[key].is_u64(), "{key}");
    }
    assert!(body["cpu"].is_f64());
    assert_eq!(body["uptime"], "1h0m5s");
    assert_eq!(body["in_msgs"], 9);
    assert_eq!(body["http_req_stats"]["/varz"], 1);
    let own = &body["natsmux"];
    for (key, value) in [
        ("sessions", 4),
        ("failovers", 4),
        ("waiting", 6),
        ("healthy_buses", 1),
    ] {
        assert_eq!(own[key], value, "{key}");
    }
    for key in [
        "trunks",
        "links",
        "published",
        "confirmed",
        "refused",
        "in_doubt",
        "moved",
        "repeated",
        "dropped",
        "pongs_unproven",
        "buffered_bytes",
    ] {
        assert!(own[key].is_u64(), "{key}");
    }
    assert_eq!(own["buses"][0]["brokers"][0]["since_seconds"], 1.5);
}

#[tokio::test]
async fn head_answers_without_a_body() {
    let addr = start(picture([true, true])).await;
    let (head, body) = exchange(addr, "HEAD /varz HTTP/1.1\r\nHost: [::1]\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body.is_empty());
}

#[tokio::test]
async fn wrong_requests_are_refused_by_what_is_wrong() {
    let addr = start(picture([true, true])).await;
    let padding = "x".repeat(17 << 10);
    for (request, status) in [
        ("GET /livez HTTP/1.0\r\n\r\n".to_owned(), "200"),
        ("GET /livez HTTP/1.1\r\n\r\n".to_owned(), "403"),
        (
            "GET /livez HTTP/1.1\r\nHost: attacker.example\r\n\r\n".to_owned(),
            "403",
        ),
        (
            "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
            "404",
        ),
        (
            "GET /varz/ HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
            "404",
        ),
        (
            "POST /varz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "405",
        ),
        ("CONNECT {} NATS\r\n\r\n".to_owned(), "400"),
        (
            format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {padding}\r\n\r\n"),
            "431",
        ),
    ] {
        let (head, _) = exchange(addr, &request).await;
        let shown: String = request.chars().take(60).collect();
        assert_eq!(head.get(9..12), Some(status), "{shown}: {head}");
        assert!(!head.contains("access-control"), "{head}");
    }
}

#[tokio::test]
async fn unfinished_header_is_closed() {
    let addr = start(picture([true, true])).await;
    let (head, _) = timeout(
        Duration::from_secs(8),
        exchange(addr, "GET /livez HTTP/1.1\r\n"),
    )
    .await
    .expect("closed");
    assert!(
        head.is_empty() || head.starts_with("HTTP/1.1 408"),
        "{head}"
    );
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_makes_room_for_others() {
    let addr = start(picture([true, true])).await;
    let mut idle = Vec::new();
    for _ in 0..800 {
        let mut half = connect(addr).await;
        half.write_all(b"GET /livez HT").await.expect("sent");
        idle.push(half);
    }
    let mut last = connect(addr).await;
    let request = b"GET /livez HTTP/1.0\r\n\r\n";
    last.write_all(request).await.expect("sent");
    let reply = timeout(Duration::from_secs(1), read_reply(&mut last)).await;
    let (head, _) = reply.expect("answered at once");
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
}

#[tokio::test]
async fn stop_ends_serving_and_closes_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("its address");
    let stop = CancellationToken::new();
    let source = Arc::new(picture([true, true]));
    let serving = tokio::spawn(serve(listener, source, Access::default(), stop.clone()));
    let mut stream = connect(addr).await;
    stop.cancel();
    serving.await.expect("ended");
    assert!(matches!(stream.read(&mut [0; 8]).await, Ok(0) | Err(_)));
}

async fn metrics() -> String {
    let addr = start(picture([true, false])).await;
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost:8222\r\n\r\n";
    let (head, body) = exchange(addr, request).await;
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    body
}

#[tokio::test]
async fn metrics_are_openmetrics_with_a_series_for_each_bus_and_broker() {
    let body = metrics().await;
    assert!(body.ends_with("# EOF\n"), "{body}");
    for line in [
        "# TYPE natsmux_published counter",
        "natsmux_published_total{bus=\"control\"} 0",
        "natsmux_waiting{bus=\"services\"} 3",
        "natsmux_healthy{bus=\"control\"} 1",
        "natsmux_healthy{bus=\"services\"} 0",
        "natsmux_broker_links{bus=\"control\",broker=\"10.0.0.1:4222\"} 2",
        "natsmux_broker_current{bus=\"services\",broker=\"10.0.0.1:4222\"} 0",
        "natsmux_build_info{version=\"0.1.0\"} 1",
        "natsmux_uptime_seconds 3605",
        "natsmux_worker_busy_ratio 0.25",
        "gnatsd_varz_in_msgs{server_id=\"NMX1\"} 9",
        "gnatsd_varz_connections{server_id=\"NMX1\"} 4",
    ] {
        assert!(body.lines().any(|l| l == line), "{line} isn't in\n{body}");
    }
    let counters = Counters::default().iter().count();
    let helps = body.lines().filter(|l| l.starts_with("# HELP")).count();
    assert!(helps > counters, "every counter says what it counts");
}

/// Every metric that the official board and the alert rules in `config` read is there.
#[tokio::test]
async fn rules_and_boards_find_their_metrics() {
    let body = metrics().await;
    let names: Vec<_> = body
        .lines()
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let board = [
        "connections",
        "cpu",
        "mem",
        "in_bytes",
        "in_msgs",
        "out_bytes",
        "out_msgs",
    ];
    for name in board.iter().chain(&["slow_consumers", "subscriptions"]) {
        let name = format!("gnatsd_varz_{name}");
        assert!(names.contains(&name.as_str()), "{name}");
    }
    let rules = include_str!("../../config/alerts.yml");
    let rules = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    let board: Value =
        serde_json::from_str(include_str!("../../config/grafana.json")).expect("JSON");
    let panels = board["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let mut expressions: Vec<&str> = targets
        .chain(
            board["annotations"]["list"]
                .as_array()
                .expect("annotations"),
        )
        .filter_map(|target| target["expr"].as_str())
        .collect();
    assert!(expressions.len() > 15, "{expressions:?}");
    expressions.extend(rules);
    let mut seen = 0;
    for expression in expressions {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("natsmux_")) {
            assert!(names.contains(&name), "{name} of {expression}");
            seen += 1;
        }
    }
    assert!(seen >= 30, "{seen} names");
}

#[tokio::test]
async fn brokerz_lists_every_broker_of_every_bus() {
    let addr = start(picture([true, false])).await;
    let (status, body) = get(addr, "/brokerz").await;
    assert_eq!(status, 200);
    assert_eq!(body["buses"][0]["bus"], "control");
    let broker = &body["buses"][1]["brokers"][0];
    assert_eq!(
        (&broker["addr"], &broker["links"]),
        (&"10.0.0.1:4222".into(), &2.into())
    );
    assert_eq!(body["buses"][1]["current"], Value::Null);
}

/// Every key of a connection with the type that nats-top and the exporter read it as.
fn check_connection(connection: &Value) {
    for key in [
        "cid",
        "port",
        "pending_bytes",
        "in_msgs",
        "out_msgs",
        "in_bytes",
        "out_bytes",
        "subscriptions",
    ] {
        assert!(connection[key].is_u64(), "{key} of {connection}");
    }
    for key in [
        "kind",
        "type",
        "ip",
        "start",
        "last_activity",
        "uptime",
        "idle",
    ] {
        assert!(connection[key].is_string(), "{key} of {connection}");
    }
    for key in ["name", "lang", "version", "authorized_user"] {
        let value = &connection[key];
        assert!(
            value.is_null() || value.is_string(),
            "{key} of {connection}"
        );
        assert!(
            connection.get(key).is_none_or(Value::is_string),
            "no null: {key}"
        );
    }
    for key in ["start", "last_activity"] {
        let text = connection[key].as_str().unwrap_or_default();
        assert!(humantime::parse_rfc3339(text).is_ok(), "{key}: {text}");
    }
}

#[tokio::test]
async fn connections_keep_their_types_however_many_and_whatever_they_are_called() {
    for count in [0, 1, 5_000] {
        let addr = start(listing((1..=count).map(|cid| session(cid, 2)).collect())).await;
        let (status, body) = get(addr, "/connz").await;
        assert_eq!(status, 200);
        let shown = count.min(1024);
        assert_eq!(body["num_connections"], shown);
        assert_eq!(
            (&body["total"], &body["limit"]),
            (&count.into(), &1024.into())
        );
        let connections = body["connections"].as_array().expect("a list");
        assert_eq!(connections.len() as u64, shown);
        connections.iter().for_each(check_connection);
        let (_, body) = get(addr, "/connz?limit=10000&auth=1").await;
        assert_eq!(body["num_connections"], count);
    }
}

#[tokio::test]
async fn connections_are_sorted_and_paged_as_at_nats_server() {
    let addr = start(listing((1..=50).map(|cid| session(cid, cid % 4)).collect())).await;
    for (path, cids) in [
        ("/connz?limit=3", vec![1, 2, 3]),
        ("/connz?limit=3&offset=48", vec![49, 50]),
        ("/connz?limit=2&sort=msgs_from", vec![50, 49]),
        ("/connz?limit=2&sort=uptime", vec![1, 2]),
        ("/connz?limit=2&sort=subs", vec![3, 7]),
        ("/connz?limit=2&sort=pending", vec![4, 9]),
        ("/connz?limit=1&sort=idle", vec![2]),
        ("/connz?limit=1&sort=last", vec![3]),
        ("/connz?cid=17", vec![17]),
        ("/connz?cid=51", vec![]),
        ("/connz?state=closed", vec![]),
    ] {
        let (status, body) = get(addr, path).await;
        assert_eq!(status, 200, "{path}");
        let shown: Vec<u64> = body["connections"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|connection| connection["cid"].as_u64())
            .collect();
        assert_eq!(shown, cids, "{path}");
    }
    for path in [
        "/connz?sort=size",
        "/connz?limit=x",
        "/connz?state=odd",
        "/subsz?subs=2",
    ] {
        let (status, body) = get(addr, path).await;
        assert_eq!((status, body["error"].is_string()), (400, true), "{path}");
    }
}

#[tokio::test]
async fn subscriptions_are_listed_where_they_are_asked_for() {
    let addr = start(listing(vec![session(1, 2), session(2, 0), session(3, 3)])).await;
    let (_, body) = get(addr, "/connz?subs=1").await;
    let lists = body["connections"].as_array().expect("a list").iter();
    let lists = lists.map(|connection| connection["subscriptions_list"].clone());
    let expected = [
        serde_json::json!(["s.1.0", "s.1.1"]),
        serde_json::json!([]),
        serde_json::json!(["s.3.0", "s.3.1", "s.3.2"]),
    ];
    assert_eq!(lists.collect::<Vec<_>>(), expected);
    let (_, body) = get(addr, "/connz?subs=detail&cid=1").await;
    let details = &body["connections"][0]["subscriptions_list_detail"];
    assert_eq!(
        details[0],
        serde_json::json!({"subject": "s.1.0", "sid": "0", "msgs": 7, "cid": 1, "max": 9})
    );
    assert_eq!(details[1]["qgroup"], "q\"\u{fffd}");
    let (_, body) = get(addr, "/subsz").await;
    assert_eq!(body["num_subscriptions"], 5);
    assert!(body["cache_hit_rate"].is_f64() && body.get("subscriptions_list").is_none());
    for (path, subjects) in [
        (
            "/subsz?subs=1",
            vec!["s.1.0", "s.1.1", "s.3.0", "s.3.1", "s.3.2"],
        ),
        (
            "/subscriptionsz?subs=1&offset=1&limit=2",
            vec!["s.1.1", "s.3.0"],
        ),
        ("/subsz?subs=1&offset=4&limit=9", vec!["s.3.2"]),
        ("/subsz?subs=1&offset=5", vec![]),
    ] {
        let (_, body) = get(addr, path).await;
        let shown = body["subscriptions_list"]
            .as_array()
            .expect("a list")
            .iter();
        let shown: Vec<_> = shown.filter_map(|sub| sub["subject"].as_str()).collect();
        assert_eq!(shown, subjects, "{path}");
        assert_eq!(body["total"], 5);
    }
}

#[tokio::test]
async fn readiness_begins_with_the_first_broker_and_outlasts_it() {
    for (listening, attached, healthy, status) in [
        (true, true, true, 200),
        (true, true, false, 200),
        (true, false, false, 503),
        (false, true, true, 503),
    ] {
        let Fake::Answers(mut snapshot) = picture([true, healthy]) else {
            panic!("a picture answers");
        };
        snapshot.buses[1].listening = listening;
        snapshot.buses[1].attached = attached;
        let addr = start(Fake::Answers(snapshot)).await;
        let (got, body) = get(addr, "/readyz").await;
        assert_eq!(got, status, "{body}");
        let named = body.to_string().contains("bus services");
        assert_eq!(named, status == 503);
    }
}

#[tokio::test]
async fn events_are_told_from_a_number_on() {
    let addr = start(picture([true, true])).await;
    for (path, numbers) in [
        ("/eventz", vec![5, 6, 7]),
        ("/eventz?after=5", vec![6, 7]),
        ("/eventz?after=7", vec![]),
        ("/eventz?limit=1", vec![7]),
        ("/eventz?bus=control", vec![5, 7]),
    ] {
        let (status, body) = get(addr, path).await;
        assert_eq!((status, &body["last"]), (200, &7.into()), "{path}");
        let events = body["events"].as_array().expect("a list").iter();
        let seqs: Vec<_> = events.filter_map(|event| event["seq"].as_u64()).collect();
        assert_eq!(seqs, numbers, "{path}");
    }
    let (_, body) = get(addr, "/eventz?limit=1").await;
    assert_eq!(
        body["events"][0],
        serde_json::json!({
            "seq": 7, "time": "1970-01-01T00:00:00.000Z", "level": "warn",
            "event": "failover", "bus": "control", "took_ms": 7
        })
    );
    assert_eq!(get(addr, "/eventz?after=x").await.0, 400);
}

/// Sends a request and reads until what came contains `end`.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&text).contains(end) {
        let read = timeout(Duration::from_secs(5), stream.read(&mut buffer)).await;
        let count = read.expect("in time").expect("an answer");
        assert!(count > 0, "ended after {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

async fn open_stream(addr: SocketAddr, path: &str, headers: &str) -> TcpStream {
    let mut stream = connect(addr).await;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

#[tokio::test]
async fn events_come_as_a_stream_from_the_last_one_that_a_browser_has() {
    let addr = start(picture([true, true])).await;
    for (path, headers, first) in [
        ("/eventz", "", 5),
        ("/eventz?after=5", "", 6),
        ("/eventz?limit=1", "", 7),
        ("/eventz", "Last-Event-ID: NMX1:6\r\n", 7),
        ("/eventz?after=6", "Last-Event-ID: NMX0:6\r\n", 5),
        ("/eventz", "Last-Event-ID: 6\r\n", 5),
    ] {
        let mut stream = open_stream(addr, path, headers).await;
        let text = read_until(&mut stream, "id: NMX1:7\ndata: ").await;
        assert!(
            text.contains("content-type: text/event-stream\r\n"),
            "{text}"
        );
        let said = text.find("id: NMX1:").map(|at| &text[at..]);
        let expected = format!("id: NMX1:{first}\ndata: {{");
        assert!(
            said.is_some_and(|said| said.starts_with(&expected)),
            "{path} {headers} {text}"
        );
    }
}

#[tokio::test]
async fn streams_of_events_are_bounded_and_nobody_else_waits_for_them() {
    let addr = start(picture([true, true])).await;
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut stream = open_stream(addr, "/eventz", "").await;
        read_until(&mut stream, "NMX1:7").await;
        open.push(stream);
    }
    let mut more = open_stream(addr, "/eventz", "").await;
    let (head, _) = read_reply(&mut more).await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(get(addr, "/livez").await.0, 200);
}

#[tokio::test]
async fn durations_and_reasons_are_metrics() {
    let addr = start(picture([true, true])).await;
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (_, body) = exchange(addr, request).await;
    for line in [
        "natsmux_fence_seconds_bucket{le=\"0.00025\",bus=\"control\"} 0",
        "natsmux_fence_seconds_bucket{le=\"0.0005\",bus=\"control\"} 1",
        "natsmux_fence_seconds_bucket{le=\"+Inf\",bus=\"control\"} 2",
        "natsmux_fence_seconds_count{bus=\"control\"} 2",
        "natsmux_failover_seconds_count{bus=\"services\"} 0",
        "natsmux_broker_certificate_expiry_timestamp_seconds{bus=\"control\",broker=\"10.0.0.1:4222\"} 2000000000",
        "natsmux_certificate_expiry_timestamp_seconds{bus=\"control\",towards=\"brokers\"} 2100000000",
        "natsmux_failovers_by_cause_total{bus=\"control\",cause=\"silent\"} 1",
        "natsmux_closes_by_reason_total{bus=\"services\",reason=\"component_closed\"} 2",
    ] {
        assert!(body.lines().any(|said| said == line), "{line}\n{body}");
    }
}

#[test]
fn the_runbook_knows_every_alert() {
    let runbook = include_str!("../../docs/operations.md");
    let rules = include_str!("../../config/alerts.yml");
    let alerts = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let missing: Vec<_> = alerts
        .filter(|alert| !runbook.contains(&format!("`{alert}`")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test]
async fn only_pages_of_named_origins_may_read() {
    let addr = start(picture([true, true])).await;
    for (origin, allowed) in [
        ("https://dash.example:8443", true),
        ("https://DASH.example:8443", true),
        ("https://dash.example", false),
        ("http://dash.example:8443", false),
        ("null", false),
    ] {
        let request = format!("GET /varz HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\n\r\n");
        let (head, _) = exchange(addr, &request).await;
        let head = head.to_ascii_lowercase();
        let header = format!(
            "access-control-allow-origin: {}",
            origin.to_ascii_lowercase()
        );
        assert_eq!(head.contains(&header), allowed, "{origin}: {head}");
        assert_eq!(head.contains("access-control"), allowed, "{origin}: {head}");
        assert!(head.contains("vary: origin"), "{head}");
    }
}

#[tokio::test]
async fn the_status_page_needs_nobody_else() {
    let addr = start(picture([true, true])).await;
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (head, body) = exchange(addr, request).await;
    let head = head.to_ascii_lowercase();
    assert!(
        head.contains("content-type: text/html; charset=utf-8"),
        "{head}"
    );
    assert!(
        head.contains("default-src 'none'; connect-src 'self'"),
        "{head}"
    );
    // Of other hosts it names only what makes its plots SVG.
    let others = body.matches("://").count();
    assert_eq!(others, body.matches("http://www.w3.org/2000/svg").count());
    assert!(!body.contains("innerHTML"), "names are never HTML");
}
