// SPDX-License-Identifier: Apache-2.0
//! The datapath of one node: its maps and programs, loaded or adopted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, fs,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{Ebpf, EbpfLoader};
use ebpf_abi::{
    Address, AffinityBackendKey, BackendValue, CtKey, DatapathConfig, EndpointKey, FlowKey, FlowValue,
    FrontendKey, NetnsValue, NodeValue, Pod6Key, PodAddressKey, PodKey, PodLink, PodValue, ServiceCounters,
    ServiceValue, SocketValue, SourceRangeKey, conntrack::CtValue, names,
};

use crate::{
    conntrack::Sweep,
    devices,
    error::{AttachError, LoadError},
    map::BpfMap,
    migrate::{self, Migration},
    mounts, object, pod,
    sizes::MapSizes,
    sys::Slots,
};

/// How links get their programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// A filter on a clsact qdisc (any kernel).
    Clsact,
    /// A TCX bpf_link (Linux 6.6).
    Tcx,
}

/// Where the datapath lives, and how large it is.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Directory of all pins, on a bpffs; made when absent. Its last part is the ABI version:
    /// `<bpf dir>/<cluster>/<node uuid>/<abi version>`. What other versions have beside it is taken over.
    pub pin_dir: PathBuf,
    /// cgroup v2 directory whose processes, and those of its children, reach services.
    pub cgroup_root: PathBuf,
    /// How links get their programs.
    pub attach: AttachMode,
    /// How large the maps are. Pinned maps of other sizes are made anew with their content.
    pub sizes: MapSizes,
}

/// The maps and programs of one node.
///
/// Dropping it detaches and removes nothing. Two of them on one pin directory at the same time would each believe in a
/// stale image: the caller holds a lock.
pub struct Datapath {
    pub(crate) options: OpenOptions,
    pub(crate) ebpf: Ebpf,
    /// Whether links get TCX bpf_links.
    pub(crate) tcx: bool,
    /// Whether attaching asks for short grace periods.
    pub(crate) expedite: bool,
    pub(crate) maps: Maps,
    /// Identifiers of the frontends in SERVICES, as far as we know.
    pub(crate) frontends: HashMap<FrontendKey, u32>,
    /// Addresses of pods in any of the maps, by interface index, as far as we know: an attachment removes those that it
    /// does not list, without a walk through all maps.
    pub(crate) known_addresses: BTreeMap<u32, BTreeSet<IpAddr>>,
    /// What is still to be taken over, and taken away.
    pub(crate) migration: Migration,
    /// Where the sweep through conntrack is.
    pub(crate) sweep: Sweep,
}

/// Every map, open.
pub(crate) struct Maps {
    pub(crate) services: BpfMap<FrontendKey, ServiceValue>,
    pub(crate) backends: BpfMap<u32, BackendValue>,
    pub(crate) slots: Slots,
    pub(crate) backend_load: BpfMap<u32, u64>,
    pub(crate) backend_endpoints: BpfMap<EndpointKey, u32>,
    pub(crate) source_ranges: BpfMap<SourceRangeKey, u32>,
    pub(crate) counters: BpfMap<u32, ServiceCounters>,
    pub(crate) sockets: BpfMap<u64, SocketValue>,
    pub(crate) flows: BpfMap<FlowKey, FlowValue>,
    pub(crate) netns: BpfMap<u64, NetnsValue>,
    pub(crate) affinity_backends: BpfMap<AffinityBackendKey, u32>,
    pub(crate) node_addresses: BpfMap<Address, u32>,
    pub(crate) nodes: BpfMap<u32, NodeValue>,
    pub(crate) config: BpfMap<u32, DatapathConfig>,
    pub(crate) ct_live: BpfMap<CtKey, CtValue>,
    pub(crate) ct_new: BpfMap<CtKey, CtValue>,
    pub(crate) packet_counters: BpfMap<u32, u64>,
    pub(crate) pods: BpfMap<PodKey, PodValue>,
    pub(crate) pods6: BpfMap<Pod6Key, PodValue>,
    pub(crate) pod_links: BpfMap<u32, PodLink>,
    pub(crate) pod_addresses: BpfMap<PodAddressKey, u32>,
    pub(crate) drops: BpfMap<u32, u64>,
    pub(crate) overlay: BpfMap<u32, u32>,
}

