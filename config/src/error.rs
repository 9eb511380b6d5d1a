//! What can be wrong with a configuration: the place, the key, the cause and the remedy.

use std::{fmt, io, path::PathBuf};

use crate::load::Origin;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {}: {source}; name an existing file by --config or GLEANER_CONFIG", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something in it is wrong: all that was found, in the file's order.
    #[error("{}", join(.0))]
    Invalid(Vec<Problem>),
}

fn join(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

impl ConfigError {
    /// The problems found; none if the file could not be read.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Read { .. } => &[],
            Self::Invalid(problems) => problems,
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Where: the file and line, the variable or the flag.
    pub origin: Origin,
    /// `section.key`, or the section alone, or empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub cause: Cause,
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Cause {
    /// The text is not TOML.
    Syntax(String),
    /// No section of that name; the nearest that exists.
    UnknownSection(Option<String>),
    /// No key of that name; the nearest that exists.
    UnknownKey(Option<String>),
    /// The value is of the wrong kind.
    Value {
        /// What is wrong with it.
        why: String,
        /// What the key expects.
        expects: &'static str,
    },
    /// Values that cannot be together or make no sense.
    Rule {
        /// What is wrong.
        why: String,
        /// What to do about it.
        remedy: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nearest =
            |f: &mut fmt::Formatter<'_>, kind: &str, nearest: &Option<String>| match nearest {
                Some(name) => write!(f, "no such {kind}; did you mean {name:?}?"),
                None => write!(
                    f,
                    "no such {kind}; remove it (`gleaner config show` lists all there are)"
                ),
            };
        match self {
            Self::Syntax(why) => write!(f, "not TOML: {why}"),
            Self::UnknownSection(name) => nearest(f, "section", name),
            Self::UnknownKey(name) => nearest(f, "key", name),
            Self::Value { why, expects } => write!(f, "{why}; give {expects}"),
            Self::Rule { why, remedy } => write!(f, "{why}; {remedy}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}", self.cause)
    }
}
