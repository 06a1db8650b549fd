// SPDX-License-Identifier: Apache-2.0
//! The variables of each verb.

use super::{Group, Row};
use crate::call::Call;
use crate::runtime::{IFNAME, Runtime};
use crate::verdict::{Checked, expect, not_applicable};
use crate::version::Version;

const INVALID_ENVIRONMENT: i64 = 4;
const ATTACHMENT: [&str; 3] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];

const fn row(name: &'static str, title: &'static str, check: fn(&Runtime) -> Checked) -> Row {
    Row::new(Group::Environment, name, title, check)
}

pub(super) const ROWS: &[Row] = &[
    row("env.command", "CNI_COMMAND is required and one of the verbs: else code 4", command),
    row("env.add", "ADD requires CNI_CONTAINERID, CNI_NETNS and CNI_IFNAME: else code 4, naming them", add),
    row("env.add-optional", "ADD takes CNI_ARGS and CNI_PATH as optional", add_optional),
    row("env.del", "DEL requires CNI_CONTAINERID and CNI_IFNAME: else code 4, naming them", del),
    row("env.del-netns", "DEL takes CNI_NETNS as optional", del_without_netns),
    row("env.check", "CHECK requires the same as ADD: else code 4, naming them", check)
        .since(Version::V0_4_0),
    row("env.status", "STATUS requires nothing but CNI_COMMAND", status).since(Version::V1_1_0),
    row("env.gc", "GC requires CNI_PATH, and no attachment: else code 4, naming it", gc)
        .since(Version::V1_1_0),
    row("env.version", "VERSION requires nothing but CNI_COMMAND", version),
    row(
        "env.container-id",
        "A container ID starts alphanumeric, then alphanumerics, _ . -: else code 4",
        container_ids,
    ),
    row(
        "env.container-id-valid",
        "Every character that a container ID may have is accepted",
        valid_container_id,
    ),
    row(
        "env.ifname",
        "An interface name has at most 15 bytes, is not . or .., has no / : or blank: else code 4",
        ifnames,
    ),
    row("env.ifname-valid", "An interface name of 15 bytes is accepted", valid_ifname),
];

fn command(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    for (about, call) in [
        ("without CNI_COMMAND", runtime.add(&container).unset("CNI_COMMAND")),
        ("with a verb that does not exist", runtime.add(&container).verb("FROB")),
        ("with a verb in lower case", runtime.add(&container).verb("add")),
    ] {
        runtime.refused(call, about, &[INVALID_ENVIRONMENT])?;
    }
    Ok(())
}

fn add(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    require(runtime, &runtime.add(&container), &ATTACHMENT)
}

fn check(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    require(runtime, &runtime.attach(&container)?.call("CHECK"), &ATTACHMENT)
}

fn del(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    require(runtime, &attachment.call("DEL"), &["CNI_CONTAINERID", "CNI_IFNAME"])?;
    attachment.del("afterwards")
}

fn gc(runtime: &Runtime) -> Checked {
    // A network of its own: a GC that goes through by mistake must not hit what the caller runs.
    let call = runtime
        .call("GC")
        .key("name", format!("{}-gc0", runtime.name))
        .key("cni.dev/valid-attachments", serde_json::json!([]));
    require(runtime, &call, &["CNI_PATH"])?;
    call.run()?.success("with CNI_PATH alone").map(drop)
}

/// Leaves out one variable after the other, then sets it to nothing.
fn require(runtime: &Runtime, call: &Call<'_>, variables: &[&str]) -> Checked {
    for variable in variables {
        let tries =
            [("without", call.clone().unset(variable)), ("with an empty", call.clone().env(variable, ""))];
        for (how, call) in tries {
            let about = format!("{how} {variable}");
            let error = runtime.refused(call, &about, &[INVALID_ENVIRONMENT])?;
            names(&error, variable, &about)?;
        }
    }
    Ok(())
}

/// The message has to contain the names of invalid variables.
fn names(error: &crate::call::ErrorObject, variable: &str, about: &str) -> Checked {
    let bare = variable.trim_start_matches("CNI_");
    expect(error.says(bare), || {
        format!("{about}: expected a message that names {variable}, got {}", error.told())
    })
}

fn add_optional(runtime: &Runtime) -> Checked {
    if let Some(ipam) = runtime.config_key("ipam").and_then(|ipam| ipam["type"].as_str()) {
        return not_applicable(format!("the config delegates to {ipam}, which CNI_PATH has to find"));
    }
    let container = runtime.container()?;
    let call = runtime.add(&container).unset("CNI_PATH").unset("CNI_ARGS");
    call.run()?.success("without CNI_ARGS and CNI_PATH").map(drop)
}

fn del_without_netns(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    attachment.call("DEL").unset("CNI_NETNS").run()?.success("without CNI_NETNS").map(drop)
}

fn status(runtime: &Runtime) -> Checked {
    runtime.call("STATUS").unset("CNI_PATH").run()?.success("with CNI_COMMAND alone").map(drop)
}

fn version(runtime: &Runtime) -> Checked {
    runtime.call("VERSION").unset("CNI_PATH").run()?.success("with CNI_COMMAND alone").map(drop)
}

fn container_ids(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    for id in ["-x", "_x", ".x", "../x", "a/b", "a b", "a\tb", "a:b", "ä"] {
        let about = format!("with the container ID {id:?}");
        let call = runtime.add(&container).env("CNI_CONTAINERID", id);
        let error = runtime.refused(call, &about, &[INVALID_ENVIRONMENT])?;
        names(&error, "CNI_CONTAINERID", &about)?;
    }
    Ok(())
}

fn valid_container_id(runtime: &Runtime) -> Checked {
    let mut container = runtime.container()?;
    container.id = format!("9A_b.c-{}", container.id);
    runtime.attach(&container)?.del("")
}

fn ifnames(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    for ifname in ["sixteen-bytes-xx", ".", "..", "a/b", "a:b", "a b", "a\tb"] {
        let about = format!("with the interface name {ifname:?}");
        let call = runtime.add(&container).env("CNI_IFNAME", ifname);
        let error = runtime.refused(call, &about, &[INVALID_ENVIRONMENT])?;
        names(&error, "CNI_IFNAME", &about)?;
    }
    Ok(())
}

fn valid_ifname(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let name = "fifteen_bytes.x";
    let call = runtime.add(&container).env("CNI_IFNAME", name);
    let attachment = crate::attachment::Attachment::make(call, "with an interface name of 15 bytes")?;
    let links = container.place().links()?;
    expect(links.contains_key(name) && !links.contains_key(IFNAME), || {
        format!("expected an interface {name}, got {:?}", links.keys())
    })?;
    attachment.del("")
}
