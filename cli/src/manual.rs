//! Man pages, completions, and the book's reference pages: all from the same definitions that the program runs by.

use std::{fs, io, path::Path};

use clap::{Command, CommandFactory};
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use gleaner_config::{Config, Key};

use crate::{
    arguments::{Arguments, Completions, Manual},
    exit::Failure,
};

/// Prints a completion script.
pub(crate) fn completions(completions: &Completions) {
    clap_complete::generate(
        completions.shell,
        &mut Arguments::command(),
        "gleaner",
        &mut io::stdout(),
    );
}

/// Writes the man pages, and the reference pages if a place for them is named.
pub(crate) fn write(manual: &Manual) -> Result<(), Failure> {
    fs::create_dir_all(&manual.directory)?;
    clap_mangen::generate_to(Arguments::command(), &manual.directory)?;
    fs::write(manual.directory.join("gleaner.toml.5"), configuration_page()?)?;
    if let Some(reference) = &manual.reference {
        fs::create_dir_all(reference)?;
        write_reference(reference)?;
    }
    Ok(())
}

/// gleaner.toml(5).
fn configuration_page() -> io::Result<Vec<u8>> {
    let title = Command::new("gleaner.toml").version(env!("CARGO_PKG_VERSION"));
    let mut page = Vec::new();
    Man::new(title).section("5").render_title(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["NAME"]);
    roff.text([roman("gleaner.toml - Gleaner's configuration")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(INTRODUCTION)]);
    let mut section = "";
    for key in Config::keys() {
        if key.section != section {
            section = key.section;
            roff.control("SH", [format!("[{section}]").as_str()]);
        }
        roff.control("TP", []);
        roff.text([bold(key.name), roman(format!(" (default: {})", default_of(&key)))]);
        roff.text([roman(format!("{} {}.", one_line(key.doc), expects_of(&key)))]);
    }
    roff.to_writer(&mut page)?;
    Ok(page)
}

const INTRODUCTION: &str = "One TOML file for all of Gleaner's programs: /etc/gleaner/gleaner.toml, or the file that \
    $GLEANER_CONFIG or --config names. A key may be overridden by the environment variable GLEANER_<SECTION>_<KEY>, and \
    that by --set section.key=value. Durations have their unit (\"500ms\", \"10s\", \"1h 30m\"), sizes are written as \
    in Slurm (\"512M\", \"4G\": powers of 1024). Unknown keys are refused.";

/// The pages of the book that are generated: each file's name and text.
pub(crate) fn reference_pages() -> [(&'static str, String); 2] {
    [("configuration.md", configuration_reference()), ("commands.md", commands_reference())]
}

fn write_reference(directory: &Path) -> io::Result<()> {
    reference_pages().into_iter().try_for_each(|(name, text)| fs::write(directory.join(name), text))
}

fn configuration_reference() -> String {
    let mut text = format!(
        "# Configuration\n\n<!-- Written by `make man`. -->\n\n{}\n",
        INTRODUCTION.replace('<', "\\<")
    );
    let mut section = "";
    for key in Config::keys() {
        if key.section != section {
            section = key.section;
            text += &format!(
                "\n## [{section}]\n\n| key | default | meaning | written as |\n|---|---|---|---|\n"
            );
        }
        let (name, default, meaning) = (key.name, default_cell(&key), one_line(key.doc));
        text += &format!("| `{name}` | {default} | {meaning} | {} |\n", key.expects);
    }
    text
}

fn commands_reference() -> String {
    let mut command = Arguments::command().term_width(100).disable_help_subcommand(true);
    command.build();
    let mut text = "# Commands\n\n<!-- Written by `make man`. -->\n".to_owned();
    describe(&mut command, &mut text);
    text
}

fn describe(command: &mut Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let help = command.render_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    *text += &format!("\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    for child in command.get_subcommands_mut().filter(|child| !child.is_hide_set()) {
        describe(child, text);
    }
}

fn one_line(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn expects_of(key: &Key) -> String {
    let mut expects = key.expects.to_owned();
    if let Some(first) = expects.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    expects
}

fn default_of(key: &Key) -> String {
    Config::default().get(key).map_or_else(|| "not set".into(), |value| value.to_string())
}

fn default_cell(key: &Key) -> String {
    match Config::default().get(key) {
        Some(value) => format!("`{value}`"),
        None => "not set".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_reference_is_what_the_program_says() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/reference");
        for (name, text) in reference_pages() {
            let written = fs::read_to_string(directory.join(name)).unwrap_or_default();
            assert!(written == text, "docs/src/reference/{name} is out of date; run `make man`");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
