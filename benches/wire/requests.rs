//! Requests at a steady rate, whatever the answers do: what is measured is the time from when a
//! request was due until its answer is there, so a stall counts for all that it kept waiting.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::cpu::Meter;
use crate::sample::Sample;
use crate::stream::Place;
use crate::ways::Site;

const RATE: u64 = 5_000;
const COUNT: u64 = 6_000;
/// The first answers pay for what is cold.
const WARM_UP: u64 = 1_000;
const PAYLOAD: usize = 128;
/// Before its time, a request is waited for awake.
const AWAKE: Duration = Duration::from_micros(60);

/// Plays requests from `ask_at` to a service at `answer_at`.
pub(crate) fn play(site: &Site, ask_at: &Place, answer_at: &Place) -> Sample {
    let mut service = Client::connect(answer_at);
    service.subscribe("service.*", 7);
    service.flush();
    let mut asker = Client::connect(ask_at);
    asker.subscribe("_INBOX.bench.*", 42);
    asker.flush();
    // Until a leaf node has told the broker of both.
    thread::sleep(Duration::from_millis(100));
    let answered = AtomicU64::new(0);
    let mut latencies = Vec::with_capacity(COUNT as usize);
    let meter = Meter::start(site);
    let start = Instant::now() + Duration::from_millis(5);
    let due = |number: u64| start + Duration::from_nanos(number * 1_000_000_000 / RATE);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut out = service.writer();
            let mut frames = Vec::new();
            service.set_patience(Duration::from_millis(500));
            service.receive(
                |request| {
                    let reply = request.reply.expect("a request");
                    frames.clear();
                    frames.extend_from_slice(b"PUB ");
                    frames.extend_from_slice(reply);
                    let _ = write!(frames, " {}\r\n", request.payload.len());
                    frames.extend_from_slice(request.payload);
                    frames.extend_from_slice(b"\r\n");
                    out.write_all(&frames).expect("the peer reads");
                },
                || is_over(&answered),
            );
        });
        let mut out = asker.writer();
        scope.spawn(move || {
            let payload = [b'x'; PAYLOAD - 8];
            for number in 0..COUNT {
                let at = due(number);
                let left = at.saturating_duration_since(Instant::now());
                thread::sleep(left.saturating_sub(AWAKE));
                while Instant::now() < at {
                    std::hint::spin_loop();
                }
                let mut frame = format!(
                    "PUB service.{} _INBOX.bench.{number} {PAYLOAD}\r\n",
                    number % 100
                )
                .into_bytes();
                frame.extend_from_slice(&number.to_le_bytes());
                frame.extend_from_slice(&payload);
                frame.extend_from_slice(b"\r\n");
                out.write_all(&frame).expect("the peer reads");
            }
        });
        asker.set_patience(Duration::from_millis(1_000));
        let mut came = 0;
        asker.receive(
            |answer| {
                let number = answer.payload[..8].try_into().expect("8 bytes");
                let number = u64::from_le_bytes(number);
                came += 1;
                answered.store(came, Ordering::Relaxed);
                if number >= WARM_UP {
                    let took = Instant::now().saturating_duration_since(due(number));
                    latencies.push(took.as_nanos() as f64 / 1_000.0);
                }
            },
            || is_over(&answered),
        );
    });
    let used = meter.stop();
    let lost = COUNT - answered.load(Ordering::Relaxed);
    Sample::latency(latencies, COUNT, used).with_faults(lost, 0)
}

fn is_over(answered: &AtomicU64) -> bool {
    answered.load(Ordering::Relaxed) >= COUNT
}
