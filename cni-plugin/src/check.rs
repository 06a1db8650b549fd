// SPDX-License-Identifier: Apache-2.0
//! CHECK: what ADD answered, what netd knows, and what the kernel has must agree.

use std::collections::BTreeSet;
use std::time::Duration;

use cni_types::{AddResult, CniError, Code, NetworkConfig, Target};
use ipnet::IpNet;
use netd_api::{AttachmentId, CheckReply, Client};
use netd_host::Netns;
use netd_host::veth::PodLinkSpec;
use netd_plan::Mac;
use tokio::time::{Instant, sleep};

use crate::{netd, wiring};

/// How long a difference may last before it counts. A runtime may take a failed CHECK for good, and netd may just be
/// repairing what it found or attaching programs after a restart.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Compares; nothing is printed when all is well. Errors: 7 for prevResult, 3 where netns or attachment are gone, 11
/// where netd cannot be asked, 5 with the differences.
pub(crate) async fn check(config: &NetworkConfig, target: &Target) -> Result<(), CniError> {
    let Some(prev) = config.prev_result() else {
        let msg = format!("network config {}: prevResult is missing; CHECK compares with it", config.name);
        return Err(CniError::new(Code::INVALID_CONFIG, msg));
    };
    let promised = Promise::new(&AddResult::from_prev_result(prev)?, target)?;
    let mtu = config.mtu()?;
    let netns = wiring::open_netns(&target.netns)?;
    let client = netd::client(config, netd::REQUEST_TIMEOUT);
    let id = AttachmentId {
        network: config.name.clone(),
        container_id: target.container_id.clone(),
        ifname: target.ifname.clone(),
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match compare(&client, &id, &promised, mtu, &netns).await {
            Err(error) if error.code == Code::IO && Instant::now() < deadline => {
                tracing::debug!(%error, "not yet as it should be");
                sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

async fn compare(
    client: &Client,
    id: &AttachmentId,
    promised: &Promise,
    mtu: Option<u32>,
    netns: &Netns,
) -> Result<(), CniError> {
    let record = client.check(id).await.map_err(netd::cni_error)?;
    let mac = promised.compare(id, &record)?;
    let spec = PodLinkSpec {
        netns,
        ifname: id.ifname.clone(),
        host_ifname: record.host_ifname,
        mac,
        mtu: mtu.map_or(record.mtu, |wanted| wanted.min(record.mtu)),
        addresses: record.addresses,
        gateway: record.gateway,
    };
    wiring::compare(&spec).await
}

/// What ADD answered about this link. Plugins after us may have added links and addresses of theirs.
struct Promise {
    addresses: BTreeSet<IpNet>,
    mac: Option<String>,
}

impl Promise {
    fn new(result: &AddResult, target: &Target) -> Result<Self, CniError> {
        let own =
            result.interfaces.iter().position(|link| link.name == target.ifname && link.sandbox.is_some());
        let Some(own) = own else {
            let msg = format!(
                "prevResult lists no interface {} in a sandbox; is it from another plugin?",
                target.ifname
            );
            return Err(CniError::new(Code::INVALID_CONFIG, msg));
        };
        Ok(Self {
            addresses: result
                .ips
                .iter()
                .filter(|ip| ip.interface == Some(own))
                .map(|ip| ip.address)
                .collect(),
            mac: result.interfaces[own].mac.clone(),
        })
    }

    /// The MAC that the container end must have. Errors: 5 where netd's record says something else than ADD did.
    fn compare(&self, id: &AttachmentId, record: &CheckReply) -> Result<Option<Mac>, CniError> {
        let mut differences = Vec::new();
        for address in record.addresses.iter().filter(|address| !self.addresses.contains(address)) {
            differences.push(format!("netd's record has {address}, prevResult does not"));
        }
        for address in self.addresses.iter().filter(|address| !record.addresses.contains(address)) {
            differences.push(format!("prevResult has {address}, netd's record does not"));
        }
        if !record.attached {
            differences.push(format!("no datapath programs are attached to {}", record.host_ifname));
        }
        // Another plugin (tuning) may have changed the MAC after us; then its result counts.
        let mac = self.mac.as_deref().or(record.container_mac.as_deref()).map(str::parse::<Mac>);
        let mac = mac
            .transpose()
            .map_err(|error| CniError::new(Code::INVALID_CONFIG, format!("prevResult: {error}")))?;
        if differences.is_empty() {
            return Ok(mac);
        }
        let msg = format!("attachment {id} is not as ADD made it");
        Err(CniError::new(Code::IO, msg).with_details(differences.join("; ")))
    }
}
