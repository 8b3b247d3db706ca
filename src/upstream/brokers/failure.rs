//! Reasons for which a dial or a link fails, and for which natsmux leaves one that is well. A new
//! one is added here, with its label; whether a failure counts against the broker is decided where
//! a trunk's link ends.

use crate::proto::error_text::BrokerError;

/// Why a broker or a link of it failed. A closed set, so that it can label a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nothing listens there, or the host says no.
    ConnectionRefused,
    /// The connection couldn't be opened for another reason.
    Unreachable,
    /// The name has no address.
    NameNotFound,
    /// The name server takes longer than `connect_timeout`.
    NameTimeout,
    /// The connection wasn't open within `connect_timeout`.
    ConnectTimeout,
    /// natsmux has no descriptor left for the connection: not the broker's fault.
    OutOfFiles,
    /// No INFO within `info_timeout`.
    InfoTimeout,
    /// The broker closed the connection.
    Closed,
    /// The connection was reset.
    Reset,
    /// A write failed.
    WriteError,
    /// A fence stayed unanswered for `link_timeout` (R9).
    Silent,
    /// The broker sent what isn't the protocol.
    Garbage,
    /// The broker sent an error about the link, such as `Stale Connection`.
    LinkError,
    /// The broker refused the credentials.
    Refused,
    /// The broker requires TLS, and the bus has none configured.
    TlsRequired,
    /// The bus requires TLS, and the broker offers none.
    TlsNotOffered,
    /// The handshake was to come first, and the broker spoke in plain text.
    TlsNotFirst,
    /// The TLS handshake wasn't over within `tls_timeout`.
    TlsTimeout,
    /// The TLS handshake failed.
    TlsHandshake,
    /// The broker takes no more TLS handshakes at the moment.
    Throttled,
    /// The broker's certificate has expired, or isn't valid yet.
    CertificateExpired,
    /// Nobody whom natsmux trusts has signed the broker's certificate.
    CertificateUntrusted,
    /// The broker's certificate is for another name.
    CertificateName,
    /// The broker's certificate is wrong in another way.
    CertificateInvalid,
    /// The broker refused natsmux's certificate, or misses one.
    CertificateRefused,
    /// The broker, or the identity's account, takes no more connections.
    Full,
    /// The broker sent an INFO and no verdict on CONNECT.
    NoVerdict,
    /// The listener there is this natsmux, directly or through another one.
    Loop,
    /// Of independent brokers, another name leads to this one too (R26).
    SameBroker,
    /// The broker closed the link for what its only component did, and told it so.
    OwnFault,
}

/// Why natsmux leaves a link that is well. A closed set, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Departure {
    /// The broker announced lame duck mode.
    LameDuck,
    /// A broker earlier in the order has returned (R30).
    Failback,
    /// The broker is no longer configured.
    Removed,
    /// The component sent another CONNECT.
    NewConnect,
    /// natsmux has newer credentials for its identity (R38).
    Renewed,
    /// The broker offers other things than when the link was opened (R43).
    Revised,
    /// An operator drains the broker (R42).
    Drained,
    /// An operator moves the bus to another broker (R42).
    Moved,
    /// The host's own broker has returned (R13).
    Rebalanced,
}

/// Why a link that was live isn't any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It failed.
    Failed(Failure),
    /// It was left.
    Left(Departure),
}

impl From<Failure> for Cause {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Departure> for Cause {
    fn from(departure: Departure) -> Self {
        Self::Left(departure)
    }
}

impl Cause {
    /// Whether natsmux leaves the broker by itself, with all of the bus's trunks.
    pub fn is_planned(self) -> bool {
        matches!(self, Self::Left(departure) if !departure.is_own())
    }

    /// Whether it concerns one trunk's sessions, and says nothing of the broker.
    pub fn is_own(self) -> bool {
        match self {
            Self::Failed(failure) => failure.is_own(),
            Self::Left(departure) => departure.is_own(),
        }
    }

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed(failure) => failure.as_str(),
            Self::Left(departure) => departure.as_str(),
        }
    }
}

impl Departure {
    /// Whether it concerns one trunk's sessions, which may go to the same broker again.
    pub fn is_own(self) -> bool {
        matches!(self, Self::NewConnect | Self::Renewed | Self::Revised)
    }

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LameDuck => "lame_duck",
            Self::Failback => "failback",
            Self::Removed => "removed",
            Self::NewConnect => "new_connect",
            Self::Renewed => "renewed",
            Self::Revised => "revised",
            Self::Drained => "drained",
            Self::Moved => "moved",
            Self::Rebalanced => "rebalanced",
        }
    }
}

impl Failure {
    /// The meaning of an error that stands in plain text where TLS is to begin: anybody may have
    /// written it.
    pub fn before_handshake(error: &BrokerError<'_>) -> Self {
        match error {
            BrokerError::Throttled => Self::Throttled,
            BrokerError::Full { .. } => Self::Full,
            _ => Self::TlsHandshake,
        }
    }

    /// Whether it concerns one trunk's sessions, and says nothing of the broker.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Refused | Self::OwnFault)
    }

    /// Advice for the operator, where the broker's own log has none.
    pub fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::TlsRequired => "write the broker as tls://host:port, or [bus.tls]",
            Self::TlsNotOffered => {
                "the broker has no `tls`, or something between has taken it away"
            }
            Self::TlsNotFirst => "the broker has no `handshake_first`: write mode = \"required\"",
            Self::CertificateExpired => "renew the broker's certificate, or set this host's clock",
            Self::CertificateUntrusted => "write the broker's authority as `ca` of [bus.tls]",
            Self::CertificateName => {
                "write the name in its certificate as `server_name` of [bus.tls]"
            }
            Self::CertificateRefused => {
                "the broker verifies: write `cert` and `key` of [bus.tls], or renew them"
            }
            _ => return None,
        })
    }

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionRefused => "connection_refused",
            Self::Unreachable => "unreachable",
            Self::NameNotFound => "name_not_found",
            Self::NameTimeout => "name_timeout",
            Self::ConnectTimeout => "connect_timeout",
            Self::OutOfFiles => "out_of_files",
            Self::InfoTimeout => "info_timeout",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::WriteError => "write_error",
            Self::Silent => "silent",
            Self::Garbage => "garbage",
            Self::LinkError => "link_error",
            Self::Refused => "refused",
            Self::TlsRequired => "tls_required",
            Self::TlsNotOffered => "tls_not_offered",
            Self::TlsNotFirst => "tls_not_first",
            Self::TlsTimeout => "tls_timeout",
            Self::TlsHandshake => "tls_handshake",
            Self::Throttled => "throttled",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateUntrusted => "certificate_untrusted",
            Self::CertificateName => "certificate_name",
            Self::CertificateInvalid => "certificate_invalid",
            Self::CertificateRefused => "certificate_refused",
            Self::Full => "full",
            Self::NoVerdict => "no_verdict",
            Self::Loop => "loop",
            Self::SameBroker => "same_broker",
            Self::OwnFault => "own_fault",
        }
    }
}
