//! Values that parse, but aren't built yet. The one list of them: it shrinks
//! as they are built.

use thiserror::Error;

use super::choice::{Choice, Sharing};
use super::options::Config;

/// A value that isn't built yet.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("bus {bus}: {option} = \"{value}\" isn't built yet; expected \"{instead}\"")]
pub struct Unbuilt {
    /// The bus that asks for it.
    pub bus: String,
    /// The option.
    pub option: &'static str,
    /// The value that isn't built.
    pub value: &'static str,
    /// The value that is.
    pub instead: &'static str,
}

impl Config {
    /// The first value that isn't built yet, if there is one. Asked at start,
    /// by `natsmux check` and at each reload.
    pub fn unbuilt(&self) -> Option<Unbuilt> {
        self.buses
            .iter()
            .find_map(|bus| unbuilt_choice(&bus.name, "sharing", bus.sharing, Sharing::None))
    }
}

fn unbuilt_choice<T: Choice>(
    bus: &str,
    option: &'static str,
    value: T,
    built: T,
) -> Option<Unbuilt> {
    (value != built).then(|| Unbuilt {
        bus: bus.to_owned(),
        option,
        value: value.word(),
        instead: built.word(),
    })
}
