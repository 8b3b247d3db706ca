//! A connection of the generator, in plain text or in TLS of its own.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

/// The most that is read from a socket at once, sealed.
const READ_SEALED: usize = 256 * 1024;

/// Where somebody listens, and how it is spoken to.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) address: String,
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

type Shared = Arc<Mutex<ClientConnection>>;

/// TLS on a connection, where this side reads.
struct Secured {
    connection: Shared,
    /// Bytes that were read from the socket and aren't opened.
    sealed: Vec<u8>,
    from: usize,
    to: usize,
}

/// One connection. Reads wait for `patience`.
pub(crate) struct Stream {
    socket: TcpStream,
    secured: Option<Secured>,
}

/// The writing half: there is one at a time.
pub(crate) struct Writer {
    socket: TcpStream,
    connection: Option<Shared>,
    sealed: Vec<u8>,
}

fn locked(connection: &Shared) -> std::sync::MutexGuard<'_, ClientConnection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// Connects, and speaks plain text yet.
    pub(crate) fn connect(place: &Place, patience: Duration) -> Self {
        let socket = TcpStream::connect(&place.address).expect("somebody listens");
        socket.set_nodelay(true).expect("a socket");
        socket.set_read_timeout(Some(patience)).expect("a socket");
        Self {
            socket,
            secured: None,
        }
    }

    /// Has all that follows sealed.
    pub(crate) fn secure(&mut self, config: &Arc<ClientConfig>) {
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(Arc::clone(config), name);
        let mut connection = connection.expect("a connection");
        connection.set_buffer_limit(None);
        while connection.is_handshaking() {
            connection
                .complete_io(&mut self.socket)
                .expect("a handshake");
        }
        self.secured = Some(Secured {
            connection: Arc::new(Mutex::new(connection)),
            sealed: vec![0; 16 * 1024],
            from: 0,
            to: 0,
        });
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        let socket = &self.socket;
        socket.set_read_timeout(Some(patience)).expect("a socket");
    }

    /// The writing half.
    pub(crate) fn writer(&self) -> Writer {
        let secured = self.secured.as_ref();
        Writer {
            socket: self.socket.try_clone().expect("a socket"),
            connection: secured.map(|secured| Arc::clone(&secured.connection)),
            sealed: Vec::new(),
        }
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(secured) = &mut self.secured else {
            return self.socket.read(buffer);
        };
        if buffer.len() > secured.sealed.len() {
            secured.sealed.resize(READ_SEALED, 0);
        }
        loop {
            let opened = secured.open(buffer)?;
            if opened > 0 {
                return Ok(opened);
            }
            let count = self.socket.read(&mut secured.sealed)?;
            if count == 0 {
                return Ok(0);
            }
            (secured.from, secured.to) = (0, count);
        }
    }
}

impl Secured {
    /// Opens what was read, as far as there is room.
    fn open(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut connection = locked(&self.connection);
        let mut filled = 0;
        loop {
            match connection.reader().read(&mut buffer[filled..]) {
                Ok(0) => return Ok(filled),
                Ok(count) => {
                    filled += count;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.from == self.to || filled == buffer.len() {
                return Ok(filled);
            }
            let mut left = &self.sealed[self.from..self.to];
            let taken = connection.read_tls(&mut left)?;
            self.from += taken;
            let state = connection.process_new_packets();
            state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
}

impl Writer {
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(connection) = &self.connection else {
            return self.socket.write_all(bytes);
        };
        self.sealed.clear();
        {
            let mut connection = locked(connection);
            connection.writer().write_all(bytes)?;
            while connection.wants_write() {
                connection.write_tls(&mut self.sealed)?;
            }
        }
        self.socket.write_all(&self.sealed)
    }
}
