//! natsmux between clients of any time and two Ruby servers of 2012.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Natsmux, NatsmuxOptions, PATIENCE, RawClient, RubyServer, message, wait_for};

const OLD: &str = r#"CONNECT {"verbose":false,"pedantic":false,"user":"nats","pass":"nats"}"#;

fn servers() -> [RubyServer; 2] {
    [(); 2].map(|()| RubyServer::start(Some(("nats", "nats"))))
}

fn natsmux(servers: &[RubyServer]) -> Natsmux {
    let urls: Vec<_> = servers.iter().map(RubyServer::address).collect();
    let config = format!(
        "[http]\nlisten = \"{{http}}\"\n[[bus]]\nname = \"default\"\nlisten = [\"{{listen}}\"]\n\
         brokers = {urls:?}\ntopology = \"independent\"\n[bus.timings]\nfailback_delay = \"500ms\""
    );
    let natsmux = Natsmux::launch(&NatsmuxOptions {
        config: Some(config),
        ..NatsmuxOptions::default()
    });
    let natsmux = natsmux.wait_healthy();
    natsmux.wait_varz("both servers", PATIENCE, |varz| {
        let brokers = varz["buses"][0]["brokers"].as_array();
        brokers.is_some_and(|all| all.iter().all(|one| one["version"] == "0.4.22"))
    });
    natsmux
}

/// Two components on links to both servers.
fn components(natsmux: &Natsmux, connect: &str) -> [RawClient; 2] {
    let components = [(); 2].map(|()| {
        let mut client = RawClient::connect(&natsmux.address());
        // Before it has read INFO.
        client.send(format!("{connect}\r\nPING\r\n"));
        client.info();
        client.expect("PONG\r\n");
        client
    });
    wait_links(natsmux);
    components
}

/// A snapshot in `/varz` is of less than this ago: of before a server died, or came back.
const SNAPSHOT_AGE: Duration = Duration::from_millis(20);

fn wait_links(natsmux: &Natsmux) {
    thread::sleep(SNAPSHOT_AGE);
    natsmux.wait_varz("links to both", PATIENCE, |varz| {
        varz["links"].as_u64() == varz["trunks"].as_u64().map(|trunks| 2 * trunks)
    });
}

#[test]
fn components_live_on_while_each_server_dies_in_turn() {
    let mut servers = servers();
    let natsmux = natsmux(&servers);
    let [mut one, mut two] = components(&natsmux, OLD);
    one.send("SUB a  2\r\nSUB jobs work 3\r\nSUB few  4\r\nUNSUB 4 7\r\nPING\r\n");
    one.expect("PONG\r\n");
    two.send("SUB jobs work 2\r\nPING\r\n");
    two.expect("PONG\r\n");
    wait_links(&natsmux);
    for round in 0..4 {
        let victim = round % 2;
        servers[victim].kill();
        thread::sleep(SNAPSHOT_AGE);
        // What is written to it until natsmux has noticed is in doubt.
        natsmux.wait_varz("links to the other alone", PATIENCE, |varz| {
            varz["links"] == varz["trunks"]
        });
        for number in 0..20 {
            two.send(format!(
                "PUB a  4\r\n{round:02}{number:02}\r\nPUB few  1\r\nx\r\n"
            ));
            one.expect(&message("a", "2", &format!("{round:02}{number:02}")));
            // R31: seven in all, from whichever server.
            if round == 0 && number < 7 {
                one.expect(&message("few", "4", "x"));
            }
        }
        // One of the group gets it.
        two.send("PUB jobs  1\r\nj\r\nPING\r\n");
        let first = two.line();
        if first == "PONG" {
            one.expect(&message("jobs", "3", "j"));
        } else {
            assert_eq!(first, "MSG jobs 2 1");
            two.expect("j\r\nPONG\r\n");
        }
        servers[victim].up();
        wait_links(&natsmux);
    }
    one.send("PING\r\n");
    one.expect("PONG\r\n");
}

#[test]
fn headers_are_taken_off() {
    let servers = servers();
    let natsmux = natsmux(&servers);
    let modern = r#"CONNECT {"verbose":false,"protocol":1,"headers":true,"no_responders":true,"user":"nats","pass":"nats"}"#;
    let [mut one, mut two] = components(&natsmux, modern);
    one.send("SUB a 1\r\nPING\r\n");
    one.pong();
    two.send(
        "HPUB a reply 23 28\r\nNATS/1.0\r\nKey: 1234\r\n\r\nhello\r\nPUB a 1\r\nx\r\nPING\r\n",
    );
    two.pong();
    one.expect("MSG a 1 reply 5\r\nhello\r\n");
    one.expect(&message("a", "1", "x"));
    natsmux.wait_varz("one to be counted", PATIENCE, |varz| {
        varz["headers_stripped"] == 1
    });
    for server in &servers {
        let lines = server.lines();
        let is_modern = |line: &String| line.contains("HPUB") || line.contains("headers\":true");
        assert!(!lines.iter().any(is_modern), "{lines:?}");
    }
}

