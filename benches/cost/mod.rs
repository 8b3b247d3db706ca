//! What is done for each message, subscription and session, without a socket: the same work for
//! `benches/time.rs`, which takes the time, and `benches/instructions.rs`, which counts.

use std::hash::RandomState;
use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

use natsmux::clock::Instant;

use natsmux::config::{Admit, BrokerAddr, Sharing};
use natsmux::downstream::session::{Session, SessionAction, Upstream};
use natsmux::ledger::{Seen, SessionId, Subscribed, Subscriptions, UpstreamSid};
use natsmux::net::{Outbox, Retention};
use natsmux::proto::client::{self, ClientLimits, Scan};
use natsmux::proto::encode;
use natsmux::proto::info::ServerInfo;
use natsmux::proto::server::{self, ServerLimits, ServerScan};
use natsmux::upstream::brokers::admission::Admission;
use natsmux::upstream::brokers::roster::{Failure, Placement};
use natsmux::upstream::trunk::{Action, LinkId};
use natsmux::upstream::{Budgets, Bus, Roster, Settings, Trunk, TrunkId, Turn};

/// Operations of one run.
pub(crate) const RUN: usize = 1_000;

const PAYLOAD: usize = 128;
const INFO: &[u8] = b"INFO {\"server_id\":\"x\",\"version\":\"2.15.1\",\"headers\":true,\
    \"max_payload\":1048576,\"proto\":1}\r\n";
const CONNECT: &[u8] = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\
    \"no_responders\":true,\"protocol\":1,\"name\":\"bench\"}\r\n";

/// A buffer full of publishes, each to another subject.
pub(crate) fn publishes() -> Vec<u8> {
    let payload = "x".repeat(PAYLOAD);
    let frames = (0..RUN).map(|at| format!("PUB bench.{at} {PAYLOAD}\r\n{payload}\r\n"));
    frames.collect::<String>().into_bytes()
}

/// The same with headers and a reply.
pub(crate) fn requests() -> Vec<u8> {
    let payload = "x".repeat(PAYLOAD);
    let size = PAYLOAD + 12;
    let frames = (0..RUN).map(|at| {
        format!("HPUB bench.{at} _INBOX.abcdefghijklmnopqrstuv.{at} 12 {size}\r\nNATS/1.0\r\n\r\n{payload}\r\n")
    });
    frames.collect::<String>().into_bytes()
}

/// A buffer full of messages, for `subscriptions` subscriptions in turn.
pub(crate) fn messages(subscriptions: usize) -> Vec<u8> {
    let payload = "x".repeat(PAYLOAD);
    let frames = (0..RUN).map(|at| {
        let slot = (at % subscriptions) as u32;
        let sid = UpstreamSid {
            slot,
            generation: 0,
        }
        .text();
        let sid = String::from_utf8_lossy(sid.as_bytes()).into_owned();
        format!("MSG bench.{at} {sid} {PAYLOAD}\r\n{payload}\r\n")
    });
    frames.collect::<String>().into_bytes()
}

/// Finds all operations of a component. Returns how many.
pub(crate) fn scan_client(input: &[u8]) -> usize {
    let limits = ClientLimits::default();
    let (mut rest, mut count) = (input, 0);
    while let Scan::Op { op, len } = client::scan(rest, &limits) {
        black_box(op);
        rest = &rest[len..];
        count += 1;
    }
    count
}

/// Finds all operations of a broker. Returns how many.
pub(crate) fn scan_server(input: &[u8]) -> usize {
    let limits = ServerLimits::default();
    let (mut rest, mut count) = (input, 0);
    while let ServerScan::Op { op, len } = server::scan(rest, &limits) {
        black_box(op);
        rest = &rest[len..];
        count += 1;
    }
    count
}

/// Writes `RUN` SUBs under upstream sids.
pub(crate) fn encode_subs() -> Vec<u8> {
    let mut out = Vec::new();
    for slot in 0..RUN as u32 {
        let sid = UpstreamSid {
            slot,
            generation: 0,
        }
        .text();
        encode::sub(&mut out, black_box(b"bench.subject"), None, sid.as_bytes());
    }
    out
}

/// The texts of sids of all lengths.
pub(crate) fn sids() -> Vec<Vec<u8>> {
    let sid = |at: u32| UpstreamSid {
        slot: at * at,
        generation: at % 3,
    };
    let texts = (0..RUN as u32).map(|at| sid(at).text().as_bytes().to_vec());
    texts.collect()
}

