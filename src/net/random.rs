//! Randomness of the kernel.

use rustix::rand::{GetRandomFlags, getrandom};

/// Bytes that nobody can guess.
///
/// # Panics
/// The kernel has none to give, which no kernel that this runs on says.
pub fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    let filled = getrandom(&mut key, GetRandomFlags::empty());
    assert_eq!(filled, Ok(key.len()), "the kernel gives no randomness");
    key
}