#[test]
fn its_errors_reach_the_component_that_caused_them() {
    let servers = servers();
    let natsmux = natsmux(&servers);
    let mut stranger = RawClient::connect(&natsmux.address());
    stranger.info();
    stranger.send("CONNECT {\"verbose\":false,\"user\":\"nats\",\"pass\":\"x\"}\r\nPING\r\n");
    let last = String::from_utf8_lossy(&stranger.until_closed()).into_owned();
    assert_eq!(last, "-ERR 'Authorization failed'\r\n");

    // It never says who it is.
    let mut silent = RawClient::connect(&natsmux.address());
    let info = silent.info();
    assert_eq!(info["auth_required"], true);
    let since = Instant::now();
    silent.send("PUB a  0\r\n\r\n");
    let last = String::from_utf8_lossy(&silent.until_closed()).into_owned();
    assert_eq!(last, "-ERR 'Authorization is required'\r\n");
    let waited = since.elapsed();
    assert!(waited > Duration::from_millis(900) && waited < Duration::from_millis(1900));

    let [mut one, mut other] = components(&natsmux, OLD);
    other.send("SUB a  2\r\nPING\r\n");
    other.expect("PONG\r\n");
    // As long as that server takes, and longer.
    one.send(format!("SUB {} 3\r\nPING\r\n", "x".repeat(1000)));
    one.expect("PONG\r\n");
    one.send(format!("SUB {} 4\r\n", "x".repeat(1030)));
    let last = String::from_utf8_lossy(&one.until_closed()).into_owned();
    assert_eq!(last, "-ERR 'maximum control line exceeded'\r\n");
    other.send("PUB a  1\r\ny\r\n");
    other.expect(&message("a", "2", "y"));
}

#[test]
fn the_first_info_fits_the_clients_of_that_time() {
    let servers = servers();
    let natsmux = natsmux(&servers);
    let mut client = RawClient::connect(&natsmux.address());
    let line = client.line();
    assert!(line.len() + 2 <= 512, "{line}");
    client.send(format!("{OLD}\r\nPING\r\n"));
    client.expect("PONG\r\n");
    // Nothing of what happens upstream is told to it.
    let mut servers = servers;
    for server in &mut servers {
        server.kill();
        client.expect_silence(Duration::from_millis(100));
        server.up();
    }
    wait_for("a server again", PATIENCE, || {
        natsmux.is_healthy().then_some(())
    });
    client.send("SUB a  2\r\nPUB a  1\r\nz\r\nPING\r\n");
    client.expect(&message("a", "2", "z"));
    client.expect("PONG\r\n");
}

/// What the server of 2012 answers to a component with these options, and what natsmux does in front
/// of it: line by line the same.
#[test]
fn its_answers_are_the_same_through_natsmux() {
    const SUBSCRIBED: &str = "SUB a  1\r\n";
    let servers = servers();
    let natsmux = natsmux(&servers);
    for (verbose, pedantic) in [(false, false), (true, false), (false, true), (true, true)] {
        let connect = format!(
            "CONNECT {{\"verbose\":{verbose},\"pedantic\":{pedantic},\"user\":\"nats\",\"pass\":\"nats\"}}\r\n"
        );
        for operations in [
            "UNSUB 9\r\n".to_owned(),
            format!("{SUBSCRIBED}UNSUB 1\r\nUNSUB 1\r\n"),
            format!("{SUBSCRIBED}SUB b  1\r\n"),
            "SUB a..b  2\r\n".to_owned(),
            "SUB foo*  3\r\nUNSUB 3\r\n".to_owned(),
            "PUB a..b  1\r\nx\r\n".to_owned(),
            "PUB a.*  1\r\nx\r\nPUB a  1\r\ny\r\n".to_owned(),
        ] {
            let [direct, through] = [servers[0].address(), natsmux.address()].map(|address| {
                let mut client = RawClient::connect(&address);
                client.info();
                client.send(format!("{connect}PING\r\n"));
                answers(&mut client);
                client.send(&operations);
                client.send("PING\r\n");
                answers(&mut client)
            });
            let options = format!("verbose {verbose}, pedantic {pedantic}: {operations:?}");
            assert_eq!(through, direct, "{options}");
        }
    }
}

/// All lines up to PONG.
fn answers(client: &mut RawClient) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        match client.line() {
            pong if pong == "PONG" => return lines,
            line => lines.push(line),
        }
    }
}
