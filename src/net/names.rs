//! What the names of brokers mean: asked anew for a dial, off the data path, and remembered
//! for the time when nobody answers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use super::now;
use super::socket::{self, Stream};
use crate::clock::Instant;

/// An answer is used for this long, so that a thousand trunks ask once.
const FRESH: Duration = Duration::from_secs(1);
/// How much of a dial's time the question may take, where an older answer is known.
const SHARE: u32 = 4;

/// The last answer for each name.
#[derive(Debug, Default)]
pub struct Names {
    known: RefCell<HashMap<String, Answer>>,
}

#[derive(Debug)]
struct Answer {
    addrs: Vec<IpAddr>,
    /// When it was last asked for, also in vain.
    asked_at: Instant,
}

impl Names {
    /// Opens a TCP connection to the first of a host's addresses that takes it within its
    /// part of `within`.
    ///
    /// # Errors
    /// `NotFound` where the name has no address; `TimedOut` where none answered in time;
    /// else the last address's error.
    pub async fn connect(&self, host: &str, port: u16, within: Duration) -> io::Result<Stream> {
        let addrs = self.lookup(host, within).await?;
        let count = u32::try_from(addrs.len()).unwrap_or(u32::MAX).max(1);
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for addr in addrs {
            let connecting = socket::connect(SocketAddr::new(addr, port));
            match timeout(within / count, connecting).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    async fn lookup(&self, host: &str, within: Duration) -> io::Result<Vec<IpAddr>> {
        if let Ok(addr) = host.parse() {
            return Ok(vec![addr]);
        }
        if let Some(answer) = self.known.borrow_mut().get_mut(host) {
            let now = now();
            if now.saturating_duration_since(answer.asked_at) < FRESH {
                return Ok(answer.addrs.clone());
            }
            // Others use this answer until there is a new one.
            answer.asked_at = now;
        }
        let asked = timeout(within / SHARE, lookup_host((host, 0))).await;
        let found = match asked {
            Ok(Ok(addrs)) => addrs.map(|addr| addr.ip()).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        let mut known = self.known.borrow_mut();
        if found.is_empty() {
            let last_good = known.get(host).map(|answer| answer.addrs.clone());
            return last_good.ok_or_else(|| io::ErrorKind::NotFound.into());
        }
        let answer = Answer {
            addrs: found.clone(),
            asked_at: now(),
        };
        known.insert(host.to_owned(), answer);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const WITHIN: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn an_address_needs_no_question_and_localhost_gets_an_answer() {
        let names = Names::default();
        let [v4, v6] = ["127.0.0.1", "::1"].map(|host| names.lookup(host, WITHIN));
        assert_eq!(v4.await.ok(), Some(vec![Ipv4Addr::LOCALHOST.into()]));
        assert_eq!(v6.await.ok(), Some(vec![Ipv6Addr::LOCALHOST.into()]));
        assert!(names.known.borrow().is_empty());
        let localhost = names.lookup("localhost", WITHIN).await;
        assert!(localhost.is_ok_and(|addrs| addrs.contains(&Ipv4Addr::LOCALHOST.into())));
    }

    #[tokio::test]
    async fn the_last_answer_serves_where_nobody_answers() {
        let names = Names::default();
        let unknown = "no-such-host.invalid";
        let error = names.lookup(unknown, WITHIN).await.map_err(|e| e.kind());
        assert_eq!(error, Err(io::ErrorKind::NotFound));
        let addrs = vec![IpAddr::from([127, 0, 0, 9])];
        let asked_at = Instant::now() - 2 * FRESH;
        let old = Answer {
            addrs: addrs.clone(),
            asked_at,
        };
        names.known.borrow_mut().insert(unknown.to_owned(), old);
        assert_eq!(names.lookup(unknown, WITHIN).await.ok(), Some(addrs));
    }

    #[tokio::test]
    async fn the_next_address_is_tried_where_one_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let names = Names::default();
        let both = [[127, 0, 0, 7], [127, 0, 0, 1]].map(IpAddr::from);
        let answer = Answer {
            addrs: both.to_vec(),
            asked_at: Instant::now(),
        };
        names.known.borrow_mut().insert("both".to_owned(), answer);
        let stream = names.connect("both", port, WITHIN).await;
        let peer = stream.and_then(|stream| stream.peer_addr()).ok();
        assert_eq!(peer.map(|peer| peer.ip()), Some(both[1]));
    }
}
