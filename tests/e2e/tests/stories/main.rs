// SPDX-License-Identifier: Apache-2.0
//! End-to-end stories, one binary. Each brings up what it needs and takes it down, also when it fails.
//!
//! The programs are taken from `WEFT_BIN_DIR`, else from the folder of this profile: build them first.

#![allow(clippy::print_stdout, reason = "SKIP lines belong on stdout, where make test looks for them")]
#![allow(clippy::unwrap_used, reason = "a story that meets the unexpected has failed")]

mod adopted;
mod attach;
mod attachments;
mod bad_input;
mod bad_values;
mod bandwidth;
mod chained;
mod cheats;
mod clean;
mod conflist;
mod conformance;
mod contract;
mod deferred;
mod dns_asking;
mod dns_bind;
mod dns_changes;
mod dns_client;
mod dns_external;
mod dns_forward;
mod dns_options;
mod dns_others;
mod dns_records;
mod dns_storm;
mod dns_systemd;
mod dns_upstream;
mod drift;
mod emptied;
mod file_store;
mod host;
mod host_ports;
mod install;
mod ipam;
mod isolation;
mod killed_steps;
mod last_known;
mod left;
mod lost_record;
mod metrics;
mod node_rm;
mod nodes;
mod overlay_choice;
mod pools;
mod races;
mod rate;
mod reboot;
mod requested;
mod runtime;
mod runtime_containerd;
mod runtime_podman;
mod same_key;
mod secured_store;
mod service_choice;
mod service_churn;
mod service_fault;
mod service_packets;
mod service_policies;
mod service_removal;
mod service_stage;
mod service_survival;
mod service_types;
mod state_dir;
mod sticky;
mod store;
mod trusted;
mod unchecked;
mod vanished;
mod wireguard;
mod wireguard_closed;
mod wireguard_interop;
mod wireguard_member;
mod wireguard_mtu;
mod wireguard_nat;
mod wireguard_rotation;
mod wireguard_v6;

use anyhow::Result;
use weft_lab::{Lab, UpOptions};

/// A lab of this many nodes for one story; none, said loudly, where this machine cannot have one.
fn lab(story: &str, nodes: u16) -> Result<Option<Lab>> {
    lab_with(UpOptions { nodes, ..UpOptions::new(&Lab::unique_name(story)) })
}

/// The same over VXLAN, for stories that know its devices.
fn vxlan_lab(story: &str, nodes: u16) -> Result<Option<Lab>> {
    let options = UpOptions::new(&Lab::unique_name(story));
    lab_with(UpOptions { nodes, overlay: "vxlan".into(), ..options })
}

fn lab_with(options: UpOptions) -> Result<Option<Lab>> {
    if !nix::unistd::Uid::effective().is_root() {
        println!("SKIP {}: needs root for network namespaces and BPF", options.name);
        return Ok(None);
    }
    Lab::up(options).map(Some)
}

/// Whether a tool is there; says SKIP when it is not.
fn have(tool: &str, story: &str) -> bool {
    let there = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join(tool).is_file());
    if !there {
        println!("SKIP {story}: {tool} is not installed");
    }
    there
}

/// Whether there is time for what takes minutes (`make soak`).
fn soaking() -> bool {
    std::env::var_os("WEFT_SOAK").is_some_and(|value| value == "1")
}

/// A Service with a selector on `app`, port 80 to 8080.
fn service(name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {app}}}\n  \
         ports:\n  - {{name: http, port: 80, targetPort: 8080}}\n"
    )
}
