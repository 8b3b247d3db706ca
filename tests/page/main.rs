//! The status page in headless Chromium, while brokers and natsmux itself come and go.
//!
//! Pictures of what was seen are kept in `target/page`.

mod browser;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use browser::{Browser, Screen};
use support::{
    Broker, Brokers, Cluster, Flavour, Natsmux, NatsmuxOptions, Port, RawClient, Version,
    target_dir, wait_for,
};

const DESK: Screen = Screen {
    width: 1180,
    height: 900,
    dark: false,
};
const PHONE: Screen = Screen {
    width: 390,
    height: 844,
    dark: true,
};

/// A probe of a broker without links is due every 3 s (R11), and the page looks once a second.
const PROBED: Duration = Duration::from_secs(5);
/// Anything else is seen within 2 s.
const SEEN: Duration = Duration::from_secs(2);

fn picture(name: &str) -> PathBuf {
    let folder = target_dir().join("page");
    fs::create_dir_all(&folder).expect("a folder for pictures");
    folder.join(name)
}

fn page(natsmux: &Natsmux) -> String {
    format!("http://{}/", natsmux.http_address())
}

/// The line of a broker.
fn row(address: &str) -> impl Fn(&str) -> Option<String> + use<> {
    let address = address.to_owned();
    move |text| {
        let mut lines = text.lines();
        lines
            .find(|line| line.starts_with(&address))
            .map(str::to_owned)
    }
}

/// Stops the traffic when it is dropped, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Publishes to itself, 500 messages a second, until told to stop.
fn traffic(address: &str, stop: &AtomicBool) {
    let mut client = RawClient::ready_with(address, "\"verbose\":false,\"name\":\"dea\"");
    client.send("SUB dea.heartbeat 1\r\nPING\r\n");
    client.pong();
    while !stop.load(Ordering::Relaxed) {
        client.send("PUB dea.heartbeat 5\r\nalive\r\n");
        assert_eq!(client.message(), b"alive");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_page_shows_a_killed_broker_and_outlives_natsmux() {
    let mut cluster = Cluster::start(Version::V215, 3);
    let (single, services) = (Broker::start(Version::V29), Port::reserve());
    let config = format!(
        "name = \"cell-7\"\n[http]\nlisten = \"{{http}}\"\n\
         [[bus]]\nname = \"control\"\nlisten = [\"{{listen}}\"]\nbrokers = {:?}\n\
         [[bus]]\nname = \"services\"\nlisten = [{:?}]\nbrokers = {:?}\n",
        cluster.urls(),
        services.address(),
        [single.url()],
    );
    let mut natsmux = Natsmux::launch(&NatsmuxOptions {
        config: Some(config),
        ..NatsmuxOptions::default()
    })
    .wait_healthy();
    let mut browser = Browser::start();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..3 {
            scope.spawn(|| traffic(&natsmux.address(), &stop));
            scope.spawn(|| traffic(&services.address(), &stop));
        }
        browser.open(&page(&natsmux), DESK);
        browser.wait_text("#buses", SEEN, |text| {
            text.contains("in use") && text.contains("3sessions")
        });
        let current = natsmux.current_broker().expect("a broker in use");
        let in_use = cluster.index_of(&current).expect("one of the cluster");
        let spare = (in_use + 1) % 3;

        let spare_addr = cluster.brokers()[spare].address();
        let spare_row = row(&spare_addr);
        cluster.broker(spare).kill();
        let probed = browser.wait_text("#buses table", PROBED, |text| {
            spare_row(text).is_some_and(|row| row.contains("down"))
        });
        let current_row = row(&current);
        cluster.broker(in_use).kill();
        let seen = browser.wait_text("#buses table", SEEN, |text| {
            current_row(text).is_some_and(|row| row.contains("down") && !row.contains("in use"))
        });
        browser.wait_text("#events", SEEN, |text| text.contains("failover"));
        println!("a killed broker is shown after {seen:?}, one without links after {probed:?}");

        cluster.restart(in_use);
        cluster.restart(spare);
        browser.wait_text("#buses table", PROBED, |text| {
            [&current_row, &spare_row]
                .iter()
                .all(|row| row(text).is_some_and(|row| row.contains("up")))
        });
        // For the plots.
        let plotted = "Math.min(...[...history.values()].map(bus => bus.points.length)) >= 20";
        let patience = Duration::from_secs(30);
        wait_for("20 points", patience, || {
            (browser.run(plotted) == true).then_some(())
        });
        browser.shot(&picture("failover.png"));
        assert_eq!(browser.errors(), [""; 0]);
    });

    natsmux.kill();
    browser.wait_text("#gone", Duration::from_secs(5), |text| {
        text.contains("hasn't answered")
    });
    assert_eq!(browser.text("#live"), "no answer");
    browser.shot(&picture("gone.png"));
    let old = browser.run("server");
    natsmux.restart();
    browser.wait_text("#live", Duration::from_secs(5), |text| text == "live");
    browser.wait_text("#events", SEEN, |text| {
        text.contains("bus has a live broker")
    });
    assert_ne!(browser.run("server"), old);
    let own = browser.run("events.every(event => event.seq <= 100)");
    assert_eq!(own, true, "the events of the new process alone");
    // The browser itself says that nobody answered, and nothing else.
    let others: Vec<_> = browser
        .errors()
        .into_iter()
        .filter(|error| !error.contains("ERR_"))
        .collect();
    assert_eq!(others, [""; 0]);
}

#[test]
fn the_page_is_readable_on_a_phone_in_the_dark() {
    let cluster = Cluster::start(Version::V29, 1);
    let natsmux = Natsmux::start(&cluster);
    let mut browser = Browser::start();
    browser.open(&page(&natsmux), PHONE);
    browser.wait_text("#buses", SEEN, |text| text.contains("in use"));
    let wide = browser.run("document.documentElement.scrollWidth > innerWidth");
    assert_eq!(wide, false, "only tables scroll sideways");
    // Dark ground, light text: the sum of the colours.
    let sum = |of: &str| {
        format!(
            "getComputedStyle(document.body).{of}.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
        )
    };
    let ground = browser.run(&sum("backgroundColor"));
    let text = browser.run(&sum("color"));
    assert!(
        ground.as_u64() < Some(150) && text.as_u64() > Some(600),
        "{ground} {text}"
    );
    browser.shot(&picture("phone.png"));
    assert_eq!(browser.errors(), [""; 0]);
}

#[test]
fn what_a_broker_says_of_itself_is_text() {
    let hostile = "<img src=x onerror=document.title='taken'>\"'&";
    let flavour = Flavour::v2_15().with("version", hostile);
    let brokers = Brokers::with_flavours(&[flavour]);
    let natsmux = Natsmux::launch(&NatsmuxOptions {
        brokers: brokers.addresses(),
        ..NatsmuxOptions::default()
    })
    .wait_healthy();
    let mut browser = Browser::start();
    browser.open(&page(&natsmux), DESK);
    browser.wait_text("#buses", SEEN, |text| text.contains(hostile));
    assert_eq!(browser.run("document.images.length"), 0);
    assert_eq!(browser.errors(), [""; 0]);
}
