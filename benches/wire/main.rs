//! How fast NATS is through natsmux, beside a direct connection, HAProxy and a leaf node.
//!
//! `make bench`, which installs what it needs. Every round plays every scenario on every way, in
//! an order that rotates; what counts is the ratio to the direct connection, or to HAProxy, *of
//! the same round*, since machines are noisy. The load generator is part of this process; how
//! busy it was is in the table, since it shares the cores with what it measures.
//!
//! Arguments: `--rounds 5`, `--only SUBSTRING` (of a scenario's name), `--ways direct,natsmux`.
//! Results: a table on stdout; `bench.json` and `bench.svg` in cargo's target folder.

mod client;
mod connect;
mod cpu;
mod idle;
mod messages;
mod plot;
mod requests;
mod results;
mod scenarios;
#[path = "../../tests/support/mod.rs"]
mod support;
mod ways;

use std::env;
use std::fs;
use std::process::ExitCode;

use results::Results;
use ways::Way;

const ROUNDS: usize = 5;

/// What was asked for.
struct Arguments {
    rounds: usize,
    only: String,
    ways: Vec<Way>,
}

impl Arguments {
    fn parse() -> Result<Self, String> {
        let mut parsed = Self {
            rounds: ROUNDS,
            only: String::new(),
            ways: Way::ALL.to_vec(),
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
                "--only" => parsed.only = value,
                "--ways" => {
                    let ways = value.split(',').map(Way::parse);
                    parsed.ways = ways.collect::<Option<_>>().ok_or(format!(
                        "--ways {value}: known are direct, natsmux, shared, haproxy and leaf"
                    ))?;
                }
                _ => return Err(format!("unknown argument {name}")),
            }
        }
        Ok(parsed)
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
    let scenarios = scenarios::all();
    let chosen: Vec<_> = scenarios
        .iter()
        .filter(|scenario| scenario.name.contains(&arguments.only))
        .collect();
    let mut results = Results::default();
    for round in 0..arguments.rounds {
        for scenario in &chosen {
            for turn in 0..arguments.ways.len() {
                let way = arguments.ways[(round + turn) % arguments.ways.len()];
                // Fresh processes: what one scenario leaves behind is no other's cost.
                let site = ways::Site::start(way);
                let sample = (scenario.play)(&site);
                eprintln!("round {round}: {}, {}: {sample}", scenario.name, way.name());
                results.add(scenario.name, way, sample);
            }
        }
    }
    println!("{}", results.table(&chosen));
    let folder = support::target_dir();
    let files = [
        ("bench.json", results.json(&chosen)),
        ("bench.svg", plot::draw(&results, &chosen)),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        if let Err(error) = fs::write(&path, text) {
            eprintln!("bench: {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
