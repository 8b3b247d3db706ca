//! The NATS client protocol as values: what a component sends, what a broker sends, and back to bytes.
//!
//! Everything here is a pure function of bytes that the caller holds. This module knows no socket, clock, log or
//! randomness, never copies a payload and never panics on what a peer sends. What is accepted and what is refused
//! follows nats-server (2.9.10 and 2.15.1 were probed on raw sockets); where this module is deliberately stricter,
//! the place says so.
//!
//! | module | holds |
//! |---|---|
//! | [`client`] | operations that a component sends |
//! | [`server`] | operations that a broker sends |
//! | [`connect`] | the options in CONNECT |
//! | [`info`] | a broker's INFO, and the one that natsmux sends |
//! | [`jwt`] | what a user JWT says |
//! | [`encode`] | operations as bytes |
//! | [`error_text`] | what a broker's `-ERR` is about |
//! | [`pull`] | requests of JetStream's pull consumers, and their statuses |
//! | [`subject`] | validity and matching of subjects |

pub mod announcement;
pub mod client;
pub mod connect;
pub mod encode;
pub mod error_text;
pub mod info;
pub mod pull;
pub mod server;
pub mod subject;

mod json;
pub mod jwt;
mod line;
mod number;
mod publish_head;
