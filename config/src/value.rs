//! The kinds of value a key may hold: how each is read from TOML or from text, and written back.
//!
//! Called by the section macro in `schema`. Knows nothing of sections and keys.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use toml::Value;

/// One key's value: readable from TOML, from the text of a variable or flag, and writable as TOML.
pub(crate) trait Setting: Sized {
    /// What the key expects, for people, with an example.
    const EXPECTS: &'static str;

    /// Reads a value of the file; the error says what is wrong with it.
    fn read(value: &Value) -> Result<Self, String>;

    /// Reads the text of an environment variable or flag.
    fn read_text(text: &str) -> Result<Self, String>;

    /// The value as TOML; `None` if it is not set.
    fn write(&self) -> Option<Value>;
}

/// A number of bytes, written as in Slurm: `512M`, `4G`; units are powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(
    /// Bytes.
    pub u64,
);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no size");
        let trimmed = text.trim().trim_end_matches("iB").trim_end_matches('B');
        let unit = trimmed.chars().last().map(|c| c.to_ascii_uppercase()).ok_or_else(bad)?;
        let (digits, shift) = match UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, shift)) => (&trimmed[..trimmed.len() - 1], *shift),
            None => (trimmed, 0),
        };
        let number: u64 = digits.trim().parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| format!("{text:?} is too large"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |shift: &u32| self.0 != 0 && self.0.trailing_zeros() >= *shift;
        match UNITS.iter().find(|(_, shift)| exact(shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Declares an enum whose values are words of the configuration.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// The word that names it in the file.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                Self::read_text(word).map_err(|error| format!("{error}: {}", Self::EXPECTS))
            }
        }

        impl Setting for $name {
            const EXPECTS: &'static str = concat!("one of", $(" \"", $word, "\""),+);

            fn read(value: &Value) -> Result<Self, String> {
                Self::read_text(text_of(value)?)
            }

            fn read_text(text: &str) -> Result<Self, String> {
                match text { $($word => Ok(Self::$variant),)+ _ => Err(format!("{text:?} is not known")) }
            }

            fn write(&self) -> Option<Value> {
                Some(self.as_str().into())
            }
        }
    };
}

words! {
    /// How callers and executors prove who they are.
    Auth {
        /// Slurm's own: a munge credential with every call.
        Munge = "munge",
        /// A laptop: everybody is the daemon's own user, and nothing listens beyond loopback.
        SingleUser = "single-user",
    }
}

words! {
    /// What the harvester may do.
    Mode {
        /// Watch and record; take nothing.
        Observe = "observe",
        /// Take what the policy opts in.
        Enforce = "enforce",
    }
}

words! {
    /// How a worker waits for the next call, and its caller for the reply.
    Waiting {
        /// It spins, and the lease is billed for it.
        Hot = "hot",
        /// It sleeps until woken.
        Warm = "warm",
        /// It spins for a time, then sleeps.
        Adaptive = "adaptive",
    }
}

words! {
    /// How a client's calls travel.
    Transport {
        /// The fastest that both ends have.
        Auto = "auto",
        /// Memory that both share: on the executor's own node.
        Shm = "shm",
        /// InfiniBand or RoCE.
        Rdma = "rdma",
        /// TCP.
        Tcp = "tcp",
    }
}

words! {
    /// Who renews a lease.
    KeepAlive {
        /// The library, inside the calls that the program makes anyway.
        OnCall = "on-call",
        /// A thread of the library's own.
        Background = "background",
        /// The program.
        Manual = "manual",
    }
}

