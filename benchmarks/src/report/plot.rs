//! Two plots of a figure: latency by percentile, and the ratio round by round.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::figure::Detailed;

/// Fewer measurements than this make no curve.
pub(super) const POINTS_MIN: u64 = 20;
const SIZE: (u32, u32) = (560, 300);
const OURS: RGBColor = RGBColor(20, 90, 180);
const RAW: RGBColor = RGBColor(200, 110, 20);

/// Latency over the share of calls that are slower, both by powers of ten: the tail is where spinning hides its cost.
pub(super) fn percentiles(detailed: &Detailed) -> Result<String> {
    let nines = |(share, ns): &(f64, u64)| (-(1.0 - share).max(1e-5).log10(), *ns as f64);
    let ours: Vec<_> = detailed.percentiles.iter().map(nines).collect();
    let raw: Vec<_> = detailed.baseline_percentiles.iter().map(nines).collect();
    let all = || ours.iter().chain(&raw).map(|(_, ns)| ns.max(1.0));
    let low = all().fold(f64::INFINITY, f64::min);
    let high = all().fold(low * 2.0, f64::max);
    let baseline = detailed.figure.baseline.as_deref().unwrap_or_default();
    let label = |nines: &f64| match nines.round() as i32 {
        0 => "all".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        nines => format!("99.{} %", "9".repeat(nines.max(3) as usize - 2)),
    };
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .caption(&detailed.figure.name, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..5.0, (low * 0.9..high * 1.1).log_scale())?;
        chart
            .configure_mesh()
            .x_labels(6)
            .x_label_formatter(&label)
            .y_label_formatter(&|ns| super::time(*ns as u64))
            .draw()?;
        for (points, color, name) in [(raw, RAW, baseline), (ours, OURS, "Gleaner")] {
            if points.is_empty() {
                continue;
            }
            let series = chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
            series.label(name).legend(move |(x, y)| key(x, y, color));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .draw()?;
        Ok(())
    })
}

/// Each round's own ratio: whether it drifts, and how far it swings.
pub(super) fn rounds(detailed: &Detailed) -> Result<String> {
    let ratio = |(round, (ours, raw)): (usize, &(u64, u64))| {
        (round as f64, *ours as f64 / (*raw).max(1) as f64)
    };
    let points: Vec<_> = detailed.rounds.iter().enumerate().map(ratio).collect();
    let high = points.iter().map(|(_, ratio)| *ratio).fold(1.2, f64::max);
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .caption("ratio by round", ("sans-serif", 13))
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..points.len() as f64, 0.0..high * 1.1)?;
        chart.configure_mesh().x_labels(8).y_labels(5).draw()?;
        chart.draw_series(LineSeries::new(points, OURS.stroke_width(2)))?;
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

fn draw(paint: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let drawn = paint(&area).and_then(|()| area.present());
    drawn.map_err(|error| anyhow!("cannot draw a plot: {error}"))?;
    drop(area);
    Ok(svg)
}

fn key(x: i32, y: i32, color: RGBColor) -> PathElement<(i32, i32)> {
    PathElement::new(vec![(x, y), (x + 16, y)], color.stroke_width(2))
}
