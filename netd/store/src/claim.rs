// SPDX-License-Identifier: Apache-2.0
//! Taking what only one may have: blocks by nodes, ClusterIPs by services. Every take is one transaction.

mod block;
mod config;
mod service;

pub use block::{ClaimError, claim_block, release_block};
pub use config::ensure_config;
pub use service::{
    ServiceClaimError, ServiceClaims, ServiceRange, StoredService, claim_service_ip, claim_service_ip_among,
    delete_service,
};
