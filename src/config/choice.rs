//! Options with a closed set of values.

use tracing::level_filters::LevelFilter;

use super::address::BrokerAddr;

/// An option that is one of a few words.
pub trait Choice: Copy + PartialEq + Send + Sync + 'static {
    /// Every value with the word that is written for it.
    const ALL: &'static [(&'static str, Self)];

    /// The value of a word.
    fn from_word(word: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(name, _)| *name == word);
        found.map(|(_, value)| *value)
    }

    /// The word for this value.
    fn word(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, value)| *value == self);
        found.map_or("?", |(name, _)| name)
    }

    /// Every word, in the order of [`Choice::ALL`].
    fn words() -> Vec<&'static str> {
        Self::ALL.iter().map(|(name, _)| *name).collect()
    }
}

macro_rules! choice {
    ($type:ident { $($word:literal => $value:ident),+ $(,)? }) => {
        impl Choice for $type {
            const ALL: &'static [(&'static str, Self)] = &[$(($word, Self::$value)),+];
        }
    };
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// For people: one line of words.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

choice!(LogFormat { "text" => Text, "json" => Json });

/// Which log lines are written: this level and those above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// An operator must act.
    Error,
    /// An operator may want to act.
    Warn,
    /// The life of the daemon and its links.
    #[default]
    Info,
    /// The life of sessions.
    Debug,
    /// Single operations.
    Trace,
}

choice!(LogLevel {
    "error" => Error, "warn" => Warn, "info" => Info, "debug" => Debug, "trace" => Trace,
});

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Whether brokers are spoken to in TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsMode {
    /// In plain text, but for those that are written `tls://`.
    #[default]
    Off,
    /// Behind the broker's INFO, and never in plain text.
    Required,
    /// Ahead of the broker's INFO, as its `handshake_first` asks for.
    First,
}

impl TlsMode {
    /// How a broker is spoken to, where the bus says this.
    pub fn towards(self, broker: &BrokerAddr) -> Self {
        if self == Self::Off && broker.tls {
            return Self::Required;
        }
        self
    }
}

choice!(TlsMode { "off" => Off, "required" => Required, "first" => First });

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

choice!(TlsVersion { "1.2" => Tls12, "1.3" => Tls13 });

/// The meaning of two byte-identical messages that come while both links of a planned move are
/// subscribed (R41).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Identical {
    /// One message, wherever one came on each link.
    #[default]
    Once,
    /// Two: rather one too many than one too few.
    Twice,
}

choice!(Identical { "once" => Once, "twice" => Twice });

/// How the brokers of a bus know each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Topology {
    /// They are routed to each other: one is used, the others wait.
    #[default]
    Cluster,
    /// They know nothing of each other: subscribe on all, publish to one.
    Independent,
}

choice!(Topology { "cluster" => Cluster, "independent" => Independent });

/// Whether publishes go back to a broker that returned (R30).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Failback {
    /// Once it is back for `failback_delay`, if it comes earlier in the order of brokers.
    #[default]
    Auto,
    /// Not before the next failover.
    Never,
}

choice!(Failback { "auto" => Auto, "never" => Never });

/// Whether publishes that wait for a broker survive an outage that components hear of (R37).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OutagePublishes {
    /// They go to the first broker that serves.
    #[default]
    Keep,
    /// They are given up, and counted as dropped.
    Drop,
}

choice!(OutagePublishes { "keep" => Keep, "drop" => Drop });

/// The fate of a component that signs with a key that natsmux doesn't hold (R40).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Signed {
    /// It signs the nonce of a broker, on a link of its own.
    #[default]
    Relay,
    /// It is refused.
    Refuse,
}

choice!(Signed { "relay" => Relay, "refuse" => Refuse });

/// Which sessions share an upstream connection (R22).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// None: each session has its own.
    #[default]
    None,
    /// Those with equal credentials and options.
    Identity,
}

choice!(Sharing { "none" => None, "identity" => Identity });

/// The delivery of publishes that a dying broker may or may not have processed (R4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// They are counted in doubt and not repeated.
    #[default]
    AtMostOnce,
    /// They are repeated on the next broker; duplicates are counted.
    AtLeastOnce,
}

choice!(Delivery { "at-most-once" => AtMostOnce, "at-least-once" => AtLeastOnce });

/// The components that may start while no broker is alive (R16).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Admit {
    /// Credentials that a broker of this bus accepted since start, or anybody
    /// where no broker asked for any.
    #[default]
    Known,
    /// Nobody: every CONNECT waits for a broker's verdict.
    Verified,
    /// Everybody; a later refusal reaches the component.
    Always,
}

choice!(Admit { "known" => Known, "verified" => Verified, "always" => Always });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_means_the_value_that_shows_it() {
        for word in Delivery::words() {
            assert_eq!(Delivery::from_word(word).map(Choice::word), Some(word));
        }
        assert_eq!(Delivery::from_word("exactly-once"), None);
        assert_eq!(Topology::from_word("Cluster"), None);
    }
}
