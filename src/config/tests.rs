//! The file format as a whole: what is accepted beside what is refused.

use super::listing::Listing;
use super::walk;
use super::*;

const REFERENCE: &str = include_str!("../../config/natsmux.toml");
const CLOUD_FOUNDRY: &str = include_str!("../../config/cloudfoundry-v1.toml");

/// A file with one good bus, `head` before it and `tail` inside of it.
fn file(head: &str, tail: &str) -> String {
    format!("{head}\n[[bus]]\nname = \"a\"\nbrokers = [\"10.0.0.1\"]\n{tail}\n")
}

fn parsed(head: &str, tail: &str) -> Config {
    match Config::parse(&file(head, tail)) {
        Ok(config) => config,
        Err(error) => panic!("refused: {error}"),
    }
}

fn refusal(text: &str) -> String {
    match Config::parse(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn reference_file_equals_the_defaults() {
    let config = Config::parse(REFERENCE).expect("the file is good");
    let brokers = config.buses[0].brokers.clone();
    assert!(!brokers.is_empty());
    let defaults = Config {
        buses: vec![BusConfig::new("default", brokers)],
        ..Config::default()
    };
    assert_eq!(config, defaults);
}

#[test]
fn reference_file_has_every_key_of_the_code() {
    let table: toml::Table = REFERENCE.parse().expect("the file is TOML");
    let bus = &table["bus"][0];
    let mut config = Config::default();
    let mut one = BusConfig::new("x", Vec::new());
    let mut keys: [Listing; 6] = Default::default();
    let [top, log, limits, modes, timings, bus_limits] = &mut keys;
    let walked = walk::top(top, &mut config)
        .and(walk::log(log, &mut config.log))
        .and(walk::limits(limits, &mut config.limits))
        .and(walk::bus(modes, &mut one))
        .and(walk::timings(timings, &mut one.timings))
        .and(walk::bus_limits(bus_limits, &mut one.limits));
    assert!(walked.is_ok());
    let whole = toml::Value::Table(table.clone());
    let tables = [
        (&whole, &keys[0]),
        (&table["log"], &keys[1]),
        (&table["limits"], &keys[2]),
        (bus, &keys[3]),
        (&bus["timings"], &keys[4]),
        (&bus["limits"], &keys[5]),
    ];
    for (written, listing) in tables {
        assert!(!listing.0.is_empty());
        for (key, _) in &listing.0 {
            assert!(written.get(key).is_some(), "{key} is not in the file");
        }
    }
    for key in ["name", "listen", "brokers"] {
        assert!(bus.get(key).is_some(), "{key} is not in the file");
    }
    assert!(whole.get("name").is_some() && table["http"].get("listen").is_some());
}

#[test]
fn cloud_foundry_has_two_buses_on_ports_of_their_own() {
    let config = Config::parse(CLOUD_FOUNDRY).expect("the file is good");
    let names: Vec<&str> = config.buses.iter().map(|bus| bus.name.as_str()).collect();
    assert_eq!(names, ["control", "services"]);
}

#[test]
fn the_file_for_cloud_foundry_of_today_has_routers_see_an_outage() {
    let text = include_str!("../../config/cloudfoundry.toml");
    let bus = &Config::parse(text).expect("the file is good").buses[0];
    assert_eq!(
        bus.timings.reveal_outage_after,
        std::time::Duration::from_secs(60)
    );
    assert_eq!(bus.admit, Admit::Verified);
    let tls = bus.tls.as_ref().expect("it has client certificates");
    assert!(tls.files.pair.is_some() && tls.mode == TlsMode::Required);
    assert_eq!(tls.server_name.as_deref(), Some("nats.service.cf.internal"));
}

#[test]
fn the_recipes_of_the_documentation_are_good() {
    let text = include_str!("../../docs/identity.md");
    let blocks = text.split("```toml\n").skip(1);
    let mut identities = 0;
    for block in blocks.filter_map(|rest| rest.split_once("```")) {
        let mut block = block.0.to_owned();
        if !block.contains("[[bus]]") {
            block.insert_str(0, "[[bus]]\n");
        }
        for (key, line) in [
            ("\nname = \"default\"", "[[bus]]\nname = \"default\"\n"),
            ("\nbrokers = ", "[[bus]]\nbrokers = [\"10.0.0.1\"]\n"),
        ] {
            if !block.contains(key) {
                block = block.replace("[[bus]]\n", line);
            }
        }
        let config = Config::parse(&block).unwrap_or_else(|error| panic!("{error}: {block}"));
        identities += config.buses[0].identities.len();
    }
    assert!(identities >= 6, "{identities}");
}

#[test]
fn an_outage_is_told_of_after_brokers_were_asked_and_drops_nothing_at_least_once() {
    let soon = refusal(&file("", "timings.reveal_outage_after = \"8s\""));
    assert!(
        soon.contains("three times bus.timings.probe_interval"),
        "{soon}"
    );
    let late = parsed(
        "",
        "timings.reveal_outage_after = \"9s\"\noutage_publishes = \"drop\"",
    );
    assert_eq!(late.buses[0].outage_publishes, OutagePublishes::Drop);
    let kept = refusal(&file(
        "",
        "outage_publishes = \"drop\"\ndelivery = \"at-least-once\"",
    ));
    assert!(kept.contains("outage_publishes: expected keep"), "{kept}");
}

#[test]
fn every_kind_of_value_is_read() {
    let config = parsed(
        "name = \"host7\"\ndrain_timeout = \"3s\"\nhttp.listen = \"off\"\n\
         http.cors_origins = [\"https://Dash.example:8443\", \"http://[::1]\"]\n\
         log = { format = \"json\", level = \"debug\" }\nlimits.max_connections = 10",
        "listen = [\"0.0.0.0:4300\"]\nadmit = \"always\"\nlenient_connect = false\n\
         timings.pong_hold = \"never\"\nlimits = { fence_bytes = 2048, max_pending = \"1MiB\" }",
    );
    assert_eq!((config.name.as_str(), config.http), ("host7", None));
    let origins = ["https://dash.example:8443", "http://[::1]"];
    assert_eq!(config.cors_origins, origins);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.drain_timeout.as_secs(), 3);
    assert_eq!(config.limits.max_connections, 10);
    let bus = &config.buses[0];
    assert_eq!(bus.listen[0].to_string(), "0.0.0.0:4300");
    assert_eq!((bus.admit, bus.lenient_connect), (Admit::Always, false));
    assert_eq!(bus.timings.pong_hold, PongHold::Never);
    assert_eq!(
        (bus.limits.fence_bytes, bus.limits.max_pending),
        (2048, 1 << 20)
    );
}

#[test]
fn pong_hold_is_strict_by_default_only_with_at_least_once() {
    let strict = parsed("", "delivery = \"at-least-once\"");
    assert_eq!(strict.buses[0].timings.pong_hold, PongHold::Never);
    let written = parsed(
        "",
        "delivery = \"at-least-once\"\ntimings.pong_hold = \"1s\"",
    );
    assert_ne!(written.buses[0].timings.pong_hold, PongHold::Never);
}

#[test]
fn faults_name_the_line_the_key_and_what_was_expected() {
    for (head, tail, expected) in [
        (
            "nam = \"x\"",
            "",
            "line 1: nam: unknown key; expected one of name, drain_timeout",
        ),
        (
            "name = \"a b\"",
            "",
            "line 1: name: expected a name of 1 to 255 bytes",
        ),
        ("name = 5", "", "line 1: name: expected a name"),
        (
            "drain_timeout = 2",
            "",
            "line 1: drain_timeout: expected a duration such as",
        ),
        (
            "drain_timeout = \"0s\"",
            "",
            "line 1: drain_timeout: out of bounds: expected a duration from 10ms to 10m",
        ),
        (
            "http.listen = \"8222\"",
            "",
            "line 1: http.listen: expected \"off\", or an IP address",
        ),
        (
            "http.cors_origins = [\"dash.example\"]",
            "",
            "line 1: http.cors_origins: expected a list of at most 16 origins",
        ),
        (
            "http.cors_origins = [\"https://a/path\"]",
            "",
            "line 1: http.cors_origins: expected a list of at most 16 origins",
        ),
        (
            "log.level = \"loud\"",
            "",
            "line 1: log.level: expected one of error, warn, info, debug, trace",
        ),
        (
            "[limits]\nmax_pending_total = \"1KiB\"",
            "",
            "line 2: limits.max_pending_total: out of bounds: expected a size from 64KiB to 64GiB",
        ),
        ("bus = 1 #", "", "line 2: not valid TOML"),
        (
            "",
            "listen = []",
            "line 2: bus.listen: expected a list of 1 to 16",
        ),
        (
            "",
            "listen = \"127.0.0.1:4222\"",
            "line 5: bus.listen: expected a list",
        ),
        (
            "",
            "listen = [\n\"127.0.0.1\"]",
            "line 6: bus.listen: expected an IP address and a port",
        ),
        (
            "",
            "topology = \"star\"",
            "line 5: bus.topology: expected one of cluster, independent",
        ),
        (
            "",
            "lenient_connect = \"yes\"",
            "line 5: bus.lenient_connect: expected true or false",
        ),
        (
            "",
            "timings.fence_interval = \"0ms\"",
            "line 5: bus.timings.fence_interval: out of bounds: expected a duration from 1ms to 10s",
        ),
        (
            "",
            "timings.pong_hold = \"ever\"",
            "line 5: bus.timings.pong_hold: expected a duration such as \"15s\", or \"never\"",
        ),
        (
            "",
            "limits.ping_max = 0",
            "line 5: bus.limits.ping_max: out of bounds: expected a number from 1 to 100",
        ),
        (
            "",
            "limits.ping_max = \"2\"",
            "line 5: bus.limits.ping_max: expected a whole number",
        ),
        (
            "",
            "limits.fence_bytes = -1",
            "line 5: bus.limits.fence_bytes: expected a size",
        ),
        (
            "",
            "limits.publish_buffer = \"1GiB\"",
            "line 2: bus.limits.publish_buffer: out of bounds: expected at most 256MiB, which is limits.publish_buffer_total",
        ),
        (
            "",
            "limits.extra = 1",
            "line 5: bus.limits.extra: unknown key",
        ),
        ("", "name = \"b\"", "line 5: name: not valid TOML"),
    ] {
        let shown = refusal(&file(head, tail));
        assert!(shown.starts_with(expected), "{head}{tail}: {shown}");
    }
}

#[test]
fn names_and_brokers_of_a_bus_must_be_there() {
    for (text, expected) in [
        ("", "line 1: bus: missing; expected 1 to 64 buses"),
        (
            "bus = 1",
            "line 1: bus: expected tables, each under [[bus]]",
        ),
        ("[[bus]]\nbrokers = [\"h\"]", "line 1: bus.name: missing"),
        ("[[bus]]\nname = \"a\"", "line 1: bus.brokers: missing"),
        (
            "[[bus]]\nname = \"a\"\nbrokers = []",
            "line 1: bus.brokers: expected a list of 1 to 64",
        ),
        (
            "[[bus]]\nname = \"A\"\nbrokers = [\"h\"]",
            "line 2: bus.name: expected a name of 1 to 32",
        ),
    ] {
        let shown = refusal(text);
        assert!(shown.starts_with(expected), "{text}: {shown}");
    }
}

#[test]
fn duplicates_and_loops_are_refused() {
    let second = |name: &str, listen: &str, brokers: &str| {
        format!("[[bus]]\nname = \"{name}\"\nlisten = [\"{listen}\"]\nbrokers = [{brokers}]")
    };
    assert!(Config::parse(&file("", &second("b", "127.0.0.1:4223", "\"10.0.0.1\""))).is_ok());
    for (text, expected) in [
        (
            second("a", "127.0.0.1:4223", "\"h\""),
            "line 6: bus.name: two buses are named a",
        ),
        (
            second("b", "127.0.0.1:4222", "\"h\""),
            "line 7: bus.listen: 127.0.0.1:4222 is listened on twice",
        ),
        (
            second("b", "0.0.0.0:4222", "\"h\""),
            "line 7: bus.listen: 0.0.0.0:4222 is listened on twice",
        ),
        (
            second("b", "127.0.0.1:8222", "\"h\""),
            "line 7: bus.listen: 127.0.0.1:8222 is listened on twice",
        ),
        (
            second("b", "127.0.0.1:4223", "\"h\", \"H:4222\""),
            "line 8: bus.brokers: h:4222 is listed twice",
        ),
        (
            second("b", "127.0.0.1:4223", "\"h\", \"localhost\""),
            "line 8: bus.brokers: localhost:4222 is natsmux's own",
        ),
        (
            second("b", "127.0.0.1:4223", "\"nats://127.0.0.1:4223\""),
            "line 8: bus.brokers: 127.0.0.1:4223 is natsmux's own",
        ),
        (
            second("b", "127.0.0.1:4223", "\"127.0.0.1:8222\""),
            "line 8: bus.brokers: 127.0.0.1:8222 is natsmux's own",
        ),
    ] {
        let shown = refusal(&file("", &text));
        assert!(shown.starts_with(expected), "{text}: {shown}");
    }
}

#[test]
fn no_fault_shows_a_secret() {
    let url = "nats://user:hunter2@h:1";
    let unquoted_key = format!("{url} = 1");
    for text in [
        file("", &format!("brokers = [\"{url}\"]")),
        format!("[[bus]]\nname = \"a\"\nbrokers = [\"{url}\"]"),
        format!("[[bus]]\nname = \"a\"\nbrokers = \"{url}\""),
        format!("[[bus]]\nname = \"a\"\nbrokers = [\"{url}]"),
        format!("[[bus]]\nname = \"a\"\nbrokers = [{url}]"),
        format!("[[bus]]\nname = \"{url}\"\nbrokers = [\"h\"]"),
        format!("bus = \"{url}\""),
        format!("bus = [\"{url}\"]"),
        format!("http = \"{url}\""),
        format!("\"{url}\" = 1"),
        format!("[\"{url}\"]\n[\"{url}\"]"),
        file("", &format!("topology = \"{url}\"")),
        file("", &format!("timings.pong_hold = \"{url}\"")),
        file("", &format!("limits.ping_max = \"{url}\"")),
        unquoted_key,
    ] {
        let error = Config::parse(&text).expect_err("a wrong file");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2"), "{text}: {shown}");
    }
}

#[test]
fn sharing_and_its_bounds_are_read() {
    let shared = "sharing = \"identity\"\ntrunks_per_identity = 64\n";
    let config = parsed("", &format!("{shared}timings.trunk_idle_timeout = \"0s\""));
    let bus = &config.buses[0];
    assert_eq!(
        (bus.sharing, bus.trunks_per_identity),
        (Sharing::Identity, 64)
    );
    assert_eq!(bus.timings.trunk_idle_timeout, std::time::Duration::ZERO);
    for wrong in [
        "trunks_per_identity = 0",
        "timings.trunk_idle_timeout = \"25h\"",
    ] {
        Config::parse(&file("", wrong)).expect_err(wrong);
    }
}

#[test]
fn flags_alone_describe_one_bus_named_default() {
    let flags = Flags {
        listen: vec!["127.0.0.1:4222".to_owned()],
        brokers: vec!["nats://127.0.0.1:4301,nats://127.0.0.1:4302".to_owned()],
        http: Some("off".to_owned()),
        delivery: Some(Delivery::AtLeastOnce),
        ..Flags::default()
    };
    let config = Config::from_flags(flags).expect("good flags");
    let bus = &config.buses[0];
    assert_eq!((bus.name.as_str(), config.http), ("default", None));
    assert_eq!((bus.listen.len(), bus.brokers.len()), (1, 2));
    assert_eq!(bus.timings.pong_hold, PongHold::Never);
}

#[test]
fn flags_lie_over_a_file_with_one_bus_and_survive_a_reload() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("natsmux.toml");
    std::fs::write(&path, file("", "listen = [\"127.0.0.1:4300\"]")).expect("written");
    let flags = Flags {
        brokers: vec!["10.0.0.7,10.0.0.8:1".to_owned()],
        log_level: Some(LogLevel::Debug),
        ..Flags::default()
    };
    let config = Config::load_with_flags(&path, flags.clone()).expect("good");
    assert_eq!(config.buses[0].listen[0].addr.port(), 4300);
    assert_eq!(config.buses[0].brokers[1].to_string(), "10.0.0.8:1");
    assert_eq!(config.reload(&path).expect("good"), config);
    let second = "[[bus]]\nname = \"b\"\nlisten = [\"127.0.0.1:4223\"]\nbrokers = [\"h\"]";
    std::fs::write(&path, file("", second)).expect("written");
    let error = config.reload(&path).expect_err("two buses");
    assert!(error.to_string().starts_with("--broker: describes one bus"));
    let other = Flags {
        brokers: Vec::new(),
        ..flags
    };
    assert!(Config::load_with_flags(&path, other).is_ok());
}

