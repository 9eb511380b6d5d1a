//! `gleaner new`: a workspace to begin with: a library of functions, and a program that calls them.
//!
//! What it writes lies in `cli/template`, with a name between `@` wherever something is filled in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    arguments::New,
    exit::{Code, Failure},
    output,
};

/// The template: each file's place, and its text.
const FILES: [(&str, &str); 7] = [
    ("Cargo.toml", include_str!("../template/Cargo.toml.in")),
    ("README.md", include_str!("../template/README.md.in")),
    (".gitignore", include_str!("../template/gitignore.in")),
    ("functions/Cargo.toml", include_str!("../template/functions/Cargo.toml.in")),
    ("functions/src/lib.rs", include_str!("../template/functions/src/lib.rs.in")),
    ("caller/Cargo.toml", include_str!("../template/caller/Cargo.toml.in")),
    ("caller/src/main.rs", include_str!("../template/caller/src/main.rs.in")),
];

/// The crates that the template depends on, and where a checkout has them.
const CRATES: [(&str, &str); 3] =
    [("gleaner", "client"), ("gleaner-config", "config"), ("gleaner-function", "client/function")];

/// Longest name.
const NAME_MAX: usize = 64;

/// What was written, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Written {
    directory: PathBuf,
    files: Vec<&'static str>,
    next: Vec<String>,
}

/// A workspace's name: a part of crates' names.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let sound = text.len() <= NAME_MAX
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.ends_with(|last: char| last.is_ascii_alphanumeric())
        && text.bytes().all(|byte| inner(byte) || byte == b'-' || byte == b'_');
    match sound {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "a name is at most {NAME_MAX} lower-case letters, digits, '-' and '_', begins with a letter and ends with a letter \
             or digit"
        )),
    }
}

/// Writes the workspace, and says what to do next.
pub(crate) fn run(as_json: bool, new: &New) -> Result<(), Failure> {
    let directory = PathBuf::from(&new.name);
    let dependencies = dependencies(new.path.as_deref())?;
    refuse_used(&directory)?;
    for (place, text) in FILES {
        write(&directory.join(place), &filled(text, &new.name, &dependencies))?;
    }
    let files = FILES.iter().map(|(place, _)| *place).collect();
    let written = Written { directory, files, next: next_steps(&new.name) };
    output::print(as_json, "new", &written, |written| {
        let next: Vec<_> = written.next.iter().map(|line| format!("  {line}")).collect();
        let directory = written.directory.display();
        format!("{directory}/ has {} files. Next:\n{}", written.files.len(), next.join("\n"))
    });
    Ok(())
}

fn next_steps(name: &str) -> Vec<String> {
    let library = format!("target/release/lib{}_functions.so", crate_name(name));
    vec![
        format!("cd {name}"),
        "cargo build --release".into(),
        format!("gleaner invoke {library} upper --data hello"),
        "cargo run --release".into(),
    ]
}

/// Each crate and where it comes from: a checkout, or this release.
fn dependencies(checkout: Option<&Path>) -> Result<Vec<(&'static str, String)>, Failure> {
    let Some(checkout) = checkout else {
        let release = format!("\"{}\"", env!("CARGO_PKG_VERSION"));
        return Ok(CRATES.map(|(name, _)| (name, release.clone())).into());
    };
    let at = |place: &str| {
        let path = fs::canonicalize(checkout.join(place)).ok()?;
        let text = path.to_str().filter(|_| path.join("Cargo.toml").is_file())?;
        // A TOML string in quotes takes JSON's escapes.
        Some(format!("{{ path = {} }}", serde_json::Value::from(text)))
    };
    let found = CRATES.iter().map(|(name, place)| {
        let missing = || {
            let checkout = checkout.display();
            Failure::new(
                Code::Local,
                format!("--path {checkout}: no checkout of Gleaner is there: it has no {place}/Cargo.toml"),
            )
        };
        at(place).map(|from| (*name, from)).ok_or_else(missing)
    });
    found.collect()
}

/// Nothing that somebody has written is touched.
fn refuse_used(directory: &Path) -> Result<(), Failure> {
    let used = match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    };
    match used {
        true => Err(Failure::new(
            Code::Local,
            format!("{}: it exists and is no empty directory", directory.display()),
        )),
        false => Ok(()),
    }
}

fn filled(text: &str, name: &str, dependencies: &[(&str, String)]) -> String {
    let text = text.replace("@name@", name).replace("@crate@", &crate_name(name));
    let fill =
        |text: String, (name, from): &(&str, String)| text.replace(&format!("@{name}@"), from);
    dependencies.iter().fold(text, fill)
}

/// The name as it stands in a file that the compiler makes.
fn crate_name(name: &str) -> String {
    name.replace('-', "_")
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let named = |error| Failure::new(Code::Local, format!("{}: {error}", path.display()));
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).and_then(|()| fs::write(path, text)).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_crates() {
        for good in ["a", "my-work", "my_work2"] {
            assert!(name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(NAME_MAX + 1);
        for bad in ["", "2day", "Work", "-a", "a-", "a/b", "..", "a b", "ä", "@crate@", &long] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_is_left_to_be_filled_in() {
        let dependencies = dependencies(None).expect("no checkout is needed");
        for (place, text) in FILES {
            let text = filled(text, "my-work", &dependencies);
            assert!(!text.contains('@'), "{place}: {text}");
        }
    }
}
