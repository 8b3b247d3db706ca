//! A model of nats-server: what it reads, whom it delivers to, and how it ends.

use std::collections::{BTreeMap, BTreeSet};

use natsmux::config::TlsMode;

use super::identity::nonce;
use super::net::{ConnId, Ends, Segment, Time, Way};
use super::oracle::InPlace;
use super::oracle::frames::{self, Publish, Splitter, Up, json_value};
use super::world::{Event, World};

/// Whose behaviour it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// The Ruby server of 2012.
    V0_4,
    V2_9,
    V2_15,
}

/// How a broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Up,
    Frozen,
    Dead,
}

/// One broker.
#[derive(Debug)]
pub struct Broker {
    pub flavour: Flavour,
    pub life: Life,
    pub lame_duck: bool,
    /// Turns every new connection away.
    pub full: bool,
    /// Refuses all credentials.
    pub refuses: bool,
    /// Users that it doesn't know any more.
    pub removed: BTreeSet<String>,
    /// Since when a dial finds it up and willing.
    pub willing_since: Option<Time>,
    pub starts: u64,
    pub clients: BTreeMap<ConnId, Client>,
    /// Connections that a frozen broker's kernel accepted.
    pub backlog: Vec<ConnId>,
    /// Restarts, thaws and ends that were planned for an earlier life don't count.
    pub plan: u64,
}

/// A connection as the broker sees it.
#[derive(Debug, Default)]
pub struct Client {
    input: Splitter,
    connected: bool,
    verbose: bool,
    echo: bool,
    headers: bool,
    no_responders: bool,
    pinged: bool,
    pub subs: BTreeMap<Vec<u8>, Sub>,
    /// What goes to it when the present input is handled.
    output: Vec<u8>,
    closing: bool,
    /// Which credentials of an identity it has.
    pub generation: Option<u8>,
    /// Whose they are.
    pub user: String,
}

/// A subscription as the broker has it.
#[derive(Clone, Debug)]
pub struct Sub {
    subject: Vec<u8>,
    group: Option<Vec<u8>>,
    max: u64,
    delivered: u64,
}

impl Broker {
    pub fn new(flavour: Flavour) -> Self {
        Self {
            flavour,
            life: Life::Up,
            lame_duck: false,
            full: false,
            refuses: false,
            removed: BTreeSet::new(),
            willing_since: Some(0),
            starts: 0,
            clients: BTreeMap::new(),
            backlog: Vec::new(),
            plan: 0,
        }
    }

    pub fn accepts(&self) -> bool {
        self.life != Life::Dead && !self.lame_duck
    }

    /// Whether everybody who is connected would hear what it says to all.
    pub fn is_heard_by_all(&self) -> bool {
        self.clients.values().all(|client| client.connected)
    }

    /// The subscriptions of a connection.
    pub fn table(&self, conn: ConnId) -> Option<Vec<InPlace>> {
        let client = self.clients.get(&conn)?;
        let place = |sub: &Sub| InPlace {
            subject: sub.subject.clone(),
            group: sub.group.clone(),
            remaining: (sub.max > 0).then(|| sub.max - sub.delivered),
        };
        Some(client.subs.values().map(place).collect())
    }
}

/// Where a message must go when it arrives over a route.
#[derive(Clone, Debug)]
pub struct Routed {
    pub publish: Publish,
    pub groups: BTreeSet<Vec<u8>>,
}

