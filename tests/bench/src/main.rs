// SPDX-License-Identifier: Apache-2.0
//! Side-by-side ratios: Weft against bare kernel paths, in interleaved pairs of one run. `make bench` prints the table and
//! writes target/bench/report.json. Absolute figures of a shared machine mean little; a ratio of neighbours in time does.

mod bare;
mod cni;
mod cni_rows;
mod dns;
mod lab;
mod netns;
mod pairs;
mod rows;
mod services;
mod tunnel;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Weft's benches.
#[derive(Debug, Parser)]
#[command(name = "weft-bench", version, about)]
struct Args {
    /// Only rows whose name contains this.
    #[arg(long)]
    row: Option<String>,
    /// Interleaved pairs of each row (five at least for a median that counts).
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Seconds of one throughput sample.
    #[arg(long, default_value_t = 2)]
    secs: u64,
    /// The most services of the service rows; fewer leave stages out.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: u32,
    /// Where the report goes.
    #[arg(long, default_value = "target/bench/report.json")]
    report: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One end of a measurement, started by the bench inside a namespace.
    #[command(hide = true, subcommand)]
    Worker(worker::Worker),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.command {
        Some(Command::Worker(worker)) => worker::run(worker),
        None => bench(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("weft-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the rows; whatever ends the run (the last row, an error, Ctrl-C), the namespaces and the lab go.
fn bench(args: Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async move {
        let work = tokio::task::spawn_blocking(move || {
            let outcome = rows::run(&rows::Plan {
                only: args.row,
                pairs: args.pairs.max(1),
                secs: args.secs,
                services: args.services as usize,
                report: args.report,
            });
            clean_up();
            outcome
        });
        tokio::select! {
            outcome = work => outcome.context("the bench thread panicked")?,
            _ = tokio::signal::ctrl_c() => {
                clean_up();
                complain("weft-bench: interrupted; everything it made is removed");
                std::process::exit(130);
            }
        }
    })
}

/// Everything a run of the bench makes, removed; what is not there is fine.
fn clean_up() {
    worker::end_all();
    lab::VXLAN.down();
    lab::WIREGUARD.down();
    cni::remove();
    bare::remove();
    services::remove();
    dns::remove();
    tunnel::remove();
}

#[allow(clippy::print_stderr, reason = "a command-line program's complaints go to stderr")]
fn complain(message: &str) {
    eprintln!("{message}");
}

#[allow(clippy::print_stdout, reason = "the table is the program's output")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
