//! Names of brokers: their addresses, and connections to them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use super::socket::{self, Stream};

/// Asks the system's resolver, for as long as that takes.
///
/// # Errors
/// `NotFound` where the name has no address; else the resolver's.
pub async fn lookup(host: &str) -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = lookup_host((host, 0))
        .await?
        .map(|addr| addr.ip())
        .collect();
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        Err(io::ErrorKind::NotFound.into())
    } else {
        Ok(found)
    }
}

/// Opens a TCP connection to the first of these addresses that takes it within its part of
/// `within`.
///
/// # Errors
/// `NotFound` where there is none; `TimedOut` where none answered in time; else the last
/// address's error.
pub async fn connect(addrs: &[IpAddr], port: u16, within: Duration) -> io::Result<Stream> {
    let count = u32::try_from(addrs.len()).unwrap_or(u32::MAX).max(1);
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for addr in addrs {
        let connecting = socket::connect(SocketAddr::new(*addr, port));
        match timeout(within / count, connecting).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

#[cfg(all(test, not(feature = "turmoil")))]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn names_mean_all_of_their_addresses_or_nothing() {
        let localhost = lookup("localhost").await;
        assert!(localhost.is_ok_and(|addrs| addrs.contains(&Ipv4Addr::LOCALHOST.into())));
        assert!(lookup("no-such-host.invalid").await.is_err());
        let none = connect(&[], 1, WITHIN).await.map_err(|error| error.kind());
        assert_eq!(none.err(), Some(io::ErrorKind::NotFound));
    }

    #[tokio::test]
    async fn the_next_address_is_tried_where_one_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let both = [[127, 0, 0, 7], [127, 0, 0, 1]].map(IpAddr::from);
        let stream = connect(&both, port, WITHIN).await;
        let peer = stream.and_then(|stream| stream.peer_addr()).ok();
        assert_eq!(peer.map(|peer| peer.ip()), Some(both[1]));
    }
}