impl World {
    /// The INFO of a broker, as JSON.
    pub fn broker_info(&self, no: usize, conn: ConnId) -> String {
        let broker = &self.brokers[no];
        let version = match broker.flavour {
            Flavour::V0_4 => "0.4.22",
            Flavour::V2_9 => "2.9.10",
            Flavour::V2_15 => "2.15.1",
        };
        let auth = if self.plan.auth {
            ",\"auth_required\":true"
        } else {
            ""
        };
        let duck = if broker.lame_duck {
            ",\"ldm\":true"
        } else {
            ""
        };
        let tls = if self.plan.tls == TlsMode::Off {
            ""
        } else {
            ",\"tls_required\":true"
        };
        let nonce = if self.plan.identities {
            format!(",\"nonce\":\"{}\"", nonce(conn))
        } else {
            String::new()
        };
        let max_payload = self.plan.max_payload[no];
        if broker.flavour == Flavour::V0_4 {
            let required = self.plan.auth;
            return format!(
                "{{\"server_id\":\"b{no}s{}\",\"host\":\"0.0.0.0\",\"port\":4222,\"version\":\"{version}\",\"auth_required\":{required},\"ssl_required\":false,\"max_payload\":{max_payload}}}",
                broker.starts
            );
        }
        format!(
            "{{\"server_id\":\"B{no}S{}\",\"server_name\":\"b{no}\",\"version\":\"{version}\",\"proto\":1,\"go\":\"go1.24\",\"host\":\"0.0.0.0\",\"port\":4222,\"headers\":true{auth},\"max_payload\":{max_payload},\"client_id\":{},\"client_ip\":\"127.0.0.1\",\"cluster\":\"c\",\"connect_urls\":[\"10.0.0.1:4222\"]{duck}{tls}{nonce}}}",
            broker.starts, self.next_conn
        )
    }

    /// A broker's listener got a connection.
    pub fn broker_accept(&mut self, no: usize, conn: ConnId) {
        if self.brokers[no].life == Life::Frozen {
            self.brokers[no].backlog.push(conn);
            return;
        }
        let mut hello = format!("INFO {} \r\n", self.broker_info(no, conn)).into_bytes();
        let full = self.brokers[no].full;
        if self.plan.tls == TlsMode::First {
            // The handshake comes first.
            hello.clear();
        }
        if full {
            hello.extend_from_slice(b"-ERR 'maximum connections exceeded'\r\n");
        }
        if !hello.is_empty() {
            self.send(conn, Way::Down, Segment::Bytes(hello));
        }
        if full {
            self.oracle.mark("maximum connections exceeded");
            self.send(conn, Way::Down, Segment::Fin);
        } else {
            self.brokers[no].clients.insert(
                conn,
                Client {
                    echo: true,
                    ..Client::default()
                },
            );
        }
    }

    /// A broker reads what has arrived on one of its connections.
    pub fn broker_read(&mut self, no: usize, conn: ConnId) {
        if self.brokers[no].life != Life::Up {
            return;
        }
        while let Some(segment) = self.read(conn, Way::Up) {
            match segment {
                Segment::Bytes(bytes) => self.broker_bytes(no, conn, &bytes),
                Segment::Fin | Segment::Reset => {
                    self.brokers[no].clients.remove(&conn);
                    // An end that is on its way to natsmux still arrives.
                    if self.conns.get(&conn).is_some_and(|conn| !conn.down.ended) {
                        self.conns.remove(&conn);
                    }
                }
            }
        }
        self.broker_flush(no);
    }

    fn broker_bytes(&mut self, no: usize, conn: ConnId, bytes: &[u8]) {
        let Some(client) = self.brokers[no].clients.get_mut(&conn) else {
            return;
        };
        client.input.feed(bytes);
        while let Some(client) = self.brokers[no].clients.get_mut(&conn) {
            if client.closing {
                return;
            }
            match client.input.next_up() {
                Ok(None) => return,
                Ok(Some(op)) => self.broker_op(no, conn, op),
                Err(what) => {
                    return self
                        .oracle
                        .fail("I4 upstream framing", format!("broker {no}: {what}"));
                }
            }
        }
    }

    fn client(&mut self, no: usize, conn: ConnId) -> &mut Client {
        self.brokers[no]
            .clients
            .get_mut(&conn)
            .expect("it is being read")
    }

