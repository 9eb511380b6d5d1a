//! `gleaner config`: is the file right, and what holds?

use gleaner_config::{DEFAULT_PATH, Loaded, Origin, Setting};
use serde::Serialize;

use crate::{
    arguments::{Common, Configuration, ConfigurationVerb},
    connect::load,
    exit::Failure,
    output,
};

/// One key, as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    key: String,
    value: serde_json::Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
}

/// Runs `config check` or `config show`. A wrong configuration has failed with all its problems before.
pub(crate) fn run(common: &Common, configuration: &Configuration) -> Result<(), Failure> {
    let loaded = load(common)?;
    match configuration.verb {
        ConfigurationVerb::Check => check(common.json, &loaded),
        ConfigurationVerb::Show { origin, changed } => show(common.json, &loaded, origin, changed),
    }
    Ok(())
}

fn check(as_json: bool, loaded: &Loaded) {
    let changed =
        loaded.settings().iter().filter(|setting| setting.origin != Origin::Default).count();
    let file = loaded.path.as_ref().map(|path| path.display().to_string());
    let value = serde_json::json!({ "ok": true, "file": file, "keys_set": changed });
    output::print(as_json, "config", &value, |_| match &file {
        Some(file) => {
            format!("{file} is valid: {changed} keys set, the others have their defaults")
        }
        None => format!(
            "{DEFAULT_PATH} does not exist: {changed} keys set, the others have their defaults"
        ),
    });
}

fn show(as_json: bool, loaded: &Loaded, with_origin: bool, changed: bool) {
    let settings: Vec<Setting> = loaded
        .settings()
        .into_iter()
        .filter(|setting| !changed || setting.origin != Origin::Default)
        .collect();
    if as_json {
        let shown = |setting: &Setting| Shown {
            key: setting.key.path(),
            value: serde_json::to_value(&setting.value).unwrap_or_default(),
            origin: with_origin.then(|| setting.origin.to_string()),
        };
        return output::json("config", &settings.iter().map(shown).collect::<Vec<_>>());
    }
    output::line(&as_file(&settings, with_origin));
}

/// The settings as a file that can be read again; origins stand in comments.
fn as_file(settings: &[Setting], with_origin: bool) -> String {
    let mut text = String::new();
    let mut section = "";
    for setting in settings {
        if setting.key.section != section {
            section = setting.key.section;
            text += &format!("{}[{section}]\n", if text.is_empty() { "" } else { "\n" });
        }
        let line = match &setting.value {
            Some(value) => format!("{} = {value}", setting.key.name),
            None => format!("# {} =", setting.key.name),
        };
        match with_origin {
            true => text += &format!("{line:<40}  # {}\n", setting.origin),
            false => text += &format!("{line}\n"),
        }
    }
    text
}
