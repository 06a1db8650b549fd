// SPDX-License-Identifier: Apache-2.0
//! The datapath of one node: its maps and programs, loaded or adopted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
    programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier},
};
use ebpf_abi::{
    Pod6Key, PodAddressKey, PodKey, PodLink, PodValue, ServiceCounters,
    limits::SLOTS_MAX,
    names,
    v1::{BackendValue, ServiceKey, ServiceValue},
};
use lb::Image;

use crate::{
    error::{AttachError, LoadError, MapAccessError},
    mounts, object, pod,
    sys::Slots,
};

/// How pod links get their program.
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

/// Where the datapath lives.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Directory of all pins, on a bpffs; made when absent. Includes the ABI version by convention:
    /// `<bpf dir>/<cluster>/<node uuid>/<abi version>`.
    pub pin_dir: PathBuf,
    /// cgroup v2 directory whose processes, and those of its children, reach services.
    pub cgroup_root: PathBuf,
    /// How pod links get their program.
    pub attach: AttachMode,
}

/// The maps and programs of one node.
///
/// Dropping it detaches and removes nothing. Two of them on one pin directory at the same time would each believe in a
/// stale image: the caller holds a lock.
pub struct Datapath {
    pub(crate) config: DatapathConfig,
    pub(crate) ebpf: Ebpf,
    /// Whether pod links get TCX bpf_links.
    pub(crate) tcx: bool,
    /// Whether attaching asks for short grace periods.
    pub(crate) expedite: bool,
    pub(crate) services: HashMap<MapData, ServiceKey, ServiceValue>,
    pub(crate) backends: Array<MapData, BackendValue>,
    /// The same map, for reading all of it at once.
    pub(crate) backends_fd: OwnedFd,
    pub(crate) slots: Slots,
    pub(crate) counters: PerCpuArray<MapData, ServiceCounters>,
    pub(crate) pods: HashMap<MapData, PodKey, PodValue>,
    pub(crate) pods6: HashMap<MapData, Pod6Key, PodValue>,
    pub(crate) pod_links: HashMap<MapData, u32, PodLink>,
    pub(crate) pod_addresses: HashMap<MapData, PodAddressKey, u32>,
    pub(crate) drops: PerCpuArray<MapData, u64>,
    pub(crate) overlay: Array<MapData, u32>,
    /// What the maps hold as far as we know: written differences are computed against it.
    pub(crate) programmed: Image,
    /// Addresses of pods in any of the maps, by interface index, as far as we know: an attachment removes those that it
    /// does not list, without a walk through all maps.
    pub(crate) known_addresses: BTreeMap<u32, BTreeSet<IpAddr>>,
}

