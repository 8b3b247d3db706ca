//! Many components at once, on a thread of their own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time;

use crate::judge::{Track, Verdict, shared_verdict};
use crate::part::{Part, Player, Publishes, Stage, State};
use crate::support::{PATIENCE, wait_for};

/// How long the last messages may take when nothing is killed any more.
const SETTLING: Duration = Duration::from_secs(5);
/// Components that connect at the same time.
const CONNECTING: usize = 50;
/// What may still come through a broker that is just going away.
const GOING_US: u64 = 5_000;
const CLOSING_POLL: Duration = Duration::from_millis(20);

/// A running load. Dropping it ends it.
pub(crate) struct Load {
    parts: Vec<Part>,
    states: Vec<Arc<State>>,
    stage: Arc<Stage>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Connects all, and returns when the subscriptions of all are in place. Nothing is
    /// published yet.
    pub(crate) fn start(parts: Vec<Part>) -> Self {
        let stage = Arc::new(Stage {
            start: Instant::now(),
            publishing: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let states: Vec<Arc<State>> = parts.iter().map(|_| Arc::default()).collect();
        let (ready, connected) = mpsc::channel();
        let (cast, played) = (parts.clone(), Arc::clone(&stage));
        let kept = states.clone();
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async {
                let players = connect_all(cast, &kept, &played).await;
                let Ok(()) = ready.send(()) else { return };
                let mut playing: JoinSet<()> = players.into_iter().map(Player::play).collect();
                while !played.over.load(Ordering::Relaxed) {
                    time::sleep(CLOSING_POLL).await;
                }
                playing.abort_all();
            });
        });
        let patience = PATIENCE * 4;
        let connected = connected.recv_timeout(patience);
        connected.expect("all components connect");
        Self {
            parts,
            states,
            stage,
            thread: Some(thread),
        }
    }

    /// Microseconds since the load began.
    pub(crate) fn now(&self) -> u64 {
        self.stage.now()
    }

    pub(crate) fn publish(&self, on: bool) {
        self.stage.publishing.store(on, Ordering::Relaxed);
    }

    /// Messages that all publishers have written.
    pub(crate) fn published(&self) -> u64 {
        let states = self.states.iter();
        states.map(|s| s.published.load(Ordering::Relaxed)).sum()
    }

    /// Messages that one component has written whole.
    pub(crate) fn published_by(&self, part: usize) -> u64 {
        self.states[part].published.load(Ordering::Relaxed)
    }

    pub(crate) fn with_track<T>(&self, part: usize, look: impl FnOnce(&mut Track) -> T) -> T {
        let track = self.states[part].track.lock();
        look(&mut track.expect("no panic with this lock held"))
    }

    /// Waits until every publisher's messages from after this call have come to everyone who
    /// must get them.
    pub(crate) fn wait_flow(&self, when: &str) {
        let now = self.now();
        let goals: Vec<u64> = self.counts();
        for part in 0..self.parts.len() {
            for &publisher in &self.parts[part].expects {
                let goal = goals[place(publisher)] + 1;
                let what = format!("message {goal} of {publisher} at {part} {when}, from {now} µs");
                wait_for(&what, PATIENCE, || {
                    self.check_faults();
                    (self.next(part, publisher) > goal).then_some(())
                });
            }
        }
    }

    /// Microseconds until a message that is sent from now on comes to `part`.
    pub(crate) fn first_after(&self, part: usize) -> u64 {
        let now = self.now();
        self.with_track(part, |track| track.watch(now + GOING_US));
        let hit = wait_for("a message through the next broker", PATIENCE, || {
            self.with_track(part, |track| track.watch_hit)
        });
        hit - now
    }

    /// Stops publishing and waits for the last message of every publisher, everywhere. One
    /// that doesn't come shows as missing.
    pub(crate) fn settle(&self) {
        self.publish(false);
        // A publish that has begun is counted when it is written.
        thread::sleep(Duration::from_millis(50));
        let deadline = Instant::now() + SETTLING;
        while !self.is_settled() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn is_settled(&self) -> bool {
        let counts = self.counts();
        self.pairs()
            .all(|(part, publisher)| self.next(part, publisher) == counts[place(publisher)])
    }

    /// All that `parts` should have got.
    pub(crate) fn verdict(&self, parts: impl IntoIterator<Item = usize>) -> Verdict {
        let counts = self.counts();
        let mut sum = Verdict::default();
        for part in parts {
            for &publisher in &self.parts[part].expects {
                let count = counts[place(publisher)];
                sum.add(self.with_track(part, |track| track.verdict(publisher, count)));
            }
        }
        sum
    }

    /// Messages of each publisher from its number in `from` to before that in `to` that `part`
    /// didn't get.
    pub(crate) fn missing_between(&self, part: usize, from: &[u64], to: &[u64]) -> u64 {
        let publishers = self.parts[part].expects.iter();
        let missing = publishers.map(|&publisher| {
            let (from, to) = (from[place(publisher)], to[place(publisher)]);
            self.with_track(part, |track| track.missing_between(publisher, from, to))
        });
        missing.sum()
    }

    /// All that the members of a queue group should have got together.
    pub(crate) fn shared_verdict(&self, members: &[usize], publishers: &[u64]) -> Verdict {
        let counts = self.counts();
        let tracks = members.iter().map(|&part| self.states[part].track.lock());
        let tracks: Vec<_> = tracks
            .map(|track| track.expect("no panic with this lock held"))
            .collect();
        let tracks: Vec<&Track> = tracks.iter().map(|track| &**track).collect();
        let mut sum = Verdict::default();
        for &publisher in publishers {
            sum.add(shared_verdict(&tracks, publisher, counts[place(publisher)]));
        }
        sum
    }

    /// Components whose connection ended or showed something strange.
    pub(crate) fn faults(&self) -> Vec<String> {
        let states = self.states.iter().enumerate();
        states
            .filter_map(|(part, state)| {
                let fault = state.fault.lock().expect("no panic with this lock held");
                fault.as_ref().map(|fault| format!("{part}: {fault}"))
            })
            .collect()
    }

    pub(crate) fn check_faults(&self) {
        let faults = self.faults();
        assert!(faults.is_empty(), "disconnects: {faults:?}");
    }

    /// The longest that a PONG took, in microseconds.
    pub(crate) fn longest_pong(&self) -> u64 {
        let states = self.states.iter();
        let longest = states.map(|s| s.longest_pong.load(Ordering::Relaxed)).max();
        longest.unwrap_or(0)
    }

    pub(crate) fn counts(&self) -> Vec<u64> {
        let states = self.states.iter();
        states
            .map(|s| s.published.load(Ordering::Relaxed))
            .collect()
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, u64)> {
        let parts = self.parts.iter().enumerate();
        parts.flat_map(|(index, part)| part.expects.iter().map(move |p| (index, *p)))
    }

    fn next(&self, part: usize, publisher: u64) -> u64 {
        self.with_track(part, |track| {
            track.streams.get(&publisher).map_or(0, |s| s.next)
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stage.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has failed the test already.
            let _ = thread.join();
        }
    }
}

async fn connect_all(parts: Vec<Part>, states: &[Arc<State>], stage: &Arc<Stage>) -> Vec<Player> {
    let mut waiting: Vec<_> = parts.into_iter().zip(states).enumerate().collect();
    waiting.reverse();
    let mut connecting = JoinSet::new();
    let mut players = Vec::new();
    loop {
        while connecting.len() < CONNECTING
            && let Some((index, (part, state))) = waiting.pop()
        {
            let (stage, state) = (Arc::clone(stage), Arc::clone(state));
            connecting.spawn(Player::connect(index as u64, part, stage, state));
        }
        let Some(connected) = connecting.join_next().await else {
            return players;
        };
        let player = connected.expect("no panic while connecting");
        players.push(player.expect("a component connects"));
    }
}

fn place(publisher: u64) -> usize {
    usize::try_from(publisher).expect("a publisher's place")
}

/// `count` components at `address` that send `rate` messages a second together, each to the
/// next one.
pub(crate) fn ring(address: &str, count: u64, rate: u64, size: usize) -> Vec<Part> {
    let interval = Duration::from_secs_f64(count as f64 / rate as f64);
    (0..count)
        .map(|index| {
            let before = (index + count - 1) % count;
            Part {
                address: address.to_owned(),
                group: None,
                subjects: vec![format!("load.{before}")],
                expects: vec![before],
                publishes: Some(Publishes {
                    subject: format!("load.{index}"),
                    interval,
                    burst: 1,
                    size,
                }),
                ping: None,
            }
        })
        .collect()
}

/// A component at `address`, usually a broker that is never killed, that gets all of `parts`.
pub(crate) fn observer(address: &str, parts: &[Part]) -> Part {
    let publishers = parts.iter().enumerate();
    let publishers = publishers.filter(|(_, part)| part.publishes.is_some());
    Part {
        address: address.to_owned(),
        subjects: vec!["load.>".to_owned()],
        expects: publishers.map(|(index, _)| index as u64).collect(),
        ..Part::default()
    }
}
