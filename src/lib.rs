//! natsmux.

pub mod config;
