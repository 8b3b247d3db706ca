//! The one list of keys: which key belongs to which field, and its bounds.
//!
//! A [`Visitor`] walks it: the file reader is one, the printer of `natsmux check` another. Texts
//! and lists (`name`, `listen`, `brokers`, `http`, `presence`, `presence_key_file`) are read in
//! `file.rs`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::choice::Choice;
use super::error::ConfigError;
use super::options::{BusConfig, BusLimits, Config, DaemonLimits, LogConfig, PongHold, Timings};

/// A visitor of a configuration's keys.
pub(super) trait Visitor {
    /// A duration such as `"50ms"`, within bounds.
    fn duration(
        &mut self,
        key: &'static str,
        value: &mut Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Result<(), ConfigError>;

    /// A duration within bounds, or `"never"`.
    fn pong_hold(
        &mut self,
        key: &'static str,
        value: &mut PongHold,
        bounds: RangeInclusive<Duration>,
    ) -> Result<(), ConfigError>;

    /// A size such as `"64KiB"`, within bounds.
    fn size(
        &mut self,
        key: &'static str,
        value: &mut usize,
        bounds: RangeInclusive<u64>,
    ) -> Result<(), ConfigError>;

    /// A plain number, within bounds.
    fn count(
        &mut self,
        key: &'static str,
        value: &mut usize,
        bounds: RangeInclusive<u64>,
    ) -> Result<(), ConfigError>;

    /// One of a closed set of words.
    fn choice<T: Choice>(&mut self, key: &'static str, value: &mut T) -> Result<(), ConfigError>;

    /// `true` or `false`.
    fn flag(&mut self, key: &'static str, value: &mut bool) -> Result<(), ConfigError>;
}

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

const MINUTE: Duration = secs(60);
const FIVE_MINUTES: Duration = secs(300);
const TEN_MINUTES: Duration = secs(600);
const HOUR: Duration = secs(3600);
const DAY: Duration = secs(86_400);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Top-level keys, besides `name`.
pub(super) fn top<V: Visitor>(v: &mut V, c: &mut Config) -> Result<(), ConfigError> {
    v.duration("drain_timeout", &mut c.drain_timeout, ms(10)..=TEN_MINUTES)
}

/// Keys of `[log]`.
pub(super) fn log<V: Visitor>(v: &mut V, c: &mut LogConfig) -> Result<(), ConfigError> {
    v.choice("format", &mut c.format)?;
    v.choice("level", &mut c.level)
}

/// Keys of `[limits]`.
pub(super) fn limits<V: Visitor>(v: &mut V, c: &mut DaemonLimits) -> Result<(), ConfigError> {
    let total = 64 * KIB..=64 * GIB;
    v.count("max_connections", &mut c.max_connections, 0..=1_000_000)?;
    v.size(
        "publish_buffer_total",
        &mut c.publish_buffer_total,
        total.clone(),
    )?;
    v.size("max_pending_total", &mut c.max_pending_total, total.clone())?;
    v.size("lenient_buffer_total", &mut c.lenient_buffer_total, total)
}

/// Keys of `[[bus]]` that are neither name nor address. `delivery` changes the
/// default of `pong_hold`, so this comes before [`timings`].
pub(super) fn bus<V: Visitor>(v: &mut V, c: &mut BusConfig) -> Result<(), ConfigError> {
    v.choice("topology", &mut c.topology)?;
    v.choice("failback", &mut c.failback)?;
    v.flag("rebalance", &mut c.rebalance)?;
    v.choice("sharing", &mut c.sharing)?;
    v.count("trunks_per_identity", &mut c.trunks_per_identity, 1..=64)?;
    let mut delivery = c.delivery;
    v.choice("delivery", &mut delivery)?;
    c.set_delivery(delivery);
    v.flag("lenient_connect", &mut c.lenient_connect)?;
    v.flag("allow_plain", &mut c.allow_plain)?;
    v.choice("admit", &mut c.admit)?;
    v.choice("signed", &mut c.signed)?;
    v.choice("outage_publishes", &mut c.outage_publishes)?;
    v.choice("move_identical", &mut c.move_identical)?;
    v.flag("resume_pulls", &mut c.resume_pulls)
}

/// Keys of `[bus.timings]`.
pub(super) fn timings<V: Visitor>(v: &mut V, t: &mut Timings) -> Result<(), ConfigError> {
    v.duration("connect_timeout", &mut t.connect_timeout, ms(10)..=MINUTE)?;
    v.duration("info_timeout", &mut t.info_timeout, ms(10)..=MINUTE)?;
    v.duration("tls_timeout", &mut t.tls_timeout, ms(100)..=MINUTE)?;
    v.duration("link_timeout", &mut t.link_timeout, ms(100)..=FIVE_MINUTES)?;
    v.duration(
        "probe_interval",
        &mut t.probe_interval,
        ms(100)..=FIVE_MINUTES,
    )?;
    v.duration("fence_interval", &mut t.fence_interval, ms(1)..=secs(10))?;
    v.duration(
        "idle_fence_interval",
        &mut t.idle_fence_interval,
        ms(100)..=HOUR,
    )?;
    v.pong_hold("pong_hold", &mut t.pong_hold, ms(1)..=HOUR)?;
    v.duration("replay_barrier", &mut t.replay_barrier, ms(1)..=secs(30))?;
    v.duration("block_for", &mut t.block_for, ms(1)..=HOUR)?;
    v.duration("auth_timeout", &mut t.auth_timeout, ms(10)..=TEN_MINUTES)?;
    v.duration("ping_interval", &mut t.ping_interval, ms(10)..=HOUR)?;
    v.duration(
        "write_deadline",
        &mut t.write_deadline,
        ms(10)..=TEN_MINUTES,
    )?;
    v.duration(
        "refusal_window",
        &mut t.refusal_window,
        ms(10)..=TEN_MINUTES,
    )?;
    v.duration("failback_delay", &mut t.failback_delay, ms(10)..=HOUR)?;
    v.duration("switch_settle", &mut t.switch_settle, ms(1)..=secs(30))?;
    v.duration("move_overlap", &mut t.move_overlap, ms(1)..=secs(1))?;
    v.duration("trunk_idle_timeout", &mut t.trunk_idle_timeout, ms(0)..=DAY)?;
    v.duration(
        "reveal_outage_after",
        &mut t.reveal_outage_after,
        ms(0)..=HOUR,
    )
}

/// Keys of `[bus.limits]`.
pub(super) fn bus_limits<V: Visitor>(v: &mut V, l: &mut BusLimits) -> Result<(), ConfigError> {
    v.size("max_control_line", &mut l.max_control_line, 512..=MIB)?;
    v.size("max_pending", &mut l.max_pending, 64 * KIB..=4 * GIB)?;
    v.size("publish_buffer", &mut l.publish_buffer, 4 * KIB..=4 * GIB)?;
    v.size("lenient_buffer", &mut l.lenient_buffer, 4 * KIB..=4 * GIB)?;
    v.size("fence_bytes", &mut l.fence_bytes, KIB..=64 * MIB)?;
    v.count("fence_messages", &mut l.fence_messages, 1..=1_000_000)?;
    v.count("ping_max", &mut l.ping_max, 1..=100)
}
