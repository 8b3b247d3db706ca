//! TLS on one socket: the only module that knows rustls.
//!
//! The driver reads the socket and has the bytes opened; what it gives to be written is sealed in
//! records, and counts as written only once the kernel has the whole record: a record that is cut
//! is worth nothing to the peer, so what is in it wasn't sent (R35).

mod files;
mod marks;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, CertificateError, ClientConnection, Connection, ProtocolVersion,
    ServerConnection,
};

pub use files::{ClientTls, ServerTls, TlsFileError};
use marks::Marks;

use super::Outbox;
use super::socket::{self, READ_BYTES, ReadHalf, WriteHalf};

/// The most that one record holds, in bytes.
const RECORD_BYTES: usize = 16 * 1024;
/// Records that are sealed before the socket is asked to take them.
const RECORDS_PER_WRITE: usize = 16;
/// The most records under one key of TLS 1.2, which is never renewed: a little less than AES-GCM
/// allows, 2^24. The connection ends then, and its peer connects anew.
const RECORDS_PER_KEY: u32 = (1 << 24) - 1024;
/// Chunks of an outbox that one record is made of, at most.
const SLICES: usize = 64;
/// The first bytes of a peer that speaks TLS: the types of its records.
const RECORD_TYPES: std::ops::RangeInclusive<u8> = 20..=23;

thread_local! {
    /// Bytes that were read from a socket and aren't opened yet; empty between two calls.
    static CLOSED: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
    /// Bytes that are sealed and not written yet; empty between two calls.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Why TLS came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// The peer's certificate has expired, or isn't valid yet.
    Expired,
    /// Nobody who is trusted has signed the peer's certificate.
    UnknownIssuer,
    /// The peer's certificate is for another name.
    WrongName,
    /// The peer's certificate is wrong in another way.
    Certificate,
    /// The peer refused the certificate of this side, or misses one.
    Refused,
    /// Anything else: no common version, a peer that speaks something else.
    Other,
}

impl TlsFault {
    /// The fault behind an error of a read or a write; `None`: it is the socket's.
    pub fn of(error: &io::Error) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(match error {
            rustls::Error::InvalidCertificate(fault) => match fault {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Expired,
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
                _ => Self::Certificate,
            },
            rustls::Error::NoCertificatesPresented => Self::Refused,
            rustls::Error::AlertReceived(
                AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRequired
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied,
            ) => Self::Refused,
            _ => Self::Other,
        })
    }
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// One record that is sealed and not written whole.
#[derive(Clone, Copy, Debug)]
struct Record {
    /// Its end in what is sealed.
    end: usize,
    /// Bytes of plain text in it; 0 for the protocol's own.
    holds: usize,
}

/// TLS on one socket.
pub struct Tls {
    connection: Connection,
    /// Sealed bytes that the socket didn't take.
    sealed: Vec<u8>,
    records: VecDeque<Record>,
    /// Bytes that were read and not opened: the reader had no room.
    unopened: Vec<u8>,
    marks: Marks,
    /// Bytes that were opened and not read.
    unread: usize,
    /// The peer's fault, behind bytes that are still to be read.
    fault: Option<rustls::Error>,
    /// The peer has said that nothing more comes.
    has_ended: bool,
    /// The peer has answered.
    has_begun: bool,
    /// The peer speaks, and it isn't TLS: what it says passes as it is.
    is_plain: bool,
    /// The handshake is over, and nobody was told.
    is_news: bool,
    /// Records that were sealed under one key.
    sealed_records: u32,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handshaking = self.connection.is_handshaking();
        f.debug_struct("Tls")
            .field("handshaking", &handshaking)
            .field("sealed", &self.sealed.len())
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// The side that connects, to a peer that must prove to be `name`.
    ///
    /// # Errors
    /// The library's.
    pub fn client(tls: &ClientTls, name: ServerName<'static>) -> io::Result<Self> {
        let connection = ClientConnection::new(tls.config(), name).map_err(broken)?;
        Ok(Self::new(connection.into()))
    }

    /// The side that accepts.
    ///
    /// # Errors
    /// The library's.
    pub fn server(tls: &ServerTls) -> io::Result<Self> {
        let connection = ServerConnection::new(tls.config()).map_err(broken)?;
        Ok(Self::new(connection.into()))
    }

