//! What every question takes on its command line.

use std::path::PathBuf;

use clap::Parser;

/// One question's arguments.
#[derive(Debug, Clone, Parser)]
#[command(about = "Answers one question; its baseline runs in the same program")]
pub struct Arguments {
    /// A few calls only: shows that it works, measures nothing
    #[arg(long)]
    pub quick: bool,
    /// How many calls endurance makes
    #[arg(long)]
    pub calls: Option<u64>,
    /// Where the result goes
    #[arg(long, default_value = "target/bench")]
    pub directory: PathBuf,
}

impl Arguments {
    /// The command line's.
    pub fn read() -> Self {
        Self::parse()
    }

    /// `full`, or `quick` if only a few are wanted.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}
