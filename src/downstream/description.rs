//! Who a component is, for monitoring.

use crate::identity::Owner;

/// What monitoring shows of who a component is.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// The user that it told natsmux.
    pub user: Option<String>,
    /// Its process.
    pub owner: Option<Owner>,
    /// The name of its identity.
    pub identity: Option<Box<str>>,
}
