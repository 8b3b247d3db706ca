//! The steps of an operator's commands, as the control thread gives them to the worker (R42).

use std::time::Duration;

/// A step of a command.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// Move a bus to another broker.
    Move { bus: String, to: Option<String> },
    /// Leave a broker of all buses that have it, or of one.
    Drain { broker: String, bus: Option<String> },
    /// Use it again.
    Undrain { broker: String, bus: Option<String> },
    /// Let a bus's publishes wait for so long at most.
    Pause { bus: String, lasts: Duration },
    /// Let them go on.
    Resume { bus: String },
    /// Close a component's connection.
    Kill { cid: u64 },
    /// Nothing: is there such a bus?
    Find { bus: String },
    /// Nothing: say how far these buses are on their way.
    Look { goals: Vec<(String, Goal)> },
}

/// Where connections to brokers are to be.
#[derive(Clone, Debug)]
pub(super) enum Goal {
    /// At this broker.
    At(String),
    /// Not at this one.
    Off(String),
}

/// The result of an order at one bus.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) bus: String,
    /// The broker that is in use from now on.
    pub(super) to: String,
    /// Connections that aren't where they are to be.
    pub(super) left: usize,
    /// Something else has been decided meanwhile: they won't move any more.
    pub(super) is_off: bool,
    /// Whether the order has changed anything.
    pub(super) is_new: bool,
}
