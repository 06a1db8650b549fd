// SPDX-License-Identifier: Apache-2.0
//! STATUS: could an ADD work now?

use super::{Group, Row};
use crate::call::Call;
use crate::runtime::Runtime;
use crate::verdict::{Checked, expect, not_applicable};
use crate::version::Version;
use std::time::Duration;

/// Runtimes ask every five seconds; more than this is not cheap.
const CHEAP: Duration = Duration::from_secs(1);
/// How often it is asked.
const ROUNDS: usize = 10;

const fn row(name: &'static str, title: &'static str, check: fn(&Runtime) -> Checked) -> Row {
    Row::new(Group::Status, name, title, check).since(Version::V1_1_0)
}

pub(super) const ROWS: &[Row] = &[
    row("status.ready", "STATUS exits with 0 when ADD can work, and prints nothing", ready),
    row("status.cheap", "STATUS is cheap and changes nothing", cheap),
    row("status.broken", "STATUS answers 50 or 51 when ADD cannot work", broken),
    row("status.no-promise", "ADD and DEL are served whatever STATUS said", no_promise),
    row("status.before-1.1.0", "STATUS is refused with code 1 below 1.1.0", below),
    row("status.config", "STATUS refuses a config that is wrong", config),
];

fn ready(runtime: &Runtime) -> Checked {
    runtime
        .call("STATUS")
        .run()?
        .success("of a plugin that works")?
        .silent("of a plugin that works")
        .map(drop)
}

fn cheap(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let before = runtime.host().links()?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(runtime.call("STATUS").run()?.success("again and again")?.took);
    }
    times.sort();
    let typical = times[ROUNDS / 2];
    expect(typical < CHEAP, || format!("expected less than {CHEAP:?}, got {typical:?}"))?;
    runtime.host_is(&before, "STATUS")?;
    attachment.check("after STATUS")
}

fn broken(runtime: &Runtime) -> Checked {
    let call = break_config(runtime, |runtime| Ok(runtime.call("STATUS")))?;
    runtime.refused(call, "with a config that cannot work", &[50, 51]).map(drop)
}

fn no_promise(runtime: &Runtime) -> Checked {
    let call = break_config(runtime, |runtime| Ok(runtime.call("STATUS")))?;
    runtime.refused(call, "with a config that cannot work", &[])?;
    let container = runtime.container()?;
    runtime.attach(&container)?.del("after a failed STATUS")
}

fn below(runtime: &Runtime) -> Checked {
    let Some(old) = older(runtime) else { return not_applicable("the plugin speaks nothing below 1.1.0") };
    runtime.refused(runtime.call_in(old, "STATUS"), &format!("in {old}"), &[1]).map(drop)
}

fn config(runtime: &Runtime) -> Checked {
    runtime.refused(runtime.call("STATUS").stdin(b"{"), "with half an object", &[6])?;
    runtime.refused(runtime.call("STATUS").key("cniVersion", "9.9.9"), "in 9.9.9", &[1]).map(drop)
}

/// The newest version without STATUS and GC.
pub(super) fn older(runtime: &Runtime) -> Option<Version> {
    runtime.versions().into_iter().rfind(|version| *version < Version::V1_1_0)
}

/// A call with the config spoilt as `--broken` says.
pub(super) fn break_config<'r>(
    runtime: &'r Runtime,
    call: impl FnOnce(&'r Runtime) -> Checked<Call<'r>>,
) -> Checked<Call<'r>> {
    if runtime.broken.is_empty() {
        return not_applicable("no --broken KEY=JSON says how a config cannot work");
    }
    let call = call(runtime)?;
    Ok(runtime.broken.iter().fold(call, |call, (key, value)| call.key(key, value.clone())))
}
