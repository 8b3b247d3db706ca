//! Snapshots of the worker for monitoring: each function copies, and holds nothing.

use super::handle::{SubscriptionList, SubscriptionPage};
use crate::clock::Instant;
use crate::downstream::frontend::Frontend;
use crate::downstream::registry::ConnectionInfo;
use crate::net::now;
use crate::telemetry::{
    BrokerSnapshot, BusSnapshot, IdentitySnapshot, SessionSnapshot, SubscriptionSnapshot,
};
use crate::upstream::brokers::roster::Health;
use crate::upstream::{BrokerId, Bus};

/// One session.
pub(super) fn session_snapshot(
    frontend: &Frontend,
    info: &ConnectionInfo,
    now: Instant,
) -> SessionSnapshot {
    let ago = |moment| now.saturating_duration_since(moment);
    let mut session = SessionSnapshot {
        cid: info.cid,
        bus: frontend.pool.bus.name.clone(),
        peer: info.peer,
        uptime: ago(info.start),
        idle: ago(info.read_at.get()),
        in_msgs: 0,
        in_bytes: 0,
        out_msgs: 0,
        out_bytes: 0,
        pending_bytes: 0,
        held: 0,
        subscriptions: 0,
        name: None,
        lang: None,
        version: None,
        user: None,
        identity: None,
        uid: None,
        unit: None,
        trunk: None,
        broker: None,
    };
    if let Some(found) = info.description.borrow().as_deref() {
        session.identity = found.identity.as_deref().map(str::to_owned);
        session.user.clone_from(&found.user);
        session.uid = found.owner.as_ref().map(|owner| owner.uid);
        let unit = found.owner.as_ref().and_then(|owner| owner.unit.clone());
        session.unit = unit;
    }
    let attachment = info.attachment.borrow();
    let Some((cell, id)) = attachment.as_ref() else {
        return session;
    };
    let trunk = cell.machine.borrow();
    session.trunk = Some(trunk.id().0);
    let bus = frontend.pool.bus.borrow();
    let broker = trunk
        .broker()
        .map(|broker| bus.roster().broker(broker).label());
    session.broker = broker;
    if let Some(view) = trunk.view(*id) {
        let traffic = view.traffic;
        (session.in_msgs, session.in_bytes) = (traffic.in_msgs, traffic.in_bytes);
        (session.out_msgs, session.out_bytes) = (traffic.out_msgs, traffic.out_bytes);
        session.pending_bytes = view.pending_bytes as u64;
        session.held = view.held;
        session.subscriptions = view.subscription_count as u64;
        let connect = view.connect;
        session.name.clone_from(&connect.name);
        session.lang.clone_from(&connect.lang);
        session.version.clone_from(&connect.version);
        let user = connect.user.as_ref();
        session.user = session
            .user
            .or_else(|| user.map(|user| user.expose().to_owned()));
    }
    session
}

/// A page of a session's subscriptions.
pub(super) fn subscription_snapshots(
    info: &ConnectionInfo,
    page: &SubscriptionPage,
) -> SubscriptionList {
    let attachment = info.attachment.borrow();
    let Some((cell, id)) = attachment.as_ref() else {
        return SubscriptionList::default();
    };
    let trunk = cell.machine.borrow();
    let Some(view) = trunk.view(*id) else {
        return SubscriptionList::default();
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut last = None;
    let subscriptions = view.subscriptions.of(*id, page.after.as_deref());
    let subscriptions: Vec<_> = subscriptions
        .take(page.count)
        .map(|sub| {
            last = Some(sub.sid());
            SubscriptionSnapshot {
                cid: info.cid,
                subject: text(sub.subject()),
                queue_group: sub.queue_group().map(text),
                sid: text(sub.sid()),
                msgs: sub.delivered(),
                max: sub.max(),
            }
        })
        .collect();
    let more = subscriptions.len() == page.count;
    (subscriptions, last.filter(|_| more).map(Box::from))
}

/// The word for what is known of a broker, and since when that is so.
fn state(bus: &Bus, id: BrokerId) -> (&'static str, Instant) {
    let broker = bus.roster().broker(id);
    if let Some(trouble) = bus.roster().trouble(id) {
        // It listens, and serves nobody.
        return (Health::Down.as_str(), trouble.since);
    }
    match bus.watch(id).suspect_since() {
        Some(since) if broker.health() != Health::Down => ("suspect", since),
        _ => (broker.health().as_str(), broker.since()),
    }
}

/// One bus.
pub(super) fn bus_snapshot(frontend: &Frontend) -> BusSnapshot {
    let pool = &frontend.pool;
    let (trunks, gauges) = pool.gauges();
    let bus = &*pool.bus.borrow();
    let roster = bus.roster();
    let now = now();
    let brokers: Vec<BrokerSnapshot> = roster
        .brokers()
        .map(|(id, broker)| BrokerSnapshot {
            addr: broker.label(),
            state: state(bus, id).0,
            drained: roster.is_drained(id),
            since: now.saturating_duration_since(state(bus, id).1),
            last_error: broker
                .last_failure()
                .map(|failure| failure.as_str().to_owned()),
            version: broker.info().map(|info| info.version.clone()),
            round_trip: bus.watch(id).round_trip().or(broker.probe_took()),
            links: u64::from(broker.links()),
            hosts: bus
                .settings()
                .is_independent()
                .then(|| bus.hosts_at(id) as u64),
            failures: u64::from(broker.failures()),
            certificate_ends: broker.certificate_ends(),
        })
        .collect();
    let healthy = roster.is_alive();
    let states = brokers.iter().map(|broker| match &broker.last_error {
        Some(cause) => format!("{} is {} ({cause})", broker.addr, broker.state),
        None => format!("{} is {}", broker.addr, broker.state),
    });
    BusSnapshot {
        name: pool.bus.name.clone(),
        listening: frontend.starting.get() == 0,
        attached: roster.was_seen(),
        healthy,
        outage: bus.outage_lasts(now),
        outage_revealed: bus.reveals_outage(),
        paused: bus
            .paused_until()
            .map(|until| until.saturating_duration_since(now)),
        moving: bus.movers() as u64,
        wrong_topology: bus.has_wrong_topology(),
        reason: (!healthy).then(|| states.collect::<Vec<_>>().join(", ")),
        sessions: gauges.sessions,
        trunks,
        links: gauges.links,
        subscriptions: gauges.subscriptions,
        waiting: gauges.waiting,
        buffered_bytes: gauges.buffered_bytes,
        pulls_open: gauges.pulls,
        current: healthy.then(|| roster.broker(roster.current()).label()),
        brokers,
        identities: bus
            .identities()
            .views()
            .map(|view| IdentitySnapshot {
                name: view.name,
                subject: view.subject,
                expires: view.expires,
            })
            .collect(),
        certificate_ends: pool.bus.certificate_ends(),
        listen_certificate_ends: frontend.tls().and_then(|tls| tls.server.ends()),
        counters: bus.counters().clone(),
        observed: bus.observed().clone(),
    }
}
