//! What is printed: tables for people, one versioned JSON object for programs.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

/// The version of every JSON object; it grows when a field changes its meaning or goes.
pub(crate) const JSON_VERSION: u32 = 1;

/// Prints `{"version": 1, NAME: value}`.
pub(crate) fn json<T: Serialize>(name: &str, value: &T) {
    let mut object = serde_json::Map::new();
    object.insert("version".into(), JSON_VERSION.into());
    let value = serde_json::to_value(value);
    object.insert(name.into(), value.unwrap_or_else(|error| error.to_string().into()));
    let text = serde_json::Value::Object(object).to_string();
    line(&text);
}

/// Prints JSON, or what `human` makes.
pub(crate) fn print<T: Serialize>(
    as_json: bool,
    name: &str,
    value: &T,
    human: impl FnOnce(&T) -> String,
) {
    if as_json {
        json(name, value);
    } else {
        line(&human(value));
    }
}

/// One line, or several. A reader that has gone away (`gleaner nodes | head`) is no error.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    // Nothing can be told to a reader that closed the pipe.
    let _ = writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush());
}

/// A table without frames: columns named by `header`; numbers (`>` before the name) are aligned to the right.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    let numeric: Vec<bool> = header.iter().map(|name| name.starts_with('>')).collect();
    table.set_header(
        header.iter().map(|name| cell(name.trim_start_matches('>'), name.starts_with('>'))),
    );
    for row in rows {
        table.add_row(row.iter().zip(&numeric).map(|(text, numeric)| cell(text, *numeric)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

fn cell(text: &str, numeric: bool) -> Cell {
    let alignment = if numeric { CellAlignment::Right } else { CellAlignment::Left };
    Cell::new(text).set_alignment(alignment)
}

/// `name  value` lines, the values in one column.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = pairs.iter().map(|(name, value)| format!("{name:width$}  {value}"));
    lines.collect::<Vec<_>>().join("\n")
}
