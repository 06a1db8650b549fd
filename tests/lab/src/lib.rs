// SPDX-License-Identifier: Apache-2.0
//! A Weft cluster on one machine: nodes as network namespaces, a real etcd, a real netd in each node, pods through
//! the real weft-cni, and a host that is no member.
//!
//! [`Lab`] is what tests use; the `weft-lab` program is the same for people and scripts. All state is in
//! `/run/weft-lab/<lab>/lab.json`: every verb is a process of its own, and a test may look at a lab with both.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use weft_lab::{Lab, PodSpec, UpOptions};
//! let lab = Lab::up(UpOptions::new(&Lab::unique_name("story")))?;
//! let b1 = lab.pod_add(&PodSpec::new("n2", "b1").label("app", "web"))?;
//! lab.pod_add(&PodSpec::new("n1", "c1"))?;
//! let _server = lab.serve("b1", "b1", &[8080], &[])?;
//! let to = std::net::SocketAddr::new(b1.ips[0], 8080).to_string();
//! let report = lab.probe("c1", &["--to", &to, "--count", "10"])?;
//! assert!(report.all_ok(), "{}", report.failures());
//! # Ok(())
//! # }
//! ```

mod apply;
mod cgroup;
pub mod cli;
mod cni_command;
mod demo;
mod etcd;
mod families;
mod faults;
mod holder;
mod interrupt;
mod lab;
mod maps;
mod members;
mod mounts;
mod names;
mod nat;
mod node;
mod node_config;
mod outside;
mod overlay;
mod patience;
mod place;
mod pod;
mod process;
mod run;
mod running;
mod say;
mod show;
mod state;
mod target;
mod teardown;
mod topology;
mod tunnel;
mod up;
mod usage;
mod verbs;
mod wires;
mod witness;
mod workers;

pub use cni_command::CniCall;
pub use families::{Families, StoreKind};
pub use interrupt::wait_until;
pub use lab::Lab;
pub use maps::Maps;
pub use members::{Attachment, EtcdMember, Node, Outside, Pod};
pub use names::{
    BPF_DIR, LABS_DIR, NETNS_DIR, OUTSIDE_FAR_IP, OUTSIDE_FAR_IP6, OUTSIDE_IP, OUTSIDE_IP6, UNDERLAY_IF,
    lab_dir, netns, netns_path,
};
pub use netd_api::{ApplyReply, ApplyResult, FlowInfo, KeyRotateReply, KeyRotateRequest, ServiceDetail};
pub use overlay::{DEFAULT_OVERLAY, Overlay};
pub use patience::{patient, slow};
pub use place::{Place, in_netns};
pub use pod::{Bandwidth, NETWORK, PodSpec, PortMapping, cni, network_config, pod_cgroup};
pub use process::Process;
pub use run::{Output, TOOL_LIMIT, output, output_always, sibling, tool};
pub use running::{Capture, Packets, Running};
pub use show::{Show, ShowNode, ShowOutside, ShowPod};
pub use state::State;
pub use teardown::{down, labs, remove_orphans};
pub use tunnel::TUNNEL_DEVICES;
pub use up::{UpOptions, up};
pub use usage::{Usage, exit_code};
pub use wires::Offloads;
pub use witness::{ClearText, Witness, witness_clear_text};
pub use workers::monotonic_us;
pub use workers::probe::{ProbeOptions, ProbeReport, probe};
pub use workers::query::QueryReport;
pub use workers::rush::RushReport;
pub use workers::stream::Progress;
pub use workers::talk::Said;
