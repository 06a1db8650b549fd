// SPDX-License-Identifier: Apache-2.0
//! CHECK: compares prevResult with the kernel, and says nothing when all is well.

use super::{Group, Row};
use crate::attachment::Attachment;
use crate::runtime::{Container, IFNAME, Runtime};
use crate::verdict::{Checked, expect, fail, not_applicable};
use crate::version::Version;
use serde_json::{Value, json};

const fn row(name: &'static str, title: &'static str, check: fn(&Runtime) -> Checked) -> Row {
    Row::new(Group::Check, name, title, check).since(Version::V0_4_0)
}

pub(super) const ROWS: &[Row] = &[
    Row::each(Group::Check, "check.after-add", "CHECK passes right after ADD and prints nothing", after_add)
        .since(Version::V0_4_0),
    row("check.before-0.4.0", "CHECK is refused with code 1 below 0.4.0", below),
    row("check.prev-result", "CHECK without prevResult is an error", prev_result),
    row("check.interface", "CHECK fails when the interface is missing", interface),
    row("check.addresses", "CHECK fails when an address is missing", addresses),
    row("check.routes", "CHECK fails when a route of the result is missing", routes),
    row("check.mac", "CHECK fails when the MAC is another", mac),
    row("check.mtu", "CHECK fails when the MTU is another", mtu).since(Version::V1_1_0),
    row("check.down", "CHECK fails when the interface is down", down),
    row("check.host-side", "CHECK fails when the host's end is down", host_side),
    row(
        "check.other-result",
        "CHECK fails when prevResult says other addresses than there are",
        other_result,
    ),
    row("check.netns-gone", "CHECK of a container that is gone is an error", netns_gone),
    row(
        "check.later-plugins",
        "CHECK allows what later plugins added: routes, addresses, interfaces",
        later_plugins,
    ),
    row(
        "check.later-mac",
        "CHECK allows a MAC that a later plugin (tuning) changed, where prevResult says so",
        later_mac,
    ),
    row("check.after-del", "CHECK after DEL is an error", after_del),
    row("check.repeated", "CHECK changes nothing and may be repeated", repeated),
];

fn after_add(runtime: &Runtime, version: Version) -> Checked {
    let container = runtime.container()?;
    let attachment = Attachment::in_version(runtime, &container, version)?;
    attachment.check(&format!("in {version}, right after ADD"))?;
    attachment.del(&format!("in {version}"))
}

fn below(runtime: &Runtime) -> Checked {
    let old = [Version::V0_3_1, Version::V0_3_0].into_iter().find(|old| runtime.lacks(*old).is_none());
    let Some(old) = old else { return not_applicable("the plugin speaks nothing below 0.4.0") };
    let container = runtime.container()?;
    let call = Attachment::in_version(runtime, &container, old)?.call("CHECK");
    runtime.refused(call, &format!("in {old}"), &[1]).map(drop)
}

fn prev_result(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    runtime.refused(attachment.call("CHECK").without("prevResult"), "without prevResult", &[])?;
    attachment.check("with prevResult")
}

fn interface(runtime: &Runtime) -> Checked {
    notices(runtime, "without the interface", |_, container| ip(container, &["link", "del", IFNAME]))
}

fn addresses(runtime: &Runtime) -> Checked {
    notices(runtime, "without an address", |attachment, container| {
        for address in attachment.result.addresses() {
            if container.place().addresses(IFNAME)?.contains(&address) {
                return ip(container, &["address", "del", &address.to_string(), "dev", IFNAME]);
            }
        }
        fail("no address of the result is on the interface")
    })
}

fn routes(runtime: &Runtime) -> Checked {
    notices(runtime, "without a route", |attachment, container| {
        let Some((dst, _)) = attachment.result.routes.first() else {
            return not_applicable("the result has no routes");
        };
        let family = if dst.addr().is_ipv6() { "-6" } else { "-4" };
        ip(container, &[family, "route", "del", &dst.to_string()])
    })
}

fn mac(runtime: &Runtime) -> Checked {
    notices(runtime, "with another MAC", |_, container| {
        ip(container, &["link", "set", IFNAME, "address", "02:00:00:c0:ff:ee"])
    })
}

fn mtu(runtime: &Runtime) -> Checked {
    notices(runtime, "with another MTU", |attachment, container| {
        let listed = attachment.result.own(IFNAME, &container.path()).and_then(|(_, own)| own.mtu);
        let Some(mtu) = listed else { return not_applicable("the result says no MTU") };
        ip(container, &["link", "set", IFNAME, "mtu", &(mtu - 100).to_string()])
    })
}

fn down(runtime: &Runtime) -> Checked {
    notices(runtime, "with the interface down", |_, container| {
        ip(container, &["link", "set", IFNAME, "down"])
    })
}

fn host_side(runtime: &Runtime) -> Checked {
    notices(runtime, "with the host's end down", |attachment, _| {
        // The last one: a bridge, shared by all, comes before it.
        let host = attachment.result.interfaces.iter().rfind(|interface| interface.sandbox.is_none());
        let Some(host) = host else { return not_applicable("the result lists no interface on the host") };
        runtime.host().ip(&["link", "set", &host.name, "down"])?;
        Ok(())
    })
}

