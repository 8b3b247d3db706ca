//! A value that knows whether it may have changed.

use std::ops::{Deref, DerefMut};

/// Whoever borrows the value to change it leaves a note.
#[derive(Debug)]
pub(super) struct Tracked<T> {
    value: T,
    changed: bool,
}

impl<T> Tracked<T> {
    /// A value that nobody has looked at yet.
    pub(super) fn new(value: T) -> Self {
        Self {
            value,
            changed: true,
        }
    }

    /// Whether it may have changed since [`Tracked::mark_seen`].
    pub(super) fn is_changed(noted: &Self) -> bool {
        noted.changed
    }

    /// Changes it in a way that nobody has to look at.
    pub(super) fn quietly(noted: &mut Self) -> &mut T {
        &mut noted.value
    }

    /// It was looked at as it is now.
    pub(super) fn mark_seen(noted: &mut Self) {
        noted.changed = false;
    }
}

impl<T> Deref for Tracked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Tracked<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.changed = true;
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_leaves_no_note_and_changing_does() {
        let mut noted = Tracked::new(vec![1]);
        assert!(Tracked::is_changed(&noted));
        Tracked::mark_seen(&mut noted);
        assert_eq!(noted.len(), 1);
        assert!(!Tracked::is_changed(&noted));
        noted.push(2);
        assert!(Tracked::is_changed(&noted));
    }
}
