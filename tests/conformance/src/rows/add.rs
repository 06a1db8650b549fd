// SPDX-License-Identifier: Apache-2.0
//! ADD: what it makes, what it answers, and what it leaves when it fails.

use super::{Group, Row};
use crate::attachment::Attachment;
use crate::result::shape_problems;
use crate::runtime::{Container, IFNAME, Runtime};
use crate::verdict::{Checked, expect, fail};
use crate::version::Version;

const fn row(name: &'static str, title: &'static str, check: fn(&Runtime) -> Checked) -> Row {
    Row::new(Group::Add, name, title, check)
}

pub(super) const ROWS: &[Row] = &[
    Row::each(
        Group::Add,
        "add.result",
        "The result has the caller's cniVersion and the fields of that version",
        result,
    ),
    row(
        "add.interface",
        "ADD creates the interface CNI_IFNAME inside the container and lists it with its sandbox",
        interface,
    ),
    row(
        "add.host-interfaces",
        "The result lists interfaces on the host with the MAC that they have",
        host_interfaces,
    ),
    row("add.addresses", "The addresses of the result are on the interface that they point to", addresses),
    row("add.routes", "The routes of the result are in the container", routes),
    row("add.stdout", "Standard output holds the result and nothing else", stdout),
    row(
        "add.exists",
        "If an interface of the requested name exists already, ADD must return an error",
        exists,
    ),
    row("add.twice", "A second ADD of the same attachment is an error and harms nothing", twice),
    row(
        "add.second-interface",
        "A container may be added more than once, each time with another interface name",
        second_interface,
    ),
    row("add.netns-gone", "A CNI_NETNS that does not exist is code 3 or 4", netns_gone),
    row("add.own-netns", "CNI_NETNS that is the plugin's own is refused", own_netns),
    row("add.not-a-netns", "CNI_NETNS that is no network namespace is refused", not_a_netns),
    row("add.after-failure", "After a failed ADD and its DEL the same attachment can be made", after_failure),
    row("add.broken", "ADD that cannot work answers with an error and leaves nothing", broken),
];

fn result(runtime: &Runtime, version: Version) -> Checked {
    let container = runtime.container()?;
    let attachment = Attachment::in_version(runtime, &container, version)?;
    let problems = shape_problems(&attachment.raw, version);
    expect(problems.is_empty(), || problems.join("; "))?;
    attachment.del(&format!("in {version}"))
}

fn interface(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let Some(link) = container.place().link(IFNAME)? else {
        return fail(format!("expected an interface {IFNAME} in the container, got none"));
    };
    let Some((_, listed)) = attachment.result.own(IFNAME, &container.path()) else {
        return fail(format!("the result lists no interface {IFNAME} with the sandbox {}", container.path()));
    };
    expect(listed.mac.as_deref().is_none_or(|mac| mac.eq_ignore_ascii_case(&link.mac)), || {
        format!("the result says MAC {:?}, the kernel {}", listed.mac, link.mac)
    })?;
    expect(listed.mtu.is_none_or(|mtu| mtu == link.mtu), || {
        format!("the result says MTU {:?}, the kernel {}", listed.mtu, link.mtu)
    })
}

fn host_interfaces(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let links = runtime.host().links()?;
    for listed in attachment.result.interfaces.iter().filter(|interface| interface.sandbox.is_none()) {
        let Some(link) = links.get(&listed.name) else {
            return fail(format!("the result lists {}, which the host does not have", listed.name));
        };
        expect(listed.mac.as_deref().is_none_or(|mac| mac.eq_ignore_ascii_case(&link.mac)), || {
            format!("{}: the result says MAC {:?}, the kernel {}", listed.name, listed.mac, link.mac)
        })?;
    }
    Ok(())
}

fn addresses(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let Some((index, _)) = attachment.result.own(IFNAME, &container.path()) else {
        return fail(format!("the result lists no interface {IFNAME} in the container"));
    };
    let (said, there) = (attachment.result.addresses_of(index), container.place().addresses(IFNAME)?);
    expect(!said.is_empty(), || "the result gives the interface no address".to_owned())?;
    let missing: Vec<_> = said.iter().filter(|address| !there.contains(address)).collect();
    expect(missing.is_empty(), || format!("the result says {missing:?}, the kernel has {there:?}"))
}

