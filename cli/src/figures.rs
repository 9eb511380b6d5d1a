//! Figures as people read them.

use std::time::{Duration, SystemTime};

/// Nanoseconds in the unit that leaves one to three digits before the point.
pub(crate) fn nanoseconds(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.2} µs", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// Microseconds, likewise.
pub(crate) fn microseconds(us: u64) -> String {
    nanoseconds(us.saturating_mul(1000))
}

/// A span in its two largest units; `-` for what is not known.
pub(crate) fn span_ms(ms: i64) -> String {
    match u64::try_from(ms) {
        Ok(ms) if ms < 1000 => format!("{ms}ms"),
        Ok(ms) => {
            let text = humantime::format_duration(Duration::from_secs(ms / 1000)).to_string();
            text.split(' ').take(2).collect::<Vec<_>>().join(" ")
        }
        Err(_) => "-".into(),
    }
}

/// Bytes in the largest unit of 1024 that leaves at least one before the point.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

/// A moment on the wall clock, in UTC, to the millisecond.
pub(crate) fn moment(unix_ms: i64) -> String {
    let ms = u64::try_from(unix_ms).unwrap_or(0);
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(moment: SystemTime) -> i64 {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A part of a whole in percent; `-` of nothing.
pub(crate) fn share(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1} %", 100.0 * part / whole) } else { "-".into() }
}

/// `-` for an empty text.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(nanoseconds(850), "850 ns");
        assert_eq!(nanoseconds(6_340), "6.34 µs");
        assert_eq!(microseconds(12_500), "12.50 ms");
        assert_eq!(span_ms(90_061_000), "1day 1h");
        assert_eq!(span_ms(-1), "-");
        assert_eq!(bytes(4 << 30), "4.0 GiB");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(share(1.0, 0.0), "-");
        assert_eq!(moment(0), "1970-01-01T00:00:00.000Z");
    }
}
