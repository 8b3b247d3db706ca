//! natsmux runs on every host between local components and the NATS brokers.
//!
//! It keeps every component's session open, remembers what it subscribed to, and keeps it
//! connected to whichever broker is alive. ARCHITECTURE.md is the map; in short:
//!
//! | layer | module | what it is |
//! |---|---|---|
//! | 0 | [`clock`] | points in time |
//! | 0 | [`queue`] | queues that are mostly empty |
//! | 0 | [`catch_panic`] | the end of a panic |
//! | 0 | [`proto`] | the NATS protocol as bytes (pure) |
//! | 0 | [`config`] | what was written, and what it means |
//! | 0 | [`telemetry`] | logging, counters, snapshots |
//! | 1 | [`ledger`] | what a trunk must remember (pure) |
//! | 1 | [`identity`] | whom natsmux is to brokers, and for whom |
//! | 1 | [`net`] | sockets and buffers, no NATS |
//! | 2 | [`upstream`] | towards brokers: bus, roster, trunk, links |
//! | 3 | [`downstream`] | towards components: sessions |
//! | 4 | [`admin`] | HTTP |
//! | 4 | [`control`] | an operator's commands |
//! | 5 | [`daemon`] | builds, runs, reloads, drains |

pub mod admin;
pub mod catch_panic;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod downstream;
pub mod identity;
pub mod ledger;
pub mod net;
pub mod proto;
pub mod queue;
pub mod telemetry;
pub mod upstream;
