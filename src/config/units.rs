//! Durations and sizes as people write them: `"50ms"`, `"2m"`, `"64KiB"`, `4096`.

use std::time::Duration;

/// Characters of the longest text that is read as a duration: such as `23h 59m 59s 999ms`.
const LONGEST_DURATION: usize = 24;

/// The units of a size, largest first, so that the first that fits is the shortest.
const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Reads a duration, or `None` where it is none.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    // No duration is longer, and humantime adds parts without looking whether they fit.
    (text.len() <= LONGEST_DURATION).then_some(())?;
    humantime::parse_duration(text).ok()
}

/// A duration as it would be written in the file.
pub(super) fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration)
        .to_string()
        .replace(' ', "")
}

/// Reads a size in bytes: a whole number and one of B, KiB, MiB, GiB, or a
/// number alone. `KB` and `K` are refused, since people disagree on them.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit = unit.trim_start();
    if unit.is_empty() {
        return Some(number);
    }
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

/// A size as it would be written in the file.
pub(super) fn show_size(bytes: u64) -> String {
    let fits = |factor: u64| factor > 1 && bytes > 0 && bytes.is_multiple_of(factor);
    match UNITS.iter().find(|(_, factor)| fits(*factor)) {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown_in_binary_units() {
        for (text, bytes, shown) in [
            ("64KiB", 65_536, "64KiB"),
            ("8 MiB", 8 << 20, "8MiB"),
            ("1024MiB", 1 << 30, "1GiB"),
            ("1500", 1_500, "1500"),
            ("0", 0, "0"),
            ("12B", 12, "12"),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(show_size(bytes), shown);
        }
    }

    #[test]
    fn ambiguous_or_huge_sizes_are_refused() {
        for text in ["64KB", "64k", "1.5MiB", "-1", "", "KiB", "99999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_read_and_shown() {
        let two_minutes = Duration::from_secs(120);
        assert_eq!(parse_duration("2m"), Some(two_minutes));
        assert_eq!(show_duration(two_minutes), "2m");
        assert_eq!(show_duration(Duration::from_millis(1500)), "1s500ms");
        assert_eq!(parse_duration("2"), None);
        assert_eq!(parse_duration("-2s"), None);
        assert_eq!(parse_duration("18446744073709551615s 1000000000ns"), None);
        assert_eq!(parse_duration(&"9999999999y ".repeat(100)), None);
    }
}
