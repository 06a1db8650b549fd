// SPDX-License-Identifier: Apache-2.0
//! ADD: check everything, allocate, make the link, commit; what was done is undone when a later step fails.
//!
//! Where an earlier plugin of the chain made the link already, none is made: netd publishes the pod with what is there.

use cni_types::{AddOptions, AddResult, Chained, CniError, Code, NetworkConfig, Target};
use netd_api::{AdoptedLink, AllocateReply, AttachmentId, Client, ClientError, CommitRequest};
use netd_host::Netns;
use netd_host::veth::{PodLink, PodLinkSpec};
use netd_plan::{Mac, host_veth_name};
use serde_json::Value;

use crate::{netd, request, wiring};

/// Makes the attachment and returns its result in the caller's version.
pub(crate) async fn add(config: &NetworkConfig, target: &Target, client: &Client) -> Result<Value, CniError> {
    config.refuse_unsupported()?;
    let options = AddOptions::gather(config, &target.ifname, &target.args)?;
    for ignored in &options.ignored {
        tracing::info!("ignored: {ignored}");
    }
    let chained = config.prev_result().map(Chained::parse).transpose()?;
    let id = AttachmentId {
        network: config.name.clone(),
        container_id: target.container_id.clone(),
        ifname: target.ifname.clone(),
    };
    let netns = wiring::open_netns(&target.netns)?;
    let host_ifname = host_veth_name(&id.network, &id.container_id, &id.ifname);
    wiring::refuse_host_link(&host_ifname)?;
    let call = Call { config, target, client, id, options, netns, host_ifname };
    match chained {
        Some(chained) if chained.sandbox_link(&target.ifname).is_some() => call.adopt(&chained).await,
        chained => call.make(chained.as_ref()).await,
    }
}

/// One ADD whose input is in order.
struct Call<'a> {
    config: &'a NetworkConfig,
    target: &'a Target,
    client: &'a Client,
    id: AttachmentId,
    options: AddOptions,
    netns: Netns,
    host_ifname: String,
}

impl Call<'_> {
    /// With a link of our own.
    async fn make(&self, chained: Option<&Chained>) -> Result<Value, CniError> {
        wiring::refuse_container_link(&self.netns, &self.id.ifname)?;
        let allocated = self.allocate(None).await?;
        let attached = self.attach(&allocated, chained).await;
        if attached.is_err() {
            undo(self.client, &self.id, &self.host_ifname).await;
        }
        let result = attached?;
        tracing::info!(addresses = ?allocated.addresses, host = %allocated.host_ifname, "attached");
        Ok(result)
    }

    async fn attach(&self, allocated: &AllocateReply, chained: Option<&Chained>) -> Result<Value, CniError> {
        if allocated.host_ifname != self.host_ifname {
            let msg = format!(
                "netd wants the host link {:?}, weft-cni makes {:?}: install both from one version",
                allocated.host_ifname, self.host_ifname
            );
            return Err(CniError::new(Code::IO, msg));
        }
        let spec = PodLinkSpec {
            netns: &self.netns,
            ifname: self.id.ifname.clone(),
            host_ifname: self.host_ifname.clone(),
            mac: self.options.mac.map(Mac),
            mtu: request::mtu(&self.options, allocated),
            gso_max_segs: allocated.gso_max_segs,
            addresses: allocated.addresses.clone(),
            gateways: allocated.gateways.clone(),
        };
        let link = wiring::create(&spec).await?;
        // Before the commit, so that after it nothing is left that can fail.
        let result =
            self.result(&request::own_result(&self.options, allocated, &link, self.target), chained)?;
        self.commit(&link).await?;
        Ok(result)
    }

    fn result(&self, own: &AddResult, chained: Option<&Chained>) -> Result<Value, CniError> {
        match chained {
            Some(chained) => chained.extend(own, self.config.version),
            None => own.to_json(self.config.version),
        }
    }

    /// With the link that an earlier plugin made.
    async fn adopt(&self, chained: &Chained) -> Result<Value, CniError> {
        let ifname = &self.id.ifname;
        let found = wiring::container_mac(&self.netns, ifname).await?;
        let addresses = chained.addresses_of(ifname);
        if addresses.is_empty() {
            let msg = format!(
                "prevResult has no address on {ifname}: weft-cni has nothing to publish the pod with"
            );
            return Err(CniError::new(Code::INVALID_CONFIG, msg));
        }
        let promised = chained.sandbox_link(ifname).and_then(|link| link.mac.clone());
        let mac = promised.or_else(|| found.map(|mac| mac.to_string()));
        let allocated = self.allocate(Some(AdoptedLink { addresses, mac })).await?;
        let committed = async {
            let dns = request::dns(&self.options, &allocated);
            let result = chained.echo(&dns, self.config.version)?;
            let none = PodLink {
                host_index: 0,
                host_mac: Mac::default(),
                container_mac: found.unwrap_or_default(),
                container_index: 0,
            };
            self.commit(&none).await?;
            Ok(result)
        }
        .await;
        match committed {
            Ok(result) => {
                tracing::info!(addresses = ?allocated.addresses, "published with the link that was there");
                Ok(result)
            }
            Err(error) => {
                give_back(self.client, &self.id).await;
                Err(error)
            }
        }
    }

    async fn allocate(&self, adopted: Option<AdoptedLink>) -> Result<AllocateReply, CniError> {
        netd::settle_deferred(self.client, &self.id).await?;
        let makes_link = adopted.is_none();
        let outcome = self.client.allocate(&request::allocate(&self.id, &self.options, adopted)).await;
        if makes_link
            && matches!(outcome, Err(ClientError::Disconnected { .. } | ClientError::TimedOut { .. }))
        {
            // Whether it was carried out is unknown. No link of this name exists, so nothing that lives is given up; an
            // adopted link would prove nothing, so there it stays with the runtime's DEL, or with netd's sweep.
            give_back(self.client, &self.id).await;
        }
        outcome.map_err(netd::cni_error)
    }

    async fn commit(&self, link: &PodLink) -> Result<(), CniError> {
        let request = CommitRequest {
            network: self.id.network.clone(),
            container_id: self.id.container_id.clone(),
            ifname: self.id.ifname.clone(),
            netns: self.target.netns.clone(),
            host_index: link.host_index,
            host_mac: link.host_mac.to_string(),
            container_mac: link.container_mac.to_string(),
        };
        self.client.commit(&request).await.map_err(netd::cni_error)
    }
}

/// Takes back what this ADD did, as far as it can; the first error is the one that the runtime hears.
pub(crate) async fn undo(client: &Client, id: &AttachmentId, host_ifname: &str) {
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
