//! natsmux.
fn main() {}
