// SPDX-License-Identifier: Apache-2.0
//! The run: rows one after the other, each cleaned up after; then the report.

use crate::attachment::Attachment;
use crate::cli::{Cli, Command};
use crate::report::{Line, Report, Verdict};
use crate::rows::{self, Check, Row};
use crate::runtime::Runtime;
use crate::say::{complain, say};
use crate::verdict::{Checked, Stop};
use crate::{interrupt, talk};
use anyhow::{Context, Result, bail};
use clap::Parser;
use std::process::ExitCode;

const FAILED: u8 = 1;
const NOT_RUN: u8 = 2;
/// As shells have it for SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs the program with the arguments of the process.
pub fn program() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Talk { how, to }) = &cli.command {
        return match talk::run(how, *to) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(format!("{error:#}"));
                ExitCode::from(FAILED)
            }
        };
    }
    match run(&cli) {
        Ok(report) if report.count(Verdict::Fail) == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(FAILED),
        Err(_) if interrupt::pending() => {
            complain("weft-conformance: interrupted; everything it made is removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            complain(format!("weft-conformance: {error:#}"));
            ExitCode::from(NOT_RUN)
        }
    }
}

fn run(cli: &Cli) -> Result<Report> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("root is needed to make network namespaces");
    }
    let rows: Vec<Row> = rows::all().into_iter().filter(|row| chosen(row, &cli.only)).collect();
    if rows.is_empty() {
        bail!("no row has a name that begins with {}", cli.only.join(" or "));
    }
    interrupt::install()?;
    let runtime = Runtime::new(cli)?;
    let versions: Vec<String> = runtime.supported.iter().map(ToString::to_string).collect();
    if !cli.json {
        say(format!(
            "{} (network {}), CNI {}",
            runtime.plugin().display(),
            runtime.name,
            versions.join(", ")
        ));
    }
    warm_up(&runtime)?;
    let mut report = Report::default();
    let mut group = None;
    for row in rows {
        if !cli.json && group.replace(row.group) != Some(row.group) {
            say(format!("\n{}", row.group));
        }
        for line in judge(&runtime, &row)? {
            if !cli.json {
                say(line.text());
            }
            report.lines.push(line);
        }
    }
    say(if cli.json {
        report.json(&runtime.plugin().to_string_lossy(), &versions)
    } else {
        format!("\n{}", report.summary())
    });
    Ok(report)
}

fn chosen(row: &Row, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|wanted| row.name.starts_with(wanted.as_str()))
}

/// What a plugin makes once for a network (a bridge, a chain) shall be there before the first row looks at the host; and
/// the address that comes shows what the network looks like. A plugin that cannot ADD at all fails in the rows.
fn warm_up(runtime: &Runtime) -> Result<()> {
    let outcome = runtime.container().and_then(|container| {
        let attachment: Attachment<'_> = runtime.attach(&container)?;
        let _ = runtime.sample.set(attachment.result.addresses());
        attachment.del("")
    });
    runtime.clean();
    match outcome {
        Err(Stop::Runner(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Runs a row; one line, or one for each version.
fn judge(runtime: &Runtime, row: &Row) -> Result<Vec<Line>> {
    let once = |name: String, title: String, why_not: Option<String>, check: &dyn Fn() -> Checked| {
        let outcome = match why_not {
            Some(why) => Err(Stop::NotApplicable(why)),
            None => check(),
        };
        runtime.clean();
        interrupt::check()?;
        let (verdict, why) = match outcome {
            Ok(()) => (Verdict::Pass, String::new()),
            Err(Stop::Fail(why)) => (Verdict::Fail, why),
            Err(Stop::NotApplicable(why)) => (Verdict::NotApplicable, why),
            Err(Stop::Runner(error)) => return Err(error).with_context(|| format!("row {name}")),
        };
        Ok(Line { group: row.group, name, title, verdict, why })
    };
    match row.check {
        Check::Once(check) => {
            let why_not = row.lacks(runtime);
            Ok(vec![once(row.name.to_owned(), row.title.to_owned(), why_not, &|| check(runtime))?])
        }
        Check::EachVersion(check) => {
            let versions =
                crate::version::Version::JUDGED.into_iter().filter(|version| *version >= row.since);
            versions
                .map(|version| {
                    let (name, title) = (format!("{} {version}", row.name), row.title.to_owned());
                    once(name, title, runtime.lacks(version), &|| check(runtime, version))
                })
                .collect()
        }
    }
}
