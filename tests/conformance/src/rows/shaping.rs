// SPDX-License-Identifier: Apache-2.0
//! Capabilities that concern traffic, tried with real traffic: portMappings and bandwidth.

use super::{Group, Row};
use crate::attachment::Attachment;
use crate::interrupt::wait_until;
use crate::runtime::{Container, Runtime};
use crate::talk::{self, HELLO};
use crate::verdict::{Checked, Stop, expect, fail};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Where servers listen inside containers.
const CONTAINER_PORT: u16 = 8080;
/// What the bandwidth row asks for, in bits per second: far below what any veth carries.
const RATE: u64 = 16_000_000;
/// The burst, in bits.
const BURST: u64 = 800_000;
/// How long a mapping may take to work after ADD returned.
const CONVERGENCE: Duration = Duration::from_secs(3);

const fn row(
    name: &'static str,
    title: &'static str,
    capability: &'static str,
    check: fn(&Runtime) -> Checked,
) -> Row {
    Row::new(Group::Conventions, name, title, check).with(capability)
}

pub(super) const ROWS: &[Row] = &[
    row(
        "cap.port",
        "portMappings: the host's port leads to the container's, TCP and UDP",
        "portMappings",
        port,
    ),
    row(
        "cap.port-taken",
        "portMappings: a host port that is taken is refused, and nothing is left",
        "portMappings",
        port_taken,
    ),
    row("cap.port-freed", "portMappings: DEL frees the host port", "portMappings", port_freed),
    row(
        "cap.port-bad",
        "portMappings: ports and protocols that do not exist are refused",
        "portMappings",
        port_bad,
    ),
    row(
        "cap.bandwidth",
        "bandwidth: both directions keep to their rate, in bits per second",
        "bandwidth",
        bandwidth,
    ),
    row("cap.bandwidth-bad", "bandwidth: what is no rate is refused", "bandwidth", bandwidth_bad),
];

/// A mapping of a host port that is the run's own; rows use different numbers.
pub(super) fn mapping(_: &Runtime, number: u16) -> Value {
    let port = host_port(number);
    let entry =
        |protocol: &str| json!({ "hostPort": port, "containerPort": CONTAINER_PORT, "protocol": protocol });
    json!([entry("tcp"), entry("udp")])
}

/// Below the range that the kernel takes for its own (32768 and up), above what services like.
fn host_port(number: u16) -> u16 {
    let own = u16::try_from(std::process::id() % 600).unwrap_or_default();
    20_000 + own * 10 + number
}

fn port(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let call = runtime.add(&container).capability("portMappings", mapping(runtime, 1));
    let attachment = Attachment::make(call, "with portMappings")?;
    for address in attachment.result.addresses() {
        talk::serve(&container, address.addr(), CONTAINER_PORT)?;
        let host = runtime.host().global_address(address.addr().is_ipv6())?;
        let Some(host) = host.or(address.addr().is_ipv4().then_some(IpAddr::V4(Ipv4Addr::LOCALHOST))) else {
            // No address of this family on the host: nothing to map.
            continue;
        };
        for protocol in ["tcp", "udp"] {
            reached(runtime, protocol, SocketAddr::new(host, host_port(1)))?;
        }
    }
    attachment.check("with portMappings")?;
    attachment.del("with portMappings")
}

fn reached(runtime: &Runtime, protocol: &str, to: SocketAddr) -> Checked {
    let mut last = String::new();
    let there = wait_until(CONVERGENCE, || {
        Ok::<_, Stop>(match talk::client(runtime, protocol, to)? {
            Ok(said) => said == HELLO,
            Err(why) => {
                last = why;
                false
            }
        })
    })?;
    expect(there, || format!("{protocol} to {to}: expected the container's answer, got {last}"))
}

fn port_taken(runtime: &Runtime) -> Checked {
    let (first, second) = (runtime.container()?, runtime.container()?);
    let ask = |container: &Container| runtime.add(container).capability("portMappings", mapping(runtime, 2));
    let attachment = Attachment::make(ask(&first), "with portMappings")?;
    runtime.refused(ask(&second), "with a host port that is taken", &[])?;
    attachment.check("of the port's owner")
}

fn port_freed(runtime: &Runtime) -> Checked {
    let (first, second) = (runtime.container()?, runtime.container()?);
    let ask = |container: &Container| runtime.add(container).capability("portMappings", mapping(runtime, 3));
    Attachment::make(ask(&first), "with portMappings")?.del("with portMappings")?;
    runtime.add_after_rest(&ask(&second), "with a host port that was freed").map(drop)
}

fn port_bad(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    for bad in [
        json!([{ "hostPort": 70_000, "containerPort": 80, "protocol": "tcp" }]),
        json!([{ "hostPort": host_port(4), "containerPort": 0, "protocol": "tcp" }]),
        json!([{ "hostPort": host_port(4), "containerPort": 80, "protocol": "frob" }]),
        json!([{ "hostPort": host_port(4), "containerPort": 80, "protocol": "tcp", "hostIP": "x" }]),
    ] {
        let about = format!("with portMappings {bad}");
        runtime.refused(runtime.add(&container).capability("portMappings", bad), &about, &[])?;
    }
    Ok(())
}

fn bandwidth(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let asked =
        json!({ "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST });
    let attachment =
        Attachment::make(runtime.add(&container).capability("bandwidth", asked), "with bandwidth")?;
    let Some(address) = attachment.result.addresses().first().map(ipnet::IpNet::addr) else {
        return fail("the result has no address");
    };
    talk::serve(&container, address, CONTAINER_PORT)?;
    for (how, direction) in [("push", "to the container"), ("pull", "from the container")] {
        let rate = match talk::client(runtime, how, SocketAddr::new(address, CONTAINER_PORT))? {
            Ok(text) => text.parse::<u64>().unwrap_or_default() * 8,
            Err(why) => return fail(format!("{direction}: no transfer: {why}")),
        };
        // A burst and a slow start blur a few seconds' average; a limit that is not there shows as a hundredfold.
        expect((RATE / 4..=RATE * 3 / 2).contains(&rate), || {
            format!("{direction}: expected about {RATE} bits per second, got {rate}")
        })?;
    }
    attachment.check("with bandwidth")?;
    attachment.del("with bandwidth")
}

fn bandwidth_bad(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    for bad in [
        json!({ "ingressRate": "fast", "ingressBurst": BURST }),
        json!({ "ingressRate": -1, "ingressBurst": BURST }),
    ] {
        let about = format!("with bandwidth {bad}");
        runtime.refused(runtime.add(&container).capability("bandwidth", bad), &about, &[])?;
    }
    Ok(())
}
