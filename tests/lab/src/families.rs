// SPDX-License-Identifier: Apache-2.0
//! What kinds of lab there are: address families, and where the cluster's state lies.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// netd's default pod CIDRs, written out where a lab uses more than the IPv4 one.
const POD_CIDR: &str = "10.244.0.0/16";
const POD_CIDR6: &str = "fd00:10:244::/56";

/// Address families of pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Families {
    /// Both
    Dual,
    /// IPv4
    #[default]
    V4,
    /// IPv6; the underlay carries IPv4 too, for etcd
    V6,
}

/// Where the cluster's state lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A real etcd
    #[default]
    Etcd,
    /// A file of the only node
    File,
}

impl Families {
    /// Whether pods have IPv6 addresses.
    pub fn v6(self) -> bool {
        self != Families::V4
    }

    /// The pods' CIDRs.
    pub fn pod_cidrs(self) -> &'static [&'static str] {
        match self {
            Families::Dual => &[POD_CIDR, POD_CIDR6],
            Families::V4 => &[POD_CIDR],
            Families::V6 => &[POD_CIDR6],
        }
    }
}
