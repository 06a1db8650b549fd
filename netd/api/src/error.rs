// SPDX-License-Identifier: Apache-2.0
//! The error body of the API.

use cni_types::{Code, ErrorClass};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};

/// The body of every answer whose status is 4xx or 5xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", details.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
pub struct ApiError {
    /// What the caller can do about it; also decides the HTTP status.
    pub class: ErrorClass,
    /// The code that weft-cni prints; the class's own unless somebody knows better (100: pool exhausted).
    pub cni_code: u32,
    /// One line for an operator: where, what, what to do.
    pub message: String,
    /// The longer story, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
}

impl ApiError {
    /// An error with its class's CNI code and no details.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, cni_code: class.code().0, message: message.into(), details: None }
    }

    /// Class retry: the same request may succeed a little later.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Retry, message)
    }

    /// Class invalid: the request has to change.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Invalid, message)
    }

    /// Class conflict: somebody else was first.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Conflict, message)
    }

    /// Class fatal: an operator has to look.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Fatal, message)
    }

    /// Class not-found: no such object.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::NotFound, message)
    }

    /// No free address is left in any pool: CNI code 100. Its class is retry, because addresses come back.
    pub fn exhausted(message: impl Into<String>) -> Self {
        Self::retry(message).with_code(Code::POOL_EXHAUSTED)
    }

    /// The same error with another CNI code than its class's.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        self.cni_code = code.0;
        self
    }

    /// The same error with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// The HTTP status that carries this error.
    pub fn http_status(&self) -> StatusCode {
        match self.class {
            ErrorClass::Conflict => StatusCode::CONFLICT,
            ErrorClass::Fatal => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorClass::Invalid => StatusCode::BAD_REQUEST,
            ErrorClass::NotFound => StatusCode::NOT_FOUND,
            ErrorClass::Retry => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_class_code_and_status() {
        let error = ApiError::exhausted("no free address in pool default").with_details("64 of 64 in use");
        let json = serde_json::to_value(&error).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "class": "retry", "cni_code": 100,
                "message": "no free address in pool default", "details": "64 of 64 in use",
            })
        );
        assert_eq!(serde_json::from_value::<ApiError>(json).unwrap(), error);
        assert_eq!(error.http_status(), 503);
        assert_eq!(ApiError::not_found("x").http_status(), 404);
        assert_eq!(ApiError::invalid("x").cni_code, 7);
    }
}