    fn broker_op(&mut self, no: usize, conn: ConnId, op: Up) {
        let flavour = self.brokers[no].flavour;
        let max_payload = self.plan.max_payload[no];
        let client = self.client(no, conn);
        match op {
            Up::Connect(json) => self.broker_connect(no, conn, &json),
            Up::Ping => {
                client.output.extend_from_slice(b"PONG\r\n");
                if !std::mem::replace(&mut client.pinged, true) && flavour == Flavour::V2_15 {
                    let info = format!("INFO {} \r\n", self.broker_info(no, conn));
                    self.client(no, conn)
                        .output
                        .extend_from_slice(info.as_bytes());
                }
            }
            Up::Pong => {}
            Up::Publish(publish) if publish.payload.len() > max_payload => {
                client
                    .output
                    .extend_from_slice(b"-ERR 'Maximum Payload Violation'\r\n");
                client.closing = true;
                self.oracle.mark("payload too large for a broker");
            }
            Up::Publish(publish) => self.broker_publish(no, Some(conn), publish),
            Up::Subscribe {
                subject,
                group,
                sid,
            } => {
                if subject.starts_with(b"deny") {
                    let subject = String::from_utf8_lossy(&subject).into_owned();
                    let using = group
                        .map(|group| {
                            format!(" using queue \"{}\"", String::from_utf8_lossy(&group))
                        })
                        .unwrap_or_default();
                    let text = format!(
                        "-ERR 'Permissions Violation for Subscription to \"{subject}\"{using}'\r\n"
                    );
                    return client.output.extend_from_slice(text.as_bytes());
                }
                if !frames::is_subscribable(&subject) {
                    return client
                        .output
                        .extend_from_slice(b"-ERR 'Invalid Subject'\r\n");
                }
                if flavour == Flavour::V0_4 && client.subs.contains_key(&sid) {
                    let text = b"-ERR 'Invalid Subject Identifier (sid), already taken'\r\n";
                    return client.output.extend_from_slice(text);
                }
                client.subs.entry(sid).or_insert(Sub {
                    subject,
                    group,
                    max: 0,
                    delivered: 0,
                });
                client.ok();
            }
            Up::Unsubscribe { sid, max } => {
                let delivered = client.subs.get(&sid).map_or(0, |sub| sub.delivered);
                match max.filter(|max| *max > delivered) {
                    Some(max) => {
                        if let Some(sub) = client.subs.get_mut(&sid) {
                            sub.max = max;
                        }
                    }
                    None => {
                        client.subs.remove(&sid);
                    }
                }
                client.ok();
            }
        }
    }

    fn broker_connect(&mut self, no: usize, conn: ConnId, json: &str) {
        let mut user = json_value(json, "user").unwrap_or_default().to_owned();
        if self.plan.identities {
            let judged = self.judge_credentials(conn, json);
            let generation = judged.as_ref().map(|(_, generation)| *generation);
            self.client(no, conn).generation = generation;
            user = judged.map(|(user, _)| user).unwrap_or_default();
            self.client(no, conn).user.clone_from(&user);
        }
        let broker = &self.brokers[no];
        let is_known = user != "mallory" && !user.is_empty() && !broker.removed.contains(&user);
        let refused = self.plan.auth && (!is_known || broker.refuses);
        let flavour = self.brokers[no].flavour;
        let client = self.client(no, conn);
        if std::mem::replace(&mut client.connected, true) {
            return self.oracle.fail(
                "I4 order",
                format!("broker {no}: a second CONNECT on a link"),
            );
        }
        let flag = |key: &str, default: bool| {
            json_value(json, key).map_or(default, |value| value == "true")
        };
        client.verbose = flag("verbose", true);
        client.echo = flag("echo", true) || flavour == Flavour::V0_4;
        client.headers = flag("headers", false);
        client.no_responders = flag("no_responders", false);
        if refused {
            let text: &[u8] = match flavour {
                Flavour::V0_4 => b"-ERR 'Authorization failed'\r\n",
                _ => b"-ERR 'Authorization Violation'\r\n",
            };
            client.output.extend_from_slice(text);
            client.closing = true;
        } else {
            if flavour == Flavour::V0_4 && !client.verbose {
                client.output.extend_from_slice(b"+OK\r\n");
            }
            client.ok();
            let host = self.conns[&conn].host;
            self.known_users.insert((host, user));
        }
    }

