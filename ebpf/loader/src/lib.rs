// SPDX-License-Identifier: Apache-2.0
//! The only crate that calls aya or bpf(2): loads, pins, attaches and fills the BPF datapath.
//!
//! ```text
//!  <pin dir>/                       on a bpffs; one per node and ABI version, never shared
//!    SERVICES BACKENDS SLOTS …      the maps of ebpf-abi
//!    links/connect4 …               the cgroup programs' bpf_links
//!    links/overlay                  the overlay device's TCX bpf_link
//!    links/pod-<ifindex>            a pod link's TCX bpf_link (clsact filters live on the link itself)
//! ```
//!
//! Everything here is synchronous and may be repeated: a caller that dies between two steps calls the same functions
//! again. Nothing depends on this process staying alive; programs, maps and attachments live in their pins.
//!
//! Interface indexes are those of the calling thread's netns: call from threads that are in the node's netns.
//!
//! * [`Datapath`] (`datapath.rs`): open or adopt maps and programs;
//! * `image.rs`: the service image, read back and written as a difference;
//! * `cgroup.rs`, `pod.rs`, `overlay.rs`: attachments; `pod_maps.rs` is what the maps say of a pod; `link.rs` is what both share, `clsact.rs` is for kernels without TCX;
//! * `expedite.rs`: short grace periods while something is attached;
//! * [`probe()`]: what the kernel lacks, in words; [`mounts`]: bpffs and cgroup2;
//! * [`remove_all`]: `netd clean`;
//! * `sys`: bpf(2) and mmap(2), the only `unsafe`.

mod cgroup;
mod clean;
mod clsact;
mod counters;
mod datapath;
mod error;
mod expedite;
mod image;
mod link;
pub mod mounts;
mod object;
mod overlay;
mod pod;
mod pod_maps;
mod probe;
mod sys;

pub use clean::{Removed, remove_all};
pub use datapath::{AttachMode, Datapath, DatapathConfig};
pub use error::{AttachError, CleanError, ImageError, LoadError, MapAccessError, MountError};
pub use expedite::{Expedited, settle as settle_expedited};
pub use image::WriteStats;
pub use link::Attached;
pub use mounts::{cgroup2_mount, ensure_bpffs};
pub use pod::{ObservedPod, PodAttachment};
pub use probe::{Features, Missing, probe};
