// SPDX-License-Identifier: Apache-2.0
//! The words of CNI 0.3.0 to 1.1.0 as values: environment, network config, result, errors.
//!
//! Pure: bytes and strings in, values or a [`CniError`] out. No file, socket, clock or process environment is
//! touched here; `weft-cni` does that. Source: the CNI specification, versions 0.3.0 to 1.1.0, and its CONVENTIONS.md.
//!
//! | Module | Exports |
//! | --- | --- |
//! | `env` | [`parse_call`] → [`Call`]: the verb with its checked variables |
//! | `config` | [`Stdin`] → [`NetworkConfig`]: what each verb takes from stdin |
//! | `salvage` | [`Salvage`]: what DEL can use of a stdin that does not decode |
//! | `args`, `capabilities`, `sticky`, `options` | [`CniArgs`], [`AddOptions`]: what ADD is asked for |
//! | `result` | [`AddResult`]: written in the caller's version, read from any |
//! | `chain` | [`Chained`]: an earlier plugin's result, kept and extended |
//! | `trace` | [`TraceParent`]: the trace that a call belongs to |
//! | `version` | [`Version`], [`version_reply`] |
//! | `error` | [`CniError`], [`Code`], and [`ErrorClass`] with the one table from class to code |
//! | `names` | the rules for container IDs, network names and ifnames |

mod args;
mod capabilities;
mod chain;
mod config;
mod env;
mod error;
mod names;
mod options;
mod result;
mod salvage;
mod sticky;
mod trace;
mod version;

pub use args::CniArgs;
pub use capabilities::{Bandwidth, IpRange, PortMapping, PortProtocol};
pub use chain::Chained;
pub use config::{MTU_MAX, MTU_MIN, NetworkConfig, Stdin, ValidAttachment, is_socket_path};
pub use env::{Call, DelTarget, Target, parse_call};
pub use error::{CniError, Code, ErrorClass};
pub use names::{IFNAME_BYTES_MAX, is_container_id, is_dns_label, is_ifname, is_network_name};
pub use options::{AddOptions, Pod};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use salvage::Salvage;
pub use trace::TraceParent;
pub use version::{Version, version_reply};
