// SPDX-License-Identifier: Apache-2.0
//! CHECK: what ADD answered, what netd knows, and what the kernel has must agree.
//!
//! All differences are gathered and told at once, after a time in which they could have gone. What plugins behind us may
//! have changed is told by prevResult, which is the last plugin's: its MAC and MTU go before ours, more links, addresses
//! and routes are none of our business, and routes may have moved to another table.

use std::time::Duration;

use cni_types::{CniError, Code, NetworkConfig, Target};
use netd_api::{AttachmentId, CheckReply, Client};
use netd_host::Netns;
use netd_host::veth::PodLinkSpec;
use tokio::time::{Instant, sleep};

use crate::promise::Promise;
use crate::{netd, wiring};

/// How long a difference, or a netd that cannot be asked, may last before it counts. A runtime may take a failed CHECK
/// for good, and netd may just be restarting, repairing what it found, or attaching programs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Compares; nothing is printed when all is well. Errors: 7 for prevResult, 3 where netns or attachment are gone, 11
/// where netd cannot be asked, 5 with the differences.
pub(crate) async fn check(config: &NetworkConfig, target: &Target, client: &Client) -> Result<(), CniError> {
    let Some(prev) = config.prev_result() else {
        let msg = format!("network config {}: prevResult is missing; CHECK compares with it", config.name);
        return Err(CniError::new(Code::INVALID_CONFIG, msg));
    };
    let promised = Promise::new(prev, &target.ifname)?;
    let mtu = config.mtu()?;
    let netns = wiring::open_netns(&target.netns)?;
    let id = AttachmentId {
        network: config.name.clone(),
        container_id: target.container_id.clone(),
        ifname: target.ifname.clone(),
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = match compare(client, &id, &promised, mtu, &netns).await {
            Ok(differences) if differences.is_empty() => return Ok(()),
            Ok(differences) => CniError::new(Code::IO, format!("attachment {id} is not as ADD made it"))
                .with_details(differences.join("; ")),
            Err(error) => error,
        };
        let may_pass = matches!(error.code, Code::IO | Code::TRY_AGAIN);
        if !may_pass || Instant::now() >= deadline {
            return Err(error);
        }
        tracing::debug!(%error, "not yet as it should be");
        sleep(PAUSE).await;
    }
}

async fn compare(
    client: &Client,
    id: &AttachmentId,
    promised: &Promise,
    mtu: Option<u32>,
    netns: &Netns,
) -> Result<Vec<String>, CniError> {
    let record = match client.check(id).await {
        Ok(record) => record,
        Err(error) if error.is_not_found() => {
            if wiring::container_link(netns, &id.ifname).await?.is_none() {
                return Err(netd::cni_error(error));
            }
            // Code 3 would say that there is nothing to clean up.
            return Ok(vec![format!("{}, but its link is there; DEL it and ADD it again", error)]);
        }
        Err(error) => return Err(netd::cni_error(error)),
    };
    let mut differences = record.differences.clone();
    if record.adopted {
        adopted(id, promised, &record, netns, &mut differences).await?;
    } else {
        own(id, promised, record, mtu, netns, &mut differences).await?;
    }
    Ok(differences)
}

/// A link of ours: both ends, all that is on them, the programs.
async fn own(
    id: &AttachmentId,
    promised: &Promise,
    record: CheckReply,
    mtu: Option<u32>,
    netns: &Netns,
    differences: &mut Vec<String>,
) -> Result<(), CniError> {
    if !record.attached {
        differences.push(format!("no datapath programs are attached to {}", record.host_ifname));
    }
    let found = wiring::container_link(netns, &id.ifname).await?;
    promised.compare_addresses(&record.addresses, found.as_ref(), differences);
    if let Some(host) = wiring::host_link(&record.host_ifname).await? {
        promised.compare_host_mac(&record.host_ifname, host.mac, differences);
    }
    let spec = PodLinkSpec {
        netns,
        ifname: id.ifname.clone(),
        host_ifname: record.host_ifname,
        mac: promised.mac(record.container_mac.as_deref())?,
        mtu: mtu.map_or(record.mtu, |wanted| wanted.min(record.mtu)),
        gso_max_segs: None,
        addresses: record.addresses,
        gateways: record.gateways,
    };
    let of_links = wiring::differences(&spec).await;
    differences
        .extend(of_links.iter().filter(|found| !promised.allows(found, &spec)).map(ToString::to_string));
    Ok(())
}

/// A link that an earlier plugin made: it is there, with the addresses that the pod is published with.
async fn adopted(
    id: &AttachmentId,
    promised: &Promise,
    record: &CheckReply,
    netns: &Netns,
    differences: &mut Vec<String>,
) -> Result<(), CniError> {
    let Some(found) = wiring::container_link(netns, &id.ifname).await? else {
        differences.push(format!("link of {} (pod side): absent instead of present", id.ifname));
        return Ok(());
    };
    promised.compare_published(&record.addresses, &found, differences);
    if let (Some(wanted), Some(mac)) = (promised.mac(None)?, found.link.mac)
        && wanted != mac
    {
        differences.push(format!("MAC of {} (pod side): {mac} instead of {wanted}", id.ifname));
    }
    Ok(())
}