impl Datapath {
    /// Creates the pinned maps or adopts those that exist, loads the programs, and takes over what maps of other sizes and
    /// pins of another ABI version hold. Attaches nothing and detaches nothing, apart from removing pins of bpf_links whose
    /// interface is gone. When everything is attached, call [`Self::finish_migration`].
    pub fn open(options: OpenOptions) -> Result<Self, LoadError> {
        let mut options = options;
        options.sizes = options.sizes.at_least_min();
        let pin_dir = options.pin_dir.clone();
        let links_dir = pin_dir.join(LINKS_DIR);
        ensure_pin_dir(&links_dir)?;
        let shapes = object::shapes(&options.sizes)?;
        let mut migration = migrate::prepare(&pin_dir, &shapes)?;
        let mut loader = EbpfLoader::new();
        for (name, shape) in &shapes {
            loader.map_pin_path(name, pin_dir.join(name)).map_max_entries(name, shape.max_entries);
        }
        let mut ebpf = loader
            .load(object::OBJECT)
            .map_err(|source| LoadError::Maps { path: pin_dir.clone(), source: Box::new(source) })?;
        object::load_programs(&mut ebpf)?;

        let has_tcx = program_fd(&ebpf, names::POD_INGRESS).is_ok_and(pod::has_tcx);
        if options.attach == AttachMode::Tcx && !has_tcx {
            return Err(LoadError::NoTcx);
        }
        let maps = Maps::open(&pin_dir)?;
        migration.fill(&pin_dir, &maps)?;
        let mut datapath = Self {
            expedite: false,
            tcx: has_tcx && options.attach != AttachMode::Clsact,
            maps,
            frontends: HashMap::new(),
            known_addresses: BTreeMap::new(),
            migration,
            sweep: Sweep::default(),
            ebpf,
            options,
        };
        devices::sweep_dead_pins(&links_dir);
        datapath.say_migrating(datapath.is_migrating())?;
        datapath.learn_frontends()?;
        datapath.known_addresses =
            datapath.pods()?.into_iter().map(|(index, pod)| (index, pod.addresses)).collect();
        tracing::info!(
            pin_dir = %datapath.options.pin_dir.display(),
            frontends = datapath.frontends.len(),
            tcx = datapath.tcx,
            "datapath open"
        );
        Ok(datapath)
    }

    /// Whether links get TCX bpf_links (else clsact filters).
    pub fn uses_tcx(&self) -> bool {
        self.tcx
    }

    /// Whether attaching to a link asks the kernel for short grace periods (see [`Expedited`](crate::Expedited)); not at first.
    pub fn expedite(&mut self, wanted: bool) {
        self.expedite = wanted;
    }

    /// What it was opened with.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    pub(crate) fn links_dir(&self) -> PathBuf {
        self.options.pin_dir.join(LINKS_DIR)
    }

    pub(crate) fn program_fd(&self, name: &'static str) -> Result<BorrowedFd<'_>, AttachError> {
        program_fd(&self.ebpf, name)
    }
}

impl Maps {
    pub(crate) fn open(dir: &Path) -> Result<Self, LoadError> {
        let slots: BpfMap<u32, u32> = BpfMap::open(dir, names::SLOTS)?;
        Ok(Self {
            services: BpfMap::open(dir, names::SERVICES)?,
            backends: BpfMap::open(dir, names::BACKENDS)?,
            slots: Slots::map(slots.fd().as_fd(), slots.max_entries()).map_err(LoadError::Slots)?,
            backend_load: BpfMap::open(dir, names::BACKEND_LOAD)?,
            backend_endpoints: BpfMap::open(dir, names::BACKEND_ENDPOINTS)?,
            source_ranges: BpfMap::open(dir, names::SOURCE_RANGES)?,
            counters: BpfMap::open(dir, names::SERVICE_COUNTERS)?,
            sockets: BpfMap::open(dir, names::SOCKETS)?,
            flows: BpfMap::open(dir, names::FLOWS)?,
            netns: BpfMap::open(dir, names::NETNS)?,
            affinity_backends: BpfMap::open(dir, names::AFFINITY_BACKENDS)?,
            node_addresses: BpfMap::open(dir, names::NODE_ADDRESSES)?,
            nodes: BpfMap::open(dir, names::NODES)?,
            config: BpfMap::open(dir, names::CONFIG)?,
            ct_live: BpfMap::open(dir, names::CT_LIVE)?,
            ct_new: BpfMap::open(dir, names::CT_NEW)?,
            packet_counters: BpfMap::open(dir, names::COUNTERS)?,
            pods: BpfMap::open(dir, names::PODS)?,
            pods6: BpfMap::open(dir, names::PODS6)?,
            pod_links: BpfMap::open(dir, names::POD_LINKS)?,
            pod_addresses: BpfMap::open(dir, names::POD_ADDRESSES)?,
            drops: BpfMap::open(dir, names::DROPS)?,
            overlay: BpfMap::open(dir, names::OVERLAY)?,
        })
    }
}

// netd moves it to a blocking thread and keeps it behind a lock.
const _: fn() = || {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Datapath>();
};

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath")
            .field("options", &self.options)
            .field("tcx", &self.tcx)
            .finish_non_exhaustive()
    }
}

/// Directory of bpf_link pins below the pin directory.
pub(crate) const LINKS_DIR: &str = "links";

fn ensure_pin_dir(dir: &Path) -> Result<(), LoadError> {
    let failed = |source| LoadError::PinDir { path: dir.to_owned(), source };
    let existing = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    if !mounts::is_bpffs(existing).map_err(failed)? {
        return Err(LoadError::NotBpffs { path: dir.to_owned() });
    }
    fs::create_dir_all(dir).map_err(failed)
}

fn program_fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, AttachError> {
    let program = ebpf.program(name).ok_or(AttachError::NotLoaded(name))?;
    program.fd().map(|fd| fd.as_fd()).map_err(|_| AttachError::NotLoaded(name))
}
