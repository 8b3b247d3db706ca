//! Queue groups over hosts: a broker weighs members, and each must count as one.

use std::time::Duration;

use crate::rig::{natsmux, shared_config};
use crate::size::{figures, number, turn};
use crate::support::{Cluster, Natsmux, RawClient, Version};

/// Beyond this many standard deviations, p is below 0.001.
const UNLIKELY: f64 = 3.29;

#[test]
fn one_member_here_and_three_there_get_a_quarter_and_the_rest() {
    let _turn = turn();
    let messages = number("weighed", [8_000, 8_000, 8_000]);
    let cluster = Cluster::start(Version::V215, 1);
    let hosts = [(); 2].map(|()| natsmux(shared_config(&cluster.urls())));
    let member = |host: &Natsmux| {
        let mut member = RawClient::ready(&host.address());
        member.set_patience(Duration::from_secs(30));
        member.send("SUB work q 1\r\n");
        member.flush();
        member
    };
    let mut here = [member(&hosts[0])];
    let mut there = [(); 3].map(|()| member(&hosts[1]));
    let mut publisher = RawClient::ready(&cluster.brokers()[0].address());
    for _ in 0..messages / 100 {
        publisher.send("PUB work 1\r\nx\r\n".repeat(100));
        publisher.flush();
    }
    let count = |member: &mut RawClient| {
        member.send("PING\r\n");
        let mut got = 0u64;
        loop {
            match &member.line()[..] {
                "PONG" => return got,
                line if line.starts_with("MSG work 1 ") => got += 1,
                "x" | "PING" => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let own: u64 = here.iter_mut().map(count).sum();
    let others: Vec<u64> = there.iter_mut().map(count).collect();
    let all = own + others.iter().sum::<u64>();
    figures(&format!(
        "a queue group of 1 and 3 members: {own} and {others:?} of {messages}"
    ));
    assert_eq!(all, messages, "each once");
    let deviation = (messages as f64 * 0.25 * 0.75).sqrt();
    for got in [own, others[0], others[1], others[2]] {
        let off = (got as f64 - messages as f64 / 4.0).abs();
        assert!(off < UNLIKELY * deviation, "{got} of {messages}");
    }
}
