// SPDX-License-Identifier: Apache-2.0
//! The node daemon as a library, so that tests and the simulation build the same parts as the program. It reads the
//! cluster's wishes from the store, computes what this node should look like, and makes the kernel match.
//! ARCHITECTURE.md has the loop; `daemon.rs` starts every task.

pub mod addressing;
mod admin;
mod agent;
mod api;
mod apply;
mod args;
mod attach;
mod attachments;
mod check;
mod clean;
mod cluster_config;
mod config;
mod daemon;
mod deferred;
mod desired;
mod dns;
mod doctor;
mod dropin;
mod files;
mod health;
mod hold;
mod hostsync;
mod identity;
mod inspect;
mod keylocks;
mod labels;
mod leader;
mod lease;
mod members;
mod metrics;
mod mtu;
mod names;
mod node;
mod overlay;
mod pace;
mod pins;
mod psk;
mod publish;
mod relay;
mod removal;
mod services;
mod settings;
mod snapshot;
mod spare;
mod status;
mod sweep;
mod task;
mod trace;
mod tunnel;
mod underlay;
mod usage;
mod view;
mod witness;
mod zone;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command, LogFormat};
use crate::config::Config;

/// Exit code for a configuration that cannot work (sysexits.h EX_CONFIG is 78; we keep to 2, "wrong usage", as all Weft programs).
const EXIT_USAGE: u8 = 2;

/// The program: reads arguments, environment and configuration, then runs. Returns the exit code: 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let config = match Config::load(&args) {
        Ok(config) => config,
        Err(error) => {
            complain(&format!("netd: {error}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if args.check {
        return check_only(&config, args.command.is_some());
    }
    log_to_stderr(&config);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("netd: cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = match args.command {
        Some(Command::Clean) => runtime.block_on(clean::clean(&config)),
        Some(Command::HoldSockets) => dns::hold_sockets(&config),
        None => runtime.block_on(daemon::run(config)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if tracing::enabled!(tracing::Level::ERROR) {
                tracing::error!("{error:#}");
            } else {
                complain(&format!("netd: {error:#}"));
            }
            ExitCode::FAILURE
        }
    }
}

/// `--check`: what is wrong with the configuration goes to stderr, as it would at a start.
#[allow(clippy::print_stdout, reason = "the answer to the only question; there is no log")]
fn check_only(config: &Config, has_command: bool) -> ExitCode {
    if has_command {
        complain("netd: --check is about a start as the daemon: give no command with it");
        return ExitCode::from(EXIT_USAGE);
    }
    let wrong = check::wrong(config);
    for reason in &wrong {
        complain(&format!("netd: {reason}"));
    }
    if !wrong.is_empty() {
        return ExitCode::from(EXIT_USAGE);
    }
    println!("configuration: ok");
    ExitCode::SUCCESS
}

/// Logs go to stderr: stdout carries nothing while the daemon runs, so that a supervisor may do with it what it likes.
fn log_to_stderr(config: &Config) {
    // hickory tells of every request at info; said first, so that --log-level can say otherwise.
    let quiet: String = dns_server::QUIET_TARGETS.iter().map(|target| format!("{target}=warn,")).collect();
    let filter = tracing_subscriber::EnvFilter::try_new(format!("{quiet}{}", config.log_level))
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("{quiet}info")));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(false).with_target(false).init(),
    }
}

#[allow(clippy::print_stderr, reason = "before the log exists, stderr is the only place for an error")]
fn complain(message: &str) {
    eprintln!("{message}");
}
