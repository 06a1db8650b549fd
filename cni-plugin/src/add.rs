// SPDX-License-Identifier: Apache-2.0
//! ADD: check everything, allocate, make the link, commit; what was done is undone when a later step fails.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_types::{
    AddOptions, AddResult, CniError, Code, Dns, Interface, IpConfig, NetworkConfig, Route, Target,
};
use ipnet::IpNet;
use netd_api::{
    AllocateReply, AllocateRequest, AttachmentId, Client, ClientError, CommitRequest, DnsReply, PodIdentity,
};
use netd_host::Netns;
use netd_host::veth::{PodLink, PodLinkSpec};
use netd_plan::{Mac, host_veth_name};
use serde_json::Value;

use crate::{netd, wiring};

/// Makes the attachment and returns its result in the caller's version.
pub(crate) async fn add(config: &NetworkConfig, target: &Target) -> Result<Value, CniError> {
    config.refuse_unsupported()?;
    let options = AddOptions::gather(config, &target.args)?;
    if config.prev_result().is_some() {
        let msg =
            format!("network config {}: prevResult is set; weft-cni has to be the first plugin", config.name);
        return Err(CniError::new(Code::INVALID_CONFIG, msg));
    }
    let id = AttachmentId {
        network: config.name.clone(),
        container_id: target.container_id.clone(),
        ifname: target.ifname.clone(),
    };
    let host_ifname = host_veth_name(&id.network, &id.container_id, &id.ifname);
    let netns = wiring::open_netns(&target.netns)?;
    wiring::refuse_existing(&netns, &target.ifname, &host_ifname).await?;

    let client = netd::client(config, netd::REQUEST_TIMEOUT);
    netd::settle_deferred(&client, &id).await?;
    let allocated = allocate(&client, &id, &options).await?;
    let attached = attach(&client, &id, &options, &netns, target, &allocated).await;
    if attached.is_err() {
        undo(&client, &id, &allocated.host_ifname).await;
    }
    let link = attached?;
    tracing::info!(addresses = ?allocated.addresses, host = %allocated.host_ifname, "attached");
    result(&options, &allocated, &link, target).to_json(config.version)
}

async fn allocate(
    client: &Client,
    id: &AttachmentId,
    options: &AddOptions,
) -> Result<AllocateReply, CniError> {
    let request = AllocateRequest {
        network: id.network.clone(),
        container_id: id.container_id.clone(),
        ifname: id.ifname.clone(),
        pod: options.pod.clone().map(|pod| PodIdentity {
            namespace: pod.namespace,
            name: pod.name,
            uid: pod.uid,
        }),
        labels: options.labels.clone(),
        requested_ips: options.requested_ips.clone(),
    };
    let outcome = client.allocate(&request).await;
    if matches!(outcome, Err(ClientError::Disconnected { .. } | ClientError::TimedOut { .. })) {
        // Whether it was carried out is unknown. No link of this name exists, so nothing that lives is given up.
        give_back(client, id).await;
    }
    outcome.map_err(netd::cni_error)
}

async fn attach(
    client: &Client,
    id: &AttachmentId,
    options: &AddOptions,
    netns: &Netns,
    target: &Target,
    allocated: &AllocateReply,
) -> Result<PodLink, CniError> {
    let spec = PodLinkSpec {
        netns,
        ifname: id.ifname.clone(),
        host_ifname: allocated.host_ifname.clone(),
        mac: options.mac.map(Mac),
        mtu: mtu(options, allocated),
        addresses: allocated.addresses.clone(),
        gateway: allocated.gateway,
    };
    let link = wiring::create(&spec).await?;
    let request = CommitRequest {
        network: id.network.clone(),
        container_id: id.container_id.clone(),
        ifname: id.ifname.clone(),
        netns: target.netns.clone(),
        host_index: link.host_index,
        host_mac: link.host_mac.to_string(),
        container_mac: link.container_mac.to_string(),
    };
    client.commit(&request).await.map_err(netd::cni_error)?;
    Ok(link)
}

/// Takes back what this ADD did, as far as it can; the first error is the one that the runtime hears.
async fn undo(client: &Client, id: &AttachmentId, host_ifname: &str) {
    // netd first: it detaches from the link before the link goes.
    give_back(client, id).await;
    if let Err(error) = wiring::delete(host_ifname).await {
        tracing::warn!(host = host_ifname, %error, "the host link could not be removed");
    }
}

async fn give_back(client: &Client, id: &AttachmentId) {
    if let Err(error) = netd::release(client, id).await {
        tracing::warn!(%error, "the allocation stays until DEL, or until netd finds it uncommitted");
    }
}

/// The config may ask for less than the path carries, never for more.
fn mtu(options: &AddOptions, allocated: &AllocateReply) -> u32 {
    options.mtu.map_or(allocated.mtu, |wanted| wanted.min(allocated.mtu))
}

fn result(options: &AddOptions, allocated: &AllocateReply, link: &PodLink, target: &Target) -> AddResult {
    let mtu = Some(mtu(options, allocated));
    let host = Interface {
        name: allocated.host_ifname.clone(),
        mac: Some(link.host_mac.to_string()),
        mtu,
        ..Interface::default()
    };
    let container = Interface {
        name: target.ifname.clone(),
        mac: Some(link.container_mac.to_string()),
        mtu,
        sandbox: Some(target.netns.clone()),
        ..Interface::default()
    };
    let gateway_of = |address: &IpNet| {
        Some(allocated.gateway).filter(|gateway| gateway.is_ipv4() == address.addr().is_ipv4())
    };
    let ips = allocated.addresses.iter().map(|address| IpConfig {
        address: *address,
        gateway: gateway_of(address),
        interface: Some(1),
    });
    AddResult {
        interfaces: vec![host, container],
        ips: ips.collect(),
        routes: vec![Route { gw: Some(allocated.gateway), ..Route::to(everything(allocated.gateway)) }],
        dns: options.dns.clone().unwrap_or_else(|| dns(&allocated.dns)),
    }
}

/// The destination of a default route in the gateway's family.
fn everything(gateway: IpAddr) -> IpNet {
    let unspecified = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new_assert(unspecified, 0)
}

fn dns(reply: &DnsReply) -> Dns {
    Dns {
        nameservers: reply.nameservers.iter().map(ToString::to_string).collect(),
        domain: reply.domain.clone(),
        search: reply.search.clone(),
        options: reply.options.clone(),
    }
}