/// Reads the texts of sids.
pub(crate) fn parse_sids(texts: &[Vec<u8>]) -> u64 {
    let parsed = texts.iter().filter_map(|text| UpstreamSid::parse(text));
    parsed.map(|sid| u64::from(sid.slot)).sum()
}

/// A ledger with `count` subscriptions of one session.
pub(crate) fn ledger(count: usize) -> Subscriptions {
    let mut table = Subscriptions::default();
    subscribe(&mut table, count);
    table
}

/// Enters `count` subscriptions.
pub(crate) fn subscribe(table: &mut Subscriptions, count: usize) {
    for at in 0..count {
        let (subject, sid) = (format!("bench.{at}"), at.to_string());
        let entered = table.subscribe(SessionId(0), subject.as_bytes(), None, sid.as_bytes(), 1);
        assert!(matches!(entered, Subscribed::New(_)), "a new sid");
    }
}

/// One delivery to each of `count` subscriptions.
pub(crate) fn deliver(table: &mut Subscriptions, count: usize) {
    for slot in 0..count as u32 {
        let upstream = UpstreamSid {
            slot,
            generation: 0,
        };
        let spent = table.deliver(upstream, true, Seen(1), |session, sid| {
            black_box((session, sid));
        });
        assert!(spent.is_some(), "a known sid");
    }
}

/// Ends `count` subscriptions, and frees their places.
pub(crate) fn unsubscribe(table: &mut Subscriptions, count: usize) {
    for at in 0..count {
        let sid = at.to_string();
        table.unsubscribe(SessionId(0), sid.as_bytes(), None, 2);
        let slot = at as u32;
        table.forget(UpstreamSid {
            slot,
            generation: 0,
        });
    }
}

/// A trunk with a live link and its sessions, whose sockets take everything.
pub(crate) struct Site {
    bus: Bus,
    trunk: Trunk,
    link: LinkId,
    sessions: Vec<(Session, SessionId)>,
    now: Instant,
}

impl Site {
    /// One session with a trunk of its own, and `subscriptions` subscriptions.
    pub(crate) fn own(subscriptions: usize) -> Self {
        let mut site = Self::new(1, false);
        for at in 0..subscriptions {
            site.send(0, format!("SUB bench.{at} {at}\r\n").as_bytes());
        }
        site.take_link_bytes();
        site
    }

    /// `sessions` sessions that share a trunk, each with the same subscription.
    pub(crate) fn shared(sessions: usize) -> Self {
        let mut site = Self::new(sessions, true);
        for at in 0..sessions {
            site.send(at, format!("SUB bench.* {}\r\nPING\r\n", at + 1).as_bytes());
        }
        site.take_link_bytes();
        // One PING each, which marks the place of its SUB too.
        site.answer("PONG\r\n".repeat(sessions).as_bytes());
        site.take_session_bytes();
        site
    }

    fn new(sessions: usize, shares: bool) -> Self {
        let now = Instant::now();
        let settings = Settings {
            admit: Admit::Always,
            sharing: if shares {
                Sharing::Identity
            } else {
                Sharing::None
            },
            ..Settings::default()
        };
        let addrs = [BrokerAddr {
            host: "10.0.0.1".to_owned(),
            port: 4222,
            tls: false,
        }];
        let roster = Roster::new(&addrs, Placement::default(), Duration::from_secs(3), 1, now);
        let budgets = Budgets::new(1 << 30, 1 << 30, 1 << 30);
        let mut bus = Bus::new(
            settings,
            roster,
            Admission::new(RandomState::new()),
            budgets,
            now,
        );
        let mut trunk: Option<Trunk> = None;
        let mut entered = Vec::with_capacity(sessions);
        for _ in 0..sessions {
            let offer = bus.roster().offer();
            let mut session = Session::new(offer, &Turn::new(now, &mut bus));
            session.handle_bytes(CONNECT, None, &mut Turn::new(now, &mut bus));
            let Some(SessionAction::Attach { connect, sent }) = session.poll_action() else {
                panic!("it asks for a trunk");
            };
            let trunk = trunk.get_or_insert_with(|| {
                if shares {
                    Trunk::shared(TrunkId(0), &connect, "bench".to_owned())
                } else {
                    Trunk::new(TrunkId(0), Rc::clone(&connect))
                }
            });
            let out = Outbox::new(Retention::UntilWritten);
            let id = if shares {
                trunk.join(out, &connect, &mut Turn::new(now, &mut bus))
            } else {
                trunk.attach(out, sent, &mut Turn::new(now, &mut bus))
            };
            session.handle_attached(Upstream { trunk, id }, &mut Turn::new(now, &mut bus));
            entered.push((session, id));
        }
        let mut trunk = trunk.expect("at least one session");
        let mut link = None;
        while let Some(action) = trunk.poll_action() {
            if let Action::Dial { link: id, .. } = action {
                link = Some(id);
            }
        }
        let mut site = Self {
            bus,
            trunk,
            link: link.expect("it dials"),
            sessions: entered,
            now,
        };
        site.trunk
            .handle_connected(site.link, &mut Turn::new(now, &mut site.bus));
        site.answer(INFO);
        site.take_link_bytes();
        site.answer(b"PONG\r\n");
        site.trunk.handle_wake(&mut Turn::new(now, &mut site.bus));
        for at in 0..site.sessions.len() {
            let (session, id) = &mut site.sessions[at];
            let home = Upstream {
                trunk: &mut site.trunk,
                id: *id,
            };
            session.handle_ready(home, &mut Turn::new(now, &mut site.bus));
        }
        site
    }