#[test]
fn reload_takes_brokers_and_timings_but_no_listener() {
    let old = parsed("", "");
    let mut new = old.clone();
    new.log.level = LogLevel::Trace;
    new.buses[0].brokers = vec!["h".parse().expect("good")];
    new.buses[0].timings.block_for = std::time::Duration::from_secs(1);
    assert_eq!(old.needs_restart(&new), None);
    new.buses[0].listen.pop();
    let refused = old.needs_restart(&new).expect("a listener changed");
    assert!(refused.to_string().contains("bus a: listen can't change"));
    new.buses[0].name = "b".to_owned();
    assert_eq!(old.needs_restart(&new), None);
    new.http = None;
    assert_eq!(
        old.needs_restart(&new),
        Some(NeedsRestart::Daemon("http.listen"))
    );
    new.http = old.http;
    new.cors_origins.push("http://a".to_owned());
    assert_eq!(
        old.needs_restart(&new),
        Some(NeedsRestart::Daemon("http.cors_origins"))
    );
}

#[test]
fn description_tells_what_is_not_a_default() {
    let config = parsed("name = \"host7\"", "timings.fence_interval = \"20ms\"");
    let shown = config.describe().to_string();
    assert!(
        shown.contains("[::1]:4222 (where the host has IPv6)"),
        "{shown}"
    );
    assert!(shown.contains("  brokers   1. 10.0.0.1:4222"), "{shown}");
    assert!(
        shown.contains("timings.fence_interval = 20ms (default 50ms)"),
        "{shown}"
    );
    assert!(!shown.contains("block_for"), "{shown}");
}
