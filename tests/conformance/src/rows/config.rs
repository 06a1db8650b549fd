// SPDX-License-Identifier: Apache-2.0
//! The network config on standard input.

use super::{Group, Row};
use crate::attachment::Attachment;
use crate::runtime::Runtime;
use crate::verdict::{Checked, expect, fail};
use crate::version::Version;
use serde_json::{Value, json};

const INCOMPATIBLE_VERSION: i64 = 1;
const UNSUPPORTED_FIELD: i64 = 2;
const DECODE: i64 = 6;
const INVALID_CONFIG: i64 = 7;

const fn row(name: &'static str, title: &'static str, check: fn(&Runtime) -> Checked) -> Row {
    Row::new(Group::Config, name, title, check)
}

pub(super) const ROWS: &[Row] = &[
    row(
        "config.file",
        "The config has a valid name, a type without separators, and no key that runtimes own",
        file,
    ),
    row(
        "config.list-keys",
        "cniVersions, disableCheck, disableGC, loadOnlyInlinedPlugins may be there",
        list_keys,
    ),
    row("config.args", "args may carry what the plugin does not understand; it is ignored", args),
    row("config.cni-dev", "Keys that start with cni.dev/ belong to the runtime and are no error", cni_dev),
    row("config.dns", "The well-known key dns is respected, or not used at all", dns),
    row(
        "config.unknown-key",
        "An unknown key is ignored, or refused with code 2 and a message of key and value",
        unknown_key,
    ),
    row(
        "config.unknown-capability",
        "An unknown capability is ignored, or refused with code 2 and its name",
        unknown_capability,
    ),
    row("config.undecodable", "Standard input that does not decode is code 6", undecodable),
    row("config.name", "A missing or invalid network name is code 7", name),
    row("config.types", "Content of a wrong type is code 6 or 7", types),
    row(
        "config.no-version",
        "A config without cniVersion is of 0.2.0: served as such, or code 1",
        no_version,
    ),
];

fn file(runtime: &Runtime) -> Checked {
    let name = &runtime.name;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    expect(name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain), || {
        format!("name is {name:?}")
    })?;
    let sections =
        runtime.file["plugins"].as_array().map_or(std::slice::from_ref(&runtime.file), Vec::as_slice);
    for section in sections {
        let kind = section["type"].as_str().unwrap_or_default();
        expect(!kind.is_empty() && !kind.contains(['/', '\\']), || format!("type is {:?}", section["type"]))?;
        let owned = |key: &&String| {
            ["runtimeConfig", "args", "prevResult"].contains(&key.as_str()) || key.starts_with("cni.dev/")
        };
        if let Some(key) = section.as_object().into_iter().flat_map(|object| object.keys()).find(owned) {
            return fail(format!("the section of {kind} holds {key:?}, which runtimes own"));
        }
    }
    Ok(())
}

fn list_keys(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let versions: Vec<Value> = runtime.versions().iter().map(|v| v.to_string().into()).collect();
    let call = runtime
        .add(&container)
        .key("cniVersions", versions)
        .key("disableCheck", false)
        .key("disableGC", false)
        .key("loadOnlyInlinedPlugins", false);
    Attachment::make(call, "with keys of the list")?.del("with keys of the list")
}

fn args(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let args =
        json!({ "cni": { "conformance": [1, { "a": null }] }, "org.example.conformance": { "x": true } });
    Attachment::make(runtime.add(&container).key("args", args), "with unknown args")?.del("with unknown args")
}

fn cni_dev(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let call = runtime.add(&container).key("cni.dev/conformance", json!({ "x": 1 }));
    Attachment::make(call, "with a key under cni.dev/")?.del("with a key under cni.dev/")
}

fn dns(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let dns = json!({ "nameservers": ["192.0.2.53"], "domain": "example.test", "search": ["a.example.test"], "options": ["ndots:3"] });
    let attachment = Attachment::make(runtime.add(&container).key("dns", dns.clone()), "with dns")?;
    let own = runtime.container()?;
    let without = runtime.attach(&own)?;
    let got = &attachment.result.dns;
    // A plugin that does nothing about DNS answers as it would without the key.
    expect(*got == dns || *got == without.result.dns, || format!("expected dns {dns}, got {got}"))
}

fn unknown_key(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    ignored_or_refused(
        runtime,
        runtime.add(&container).key("conformanceKey", "conformanceValue"),
        &["conformanceKey", "conformanceValue"],
    )
}

fn unknown_capability(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let call = runtime.add(&container).capability("conformanceCapability", json!({ "x": 1 }));
    ignored_or_refused(runtime, call, &["conformanceCapability"])
}

fn ignored_or_refused(runtime: &Runtime, call: crate::call::Call<'_>, said: &[&str]) -> Checked {
    let answer = call.clone().run()?;
    if answer.ok() {
        return Ok(());
    }
    let error = runtime.refused(call, "with an unknown field", &[UNSUPPORTED_FIELD])?;
    expect(said.iter().all(|text| error.says(text)), || {
        format!("expected a message with {}, got {}", said.join(" and "), error.told())
    })
}

fn undecodable(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    for (about, bytes) in [
        ("with half an object", &b"{ \"cniVersion\": "[..]),
        ("with no JSON", b"\xff\xfe"),
        ("with a list", b"[]"),
        ("with nothing on stdin", b""),
    ] {
        runtime.refused(runtime.add(&container).stdin(bytes), about, &[DECODE])?;
    }
    Ok(())
}

fn name(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    runtime.refused(runtime.add(&container).without("name"), "without a name", &[INVALID_CONFIG])?;
    for name in ["", "-x", ".x", "a/b", "a b", "../x"] {
        let about = format!("with the name {name:?}");
        runtime.refused(runtime.add(&container).key("name", name), &about, &[INVALID_CONFIG])?;
    }
    Ok(())
}

fn types(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    for (key, value) in
        [("name", json!(5)), ("cniVersion", json!({})), ("dns", json!("x")), ("prevResult", json!("x"))]
    {
        let about = format!("with {key} {value}");
        let codes = if key == "cniVersion" {
            &[INCOMPATIBLE_VERSION, DECODE, INVALID_CONFIG][..]
        } else {
            &[DECODE, INVALID_CONFIG]
        };
        runtime.refused(runtime.add(&container).key(key, value), &about, codes)?;
    }
    Ok(())
}

fn no_version(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let call = runtime.add(&container).without("cniVersion");
    if !runtime.supported.contains(&Version::V0_2_0) {
        return runtime.refused(call, "without cniVersion", &[INCOMPATIBLE_VERSION]).map(drop);
    }
    let answer = call.run()?.success("without cniVersion")?;
    let result: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
    // 0.2.0 has one address of each family, in `ip4` and `ip6`.
    let old = result["ip4"].is_object() || result["ip6"].is_object();
    expect(old, || format!("expected a result of 0.2.0, got {}", crate::call::quote(&answer.stdout)))
}
