//! A component's sid as the key of a map.

use std::cmp::Ordering;

/// Most sids are a few digits: these take no memory of their own.
const SHORT: usize = 14;

/// The bytes of a sid, in their order.
#[derive(Clone, Debug)]
pub(super) enum OwnSid {
    Short {
        len: u8,
        bytes: [u8; SHORT],
    },
    /// Behind a thin pointer, so that a key is as small as the short ones allow.
    Long(Box<Box<[u8]>>),
}

impl OwnSid {
    /// Comes before all others.
    pub(super) const LEAST: Self = Self::Short {
        len: 0,
        bytes: [0; SHORT],
    };

    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for OwnSid {
    fn from(sid: &[u8]) -> Self {
        if sid.len() > SHORT {
            return Self::Long(Box::new(sid.into()));
        }
        let mut bytes = [0; SHORT];
        bytes[..sid.len()].copy_from_slice(sid);
        Self::Short {
            len: sid.len() as u8,
            bytes,
        }
    }
}

impl OwnSid {
    /// Of a short one, a number in the order of the bytes: zeros behind them, then their count.
    fn rank(bytes: &[u8; SHORT], len: u8) -> u128 {
        let mut rank = [0; 16];
        rank[..SHORT].copy_from_slice(bytes);
        rank[SHORT] = len;
        u128::from_be_bytes(rank)
    }
}

impl PartialEq for OwnSid {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for OwnSid {}

impl PartialOrd for OwnSid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OwnSid {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Short { len, bytes }, Self::Short { len: n, bytes: b }) => {
                Self::rank(bytes, *len).cmp(&Self::rank(b, *n))
            }
            _ => self.as_bytes().cmp(other.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sids_of_every_length_are_ordered_as_their_bytes() {
        let text = b"0123456789abcdefghij";
        let mut all: Vec<&[u8]> = (0..=text.len()).map(|len| &text[..len]).collect();
        all.extend([
            &b"0"[..],
            b"00",
            b"0\0",
            b"0\0\0",
            b"9",
            b"zzzzzzzzzzzzzzzzzzzz",
        ]);
        let mut sids: Vec<OwnSid> = all.iter().map(|sid| OwnSid::from(*sid)).collect();
        sids.sort();
        all.sort_unstable();
        let sorted: Vec<&[u8]> = sids.iter().map(OwnSid::as_bytes).collect();
        assert_eq!(sorted, all);
        assert_eq!(sids[0], OwnSid::LEAST);
    }

    #[test]
    fn a_key_is_no_larger_than_a_slice() {
        assert_eq!(size_of::<OwnSid>(), 16);
    }
}
