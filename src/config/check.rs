//! Constraints between options: no duplicates, no loop, no limit above its total.
//!
//! Runs on a finished [`Config`], whether it came from a file or from flags;
//! [`Locations`] says where each value was written.

use super::address::ListenAddr;
use super::choice::{Delivery, OutagePublishes};
use super::error::{ConfigError, Fault, Location};
use super::options::{BusConfig, Config, host_name};
use super::units::show_size;

/// Where the values were written that a check may find at fault.
#[derive(Debug, Default)]
pub(super) struct Locations {
    /// `[http] listen`.
    pub(super) http: Location,
    /// One for each bus.
    pub(super) buses: Vec<BusLocations>,
}

/// Where the values of one bus were written.
#[derive(Debug, Default)]
pub(super) struct BusLocations {
    pub(super) name: Location,
    pub(super) listen: Vec<Location>,
    pub(super) brokers: Vec<Location>,
    pub(super) max_pending: Location,
    pub(super) publish_buffer: Location,
    pub(super) lenient_buffer: Location,
    pub(super) outage_publishes: Location,
    pub(super) reveal_outage_after: Location,
    pub(super) identity: Location,
}

/// Checks what must hold between options.
pub(super) fn check(config: &Config, locations: &Locations) -> Result<(), ConfigError> {
    let mut listeners: Vec<ListenAddr> = Vec::new();
    if let Some(addr) = config.http {
        listeners.push(ListenAddr {
            addr,
            optional: false,
        });
    }
    for (index, (bus, at)) in config.buses.iter().zip(&locations.buses).enumerate() {
        if config.buses[..index].iter().any(|b| b.name == bus.name) {
            let fault = Fault::DuplicateBus(bus.name.clone());
            return Err(ConfigError::wrong(at.name.clone(), fault));
        }
        check_totals(config, bus, at)?;
        check_outage(bus, at)?;
        check_anybody(bus, at)?;
        for (listen, location) in bus.listen.iter().zip(&at.listen) {
            if listeners.iter().any(|l| l.conflicts_with(*listen)) {
                let fault = Fault::DuplicateListen(listen.to_string());
                return Err(ConfigError::wrong(location.clone(), fault));
            }
            listeners.push(*listen);
        }
    }
    let host = host_name();
    for (bus, at) in config.buses.iter().zip(&locations.buses) {
        check_brokers(bus, &at.brokers, &listeners, &host)?;
    }
    Ok(())
}

fn check_brokers(
    bus: &BusConfig,
    locations: &[Location],
    own: &[ListenAddr],
    host: &str,
) -> Result<(), ConfigError> {
    for (index, (broker, location)) in bus.brokers.iter().zip(locations).enumerate() {
        let fault = if bus.brokers[..index].iter().any(|b| b.is_at(broker)) {
            Fault::DuplicateBroker(broker.to_string())
        } else if own.iter().any(|l| broker.reaches(l.addr, host)) {
            Fault::Loop(broker.to_string())
        } else {
            continue;
        };
        return Err(ConfigError::wrong(location.clone(), fault));
    }
    Ok(())
}

fn check_outage(bus: &BusConfig, at: &BusLocations) -> Result<(), ConfigError> {
    let (after, probes) = (bus.timings.reveal_outage_after, bus.timings.probe_interval);
    if !after.is_zero() && after < 3 * probes {
        let location = at.reveal_outage_after.clone();
        return Err(ConfigError::wrong(location, Fault::RevealedTooSoon));
    }
    let drops = bus.outage_publishes == OutagePublishes::Drop;
    if drops && bus.delivery == Delivery::AtLeastOnce {
        let location = at.outage_publishes.clone();
        return Err(ConfigError::wrong(location, Fault::DropsAtLeastOnce));
    }
    Ok(())
}

/// Whoever reaches loopback runs on this host; whoever reaches another address may be anybody.
fn check_anybody(bus: &BusConfig, at: &BusLocations) -> Result<(), ConfigError> {
    let mut identities = bus.identities.iter();
    let exposed = bus
        .listen
        .iter()
        .find(|listen| !listen.addr.ip().is_loopback());
    if let Some(listen) = exposed
        && identities.any(|identity| identity.matches.anybody)
    {
        let fault = Fault::AnybodyAnywhere(listen.addr);
        return Err(ConfigError::wrong(at.identity.clone(), fault));
    }
    Ok(())
}

fn check_totals(config: &Config, bus: &BusConfig, at: &BusLocations) -> Result<(), ConfigError> {
    let (one, all) = (&bus.limits, &config.limits);
    for (value, total, key, location) in [
        (
            one.max_pending,
            all.max_pending_total,
            "limits.max_pending_total",
            &at.max_pending,
        ),
        (
            one.publish_buffer,
            all.publish_buffer_total,
            "limits.publish_buffer_total",
            &at.publish_buffer,
        ),
        (
            one.lenient_buffer,
            all.lenient_buffer_total,
            "limits.lenient_buffer_total",
            &at.lenient_buffer,
        ),
    ] {
        if value > total {
            let total = show_size(u64::try_from(total).unwrap_or(u64::MAX));
            let fault = Fault::AboveTotal { key, total };
            return Err(ConfigError::wrong(location.clone(), fault));
        }
    }
    Ok(())
}
