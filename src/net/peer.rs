//! The process at the other end of a loopback connection, as the kernel knows it
//! (`NETLINK_SOCK_DIAG`, which asks for no privilege).

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::clock::Instant;

/// Answers that are read before one is found that belongs to the question.
const ANSWERS_MOST: usize = 8;
/// Groups that are looked at, where one isn't known, and how often in a second.
const GROUPS_MOST: usize = 4_096;
const WALKS_MOST: usize = 20;

const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const TCP: u8 = 6;
const INET: u8 = 2;
const INET6: u8 = 10;
const ESTABLISHED: u8 = 1;
const CGROUP_ID: u16 = 21;
const HEAD: usize = 16;
const MESSAGE: usize = 72;

/// The owner of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOwner {
    /// The user that its process ran as when it made it.
    pub uid: u32,
    /// The control group that its process was in then, where the kernel says so.
    pub cgroup: Option<u64>,
}

thread_local! {
    static SOCKET: OnceCell<OwnedFd> = const { OnceCell::new() };
    static UNITS: RefCell<Units> = const { RefCell::new(Units { known: BTreeMap::new(), walks: VecDeque::new() }) };
}

/// Finds the owner of the socket at `peer` that is connected to `local`. `None`: it isn't one of
/// loopback's, or its process has closed it.
///
/// # Errors
/// The kernel doesn't answer.
pub fn owner(peer: SocketAddr, local: SocketAddr) -> io::Result<Option<SocketOwner>> {
    let (peer, local) = (plain(peer), plain(local));
    if !peer.ip().is_loopback() || !local.ip().is_loopback() || peer.is_ipv4() != local.is_ipv4() {
        return Ok(None);
    }
    let request = request(peer, local);
    SOCKET.with(|socket| {
        let socket = match socket.get() {
            Some(socket) => socket,
            None => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let opened = rustix::net::socket_with(
                    AddressFamily::NETLINK,
                    SocketType::RAW,
                    flags,
                    Some(SOCK_DIAG),
                )?;
                socket.get_or_init(|| opened)
            }
        };
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(socket, &request, SendFlags::empty(), &kernel)?;
        // The kernel answers before the call returns.
        let mut answer = [0; 1024];
        for _ in 0..ANSWERS_MOST {
            let (count, _) = rustix::net::recv(socket, &mut answer[..], RecvFlags::empty())?;
            if let Some(found) = parse(&answer[..count], peer, local) {
                return Ok(found);
            }
        }
        Ok(None)
    })
}

/// An IPv4 address as such, also where it came through a socket of IPv6.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn request(peer: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(MESSAGE);
    out.extend_from_slice(&(MESSAGE as u32).to_ne_bytes());
    out.extend_from_slice(&BY_FAMILY.to_ne_bytes());
    out.extend_from_slice(&REQUEST.to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    let family = if peer.is_ipv4() { INET } else { INET6 };
    out.extend_from_slice(&[family, TCP, 0, 0]);
    out.extend_from_slice(&(1_u32 << ESTABLISHED).to_ne_bytes());
    out.extend_from_slice(&socket_id(peer, local));
    // Whatever the interface, whatever the cookie.
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&[0xff; 8]);
    out
}

/// Ports and addresses as the kernel writes them.
fn socket_id(peer: SocketAddr, local: SocketAddr) -> [u8; 36] {
    let mut id = [0; 36];
    id[..2].copy_from_slice(&peer.port().to_be_bytes());
    id[2..4].copy_from_slice(&local.port().to_be_bytes());
    for (addr, at) in [(peer.ip(), 4), (local.ip(), 20)] {
        match addr {
            IpAddr::V4(addr) => id[at..at + 4].copy_from_slice(&addr.octets()),
            IpAddr::V6(addr) => id[at..at + 16].copy_from_slice(&addr.octets()),
        }
    }
    id
}

