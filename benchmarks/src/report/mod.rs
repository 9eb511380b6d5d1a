//! The report over all questions: `summary.json`, a page with plots, and the table in the book. Made from the questions' own
//! files, so that it can be made again.

mod page;
mod plot;
mod questions;
mod table;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use self::questions::{QUESTIONS, RDMA_QUESTIONS};
use crate::{figure::Figure, outcome::Outcome};

/// Reports what lies in `directory`; into the book's page too, if one is given.
pub fn write(directory: &Path, book: Option<&Path>) -> Result<()> {
    let outcomes = outcomes(directory)?;
    ensure!(!outcomes.is_empty(), "{} holds no question's result", directory.display());
    let figures: Vec<&Figure> = outcomes
        .iter()
        .flat_map(|outcome| &outcome.figures)
        .map(|detailed| &detailed.figure)
        .collect();
    put(&directory.join("summary.json"), &serde_json::to_string_pretty(&figures)?)?;
    put(&directory.join("index.html"), &page::html(&outcomes)?)?;
    if let Some(book) = book {
        let text = fs::read_to_string(book).with_context(|| format!("read {}", book.display()))?;
        put(book, &table::renewed(&text, &outcomes)?)?;
    }
    Ok(())
}

fn outcomes(directory: &Path) -> Result<Vec<Outcome>> {
    let questions = QUESTIONS.iter().chain(&RDMA_QUESTIONS);
    let paths = questions.map(|question| directory.join(format!("{question}.json")));
    paths.filter(|path| path.is_file()).map(|path| Outcome::read(&path)).collect()
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    println!("{} written", path.display());
    Ok(())
}

/// Nanoseconds for people.
fn time(ns: u64) -> String {
    let ns = ns as f64;
    match ns {
        _ if ns < 1e3 => format!("{ns:.0} ns"),
        _ if ns < 1e6 => format!("{:.2} µs", ns / 1e3),
        _ if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        _ => format!("{:.2} s", ns / 1e9),
    }
}

/// A time of the figure's unit for people; other units as they are.
fn value(figure: &Figure, value: u64) -> String {
    if figure.unit == "ns" { time(value) } else { format!("{value} {}", figure.unit) }
}

/// The ratio for people, and how sure it is: void is void.
fn ratio(figure: &Figure) -> String {
    match (figure.ratio, figure.ratio_between, &figure.void) {
        (_, _, Some(_)) => "void".into(),
        (Some(ratio), Some((low, high)), None) => format!("{ratio:.3} ({low:.2} to {high:.2})"),
        (Some(ratio), None, None) => format!("{ratio:.3}"),
        (None, ..) => "–".into(),
    }
}

/// The goal for people, and whether it is met.
fn goal(figure: &Figure) -> String {
    let Some(goal) = &figure.goal else { return "–".into() };
    let met = match figure.met {
        Some(true) => "met",
        Some(false) => "missed",
        None => "not judged",
    };
    format!("{goal}: {met}")
}
