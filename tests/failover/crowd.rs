//! Many sessions of few identities on shared trunks: who gets whose messages, exactly.
//!
//! Sessions subscribe to overlapping patterns, publish at random, change their subscriptions,
//! leave and come back, while brokers are killed. Every sid is used by one session only, and
//! every payload says which message it is. So what reached a wrong session, came twice, or is
//! missing although nothing was killed near it, is found afterwards, message by message.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Builder;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::rig::{KNOWN, natsmux, shared_config};
use crate::scale::raise_open_files;
use crate::size::{Dice, figures, number, turn};
use crate::support::{Cluster, Natsmux, PATIENCE, Version, wait_for};

const IDENTITIES: u64 = 4;
const SUBSCRIPTIONS: u64 = 20;
/// Of a session's subscriptions, those with a wildcard.
const WILD: u64 = 2;
/// Tokens that each place of a subject may have.
const TOKENS: u64 = 12;
/// A message this long before an UNSUB may have missed the subscription.
const ENDING: u64 = 2_000_000;
/// Messages published this long before a kill may be in doubt or in the dead broker, and this
/// long behind it before all is in place again.
const BEFORE: u64 = 1_000_000;
const BEHIND: u64 = 3_000_000;

/// One subscription of one session.
#[derive(Debug)]
struct Sub {
    pattern: String,
    /// Microseconds: when a PONG behind its SUB came, and when its UNSUB was sent.
    from: Cell<Option<u64>>,
    until: Cell<Option<u64>>,
    got: RefCell<Vec<u32>>,
}

#[derive(Debug)]
struct Message {
    subject: String,
    at: u64,
}

/// What all sessions share.
struct Crowd {
    address: String,
    start: Instant,
    messages: RefCell<Vec<Message>>,
    subs: RefCell<Vec<Rc<Sub>>>,
    faults: RefCell<Vec<String>>,
    publishing: Cell<bool>,
    over: Cell<bool>,
    /// Between two actions of a session.
    pace: Duration,
    next_sid: Cell<u64>,
}

impl Crowd {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).expect("a test ends before that")
    }

    fn fault(&self, what: String) {
        if self.faults.borrow().len() < 20 {
            self.faults.borrow_mut().push(what);
        }
    }
}

fn subject(dice: &mut Dice) -> [u64; 3] {
    std::array::from_fn(|_| dice.roll(TOKENS))
}

/// The patterns that a subject has, the literal one first.
fn patterns([a, b, c]: [u64; 3]) -> [String; 4] {
    [
        format!("t.{a}.{b}.{c}"),
        format!("t.{a}.*.{c}"),
        format!("t.{a}.{b}.>"),
        format!("t.*.{b}.{c}"),
    ]
}

/// One connection's subscriptions by sid, and the PINGs that it owes an answer for.
#[derive(Default)]
struct Session {
    subs: RefCell<HashMap<String, Rc<Sub>>>,
    /// Subscriptions that each PONG proves.
    asked: RefCell<VecDeque<Vec<Rc<Sub>>>>,
    closing: Cell<bool>,
}

/// A component that acts until all is over, on one connection after the other.
async fn component(crowd: Rc<Crowd>, no: u64) {
    let mut dice = Dice::new(no + 1);
    while !crowd.over.get() {
        let session = Rc::new(Session::default());
        let connected = timeout(PATIENCE, connect(&crowd, no)).await;
        let Ok(Ok((read, mut write))) = connected else {
            return crowd.fault(format!("{no} can't connect"));
        };
        let reader = spawn_local(read_all(Rc::clone(&crowd), no, read, Rc::clone(&session)));
        act(&crowd, no, &session, &mut write, &mut dice).await;
        session.closing.set(true);
        let now = crowd.now();
        for sub in session.subs.borrow().values() {
            sub.until.set(sub.until.get().or(Some(now)));
        }
        drop(write);
        reader.abort();
    }
}

async fn connect(crowd: &Crowd, no: u64) -> std::io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
    let stream = TcpStream::connect(&crowd.address).await?;
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let user = no % IDENTITIES;
    let connect = format!(
        "CONNECT {{\"verbose\":false,\"pedantic\":false,\"protocol\":1,\"user\":\"i{user}\",\
         \"pass\":\"p\",\"name\":\"c{no}\"}}\r\n"
    );
    write.write_all(connect.as_bytes()).await?;
    Ok((read, write))
}

