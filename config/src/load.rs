//! Merging the sources: defaults, the file, the environment, flags; and where each key came from.
//!
//! The programs call [`Config::load`], or [`Sources::from_process`] where they have `--config` and `--set` flags. All
//! problems are collected before any is reported: an admin fixes a file once.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use toml::{
    Spanned, Value,
    de::{DeTable, DeValue},
};

use crate::{
    check,
    error::{Cause, ConfigError, Problem},
    schema::Key,
    sections::Config,
};

/// The file that is read when none is named; it may be absent.
pub const DEFAULT_PATH: &str = "/etc/gleaner/gleaner.toml";

/// The environment variable that names another file.
pub const PATH_VARIABLE: &str = "GLEANER_CONFIG";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// `--set` on the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag --set"),
        }
    }
}

/// A valid configuration, and where its values come from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The file that was read, if there was one.
    pub path: Option<PathBuf>,
    origins: BTreeMap<String, Origin>,
}

/// One key with its value and origin, as `gleaner config show --origin` lists it.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The key.
    pub key: Key,
    /// Its value as TOML writes it; `None` if it is not set.
    pub value: Option<Value>,
    /// Where the value comes from.
    pub origin: Origin,
}

impl Loaded {
    /// Where `section.key` comes from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// Every key with its value and origin, in the file's order.
    pub fn settings(&self) -> Vec<Setting> {
        let with_value = |key: Key| Setting {
            value: self.config.get(&key),
            origin: self.origin(&key.path()).clone(),
            key,
        };
        Config::keys().into_iter().map(with_value).collect()
    }
}

/// What is merged into a configuration, weakest first: the file, the variables, the flags.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file named by a flag or variable; `None`: [`DEFAULT_PATH`] if it exists.
    pub path: Option<PathBuf>,
    /// Variables; those of the form `GLEANER_<SECTION>_<KEY>` count.
    pub variables: Vec<(String, String)>,
    /// `section.key=value`, as given to `--set`.
    pub flags: Vec<String>,
}

impl Sources {
    /// This process's environment, and the values of its `--config` and `--set` flags.
    pub fn from_process(path: Option<PathBuf>, flags: Vec<String>) -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let path = path.or_else(|| std::env::var_os(PATH_VARIABLE).map(PathBuf::from));
        Self { path, variables: std::env::vars_os().filter_map(text).collect(), flags }
    }

    /// Reads, merges and checks.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let path = self.path.clone().unwrap_or_else(|| DEFAULT_PATH.into());
        match fs::read_to_string(&path) {
            Ok(text) => self.merge(Some((&path, &text))),
            Err(error) if self.path.is_none() && error.kind() == io::ErrorKind::NotFound => {
                self.merge(None)
            }
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    fn merge(&self, file: Option<(&Path, &str)>) -> Result<Loaded, ConfigError> {
        let mut merge = Merge::default();
        if let Some((path, text)) = file {
            merge.file(path, text);
        }
        merge.variables(&self.variables);
        merge.flags(&self.flags);
        if merge.problems.is_empty() {
            merge.rules();
        }
        if !merge.problems.is_empty() {
            return Err(ConfigError::Invalid(merge.problems));
        }
        let path = file.map(|(path, _)| path.to_owned());
        Ok(Loaded { config: merge.config, path, origins: merge.origins })
    }
}

impl Config {
    /// Reads the file at `path`, which must exist, and this process's environment.
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        Sources::from_process(Some(path.to_owned()), Vec::new()).load()
    }

    /// Reads `text` alone; `path` is what errors and origins call it.
    pub fn parse(text: &str, path: &Path) -> Result<Loaded, ConfigError> {
        Sources::default().merge(Some((path, text)))
    }
}

/// The state of one merge.
#[derive(Default)]
struct Merge {
    config: Config,
    origins: BTreeMap<String, Origin>,
    problems: Vec<Problem>,
}

