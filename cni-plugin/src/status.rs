// SPDX-License-Identifier: Apache-2.0
//! STATUS: could an ADD work now?

use cni_types::{CniError, Code};
use netd_api::Client;

/// Asks netd; changes nothing. Errors: 50, or 51 where running containers may suffer, too.
pub(crate) async fn status(client: &Client) -> Result<(), CniError> {
    // netd dead is 50, not 51: what is in the kernel goes on without it.
    let status =
        client.status().await.map_err(|error| CniError::new(Code::NOT_AVAILABLE, error.to_string()))?;
    if status.ready {
        return Ok(());
    }
    let code = if status.limited_connectivity { Code::LIMITED_CONNECTIVITY } else { Code::NOT_AVAILABLE };
    let node = &status.node.name;
    Err(CniError::new(code, format!("netd on {node} is not ready")).with_details(status.reasons.join("; ")))
}