/// Subscribes, publishes and changes its mind, for a while or until all is over.
async fn act(
    crowd: &Crowd,
    no: u64,
    session: &Session,
    write: &mut OwnedWriteHalf,
    dice: &mut Dice,
) {
    let mut lines = String::new();
    let mut fresh = Vec::new();
    for place in 0..SUBSCRIPTIONS {
        fresh.extend(subscribe(
            crowd,
            no,
            session,
            place < WILD,
            dice,
            &mut lines,
        ));
    }
    session.asked.borrow_mut().push_back(fresh);
    lines += "PING\r\n";
    if write.write_all(lines.as_bytes()).await.is_err() {
        return crowd.fault(format!("{no} can't write"));
    }
    // The first messages come when everybody is there.
    while !crowd.publishing.get() && !crowd.over.get() {
        sleep(Duration::from_millis(50)).await;
    }
    while !crowd.over.get() {
        let pause = crowd.pace.as_micros() as u64;
        sleep(Duration::from_micros(pause / 2 + dice.roll(pause))).await;
        let mut lines = String::new();
        match dice.roll(100) {
            // It goes away, with its last words half said.
            0 => {
                let _ = write.write_all(b"PUB t.1.1.1 10\r\nhal").await;
                return;
            }
            1..15 => change(crowd, no, session, dice, &mut lines),
            _ if crowd.publishing.get() => {
                let subject = patterns(subject(dice))[0].clone();
                let mut messages = crowd.messages.borrow_mut();
                let payload = messages.len().to_string();
                lines = format!("PUB {subject} {}\r\n{payload}\r\n", payload.len());
                let at = crowd.now();
                messages.push(Message { subject, at });
            }
            _ => continue,
        }
        if write.write_all(lines.as_bytes()).await.is_err() {
            return crowd.fault(format!("{no} can't write"));
        }
    }
}

/// A new subscription; `None` where it has that pattern.
fn subscribe(
    crowd: &Crowd,
    no: u64,
    session: &Session,
    wild: bool,
    dice: &mut Dice,
    lines: &mut String,
) -> Option<Rc<Sub>> {
    let [literal, wilds @ ..] = patterns(subject(dice));
    let pattern = if wild {
        wilds[dice.roll(3) as usize].clone()
    } else {
        literal
    };
    let live = |sub: &Rc<Sub>| sub.pattern == pattern && sub.until.get().is_none();
    if session.subs.borrow().values().any(live) {
        return None;
    }
    let sid = format!("{no}x{}", crowd.next_sid.replace(crowd.next_sid.get() + 1));
    *lines += &format!("SUB {pattern} {sid}\r\n");
    let sub = Rc::new(Sub {
        pattern,
        from: Cell::new(None),
        until: Cell::new(None),
        got: RefCell::default(),
    });
    crowd.subs.borrow_mut().push(Rc::clone(&sub));
    session.subs.borrow_mut().insert(sid, Rc::clone(&sub));
    Some(sub)
}

/// One subscription goes, another one comes.
fn change(crowd: &Crowd, no: u64, session: &Session, dice: &mut Dice, lines: &mut String) {
    let live = |(_, sub): &(&String, &Rc<Sub>)| sub.until.get().is_none();
    let mut sids: Vec<String> = session
        .subs
        .borrow()
        .iter()
        .filter(live)
        .map(|(sid, _)| sid.clone())
        .collect();
    sids.sort();
    let sid = sids[dice.roll(sids.len() as u64) as usize].clone();
    let wild = {
        let sub = &session.subs.borrow()[&sid];
        sub.until.set(Some(crowd.now()));
        sub.pattern.contains(['*', '>'])
    };
    *lines += &format!("UNSUB {sid}\r\n");
    let fresh = subscribe(crowd, no, session, wild, dice, lines);
    session
        .asked
        .borrow_mut()
        .push_back(fresh.into_iter().collect());
    *lines += "PING\r\n";
}

async fn read_all(crowd: Rc<Crowd>, no: u64, mut read: OwnedReadHalf, session: Rc<Session>) {
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let mut used = 0;
        while let Some(len) = frame(&buffer[used..]) {
            hear(&crowd, no, &buffer[used..used + len], &session);
            used += len;
        }
        buffer.drain(..used);
        match read.read_buf(&mut buffer).await {
            Ok(count) if count > 0 => {}
            _ if session.closing.get() => return,
            _ => return crowd.fault(format!("{no} was disconnected")),
        }
    }
}

