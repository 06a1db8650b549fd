// SPDX-License-Identifier: Apache-2.0
//! Capabilities that concern the interface itself: ips, mac, ipRanges, dns, and those that are only passed on.

use super::{Group, Row};
use crate::attachment::Attachment;
use crate::runtime::{IFNAME, Runtime};
use crate::verdict::{Checked, expect, fail};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const fn row(
    name: &'static str,
    title: &'static str,
    capability: &'static str,
    check: fn(&Runtime) -> Checked,
) -> Row {
    Row::new(Group::Conventions, name, title, check).with(capability)
}

pub(super) const ROWS: &[Row] = &[
    row("cap.ips", "ips: the container gets the address asked for", "ips", ips),
    row("cap.ips-taken", "ips: an address that is taken is refused, and nothing is left", "ips", ips_taken),
    row(
        "cap.ips-foreign",
        "ips: an address that no pool has is refused, and nothing is left",
        "ips",
        ips_foreign,
    ),
    row("cap.ips-bad", "ips: what is no address is refused", "ips", ips_bad),
    row(
        "cap.ips-precedence",
        "runtimeConfig.ips comes before args.cni.ips, and that before IP in CNI_ARGS",
        "ips",
        precedence,
    ),
    row("cap.mac", "mac: the interface gets the MAC asked for, and the result says so", "mac", mac),
    row("cap.mac-bad", "mac: what is no MAC of one interface is refused", "mac", mac_bad),
    row("cap.ip-ranges", "ipRanges: the address is from the ranges asked for", "ipRanges", ip_ranges),
    row("cap.dns", "dns: servers, searches and options are in the result", "dns", dns),
    row("cap.aliases", "aliases are accepted", "aliases", aliases),
    row("cap.cgroup-path", "cgroupPath is accepted", "cgroupPath", cgroup_path),
    row("cap.device-id", "deviceID is accepted", "deviceID", device_id),
    row("cap.infiniband-guid", "infinibandGUID is accepted", "infinibandGUID", infiniband_guid),
];

/// Addresses of the network that are likely to be free: near what the first ADD got, one of each family.
pub(super) fn spare_addresses(runtime: &Runtime) -> Checked<Vec<String>> {
    Ok(near(runtime, 0x28)?.iter().map(ToString::to_string).collect())
}

fn near(runtime: &Runtime, distance: u8) -> Checked<Vec<IpAddr>> {
    match runtime.sample.get() {
        Some(sample) if !sample.is_empty() => {
            Ok(sample.iter().map(|address| beside(address.addr(), distance)).collect())
        }
        _ => fail("the first ADD of the run gave no address"),
    }
}

/// An address with some of the lowest six bits turned over: inside any block of 64.
fn beside(address: IpAddr, distance: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() ^ u32::from(distance)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() ^ u128::from(distance)).into(),
    }
}

fn ips(runtime: &Runtime) -> Checked {
    let wanted = near(runtime, 0x29)?;
    let container = runtime.container()?;
    let texts: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    let call = runtime.add(&container).capability("ips", texts);
    let attachment = runtime.add_after_rest(&call, "with ips")?;
    expect_addresses(&attachment.result.addresses(), &wanted, "the result")?;
    expect_addresses(&container.place().addresses(IFNAME)?, &wanted, "the container")
}

fn expect_addresses(got: &[IpNet], wanted: &[IpAddr], whose: &str) -> Checked {
    let all = wanted.iter().all(|wanted| got.iter().any(|got| got.addr() == *wanted));
    expect(all && got.len() == wanted.len(), || format!("expected {wanted:?}, {whose} has {got:?}"))
}

fn ips_taken(runtime: &Runtime) -> Checked {
    let (first, second) = (runtime.container()?, runtime.container()?);
    let attachment = runtime.attach(&first)?;
    let taken: Vec<String> = attachment.result.addresses().iter().map(|a| a.addr().to_string()).collect();
    let call = runtime.add(&second).capability("ips", taken);
    runtime.refused(call, "with an address that is taken", &[])?;
    let there = first.place().addresses(IFNAME)?;
    expect(attachment.result.addresses().iter().all(|address| there.contains(address)), || {
        format!("the owner of the address has {there:?} now")
    })
}

fn ips_foreign(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    // TEST-NET-3, RFC 5737.
    let call = runtime.add(&container).capability("ips", json!(["203.0.113.7"]));
    runtime.refused(call, "with an address of no pool", &[])?;
    runtime.attach(&container)?.del("after a refused address")
}

fn ips_bad(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    for bad in [json!(["10.0.0.300"]), json!(["x"]), json!("10.0.0.1")] {
        let about = format!("with ips {bad}");
        runtime.refused(runtime.add(&container).capability("ips", bad), &about, &[])?;
    }
    Ok(())
}

