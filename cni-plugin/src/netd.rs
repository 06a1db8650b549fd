// SPDX-License-Identifier: Apache-2.0
//! netd as weft-cni sees it: requests with a time limit, and a queue for the DELs that do not reach it.

use std::path::PathBuf;
use std::time::Duration;

use cni_types::{CniError, Code, ErrorClass, NetworkConfig};
use netd_api::{AttachmentId, Client, ClientError, DEFAULT_SOCKET, deferred};

/// How long one request may take. A runtime gives a whole call a minute or more, and a call makes at most four.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long STATUS may take: runtimes ask every five seconds.
pub(crate) const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// The client for the config's socket.
pub(crate) fn client(config: &NetworkConfig, timeout: Duration) -> Client {
    Client::new(PathBuf::from(config.socket.as_deref().unwrap_or(DEFAULT_SOCKET)), timeout)
}

/// A failed request as the runtime shall see it.
pub(crate) fn cni_error(error: ClientError) -> CniError {
    let code = error.cni_code();
    match error {
        ClientError::Api(api) => {
            // Code 0 is no error to a runtime; a netd that sends it has a fault, not a success.
            let code = if code.0 == 0 { api.class.code() } else { code };
            CniError { code, msg: api.message, details: api.details }
        }
        other => CniError::new(code, other.to_string()),
    }
}

/// Gives an attachment up; where netd cannot be asked now, leaves the wish in the queue that it replays. Errors: netd
/// refuses, or the queue cannot be written.
pub(crate) async fn release(client: &Client, id: &AttachmentId) -> Result<(), CniError> {
    let error = match client.release(id).await {
        Ok(()) => return Ok(()),
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) if error.class() != ErrorClass::Retry => return Err(cni_error(error)),
        Err(error) => error,
    };
    let entry = deferred::enqueue(client.socket(), id).map_err(|source| {
        let dir = deferred::dir(client.socket());
        CniError::new(
            Code::IO,
            format!("{error}; and the release cannot be queued in {}: {source}", dir.display()),
        )
    })?;
    tracing::warn!(%error, entry = %entry.display(), "netd cannot be asked now; it will replay the release");
    // It may have started and read the queue between the request and the entry.
    if matches!(error, ClientError::NotRunning { .. }) && client.release(id).await.is_ok() {
        forget(&entry);
    }
    Ok(())
}

/// Settles a release of the same attachment that still waits, so that its replay cannot undo the ADD that follows.
pub(crate) async fn settle_deferred(client: &Client, id: &AttachmentId) -> Result<(), CniError> {
    let entry = deferred::path(client.socket(), id);
    if entry.exists() {
        client.release(id).await.map_err(cni_error)?;
        forget(&entry);
    }
    Ok(())
}

fn forget(entry: &std::path::Path) {
    if let Err(error) = deferred::remove(entry) {
        tracing::warn!(entry = %entry.display(), %error, "a settled release stays in the queue");
    }
}
