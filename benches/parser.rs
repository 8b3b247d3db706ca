//! How long it takes to find the operations in what a component and a broker send.
//!
//! `cargo bench --bench parser`. Every figure is for one operation of a buffer full of equal ones.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use natsmux::proto::client::{self, ClientLimits, Scan};
use natsmux::proto::server::{self, ServerLimits, ServerScan};

const RUN: usize = 1000;

fn client_ops(c: &mut Criterion) {
    let mut group = c.benchmark_group("client");
    group.throughput(Throughput::Elements(RUN as u64));
    let limits = ClientLimits::default();
    for (name, frame) in [
        ("pub_16B", &b"PUB foo.bar 16\r\n0123456789abcdef\r\n"[..]),
        (
            "pub_reply_16B",
            b"PUB foo.bar _INBOX.AAAAAAAAAAAAAAAAAAAAAA.bbbbbbbb 16\r\n0123456789abcdef\r\n",
        ),
        (
            "hpub_16B",
            b"HPUB foo.bar 12 28\r\nNATS/1.0\r\n\r\n0123456789abcdef\r\n",
        ),
        ("pub_lower_case", b"pub foo.bar 16\r\n0123456789abcdef\r\n"),
        ("sub", b"SUB foo.bar 12\r\n"),
        ("ping", b"PING\r\n"),
    ] {
        let input = frame.repeat(RUN);
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut rest = black_box(&input[..]);
                while let Scan::Op { op, len } = client::scan(rest, &limits) {
                    black_box(op);
                    rest = &rest[len..];
                }
                assert!(rest.is_empty());
            });
        });
    }
    group.finish();
}

fn server_ops(c: &mut Criterion) {
    let mut group = c.benchmark_group("server");
    group.throughput(Throughput::Elements(RUN as u64));
    let limits = ServerLimits::default();
    for (name, frame) in [
        ("msg_16B", &b"MSG foo.bar 12 16\r\n0123456789abcdef\r\n"[..]),
        (
            "msg_reply_16B",
            b"MSG foo.bar 12 _INBOX.AAAAAAAAAAAAAAAAAAAAAA.bbbbbbbb 16\r\n0123456789abcdef\r\n",
        ),
        (
            "hmsg_16B",
            b"HMSG foo.bar 12 12 28\r\nNATS/1.0\r\n\r\n0123456789abcdef\r\n",
        ),
        ("ok", b"+OK\r\n"),
    ] {
        let input = frame.repeat(RUN);
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut rest = black_box(&input[..]);
                while let ServerScan::Op { op, len } = server::scan(rest, &limits) {
                    black_box(op);
                    rest = &rest[len..];
                }
                assert!(rest.is_empty());
            });
        });
    }
    group.finish();
}

criterion_group!(benches, client_ops, server_ops);
criterion_main!(benches);
