// SPDX-License-Identifier: Apache-2.0
//! ADD later in a chain: `prevResult`.

use super::{Group, Row};
use crate::attachment::Attachment;
use crate::kernel::Place;
use crate::result::AddResult;
use crate::runtime::{Container, IFNAME, Runtime};
use crate::verdict::{Checked, Stop, expect, fail, not_applicable};
use crate::version::Version;
use serde_json::{Value, json};

/// Another plugin's interface, and what it is said to have (TEST-NET-2, RFC 5737).
const FOREIGN: &str = "foreign0";
const FOREIGN_ADDRESS: &str = "198.51.100.9/24";

pub(super) const ROWS: &[Row] = &[
    Row::new(
        Group::Add,
        "add.prev-result",
        "prevResult is passed through, extended by the plugin's own interface",
        extended,
    ),
    Row::new(
        Group::Add,
        "add.prev-result-own",
        "Behind another main plugin ADD adjusts CNI_IFNAME and echoes prevResult",
        adopted,
    ),
    Row::new(Group::Add, "add.prev-result-bad", "A prevResult that is damaged is refused", damaged),
];

fn extended(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let place = container.place();
    place.ip(&["link", "add", FOREIGN, "type", "bridge"])?;
    let prev = give(runtime, &container, &place, FOREIGN)?;
    let attachment =
        Attachment::make(runtime.add(&container).key("prevResult", prev.clone()), "with prevResult")?;
    kept(&attachment, &prev)?;
    expect(attachment.result.own(IFNAME, &container.path()).is_some(), || {
        format!("the result does not list the plugin's own {IFNAME}")
    })?;
    if runtime.newest() >= Version::V0_4_0 {
        attachment.check("later in a chain")?;
    }
    attachment.del("later in a chain")?;
    expect(place.link(FOREIGN)?.is_some(), || "DEL took the other plugin's interface along".to_owned())
}

fn adopted(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let (place, peer) = (container.place(), format!("c{}", container.id));
    let peer: String = peer.chars().rev().take(12).collect();
    let host = runtime.host();
    host.ip(&["link", "add", &peer, "type", "veth", "peer", "name", IFNAME, "netns", &container.netns])?;
    host.ip(&["link", "set", &peer, "up"])?;
    let mut prev = give(runtime, &container, &place, IFNAME)?;
    let mac = host.link(&peer)?.map(|link| link.mac);
    if let Some(list) = prev["interfaces"].as_array_mut() {
        list.push(json!({ "name": peer, "mac": mac }));
    }
    let before = place.link(IFNAME)?;
    let answer = runtime.add(&container).key("prevResult", prev.clone()).run()?;
    if !answer.ok() {
        let error = answer.error("behind another main plugin")?;
        return not_applicable(format!("the plugin makes interfaces itself: {}", error.told()));
    }
    let attachment = Attachment::from_answer(runtime.add(&container), answer, "behind another main plugin")?;
    kept(&attachment, &prev)?;
    expect(place.link(IFNAME)? == before, || {
        format!("the other plugin's {IFNAME} was {before:?} and changed")
    })?;
    if runtime.newest() >= Version::V0_4_0 {
        attachment.check("behind another main plugin")?;
    }
    attachment.del("behind another main plugin")?;
    attachment.del("behind another main plugin, twice")?;
    expect(place.link(IFNAME)? == before, || format!("DEL took the other plugin's {IFNAME} along"))
}

fn damaged(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let version = runtime.newest().to_string();
    for (about, prev) in [
        ("that is a number", json!(17)),
        ("with a list for ips", json!({ "cniVersion": version, "ips": "x" })),
        (
            "with an address that is none",
            json!({ "cniVersion": version, "ips": [{ "address": "300.1.1.1/24" }] }),
        ),
    ] {
        let call = runtime.add(&container).key("prevResult", prev);
        runtime.refused(call, &format!("with a prevResult {about}"), &[])?;
    }
    Ok(())
}

/// Gives a link an address as another plugin would; its result.
fn give(runtime: &Runtime, container: &Container, place: &Place, ifname: &str) -> Checked<Value> {
    place.ip(&["link", "set", ifname, "up"])?;
    place.ip(&["address", "add", FOREIGN_ADDRESS, "dev", ifname])?;
    let Some(link) = place.link(ifname)? else {
        return Err(Stop::Runner(anyhow::anyhow!("{ifname} vanished")));
    };
    let mut ip = json!({ "address": FOREIGN_ADDRESS, "interface": 0 });
    if runtime.newest() < Version::V1_0_0 {
        ip["version"] = "4".into();
    }
    Ok(json!({
        "cniVersion": runtime.newest().to_string(),
        "interfaces": [{ "name": ifname, "mac": link.mac, "sandbox": container.path() }],
        "ips": [ip],
        "routes": [{ "dst": "198.51.100.0/24" }],
        "dns": { "nameservers": ["192.0.2.53"] },
    }))
}

/// What prevResult had is in the result.
fn kept(attachment: &Attachment<'_>, prev: &Value) -> Checked {
    let Ok(prev) = AddResult::parse(prev) else { return fail("the runner's own prevResult is wrong") };
    let result = &attachment.result;
    for wanted in &prev.interfaces {
        let there = result.interfaces.iter().any(|i| i.name == wanted.name && i.sandbox == wanted.sandbox);
        expect(there, || format!("the interface {} of prevResult is not in the result", wanted.name))?;
    }
    for wanted in &prev.ips {
        let name_of = |result: &AddResult, index: Option<usize>| {
            index.and_then(|index| result.interfaces.get(index)).map(|interface| interface.name.clone())
        };
        let place = name_of(&prev, wanted.interface);
        let found = result.ips.iter().find(|ip| ip.address == wanted.address);
        let there = found.is_some_and(|ip| name_of(result, ip.interface) == place);
        expect(there, || format!("{} of prevResult, on {place:?}, is not in the result", wanted.address))?;
    }
    for (dst, _) in &prev.routes {
        let there = result.routes.iter().any(|(other, _)| other == dst);
        expect(there, || format!("the route to {dst} of prevResult is not in the result"))?;
    }
    for server in prev.dns_list("nameservers") {
        expect(result.dns_list("nameservers").contains(&server), || {
            format!("the name server {server} of prevResult is not in the result")
        })?;
    }
    Ok(())
}
