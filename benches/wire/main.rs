//! How fast NATS is through natsmux, beside a direct connection, HAProxy and a leaf node.
//!
//! `make bench`, which installs what it needs. Every round plays every scenario on every way, in
//! an order that rotates; what counts is the ratio to the direct connection, or to HAProxy, *of
//! the same round*, since machines are noisy. The load generator is part of this process; how
//! busy it was is in the table, since it shares the cores with what it measures.
//!
//! Arguments: `--rounds 5`, `--only SUBSTRING` (of a scenario's name), `--ways direct,natsmux`,
//! `--tls ecdsa` or `--tls rsa` (the broker speaks TLS, and so does who connects to it: natsmux, or
//! the generator itself), `--growth yes` (curves over the numbers of sessions, subscriptions and subscribers, instead).
//! Results: a table on stdout; `bench.json` and `bench.svg`, or `growth.json` and `growth.svg`, in
//! cargo's target folder.

mod client;
mod connect;
mod cpu;
mod growth;
mod idle;
mod messages;
mod plot;
mod requests;
mod results;
mod sample;
mod scenarios;
mod stream;
#[path = "../../tests/support/mod.rs"]
mod support;
mod ways;

use std::env;
use std::fs;
use std::process::ExitCode;

use growth::Curve;
use results::Results;
use rustix::process::{Resource, getrlimit, setrlimit};
use scenarios::Scenario;
use support::KeyKind;
use ways::Way;

const ROUNDS: usize = 5;

/// What was asked for.
struct Arguments {
    rounds: usize,
    only: String,
    ways: Option<Vec<Way>>,
    growth: bool,
    tls: Option<KeyKind>,
}

impl Arguments {
    fn parse() -> Result<Self, String> {
        let mut parsed = Self {
            rounds: ROUNDS,
            only: String::new(),
            ways: None,
            growth: false,
            tls: None,
        };
        let mut arguments = env::args().skip(1);
        while let Some(name) = arguments.next() {
            // Cargo says that this is a bench.
            if name == "--bench" {
                continue;
            }
            let value = arguments.next().ok_or(format!("{name} needs a value"))?;
            match name.as_str() {
                "--rounds" => {
                    let rounds = value.parse().ok().filter(|rounds| *rounds > 0);
                    parsed.rounds = rounds.ok_or(format!("--rounds {value}: not a count"))?;
                }
                "--tls" => parsed.tls = key_kind(&value)?,
                "--growth" => parsed.growth = value == "yes",
                "--only" => parsed.only = value,
                "--ways" => {
                    let ways = value.split(',').map(Way::parse);
                    let ways = ways.collect::<Option<_>>().ok_or(format!(
                        "--ways {value}: known are direct, natsmux, shared, haproxy and leaf"
                    ))?;
                    parsed.ways = Some(ways);
                }
                _ => return Err(format!("unknown argument {name}")),
            }
        }
        Ok(parsed)
    }
}

/// The key of the broker's certificate; none for an empty word.
fn key_kind(word: &str) -> Result<Option<KeyKind>, String> {
    match word {
        "" => Ok(None),
        "ecdsa" => Ok(Some(KeyKind::P256)),
        "rsa" => Ok(Some(KeyKind::Rsa)),
        _ => Err(format!("--tls {word}: known are ecdsa and rsa")),
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("bench: {message}");
            return ExitCode::from(2);
        }
    };
    raise_open_files();
    let (scenarios, curves) = if arguments.growth {
        (Vec::new(), growth::all())
    } else {
        (scenarios::all(), Vec::new())
    };
    let all = scenarios
        .iter()
        .chain(curves.iter().flat_map(Curve::scenarios));
    let chosen: Vec<_> = all
        .filter(|scenario| scenario.name.contains(&arguments.only))
        .collect();
    let default = if arguments.tls.is_some() {
        ways::IN_TLS.to_vec()
    } else if arguments.growth {
        growth::WAYS.to_vec()
    } else {
        Way::ALL.to_vec()
    };
    let ways = arguments.ways.unwrap_or(default);
    let results = play(&chosen, &ways, arguments.rounds, arguments.tls);
    println!("{}", results.table(&chosen));
    let (name, drawn) = if arguments.growth {
        ("growth", growth::draw(&results, &curves))
    } else {
        ("bench", plot::draw(&results, &chosen))
    };
    let folder = support::target_dir();
    for (kind, text) in [("json", results.json(&chosen)), ("svg", drawn)] {
        let path = folder.join(format!("{name}.{kind}"));
        if let Err(error) = fs::write(&path, text) {
            eprintln!("bench: {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn play(chosen: &[&Scenario], ways: &[Way], rounds: usize, tls: Option<KeyKind>) -> Results {
    let mut results = Results::default();
    for round in 0..rounds {
        for scenario in chosen {
            for turn in 0..ways.len() {
                let way = ways[(round + turn) % ways.len()];
                // Fresh processes: what one scenario leaves behind is no other's cost.
                let site = ways::Site::start(way, tls);
                let sample = (scenario.play)(&site);
                eprintln!("round {round}: {}, {}: {sample}", scenario.name, way.name());
                results.add(scenario.name, way, sample);
            }
        }
    }
    results
}

/// For 9,000 clients, and for what is started from here.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        eprintln!("bench: the limit of open files stays: {error}");
    }
}
