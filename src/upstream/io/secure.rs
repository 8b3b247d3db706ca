//! TLS towards brokers: whose certificate is asked for, and what a handshake's end means.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tracing::{debug, warn};

use super::cell::BusCell;
use crate::clock::Instant;
use crate::net::socket::ReadHalf;
use crate::net::tls::{ClientTls, Tls, TlsFault};
use crate::net::{Flush, Outbox, Port, Retention};
use crate::proto::connect::IdentityId;
use crate::proto::error_text::classify;
use crate::proto::server::{self, ServerLimits, ServerOp, ServerScan};
use crate::upstream::brokers::roster::{BrokerId, Failure};

/// Bytes that a broker may say in plain text where a handshake is to begin.
const PLAIN_BYTES: usize = 1024;

impl BusCell {
    /// Begins a handshake with a broker, as an identity or as the bus.
    ///
    /// # Errors
    /// The bus has no TLS, or the broker's host can't be named in a certificate.
    pub(super) fn secure(
        &self,
        port: &Port,
        broker: BrokerId,
        identity: Option<IdentityId>,
    ) -> io::Result<()> {
        let tls = self.tls_of(identity);
        self.begin_tls(tls.as_ref(), port, broker)
    }

    /// Begins one in which the broker shows its certificate, whatever it has shown before.
    ///
    /// # Errors
    /// As [`BusCell::secure`].
    pub(super) fn secure_anew(&self, port: &Port, broker: BrokerId) -> io::Result<()> {
        let tls = self.tls_of_probes().map(ClientTls::anew);
        self.begin_tls(tls.as_ref(), port, broker)
    }

    fn begin_tls(&self, tls: Option<&ClientTls>, port: &Port, broker: BrokerId) -> io::Result<()> {
        let tls = tls.ok_or(io::ErrorKind::Unsupported)?;
        let bus = self.borrow();
        let name = tls.name_of(&bus.roster().broker(broker).addr().host);
        let name = name.map_err(io::Error::other)?;
        port.secure(Tls::client(tls, name)?);
        Ok(())
    }

    /// Says in the log why TLS with a broker came to nothing, once for each reason.
    pub(super) fn log_tls(
        &self,
        broker: BrokerId,
        failure: Failure,
        error: &io::Error,
        now: Instant,
    ) {
        let text = error.to_string();
        let repeated = self
            .log
            .borrow_mut()
            .limit
            .note(Some(broker), text.as_bytes(), now);
        let (bus, cause) = (&self.name, failure.as_str());
        let broker = self.borrow().roster().broker(broker).label();
        let Some(repeated) = repeated else {
            debug!(bus, broker, cause, error = text, "TLS failed");
            return;
        };
        match failure.hint() {
            Some(hint) => warn!(
                bus,
                broker,
                cause,
                error = text,
                hint,
                repeated,
                "TLS failed"
            ),
            None => warn!(bus, broker, cause, error = text, repeated, "TLS failed"),
        }
    }
}

/// The failure behind an error of a link's socket, where it is TLS's.
pub(super) fn tls_failure(error: &io::Error) -> Option<Failure> {
    Some(match TlsFault::of(error)? {
        TlsFault::Expired => Failure::CertificateExpired,
        TlsFault::UnknownIssuer => Failure::CertificateUntrusted,
        TlsFault::WrongName => Failure::CertificateName,
        TlsFault::Certificate => Failure::CertificateInvalid,
        TlsFault::Refused => Failure::CertificateRefused,
        TlsFault::Other => Failure::TlsHandshake,
    })
}

/// Waits for the end of a handshake.
///
/// # Errors
/// The socket's, or TLS's. A broker that has something else to say is an error of its own.
pub(super) async fn handshake(port: &Port, read: &mut ReadHalf) -> Result<(), HandshakeError> {
    let mut nothing = Outbox::new(Retention::UntilWritten);
    let mut plain = [0; PLAIN_BYTES];
    poll_fn(|cx| {
        loop {
            match port.flush(&mut nothing) {
                Flush::Dead(kind) => return Poll::Ready(Err(HandshakeError::Socket(kind.into()))),
                Flush::Full if port.poll_writable(cx).is_ready() => continue,
                Flush::Full | Flush::Done => {}
            }
            if port.take_secured() {
                return Poll::Ready(Ok(()));
            }
            let polled = port.poll_read(read, cx, &mut plain);
            if port.take_secured() {
                return Poll::Ready(Ok(()));
            }
            return match polled {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(0)) => {
                    let end = io::ErrorKind::UnexpectedEof.into();
                    Poll::Ready(Err(HandshakeError::Socket(end)))
                }
                Poll::Ready(Ok(count)) => {
                    Poll::Ready(Err(HandshakeError::Plain(said(&plain[..count]))))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(HandshakeError::Socket(error))),
            };
        }
    })
    .await
}

/// Why a handshake came to nothing.
pub(super) enum HandshakeError {
    /// The socket, or TLS.
    Socket(io::Error),
    /// The broker spoke in plain text.
    Plain(Failure),
}

/// The failure that a broker means by speaking where a handshake is to begin.
fn said(bytes: &[u8]) -> Failure {
    match server::scan(bytes, &ServerLimits::default()) {
        ServerScan::Op {
            op: ServerOp::Err { text, .. },
            ..
        } => Failure::before_handshake(&classify(text)),
        ServerScan::Op {
            op: ServerOp::Info { .. },
            ..
        } => Failure::TlsNotFirst,
        _ => Failure::TlsHandshake,
    }
}
