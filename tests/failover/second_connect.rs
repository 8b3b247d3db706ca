//! A second CONNECT under load, at brokers that keep subscriptions: nothing missing, nothing double
//! (R20).

use crate::numbers::{Heard, hear, launch, while_published};
use crate::size::{figures, number};
use crate::support::{Broker, PATIENCE, RawClient, Version};

fn options_change_under_load(topology: &str, brokers: usize) {
    let rounds = number("connects", [20, 100, 1_000]);
    let brokers: Vec<Broker> = (0..brokers).map(|_| Broker::start(Version::V29)).collect();
    let urls: Vec<String> = brokers.iter().map(Broker::url).collect();
    let natsmux = launch(topology, &urls, "");
    let mut client = RawClient::ready(&natsmux.address());
    // One that leaves others may miss something (R22): it is alone from now on.
    client.send("CONNECT {}\r\nSUB load.* 1\r\nSUB load.* members 2\r\nPING\r\n");
    client.pong();
    natsmux.wait_varz("a link to each", PATIENCE, |varz| {
        varz["links"].as_u64()
            == varz["trunks"]
                .as_u64()
                .map(|all| all * brokers.len() as u64)
    });
    let mut heard: Vec<Heard> = brokers.iter().map(|_| Heard::default()).collect();
    let addresses: Vec<String> = brokers.iter().map(Broker::address).collect();
    let published = while_published(&addresses, || {
        for round in 0..rounds {
            let has = round % 2 == 0;
            let options = format!("\"headers\":{has},\"no_responders\":{has}");
            client.send(format!(
                "CONNECT {{\"name\":\"{round}\",{options}}}\r\nPING\r\n"
            ));
            hear(&mut client, &mut heard);
        }
    });
    client.send("PING\r\n");
    hear(&mut client, &mut heard);
    let all: u64 = published.iter().sum();
    figures(&format!(
        "{rounds} second CONNECTs over {topology} brokers, {all} messages, 0 missing, 0 double"
    ));
    for (heard, all) in heard.iter().zip(&published) {
        heard.assert_all(*all);
    }
    let varz = natsmux.varz();
    assert_eq!(varz["sessions_closed"], 0, "{varz}");
    assert_eq!(varz["in_doubt"], 0, "{varz}");
    assert_eq!(varz["link_failures"], 0, "{varz}");
}

#[test]
fn a_second_connect_is_noticed_by_nobody() {
    options_change_under_load("cluster", 1);
}

#[test]
fn a_second_connect_over_independent_brokers_is_noticed_by_nobody() {
    options_change_under_load("independent", 2);
}
