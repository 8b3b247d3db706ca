//! What is played.

use crate::messages::{self, Shape};
use crate::sample::Sample;
use crate::stream::Place;
use crate::ways::Site;
use crate::{connect, idle, requests};

/// What a scenario's figure is, and which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A second; more is better.
    PerSecond,
    /// Microseconds, median; less is better.
    Microseconds,
    /// Bytes for each session; less is better.
    Bytes,
}

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) play: Box<dyn Fn(&Site) -> Sample>,
}

pub(crate) const ONE_TO_ONE: Shape = Shape {
    publishers: 1,
    receivers: 1,
    to_all: false,
    equal_sids: false,
    payload: 128,
    burst: usize::MAX,
    threads: 1,
};

/// Both ends through the proxy.
fn shaped(name: &'static str, shape: Shape) -> Scenario {
    to(name, shape, Site::near)
}

/// Publishers through the proxy, receivers at `receive_at`.
fn to(name: &'static str, shape: Shape, receive_at: fn(&Site) -> Place) -> Scenario {
    let play = move |site: &Site| messages::play(site, &site.near(), &receive_at(site), &shape);
    Scenario {
        name,
        unit: Unit::PerSecond,
        play: Box::new(play),
    }
}

pub(crate) fn all() -> Vec<Scenario> {
    let fan_in = Shape {
        publishers: 1_000,
        burst: 1,
        threads: 2,
        ..ONE_TO_ONE
    };
    let fan_out = Shape {
        receivers: 100,
        to_all: true,
        ..ONE_TO_ONE
    };
    let scenario = |name, unit, play: fn(&Site) -> Sample| Scenario {
        name,
        unit,
        play: Box::new(play),
    };
    vec![
        shaped(
            "1 to 1, 16 B",
            Shape {
                payload: 16,
                ..ONE_TO_ONE
            },
        ),
        shaped("1 to 1, 128 B", ONE_TO_ONE),
        shaped(
            "1 to 1, 1 KiB",
            Shape {
                payload: 1024,
                ..ONE_TO_ONE
            },
        ),
        shaped(
            "1 to 1, 64 KiB",
            Shape {
                payload: 64 * 1024,
                ..ONE_TO_ONE
            },
        ),
        shaped(
            "4 to 4, 128 B",
            Shape {
                publishers: 4,
                receivers: 4,
                threads: 4,
                ..ONE_TO_ONE
            },
        ),
        shaped("fan-in of 1,000, 128 B", fan_in),
        to("fan-in of 1,000, receiver at the broker", fan_in, Site::far),
        shaped(
            "fan-out to 100, equal sids",
            Shape {
                equal_sids: true,
                ..fan_out
            },
        ),
        shaped("fan-out to 100, different sids", fan_out),
        scenario("request/reply, 5,000/s", Unit::Microseconds, |site| {
            requests::play(site, &site.near(), &site.near())
        }),
        scenario(
            "request/reply, service at the broker",
            Unit::Microseconds,
            |site| requests::play(site, &site.near(), &site.far()),
        ),
        scenario("connect, PING, PONG, close", Unit::PerSecond, connect::play),
        scenario("idle session, 10 subscriptions", Unit::Bytes, |site| {
            idle::play(site, false)
        }),
        scenario("idle session behind 16 KiB", Unit::Bytes, |site| {
            idle::play(site, true)
        }),
    ]
}
