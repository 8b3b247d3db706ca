//! How many instructions the work of `cost` takes, and a bound for each: 3 % above what it was
//! when the bound was set. `make instructions`.
//!
//! Counted by callgrind, so the same on any machine; but not with another compiler.
//! Recorded with rustc 1.95.0 (59807616e 2026-04-14).

#![expect(missing_docs, reason = "of what the macros make")]

mod cost;

use std::hint::black_box;

use cost::{RUN, Site};
use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use natsmux::ledger::Subscriptions;

/// For 1,000 operations each.
macro_rules! bound {
    ($instructions:expr) => {
        LibraryBenchmarkConfig::default()
            .tool(Callgrind::default().hard_limits([(EventKind::Ir, $instructions * 103 / 100)]))
    };
}

#[library_benchmark(config = bound!(261_115))]
#[bench::run(cost::publishes())]
fn scan_publish(input: Vec<u8>) -> Vec<u8> {
    cost::scan_client(black_box(&input));
    input
}

#[library_benchmark(config = bound!(483_975))]
#[bench::run(cost::requests())]
fn scan_request(input: Vec<u8>) -> Vec<u8> {
    cost::scan_client(black_box(&input));
    input
}

#[library_benchmark(config = bound!(314_957))]
#[bench::run(cost::messages(100))]
fn scan_message(input: Vec<u8>) -> Vec<u8> {
    cost::scan_server(black_box(&input));
    input
}

#[library_benchmark(config = bound!(196_217))]
fn encode_sub() -> Vec<u8> {
    cost::encode_subs()
}

#[library_benchmark(config = bound!(90_289))]
#[bench::run(cost::sids())]
fn parse_sid(texts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    black_box(cost::parse_sids(black_box(&texts)));
    texts
}

#[library_benchmark(config = bound!(2_620_429))]
fn ledger_subscribe() -> Subscriptions {
    cost::ledger(RUN)
}

#[library_benchmark(config = bound!(50_033))]
#[bench::run(cost::ledger(RUN))]
fn ledger_deliver(mut table: Subscriptions) -> Subscriptions {
    cost::deliver(&mut table, RUN);
    table
}

#[library_benchmark(config = bound!(1_623_506))]
#[bench::run(cost::ledger(RUN))]
fn ledger_unsubscribe(mut table: Subscriptions) -> Subscriptions {
    cost::unsubscribe(&mut table, RUN);
    table
}

// From a component's bytes to a link's, in one session.
#[library_benchmark(config = bound!(443_080))]
#[bench::run(Site::own(0), cost::publishes())]
fn publish(mut site: Site, input: Vec<u8>) -> (Site, Vec<u8>) {
    site.send(0, black_box(&input));
    site.take_and_prove();
    (site, input)
}

// From a component's bytes to a link's, of requests.
#[library_benchmark(config = bound!(861_467))]
#[bench::run(Site::own(0), cost::requests())]
fn request(mut site: Site, input: Vec<u8>) -> (Site, Vec<u8>) {
    site.send(0, black_box(&input));
    site.take_and_prove();
    (site, input)
}

// From a link's bytes to a component's, for one session with 100 subscriptions.
#[library_benchmark(config = bound!(816_673))]
#[bench::run(Site::own(100), cost::messages(100))]
fn deliver(mut site: Site, input: Vec<u8>) -> (Site, Vec<u8>) {
    site.answer(black_box(&input));
    site.take_session_bytes();
    (site, input)
}

// The same for 100 sessions that share a subscription.
#[library_benchmark(config = bound!(33_737_310))]
#[bench::run(Site::shared(100), cost::messages(1))]
fn deliver_to_100(mut site: Site, input: Vec<u8>) -> (Site, Vec<u8>) {
    site.answer(black_box(&input));
    site.take_session_bytes();
    (site, input)
}

// A new link is told of 1,000 subscriptions.
#[library_benchmark(config = bound!(712_964))]
#[bench::run(Site::own(RUN))]
fn replay(mut site: Site) -> Site {
    site.replay();
    site
}

library_benchmark_group!(
    name = proto,
    benchmarks = [
        scan_publish,
        scan_request,
        scan_message,
        encode_sub,
        parse_sid
    ]
);
library_benchmark_group!(
    name = ledger,
    benchmarks = [ledger_subscribe, ledger_deliver, ledger_unsubscribe]
);
library_benchmark_group!(
    name = machines,
    benchmarks = [publish, request, deliver, deliver_to_100, replay]
);
main!(library_benchmark_groups = [proto, ledger, machines]);