fn precedence(runtime: &Runtime) -> Checked {
    let lists = [0x2a, 0x2b, 0x2c].map(|distance| near(runtime, distance));
    let [first, second, third] = lists;
    let (first, second, third) = (first?, second?, third?);
    let texts = |list: &[IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (about, capability, wanted) in
        [("with all three", true, &first), ("with args.cni.ips and CNI_ARGS", false, &second)]
    {
        let container = runtime.container()?;
        let mut call = runtime
            .add(&container)
            .key("args", json!({ "cni": { "ips": texts(&second) } }))
            .env("CNI_ARGS", &format!("IgnoreUnknown=1;IP={}", texts(&third)[0]));
        if capability {
            call = call.capability("ips", texts(&first));
        }
        let attachment = runtime.add_after_rest(&call, about)?;
        expect_addresses(&attachment.result.addresses(), wanted, &format!("the result {about}"))?;
        attachment.del(about)?;
    }
    Ok(())
}

fn mac(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let wanted = "c2:11:22:33:44:55";
    let attachment = Attachment::make(runtime.add(&container).capability("mac", wanted), "with mac")?;
    let there = container.place().link(IFNAME)?.map(|link| link.mac);
    expect(there.as_deref() == Some(wanted), || format!("expected {wanted}, the kernel has {there:?}"))?;
    let said = attachment.result.own(IFNAME, &container.path()).and_then(|(_, own)| own.mac.clone());
    expect(said.as_deref().is_some_and(|said| said.eq_ignore_ascii_case(wanted)), || {
        format!("expected {wanted}, the result says {said:?}")
    })
}

fn mac_bad(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    // A group address (IEEE 802) is no interface's own.
    for bad in ["c2:11:22:33:44", "x", "ff:ff:ff:ff:ff:ff"] {
        let call = runtime.add(&container).capability("mac", bad);
        runtime.refused(call, &format!("with the MAC {bad:?}"), &[])?;
    }
    Ok(())
}

fn ip_ranges(runtime: &Runtime) -> Checked {
    let Some(sample) = runtime.sample.get().filter(|sample| !sample.is_empty()) else {
        return fail("the first ADD of the run gave no address");
    };
    let (mut ranges, mut bounds) = (Vec::new(), Vec::new());
    for address in sample.iter().map(IpNet::addr) {
        // Eight addresses beside the first one's, in a subnet that holds both.
        let (start, end) = match beside(address, 0x30) {
            IpAddr::V4(v4) => {
                let start = v4.to_bits() & !7;
                (IpAddr::V4(Ipv4Addr::from_bits(start)), IpAddr::V4(Ipv4Addr::from_bits(start | 7)))
            }
            IpAddr::V6(v6) => {
                let start = v6.to_bits() & !7;
                (IpAddr::V6(Ipv6Addr::from_bits(start)), IpAddr::V6(Ipv6Addr::from_bits(start | 7)))
            }
        };
        let subnet = IpNet::new_assert(address, if address.is_ipv4() { 24 } else { 64 }).trunc();
        ranges.push(json!([{ "subnet": subnet, "rangeStart": start, "rangeEnd": end }]));
        bounds.push(start..=end);
    }
    let container = runtime.container()?;
    let call = runtime.add(&container).capability("ipRanges", ranges);
    let attachment = runtime.add_after_rest(&call, "with ipRanges")?;
    let got = attachment.result.addresses();
    for range in &bounds {
        expect(got.iter().any(|address| range.contains(&address.addr())), || {
            format!("expected an address of {range:?}, got {got:?}")
        })?;
    }
    Ok(())
}

fn dns(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let asked = json!({ "servers": ["192.0.2.53", "192.0.2.54"], "searches": ["a.example.test"], "options": ["ndots:3"] });
    let attachment = Attachment::make(runtime.add(&container).capability("dns", asked), "with dns")?;
    for (key, wanted) in [
        ("nameservers", &["192.0.2.53", "192.0.2.54"][..]),
        ("search", &["a.example.test"]),
        ("options", &["ndots:3"]),
    ] {
        let got = attachment.result.dns_list(key);
        expect(got == wanted, || format!("expected dns.{key} {wanted:?}, got {got:?}"))?;
    }
    Ok(())
}

fn aliases(runtime: &Runtime) -> Checked {
    accepted(runtime, "aliases", json!(["conformance-a", "conformance-b"]))
}

fn cgroup_path(runtime: &Runtime) -> Checked {
    accepted(runtime, "cgroupPath", json!("/kubepods.slice/kubepods-besteffort.slice/conformance"))
}

fn device_id(runtime: &Runtime) -> Checked {
    accepted(runtime, "deviceID", json!("0000:04:00.5"))
}

fn infiniband_guid(runtime: &Runtime) -> Checked {
    accepted(runtime, "infinibandGUID", json!("c2:11:22:33:44:55:66:77"))
}

fn accepted(runtime: &Runtime, capability: &str, value: Value) -> Checked {
    let container = runtime.container()?;
    let attachment = Attachment::make(
        runtime.add(&container).capability(capability, value),
        &format!("with {capability}"),
    )?;
    attachment.del(&format!("with {capability}"))
}
