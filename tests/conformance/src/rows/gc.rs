// SPDX-License-Identifier: Apache-2.0
//! GC: frees what the runtime does not list. In networks of its own name: what the caller runs is never hit.

use super::{Group, Row};
use crate::attachment::Attachment;
use crate::call::Call;
use crate::kernel::remove_netns;
use crate::runtime::{Container, IFNAME, Runtime};
use crate::verdict::{Checked, expect, not_applicable};
use crate::version::Version;
use serde_json::{Value, json};

const VALID: &str = "cni.dev/valid-attachments";

const fn row(name: &'static str, title: &'static str, check: fn(&Runtime) -> Checked) -> Row {
    Row::new(Group::Gc, name, title, check).since(Version::V1_1_0)
}

pub(super) const ROWS: &[Row] = &[
    row("gc.frees", "GC frees what is not listed and leaves what is, without a word", frees),
    row("gc.netns-gone", "GC frees attachments whose network namespace is gone", netns_gone),
    row("gc.address", "GC frees the addresses of what is not listed", address).with("ips"),
    row("gc.ports", "GC frees the host ports of what is not listed", ports).with("portMappings"),
    row("gc.network", "GC touches no other network", network),
    row("gc.interface", "GC tells the interfaces of one container apart", interfaces),
    row(
        "gc.both-keys",
        "GC takes the list under its first name, cni.dev/attachments, beside the right one",
        both_keys,
    ),
    row("gc.no-list", "GC without a list frees nothing", no_list),
    row("gc.repeated", "GC may be repeated, and has nothing to do then", repeated),
    row("gc.before-1.1.0", "GC is refused with code 1 below 1.1.0", below),
];

fn network_name(runtime: &Runtime, which: &str) -> String {
    format!("{}-{which}", runtime.name)
}

fn attach<'r>(runtime: &'r Runtime, container: &Container, network: &str) -> Checked<Attachment<'r>> {
    let attachment =
        Attachment::make(add(runtime, container, network), &format!("to the network {network}"))?;
    attachment.check("before GC")?;
    Ok(attachment)
}

fn add<'r>(runtime: &'r Runtime, container: &Container, network: &str) -> Call<'r> {
    runtime.add(container).key("name", network)
}

fn listed(containers: &[&Container]) -> Value {
    containers.iter().map(|c| json!({ "containerID": c.id, "ifname": IFNAME })).collect()
}

fn gc<'r>(runtime: &'r Runtime, network: &str, list: Value) -> Call<'r> {
    runtime.call("GC").key("name", network).key(VALID, list)
}

fn collect(runtime: &Runtime, network: &str, list: Value) -> Checked {
    let about = format!("of the network {network}");
    gc(runtime, network, list).run()?.success(&about)?.silent(&about).map(drop)
}

/// CHECK has to fail where an address reservation is missing.
fn is_freed(attachment: &Attachment<'_>, about: &str) -> Checked {
    let answer = attachment.call("CHECK").run()?;
    expect(!answer.ok(), || format!("{about}: CHECK still finds the attachment in order"))?;
    attachment.del("of what GC freed")
}

fn frees(runtime: &Runtime) -> Checked {
    let network = network_name(runtime, "gc1");
    let (kept, stale) = (runtime.container()?, runtime.container()?);
    let (kept_attached, stale_attached) =
        (attach(runtime, &kept, &network)?, attach(runtime, &stale, &network)?);
    collect(runtime, &network, listed(&[&kept]))?;
    is_freed(&stale_attached, "what was not listed")?;
    kept_attached.check("of what was listed")
}

fn netns_gone(runtime: &Runtime) -> Checked {
    let network = network_name(runtime, "gc1");
    let before = runtime.host().links()?;
    let stale = runtime.container()?;
    attach(runtime, &stale, &network)?;
    remove_netns(&stale.netns)?;
    collect(runtime, &network, json!([]))?;
    runtime.host_is(&before, "GC of a container that is gone")
}