    fn new(mut connection: Connection) -> Self {
        // Bytes that wait have bounds of their own.
        connection.set_buffer_limit(None);
        Self {
            connection,
            sealed: Vec::new(),
            records: VecDeque::new(),
            unopened: Vec::new(),
            marks: Marks::default(),
            unread: 0,
            fault: None,
            has_ended: false,
            has_begun: false,
            is_plain: false,
            is_news: true,
            sealed_records: 0,
        }
    }

    /// Whether the handshake is over since the last call.
    pub fn take_secured(&mut self) -> bool {
        !self.connection.is_handshaking() && std::mem::take(&mut self.is_news)
    }

    /// When the peer's certificate ends, or one between it and its authority.
    pub fn peer_ends(&self) -> Option<SystemTime> {
        files::first_end(self.connection.peer_certificates()?)
    }

    /// The common name and the DNS names in the peer's certificate.
    pub fn peer_names(&self) -> Vec<String> {
        let chain = self.connection.peer_certificates().unwrap_or_default();
        chain.first().map(files::names_in).unwrap_or_default()
    }

    /// Whether there is something to read that the socket doesn't know of any more.
    pub fn has_unread(&self) -> bool {
        self.unread > 0 || !self.unopened.is_empty() || self.fault.is_some() || self.has_ended
    }

    /// Reads what the peer wrote. `Ready(Ok(0))` is the end of the stream, said or not.
    pub fn poll_read(
        &mut self,
        read: &mut ReadHalf,
        write: &WriteHalf,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.read_with(write, buffer, |closed| socket::poll_read(read, cx, closed))
    }