/// The length of the whole frame at the start.
fn frame(bytes: &[u8]) -> Option<usize> {
    let line = memchr::memmem::find(bytes, b"\r\n")? + 2;
    let len = if bytes.starts_with(b"MSG ") {
        let size = bytes[..line - 2].rsplit(|byte| *byte == b' ').next()?;
        let size: usize = std::str::from_utf8(size).ok()?.parse().ok()?;
        line + size + 2
    } else {
        line
    };
    (bytes.len() >= len).then_some(len)
}

fn hear(crowd: &Crowd, no: u64, frame: &[u8], session: &Session) {
    let text = String::from_utf8_lossy(frame);
    let mut words = text.split_ascii_whitespace();
    match words.next() {
        Some("INFO" | "PING") => {}
        Some("PONG") => {
            let proven = session.asked.borrow_mut().pop_front();
            let Some(proven) = proven else {
                return crowd.fault(format!("{no}: a PONG too many"));
            };
            let now = crowd.now();
            for sub in proven {
                sub.from.set(Some(now));
            }
        }
        Some("MSG") => {
            let (subject, sid) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let number = words.nth(1).and_then(|word| word.parse::<u32>().ok());
            let subs = session.subs.borrow();
            let Some(sub) = subs.get(sid) else {
                return crowd.fault(format!("{no} got {subject} for {sid}, another session's"));
            };
            let messages = crowd.messages.borrow();
            let Some(number) = number.filter(|number| (*number as usize) < messages.len()) else {
                return crowd.fault(format!("{no}: {text:?}"));
            };
            if messages[number as usize].subject != subject || !fits(&sub.pattern, subject) {
                return crowd.fault(format!("{no} got {subject} for {}", sub.pattern));
            }
            sub.got.borrow_mut().push(number);
        }
        _ => crowd.fault(format!("{no}: {text:?}")),
    }
}

fn fits(pattern: &str, subject: &str) -> bool {
    let numbers = subject
        .split('.')
        .skip(1)
        .filter_map(|word| word.parse().ok());
    let numbers: Vec<u64> = numbers.collect();
    <[u64; 3]>::try_from(numbers).is_ok_and(|all| patterns(all).iter().any(|p| p == pattern))
}

/// What came of it.
#[derive(Debug, Default)]
struct Verdict {
    delivered: u64,
    /// Deliveries of messages that no kill is near of.
    due: u64,
    missing: u64,
    double: u64,
}

fn judge(crowd: &Crowd, kills: &[u64]) -> Verdict {
    let mut by_pattern: HashMap<String, Vec<Rc<Sub>>> = HashMap::new();
    let mut verdict = Verdict::default();
    let mut got: HashMap<*const Sub, HashSet<u32>> = HashMap::new();
    for sub in crowd.subs.borrow().iter() {
        let all = sub.got.borrow();
        let once: HashSet<u32> = all.iter().copied().collect();
        verdict.delivered += all.len() as u64;
        verdict.double += (all.len() - once.len()) as u64;
        got.insert(Rc::as_ptr(sub), once);
        by_pattern
            .entry(sub.pattern.clone())
            .or_default()
            .push(Rc::clone(sub));
    }
    for (number, message) in crowd.messages.borrow().iter().enumerate() {
        let near_a_kill = kills
            .iter()
            .any(|kill| message.at + BEFORE > *kill && message.at < *kill + BEHIND);
        if near_a_kill {
            continue;
        }
        let numbers = message.subject.split('.').skip(1);
        let numbers: Vec<u64> = numbers.filter_map(|word| word.parse().ok()).collect();
        let place: [u64; 3] = numbers.try_into().expect("three tokens");
        for sub in patterns(place)
            .iter()
            .filter_map(|p| by_pattern.get(p))
            .flatten()
        {
            let since = sub.from.get().is_some_and(|from| from <= message.at);
            let still = sub
                .until
                .get()
                .is_none_or(|until| message.at + ENDING < until);
            if since && still {
                verdict.due += 1;
                verdict.missing += u64::from(!got[&Rc::as_ptr(sub)].contains(&(number as u32)));
            }
        }
    }
    verdict
}

