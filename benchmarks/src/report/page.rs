//! One page with everything: tables, and a plot of each figure's latencies and rounds. It needs nothing beside itself.

use std::fmt::Write;

use anyhow::Result;

use super::{goal, plot, ratio, value};
use crate::{figure::Detailed, outcome::Outcome};

const STYLE: &str = "body{font:15px system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
    th,td{border-bottom:1px solid #ddd;padding:.3em .5em;text-align:left}\
    .void,.missed{color:#a00}.plots{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0}\
    figcaption{font-size:13px;max-width:560px}";

/// The page.
pub(super) fn html(outcomes: &[Outcome]) -> Result<String> {
    let mut page = String::new();
    write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><title>Gleaner: benchmarks</title><style>{STYLE}</style>\
         <h1>Gleaner: benchmarks</h1>"
    )?;
    for outcome in outcomes {
        question(&mut page, outcome)?;
    }
    Ok(page)
}

fn question(page: &mut String, outcome: &Outcome) -> Result<()> {
    let machine = &outcome.machine;
    write!(
        page,
        "<h2>{}</h2><p>{}</p><p>{}, {} cores, Linux {}, {} build, {}; load before {}; {} threads spin{}{}.</p>",
        escape(&outcome.question),
        escape(&outcome.asks),
        escape(&machine.cpu),
        machine.cores,
        escape(&machine.kernel),
        machine.build,
        machine.date,
        machine.load,
        outcome.spinning,
        if outcome.spinning > machine.cores { ": <b>oversubscribed</b>" } else { "" },
        if outcome.quick { "; <b>a quick run: the figures mean nothing</b>" } else { "" },
    )?;
    page.push_str(
        "<table><tr><th>what<th>p50<th>p99<th>p99.9<th>calls/s<th>n<th>baseline<th>its p50<th>ratio<th>goal",
    );
    for detailed in &outcome.figures {
        row(page, detailed)?;
    }
    page.push_str("</table>");
    for why in &outcome.not_measured {
        write!(page, "<p>Not measured here: {}.</p>", escape(why))?;
    }
    page.push_str("<div class=plots>");
    for detailed in &outcome.figures {
        plots(page, detailed)?;
    }
    page.push_str("</div>");
    Ok(())
}

fn row(page: &mut String, detailed: &Detailed) -> Result<()> {
    let figure = &detailed.figure;
    let baseline_p50 = figure.baseline_p50.map_or("–".into(), |p50| value(figure, p50));
    let of = figure.ratio_of.map_or_else(String::new, |of| format!(" ({of:?})").to_lowercase());
    write!(
        page,
        "<tr><td>{}<td>{}<td>{}<td>{}<td>{:.0}<td>{}<td>{}<td>{baseline_p50}<td class={}>{}{of}<td class={}>{}",
        escape(&figure.name),
        value(figure, figure.p50),
        value(figure, figure.p99),
        value(figure, figure.p999),
        figure.throughput,
        figure.n,
        escape(figure.baseline.as_deref().unwrap_or("–")),
        if figure.void.is_some() { "void" } else { "sound" },
        ratio(figure),
        if figure.met == Some(false) { "missed" } else { "met" },
        escape(&goal(figure)),
    )?;
    Ok(())
}

fn plots(page: &mut String, detailed: &Detailed) -> Result<()> {
    if detailed.figure.n < plot::POINTS_MIN {
        return Ok(());
    }
    write!(page, "<figure>{}", plot::percentiles(detailed)?)?;
    if detailed.rounds.len() > 1 {
        page.push_str(&plot::rounds(detailed)?);
    }
    page.push_str("<figcaption>");
    for reference in &detailed.references {
        write!(page, "{}. ", escape(&reference.to_string()))?;
    }
    let void = detailed.figure.void.iter().map(|why| format!("Void: {why}."));
    for note in detailed.notes.iter().cloned().chain(void) {
        write!(page, "{} ", escape(&note))?;
    }
    page.push_str("</figcaption></figure>");
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