words! {
    /// How a daemon writes its log.
    LogFormat {
        /// Lines for people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

fn text_of(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("it is {}", kind_of(value)))
}

fn kind_of(value: &Value) -> String {
    match value.type_str() {
        kind @ ("integer" | "array") => format!("an {kind}"),
        kind => format!("a {kind}"),
    }
}

/// A setting that is text in the file too.
macro_rules! textual {
    ($type:ty, $expects:literal, |$text:ident| $parse:expr, |$value:ident| $show:expr) => {
        impl Setting for $type {
            const EXPECTS: &'static str = $expects;

            fn read(value: &Value) -> Result<Self, String> {
                Self::read_text(text_of(value)?)
            }

            fn read_text($text: &str) -> Result<Self, String> {
                $parse
            }

            fn write(&self) -> Option<Value> {
                let $value = self;
                Some(Value::String($show))
            }
        }
    };
}

textual!(String, "text, as \"name\"", |text| Ok(text.to_owned()), |value| value.clone());
textual!(
    PathBuf,
    "an absolute path, as \"/var/lib/gleaner\"",
    |text| {
        let path = PathBuf::from(text);
        if path.is_absolute() { Ok(path) } else { Err(format!("{text:?} is not absolute")) }
    },
    |value| value.display().to_string()
);
textual!(
    SocketAddr,
    "an IP address and a port, as \"0.0.0.0:7817\" or \"[::]:7817\"",
    |text| text.parse().map_err(|_| format!("{text:?} is no address with a port")),
    |value| value.to_string()
);
textual!(
    Duration,
    "a duration with its unit, as \"500ms\", \"10s\" or \"1h 30m\"",
    |text| humantime::parse_duration(text).map_err(|error| format!("{text:?}: {error}")),
    |value| humantime::format_duration(*value).to_string()
);

impl Setting for ByteSize {
    const EXPECTS: &'static str =
        "a size, as \"512M\" or \"4G\" (powers of 1024), or a number of bytes";

    fn read(value: &Value) -> Result<Self, String> {
        match value.as_integer() {
            Some(bytes) => {
                u64::try_from(bytes).map(Self).map_err(|_| format!("{bytes} is negative"))
            }
            None => text_of(value)?.parse(),
        }
    }

    fn read_text(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn write(&self) -> Option<Value> {
        Some(self.to_string().into())
    }
}

impl Setting for u32 {
    const EXPECTS: &'static str = "a whole number from 0 to 4294967295";

    fn read(value: &Value) -> Result<Self, String> {
        let number = value.as_integer().ok_or_else(|| format!("it is {}", kind_of(value)))?;
        number.try_into().map_err(|_| format!("{number} is out of range"))
    }

    fn read_text(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| format!("{text:?} is not such a number"))
    }

    fn write(&self) -> Option<Value> {
        Some(i64::from(*self).into())
    }
}

impl Setting for bool {
    const EXPECTS: &'static str = "true or false";

    fn read(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| format!("it is {}", kind_of(value)))
    }

    fn read_text(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| format!("{text:?} is neither"))
    }

    fn write(&self) -> Option<Value> {
        Some((*self).into())
    }
}

impl Setting for Vec<String> {
    const EXPECTS: &'static str = "a list of texts, as [\"a\", \"b\"] (in a variable or flag: a,b)";

    fn read(value: &Value) -> Result<Self, String> {
        let items = value.as_array().ok_or_else(|| format!("it is {}", kind_of(value)))?;
        items.iter().map(|item| text_of(item).map(str::to_owned)).collect()
    }

    fn read_text(text: &str) -> Result<Self, String> {
        Ok(split_outside_brackets(text))
    }

    fn write(&self) -> Option<Value> {
        Some(Value::Array(self.iter().map(|item| item.as_str().into()).collect()))
    }
}

/// Commas inside brackets belong to a hostlist: `n[1,3],m` is two items.
fn split_outside_brackets(text: &str) -> Vec<String> {
    let mut depth = 0_u32;
    let parts = text.split(|c| {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

impl<T: Setting> Setting for Option<T> {
    const EXPECTS: &'static str = T::EXPECTS;

    fn read(value: &Value) -> Result<Self, String> {
        T::read(value).map(Some)
    }

    fn read_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::read_text(text).map(Some) }
    }

    fn write(&self) -> Option<Value> {
        self.as_ref().and_then(T::write)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_slurm_writes_them() {
        for (text, bytes) in
            [("0", 0), ("1", 1), ("4K", 4096), ("2m", 2 << 20), ("4GiB", 4 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "4X", "99999999999T"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_hostlist_stays_one_item() {
        assert_eq!(Vec::<String>::read_text("n[1,3], m,"), Ok(vec!["n[1,3]".into(), "m".into()]));
    }

    proptest! {
        #[test]
        fn a_size_survives_writing(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn a_duration_survives_writing(ms in 0_u64..100_000_000_000) {
            let duration = Duration::from_millis(ms);
            let text = duration.write().expect("always written");
            prop_assert_eq!(Duration::read(&text), Ok(duration));
        }
    }
}
