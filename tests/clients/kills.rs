//! Twenty SIGKILLs in a row over one unbroken connection of every client.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Client, Kind, Mode};
use crate::support::{Broker, Cluster, KeyKind, Natsmux, PATIENCE, Version, wait_for};
use crate::tls::Secured;

const KILLS: u64 = 20;
/// As many again with TLS on both sides.
const KILLS_OF_TLS: u64 = 8;
/// Messages a second of all clients together.
const RATE: u64 = Kind::ALL.len() as u64 * 500;
/// R5: what may be in doubt after one SIGKILL.
const DOUBT_PER_KILL: u64 = RATE / 10;
/// R4: a confirmed message can die in the killed broker's queues, 5 ms of them at most.
const UNPROVEN_PER_KILL: u64 = RATE / 200;

#[test]
fn twenty_kills_of_a_2_15_broker_are_noticed_by_no_client() {
    kills(Version::V215, None);
}

#[test]
fn twenty_kills_of_a_2_9_broker_are_noticed_by_no_client() {
    kills(Version::V29, None);
}

#[test]
fn kills_of_a_2_15_broker_are_noticed_by_no_client_with_tls_on_both_sides() {
    kills(Version::V215, Some(KeyKind::P384));
}

#[test]
fn kills_of_a_2_9_broker_are_noticed_by_no_client_with_tls_on_both_sides() {
    kills(Version::V29, Some(KeyKind::Rsa));
}

/// Kills brokers one after the other; where `tls` says with what keys, brokers, natsmux and clients
/// speak TLS.
fn kills(version: Version, tls: Option<KeyKind>) {
    let Some(kind) = tls else {
        let cluster = Cluster::start(version, 2);
        let natsmux = Natsmux::start(&cluster);
        let url = natsmux.url();
        return kill_in_turn(version, KILLS, cluster, &natsmux, &url);
    };
    // The authority's file is there until the end.
    let Secured {
        cluster,
        natsmux,
        url,
        authority: _authority,
    } = Secured::start(version, kind);
    kill_in_turn(version, KILLS_OF_TLS, cluster, &natsmux, &url);
}

/// Kills the broker in use so many times, and checks that no client has noticed.
pub(crate) fn kill_in_turn(
    version: Version,
    kills: u64,
    mut cluster: Cluster,
    natsmux: &Natsmux,
    url: &str,
) {
    let mut clients = start_all(url);
    let mut longest = Duration::ZERO;
    for round in 1..=kills {
        longest = longest.max(kill_active(&mut cluster, natsmux, &mut clients, round));
    }
    let totals = totals(clients);
    let varz = natsmux.wait_varz("no publish to wait", PATIENCE, |varz| varz["waiting"] == 0);
    print_figures(version, kills, &totals, &varz, longest);
    check(kills, &totals, &varz);
}

/// Kills the broker in use, waits until every client's messages flow again, and brings the
/// broker back. Returns how long the flow took.
fn kill_active(
    cluster: &mut Cluster,
    natsmux: &Natsmux,
    clients: &mut [Client],
    round: u64,
) -> Duration {
    let killed = Instant::now();
    let victim = lose_active(
        cluster,
        natsmux,
        clients,
        &format!("kill {round}"),
        Broker::kill,
    );
    let silence = killed.elapsed();
    cluster.restart(victim);
    wait_for_flow(clients, &format!("after return {round}"));
    silence
}

/// A client of each kind, all of whose messages flow.
pub(crate) fn start_all(url: &str) -> [Client; 4] {
    let start = |kind| Client::start(kind, url, &format!("{kind:?}"), Mode::Steady);
    let mut clients = Kind::ALL.map(start);
    wait_for_flow(&mut clients, "at the start");
    clients
}

/// Has something happen to the broker in use, and waits until another serves and every client's
/// messages flow again. Returns which it was.
pub(crate) fn lose_active(
    cluster: &mut Cluster,
    natsmux: &Natsmux,
    clients: &mut [Client],
    what: &str,
    happen: impl FnOnce(&mut Broker),
) -> usize {
    let current = natsmux.current_broker();
    let active = current.as_deref().and_then(|c| cluster.index_of(c));
    let active = active.unwrap_or_else(|| panic!("{what}: no broker is {current:?}"));
    happen(cluster.broker(active));
    wait_for_other_broker(natsmux, current.as_deref(), what);
    wait_for_flow(clients, &format!("after {what}"));
    active
}

