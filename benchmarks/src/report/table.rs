//! The table in the book, between its markers.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::{goal, ratio, value};
use crate::{figure::Figure, machine::Machine, outcome::Outcome};

/// What lies between these is written by `make bench`.
const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// The page with a new table.
pub(super) fn renewed(page: &str, outcomes: &[Outcome]) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("the page lacks the first marker")?;
    let (_, after) = rest.split_once(END).context("the page lacks the second marker")?;
    Ok(format!("{before}{BEGIN}\n\n{}\n{END}{after}", text(outcomes)?))
}

fn text(outcomes: &[Outcome]) -> Result<String> {
    let first = outcomes.first().context("there is nothing to report")?;
    let mut text = machine(&first.machine);
    if outcomes.iter().any(|outcome| outcome.quick) {
        text +=
            "\n**Quick runs: these figures show that the benchmarks work, and nothing else.**\n";
    }
    for outcome in outcomes {
        question(&mut text, outcome)?;
    }
    Ok(text)
}

fn machine(machine: &Machine) -> String {
    let Machine { cpu, cores, kernel, huge_pages, date, build, .. } = machine;
    let governor = machine.governor.as_deref().unwrap_or("not known");
    let place = if machine.virtual_machine { "a virtual machine" } else { "bare metal" };
    format!(
        "Measured {date} by `make bench` ({build} build) on {cpu}, {cores} cores, {place}, Linux {kernel}, governor \
         {governor}, transparent huge pages `{huge_pages}`.\n"
    )
}

fn question(text: &mut String, outcome: &Outcome) -> Result<()> {
    let Outcome { question, asks, spinning, machine, .. } = outcome;
    let over = if *spinning > machine.cores { ", **oversubscribed**" } else { "" };
    write!(
        text,
        "\n### {question}\n\n{asks} {spinning} threads spin on {} cores{over}; load before: {}.\n\n",
        machine.cores, machine.load
    )?;
    if !outcome.figures.is_empty() {
        text.push_str(
            "| what | p50 | p99 | p99.9 | calls/s | n | baseline | its p50 | ratio | goal |\n",
        );
        text.push_str("|---|---|---|---|---|---|---|---|---|---|\n");
    }
    for detailed in &outcome.figures {
        row(text, &detailed.figure, outcome.emulated)?;
    }
    text.push('\n');
    for detailed in &outcome.figures {
        let name = &detailed.figure.name;
        let void = detailed.figure.void.iter().map(|why| format!("void: {why}"));
        for note in detailed.notes.iter().cloned().chain(void) {
            writeln!(text, "- {name}: {note}")?;
        }
    }
    for why in &outcome.not_measured {
        writeln!(text, "- not measured here: {why}")?;
    }
    Ok(())
}

/// An emulated device's times are left out: somebody would believe them.
fn row(text: &mut String, figure: &Figure, emulated: bool) -> Result<()> {
    let baseline = figure.baseline.as_deref().unwrap_or("–");
    let timed = figure.unit == "ns";
    let shown = |number: u64| match emulated && timed {
        true => "–".into(),
        false => value(figure, number),
    };
    let rate = if emulated { "–".into() } else { format!("{:.0}", figure.throughput) };
    writeln!(
        text,
        "| {} | {} | {} | {} | {rate} | {} | {baseline} | {} | {} | {} |",
        figure.name,
        shown(figure.p50),
        shown(figure.p99),
        shown(figure.p999),
        figure.n,
        figure.baseline_p50.map_or("–".into(), shown),
        ratio(figure),
        goal(figure),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_the_markers_is_replaced_and_nothing_else() {
        let outcome = Outcome {
            question: "q".into(),
            asks: "Why?".into(),
            quick: false,
            machine: Machine::look(),
            spinning: 1_000_000,
            emulated: false,
            figures: Vec::new(),
            not_measured: vec!["no counters".into()],
        };
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let new = renewed(&page, std::slice::from_ref(&outcome)).unwrap();
        assert!(new.starts_with("before\n") && new.ends_with("\nafter\n"), "{new}");
        assert!(!new.contains("old") && new.contains("oversubscribed"), "{new}");
        assert!(new.contains("no counters"), "{new}");
        assert_eq!(renewed(&new, &[outcome]).unwrap(), new);
    }
}
