//! Announcements, by which the natsmux of all hosts know each other through independent brokers
//! (R29).

use serde::{Deserialize, Serialize};

/// One announcement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Announcement {
    /// The announcing natsmux: another id at every start.
    pub id: String,
    /// The `server_id` of the broker that it was sent to.
    pub via: String,
    /// The `server_id`s of the brokers on which that host is subscribed.
    pub reaches: Vec<String>,
    /// When the next one comes, in milliseconds.
    pub every_ms: u64,
    /// Which of its carriers made it: one for each account is enough.
    pub by: u64,
    /// When it was made, in milliseconds since 1970, where it is authenticated.
    #[serde(skip_serializing_if = "is_zero")]
    pub at_ms: u64,
    /// HMAC-SHA256 of what is [signed](Self::signed), in hexadecimal digits.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Announcement {
    /// The JSON.
    pub fn encode(&self) -> Vec<u8> {
        // Texts and numbers: it can't fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Everything but the code itself, with each field's length: no two say the same.
    pub fn signed(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let texts = [&self.id, &self.via].into_iter().chain(&self.reaches);
        for text in texts {
            bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        for number in [
            self.reaches.len() as u64,
            self.every_ms,
            self.by,
            self.at_ms,
        ] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    /// Reads JSON. `None` where it is none, or nobody's.
    pub fn parse(json: &[u8]) -> Option<Self> {
        let parsed: Self = serde_json::from_slice(json).ok()?;
        (!parsed.id.is_empty()).then_some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_is_understood_and_nothing_else() {
        let said = Announcement {
            id: "NMX1".to_owned(),
            via: "A".to_owned(),
            reaches: vec!["A".to_owned(), "B".to_owned()],
            every_ms: 1000,
            by: 3,
            at_ms: 7,
            mac: "00ff".to_owned(),
        };
        assert_eq!(Announcement::parse(&said.encode()), Some(said));
        for other in [&b""[..], b"{}", b"[1]", b"{\"id\":7}", b"{\"id\":\"\"}"] {
            assert_eq!(Announcement::parse(other), None);
        }
    }
}