#[test]
fn a_crowd_on_shared_trunks_gets_each_message_once_and_nobody_elses() {
    let _turn = turn();
    raise_open_files();
    let sessions = number("crowd_sessions", [200, 1_000, 5_000]);
    let seconds = number("crowd_seconds", [12, 60, 600]);
    let every = number("crowd_kill_every", [5, 10, 15]);
    let rate = number("crowd_rate", [300, 400, 400]);
    let mut cluster = Cluster::start(Version::V215, KNOWN);
    let natsmux = natsmux(shared_config(&cluster.urls()));
    let runtime = Builder::new_current_thread().enable_all().build();
    let local = LocalSet::new();
    let crowd = Rc::new(Crowd {
        address: natsmux.address(),
        start: Instant::now(),
        messages: RefCell::default(),
        subs: RefCell::default(),
        faults: RefCell::default(),
        publishing: Cell::new(false),
        over: Cell::new(false),
        pace: Duration::from_secs_f64(sessions as f64 / rate as f64),
        next_sid: Cell::new(0),
    });
    let played = Rc::clone(&crowd);
    let kills = runtime.expect("a runtime").block_on(local.run_until(async {
        let mut parts: Vec<JoinHandle<()>> = Vec::new();
        for no in 0..sessions {
            parts.push(spawn_local(component(Rc::clone(&played), no)));
            if no % 50 == 0 {
                sleep(Duration::from_millis(20)).await;
            }
        }
        let mut kills = Vec::new();
        sleep(Duration::from_secs(2)).await;
        played.publishing.set(true);
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            sleep(Duration::from_secs(every)).await;
            let current = natsmux.current_broker().expect("a broker in use");
            let victim = cluster.index_of(&current).expect("one of them");
            kills.push(played.now());
            cluster.broker(victim).kill();
            sleep(Duration::from_millis(500)).await;
            cluster.broker(victim).restart();
        }
        sleep(Duration::from_secs(3)).await;
        played.publishing.set(false);
        sleep(Duration::from_secs(2)).await;
        check_broker(&played, &natsmux, &cluster);
        played.over.set(true);
        for part in parts {
            let _ = timeout(PATIENCE, part).await;
        }
        kills
    }));
    let verdict = judge(&crowd, &kills);
    let faults = crowd.faults.borrow();
    figures(&format!(
        "{sessions} sessions of {IDENTITIES} identities, {} messages, {} kills: {} delivered; of \
         {} due {} missing, {} double; {} in doubt; faults {faults:?}",
        crowd.messages.borrow().len(),
        kills.len(),
        verdict.delivered,
        verdict.due,
        verdict.missing,
        verdict.double,
        natsmux.counter("in_doubt"),
    ));
    assert!(faults.is_empty(), "{faults:?}");
    assert!(verdict.due > 1_000, "hardly anything was judged");
    assert_eq!((verdict.missing, verdict.double), (0, 0));
}

/// At rest a broker has one subscription for each pattern of an identity, and natsmux a
/// connection for each.
fn check_broker(crowd: &Crowd, natsmux: &Natsmux, cluster: &Cluster) {
    let current = natsmux.current_broker().expect("a broker in use");
    let broker = &cluster.brokers()[cluster.index_of(&current).expect("one of them")];
    let live = crowd.subs.borrow();
    let live: HashSet<&str> = live
        .iter()
        .filter(|sub| sub.until.get().is_none())
        .map(|sub| sub.pattern.as_str())
        .collect();
    let mut listed = HashSet::new();
    wait_for("natsmux's connections", PATIENCE, || {
        let connz = broker.monitoring("/connz?subs=1&limit=100")?;
        let connections = connz["connections"].as_array()?;
        let own = connections
            .iter()
            .filter(|connection| {
                let name = connection["name"].as_str().unwrap_or("");
                name.starts_with("natsmux:failover:default:")
            })
            .collect::<Vec<_>>();
        for connection in &own {
            let subjects = connection["subscriptions_list"].as_array()?;
            let subjects: Vec<String> = subjects
                .iter()
                .filter_map(|subject| Some(subject.as_str()?.to_owned()))
                .collect();
            let once: HashSet<String> = subjects.iter().cloned().collect();
            assert_eq!(
                once.len(),
                subjects.len(),
                "a subject twice on one connection"
            );
            listed.extend(once);
        }
        (own.len() as u64 == IDENTITIES).then_some(())
    });
    let listed: HashSet<&str> = listed.iter().map(String::as_str).collect();
    let (leaks, gaps) = (
        listed.difference(&live).count(),
        live.difference(&listed).count(),
    );
    assert_eq!(
        (leaks, gaps),
        (0, 0),
        "subscriptions that nobody has, and that are missing"
    );
}
