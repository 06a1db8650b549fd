// SPDX-License-Identifier: Apache-2.0
//! DEL: always ends well.

use super::{Group, Row};
use crate::kernel::remove_netns;
use crate::runtime::{IFNAME, Runtime};
use crate::verdict::{Checked, expect};
use crate::version::Version;
use serde_json::json;

const fn row(name: &'static str, title: &'static str, check: fn(&Runtime) -> Checked) -> Row {
    Row::new(Group::Del, name, title, check)
}

pub(super) const ROWS: &[Row] = &[
    row("del.interface", "DEL deletes the interface, and what it has on the host", interface),
    row("del.twice", "Plugins must accept multiple DEL calls for the same attachment", twice),
    row("del.unknown", "DEL of what was never added is a success", unknown),
    row("del.netns-gone", "DEL succeeds when the network namespace is gone", netns_gone),
    row("del.interface-gone", "DEL succeeds when the interface is gone", interface_gone),
    row("del.no-prev-result", "DEL succeeds when prevResult is empty, and does its work", no_prev_result),
    row(
        "del.damaged-cache",
        "DEL succeeds when the runtime's cache is damaged, and does its work",
        damaged_cache,
    ),
    row("del.after-failed-add", "DEL after a failed ADD is a success", after_failed_add),
    row("del.others", "DEL touches no other attachment", others),
    row("del.address", "DEL frees the address", address).with("ips"),
    row("del.broken", "DEL succeeds when what the plugin depends on is not there", broken),
];

fn interface(runtime: &Runtime) -> Checked {
    let before = runtime.host().links()?;
    let container = runtime.container()?;
    runtime.attach(&container)?.del("")?;
    gone(runtime, &container.netns, "DEL")?;
    runtime.host_is(&before, "DEL")
}

fn twice(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    for about in ["the first time", "the second time", "the third time"] {
        attachment.del(about)?;
    }
    remove_netns(&container.netns)?;
    attachment.del("after the namespace went, too")
}

fn unknown(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let call = runtime.add(&container).verb("DEL");
    call.clone().run()?.success("of what was never added")?;
    call.unset("CNI_NETNS").run()?.success("of what was never added, without a netns").map(drop)
}

fn netns_gone(runtime: &Runtime) -> Checked {
    let before = runtime.host().links()?;
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    remove_netns(&container.netns)?;
    attachment.del("after the namespace went")?;
    attachment.call("DEL").env("CNI_NETNS", "").run()?.success("with an empty CNI_NETNS")?;
    runtime.host_is(&before, "DEL after the namespace went")
}

fn interface_gone(runtime: &Runtime) -> Checked {
    let before = runtime.host().links()?;
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    container.place().ip(&["link", "del", IFNAME])?;
    attachment.del("after the interface went")?;
    runtime.host_is(&before, "DEL after the interface went")
}

fn no_prev_result(runtime: &Runtime) -> Checked {
    let before = runtime.host().links()?;
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    attachment.call("DEL").without("prevResult").run()?.success("without prevResult")?;
    gone(runtime, &container.netns, "DEL without prevResult")?;
    runtime.host_is(&before, "DEL without prevResult")
}

fn damaged_cache(runtime: &Runtime) -> Checked {
    let before = runtime.host().links()?;
    let version = runtime.newest().to_string();
    for (about, prev) in [
        ("with an empty prevResult", json!({})),
        ("with a prevResult of nothing but a version", json!({ "cniVersion": version })),
        (
            "with another container's prevResult",
            json!({ "cniVersion": version, "interfaces": [{ "name": "x", "sandbox": "/run/netns/x" }], "ips": [] }),
        ),
        ("with a prevResult of another version", json!({ "cniVersion": "9.9.9", "ips": "x" })),
        ("with a prevResult that is text", json!("\u{0}damaged")),
        ("with a prevResult that is null", json!(null)),
    ] {
        let container = runtime.container()?;
        let attachment = runtime.attach(&container)?;
        attachment.call("DEL").key("prevResult", prev).run()?.success(about)?;
        gone(runtime, &container.netns, &format!("DEL {about}"))?;
    }
    runtime.host_is(&before, "DEL with a damaged cache")
}

fn after_failed_add(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    container.place().ip(&["link", "add", IFNAME, "type", "bridge"])?;
    runtime.refused(runtime.add(&container), "onto an interface that exists", &[])?;
    runtime.add(&container).verb("DEL").run()?.success("after a failed ADD").map(drop)
}

fn others(runtime: &Runtime) -> Checked {
    let (stays, goes) = (runtime.container()?, runtime.container()?);
    let (stays_attached, goes_attached) = (runtime.attach(&stays)?, runtime.attach(&goes)?);
    goes_attached.del("")?;
    goes_attached.del("")?;
    let (said, there) = (stays_attached.result.addresses(), stays.place().addresses(IFNAME)?);
    expect(said.iter().all(|address| there.contains(address)), || {
        format!("the other container has {there:?} after DEL, not {said:?}")
    })?;
    if runtime.newest() >= Version::V0_4_0 {
        stays_attached.check("of the other container")?;
    }
    Ok(())
}

fn address(runtime: &Runtime) -> Checked {
    let wanted = super::capabilities::spare_addresses(runtime)?;
    let (first, second) = (runtime.container()?, runtime.container()?);
    let ask = |container| runtime.add(container).capability("ips", wanted.clone());
    runtime.add_after_rest(&ask(&first), "with ips")?.del("")?;
    runtime.add_after_rest(&ask(&second), &format!("with {wanted:?}, which was freed")).map(drop)
}

fn broken(runtime: &Runtime) -> Checked {
    let before = runtime.host().links()?;
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let call = super::status::break_config(runtime, |_| Ok(attachment.call("DEL")))?;
    call.clone().run()?.success("with a config that cannot work")?;
    call.run()?.success("with a config that cannot work, twice")?;
    gone(runtime, &container.netns, "DEL with a config that cannot work")?;
    runtime.host_is(&before, "DEL with a config that cannot work")
}

/// The interface is not in the container any more.
fn gone(_: &Runtime, netns: &str, about: &str) -> Checked {
    let links = crate::kernel::Place::netns(netns).links()?;
    expect(!links.contains_key(IFNAME), || format!("after {about} {IFNAME} is still in the container"))
}