    /// A publish reaches a broker, from a client or from outside natsmux.
    pub fn broker_publish(&mut self, no: usize, from: Option<ConnId>, publish: Publish) {
        let refused = publish.subject.starts_with(b"deny");
        self.broker_processed(&publish, refused);
        if let Some(conn) = from {
            let client = self.client(no, conn);
            if refused {
                let text = format!(
                    "-ERR 'Permissions Violation for Publish to \"{}\"'\r\n",
                    String::from_utf8_lossy(&publish.subject)
                );
                return client.output.extend_from_slice(text.as_bytes());
            }
            client.ok();
        }
        let chosen = self.choose_groups(no, from, &publish);
        let at = |broker: usize| -> BTreeSet<Vec<u8>> {
            let here = chosen.iter().filter(|(_, at)| **at == broker);
            here.map(|(group, _)| group.clone()).collect()
        };
        let local = at(no);
        let silent_to = from.filter(|conn| !self.brokers[no].clients[conn].echo);
        let mut reached = self.broker_deliver(no, &publish, &local, silent_to);
        let routed = self.plan.independent.is_none();
        for other in (0..self.brokers.len()).filter(|other| routed && *other != no) {
            if self.brokers[other].life == Life::Dead {
                continue;
            }
            let remote = at(other);
            reached |= self.brokers[other].clients.values().any(|client| {
                client.subs.values().any(|sub| {
                    frames::matches(&sub.subject, &publish.subject)
                        && sub
                            .group
                            .as_ref()
                            .is_none_or(|group| remote.contains(group))
                })
            });
            let routed = Box::new(Routed {
                publish: publish.clone(),
                groups: remote,
            });
            let delay = self.rng.range(1, self.plan.route_delay);
            let at = self.route_arrival(no, other, delay);
            self.at(at, Event::Route { to: other, routed });
        }
        if let (false, Some(conn)) = (reached, from) {
            self.no_responders(no, conn, &publish);
        }
    }

    /// For every queue group that matches: the broker whose member of it is chosen.
    fn choose_groups(
        &mut self,
        no: usize,
        from: Option<ConnId>,
        publish: &Publish,
    ) -> BTreeMap<Vec<u8>, usize> {
        // The one that has the publish comes first.
        let mut members: BTreeMap<Vec<u8>, BTreeMap<(bool, usize), u64>> = BTreeMap::new();
        let mut hosts: BTreeMap<Option<&[u8]>, BTreeSet<usize>> = BTreeMap::new();
        for (at, broker) in self.brokers.iter().enumerate() {
            if at != no && self.plan.independent.is_some() {
                continue;
            }
            for (conn, client) in &broker.clients {
                if !client.echo && from == Some(*conn) {
                    continue;
                }
                for sub in client.subs.values() {
                    if !frames::matches(&sub.subject, &publish.subject) {
                        continue;
                    }
                    let group = sub.group.as_deref();
                    hosts
                        .entry(group)
                        .or_default()
                        .insert(self.conns[conn].host);
                    if let Some(group) = &sub.group {
                        let counts = members.entry(group.clone()).or_default();
                        *counts.entry((at != no, at)).or_default() += 1;
                    }
                }
            }
        }
        for (group, hosts) in hosts {
            match group {
                Some(_) if hosts.len() > 1 => self.oracle.mark("queue group over several hosts"),
                None if hosts.len() > 1 => self.oracle.mark("subscribers on several hosts"),
                _ => {}
            }
        }
        let mut chosen = BTreeMap::new();
        for (group, counts) in members {
            let mut left = self.rng.below(counts.values().sum());
            for ((_, broker), count) in counts {
                if left < count {
                    chosen.insert(group, broker);
                    break;
                }
                left -= count;
            }
        }
        chosen
    }

    /// Delivers to this broker's clients: plain subscriptions, and one member of each group.
    pub fn broker_deliver(
        &mut self,
        no: usize,
        publish: &Publish,
        groups: &BTreeSet<Vec<u8>>,
        silent_to: Option<ConnId>,
    ) -> bool {
        let now = self.now;
        if let Some(witness) = &mut self.witness {
            witness.seen(no, publish, now);
        }
        let mut targets = Vec::new();
        let mut members: BTreeMap<&[u8], Vec<(ConnId, Vec<u8>)>> = BTreeMap::new();
        for (conn, client) in &self.brokers[no].clients {
            if silent_to == Some(*conn) || !client.connected || client.closing {
                continue;
            }
            for (sid, sub) in &client.subs {
                if !frames::matches(&sub.subject, &publish.subject) {
                    continue;
                }
                match &sub.group {
                    None => targets.push((*conn, sid.clone())),
                    Some(group) => {
                        if let Some(group) = groups.get(group) {
                            members.entry(group).or_default().push((*conn, sid.clone()));
                        }
                    }
                }
            }
        }
        for members in members.into_values() {
            targets.push(self.rng.pick(&members).clone());
        }
        let reached = !targets.is_empty();
        for (conn, sid) in targets {
            self.client(no, conn).deliver(&sid, publish);
        }
        reached
    }

