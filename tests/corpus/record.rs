//! What brokers answered: one generated file per version, read back for comparison.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use crate::broker::Version;
use crate::case::{escaped, unescaped};
use crate::play::Outcome;

/// The outcome of every case at one version, by the name of the case.
pub(crate) type Record = BTreeMap<String, Outcome>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    output: String,
    closed: bool,
}

/// Reads the record of `version`.
pub(crate) fn read(version: &Version) -> Record {
    let text = fs::read_to_string(path(version)).expect("the record is committed beside the test");
    let written: BTreeMap<String, Written> =
        toml::from_str(&text).expect("a record is well-formed");
    let outcome = |written: Written| Outcome {
        output: unescaped(&written.output),
        closed: written.closed,
    };
    written
        .into_iter()
        .map(|(name, written)| (name, outcome(written)))
        .collect()
}

/// Replaces the record of `version`, with the cases in the order given.
pub(crate) fn write(version: &Version, outcomes: &[(String, Outcome)]) {
    let mut text = format!(
        "# What nats-server {} answered to cases.toml; INFO left out. Generated, don't edit:\n\
         #     CORPUS_RECORD=1 cargo test --test corpus answers_as_recorded\n",
        version.number
    );
    for (name, outcome) in outcomes {
        let output = escaped(&outcome.output);
        write!(
            text,
            "\n[{name}]\noutput = '''{output}'''\nclosed = {}\n",
            outcome.closed
        )
        .expect("writing to a string cannot fail");
    }
    fs::write(path(version), text).expect("the record's directory is writable");
}

fn path(version: &Version) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(version.record)
}