/// Waits until natsmux uses another broker than before.
fn wait_for_other_broker(natsmux: &Natsmux, before: Option<&str>, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (now, health) = (natsmux.current_broker(), natsmux.get("/healthz"));
        let healthy = health.as_ref().is_some_and(|answer| answer.status == 200);
        if now.is_some() && now.as_deref() != before && healthy {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: {before:?} was in use, natsmux uses {now:?}; {health:?}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until every client received a message that it published after this call.
pub(crate) fn wait_for_flow(clients: &mut [Client], when: &str) {
    for client in clients {
        client.refresh();
        // The newest report is up to 100 ms old: skip what may be on its way already.
        let goal = client.published + 100;
        let what = format!("{:?} to receive message {goal} {when}", client.kind);
        wait_for(&what, PATIENCE, || {
            client.refresh();
            (client.received >= goal).then_some(())
        });
    }
}

/// The sums of what the clients report at the end.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) published: u64,
    pub(crate) others: u64,
    pub(crate) received: u64,
    pub(crate) missing: u64,
    pub(crate) duplicates: u64,
    pub(crate) out_of_order: u64,
    pub(crate) disconnects: u64,
    pub(crate) errors: u64,
    /// Clients that ended well.
    pub(crate) content: usize,
}

pub(crate) fn totals(mut clients: [Client; 4]) -> Totals {
    for client in &mut clients {
        client.stop();
    }
    let mut totals = Totals::default();
    for client in clients {
        let kind = client.kind;
        let (events, content) = client.finish();
        let report = events.last().filter(|event| event["event"] == "report");
        let report = report.unwrap_or_else(|| panic!("{kind:?} ends without a report: {events:?}"));
        let count = |name: &str| report[name].as_u64().unwrap_or(0);
        totals.published += count("published");
        totals.others += count("others");
        totals.received += count("received");
        totals.missing += count("missing");
        totals.duplicates += count("duplicates");
        totals.out_of_order += count("out_of_order");
        totals.disconnects += count("disconnects");
        totals.errors += count("errors");
        totals.content += usize::from(content);
    }
    totals
}

fn counter(varz: &Value, name: &str) -> u64 {
    let value = varz[name].as_u64();
    value.unwrap_or_else(|| panic!("{name} is no counter of {varz}"))
}

fn print_figures(version: Version, kills: u64, totals: &Totals, varz: &Value, longest: Duration) {
    let figures = [
        "published",
        "confirmed",
        "in_doubt",
        "refused",
        "dropped",
        "waiting",
        "moved",
        "failovers",
    ]
    .map(|name| format!("{name}={}", counter(varz, name)))
    .join(" ");
    let unproven = totals.missing.saturating_sub(counter(varz, "in_doubt"));
    // Past the test runner's capture: the figures are what the test is for.
    let _ = writeln!(
        io::stdout(),
        "{version:?}: {kills} kills, every client past 100 new messages within {} ms\n  clients: {totals:?}\n  \
         natsmux: {figures}\n  missing though confirmed: {unproven}",
        longest.as_millis()
    );
}

fn check(kills: u64, totals: &Totals, varz: &Value) {
    assert_eq!(totals.disconnects, 0, "disconnects");
    assert_eq!(totals.errors, 0, "errors");
    assert_eq!(totals.duplicates, 0, "duplicates");
    assert_eq!(totals.out_of_order, 0, "out of order");
    assert_eq!(totals.content, Kind::ALL.len(), "clients that ended well");
    let in_doubt = counter(varz, "in_doubt");
    let published = counter(varz, "published");
    assert_eq!(published, totals.published + totals.others, "R4: published");
    let parts = ["confirmed", "in_doubt", "refused", "dropped", "waiting"];
    let sum: u64 = parts.iter().map(|name| counter(varz, name)).sum();
    assert_eq!(published, sum, "R4: the sum of {parts:?}");
    assert!(
        in_doubt <= kills * DOUBT_PER_KILL,
        "R5: {in_doubt} in doubt"
    );
    let missing = totals.missing;
    let bound = in_doubt + kills * UNPROVEN_PER_KILL;
    assert!(
        missing <= bound,
        "R4: {missing} missing, {in_doubt} in doubt"
    );
    assert!(
        counter(varz, "failovers") >= kills,
        "every kill is a failover"
    );
}