/// An address of an answer: a socket of IPv6 may have one of IPv4.
fn read_end(body: &[u8], family: u8, port: usize, addr: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(body.get(port..port + 2)?.try_into().ok()?);
    let ip = if family == INET {
        IpAddr::from(<[u8; 4]>::try_from(body.get(addr..addr + 4)?).ok()?)
    } else {
        IpAddr::from(<[u8; 16]>::try_from(body.get(addr..addr + 16)?).ok()?)
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// Reads an answer; `None`: it belongs to another question.
fn parse(answer: &[u8], peer: SocketAddr, local: SocketAddr) -> Option<Option<SocketOwner>> {
    let word = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != BY_FAMILY {
        // An error: there is no such socket.
        return Some(None);
    }
    let body = answer.get(HEAD..)?;
    let family = *body.first()?;
    let ends = [(4, 8), (6, 24)].map(|(port, addr)| read_end(body, family, port, addr));
    if ends != [Some(peer), Some(local)] {
        return None;
    }
    let (state, uid, inode) = (*body.get(1)?, word(body, 64)?, word(body, 68)?);
    // What its process has closed belongs to nobody, and the kernel would say: to root.
    if state != ESTABLISHED || inode == 0 {
        return Some(None);
    }
    let mut cgroup = None;
    let mut rest = body.get(MESSAGE..)?;
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        let [a, b, c, d] = *head;
        let (len, kind) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        let len = usize::from(len).max(4);
        if kind == CGROUP_ID {
            let value = rest.get(4..12).and_then(|value| value.try_into().ok());
            cgroup = value.map(u64::from_ne_bytes);
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Some(SocketOwner { uid, cgroup }))
}

/// Units of control groups, by these groups' numbers, of which none is ever another group's.
struct Units {
    known: BTreeMap<u64, Option<String>>,
    /// When all groups were looked at.
    walks: VecDeque<Instant>,
}

/// The systemd unit of a control group: the outermost service, scope or socket that it is in, since
/// what is within one is its own to name. `None`: it is in none, or new in a second in which very
/// many were looked for.
pub fn unit_of(cgroup: u64, now: Instant) -> Option<String> {
    UNITS.with(|units| {
        let mut units = units.borrow_mut();
        if let Some(known) = units.known.get(&cgroup) {
            return known.clone();
        }
        let is_past = |at: &Instant| now.saturating_duration_since(*at) >= Duration::from_secs(1);
        while units.walks.front().is_some_and(is_past) {
            units.walks.pop_front();
        }
        if units.walks.len() >= WALKS_MOST {
            return None;
        }
        units.walks.push_back(now);
        units.known = walk();
        units.known.get(&cgroup)?.clone()
    })
}

fn unit_in(path: &Path) -> Option<String> {
    let mut names = path.iter().filter_map(|name| name.to_str());
    let is_unit = |name: &&str| {
        let kinds = [".service", ".scope", ".socket"];
        kinds.iter().any(|kind| name.ends_with(kind))
    };
    names.find(is_unit).map(str::to_owned)
}

/// All control groups with their units: a group's number is its folder's inode.
fn walk() -> BTreeMap<u64, Option<String>> {
    let mut found = BTreeMap::new();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    });
    // The outer ones first: within a unit, anybody may make many.
    let mut waiting: VecDeque<PathBuf> = root.into_iter().collect();
    while let Some(path) = waiting.pop_front() {
        if found.len() >= GROUPS_MOST {
            break;
        }
        // One that has just gone is nobody's.
        let (Ok(metadata), Ok(entries)) = (fs::metadata(&path), fs::read_dir(&path)) else {
            continue;
        };
        found.insert(metadata.ino(), unit_in(&path));
        let folders = entries.flatten().filter(|entry| {
            let kind = entry.file_type();
            kind.is_ok_and(|kind| kind.is_dir())
        });
        waiting.extend(folders.map(|entry| entry.path()));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_owner_of_a_connection_is_found_until_it_is_closed() {
        let own = rustix::process::getuid().as_raw();
        for (bind, from) in [
            ("127.0.0.1:0", None),
            ("[::1]:0", None),
            // A library that speaks IPv4 through sockets of IPv6, as Java's does.
            ("127.0.0.1:0", Some("[::ffff:127.0.0.1]")),
        ] {
            let Ok(listener) = TcpListener::bind(bind) else {
                continue;
            };
            let addr = listener.local_addr().expect("an address");
            let to = from.map_or(addr.to_string(), |host| format!("{host}:{}", addr.port()));
            let Ok(client) = TcpStream::connect(to) else {
                continue;
            };
            let (server, peer) = listener.accept().expect("accepted");
            let found = owner(peer, addr).expect("an answer").expect("an owner");
            assert_eq!(found.uid, own);
            let nobody = SocketAddr::new(peer.ip(), peer.port().wrapping_add(1).max(1));
            assert_eq!(owner(nobody, addr).expect("an answer"), None);
            drop(client);
            assert_eq!(
                owner(peer, addr).expect("an answer"),
                None,
                "it is nobody's"
            );
            drop(server);
        }
    }

    #[test]
    fn what_is_not_loopback_is_not_asked_for() {
        let addr = |text: &str| text.parse().expect("an address");
        let found = owner(addr("192.0.2.1:1"), addr("127.0.0.1:2"));
        assert_eq!(found.expect("no question"), None);
    }

    #[test]
    fn the_unit_is_the_outermost() {
        let unit = |path: &str| unit_in(Path::new(path));
        let path = "/sys/fs/cgroup/system.slice/orders.service/worker";
        assert_eq!(unit(path).as_deref(), Some("orders.service"));
        // Whoever has a unit names what is within.
        let path = "/sys/fs/cgroup/user.slice/user@1000.service/app.slice/orders.service";
        assert_eq!(unit(path).as_deref(), Some("user@1000.service"));
        assert_eq!(unit("/sys/fs/cgroup/system.slice"), None);
        let now = Instant::now();
        for _ in 0..2 * WALKS_MOST {
            assert_eq!(unit_of(u64::MAX, now), None);
        }
    }

    #[test]
    fn answers_to_other_questions_and_cut_ones_are_no_answers() {
        let (peer, local) = (
            "127.0.0.1:1".parse().expect("an address"),
            "127.0.0.1:2".parse().expect("an address"),
        );
        let mut answer = vec![0; HEAD + MESSAGE];
        answer[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        assert_eq!(parse(&answer, peer, local), None, "of another");
        answer[HEAD] = INET;
        answer[HEAD + 4..HEAD + 40].copy_from_slice(&socket_id(peer, local));
        assert_eq!(parse(&answer, peer, local), Some(None), "of nobody");
        answer[HEAD + 1] = ESTABLISHED;
        answer[HEAD + 64..HEAD + 68].copy_from_slice(&7_u32.to_ne_bytes());
        answer[HEAD + 68] = 1;
        let owner = parse(&answer, peer, local)
            .expect("the answer")
            .expect("an owner");
        assert_eq!(
            owner,
            SocketOwner {
                uid: 7,
                cgroup: None
            }
        );
        for end in 0..answer.len() {
            let _ = parse(&answer[..end], peer, local);
        }
    }
}
