//! natsmux.

pub mod admin;
pub mod config;
pub mod daemon;
pub mod telemetry;
