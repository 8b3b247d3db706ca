//! Sockets and timers: the trunks of a bus on one worker, each with the driver of its links, and
//! the prober that asks brokers without a link.

pub mod cell;
pub mod driver;
mod log_limit;
mod operator_log;
pub mod pool;
mod prober;
mod resolve;
mod secure;
pub mod shared_trunks;
