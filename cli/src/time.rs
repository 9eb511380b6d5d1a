//! Times and counts as people write them on the command line.

use std::{
    ops::RangeInclusive,
    str::FromStr,
    time::{Duration, SystemTime},
};

/// `4`, or `1-4`: Slurm's form of a number of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeCount(pub(crate) RangeInclusive<u32>);

impl FromStr for NodeCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        match (least.parse(), most.parse()) {
            (Ok(least), Ok(most)) if 1 <= least && least <= most => Ok(Self(least..=most)),
            _ => Err("give a number from 1 up, or MIN-MAX".into()),
        }
    }
}

/// A duration with its unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Slurm's `--time`: `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours[:minutes[:seconds]]`; or a
/// duration with its unit.
pub(crate) fn slurm_time(text: &str) -> Result<Duration, String> {
    if text.contains(|c: char| c.is_ascii_alphabetic()) {
        return duration(text);
    }
    let numbers =
        |text: &str| text.split(':').map(str::parse).collect::<Result<Vec<u64>, _>>().ok();
    let fields = match text.split_once('-') {
        Some((days, rest)) => days.parse().ok().zip(numbers(rest)),
        None => numbers(text).map(|fields| (0, fields)),
    };
    let seconds = match fields.as_ref().map(|(days, rest)| (*days, rest.as_slice())) {
        Some((0, [m])) if !text.contains('-') => sum(&[(*m, 60)]),
        Some((0, [m, s])) if !text.contains('-') => sum(&[(*m, 60), (*s, 1)]),
        Some((d, [h])) => sum(&[(d, 86_400), (*h, 3600)]),
        Some((d, [h, m])) => sum(&[(d, 86_400), (*h, 3600), (*m, 60)]),
        Some((d, [h, m, s])) => sum(&[(d, 86_400), (*h, 3600), (*m, 60), (*s, 1)]),
        _ => None,
    };
    let told =
        "give MINUTES, HOURS:MINUTES:SECONDS, DAYS-HOURS:MINUTES:SECONDS, or a duration as \"90s\"";
    seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(|| told.into())
}

fn sum(terms: &[(u64, u64)]) -> Option<u64> {
    terms
        .iter()
        .try_fold(0_u64, |total, (count, unit)| total.checked_add(count.checked_mul(*unit)?))
}

/// A moment: a duration ago, or a date with or without a time of day, in UTC.
pub(crate) fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| "too long ago".into());
    }
    let dated = humantime::parse_rfc3339_weak(text)
        .or_else(|_| humantime::parse_rfc3339_weak(&format!("{text} 00:00:00")));
    dated.map_err(|_| "give a duration as \"7d\", or a date as \"2026-01-31\"".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slurms_times_mean_what_they_mean_in_slurm() {
        let cases = [
            ("10", 600),
            ("1:30", 90),
            ("1:00:00", 3600),
            ("1-0", 86_400),
            ("0-2", 7200),
            ("1-2:30", 86_400 + 9000),
            ("1-2:30:05", 86_400 + 9005),
            ("90s", 90),
        ];
        for (text, seconds) in cases {
            assert_eq!(slurm_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "1:2:3:4", "-5", "1-", "1d-2", "99999999999999999999"] {
            assert!(slurm_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn node_counts() {
        assert_eq!("3".parse(), Ok(NodeCount(3..=3)));
        assert_eq!("1-4".parse(), Ok(NodeCount(1..=4)));
        for text in ["0", "4-1", "x", "-", "1-"] {
            assert!(text.parse::<NodeCount>().is_err(), "{text}");
        }
    }

    #[test]
    fn moments() {
        assert!(moment("7d").is_ok());
        assert_eq!(moment("1970-01-02"), Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(86_400)));
        assert!(moment("yesterday").is_err());
    }
}