    /// Reads through `read`, which is the socket's, until there is something for the reader.
    fn read_with(
        &mut self,
        write: &WriteHalf,
        buffer: &mut [u8],
        mut read: impl FnMut(&mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        CLOSED.with_borrow_mut(|closed| {
            loop {
                if let Some(opened) = self.open_left(buffer)? {
                    return Poll::Ready(Ok(opened));
                }
                let most = buffer.len().min(closed.len());
                let count = ready!(read(&mut closed[..most]))?;
                if let Some(result) = self.open_read(&closed[..count], write, buffer) {
                    return Poll::Ready(result);
                }
            }
        })
    }

    /// Takes in what the peer has sent of a handshake, and answers it. What comes behind that stays
    /// to be read.
    pub fn poll_handshake(
        &mut self,
        read: &mut ReadHalf,
        write: &WriteHalf,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        CLOSED.with_borrow_mut(|closed| {
            let count = ready!(socket::poll_read(read, cx, closed))?;
            let result = self.open_read(&closed[..count], write, &mut []);
            Poll::Ready(match result {
                Some(Ok(_)) if self.is_plain => Err(io::ErrorKind::InvalidData.into()),
                Some(Ok(_)) if count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
                Some(Ok(_)) | None => Ok(()),
                Some(Err(error)) => Err(error),
            })
        })
    }

    /// Reads what a dead socket still holds.
    ///
    /// # Errors
    /// As for [`socket::read_now`].
    pub fn read_now(
        &mut self,
        read: &ReadHalf,
        write: &WriteHalf,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        let polled = self.read_with(write, buffer, |closed| {
            Poll::Ready(socket::read_now(read, closed))
        });
        match polled {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Opens what a read has brought. `None`: there is nothing for the reader yet.
    fn open_read(
        &mut self,
        closed: &[u8],
        write: &WriteHalf,
        buffer: &mut [u8],
    ) -> Option<io::Result<usize>> {
        let Some(first) = closed.first() else {
            return Some(Ok(0));
        };
        let has_begun = std::mem::replace(&mut self.has_begun, true);
        self.is_plain |= !has_begun && !RECORD_TYPES.contains(first);
        if self.is_plain && buffer.len() < closed.len() {
            return Some(Err(io::ErrorKind::InvalidData.into()));
        }
        if self.is_plain {
            buffer[..closed.len()].copy_from_slice(closed);
            return Some(Ok(closed.len()));
        }
        let opened = self.open(closed, buffer);
        // An answer of the handshake, or the alert that says what is wrong.
        let written = self.write_own(write);
        match (opened, written) {
            (Ok(0), _) if self.has_ended => Some(Ok(0)),
            (Ok(0), Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Some(Err(error)),
            (Ok(0), _) => None,
            (opened, _) => Some(opened),
        }
    }

    /// Reads what is here already; `None`: nothing is.
    fn open_left(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut opened = self.take_opened(buffer)?;
        if opened == 0 && !self.unopened.is_empty() {
            let unopened = std::mem::take(&mut self.unopened);
            opened = self.open(&unopened, buffer)?;
        }
        if opened > 0 {
            return Ok(Some(opened));
        }
        match self.fault.take() {
            Some(fault) => Err(broken(fault)),
            None => Ok(self.has_ended.then_some(0)),
        }
    }

    /// Opens records into `buffer`, and keeps what it has no room for.
    fn open(&mut self, mut closed: &[u8], buffer: &mut [u8]) -> io::Result<usize> {
        let mut opened = 0;
        while !closed.is_empty() && !self.has_ended {
            if opened == buffer.len() && self.unread > 0 {
                self.unopened.extend_from_slice(closed);
                break;
            }
            self.connection.read_tls(&mut closed)?;
            match self.connection.process_new_packets() {
                Ok(state) => {
                    self.unread = state.plaintext_bytes_to_read();
                    self.has_ended = state.peer_has_closed();
                }
                // Bytes ahead of the fault are the peer's word.
                Err(fault) if opened > 0 => {
                    self.fault = Some(fault);
                    break;
                }
                Err(fault) => return Err(broken(fault)),
            }
            opened += self.take_opened(&mut buffer[opened..])?;
        }
        Ok(opened)
    }

    fn take_opened(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut taken = 0;
        while self.unread > 0 && taken < buffer.len() {
            match self.connection.reader().read(&mut buffer[taken..]) {
                Ok(0) => break,
                Ok(count) => {
                    taken += count;
                    self.unread = self.unread.saturating_sub(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// Writes as much of `outbox` as the socket takes.
    ///
    /// # Errors
    /// The socket's, `WouldBlock` where it is full.
    pub fn flush(&mut self, write: &WriteHalf, outbox: &mut Outbox) -> io::Result<()> {
        loop {
            self.write_sealed(write, outbox)?;
            if self.connection.is_handshaking() && !self.connection.wants_write() {
                return Ok(());
            }
            if !self.seal(write, outbox)? {
                return Ok(());
            }
        }
    }

    /// Writes what the protocol itself has to say.
    fn write_own(&mut self, write: &WriteHalf) -> io::Result<()> {
        if !self.sealed.is_empty() {
            // It goes behind what the next flush writes.
            return Ok(());
        }
        let mut sealed = Vec::new();
        self.take_record(0, &mut sealed)?;
        self.sealed = sealed;
        let mut nothing = Outbox::new(super::Retention::UntilWritten);
        self.write_sealed(write, &mut nothing)
    }

    /// Writes records that the socket hadn't room for.
    fn write_sealed(&mut self, write: &WriteHalf, outbox: &mut Outbox) -> io::Result<()> {
        if self.sealed.is_empty() {
            return Ok(());
        }
        let mut sealed = std::mem::take(&mut self.sealed);
        let mut at = 0;
        let result = self.write_records(write, &sealed, &mut at, outbox);
        sealed.drain(..at);
        if sealed.is_empty() {
            // Its room isn't needed while the socket keeps up.
            sealed = Vec::new();
        }
        self.keep_unwritten(sealed, at);
        result
    }

    /// Seals the next records and has them written. Returns whether there was anything to seal.
    fn seal(&mut self, write: &WriteHalf, outbox: &mut Outbox) -> io::Result<bool> {
        SEALED.with_borrow_mut(|sealed| {
            sealed.clear();
            self.seal_records(outbox, sealed)?;
            if sealed.is_empty() {
                return Ok(false);
            }
            let mut at = 0;
            let result = self.write_records(write, sealed, &mut at, outbox);
            if at < sealed.len() {
                self.keep_unwritten(sealed[at..].to_vec(), at);
            }
            result.map(|()| true)
        })
    }

    /// Keeps what the socket didn't take, behind the first `at` bytes.
    fn keep_unwritten(&mut self, sealed: Vec<u8>, at: usize) {
        for record in &mut self.records {
            record.end -= at;
        }
        self.sealed = sealed;
    }

    /// Takes what the library has sealed: one record that holds so much, or what the protocol itself
    /// has to say.
    fn take_record(&mut self, holds: usize, sealed: &mut Vec<u8>) -> io::Result<()> {
        let from = sealed.len();
        while self.connection.wants_write() {
            self.connection.write_tls(sealed)?;
        }
        let end = sealed.len();
        if end > from {
            self.sealed_records = self.sealed_records.saturating_add(1);
            self.records.push_back(Record { end, holds });
        }
        Ok(())
    }

    fn seal_records(&mut self, outbox: &Outbox, sealed: &mut Vec<u8>) -> io::Result<()> {
        self.take_record(0, sealed)?;
        if self.connection.is_handshaking() {
            return Ok(());
        }
        if self.sealed_records >= RECORDS_PER_KEY
            && self.connection.protocol_version() == Some(ProtocolVersion::TLSv1_2)
        {
            // The library would take what is written here, and drop it.
            return Err(io::Error::other("TLS 1.2: too many records under one key"));
        }
        if let Some(slice) = outbox.only_slice() {
            // Mostly: an array for all of them would be a kilobyte to fill.
            for part in slice.chunks(RECORD_BYTES).take(RECORDS_PER_WRITE) {
                let holds = self.connection.writer().write(part)?;
                self.take_record(holds, sealed)?;
            }
            return Ok(());
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = outbox.slices(&mut slices);
        let mut left = &mut slices[..filled];
        for _ in 0..RECORDS_PER_WRITE {
            let holds = self.seal_one(left)?;
            if holds == 0 {
                break;
            }
            IoSlice::advance_slices(&mut left, holds);
            self.take_record(holds, sealed)?;
        }
        Ok(())
    }

    /// Seals one record of what stands first. Returns how many bytes it holds.
    fn seal_one(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut parts = [IoSlice::new(&[]); SLICES];
        let (mut filled, mut room) = (0, RECORD_BYTES);
        for (part, slice) in parts.iter_mut().zip(slices) {
            let taken = slice.len().min(room);
            *part = IoSlice::new(&slice[..taken]);
            filled += 1;
            room -= taken;
            if room == 0 {
                break;
            }
        }
        match &parts[..filled] {
            [] => Ok(0),
            parts => self.connection.writer().write_vectored(parts),
        }
    }

    fn write_records(
        &mut self,
        write: &WriteHalf,
        sealed: &[u8],
        at: &mut usize,
        outbox: &mut Outbox,
    ) -> io::Result<()> {
        while *at < sealed.len() {
            let count = match socket::try_write(write, &[IoSlice::new(&sealed[*at..])]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            self.note_written(*at, count, outbox);
            *at += count;
        }
        Ok(())
    }

    /// Notes that the kernel has taken `count` more bytes behind the first `at` sealed ones.
    fn note_written(&mut self, at: usize, count: usize, outbox: &mut Outbox) {
        while let Some(record) = self.records.front().copied() {
            if record.end > at + count {
                break;
            }
            self.records.pop_front();
            // A component's outbox may have been emptied meanwhile.
            outbox.advance(record.holds.min(outbox.pending_bytes()));
            self.marks
                .note_record((record.end - at) as u64, record.holds as u64);
        }
        self.marks.note_sealed(count as u64);
    }

    /// How many of the written bytes wait in the kernel, or are on their way, where `closed` of
    /// what they were sealed in are.
    pub fn unacked_of(&self, closed: u64) -> u64 {
        self.marks.unacked_of(closed)
    }

    /// Tells the peer that nothing more comes. What can't be written is left.
    pub fn close(&mut self, write: &WriteHalf) {
        self.connection.send_close_notify();
        let _ = self.write_own(write);
    }
}

#[cfg(all(test, not(feature = "turmoil")))]
mod tests;