    /// A component sends this.
    pub(crate) fn send(&mut self, at: usize, bytes: &[u8]) {
        let (session, id) = &mut self.sessions[at];
        let home = Upstream {
            trunk: &mut self.trunk,
            id: *id,
        };
        let used = session.handle_bytes(bytes, Some(home), &mut Turn::new(self.now, &mut self.bus));
        assert_eq!(used, bytes.len(), "nothing waits");
    }

    /// The broker sends this.
    pub(crate) fn answer(&mut self, bytes: &[u8]) {
        self.trunk
            .handle_link_bytes(self.link, bytes, &mut Turn::new(self.now, &mut self.bus));
    }

    /// The broker has read all that waits for it, and answers its fences. Returns how many bytes
    /// that was.
    pub(crate) fn take_and_prove(&mut self) -> usize {
        // One for each 64 KiB or 256 messages of a run; what nobody asked for is ignored.
        const FENCES: &[u8] = b"PONG\r\nPONG\r\nPONG\r\nPONG\r\nPONG\r\nPONG\r\n";
        let taken = self.take_link_bytes();
        self.answer(FENCES);
        taken
    }

    /// The broker's socket takes all that waits for it. Returns how many bytes that was.
    pub(crate) fn take_link_bytes(&mut self) -> usize {
        let out = self.trunk.link_out(self.link).expect("it lives");
        let pending = out.pending_bytes();
        out.advance(pending);
        pending
    }

    /// The components' sockets take all that waits for them. Returns how many bytes that was.
    pub(crate) fn take_session_bytes(&mut self) -> usize {
        let mut taken = 0;
        while let Some(session) = self.trunk.poll_touched() {
            let out = self.trunk.out(session).expect("it lives");
            let pending = out.pending_bytes();
            out.advance(pending);
            self.trunk.account(session, &self.bus);
            taken += pending;
        }
        taken
    }

    /// The link ends, and the next one is told everything. Returns how many bytes that takes.
    pub(crate) fn replay(&mut self) -> usize {
        // A link that lives shorter counts as a failed attempt.
        self.now += Duration::from_secs(1);
        let (link, now) = (self.link, self.now);
        self.trunk
            .handle_link_failed(link, Failure::Closed, &mut Turn::new(now, &mut self.bus));
        // The only broker is probed before it is dialled again.
        let broker = self.bus.roster().current();
        let info = ServerInfo::parse(&INFO[b"INFO ".len()..]).expect("JSON");
        self.bus.roster_mut().handle_info(broker, info, now);
        self.trunk.handle_wake(&mut Turn::new(now, &mut self.bus));
        let mut dialled = None;
        while let Some(action) = self.trunk.poll_action() {
            if let Action::Dial { link, .. } = action {
                dialled = Some(link);
            }
        }
        self.link = dialled.expect("it dials again");
        self.trunk
            .handle_connected(self.link, &mut Turn::new(now, &mut self.bus));
        self.answer(INFO);
        self.take_link_bytes();
        self.answer(b"PONG\r\n");
        let told = self.take_link_bytes();
        self.answer(b"PONG\r\n");
        self.trunk.handle_wake(&mut Turn::new(now, &mut self.bus));
        told
    }
}
