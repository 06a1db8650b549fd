// SPDX-License-Identifier: Apache-2.0
//! `/metrics`, `/healthz` and `/readyz` over TCP, on loopback unless configured otherwise.

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics;
use crate::node::Node;
use crate::status;

/// Binds; an address in use is an error at start, not a silent lack of metrics.
pub(crate) async fn bind(node: &Node) -> Result<TcpListener> {
    let address = node.config.metrics_listen;
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot serve metrics on {address}; see --metrics-listen"))
}

/// Serves until aborted.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener) -> Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(node);
    axum::serve(listener, router).await.context("the metrics server ended")
}

async fn metrics_text(State(node): State<Arc<Node>>) -> impl IntoResponse {
    match tokio::task::block_in_place(|| metrics::render(&node)) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], format!("{error}\n"))
        }
    }
}

async fn ready(State(node): State<Arc<Node>>) -> impl IntoResponse {
    let reasons = status::not_ready_reasons(&node);
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
}