fn address(runtime: &Runtime) -> Checked {
    let network = network_name(runtime, "gc1");
    let wanted = super::capabilities::spare_addresses(runtime)?;
    let (stale, fresh) = (runtime.container()?, runtime.container()?);
    runtime.add_after_rest(&add(runtime, &stale, &network).capability("ips", wanted.clone()), "with ips")?;
    remove_netns(&stale.netns)?;
    collect(runtime, &network, json!([]))?;
    let again = add(runtime, &fresh, &network).capability("ips", wanted.clone());
    runtime.add_after_rest(&again, &format!("with {wanted:?}, which GC freed")).map(drop)
}

fn ports(runtime: &Runtime) -> Checked {
    let network = network_name(runtime, "gc1");
    let mapping = super::shaping::mapping(runtime, 7);
    let (stale, fresh) = (runtime.container()?, runtime.container()?);
    let ask =
        |container: &Container| add(runtime, container, &network).capability("portMappings", mapping.clone());
    Attachment::make(ask(&stale), "with portMappings")?;
    remove_netns(&stale.netns)?;
    collect(runtime, &network, json!([]))?;
    runtime.add_after_rest(&ask(&fresh), "with a host port that GC freed").map(drop)
}

fn network(runtime: &Runtime) -> Checked {
    let (ours, other) = (network_name(runtime, "gc1"), network_name(runtime, "gc2"));
    let (container, elsewhere) = (runtime.container()?, runtime.container()?);
    let (attachment, untouched) = (attach(runtime, &container, &ours)?, attach(runtime, &elsewhere, &other)?);
    collect(runtime, &ours, json!([]))?;
    untouched.check("of another network after GC")?;
    is_freed(&attachment, "what was not listed")
}

fn interfaces(runtime: &Runtime) -> Checked {
    let network = network_name(runtime, "gc1");
    let container = runtime.container()?;
    let kept = attach(runtime, &container, &network)?;
    let stale = Attachment::make(add(runtime, &container, &network).env("CNI_IFNAME", "net1"), "with net1")?;
    stale.check("of net1 before GC")?;
    collect(runtime, &network, listed(&[&container]))?;
    is_freed(&stale, "net1, which was not listed")?;
    kept.check("of the interface that was listed")
}

fn both_keys(runtime: &Runtime) -> Checked {
    let network = network_name(runtime, "gc1");
    let (kept, stale) = (runtime.container()?, runtime.container()?);
    let (kept_attached, stale_attached) =
        (attach(runtime, &kept, &network)?, attach(runtime, &stale, &network)?);
    let list = listed(&[&kept]);
    let call = gc(runtime, &network, list.clone()).key("cni.dev/attachments", list);
    call.run()?.success("with both keys")?;
    is_freed(&stale_attached, "what was not listed")?;
    kept_attached.check("of what was listed")
}

fn no_list(runtime: &Runtime) -> Checked {
    let network = network_name(runtime, "gc1");
    let container = runtime.container()?;
    let attachment = attach(runtime, &container, &network)?;
    // Success or an error: what counts is that an absent list does not read as "nothing lives".
    gc(runtime, &network, json!([])).without(VALID).run()?;
    attachment.check("after a GC without a list")
}

fn repeated(runtime: &Runtime) -> Checked {
    let network = network_name(runtime, "gc1");
    let container = runtime.container()?;
    let attachment = attach(runtime, &container, &network)?;
    for _ in 0..2 {
        collect(runtime, &network, json!([]))?;
    }
    attachment.del("after GC")?;
    collect(runtime, &network, json!([]))
}

fn below(runtime: &Runtime) -> Checked {
    let Some(old) = super::status::older(runtime) else {
        return not_applicable("the plugin speaks nothing below 1.1.0");
    };
    let call = runtime.call_in(old, "GC").key("name", network_name(runtime, "gc1")).key(VALID, json!([]));
    runtime.refused(call, &format!("in {old}"), &[1]).map(drop)
}
