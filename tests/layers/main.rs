//! Holds the table of layers in ARCHITECTURE.md against the code: who imports whom, that no two
//! modules need each other, and what a pure module must not know; test code inside the modules is left out. And the rules
//! that the code cites against `docs/RULES.md`.

mod circles;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use circles::circles;

const RULES: &str = include_str!("../../docs/RULES.md");

/// Module, and the modules of this crate that it may import.
const LAYERS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("queue", &[]),
    ("catch_panic", &[]),
    ("proto", &[]),
    ("config", &[]),
    ("telemetry", &[]),
    ("ledger", &["clock", "queue", "proto"]),
    ("identity", &["config", "proto"]),
    ("net", &["clock", "config", "telemetry"]),
    (
        "upstream",
        &[
            "clock",
            "queue",
            "catch_panic",
            "proto",
            "config",
            "telemetry",
            "ledger",
            "net",
            "identity",
        ],
    ),
    (
        "downstream",
        &[
            "clock",
            "catch_panic",
            "proto",
            "config",
            "telemetry",
            "ledger",
            "net",
            "identity",
            "upstream",
        ],
    ),
    ("admin", &["config", "net", "telemetry"]),
    ("control", &["config"]),
    (
        "daemon",
        &[
            "clock",
            "proto",
            "config",
            "telemetry",
            "ledger",
            "net",
            "identity",
            "upstream",
            "downstream",
            "admin",
            "control",
        ],
    ),
];

/// Files and folders without IO, clock, randomness or logging.
const PURE: &[&str] = &[
    "queue.rs",
    "catch_panic.rs",
    "proto",
    "ledger",
    "identity/mod.rs",
    "identity/credentials.rs",
    "identity/nkey.rs",
    "identity/password.rs",
    "identity/who.rs",
    "net/outbox.rs",
    "net/partial.rs",
    "upstream/brokers",
    "upstream/bus",
    "upstream/io/log_limit.rs",
    "upstream/io/shared_trunks.rs",
    "upstream/trunk",
    "downstream/pending_input.rs",
    "downstream/session",
];

/// What gives a pure module away.
const IMPURE: &[&str] = &[
    "tokio",
    "hyper",
    "socket2",
    "rustix",
    "tracing",
    "std::net",
    "std::fs",
    "std::thread",
    "std::sync",
    "std::env",
    "Instant::now",
    "SystemTime::now",
    "RandomState::new",
    "println!",
    "eprintln!",
    "info!(",
    "warn!(",
    "error!(",
    "debug!(",
    "trace!(",
];

/// A breach of a layer, as one line.
fn foreign_imports(module: &str, code: &str) -> Vec<String> {
    let allowed = LAYERS
        .iter()
        .find(|(name, _)| *name == module)
        .map_or(&[][..], |(_, allowed)| allowed);
    code.split("crate::")
        .skip(1)
        .filter_map(|rest| {
            rest.split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
        })
        .filter(|name| LAYERS.iter().any(|(known, _)| known == name))
        .filter(|name| *name != module && !allowed.contains(name))
        .map(|name| format!("{module} imports {name}"))
        .collect()
}

/// Words in `code` that no pure module may hold.
fn impurities(code: &str) -> Vec<&'static str> {
    let mut found: Vec<_> = IMPURE
        .iter()
        .copied()
        .filter(|word| code.contains(word))
        .collect();
    // `use crate::{a, b}` would hide an import from the check above.
    if code.contains("crate::{") {
        found.push("crate::{");
    }
    found
}