impl Datapath {
    /// Creates the pinned maps or adopts those that exist, loads the programs, and reads the service image back.
    /// Attaches nothing and detaches nothing, apart from removing pins of bpf_links whose interface is gone.
    pub fn open(config: DatapathConfig) -> Result<Self, LoadError> {
        let pin_dir = config.pin_dir.clone();
        let links_dir = pin_dir.join(LINKS_DIR);
        ensure_pin_dir(&links_dir)?;
        let pins = object::verified_pins(&pin_dir)?;
        let mut loader = EbpfLoader::new();
        for (name, path) in pins {
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader
            .load(object::OBJECT)
            .map_err(|source| LoadError::Maps { path: pin_dir, source: Box::new(source) })?;
        for name in SOCKET_PROGRAMS {
            load_program::<CgroupSockAddr>(&mut ebpf, name, CgroupSockAddr::load)?;
        }
        for name in [names::POD_INGRESS, names::OVERLAY_INGRESS] {
            load_program::<SchedClassifier>(&mut ebpf, name, SchedClassifier::load)?;
        }

        let has_tcx = program_fd(&ebpf, names::POD_INGRESS).is_ok_and(pod::has_tcx);
        if config.attach == AttachMode::Tcx && !has_tcx {
            return Err(LoadError::NoTcx);
        }
        let slots = Slots::map(array_fd(&ebpf, names::SLOTS)?, SLOTS_MAX).map_err(LoadError::Slots)?;
        let backends_fd = array_fd(&ebpf, names::BACKENDS)?
            .try_clone_to_owned()
            .map_err(|error| LoadError::Object(error.to_string()))?;
        let mut datapath = Self {
            expedite: false,
            tcx: has_tcx && config.attach != AttachMode::Clsact,
            services: take(&mut ebpf, names::SERVICES, HashMap::try_from)?,
            backends: take(&mut ebpf, names::BACKENDS, Array::try_from)?,
            backends_fd,
            slots,
            counters: take(&mut ebpf, names::SERVICE_COUNTERS, PerCpuArray::try_from)?,
            pods: take(&mut ebpf, names::PODS, HashMap::try_from)?,
            pods6: take(&mut ebpf, names::PODS6, HashMap::try_from)?,
            pod_links: take(&mut ebpf, names::POD_LINKS, HashMap::try_from)?,
            pod_addresses: take(&mut ebpf, names::POD_ADDRESSES, HashMap::try_from)?,
            drops: take(&mut ebpf, names::DROPS, PerCpuArray::try_from)?,
            overlay: take(&mut ebpf, names::OVERLAY, Array::try_from)?,
            programmed: Image::default(),
            known_addresses: BTreeMap::new(),
            ebpf,
            config,
        };
        pod::sweep_dead_pins(&links_dir);
        datapath.observed_image()?;
        datapath.known_addresses =
            datapath.pods()?.into_iter().map(|(index, pod)| (index, pod.addresses)).collect();
        tracing::info!(
            pin_dir = %datapath.config.pin_dir.display(),
            services = datapath.programmed.services.len(),
            tcx = datapath.tcx,
            "datapath open"
        );
        Ok(datapath)
    }

    /// Whether pod links get TCX bpf_links (else clsact filters).
    pub fn uses_tcx(&self) -> bool {
        self.tcx
    }

    /// Whether attaching to a link asks the kernel for short grace periods (see [`Expedited`](crate::Expedited)); not at first.
    pub fn expedite(&mut self, wanted: bool) {
        self.expedite = wanted;
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &DatapathConfig {
        &self.config
    }

    pub(crate) fn link_pin(&self, name: &str) -> PathBuf {
        self.config.pin_dir.join(LINKS_DIR).join(name)
    }

    pub(crate) fn program_fd(&self, name: &'static str) -> Result<BorrowedFd<'_>, AttachError> {
        program_fd(&self.ebpf, name)
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
            .field("config", &self.config)
            .field("tcx", &self.tcx)
            .finish_non_exhaustive()
    }
}

/// Directory of bpf_link pins below the pin directory.
pub(crate) const LINKS_DIR: &str = "links";

const SOCKET_PROGRAMS: [&str; 4] = [names::CONNECT4, names::SENDMSG4, names::RECVMSG4, names::GETPEERNAME4];

/// Every entry of a hash map.
pub(crate) fn entries<K: aya::Pod + Ord, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<BTreeMap<K, V>, MapAccessError> {
    map.iter().collect::<Result<_, _>>().map_err(MapAccessError::of(name))
}

fn ensure_pin_dir(dir: &Path) -> Result<(), LoadError> {
    let failed = |source| LoadError::PinDir { path: dir.to_owned(), source };
    let existing = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    if !mounts::is_bpffs(existing).map_err(failed)? {
        return Err(LoadError::NotBpffs { path: dir.to_owned() });
    }
    fs::create_dir_all(dir).map_err(failed)
}

fn load_program<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    load: impl FnOnce(&mut P) -> Result<(), ProgramError>,
) -> Result<(), LoadError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    P: 'a,
{
    let program =
        ebpf.program_mut(name).ok_or_else(|| LoadError::Object(format!("it has no program {name}")))?;
    let program: &mut P =
        program.try_into().map_err(|error: ProgramError| LoadError::Object(error.to_string()))?;
    load(program).map_err(|source| LoadError::Program { program: name, source: Box::new(source) })
}

fn program_fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, AttachError> {
    let program = ebpf.program(name).ok_or(AttachError::NotLoaded(name))?;
    program.fd().map(|fd| fd.as_fd()).map_err(|_| AttachError::NotLoaded(name))
}

fn take<M>(
    ebpf: &mut Ebpf,
    name: &'static str,
    convert: impl FnOnce(Map) -> Result<M, MapError>,
) -> Result<M, LoadError> {
    let map = ebpf.take_map(name).ok_or_else(|| LoadError::Object(format!("it has no map {name}")))?;
    convert(map).map_err(|error| LoadError::Object(format!("map {name}: {error}")))
}

fn array_fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, LoadError> {
    match ebpf.map(name) {
        Some(Map::Array(data)) => Ok(data.fd().as_fd()),
        _ => Err(LoadError::Object(format!("it has no array {name}"))),
    }
}
