// SPDX-License-Identifier: Apache-2.0
//! Taking what only one may have: blocks by nodes, addresses outside own blocks, sticky names, ClusterIPs by services; and
//! taking a removed node's share from it. Every step is one transaction.

mod address;
mod block;
mod cas;
mod config;
mod member;
mod removal;
mod service;
mod sticky;

pub use address::{AddressClaimError, deny_address, grant_address, release_address, request_address};
pub use block::{ClaimError, claim_block, claim_block_containing, release_block};
pub use cas::ChangeError;
pub use config::ensure_config;
pub use member::{MemberError, add_member, remove_member};
pub use removal::{Progress, acknowledge_removal, confirm_fence, finish_removal, remove_node};
pub use service::{
    ServiceClaimError, ServiceClaims, StoredService, carried_over, claim_service, claim_service_among,
    delete_service, is_complete, node_ports, node_ports_of,
};
pub use sticky::{StickyError, StickyHolder, give_back_sticky, remove_sticky, take_sticky};
