//! The sid that natsmux uses towards brokers: a slot and a generation, never reused on one
//! link, as short as it can be.
//!
//! Text form: the slot in base 62, and from the second use of the slot on `-` and the
//! generation in base 62. Most sids are one or two letters, so a control line hardly grows.

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The worth of each byte as a digit.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < DIGITS.len() {
        values[DIGITS[value] as usize] = value as u8;
        value += 1;
    }
    values
};
const NO_DIGIT: u8 = u8::MAX;

/// Slot and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamSid {
    /// Index in the table of subscriptions.
    pub slot: u32,
    /// How often the slot was used before.
    pub generation: u32,
}

/// The text of an [`UpstreamSid`], at most 13 bytes, without an allocation.
#[derive(Clone, Copy, Debug)]
pub struct SidText {
    bytes: [u8; 16],
    len: u8,
}

impl UpstreamSid {
    /// The text that goes to a broker.
    pub fn text(self) -> SidText {
        let mut text = SidText {
            bytes: [0; 16],
            len: 0,
        };
        text.push_number(self.slot);
        if self.generation > 0 {
            text.push(b'-');
            text.push_number(self.generation);
        }
        text
    }

    /// Reads the text that a broker sent. `None` where natsmux can't have written it.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut numbers = [0u32; 2];
        let (mut at, mut is_empty) = (0, true);
        for &byte in text {
            let digit = VALUES[usize::from(byte)];
            if digit != NO_DIGIT {
                numbers[at] = numbers[at].checked_mul(62)?.checked_add(u32::from(digit))?;
                is_empty = false;
            } else if byte == b'-' && at == 0 && !is_empty {
                (at, is_empty) = (1, true);
            } else {
                return None;
            }
        }
        let [slot, generation] = numbers;
        (!is_empty).then_some(Self { slot, generation })
    }
}

impl SidText {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn push(&mut self, byte: u8) {
        self.bytes[usize::from(self.len)] = byte;
        self.len += 1;
    }

    fn push_number(&mut self, mut number: u32) {
        let start = usize::from(self.len);
        loop {
            self.push(DIGITS[(number % 62) as usize]);
            number /= 62;
            if number == 0 {
                break;
            }
        }
        self.bytes[start..usize::from(self.len)].reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for (slot, generation) in [(0, 0), (61, 0), (62, 1), (u32::MAX, u32::MAX)] {
            let sid = UpstreamSid { slot, generation };
            assert_eq!(UpstreamSid::parse(sid.text().as_bytes()), Some(sid));
        }
    }

    #[test]
    fn first_uses_are_short() {
        let sid = UpstreamSid {
            slot: 61,
            generation: 0,
        };
        assert_eq!(sid.text().as_bytes(), b"z");
    }

    #[test]
    fn what_natsmux_did_not_write_is_unknown() {
        for text in [&b""[..], b"-", b"a-", b"-a", b"a.b", b"zzzzzzzz", b"1-1-1"] {
            assert_eq!(UpstreamSid::parse(text), None);
        }
    }
}