fn routes(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let there = container.place().routes()?;
    for (dst, gw) in &attachment.result.routes {
        let found = there.iter().any(|route| route.dst == *dst && (gw.is_none() || route.gw == *gw));
        expect(found, || format!("the result has a route to {dst} via {gw:?}, the container has {there:?}"))?;
    }
    Ok(())
}

fn stdout(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let answer = runtime.add(&container).run()?.success("")?;
    let one: Result<serde_json::Value, _> = serde_json::from_str(&answer.stdout);
    match one {
        Ok(value) if value.is_object() => Ok(()),
        _ => fail(format!("expected one JSON object, got {}", crate::call::quote(&answer.stdout))),
    }
}

fn exists(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    container.place().ip(&["link", "add", IFNAME, "type", "bridge"])?;
    runtime.refused(runtime.add(&container), "onto an interface that exists", &[])?;
    let routes = container.place().addresses(IFNAME)?;
    expect(routes.is_empty(), || format!("the interface that was there got addresses: {routes:?}"))
}

fn twice(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let before = state(&container)?;
    runtime.refused(runtime.add(&container), "a second time", &[])?;
    let after = state(&container)?;
    expect(before == after, || format!("the first attachment was {before:?} and is now {after:?}"))?;
    if runtime.newest() >= Version::V0_4_0 {
        attachment.check("of the first attachment after the second ADD")?;
    }
    attachment.del("of the first attachment")
}

fn second_interface(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let first = runtime.attach(&container)?;
    let second = runtime.add(&container).env("CNI_IFNAME", "net1");
    let second = Attachment::make(second, "with the interface name net1")?;
    let shared: Vec<_> =
        first.result.addresses().into_iter().filter(|a| second.result.addresses().contains(a)).collect();
    expect(shared.is_empty(), || format!("both interfaces got {shared:?}"))?;
    second.del("of net1")?;
    let links = container.place().links()?;
    expect(links.contains_key(IFNAME) && !links.contains_key("net1"), || {
        format!("expected {IFNAME} to stay and net1 to go, got {:?}", links.keys())
    })?;
    let (said, there) = (first.result.addresses(), container.place().addresses(IFNAME)?);
    expect(said.iter().all(|address| there.contains(address)), || {
        format!("after DEL of net1 {IFNAME} has {there:?}, not {said:?}")
    })
}

fn netns_gone(runtime: &Runtime) -> Checked {
    let mut container = runtime.container()?;
    container.netns.push_str("-never");
    runtime.refused(runtime.add(&container), "with a netns that is gone", &[3, 4]).map(drop)
}

fn own_netns(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let call = runtime.add(&container).env("CNI_NETNS", &runtime.own_netns());
    // The Go library has a code of its own for it, 8; as an invalid variable or config it is right, too.
    runtime.refused(call, "into the plugin's own netns", &[8, 4, 7]).map(drop)
}

fn not_a_netns(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    for path in ["/", "/dev/null"] {
        let call = runtime.add(&container).env("CNI_NETNS", path);
        runtime.refused(call, &format!("with CNI_NETNS {path}"), &[])?;
    }
    Ok(())
}

fn after_failure(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    container.place().ip(&["link", "add", IFNAME, "type", "bridge"])?;
    runtime.refused(runtime.add(&container), "onto an interface that exists", &[])?;
    runtime.add(&container).verb("DEL").run()?.success("after a failed ADD")?;
    // Whether that DEL took the foreign link along is add.exists's and del's matter, not this row's.
    if container.place().link(IFNAME)?.is_some() {
        container.place().ip(&["link", "del", IFNAME])?;
    }
    runtime.attach(&container)?.del("")
}

fn broken(runtime: &Runtime) -> Checked {
    let call = super::status::break_config(runtime, |runtime| {
        let container = runtime.container()?;
        Ok(runtime.add(&container))
    })?;
    runtime.refused(call, "with a config that cannot work", &[]).map(drop)
}

fn state(container: &Container) -> Checked<String> {
    let place = container.place();
    Ok(format!("{:?} {:?}", place.link(IFNAME)?, place.addresses(IFNAME)?))
}