/// The part of a source file that is neither a comment nor its tests.
fn code_of(source: &str) -> String {
    let code = source
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or("");
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the source is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

/// Every file under `src` as its path below it and its code; files of tests are left out.
fn tree() -> Vec<(String, String)> {
    tree_of("src")
}

fn tree_of(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let shown = |path: &Path| {
        let below = path.strip_prefix(&root).expect("below the folder");
        below.to_string_lossy().into_owned()
    };
    sources(&root)
        .iter()
        .map(|path| (shown(path), fs::read_to_string(path).expect("readable")))
        .filter(|(path, _)| !path.ends_with("tests.rs") && !path.contains("/tests/"))
        .map(|(path, source)| (path, code_of(&source)))
        .collect()
}

#[test]
fn modules_import_only_lower_layers() {
    let mut breaches = Vec::new();
    for (path, code) in tree() {
        if let Some((module, _)) = path.split_once('/') {
            let found = foreign_imports(module, &code);
            breaches.extend(found.into_iter().map(|breach| format!("{path}: {breach}")));
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn no_module_needs_one_that_needs_it() {
    for folder in ["src", "benches/wire"] {
        let circles = circles(&tree_of(folder));
        assert!(circles.is_empty(), "{folder}: {circles:#?}");
    }
}

#[test]
fn pure_modules_know_no_io_clock_randomness_or_logging() {
    let mut breaches = Vec::new();
    let mut seen = 0;
    for (path, code) in tree() {
        let pure = |place: &&str| path == **place || path.starts_with(&format!("{place}/"));
        if PURE.iter().any(pure) {
            seen += 1;
            let found = impurities(&code);
            breaches.extend(found.into_iter().map(|word| format!("{path}: {word}")));
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
    assert!(seen > PURE.len(), "the list names files that are gone");
}

#[test]
fn every_module_has_its_layer() {
    let lib = include_str!("../../src/lib.rs");
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod "));
    let modules: Vec<_> = modules.map(|name| name.trim_end_matches(';')).collect();
    let layers: Vec<_> = LAYERS.iter().map(|(name, _)| *name).collect();
    let mut sorted = layers.clone();
    sorted.sort_unstable();
    assert_eq!(modules, sorted);
}

/// Rules and invariants that a text cites: `R7`, `I13`.
fn cited(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_number = |word: &&str| {
        let digits = word.strip_prefix(['R', 'I']).unwrap_or_default();
        (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    words.filter(is_number).map(str::to_owned).collect()
}

/// Rules and invariants that `docs/RULES.md` has: their numbers are bold where they stand.
fn defined(rules: &str) -> BTreeSet<String> {
    let bold = rules.split("**").skip(1).step_by(2);
    let first = bold.filter_map(|bold| bold.split(' ').next());
    first.flat_map(cited).collect()
}

#[test]
fn rules_are_cited_and_what_is_cited_is_a_rule() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut in_code = BTreeSet::new();
    for folder in ["src", "tests", "benches"] {
        for path in sources(&root.join(folder)) {
            if !path.ends_with("layers/main.rs") {
                in_code.extend(cited(&fs::read_to_string(path).expect("readable")));
            }
        }
    }
    assert_eq!(defined(RULES), in_code);
}

#[test]
fn files_that_the_rules_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut gone = Vec::new();
    for name in RULES.split('`').skip(1).step_by(2) {
        let (folder, name) = match name.split_once('/') {
            Some(("tests" | "benches", _)) => (root.to_owned(), name),
            Some(("ledger" | "upstream" | "net", _)) => (root.join("src"), name),
            _ => continue,
        };
        for path in alternatives(name) {
            if !folder.join(&path).exists() {
                gone.push(path);
            }
        }
    }
    assert!(gone.is_empty(), "{gone:?}");
}

/// `a/{b,c}.rs` as its paths.
fn alternatives(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else {
        return vec![name.to_owned()];
    };
    let (within, behind) = rest.split_once('}').expect("a closing brace");
    let all = within.split(',');
    all.map(|one| format!("{before}{one}{behind}")).collect()
}

#[test]
fn the_checks_find_what_they_are_for() {
    assert_eq!(
        foreign_imports(
            "ledger",
            "use crate::net::Outbox;\nuse crate::proto::client;"
        ),
        ["ledger imports net"]
    );
    let bad =
        "use tokio::time;\nlet now = Instant::now();\ninfo!(\"x\");\nuse std::net::TcpStream;";
    assert_eq!(
        impurities(bad),
        ["tokio", "std::net", "Instant::now", "info!("]
    );
    assert!(impurities("now: Instant").is_empty());
    let tested = "fn a() {}\n// tokio\n#[cfg(test)]\nmod tests {\n use tokio::x;\n}";
    assert_eq!(code_of(tested), "fn a() {}\n");
    let numbers = ["I4", "R1", "R3", "R36"].map(str::to_owned);
    let text = "(R1-R3), `I4 order` R36: not R, R007, XR5, I_6 nor R5a";
    assert_eq!(cited(text), numbers.into());
    assert_eq!(
        defined("**R1 PONG.** R2 **R9** x"),
        ["R1", "R9"].map(str::to_owned).into()
    );
    assert_eq!(alternatives("a/{b,c}.rs"), ["a/b.rs", "a/c.rs"]);
}