/// Makes an attachment, lets something be spoilt, and wants CHECK to fail. A plugin whose daemon put things right in the
/// meantime may pass, for then all is well; it has to stay well without another ADD.
fn notices(
    runtime: &Runtime,
    about: &str,
    spoil: impl Fn(&Attachment<'_>, &Container) -> Checked,
) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    attachment.check("right after ADD")?;
    let before = seen(runtime, &attachment, &container)?;
    spoil(&attachment, &container)?;
    let answer = attachment.call("CHECK").run()?;
    if answer.ok() {
        let after = seen(runtime, &attachment, &container)?;
        return expect(before == after, || format!("CHECK {about}: expected an error, got success"));
    }
    answer.error(about)?;
    attachment.del(about)
}

/// What the kernel has of an attachment, as text. What it adds by itself a moment after a link is up (IPv6 link-local
/// addresses, their routes, the operational state) is left out.
fn seen(runtime: &Runtime, attachment: &Attachment<'_>, container: &Container) -> Checked<String> {
    let place = container.place();
    let mut text = format!("{:?} {:?}", place.links()?, place.addresses(IFNAME)?);
    for family in ["-4", "-6"] {
        let routes = place.ip(&[family, "route", "show"])?;
        let own = routes.lines().filter(|route| !route.starts_with("fe80") && !route.starts_with("ff00"));
        text.extend(own.map(|route| format!("\n{}", route.trim())));
    }
    let host = runtime.host().links()?;
    for interface in attachment.result.interfaces.iter().filter(|interface| interface.sandbox.is_none()) {
        text += &format!("\n{:?}", host.get(&interface.name));
    }
    Ok(text)
}

fn other_result(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let mut prev = attachment.raw.clone();
    let Some(ip) = prev["ips"].get_mut(0) else { return not_applicable("the result has no address") };
    ip["address"] = if ip["address"].as_str().unwrap_or_default().contains(':') {
        "2001:db8::bad/128".into()
    } else {
        "203.0.113.99/32".into()
    };
    runtime.refused(
        attachment.call("CHECK").key("prevResult", prev),
        "with another address in prevResult",
        &[],
    )?;
    attachment.check("with the right prevResult")
}

fn netns_gone(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    crate::kernel::remove_netns(&container.netns)?;
    let answer = attachment.call("CHECK").run()?;
    answer.error("of a container that is gone")?;
    attachment.del("of a container that is gone")
}

fn later_plugins(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let mut prev = attachment.raw.clone();
    let own = own_index(&prev)?;
    ip(&container, &["address", "add", "198.51.100.77/24", "dev", IFNAME])?;
    ip(&container, &["link", "add", "later0", "type", "bridge"])?;
    // By the gateway that is there, or by none where the network has no IPv4.
    let gateways =
        attachment.raw["ips"].as_array().into_iter().flatten().filter_map(|ip| ip["gateway"].as_str());
    let gateway = gateways.clone().find(|gateway| gateway.contains('.'));
    let mut route = json!({ "dst": "203.0.113.0/24" });
    match gateway {
        Some(gateway) => {
            route["gw"] = gateway.into();
            ip(&container, &["route", "add", "203.0.113.0/24", "via", gateway, "dev", IFNAME, "onlink"])?;
        }
        None => ip(&container, &["route", "add", "203.0.113.0/24", "dev", IFNAME])?,
    }
    let mut address = json!({ "address": "198.51.100.77/24", "interface": own });
    if runtime.newest() < Version::V1_0_0 {
        address["version"] = "4".into();
    }
    let later = json!({ "name": "later0", "sandbox": container.path() });
    for (key, value) in [("ips", address), ("interfaces", later), ("routes", route)] {
        match prev[key].as_array_mut() {
            Some(list) => list.push(value),
            None => prev[key] = json!([value]),
        }
    }
    let about = "after later plugins added an address, a route and an interface";
    attachment.call("CHECK").key("prevResult", prev).run()?.success(about)?.silent(about)?;
    attachment.del(about)
}

fn later_mac(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let mut prev = attachment.raw.clone();
    let (own, mac) = (own_index(&prev)?, "02:00:00:7e:57:01");
    ip(&container, &["link", "set", IFNAME, "address", mac])?;
    prev["interfaces"][own]["mac"] = mac.into();
    let about = "after a later plugin changed the MAC and said so";
    attachment.call("CHECK").key("prevResult", prev).run()?.success(about)?.silent(about)?;
    attachment.del(about)
}

fn own_index(result: &Value) -> Checked<usize> {
    let own = result["interfaces"].as_array().and_then(|list| list.iter().position(|i| i["name"] == IFNAME));
    match own {
        Some(own) => Ok(own),
        None => fail("the result lists no interface of its own"),
    }
}

fn after_del(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    attachment.del("")?;
    runtime.refused(attachment.call("CHECK"), "after DEL", &[]).map(drop)
}

fn repeated(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let attachment = runtime.attach(&container)?;
    let before = seen(runtime, &attachment, &container)?;
    for _ in 0..3 {
        attachment.check("once more")?;
    }
    let after = seen(runtime, &attachment, &container)?;
    expect(before == after, || format!("CHECK changed {before} into {after}"))
}

fn ip(container: &Container, args: &[&str]) -> Checked {
    container.place().ip(args)?;
    Ok(())
}
