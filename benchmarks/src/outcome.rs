//! A question's own file: its figures, the machine, and what ran beside it.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{arguments::Arguments, figure::Detailed, machine::Machine};

/// All that one question found out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Its name, which is also its file's.
    pub question: String,
    /// The question, in words.
    pub asks: String,
    /// A smoke test: the figures mean nothing.
    pub quick: bool,
    /// Where it was measured.
    pub machine: Machine,
    /// Threads that spin while it is measured; more of them than cores is oversubscription.
    pub spinning: usize,
    /// The device under it is the kernel's own software: its times mean nothing, ratios and counts do.
    #[serde(default)]
    pub emulated: bool,
    /// What was found.
    pub figures: Vec<Detailed>,
    /// What could not be measured here, and why.
    pub not_measured: Vec<String>,
}

impl Outcome {
    /// Nothing yet. Looks at the machine, so this comes before anything is started.
    pub fn begin(question: &str, asks: &str, spinning: usize, arguments: &Arguments) -> Self {
        let machine = Machine::look();
        println!(
            "{question}: {asks}\n  load before {}; {spinning} threads spin on {} cores{}",
            machine.load,
            machine.cores,
            if spinning > machine.cores { ": oversubscribed" } else { "" }
        );
        Self {
            question: question.into(),
            asks: asks.into(),
            quick: arguments.quick,
            machine,
            spinning,
            emulated: false,
            figures: Vec::new(),
            not_measured: Vec::new(),
        }
    }

    /// Looks what RDMA devices there are: whether their times mean anything.
    pub fn on_rdma(&mut self) -> Result<()> {
        let devices = gleaner_fabric::rdma::devices()?;
        println!("  on {}", devices.join(", "));
        if devices.iter().all(|device| device.starts_with("rxe")) {
            self.emulated = true;
            self.cannot("times: this device is the kernel's own software (Soft-RoCE), so that only ratios and counts mean something; `make bench-rdma` on a machine with an RDMA device measures them");
        }
        Ok(())
    }

    /// Adds a figure and prints it.
    pub fn push(&mut self, detailed: Detailed) {
        println!("  {}", line(&detailed));
        detailed.notes.iter().for_each(|note| println!("      {note}"));
        self.figures.push(detailed);
    }

    /// Says what could not be measured.
    pub fn cannot(&mut self, why: impl Into<String>) {
        let why = why.into();
        println!("  not measurable here: {why}");
        self.not_measured.push(why);
    }

    /// Writes `<directory>/<question>.json`.
    pub fn publish(&self, arguments: &Arguments) -> Result<()> {
        let directory = &arguments.directory;
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let path = directory.join(format!("{}.json", self.question));
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", path.display()))
    }

    /// Reads what [`Self::publish`] wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("understand {}", path.display()))
    }
}

fn line(detailed: &Detailed) -> String {
    let figure = &detailed.figure;
    let mut line = format!(
        "{:<34} p50 {:>9} p99 {:>9} p99.9 {:>9} {}  {:.0}/s  n {}",
        figure.name, figure.p50, figure.p99, figure.p999, figure.unit, figure.throughput, figure.n
    );
    if let (Some(baseline), Some(p50), Some(ratio)) =
        (&figure.baseline, figure.baseline_p50, figure.ratio)
    {
        line += &format!("  {baseline} p50 {p50}  ratio {ratio:.3}");
    }
    if let Some(why) = &figure.void {
        line += &format!("  VOID: {why}");
    }
    line
}
