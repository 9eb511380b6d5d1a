//! What a section is to the loader: its keys, and reading and writing them by name.

use toml::Value;

use crate::value::Setting;

/// One key of the configuration, for `config show` and the reference page.
#[derive(Debug, Clone)]
pub struct Key {
    /// The section's name.
    pub section: &'static str,
    /// The key's name in it.
    pub name: &'static str,
    /// What the key is for.
    pub doc: &'static str,
    /// What kind of value it expects, with an example.
    pub expects: &'static str,
}

impl Key {
    /// `section.key`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The environment variable that overrides it.
    pub fn variable(&self) -> String {
        format!("GLEANER_{}_{}", self.section, self.name).to_uppercase()
    }
}

/// A section, as the loader sees it.
pub(crate) trait Section {
    /// Its keys, in the order of the struct.
    fn keys(&self) -> Vec<Key>;

    /// Sets a known key from the file's value.
    fn set(&mut self, key: &str, value: &Value) -> Result<(), String>;

    /// Sets a known key from text.
    fn set_text(&mut self, key: &str, text: &str) -> Result<(), String>;

    /// A known key's value; `None` if it is not set.
    fn get(&self, key: &str) -> Option<Value>;
}

/// What a setting's type expects.
pub(crate) fn expects<T: Setting>(_: &T) -> &'static str {
    T::EXPECTS
}

/// Declares a section: the struct, its defaults, and its keys by name.
macro_rules! section {
    (
        $(#[$meta:meta])*
        $name:ident in $section:literal {
            $($(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: $type,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::schema::Section for $name {
            fn keys(&self) -> Vec<$crate::schema::Key> {
                vec![$($crate::schema::Key {
                    section: $section,
                    name: stringify!($field),
                    doc: concat!($($doc, "\n"),+),
                    expects: $crate::schema::expects(&self.$field),
                },)+]
            }

            fn set(&mut self, key: &str, value: &toml::Value) -> Result<(), String> {
                match key {
                    $(stringify!($field) => self.$field = $crate::value::Setting::read(value)?,)+
                    _ => return Err(format!("there is no key {key:?}")),
                }
                Ok(())
            }

            fn set_text(&mut self, key: &str, text: &str) -> Result<(), String> {
                match key {
                    $(stringify!($field) => self.$field = $crate::value::Setting::read_text(text)?,)+
                    _ => return Err(format!("there is no key {key:?}")),
                }
                Ok(())
            }

            fn get(&self, key: &str) -> Option<toml::Value> {
                match key {
                    $(stringify!($field) => $crate::value::Setting::write(&self.$field),)+
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use section;
