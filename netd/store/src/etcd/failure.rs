// SPDX-License-Identifier: Apache-2.0
//! etcd's errors in our words. Messages are those of etcd's `rpctypes/error.go`.

use std::error::Error as _;
use std::fmt::Write;

use etcd_client::Error;

use crate::{LeaseId, StoreError};

/// gRPC status codes (grpc/statuscodes.md), the ones that need a decision.
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

pub(super) fn translate(error: &Error, endpoint: &str) -> StoreError {
    match error {
        Error::GRpcStatus(status) => {
            let reason = with_sources(error);
            let message = status.message();
            match i32::from(status.code()) {
                code::PERMISSION_DENIED => StoreError::Denied { reason, is_final: true },
                // A token that a new session replaces, as often as not.
                code::UNAUTHENTICATED => StoreError::Denied { reason, is_final: false },
                code::INVALID_ARGUMENT if message.contains("auth") || message.contains("user name") => {
                    StoreError::Denied { reason, is_final: false }
                }
                code::INVALID_ARGUMENT => StoreError::InvalidRequest { reason },
                code::NOT_FOUND if message.contains("lease") => StoreError::LeaseNotFound(LeaseId(0)),
                code::OUT_OF_RANGE if message.contains("has been compacted") => {
                    StoreError::Compacted { revision: 0 }
                }
                code::FAILED_PRECONDITION if message.contains("authentication is not enabled") => {
                    StoreError::InvalidConfig {
                        reason: format!(
                            "{endpoint} has authentication off; take user and password out, or turn it on"
                        ),
                    }
                }
                _ => StoreError::Unavailable { endpoint: endpoint.to_owned(), reason },
            }
        }
        Error::InvalidArgs(_) | Error::InvalidUri(_) => {
            StoreError::InvalidConfig { reason: with_sources(error) }
        }
        Error::LeaseKeepAliveError(message) if message == "lease not found" => {
            StoreError::LeaseNotFound(LeaseId(0))
        }
        _ => StoreError::Unavailable { endpoint: endpoint.to_owned(), reason: with_sources(error) },
    }
}

/// True when the next request should make a new session: another endpoint, fresh files, a fresh token.
pub(super) fn ends_session(error: &StoreError) -> bool {
    matches!(error, StoreError::Denied { .. } | StoreError::Timeout { .. } | StoreError::Unavailable { .. })
}

/// The error and what it stems from; transport errors say nothing themselves.
pub(super) fn with_sources(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => {
            let message = status.message();
            let mut text = if message.is_empty() { status.code().to_string() } else { message.to_owned() };
            append_sources(&mut text, status.source());
            text
        }
        Error::TransportError(transport) => chain(transport),
        _ => error.to_string(),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    append_sources(&mut text, error.source());
    text
}

fn append_sources(text: &mut String, mut source: Option<&(dyn std::error::Error + 'static)>) {
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            // Writing to a string does not fail.
            let _ = write!(text, ": {said}");
        }
        source = cause.source();
    }
}
