//! Model connections: two pipes that delay, cut, stall and lose what is sent, and end with
//! FIN or RST.

use std::collections::VecDeque;

use super::rng::Rng;

/// Simulated time, in microseconds since the start.
pub type Time = u64;
/// A connection's number, never reused.
pub type ConnId = u64;

pub const MS: Time = 1_000;
pub const SECOND: Time = 1_000_000;

/// What travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Bytes(Vec<u8>),
    Fin,
    Reset,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the side that dialled.
    Up,
    /// To the side that dialled.
    Down,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Pipe {
    /// On its way, in order.
    pub in_flight: VecDeque<Segment>,
    /// Arrived, and not read yet.
    pub ready: VecDeque<Segment>,
    /// Bytes that the sender may have unread at once.
    pub window: usize,
    unread: usize,
    /// The sender wanted to write more than there was room for.
    pub was_full: bool,
    last_arrival: Time,
    pub stalled_until: Time,
    /// Nothing arrives, and nobody is told.
    pub lost: bool,
    /// FIN or RST was sent.
    pub ended: bool,
}

impl Pipe {
    /// Bytes that the sender may write now, where it has `wanted`. No silly windows: a little
    /// room is none.
    pub fn room(&mut self, wanted: usize) -> usize {
        let room = self.window.saturating_sub(self.unread);
        self.was_full |= room < wanted;
        if room < wanted.min(self.window / 4) {
            0
        } else {
            room
        }
    }

    /// Sends; returns the times at which something arrives.
    pub fn send(
        &mut self,
        segment: Segment,
        now: Time,
        rng: &mut Rng,
        link: &Weather,
    ) -> Vec<Time> {
        if self.ended {
            return Vec::new();
        }
        self.ended = !matches!(segment, Segment::Bytes(_));
        let parts = match segment {
            Segment::Bytes(bytes) => {
                self.unread += bytes.len();
                chop(bytes, rng, link.chop)
            }
            end => vec![end],
        };
        let mut arrivals = Vec::with_capacity(parts.len());
        for part in parts {
            let travel = link.latency + rng.below(link.jitter + 1);
            self.last_arrival = self.last_arrival.max(now + travel);
            self.in_flight.push_back(part);
            arrivals.push(self.last_arrival);
        }
        arrivals
    }

    /// The peer's process or host is gone: of what is on its way, a part arrives.
    pub fn cut(&mut self, end: Segment, now: Time, rng: &mut Rng, link: &Weather) -> Vec<Time> {
        let mut keep = match rng.below(3) {
            0 => 0,
            1 => self.in_flight_bytes(),
            _ => rng.below(self.in_flight_bytes() as u64 + 1) as usize,
        };
        self.in_flight
            .retain(|segment| matches!(segment, Segment::Bytes(_)));
        let dropped = self.in_flight_bytes() - keep;
        for segment in &mut self.in_flight {
            if let Segment::Bytes(bytes) = segment {
                let kept = bytes.len().min(keep);
                bytes.truncate(kept);
                keep -= kept;
            }
        }
        self.unread -= dropped;
        self.ended = false;
        self.send(end, now, rng, link)
    }

    /// Everything that was sent is readable at once.
    pub fn arrive_all(&mut self) {
        self.ready.append(&mut self.in_flight);
    }

    /// The receiver takes what has arrived, one segment at a time.
    pub fn read(&mut self) -> Option<Segment> {
        let segment = self.ready.pop_front()?;
        if let Segment::Bytes(bytes) = &segment {
            self.unread -= bytes.len();
        }
        Some(segment)
    }

    pub fn in_flight_bytes(&self) -> usize {
        let len = |segment: &Segment| match segment {
            Segment::Bytes(bytes) => bytes.len(),
            _ => 0,
        };
        self.in_flight.iter().map(len).sum()
    }
}

/// How a network is in this run.
#[derive(Clone, Debug)]
pub struct Weather {
    pub latency: Time,
    pub jitter: Time,
    /// Cuts that a write gets at most.
    pub chop: u64,
}

fn chop(bytes: Vec<u8>, rng: &mut Rng, cuts: u64) -> Vec<Segment> {
    let cuts = rng.below(cuts + 1);
    if cuts == 0 || bytes.len() < 2 {
        return vec![Segment::Bytes(bytes)];
    }
    let mut at: Vec<usize> = (0..cuts)
        .map(|_| rng.range(1, bytes.len() as u64 - 1) as usize)
        .collect();
    at.sort_unstable();
    at.dedup();
    at.push(bytes.len());
    let mut start = 0;
    at.into_iter()
        .map(|end| {
            let part = bytes[start..end].to_vec();
            start = end;
            Segment::Bytes(part)
        })
        .collect()
}

/// Who is at the two ends. The first named dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    ComponentToNatsmux { component: usize, session: usize },
    NatsmuxToBroker { link: u64, broker: usize },
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    pub ends: Ends,
    /// The host whose natsmux is at one of them.
    pub host: usize,
    pub up: Pipe,
    pub down: Pipe,
    /// A write to the side that was dialled fails at once.
    pub write_dead: bool,
}

impl Conn {
    pub fn new(ends: Ends, host: usize, up_window: usize, down_window: usize) -> Self {
        let pipe = |window| Pipe {
            window,
            ..Pipe::default()
        };
        Self {
            ends,
            host,
            up: pipe(up_window),
            down: pipe(down_window),
            write_dead: false,
        }
    }

    pub fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}
