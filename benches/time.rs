//! How long the work of `cost` takes, for one operation: `cargo bench --bench time`. Machines are
//! noisy; what holds in CI is the count of instructions (`benches/instructions.rs`).

mod cost;

use std::hint::black_box;

use cost::{RUN, Site};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn proto(c: &mut Criterion) {
    let mut group = c.benchmark_group("proto");
    group.throughput(Throughput::Elements(RUN as u64));
    for (name, input) in [
        ("publish", cost::publishes()),
        ("request", cost::requests()),
    ] {
        group.bench_function(name, |b| b.iter(|| cost::scan_client(black_box(&input))));
    }
    let input = cost::messages(1);
    group.bench_function("message", |b| {
        b.iter(|| cost::scan_server(black_box(&input)))
    });
    group.bench_function("encode_sub", |b| b.iter(cost::encode_subs));
    let sids = cost::sids();
    group.bench_function("parse_sid", |b| {
        b.iter(|| cost::parse_sids(black_box(&sids)))
    });
    group.finish();
}

fn ledger(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(RUN as u64));
    group.bench_function("subscribe", |b| b.iter(|| cost::ledger(RUN)));
    let mut table = cost::ledger(RUN);
    group.bench_function("deliver", |b| b.iter(|| cost::deliver(&mut table, RUN)));
    let unsubscribe = |mut table| {
        cost::unsubscribe(&mut table, RUN);
        table
    };
    let full = || cost::ledger(RUN);
    group.bench_function("unsubscribe", |b| {
        b.iter_batched(full, unsubscribe, BatchSize::SmallInput)
    });
    group.finish();
}

fn machines(c: &mut Criterion) {
    let mut group = c.benchmark_group("machines");
    group.throughput(Throughput::Elements(RUN as u64));
    for (name, input) in [
        ("publish", cost::publishes()),
        ("request", cost::requests()),
    ] {
        let mut site = Site::own(0);
        group.bench_function(name, |b| {
            b.iter(|| {
                site.send(0, black_box(&input));
                site.take_and_prove()
            });
        });
    }
    let (mut site, input) = (Site::own(100), cost::messages(100));
    group.bench_function("deliver", |b| {
        b.iter(|| {
            site.answer(black_box(&input));
            site.take_session_bytes()
        });
    });
    let (mut site, input) = (Site::shared(100), cost::messages(1));
    group.throughput(Throughput::Elements(100 * RUN as u64));
    group.bench_function("deliver_to_100", |b| {
        b.iter(|| {
            site.answer(black_box(&input));
            site.take_session_bytes()
        });
    });
    group.throughput(Throughput::Elements(100_000));
    group.sample_size(10);
    let mut site = Site::own(100_000);
    group.bench_function("replay", |b| b.iter(|| site.replay()));
    group.finish();
}

criterion_group!(benches, proto, ledger, machines);
criterion_main!(benches);
