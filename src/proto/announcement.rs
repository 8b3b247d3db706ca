//! What the natsmux of a host tells those of the others through independent brokers (R29).

use serde::{Deserialize, Serialize};

/// One announcement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Announcement {
    /// Whose it is: another one at every start.
    pub id: String,
    /// The `server_id` of the broker that it was sent to.
    pub via: String,
    /// The `server_id`s of the brokers on which that host is subscribed.
    pub reaches: Vec<String>,
    /// When the next one comes, in milliseconds.
    pub every_ms: u64,
}

impl Announcement {
    /// The JSON.
    pub fn encode(&self) -> Vec<u8> {
        // Texts and numbers: it can't fail.
        serde_json::to_vec(self).unwrap_or_default()
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
        };
        assert_eq!(Announcement::parse(&said.encode()), Some(said));
        for other in [&b""[..], b"{}", b"[1]", b"{\"id\":7}", b"{\"id\":\"\"}"] {
            assert_eq!(Announcement::parse(other), None);
        }
    }
}
