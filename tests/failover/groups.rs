//! Members of a queue group that move: each message comes to one of them, whoever publishes it
//! (R41).

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use crate::numbers::while_published;
use crate::rig::{Delivery, KNOWN, SAFE, config, natsmux};
use crate::size::{figures, number, turn};
use crate::support::{Cluster, RawClient, Version};

/// Numbers of each publisher that came to any member.
type Came = [HashSet<u64>; 2];

/// Reads what came to a member until the next PONG.
fn read(member: &mut RawClient, came: &mut Came) {
    member.send("PING\r\n");
    loop {
        let frame = member.frame();
        if frame.line == "PONG" {
            return;
        }
        let Some(rest) = frame.line.strip_prefix("MSG load.") else {
            assert!(frame.line.starts_with("INFO "), "{}", frame.line);
            continue;
        };
        let publisher = usize::from(rest.starts_with('1'));
        let number = String::from_utf8_lossy(&frame.payload);
        let number = number.parse().expect("a number");
        assert!(
            came[publisher].insert(number),
            "{number} of {publisher} twice"
        );
    }
}

fn members_move(version: Version) {
    let _turn = turn();
    let rounds = number("group_moves", [6, 100, 1_000]);
    let cluster = Cluster::start(version, KNOWN + 1);
    let natsmux = natsmux(config(
        &cluster.urls()[..KNOWN],
        Delivery::AtMostOnce,
        "",
        "",
    ));
    let mut members = [0, 1].map(|_| {
        let mut member = RawClient::ready(&natsmux.address());
        member.send("SUB load.* members 1\r\nPING\r\n");
        member.pong();
        member
    });
    // One publishes at a broker that natsmux doesn't know, one through natsmux.
    let addresses = [cluster.brokers()[SAFE].address(), natsmux.address()];
    thread::sleep(Duration::from_millis(200));
    let mut came = Came::default();
    let published = while_published(&addresses, || {
        for _ in 0..rounds {
            let (status, said) = natsmux.order(&["move", "default"]);
            assert!(status.success(), "{said}");
            for _ in 0..10 {
                members
                    .iter_mut()
                    .for_each(|member| read(member, &mut came));
                thread::sleep(Duration::from_millis(10));
            }
        }
    });
    thread::sleep(Duration::from_millis(100));
    members
        .iter_mut()
        .for_each(|member| read(member, &mut came));
    let missing = came.iter().zip(&published);
    let missing: Vec<u64> = missing.map(|(came, all)| all - came.len() as u64).collect();
    figures(&format!(
        "{rounds} times another broker of {version:?} with two members: {published:?} messages from elsewhere \
         and through natsmux, {missing:?} missing, 0 double"
    ));
    assert!(
        missing.iter().all(|missing| *missing <= rounds),
        "{missing:?}"
    );
}

#[test]
fn members_of_a_group_move_between_brokers() {
    for version in Version::ALL {
        members_move(version);
    }
}
