//! The places of a table: each has a number, and with its generation a name upstream.

use std::ops::{Index, IndexMut};

use super::group::Group;
use super::subscription::{Interest, NO_GROUP, State, Subscription};
use crate::ledger::UpstreamSid;

/// No place.
const NO_SLOT: u32 = u32::MAX;

/// The holder of a place.
#[derive(Debug)]
pub(super) enum Place {
    /// Nothing.
    Free {
        /// The next one.
        generation: u32,
        /// The slot that is free behind this one; [`NO_SLOT`].
        next: u32,
    },
    /// A subscription. A member of a group has a place of its own, whose name no broker gets.
    One(Subscription),
    Group(Box<Group>),
}

impl Place {
    pub(super) fn generation(&self) -> u32 {
        match self {
            Self::Free { generation, .. } => *generation,
            Self::One(one) => one.generation,
            Self::Group(group) => group.generation,
        }
    }

    pub(super) fn empty(generation: u32) -> Self {
        Self::Free {
            generation,
            next: NO_SLOT,
        }
    }

    /// Takes what is here.
    pub(super) fn take(&mut self) -> Self {
        let generation = self.generation();
        std::mem::replace(self, Self::empty(generation))
    }

    pub(super) fn one(&self) -> Option<&Subscription> {
        match self {
            Self::One(subscription) => Some(subscription),
            _ => None,
        }
    }

    pub(super) fn one_mut(&mut self) -> Option<&mut Subscription> {
        match self {
            Self::One(subscription) => Some(subscription),
            _ => None,
        }
    }

    pub(super) fn group_mut(&mut self) -> Option<&mut Group> {
        match self {
            Self::Group(group) => Some(group),
            _ => None,
        }
    }

    /// Returns the interest that a broker must know; `None` where it needs to know none.
    pub(super) fn interest(&self) -> Option<Interest<'_>> {
        match self {
            Self::One(one) if one.state == State::Live && one.group == NO_GROUP => Some(Interest {
                subject: one.subject(),
                queue_group: one.queue_group(),
                left: one.left(),
            }),
            Self::Group(group) if !group.is_retired => Some(Interest {
                subject: &group.subject,
                queue_group: None,
                left: None,
            }),
            _ => None,
        }
    }
}

/// The places, free ones among them.
#[derive(Debug)]
pub(super) struct Places {
    places: Vec<Place>,
    /// The place that is used next, and the first of those that are free; [`NO_SLOT`].
    free: u32,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: NO_SLOT,
        }
    }
}

impl Places {
    pub(super) fn get(&self, slot: u32) -> Option<&Place> {
        self.places.get(slot as usize)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Place> {
        self.places.get_mut(slot as usize)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Place)> {
        let places = self.places.iter().enumerate();
        places.map(|(slot, place)| (slot as u32, place))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Place> {
        self.places.iter_mut()
    }

    pub(super) fn len(&self) -> u32 {
        self.places.len() as u32
    }

    pub(super) fn upstream(&self, slot: u32) -> UpstreamSid {
        UpstreamSid {
            slot,
            generation: self[slot].generation(),
        }
    }

    pub(super) fn insert(&mut self, subscription: Subscription) -> UpstreamSid {
        let slot = self.free_slot();
        let place = &mut self[slot];
        let generation = place.generation();
        *place = Place::One(Subscription {
            generation,
            ..subscription
        });
        UpstreamSid { slot, generation }
    }

    /// Takes the slot that was freed last, or a new one.
    pub(super) fn free_slot(&mut self) -> u32 {
        if let Some(Place::Free { next, .. }) = self.places.get(self.free as usize) {
            return std::mem::replace(&mut self.free, *next);
        }
        let len = self.places.len();
        if len == self.places.capacity() {
            // Not twice as many: there are thousands of these tables, and most stay small.
            self.places.reserve_exact(len / 8 + 1);
        }
        self.places.push(Place::empty(0));
        len as u32
    }

    /// Lets a slot have its next generation. One whose generations are used up stays empty.
    pub(super) fn free(&mut self, slot: u32) {
        let place = &mut self.places[slot as usize];
        if let Some(generation) = place.generation().checked_add(1) {
            *place = Place::Free {
                generation,
                next: self.free,
            };
            self.free = slot;
        }
    }
}

impl Index<u32> for Places {
    type Output = Place;

    fn index(&self, slot: u32) -> &Place {
        &self.places[slot as usize]
    }
}

impl IndexMut<u32> for Places {
    fn index_mut(&mut self, slot: u32) -> &mut Place {
        &mut self.places[slot as usize]
    }
}
