// SPDX-License-Identifier: Apache-2.0
//! The only crate that calls aya or bpf(2): loads, pins, attaches and fills the BPF datapath.
//!
//! ```text
//!  <pin dir>/                       on a bpffs; one per node and ABI version, never shared
//!    SERVICES BACKENDS SLOTS …      the maps of ebpf-abi
//!    links/connect4 …               the cgroup programs' bpf_links
//!    links/overlay                  the overlay device's TCX bpf_link
//!    links/uplink-<ifindex> …       those of the node's other interfaces (with clsact, a directory as a mark)
//!    links/pod-<ifindex>            a pod link's TCX bpf_link (clsact filters live on the link itself)
//!    links/pod-out-<ifindex>        the same for what goes to the pod
//!    old/ new/ carrying/            while maps are remade or taken over
//! ```
//!
//! Everything here is synchronous and may be repeated: a caller that dies between two steps calls the same functions
//! again. Nothing depends on this process staying alive; programs, maps and attachments live in their pins.
//!
//! Interface indexes are those of the calling thread's netns: call from threads that are in the node's netns.
//!
//! * [`Datapath`] (`datapath.rs`): open or adopt maps and programs; `object.rs`: the built-in object; [`MapSizes`];
//! * [`Heartbeat`] (`agent.rs`): whether the agent's own servers answer;
//! * `services.rs`: services, read back and written; `sockets.rs`, `conntrack.rs`: what goes through them; `search.rs`: what of
//!   that has to end; `node.rs`: the nodes;
//! * `cgroup.rs`, `pod.rs`, `overlay.rs`, `devices.rs`: attachments; `pod_maps.rs` is what the maps say of a pod; `tc.rs` and
//!   `link.rs` are what they share, `clsact.rs` and `qdisc.rs` are for kernels without TCX;
//! * `migrate.rs`: other ABI versions and map sizes; `v1.rs`: what version 1 had;
//! * `expedite.rs`: short grace periods while something is attached;
//! * [`probe()`]: what the kernel lacks, in words; [`mounts`]: bpffs and cgroup2;
//! * [`remove_all`]: `netd clean`; [`look()`]: for a witness beside netd;
//! * `map.rs`: one map with its types; `sys`: bpf(2), mmap(2) and socket options, the only `unsafe`.

mod agent;
mod cgroup;
mod clean;
mod clsact;
mod conntrack;
mod counters;
mod datapath;
mod devices;
mod error;
mod expedite;
mod link;
mod look;
mod map;
mod migrate;
pub mod mounts;
mod node;
mod object;
mod overlay;
mod pod;
mod pod_maps;
mod probe;
mod qdisc;
mod search;
mod services;
mod sizes;
mod sockets;
mod sys;
mod tc;
mod v1;

pub use agent::Heartbeat;
pub use clean::{Removed, remove_all};
pub use conntrack::{Fill, FlowMap, Swept, TrackedFlow, monotonic_secs};
pub use counters::MapUsage;
pub use datapath::{AttachMode, Datapath, OpenOptions};
pub use devices::Hook;
pub use error::{AttachError, CleanError, LoadError, MapAccessError, MountError, WriteError};
pub use expedite::{Expedited, settle as settle_expedited};
pub use link::Attached;
pub use look::{Pinned, look};
pub use mounts::{cgroup2_mount, ensure_bpffs};
pub use pod::{ObservedPod, PodAttachment};
pub use probe::{Features, Missing, probe};
pub use search::{Parting, Search};
pub use services::WriteStats;
pub use sizes::MapSizes;
pub use sockets::{LoadLook, ServiceSocket, netns_cookie};
