//! Reports what the questions found: `bench-report [--directory DIR] [--book FILE]`.

use std::path::PathBuf;

use clap::Parser;
use gleaner_benchmarks::report;

/// Writes summary.json, index.html and the book's table from the questions' results
#[derive(Parser)]
struct Arguments {
    /// Where the results are
    #[arg(long, default_value = "target/bench")]
    directory: PathBuf,
    /// The page whose table is renewed
    #[arg(long)]
    book: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    report::write(&arguments.directory, arguments.book.as_deref())
}
