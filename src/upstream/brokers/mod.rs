//! The brokers of a bus: which of them live, which one this host uses, and who may come to them.
//! Pure.

pub mod admission;
pub mod backoff;
mod broker;
mod failure;
pub mod liveness;
pub mod presence;
pub mod roster;
pub mod trouble;
