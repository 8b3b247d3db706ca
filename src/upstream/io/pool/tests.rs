//! Panics, and what they end: pools on a scripted broker, whose drivers find the worker's buffer
//! borrowed.

use std::hash::RandomState;
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::*;
use crate::config::{Admit, BrokerAddr};
use crate::net::{Retention, now};
use crate::upstream::brokers::admission::Admission;
use crate::upstream::brokers::roster::{Placement, Roster};
use crate::upstream::bus::{Budgets, Settings, Turn};

const INFO: &[u8] = b"INFO {\"server_id\":\"x\",\"version\":\"2.9.10\",\"headers\":true,\"max_payload\":1048576,\"proto\":1}\r\n";

/// A broker that answers the first PING of each connection, and then says only "PING".
async fn broker() -> io::Result<BrokerAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(serve(stream));
        }
    });
    Ok(BrokerAddr {
        host: "127.0.0.1".to_owned(),
        port,
        tls: false,
    })
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(INFO).await?;
    let mut buffer = [0; 1024];
    let mut heard = Vec::new();
    let mut answer = &b"PONG\r\n"[..];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => heard.extend_from_slice(&buffer[..count]),
        }
        if heard.ends_with(b"\r\n") {
            stream
                .write_all(std::mem::replace(&mut answer, b"PING\r\n"))
                .await?;
            heard.clear();
        }
    }
}

fn pool(broker: &BrokerAddr, sharing: Sharing) -> Rc<Pool> {
    let now = now();
    let settings = Settings {
        admit: Admit::Always,
        sharing,
        ..Settings::default()
    };
    let brokers = [broker.clone()];
    let interval = Duration::from_secs(3);
    let roster = Roster::new(&brokers, Placement::default(), interval, 1, now);
    let budgets = Budgets::new(1 << 20, 1 << 20, 1 << 20);
    let bus = Bus::new(
        settings,
        roster,
        Admission::new(RandomState::new()),
        budgets,
        now,
    );
    let buffer = Rc::new(RefCell::new(vec![0; 4096]));
    Rc::new(Pool::new("bus".to_owned(), "here", bus, buffer))
}

/// A session that came to a live broker, and published once. What drives its trunk runs in a task,
/// as that of a session does.
async fn session(pool: &Rc<Pool>, component: TcpStream) -> Attachment {
    let connect = ConnectInfo::parse(br#"{"verbose":false,"pedantic":false}"#);
    let connect = Rc::new(connect.expect("options"));
    let port = Rc::new(Port::new(component.into_split().1));
    let out = Outbox::new(Retention::UntilWritten);
    let attached = pool.attach(connect, true, out, &port, now());
    let ((cell, id), driver) = attached.expect("no panic");
    driver.into_iter().for_each(|driver| pool.spawn(driver));
    until(|| cell.machine.borrow().is_ready(id)).await;
    let mut bus = pool.bus.borrow_mut();
    let mut trunk = cell.machine.borrow_mut();
    trunk.publish(id, b"PUB a 0\r\n\r\n", 1, &mut Turn::new(now(), &mut bus));
    drop((trunk, bus));
    (cell, id)
}

async fn until(done: impl Fn() -> bool) {
    let reached = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(5), reached)
        .await
        .expect("in time");
}

async fn component() -> io::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let stream = TcpStream::connect(listener.local_addr()?).await?;
    Ok(stream)
}

#[tokio::test]
#[expect(
    clippy::await_holding_refcell_ref,
    reason = "who reads meanwhile shall panic"
)]
async fn a_trunk_that_panics_ends_alone_and_leaves_its_broker_to_others() -> io::Result<()> {
    let play = async {
        for sharing in [Sharing::None, Sharing::Identity] {
            let pool = pool(&broker().await?, sharing);
            let (cell, id) = session(&pool, component().await?).await;
            assert_eq!(pool.gauges().1.links, 1);
            // The broker's next words can't be read.
            let buffer = Rc::clone(&pool.bus.buffer);
            let borrowed = buffer.borrow_mut();
            cell.wake();
            until(|| cell.has_failed()).await;
            drop(borrowed);
            assert_eq!(pool.gauges(), (0, Gauges::default()));
            pool.detach(&cell, id, now());
            {
                let bus = pool.bus.borrow();
                let (id, broker) = bus.roster().brokers().next().expect("one");
                assert_eq!((broker.links(), bus.watch(id).attached()), (0, 0));
                assert_eq!(bus.counters().in_doubt, 1);
            }
            let (cell, _) = session(&pool, component().await?).await;
            assert!(!cell.has_failed());
            assert_eq!(pool.gauges().1.links, 1, "the next is at the broker");
        }
        Ok(())
    };
    LocalSet::new().run_until(play).await
}

#[tokio::test]
#[expect(
    clippy::await_holding_refcell_ref,
    reason = "who reads meanwhile shall panic"
)]
async fn a_trunk_that_panics_without_sessions_is_gone() -> io::Result<()> {
    let play = async {
        let pool = pool(&broker().await?, Sharing::None);
        let (cell, id) = session(&pool, component().await?).await;
        let buffer = Rc::clone(&pool.bus.buffer);
        let borrowed = buffer.borrow_mut();
        pool.detach(&cell, id, now());
        assert_eq!(pool.gauges().0, 1, "what it published has no proof");
        until(|| cell.has_failed()).await;
        drop(borrowed);
        assert_eq!(pool.gauges(), (0, Gauges::default()));
        Ok(())
    };
    LocalSet::new().run_until(play).await
}
