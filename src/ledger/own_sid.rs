//! A session and its own name for a subscription, as the key of a map.

use std::cmp::Ordering;

use super::SessionId;

/// Most sids are a few digits: these take no memory of their own.
const SHORT: usize = 10;

/// A session's number and the bytes of a sid, in their order.
#[derive(Clone, Debug)]
pub(super) enum OwnSid {
    Short {
        len: u8,
        /// Big-endian, so that the key is one number.
        session: [u8; 4],
        bytes: [u8; SHORT],
    },
    Long {
        session: u32,
        /// Behind a thin pointer, so that a key is as small as the short ones allow.
        bytes: Box<Box<[u8]>>,
    },
}

impl OwnSid {
    pub(super) fn new(session: SessionId, sid: &[u8]) -> Self {
        if sid.len() > SHORT {
            return Self::Long {
                session: session.0,
                bytes: Box::new(sid.into()),
            };
        }
        let mut bytes = [0; SHORT];
        bytes[..sid.len()].copy_from_slice(sid);
        Self::Short {
            len: sid.len() as u8,
            session: session.0.to_be_bytes(),
            bytes,
        }
    }

    /// Comes before all others of a session.
    pub(super) fn least(session: SessionId) -> Self {
        Self::new(session, &[])
    }

    pub(super) fn session(&self) -> SessionId {
        SessionId(match self {
            Self::Short { session, .. } => u32::from_be_bytes(*session),
            Self::Long { session, .. } => *session,
        })
    }

    fn sid(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes, .. } => &bytes[..usize::from(*len)],
            Self::Long { bytes, .. } => bytes,
        }
    }

    /// Of a short one, a number in the order of the keys: zeros behind the sid, then its length.
    fn rank(session: [u8; 4], sid: &[u8; SHORT], len: u8) -> u128 {
        let mut rank = [0; 16];
        rank[..4].copy_from_slice(&session);
        rank[4..4 + SHORT].copy_from_slice(sid);
        rank[4 + SHORT] = len;
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
        use OwnSid::Short;
        if let Short {
            len,
            session,
            bytes,
        } = self
            && let Short {
                len: other_len,
                session: other_session,
                bytes: other_bytes,
            } = other
        {
            let other = Self::rank(*other_session, other_bytes, *other_len);
            return Self::rank(*session, bytes, *len).cmp(&other);
        }
        (self.session(), self.sid()).cmp(&(other.session(), other.sid()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_by_session_and_then_as_the_bytes_of_sids_of_every_length() {
        let text = b"0123456789abcdefghij";
        let mut sids: Vec<&[u8]> = (0..=text.len()).map(|len| &text[..len]).collect();
        sids.extend([
            &b"0"[..],
            b"00",
            b"0\0",
            b"0\0\0",
            b"9",
            b"zzzzzzzzzzzzzzzzzzzz",
        ]);
        let mut all: Vec<(SessionId, &[u8])> = Vec::new();
        for session in [0, 1, 255, 256, u32::MAX] {
            all.extend(sids.iter().map(|sid| (SessionId(session), *sid)));
        }
        let keys = all.iter().map(|(session, sid)| OwnSid::new(*session, sid));
        let mut keys: Vec<_> = keys.collect();
        keys.sort();
        all.sort_unstable();
        let sorted: Vec<_> = keys.iter().map(|key| (key.session(), key.sid())).collect();
        assert_eq!(sorted, all);
        assert_eq!(keys[0], OwnSid::least(SessionId(0)));
    }

    #[test]
    fn a_key_is_no_larger_than_a_slice() {
        assert_eq!(size_of::<OwnSid>(), 16);
    }
}
