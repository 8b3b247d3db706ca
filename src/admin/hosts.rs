//! Which `Host` a request may name.
//!
//! A page in a browser can make its own name resolve to 127.0.0.1 (DNS
//! rebinding) and then read what a local port serves. Its requests still name
//! the page's host, so only natsmux's own addresses are served.

use std::net::IpAddr;

use hyper::header::HOST;
use hyper::http::uri::Authority;
use hyper::{Request, Version};

/// Whether a request names this host: a loopback name or address, one of its
/// `own` names, or the address that the connection was made to.
pub(super) fn is_allowed<B>(request: &Request<B>, local: IpAddr, own: &[String]) -> bool {
    let absolute = request.uri().authority();
    if absolute.is_some_and(|authority| !is_own(authority, local, own)) {
        return false;
    }
    let mut headers = request.headers().get_all(HOST).iter();
    match (headers.next(), headers.next()) {
        // HTTP/1.0 has no Host, and no browser speaks it.
        (None, _) => request.version() == Version::HTTP_10,
        (Some(host), None) => Authority::try_from(host.as_bytes())
            .is_ok_and(|authority| is_own(&authority, local, own)),
        (Some(_), Some(_)) => false,
    }
}

fn is_own(authority: &Authority, local: IpAddr, own: &[String]) -> bool {
    let host = authority.host();
    if authority.as_str().contains('@') {
        return false;
    }
    let names = own.iter().map(String::as_str).chain(["localhost"]);
    if names
        .into_iter()
        .any(|name| host.eq_ignore_ascii_case(name))
    {
        return true;
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let ip = bare.parse().map(|ip: IpAddr| ip.to_canonical());
    ip.is_ok_and(|ip| ip.is_loopback() || ip == local.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(version: Version, uri: &str, hosts: &[&str]) -> bool {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let request = request.body(()).expect("a request");
        let own = ["node7".to_owned(), "node7.example".to_owned()];
        is_allowed(&request, IpAddr::from([10, 0, 0, 5]), &own)
    }

    #[test]
    fn own_names_and_addresses_are_served() {
        for host in [
            "localhost",
            "LocalHost:8222",
            "127.0.0.1:8222",
            "[::1]:1",
            "10.0.0.5",
            "node7:8222",
            "NODE7.example",
        ] {
            assert!(allowed(Version::HTTP_11, "/varz", &[host]), "{host}");
        }
        assert!(allowed(Version::HTTP_10, "/varz", &[]));
        assert!(allowed(
            Version::HTTP_11,
            "http://localhost/varz",
            &["localhost"]
        ));
    }

    #[test]
    fn other_names_are_refused() {
        for host in [
            "attacker.example",
            "node7.attacker.example",
            "10.0.0.6",
            "localhost.attacker.example",
            "a@localhost",
            "",
        ] {
            assert!(!allowed(Version::HTTP_11, "/varz", &[host]), "{host}");
        }
        assert!(!allowed(Version::HTTP_11, "/varz", &[]));
        assert!(!allowed(
            Version::HTTP_11,
            "/varz",
            &["localhost", "localhost"]
        ));
        assert!(!allowed(
            Version::HTTP_11,
            "http://attacker.example/varz",
            &["localhost"]
        ));
    }
}
