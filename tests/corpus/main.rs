//! The recorded corpus: what brokers of two versions answer to some two hundred small conversations.
//!
//! `cases.toml` is written by hand, `recorded-*.toml` are what the brokers said. The tests here hold the records
//! against live brokers, and `scanner.rs` holds the parser alone against them. `through.rs` holds natsmux in front of a
//! broker against the record of that broker; it joins with `mod through;` as soon as the daemon runs.
//!
//! Brokers are found through `NATS_SERVER_29` and `NATS_SERVER_215`, else on the PATH and below `tools` in Cargo's target folder. After
//! a change of `cases.toml`:
//!
//! ```text
//! CORPUS_RECORD=1 cargo test --test corpus answers_as_recorded
//! ```

mod broker;
mod case;
mod play;
mod record;
mod scanner;
mod through;

use std::collections::BTreeMap;
use std::env;
use std::net::SocketAddr;

use broker::{Running, V2_9, V2_15, Version};
use case::{Broker, Case, escaped};
use play::{Outcome, play};

#[test]
fn nats_server_2_9_answers_as_recorded() {
    live_broker_answers_as_recorded(&V2_9);
}

#[test]
fn nats_server_2_15_answers_as_recorded() {
    live_broker_answers_as_recorded(&V2_15);
}

fn live_broker_answers_as_recorded(version: &Version) {
    let brokers = [Broker::Open, Broker::Auth, Broker::Limits]
        .map(|kind| (kind, Running::start(version, kind)));
    let addrs: BTreeMap<_, _> = brokers
        .iter()
        .map(|(kind, running)| (*kind, running.addr))
        .collect();
    let cases = case::all();
    if env::var_os("CORPUS_RECORD").is_some() {
        let outcome = |case: &Case| {
            let outcome = play(addrs[&case.broker], case);
            (
                case.name.clone(),
                outcome.unwrap_or_else(|error| panic!("{}: {error}", case.name)),
            )
        };
        record::write(version, &cases.iter().map(outcome).collect::<Vec<_>>());
    }
    let differences = compare(&cases, &addrs, &record::read(version));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Plays all `cases` and says where the outcome differs from the record.
fn compare(
    cases: &[Case],
    addrs: &BTreeMap<Broker, SocketAddr>,
    record: &record::Record,
) -> Vec<String> {
    let shown = |outcome: &Outcome| {
        let end = if outcome.closed { "closed" } else { "open" };
        format!("{end} after {}", escaped(&outcome.output))
    };
    let mut differences = Vec::new();
    for case in cases {
        let expected = record.get(&case.name);
        let wanted = expected.map_or_else(|| "nothing on record".into(), shown);
        match play(addrs[&case.broker], case) {
            Ok(outcome) if Some(&outcome) == expected => {}
            Ok(outcome) => differences.push(format!(
                "{}\n  wanted {wanted}\n  got    {}",
                case.name,
                shown(&outcome)
            )),
            Err(error) => differences.push(format!(
                "{}\n  wanted {wanted}\n  got    {error}",
                case.name
            )),
        }
    }
    differences
}
