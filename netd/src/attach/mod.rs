// SPDX-License-Identifier: Apache-2.0
//! What weft-cni asks for: allocate, commit, release, check. Each is idempotent or says clearly why not; an ADD that died
//! half-way leaves a pending attachment, which DEL removes, and the sweep where no DEL comes.

mod allocate;
mod check;
mod commit;
mod fast_path;
mod follow;
mod listeners;
mod mtu;
mod ports;
mod release;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipam::AttachmentKey;
use netd_api::{ApiError, AttachmentId, DnsReply};

pub(crate) use allocate::{allocate, refusal};
pub(crate) use check::check;
pub(crate) use commit::{commit, label};
pub(crate) use fast_path::{Chains, fast_path};
pub(crate) use follow::{follow_all, follow_mac};
pub(crate) use mtu::follow_mtu;
pub(crate) use ports::host_ports;
pub(crate) use release::{release, release_when};

use crate::attachments::Attachment;
use crate::node::{Node, lock};
use crate::services;

/// Resolvers read no more (`MAXNS` in resolv.h).
const NAMESERVERS_MAX: usize = 3;
/// The pods' IPv4 gateway: no address of any host, only a neighbour entry that leads to the host veth.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pods' IPv6 gateway: link-local, on the host end of every veth.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn key_of(id: &AttachmentId) -> AttachmentKey {
    AttachmentKey::new(&id.network, &id.container_id, &id.ifname)
}

/// The gateways of a pod with these addresses.
fn gateways(attachment: &Attachment) -> Vec<IpAddr> {
    if attachment.adopted {
        return Vec::new();
    }
    let v4 = attachment.ips.iter().any(IpAddr::is_ipv4).then_some(IpAddr::V4(GATEWAY_V4));
    let v6 = attachment.ips.iter().any(IpAddr::is_ipv6).then_some(IpAddr::V6(GATEWAY_V6));
    v4.into_iter().chain(v6).collect()
}

/// The node's own servers first, the cluster's VIP second; the search path and `ndots` of Kubernetes' ClusterFirst. A question that
/// was on its way when netd died waits for a server that is not there: the next one is asked after a second, not after five
/// (resolv.conf(5)), and what upstreams are slow at is asked for once, however often the client asks.
fn pod_dns(node: &Node, attachment: &Attachment) -> DnsReply {
    let view = node.view.load();
    let (zone, namespace) = (&view.config.dns_zone, &attachment.namespace);
    // A server that the pod has no address to ask from would cost it a time-out for each name.
    let reaches = |server: &IpAddr| attachment.ips.iter().any(|ip| ip.is_ipv4() == server.is_ipv4());
    let servers = node.config.dns_addresses.iter().copied().chain(view.config.dns_vips());
    DnsReply {
        nameservers: servers.filter(reaches).take(NAMESERVERS_MAX).collect(),
        domain: Some(zone.clone()),
        search: vec![format!("{namespace}.svc.{zone}"), format!("svc.{zone}"), zone.clone()],
        options: ["ndots:5", "timeout:1", "attempts:3"].map(str::to_owned).into(),
    }
}

/// Programs and map entries of one attachment; nothing for an adopted link.
pub(crate) fn attach(node: &Node, attachment: &Attachment) -> Result<(), ebpf_loader::AttachError> {
    if attachment.adopted {
        return Ok(());
    }
    lock(&node.datapath).attach_pod(&ebpf_loader::PodAttachment {
        host_ifname: attachment.host_ifname.clone(),
        host_index: attachment.host_index,
        addresses: attachment.ips.clone(),
        mac: attachment.container_mac.0,
        host_mac: attachment.host_mac.0,
        redirect: fast_path(node, attachment).is_ok(),
    })?;
    services::enter_netns(node, attachment);
    Ok(())
}

fn detach(node: &Node, attachment: &Attachment) -> Result<(), ApiError> {
    if attachment.adopted || attachment.host_index == 0 {
        return Ok(());
    }
    services::leave_netns(node, &attachment.key);
    lock(&node.datapath)
        .detach_pod(attachment.host_index, &attachment.ips)
        .map_err(|e| ApiError::fatal(format!("cannot detach {}: {e}", attachment.host_ifname)))
}
