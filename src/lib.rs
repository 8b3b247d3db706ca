//! natsmux.