impl Merge {
    fn file(&mut self, path: &Path, text: &str) {
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let cause = Cause::Syntax(error.message().to_owned());
                let origin = line_of(path, text, error.span().map_or(0, |span| span.start));
                return self.problem(origin, String::new(), cause);
            }
        };
        for (name, value) in in_order(&table) {
            let at = |key: &Name<'_>| line_of(path, text, key.span().start);
            self.file_section(name, value, &at);
        }
    }

    fn file_section(
        &mut self,
        name: &Name<'_>,
        value: &Spanned<DeValue<'_>>,
        at: &dyn Fn(&Name<'_>) -> Origin,
    ) {
        let section = name.get_ref().as_ref();
        let Some(table) = value.get_ref().as_table() else {
            let cause = match Config::keys().iter().find(|key| key.name == section) {
                Some(key) => Cause::UnknownSection(Some(key.path())),
                None => self.unknown_section(section),
            };
            return self.problem(at(name), section.to_owned(), cause);
        };
        if self.config.section_mut(section).is_none() {
            let cause = self.unknown_section(section);
            return self.problem(at(name), section.to_owned(), cause);
        }
        for (key, value) in in_order(table) {
            let value = plain(value.get_ref());
            self.set(section, key.get_ref(), at(key), |section, key| section.set(key, &value));
        }
    }

    fn variables(&mut self, variables: &[(String, String)]) {
        for (name, text) in variables {
            if let Some((section, key)) = split_variable(name) {
                let origin = Origin::Environment(name.clone());
                self.set(section, &key, origin, |section, key| section.set_text(key, text));
            }
        }
    }

    fn flags(&mut self, flags: &[String]) {
        for flag in flags {
            let parts = flag.split_once('=').and_then(|(path, text)| {
                let (section, key) = path.trim().split_once('.')?;
                Some((section, key, text))
            });
            match parts {
                Some((section, key, text)) => {
                    self.set(section, key, Origin::Flag, |section, key| {
                        section.set_text(key, text)
                    });
                }
                None => {
                    let why = format!("{flag:?} is no setting");
                    let cause =
                        Cause::Value { why, expects: "SECTION.KEY=VALUE, as --set slurm.poll=2s" };
                    self.problem(Origin::Flag, String::new(), cause);
                }
            }
        }
    }

    fn rules(&mut self) {
        for broken in check::broken_rules(&self.config) {
            let origin = self.origins.get(broken.key).cloned().unwrap_or(Origin::Default);
            let cause = Cause::Rule { why: broken.why, remedy: broken.remedy };
            self.problem(origin, broken.key.to_owned(), cause);
        }
    }

    fn set(
        &mut self,
        name: &str,
        key: &str,
        origin: Origin,
        put: impl FnOnce(&mut dyn crate::schema::Section, &str) -> Result<(), String>,
    ) {
        let path = format!("{name}.{key}");
        let Some(section) = self.config.section_mut(name) else {
            let cause = self.unknown_section(name);
            return self.problem(origin, path, cause);
        };
        let keys = section.keys();
        let cause = match keys.iter().find(|known| known.name == key) {
            None => Cause::UnknownKey(nearest(key, keys.iter().map(|known| known.name))),
            Some(known) => match put(section, key) {
                Ok(()) => {
                    self.origins.insert(path, origin);
                    return;
                }
                Err(why) => Cause::Value { why, expects: known.expects },
            },
        };
        self.problem(origin, path, cause);
    }

    fn unknown_section(&self, name: &str) -> Cause {
        Cause::UnknownSection(nearest(name, self.config.sections().iter().map(|(name, _)| *name)))
    }

    fn problem(&mut self, origin: Origin, key: String, cause: Cause) {
        self.problems.push(Problem { origin, key, cause });
    }
}

/// The section and the key of `GLEANER_<SECTION>_<KEY>`, if there is such a section: a misspelt key is then refused.
fn split_variable(name: &str) -> Option<(&'static str, String)> {
    let rest = name.strip_prefix("GLEANER_")?.to_lowercase();
    let sections = Config::default().sections().map(|(section, _)| section);
    let mut split = sections.iter().filter_map(|section| {
        let key = rest.strip_prefix(section)?.strip_prefix('_')?;
        Some((*section, key.to_owned()))
    });
    split.next()
}

/// A key with its place in the file.
type Name<'i> = Spanned<Cow<'i, str>>;

fn line_of(path: &Path, text: &str, offset: usize) -> Origin {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    Origin::File { path: path.to_owned(), line }
}

/// A table's entries in the order of the file.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Name<'i>, &'t Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

/// The value without its place in the file.
fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::String(number.to_string()),
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(value) => Value::Datetime(*value),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| plain(item.get_ref())).collect())
        }
        DeValue::Table(table) => {
            let entries = table
                .iter()
                .map(|(name, value)| (name.get_ref().to_string(), plain(value.get_ref())));
            Value::Table(entries.collect())
        }
    }
}

/// The candidate that differs from `name` by the fewest edits, if by no more than a third of its length.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let scored = candidates.map(|candidate| (edits(name, candidate), candidate));
    let (distance, best) = scored.min()?;
    let prefixed = best.starts_with(name) || name.starts_with(best);
    (distance <= name.len().div_ceil(3).max(1) || (prefixed && name.len() > 2))
        .then(|| best.to_owned())
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
