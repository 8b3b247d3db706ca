//! Times as nats-server writes them, for its own tools.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment as nats-server writes it. A clock before 1970 shows 1970.
pub(super) fn rfc3339(moment: SystemTime) -> String {
    let since_epoch = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    // The last second of 9999: the format has no room for more.
    let whole = since_epoch.min(Duration::from_secs(253_402_300_799));
    humantime::format_rfc3339_millis(UNIX_EPOCH + whole).to_string()
}

/// A duration as nats-server writes it: `5s`, `4m5s`, `3h4m5s`, `2d3h4m5s`, `1y2d3h4m5s`.
pub(super) fn nats_duration(duration: Duration) -> String {
    let total = duration.as_secs();
    let (seconds, minutes, hours) = (total % 60, total / 60 % 60, total / 3600 % 24);
    let (days, years) = (total / 86_400 % 365, total / 86_400 / 365);
    let parts = [
        (years, 'y'),
        (days, 'd'),
        (hours, 'h'),
        (minutes, 'm'),
        (seconds, 's'),
    ];
    let first = parts.iter().position(|(count, _)| *count > 0);
    let shown = &parts[first.unwrap_or(parts.len() - 1)..];
    shown
        .iter()
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_form_of_nats_server() {
        for (seconds, shown) in [
            (0, "0s"),
            (5, "5s"),
            (65, "1m5s"),
            (3600, "1h0m0s"),
            (86_400 + 1, "1d0h0m1s"),
            (366 * 86_400, "1y1d0h0m0s"),
        ] {
            assert_eq!(nats_duration(Duration::from_secs(seconds)), shown);
        }
    }

    #[test]
    fn moments_out_of_range_are_shown_at_its_end() {
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        let early = UNIX_EPOCH - Duration::from_secs(9);
        assert_eq!(rfc3339(early), "1970-01-01T00:00:00.000Z");
        let late = UNIX_EPOCH + Duration::from_secs(400_000_000_000);
        assert_eq!(rfc3339(late), "9999-12-31T23:59:59.000Z");
    }
}
