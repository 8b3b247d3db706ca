//! Limits of the operating system: open files, how many sessions they are enough for, and the
//! processor's time.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, nice, set_dumpable_behavior, setrlimit,
};
use tracing::warn;

use crate::config::{Config, Topology};

/// Descriptors that aren't for sessions and links: listeners, HTTP, probes, logs.
const RESERVED: u64 = 64;

/// How much less than the worker's the control thread's need counts, of 19.
const CONTROL_NICE: i32 = 10;

/// Raises the soft limit of open files to the hard one and returns it.
pub(super) fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(1 << 20);
    let raised = Rlimit {
        current: Some(hard),
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => hard,
        Err(error) => {
            warn!(%error, "can't raise the limit of open files");
            limit.current.unwrap_or(1024)
        }
    }
}

/// Forbids core dumps: memory holds the passwords of components, also of those that are gone.
pub(super) fn forbid_core_dumps() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = setrlimit(Resource::Core, none);
    if let Err(error) = limited.and(set_dumpable_behavior(DumpableBehavior::NotDumpable)) {
        warn!(%error, "can't forbid core dumps: one may hold passwords");
    }
}

/// Lets the worker go first where both want a processor: on Linux, this counts for the calling
/// thread alone, and for those that it starts.
pub(super) fn yield_to_the_worker() {
    // Where it isn't allowed, the two are equals.
    let _ = nice(CONTROL_NICE);
}

/// Sessions that fit into `open_files`, each with its links, unless the configuration says
/// how many there may be.
pub(super) fn max_connections(config: &Config, open_files: u64) -> usize {
    if config.limits.max_connections > 0 {
        return config.limits.max_connections;
    }
    let per_session = config.buses.iter().map(|bus| match bus.topology {
        Topology::Cluster => 2,
        Topology::Independent => 1 + bus.brokers.len() as u64,
    });
    let per_session = per_session.max().unwrap_or(2);
    (open_files.saturating_sub(RESERVED) / per_session) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BusConfig;

    #[test]
    fn sessions_are_derived_from_open_files() {
        let mut config = Config::default();
        config.buses.push(BusConfig::new("a", Vec::new()));
        assert_eq!(max_connections(&config, 20_000), 9_968);
        config.limits.max_connections = 100;
        assert_eq!(max_connections(&config, 20_000), 100);
        config.limits.max_connections = 0;
        assert_eq!(max_connections(&config, 10), 0);
    }
}