    fn no_responders(&mut self, no: usize, conn: ConnId, publish: &Publish) {
        let flavour = self.brokers[no].flavour;
        let client = self.client(no, conn);
        let Some(reply) = publish
            .reply
            .clone()
            .filter(|_| client.no_responders && client.headers)
        else {
            return;
        };
        let sub = client
            .subs
            .iter()
            .find(|(_, sub)| sub.group.is_none() && frames::matches(&sub.subject, &reply));
        let Some(sid) = sub.map(|(sid, _)| sid.clone()) else {
            return;
        };
        let mut payload = b"NATS/1.0 503\r\n".to_vec();
        if flavour == Flavour::V2_15 {
            payload.extend_from_slice(b"Nats-Subject: ");
            payload.extend_from_slice(&publish.subject);
            payload.extend_from_slice(b"\r\n");
        }
        payload.extend_from_slice(b"\r\n");
        let status = Publish {
            subject: reply,
            reply: None,
            headers: Some(payload.len()),
            payload,
        };
        let mut frame = Vec::new();
        status.encode(Some(&sid), &mut frame);
        let now = self.now;
        if let Some(witness) = &mut self.witness {
            witness.no_responders(&status.subject, now);
        }
        let client = self.client(no, conn);
        client.output.extend_from_slice(&frame);
        self.oracle.mark("no responders");
    }

    /// Writes what the last inputs made for clients, and closes where that was decided.
    pub fn broker_flush(&mut self, no: usize) {
        let waiting: Vec<ConnId> = self.brokers[no]
            .clients
            .iter()
            .filter(|(_, client)| !client.output.is_empty() || client.closing)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in waiting {
            let client = self.client(no, conn);
            let (output, closing) = (std::mem::take(&mut client.output), client.closing);
            if !output.is_empty() {
                self.send(conn, Way::Down, Segment::Bytes(output));
            }
            if closing {
                self.brokers[no].clients.remove(&conn);
                self.send(conn, Way::Down, Segment::Fin);
            }
        }
    }

    /// A broker closes a connection, with or without a word.
    pub fn broker_close(&mut self, no: usize, conn: ConnId, text: Option<&str>) {
        let Some(client) = self.brokers[no].clients.get_mut(&conn) else {
            return;
        };
        if let Some(text) = text {
            client
                .output
                .extend_from_slice(format!("-ERR '{text}'\r\n").as_bytes());
        }
        client.closing = true;
        self.broker_flush(no);
    }

    /// Says something to all clients: an INFO, or a PING.
    pub fn broker_tell_all(&mut self, no: usize, line: &str) {
        for client in self.brokers[no].clients.values_mut() {
            if client.connected {
                client.output.extend_from_slice(line.as_bytes());
            }
        }
        self.broker_flush(no);
    }

    /// The process ends at once: of what it had written, any part arrives.
    pub fn broker_kill(&mut self, no: usize) {
        self.brokers[no].life = Life::Dead;
        self.brokers[no].clients.clear();
        self.brokers[no].backlog.clear();
        self.brokers[no].willing_since = None;
        let conns: Vec<ConnId> = self.conns.iter().filter(|(_, conn)| matches!(conn.ends, Ends::NatsmuxToBroker { broker, .. } if broker == no)).map(|(id, _)| *id).collect();
        for conn in conns {
            let end = if self.rng.percent(30) {
                Segment::Fin
            } else {
                Segment::Reset
            };
            self.cut(conn, Way::Down, end);
            self.conn_died_above(conn);
        }
    }
}

impl Client {
    fn ok(&mut self) {
        if self.verbose {
            self.output.extend_from_slice(b"+OK\r\n");
        }
    }

    fn deliver(&mut self, sid: &[u8], publish: &Publish) {
        let Some(sub) = self.subs.get_mut(sid) else {
            return;
        };
        sub.delivered += 1;
        let finished = sub.max > 0 && sub.delivered >= sub.max;
        let mut publish = publish.clone();
        if let (Some(headers), false) = (publish.headers, self.headers) {
            publish.payload.drain(..headers);
            publish.headers = None;
        }
        publish.encode(Some(sid), &mut self.output);
        if finished {
            self.subs.remove(sid);
        }
    }
}
