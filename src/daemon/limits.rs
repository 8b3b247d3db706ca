//! Open files: how many there may be, and how many sessions that allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::config::{Config, Topology};

/// Descriptors that aren't for sessions and links: listeners, HTTP, probes, logs.
const RESERVED: u64 = 64;

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
