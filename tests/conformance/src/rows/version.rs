// SPDX-License-Identifier: Apache-2.0
//! VERSION, and each version as a whole.

use super::{Group, Row};
use crate::attachment::Attachment;
use crate::runtime::Runtime;
use crate::verdict::{Checked, expect, fail};
use crate::version::Version;
use serde_json::Value;
use std::collections::BTreeSet;

const INCOMPATIBLE_VERSION: i64 = 1;

pub(super) const ROWS: &[Row] = &[
    Row::each(
        Group::Version,
        "version.reply",
        "VERSION answers with the caller's cniVersion and supportedVersions",
        reply,
    ),
    Row::new(
        Group::Version,
        "version.list",
        "supportedVersions lists versions, each once, among them the config's",
        list,
    ),
    Row::new(Group::Version, "version.unknown", "A cniVersion that VERSION does not list is code 1", unknown),
    Row::each(
        Group::Version,
        "version.life",
        "ADD, CHECK where there is one, DEL and DEL again work in this version",
        life,
    ),
];

fn reply(runtime: &Runtime, version: Version) -> Checked {
    let answer = runtime.call_in(version, "VERSION").run()?.success("")?;
    let reply: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
    expect(reply["cniVersion"] == version.to_string(), || {
        format!("expected cniVersion \"{version}\", got {}", crate::call::quote(&answer.stdout))
    })?;
    expect(reply["supportedVersions"].is_array(), || {
        format!("expected supportedVersions, got {}", crate::call::quote(&answer.stdout))
    })
}

fn list(runtime: &Runtime) -> Checked {
    let answer = runtime.call("VERSION").run()?.success("")?;
    let reply: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
    let texts: Vec<&str> =
        reply["supportedVersions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for text in &texts {
        expect(text.parse::<Version>().is_ok(), || format!("{text:?} is no version"))?;
    }
    let distinct: BTreeSet<_> = texts.iter().collect();
    expect(distinct.len() == texts.len(), || format!("some are there twice: {texts:?}"))?;
    let Some(config) = runtime.file["cniVersion"].as_str() else { return Ok(()) };
    expect(texts.contains(&config), || format!("the config's {config} is not in {texts:?}"))
}

fn unknown(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let unlisted = |version: &&str| !version.parse::<Version>().is_ok_and(|v| runtime.supported.contains(&v));
    for version in
        ["9.9.9", "0.1.0", "0.2.0", "0.3.1", "1.1.0", "not-a-version", ""].into_iter().filter(unlisted)
    {
        // An empty version may also read as none at all, which is 0.2.0.
        if version.is_empty() && runtime.supported.contains(&Version::V0_2_0) {
            continue;
        }
        let codes = if version.parse::<Version>().is_ok() { &[INCOMPATIBLE_VERSION][..] } else { &[1, 6, 7] };
        for verb in ["ADD", "DEL"] {
            let call = runtime.add(&container).verb(verb).key("cniVersion", version);
            runtime.refused(call, &format!("in {version:?}"), codes)?;
        }
    }
    Ok(())
}

fn life(runtime: &Runtime, version: Version) -> Checked {
    let container = runtime.container()?;
    let attachment = Attachment::in_version(runtime, &container, version)?;
    let about = format!("in {version}");
    if version >= Version::V0_4_0 {
        attachment.check(&about)?;
    }
    attachment.del(&about)?;
    attachment.del(&about)?;
    let left = container.place().link(crate::runtime::IFNAME)?;
    if left.is_some() { fail(format!("the interface is still there after DEL {about}")) } else { Ok(()) }
}
