//! Brokers that go away under load, in every way they have, and what of it components see.
//!
//! Real brokers, natsmux between them and a load generator that speaks the raw protocol and
//! never reconnects, an observer on a clustered broker that natsmux doesn't know and nobody
//! kills, and a judge that counts what is missing, double, late or silent. `cargo test` runs
//! short versions; `make failover` and `make soak` run the numbers that are promised.

mod crowd;
mod cuts;
mod departures;
mod freezes;
mod gaps;
mod groups;
mod hostile;
mod independent;
mod judge;
mod kills;
mod leaf;
mod load;
mod moves;
mod namespace;
mod network;
mod numbers;
mod offers;
mod orders;
mod outage;
mod part;
mod process;
mod proxy;
mod rig;
mod scale;
mod second_connect;
mod size;
mod steady;
#[path = "../support/mod.rs"]
mod support;
mod weights;
