// SPDX-License-Identifier: Apache-2.0
//! DELs that came while netd was not running: weft-cni left them in a queue beside the socket; each is carried out now.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use netd_api::deferred;

use crate::attach;
use crate::node::Node;

/// A DEL may have been queued while netd was starting: the queue is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Replays the queue, then looks again now and then.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    loop {
        replay(&node).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// One round; an entry goes only after its release succeeded.
pub(crate) async fn replay(node: &Arc<Node>) {
    let entries = match deferred::entries(&node.config.socket()) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(%error, "the queue of deferred DELs cannot be read");
            return;
        }
    };
    for entry in entries {
        let outcome = match entry.release {
            // weft-cni settles an entry itself before an ADD of the same key: then there is nothing left to do.
            Ok(id) => match attach::release_when(node, id.clone(), |_| entry.path.exists()).await {
                Ok(()) => {
                    tracing::info!(attachment = %id, "deferred DEL carried out");
                    deferred::remove(&entry.path)
                }
                Err(error) => {
                    tracing::warn!(attachment = %id, %error, "deferred DEL failed; it will be tried again");
                    continue;
                }
            },
            Err(reason) => {
                let aside = entry.path.with_extension("damaged");
                tracing::error!(file = %entry.path.display(), reason, aside = %aside.display(), "damaged entry of the DEL queue set aside");
                std::fs::rename(&entry.path, &aside)
            }
        };
        if let Err(error) = outcome {
            tracing::warn!(file = %entry.path.display(), %error, "an entry of the DEL queue cannot be removed");
        }
    }
}
