//! Durations such as `90d` and sizes such as `1GiB`, as people write them.

use std::time::Duration;

/// Reads whole numbers with units, largest first or not: `90d`, `24h`, `1h30m`. `None` for what is none.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut seconds = 0_u64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, tail) = leading_number(rest)?;
        let unit_length = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_length);
        let unit = match unit.trim() {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = tail;
    }
    Some(Duration::from_secs(seconds))
}

/// Reads a whole number of bytes with a unit, binary (`KiB`, `MiB`, `GiB`, `TiB`) or decimal (`kB`, `MB`, `GB`, `TB`).
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = leading_number(text.trim())?;
    let unit = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// A duration in the largest unit that leaves nothing over.
pub(super) fn written(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let unit = units.into_iter().find(|&(unit, _)| seconds > 0 && seconds.is_multiple_of(unit));
    unit.map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_as_people_write_them() {
        #[rustfmt::skip]
        let durations = [
            ("90d", Some(90 * 86_400)), ("24h", Some(86_400)), ("1h30m", Some(5400)), ("60s", Some(60)),
            ("2w", Some(14 * 86_400)), ("1 h", Some(3600)), ("0s", Some(0)),
            ("", None), ("90", None), ("d", None), ("-1d", None), ("1.5h", None), ("1month", None),
            ("99999999999999999999d", None), ("18446744073709551615w", None),
        ];
        for (text, expected) in durations {
            assert_eq!(duration(text), expected.map(Duration::from_secs), "{text}");
        }
        #[rustfmt::skip]
        let sizes = [
            ("1GiB", Some(1 << 30)), ("64 MiB", Some(64 << 20)), ("100MB", Some(100_000_000)), ("0", Some(0)), ("512B", Some(512)),
            ("", None), ("GiB", None), ("1gib", None), ("-1", None), ("1.5GiB", None), ("18446744073709551615KiB", None),
        ];
        for (text, expected) in sizes {
            assert_eq!(size(text), expected, "{text}");
        }
        for (seconds, expected) in [(0, "0s"), (90, "90s"), (120, "2m"), (7200, "2h"), (86_400, "1d"), (604_800, "7d")]
        {
            assert_eq!(written(Duration::from_secs(seconds)), expected);
        }
    }
}
