//! A queue that is mostly empty, and then takes no more than a pointer.

use std::collections::{VecDeque, vec_deque};

/// First in, first out. It takes memory with its first entry, and gives all of it back with its
/// last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue<T>(Option<Box<Entries<T>>>);

/// Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entries<T>(VecDeque<T>);

impl<T> Queue<T> {
    /// Appends an entry.
    pub fn push_back(&mut self, entry: T) {
        match &mut self.0 {
            Some(entries) => entries.0.push_back(entry),
            // Mostly it stays the only one.
            None => self.0 = Some(Box::new(Entries([entry].into()))),
        }
    }

    /// Takes the oldest entry.
    pub fn pop_front(&mut self) -> Option<T> {
        self.take(VecDeque::pop_front)
    }

    /// Takes the newest entry.
    pub fn pop_back(&mut self) -> Option<T> {
        self.take(VecDeque::pop_back)
    }

    /// Takes the entry that `at` others are older than.
    pub fn remove(&mut self, at: usize) -> Option<T> {
        self.take(|entries| entries.remove(at))
    }

    /// The entry with this key, where they are in the order of their keys.
    pub fn find_sorted<K: Ord>(&self, key: K, of: impl FnMut(&T) -> K) -> Option<&T> {
        let entries = &self.0.as_ref()?.0;
        let at = entries.binary_search_by_key(&key, of).ok()?;
        entries.get(at)
    }

    /// The oldest entry.
    pub fn front(&self) -> Option<&T> {
        self.0.as_ref()?.0.front()
    }

    /// The newest entry.
    pub fn back(&self) -> Option<&T> {
        self.0.as_ref()?.0.back()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |entries| entries.0.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The entries, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.0.iter().flat_map(|entries| &entries.0)
    }

    /// Iterates from the front, to change the items.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flat_map(|entries| &mut entries.0)
    }

    /// Keeps those entries of which `keeps` says so.
    pub fn retain(&mut self, keeps: impl FnMut(&T) -> bool) {
        if let Some(entries) = &mut self.0 {
            entries.0.retain(keeps);
            if entries.0.is_empty() {
                self.0 = None;
            }
        }
    }

    fn take(&mut self, from: impl FnOnce(&mut VecDeque<T>) -> Option<T>) -> Option<T> {
        let entries = &mut self.0.as_mut()?.0;
        let entry = from(entries);
        if entries.is_empty() {
            self.0 = None;
        }
        entry
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> FromIterator<T> for Queue<T> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let entries = VecDeque::from_iter(entries);
        Self((!entries.is_empty()).then(|| Box::new(Entries(entries))))
    }
}

impl<T> IntoIterator for Queue<T> {
    type Item = T;
    type IntoIter = vec_deque::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        let entries = self.0.map_or_else(VecDeque::new, |entries| entries.0);
        entries.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_their_order() {
        let mut queue: Queue<u32> = (1..=4).collect();
        queue.push_back(5);
        assert_eq!(
            (queue.len(), queue.front(), queue.back()),
            (5, Some(&1), Some(&5))
        );
        assert_eq!(queue.remove(1), Some(2));
        assert_eq!(queue.remove(9), None);
        assert_eq!((queue.pop_front(), queue.pop_back()), (Some(1), Some(5)));
        queue.iter_mut().for_each(|entry| *entry *= 10);
        assert!(queue.iter().eq(&[30, 40]));
        assert!(queue.into_iter().eq([30, 40]));
    }

    #[test]
    fn an_empty_one_takes_no_memory() {
        assert_eq!(size_of::<Queue<u32>>(), size_of::<usize>());
        let mut queue = Queue::default();
        queue.push_back(1);
        queue.push_back(2);
        assert_eq!((queue.pop_back(), queue.pop_back()), (Some(2), Some(1)));
        assert!(queue.0.is_none());
        assert_eq!(queue.pop_front(), None);
        assert!(std::iter::empty::<u32>().collect::<Queue<_>>().is_empty());
    }
}
