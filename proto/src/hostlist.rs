//! Slurm's hostlist syntax, `n[1-3,07],login1`: read and written the way Slurm does.

use std::collections::BTreeSet;

use crate::ids::{BadNodeName, NodeName};

/// Most names that one list may expand to.
pub const HOSTLIST_MAX: usize = 100_000;

/// Why a text is no hostlist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHostlist {
    /// Brackets that do not match.
    #[error("hostlist {0:?}: a bracket is not closed, or closed twice")]
    Bracket(String),
    /// A range such as `[3-1]` or `[a-b]`.
    #[error("hostlist range {0:?} is not NUMBER or LOW-HIGH")]
    Range(String),
    /// Too many names.
    #[error("hostlist has more than {HOSTLIST_MAX} names")]
    TooLong,
    /// A name with other characters.
    #[error("hostlist: {0}")]
    Name(#[from] BadNodeName),
}

/// The names of a hostlist, in order; the empty text has none.
pub fn expand(text: &str) -> Result<Vec<NodeName>, BadHostlist> {
    let mut names = Vec::new();
    for item in split_outside_brackets(text)? {
        let mut prefixes = vec![String::new()];
        let mut rest = item;
        while let Some((literal, after)) = rest.split_once('[') {
            let (ranges, after) =
                after.split_once(']').ok_or_else(|| BadHostlist::Bracket(item.into()))?;
            let numbers = expand_ranges(ranges)?;
            if prefixes.len().saturating_mul(numbers.len()) + names.len() > HOSTLIST_MAX {
                return Err(BadHostlist::TooLong);
            }
            prefixes = prefixes
                .iter()
                .flat_map(|prefix| numbers.iter().map(move |n| format!("{prefix}{literal}{n}")))
                .collect();
            rest = after;
        }
        for prefix in prefixes {
            names.push(NodeName::new(&(prefix + rest))?);
        }
        if names.len() > HOSTLIST_MAX {
            return Err(BadHostlist::TooLong);
        }
    }
    Ok(names)
}

/// The shortest hostlist of these names: sorted, ranges folded over the trailing number.
pub fn compress<'a>(names: impl IntoIterator<Item = &'a NodeName>) -> String {
    let names: BTreeSet<(&str, usize, Option<u64>)> =
        names.into_iter().map(|name| split_number(name.as_str())).collect();
    let mut items: Vec<String> = Vec::new();
    let mut names = names.into_iter().peekable();
    while let Some((prefix, width, number)) = names.next() {
        let Some(first) = number else {
            items.push(prefix.into());
            continue;
        };
        let mut ranges = vec![(first, first)];
        while let Some(&(next_prefix, next_width, Some(next))) = names.peek() {
            if (next_prefix, next_width) != (prefix, width) {
                break;
            }
            match ranges.last_mut() {
                Some(last) if last.1 + 1 == next => last.1 = next,
                _ => ranges.push((next, next)),
            }
            names.next();
        }
        items.push(format_ranges(prefix, width, &ranges));
    }
    items.join(",")
}

fn split_outside_brackets(text: &str) -> Result<Vec<&str>, BadHostlist> {
    let (mut items, mut start, mut depth) = (Vec::new(), 0, 0_i32);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'[' => depth += 1,
            b']' => depth -= 1,
            b',' if depth == 0 => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        if !(0..=1).contains(&depth) {
            return Err(BadHostlist::Bracket(text.into()));
        }
    }
    if depth != 0 {
        return Err(BadHostlist::Bracket(text.into()));
    }
    items.push(&text[start..]);
    items.retain(|item| !item.is_empty());
    Ok(items)
}

fn expand_ranges(ranges: &str) -> Result<Vec<String>, BadHostlist> {
    let bad = || BadHostlist::Range(ranges.into());
    let mut numbers = Vec::new();
    for range in ranges.split(',') {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !all_digits(low) || !all_digits(high) {
            return Err(bad());
        }
        let width = low.len();
        let (low, high): (u64, u64) =
            (low.parse().map_err(|_| bad())?, high.parse().map_err(|_| bad())?);
        if low > high {
            return Err(bad());
        }
        if high - low >= HOSTLIST_MAX as u64 {
            return Err(BadHostlist::TooLong);
        }
        numbers.extend((low..=high).map(|n| format!("{n:0width$}")));
        if numbers.len() > HOSTLIST_MAX {
            return Err(BadHostlist::TooLong);
        }
    }
    Ok(numbers)
}

/// Splits `nid007` into `nid`, width 3 and 7. Width 0 stands for a number without leading zeros.
fn split_number(name: &str) -> (&str, usize, Option<u64>) {
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (prefix, number) = name.split_at(name.len() - digits);
    match number.parse() {
        Ok(value) if digits <= 18 => {
            (prefix, if number.starts_with('0') && digits > 1 { digits } else { 0 }, Some(value))
        }
        _ => (name, 0, None),
    }
}

fn format_ranges(prefix: &str, width: usize, ranges: &[(u64, u64)]) -> String {
    let range = |&(low, high): &(u64, u64)| {
        if low == high { format!("{low:0width$}") } else { format!("{low:0width$}-{high:0width$}") }
    };
    match ranges {
        [(low, high)] if low == high => format!("{prefix}{low:0width$}"),
        _ => format!("{prefix}[{}]", ranges.iter().map(range).collect::<Vec<_>>().join(",")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(list: &str) -> Vec<String> {
        expand(list).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn expands_as_scontrol_show_hostnames_does() {
        assert_eq!(texts("n[1-3,07],login"), ["n1", "n2", "n3", "n07", "login"]);
        assert_eq!(texts("r[1-2]n[08-10]"), ["r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10"]);
        assert!(texts("").is_empty());
    }

    #[test]
    fn refuses_what_is_no_list() {
        for bad in ["n[1", "n1]", "n[[1]]", "n[3-1]", "n[a]", "n[]", "n[1-]", "n[0-999999]", "a b"]
        {
            assert!(expand(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn folds_ranges() {
        let names = expand("n3,n1,n2,n7,login,n09").unwrap();
        assert_eq!(compress(&names), "login,n[1-3,7],n09");
    }

    proptest! {
        #[test]
        fn compress_then_expand_gives_the_same_set(names in prop::collection::btree_set("[a-c]{1,2}[0-9]{0,3}", 0..40)) {
            let names: BTreeSet<NodeName> = names.iter().map(|n| NodeName::new(n).unwrap()).collect();
            let back: BTreeSet<NodeName> = expand(&compress(&names)).unwrap().into_iter().collect();
            prop_assert_eq!(back, names);
        }

        #[test]
        fn any_text_expands_or_is_refused(text in "[a-c0-9,\\[\\]-]{0,24}") {
            let _ = expand(&text);
        }
    }
}
