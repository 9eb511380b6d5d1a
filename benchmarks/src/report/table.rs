//! The tables in the book, between its markers: a section a question.

use std::{collections::HashMap, fmt::Write};

use anyhow::{Context, Result};

use super::{
    goal,
    questions::{QUESTIONS, RDMA_QUESTIONS},
    ratio, value,
};
use crate::{figure::Figure, machine::Machine, outcome::Outcome};

/// What lies between these is written by `make bench`.
const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// What a section's heading begins with.
const HEADING: &str = "### ";

/// The page with new sections for these questions. Those of others stay as they are.
pub(super) fn renewed(page: &str, outcomes: &[Outcome]) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("the page lacks the first marker")?;
    let (old, after) = rest.split_once(END).context("the page lacks the second marker")?;
    let mut sections = sections(old);
    for outcome in outcomes {
        sections.insert(&outcome.question, section(outcome)?);
    }
    let all = QUESTIONS.iter().chain(&RDMA_QUESTIONS);
    let all: Vec<_> = all.filter_map(|question| sections.remove(question)).collect();
    Ok(format!("{before}{BEGIN}\n\n{}\n{END}{after}", all.join("\n")))
}

/// What the page has by now, by question.
fn sections(old: &str) -> HashMap<&str, String> {
    let heading = format!("\n{HEADING}");
    let texts = old.split(&heading).skip(1);
    let named = texts.filter_map(|text| Some((text.lines().next()?, text.trim_end())));
    named.map(|(name, text)| (name, format!("{HEADING}{text}\n"))).collect()
}

fn machine(command: &str, machine: &Machine) -> String {
    let Machine { cpu, cores, kernel, huge_pages, date, build, .. } = machine;
    let governor = machine.governor.as_deref().unwrap_or("not known");
    let place = if machine.virtual_machine { "a virtual machine" } else { "bare metal" };
    format!(
        "Measured {date} by `{command}` ({build} build) on {cpu}, {cores} cores, {place}, Linux {kernel}, governor \
         {governor}, transparent huge pages `{huge_pages}`.\n"
    )
}

fn section(outcome: &Outcome) -> Result<String> {
    let Outcome { question, asks, spinning, .. } = outcome;
    let Machine { cores, load, .. } = &outcome.machine;
    let over = if spinning > cores { ", **oversubscribed**" } else { "" };
    let rdma = RDMA_QUESTIONS.contains(&question.as_str());
    let command = if rdma { "make bench-rdma" } else { "make bench" };
    let mut text = format!(
        "{HEADING}{question}\n\n{asks} {spinning} threads spin on {cores} cores{over}; load before: {load}.\n{}\n",
        machine(command, &outcome.machine)
    );
    if outcome.quick {
        text +=
            "**A quick run: these figures show that the benchmark works, and nothing else.**\n\n";
    }
    if !outcome.figures.is_empty() {
        text.push_str(
            "| what | p50 | p99 | p99.9 | calls/s | n | baseline | its p50 | ratio | goal |\n",
        );
        text.push_str("|---|---|---|---|---|---|---|---|---|---|\n");
    }
    for detailed in &outcome.figures {
        row(&mut text, &detailed.figure, outcome.emulated)?;
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
    Ok(text.trim_end().to_owned() + "\n")
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
    fn a_question_s_section_is_replaced_and_nothing_else() {
        let outcome = Outcome {
            question: "warm_call".into(),
            asks: "Why?".into(),
            quick: false,
            machine: Machine::look(),
            spinning: 1_000_000,
            emulated: false,
            figures: Vec::new(),
            not_measured: vec!["no counters".into()],
        };
        let others = ["### hot_call\n\nhot", "### rdma_call\n\nrdma"];
        let [hot, rdma] = others;
        let page =
            format!("before\n{BEGIN}\n\n{hot}\n\n### warm_call\n\nold\n\n{rdma}\n\n{END}\nafter\n");
        let new = renewed(&page, std::slice::from_ref(&outcome)).unwrap();
        assert!(new.starts_with("before\n") && new.ends_with("\nafter\n"), "{new}");
        assert!(!new.contains("old") && new.contains("oversubscribed"), "{new}");
        let at = |what| new.find(what).unwrap();
        assert!(at(hot) < at("### warm_call") && at("### warm_call") < at(rdma), "{new}");
        assert!(new.contains("no counters"), "{new}");
        assert_eq!(renewed(&new, &[outcome]).unwrap(), new);
    }
}
