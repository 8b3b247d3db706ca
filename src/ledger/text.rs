//! The subject and queue group of a SUB, in one piece.

use std::ops::Range;

/// Up to so many bytes take no memory of their own.
const SHORT: usize = 20;

/// Length of the number behind the text of a long one.
const SID_LEN: usize = size_of::<u32>();

/// A subject, a queue group and a sid, back to back.
#[derive(Debug)]
pub(super) enum Words {
    Short {
        subject_len: u8,
        sid_at: u8,
        len: u8,
        bytes: [u8; SHORT],
    },
    Long {
        subject_len: u32,
        /// Behind the sid is its length, native-endian.
        bytes: Box<[u8]>,
    },
}

impl Words {
    pub(super) fn new(subject: &[u8], queue_group: &[u8], sid: &[u8]) -> Self {
        let len = subject.len() + queue_group.len() + sid.len();
        if len > SHORT {
            let sid_len = (sid.len() as u32).to_ne_bytes();
            return Self::Long {
                subject_len: subject.len() as u32,
                bytes: [subject, queue_group, sid, &sid_len].concat().into(),
            };
        }
        let mut bytes = [0; SHORT];
        let mut rest = &mut bytes[..];
        for part in [subject, queue_group, sid] {
            let (place, behind) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = behind;
        }
        Self::Short {
            subject_len: subject.len() as u8,
            sid_at: (subject.len() + queue_group.len()) as u8,
            len: len as u8,
            bytes,
        }
    }

    pub(super) fn subject(&self) -> &[u8] {
        match self {
            Self::Short {
                subject_len, bytes, ..
            } => &bytes[..usize::from(*subject_len)],
            Self::Long {
                subject_len, bytes, ..
            } => &bytes[..*subject_len as usize],
        }
    }

    /// Empty where there is none.
    pub(super) fn queue_group(&self) -> &[u8] {
        match self {
            Self::Short {
                subject_len,
                sid_at,
                bytes,
                ..
            } => &bytes[usize::from(*subject_len)..usize::from(*sid_at)],
            Self::Long {
                subject_len, bytes, ..
            } => &bytes[*subject_len as usize..sid_range(bytes).start],
        }
    }

    pub(super) fn sid(&self) -> &[u8] {
        match self {
            Self::Short {
                sid_at, len, bytes, ..
            } => &bytes[usize::from(*sid_at)..usize::from(*len)],
            Self::Long { bytes, .. } => &bytes[sid_range(bytes)],
        }
    }
}

/// Where the sid is in the bytes of a long one.
fn sid_range(bytes: &[u8]) -> Range<usize> {
    let (text, len) = bytes.split_last_chunk().unwrap_or((bytes, &[0; SID_LEN]));
    text.len().saturating_sub(u32::from_ne_bytes(*len) as usize)..text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_comes_back_whatever_its_length() {
        let text = [b'x'; 2 * SHORT];
        for subject in 0..text.len() {
            for (queue_group, sid) in [(0, 1), (3, 1), (0, 14), (SHORT, 20)] {
                let parts = [&text[..subject], &b"yyyyyyyyyyyyyyyyyyyyy"[..queue_group]];
                let sid = &b"12345678901234567890"[..sid];
                let all = Words::new(parts[0], parts[1], sid);
                assert_eq!([all.subject(), all.queue_group()], parts);
                assert_eq!(all.sid(), sid);
            }
        }
    }

    #[test]
    fn a_short_one_is_no_larger_than_a_long_one() {
        assert_eq!(size_of::<Words>(), 24);
    }
}
