//! What one subscriber got from one publisher, and what is wrong with it.

use std::collections::HashMap;

/// Shorter silences aren't written down.
const GAP_FLOOR_US: u64 = 5_000;
/// A bound on what a run may write down about one stream.
const GAPS_MOST: usize = 200_000;

/// A silence between two messages of one publisher at one subscriber, in microseconds since
/// the load began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// The messages of one publisher at one subscriber.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// How often each sequence number came.
    seen: Vec<u8>,
    /// One more than the highest sequence number that came.
    pub(crate) next: u64,
    duplicates: u64,
    /// First arrivals after a higher number had arrived.
    late: u64,
    last_at: Option<u64>,
    pub(crate) gaps: Vec<Gap>,
}

impl Stream {
    fn arrive(&mut self, sequence: u64, at: u64) {
        let index = usize::try_from(sequence).expect("a sequence number fits");
        if index >= self.seen.len() {
            self.seen.resize(index + 1, 0);
        }
        if self.seen[index] > 0 {
            self.duplicates += 1;
        } else if sequence < self.next {
            self.late += 1;
        }
        self.seen[index] = self.seen[index].saturating_add(1);
        self.next = self.next.max(sequence + 1);
        let from = self.last_at.replace(at).unwrap_or(at);
        if at - from >= GAP_FLOOR_US && self.gaps.len() < GAPS_MOST {
            self.gaps.push(Gap { from, to: at });
        }
    }
}

/// Everything that one subscriber got.
#[derive(Debug, Default)]
pub(crate) struct Track {
    pub(crate) streams: HashMap<u64, Stream>,
    /// When the first message came that was sent after `watch_from`.
    watch_from: Option<u64>,
    pub(crate) watch_hit: Option<u64>,
}

impl Track {
    /// A payload `publisher sequence sent padding` that came.
    pub(crate) fn message(&mut self, payload: &[u8], at: u64) {
        let mut words = payload
            .split(|byte| *byte == b' ')
            .map(|word| std::str::from_utf8(word).ok()?.parse::<u64>().ok());
        let mut word = || words.next().flatten().expect("a payload of the load");
        let (publisher, sequence, sent) = (word(), word(), word());
        self.streams
            .entry(publisher)
            .or_default()
            .arrive(sequence, at);
        if self.watch_hit.is_none() && self.watch_from.is_some_and(|from| sent > from) {
            self.watch_hit = Some(at);
        }
    }

    /// Liveness for the first message that is sent after `from`.
    pub(crate) fn watch(&mut self, from: u64) {
        self.watch_from = Some(from);
        self.watch_hit = None;
    }

    /// How many of a publisher's messages from number `from` to before `published` didn't come.
    pub(crate) fn missing_between(&self, publisher: u64, from: u64, published: u64) -> u64 {
        let seen = |sequence: u64| {
            let index = usize::try_from(sequence).ok()?;
            self.streams.get(&publisher)?.seen.get(index).copied()
        };
        (from..published)
            .filter(|sequence| seen(*sequence).unwrap_or(0) == 0)
            .count() as u64
    }

    /// How the messages of a publisher that has sent `published` arrived.
    pub(crate) fn verdict(&self, publisher: u64, published: u64) -> Verdict {
        let nothing = Stream::default();
        let stream = self.streams.get(&publisher).unwrap_or(&nothing);
        let came = stream.seen.iter().filter(|count| **count > 0).count() as u64;
        Verdict {
            published,
            missing: published.saturating_sub(came),
            duplicates: stream.duplicates,
            late: stream.late,
        }
    }
}

/// How the messages of a publisher that has sent `published` arrived at the members of a queue
/// group together. Their order among each other isn't known.
pub(crate) fn shared_verdict(tracks: &[&Track], publisher: u64, published: u64) -> Verdict {
    let streams = tracks
        .iter()
        .filter_map(|track| track.streams.get(&publisher));
    let streams: Vec<&Stream> = streams.collect();
    let mut verdict = Verdict {
        published,
        ..Verdict::default()
    };
    for index in 0..usize::try_from(published).expect("a count fits") {
        let seen = |stream: &&Stream| u64::from(stream.seen.get(index).copied().unwrap_or(0));
        match streams.iter().map(seen).sum::<u64>() {
            0 => verdict.missing += 1,
            times => verdict.duplicates += times - 1,
        }
    }
    verdict
}

/// Sums over streams.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) published: u64,
    pub(crate) missing: u64,
    pub(crate) duplicates: u64,
    /// Out of order.
    pub(crate) late: u64,
}

impl Verdict {
    pub(crate) fn add(&mut self, other: Self) {
        self.published += other.published;
        self.missing += other.missing;
        self.duplicates += other.duplicates;
        self.late += other.late;
    }
}

#[test]
fn the_judge_sees_what_a_group_gets_twice_or_never() {
    let [mut one, mut two] = [Track::default(), Track::default()];
    one.message(b"7 0 10 x", 1_000);
    one.message(b"7 2 10 x", 2_000);
    two.message(b"7 2 10 x", 3_000);
    let verdict = shared_verdict(&[&one, &two], 7, 4);
    assert_eq!((verdict.missing, verdict.duplicates), (2, 1));
}

#[test]
fn the_judge_sees_what_is_missing_double_late_and_silent() {
    let mut track = Track::default();
    track.watch(15);
    for (text, at) in [
        ("7 0 10 x", 1_000),
        ("7 2 12 x", 2_000),
        ("7 1 16 x", 3_000),
        ("7 2 12 x", 9_000),
    ] {
        track.message(text.as_bytes(), at);
    }
    let wrong = Verdict {
        published: 5,
        missing: 2,
        duplicates: 1,
        late: 1,
    };
    assert_eq!(track.verdict(7, 5), wrong);
    let silence = Gap {
        from: 3_000,
        to: 9_000,
    };
    assert_eq!(track.streams[&7].gaps, [silence]);
    assert_eq!(track.watch_hit, Some(3_000));
    assert_eq!(track.verdict(8, 3).missing, 3, "of an unknown publisher");
}
