//! natsmux in front of scripted brokers, which the test plays byte by byte.
//!
//! What no real broker can be made to do at will: die at a given byte, send half a frame,
//! stay silent, refuse on a replay, violate the protocol.

mod before_connect;
mod control;
mod errors;
mod faults;
mod first_info;
mod frames;
mod limits;
mod outage;
mod reading_out;
mod reload;
mod replay;
mod second_connect;
mod setup;
mod sharing;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod verbose;
mod wire;
