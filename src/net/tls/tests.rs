use std::future::poll_fn;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::config::TlsFiles;
use crate::net::{Flush, Port, Retention};

const PATIENCE: Duration = Duration::from_secs(5);

/// A certificate that is its own authority, and both sides of it.
fn sides(names: &[&str]) -> (TempDir, ClientTls, ServerTls) {
    let folder = tempfile::tempdir().expect("a folder");
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(names).expect("names");
    let own = params.self_signed(&key).expect("a certificate");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("cert.pem"), own.pem()).expect("a file");
    std::fs::write(path("key.pem"), key.serialize_pem()).expect("a file");
    let client = TlsFiles {
        ca: Some(path("cert.pem")),
        ..TlsFiles::default()
    };
    let server = TlsFiles {
        pair: Some((path("cert.pem"), path("key.pem"))),
        ..TlsFiles::default()
    };
    let client = ClientTls::load(&client, None).expect("a good file");
    let server = ServerTls::load(&server).expect("good files");
    (folder, client, server)
}

struct Side {
    port: Port,
    read: ReadHalf,
    out: Outbox,
}

impl Side {
    fn new(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self {
            port: Port::new(write),
            read,
            out: Outbox::new(Retention::UntilWritten),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        while self.port.flush(&mut self.out) == Flush::Full
            && self.port.poll_writable(cx).is_ready()
        {}
        self.port.poll_read(&mut self.read, cx, buffer)
    }

    /// Reads until there are so many bytes, `most` at a time.
    async fn take(&mut self, count: usize, most: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        let mut buffer = vec![0; most];
        while taken.len() < count {
            let read = poll_fn(|cx| self.poll_read(cx, &mut buffer));
            let read = timeout(PATIENCE, read).await.expect("in time");
            let read = read.expect("no fault");
            assert!(read > 0, "the end after {} bytes", taken.len());
            taken.extend_from_slice(&buffer[..read]);
        }
        taken
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let (one, other) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (one.expect("connected"), other.expect("accepted").0)
}

/// Two sides with a handshake between them, each of which reads what the other writes.
async fn secured() -> (TempDir, Side, Side) {
    let (folder, client_tls, server_tls) = sides(&["localhost"]);
    let (one, other) = pair().await;
    let (mut client, mut server) = (Side::new(one), Side::new(other));
    let name = client_tls.name_of("localhost").expect("a name");
    client
        .port
        .secure(Tls::client(&client_tls, name).expect("possible"));
    server
        .port
        .secure(Tls::server(&server_tls).expect("possible"));
    let both = handshake(&mut client, &mut server);
    timeout(PATIENCE, both).await.expect("a handshake in time");
    (folder, client, server)
}

/// Has both sides read and answer until each is secured.
async fn handshake(client: &mut Side, server: &mut Side) {
    let (mut has_client, mut has_server) = (false, false);
    poll_fn(|cx| {
        assert!(client.poll_read(cx, &mut [0; 64]).is_pending());
        assert!(server.poll_read(cx, &mut [0; 64]).is_pending());
        has_client |= client.port.take_secured();
        has_server |= server.port.take_secured();
        if has_client && has_server {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
}

#[tokio::test]
async fn what_is_written_is_read_whatever_the_reader_has_room_for() {
    let (_folder, mut client, mut server) = secured().await;
    let sent: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
    for most in [1, 7, 4_096, 16_384, 100_000] {
        client.out.push(&sent);
        while client.port.flush(&mut client.out) == Flush::Full {
            // The reader makes room.
            let some = server.take(1, most).await;
            assert!(!some.is_empty());
            poll_fn(|cx| client.port.poll_writable(cx)).await;
        }
        assert!(client.out.is_empty());
        let count = if most == 1 { 2_000 } else { sent.len() };
        let got = server.take(count, most).await;
        assert_eq!(got[..count], sent[..count], "{most} at a time");
        if most == 1 {
            let rest = server.take(sent.len() - got.len(), 4_096).await;
            assert_eq!(rest, sent[got.len()..]);
        }
    }
}

/// A record that is cut is worth nothing to the peer: what the kernel doesn't have whole isn't
/// written, and what it has is.
#[tokio::test]
async fn what_counts_as_written_is_what_the_peer_can_open() {
    let (_folder, mut client, mut server) = secured().await;
    let sent: Vec<u8> = (0..32_000_000_u32).map(|at| (at % 251) as u8).collect();
    for chunk in sent.chunks(50_000) {
        client.out.push_chunk(chunk.to_vec());
    }
    assert_eq!(client.port.flush(&mut client.out), Flush::Full);
    let written = sent.len() - client.out.pending_bytes();
    assert!(written > 0 && !client.out.is_empty());
    // The link dies here.
    socket::shutdown(client.port.socket());
    let mut got = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let read = poll_fn(|cx| server.port.poll_read(&mut server.read, cx, &mut buffer));
        match timeout(PATIENCE, read).await.expect("in time") {
            Ok(count) if count > 0 => got.extend_from_slice(&buffer[..count]),
            Ok(_) | Err(_) => break,
        }
    }
    assert_eq!(got.len(), written);
    assert_eq!(got, sent[..written]);
}

/// A network that passes on one byte at a time.
#[tokio::test]
async fn records_are_torn_at_every_byte() {
    let (_folder, client_tls, server_tls) = sides(&["localhost"]);
    let (one, near) = pair().await;
    let (far, other) = pair().await;
    let pass = |from: TcpStream, to: TcpStream| async move {
        let mut byte = [0];
        let (mut from, mut to) = (from, to);
        let (mut from_read, mut from_write) = from.split();
        let (mut to_read, mut to_write) = to.split();
        let up = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            while from_read.read_exact(&mut byte).await.is_ok() {
                to_write.write_all(&byte).await.expect("open");
            }
        };
        let mut byte = [0];
        let down = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            while to_read.read_exact(&mut byte).await.is_ok() {
                from_write.write_all(&byte).await.expect("open");
            }
        };
        tokio::join!(up, down);
    };
    let network = tokio::spawn(pass(near, far));
    one.set_nodelay(true).expect("possible");
    let (mut client, mut server) = (Side::new(one), Side::new(other));
    let name = client_tls.name_of("localhost").expect("a name");
    client
        .port
        .secure(Tls::client(&client_tls, name).expect("possible"));
    server
        .port
        .secure(Tls::server(&server_tls).expect("possible"));
    let both = async {
        handshake(&mut client, &mut server).await;
        client.out.push(b"PUB a 5\r\nhello\r\n");
        server.out.push(b"PONG\r\n");
        assert_eq!(client.port.flush(&mut client.out), Flush::Done);
        assert_eq!(server.take(16, 64).await, b"PUB a 5\r\nhello\r\n");
        assert_eq!(client.take(6, 64).await, b"PONG\r\n");
    };
    timeout(PATIENCE, both).await.expect("in time");
    network.abort();
}

#[tokio::test]
async fn a_certificate_for_another_name_is_a_fault_of_its_own() {
    let (_folder, client_tls, server_tls) = sides(&["other.example"]);
    let (one, other) = pair().await;
    let (mut client, mut server) = (Side::new(one), Side::new(other));
    let name = client_tls.name_of("localhost").expect("a name");
    client
        .port
        .secure(Tls::client(&client_tls, name).expect("possible"));
    server
        .port
        .secure(Tls::server(&server_tls).expect("possible"));
    let faults = poll_fn(|cx| {
        let fault = client.poll_read(cx, &mut [0; 64]);
        let _ = server.poll_read(cx, &mut [0; 64]);
        fault
    });
    let error = timeout(PATIENCE, faults).await.expect("in time");
    let error = error.expect_err("not its name");
    assert_eq!(TlsFault::of(&error), Some(TlsFault::WrongName));
    let told = poll_fn(|cx| server.poll_read(cx, &mut [0; 64]));
    let told = timeout(PATIENCE, told).await.expect("in time");
    let told = told.expect_err("an alert");
    assert_eq!(TlsFault::of(&told), Some(TlsFault::Refused));
}

/// The broker's words in plain text behind a ClientHello pass as they are.
#[tokio::test]
async fn a_peer_that_speaks_in_plain_text_is_heard_and_not_believed() {
    let (_folder, client_tls, _) = sides(&["localhost"]);
    let (one, other) = pair().await;
    let mut client = Side::new(one);
    let name = client_tls.name_of("localhost").expect("a name");
    client
        .port
        .secure(Tls::client(&client_tls, name).expect("possible"));
    other.try_write(b"-ERR 'later'\r\n").expect("room");
    let mut buffer = [0; 64];
    let read = poll_fn(|cx| client.poll_read(cx, &mut buffer));
    let count = timeout(PATIENCE, read).await.expect("in time");
    let count = count.expect("its words");
    assert_eq!(&buffer[..count], b"-ERR 'later'\r\n");
    assert!(!client.port.take_secured());
    client.out.push(b"CONNECT {}\r\n");
    assert_eq!(client.port.flush(&mut client.out), Flush::Done);
    assert!(
        !client.out.is_empty(),
        "nothing is written before a handshake"
    );
}

#[tokio::test]
async fn the_end_that_a_peer_says_is_the_end() {
    let (_folder, mut client, mut server) = secured().await;
    client.out.push(b"PING\r\n");
    assert_eq!(client.port.flush(&mut client.out), Flush::Done);
    client.port.say_end();
    assert_eq!(server.take(6, 64).await, b"PING\r\n");
    let read = poll_fn(|cx| server.poll_read(cx, &mut [0; 64]));
    let end = timeout(PATIENCE, read).await.expect("in time");
    assert_eq!(end.expect("no fault"), 0, "though the socket is open");
}
