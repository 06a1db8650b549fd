// SPDX-License-Identifier: Apache-2.0

//! Queueing disciplines and filters: token buckets (`net/sched/sch_tbf.c`), redirection to an IFB device
//! (`net/sched/cls_u32.c` with `act_mirred.c`), and what others put on our veths.
//!
//! A bucket is ours by its handle [`QUEUE_HANDLE`], a redirection by its priority [`REDIRECT_PRIORITY`]. The filter stands
//! on a `clsact` qdisc, which has no handle of its choice and is shared with others: it goes with the veth only.

use std::collections::BTreeMap;

use netd_plan::TokenBucket;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{
        TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
        TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType,
        TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
    },
};
use nix::errno::Errno;

use crate::{
    Host, HostError, LinkKind,
    bucket::{self, KIND as TBF},
    error::absent_is_fine,
    link::LinkTable,
};

/// Handle of our token buckets, `7765:` for people: the ASCII codes of `we`.
pub const QUEUE_HANDLE: u16 = 0x7765;
/// Priority (`pref`) of our redirections: just after that of our BPF filters on kernels without TCX, which decide first.
pub const REDIRECT_PRIORITY: u16 = 158;
/// Priority of those BPF filters (ebpf-loader).
const BPF_PRIORITY: u16 = 157;
const BPF: &str = "bpf";
const CLSACT: &str = "clsact";
/// ETH_P_ALL of include/uapi/linux/if_ether.h.
const ALL_PROTOCOLS: u16 = 0x0003;
/// Where filters of arriving and leaving packets hang on clsact.
const ARRIVING: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };
const LEAVING: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_EGRESS };
const QUEUE: TcHandle = TcHandle { major: QUEUE_HANDLE, minor: 0 };

/// What of it is ours.
#[derive(Debug, Default)]
pub(crate) struct OwnTraffic {
    pub(crate) queues: BTreeMap<String, TokenBucket>,
    pub(crate) redirects: BTreeMap<String, String>,
}

impl Host {
    /// What others put on one pod's veth, in words, for example `qdisc tbf 1:` or `filter flower pref 49152`; `None`
    /// where there is nothing. The kernel's own `noqueue` and what is ours do not count.
    ///
    /// # Errors
    /// [`HostError::NoDevice`].
    pub async fn foreign_traffic_control(&self, host_ifname: &str) -> Result<Option<String>, HostError> {
        let link = self.existing_link(host_ifname).await?;
        let found = self.foreign_on(&LinkTable::new(vec![link])).await?;
        Ok(found.into_values().next())
    }

    /// The same for all veths of ours that have something, by name.
    pub async fn foreign_traffic_controls(&self) -> Result<BTreeMap<String, String>, HostError> {
        self.foreign_on(&LinkTable::new(self.links().await?)).await
    }

    async fn foreign_on(&self, links: &LinkTable) -> Result<BTreeMap<String, String>, HostError> {
        let mut found = BTreeMap::new();
        for qdisc in self.qdiscs().await? {
            let Some(link) = links.own(qdisc.index).filter(|link| link.kind == LinkKind::Veth) else {
                continue;
            };
            let what = match qdisc.kind.as_str() {
                CLSACT => self.foreign_filter(qdisc.index).await?,
                _ if qdisc.handle.major == 0 || qdisc.is_own_queue() => None,
                kind => Some(format!("qdisc {kind} {:x}:", qdisc.handle.major)),
            };
            if let Some(what) = what {
                found.entry(link.name.clone()).or_insert(what);
            }
        }
        Ok(found)
    }

    async fn foreign_filter(&self, index: u32) -> Result<Option<String>, HostError> {
        let arriving = self.filters(index, ARRIVING).await?;
        let foreign = arriving.into_iter().find(|filter| !filter.is_ours());
        let foreign = match foreign {
            Some(filter) => Some(filter),
            None => self.filters(index, LEAVING).await?.into_iter().next(),
        };
        Ok(foreign.map(|filter| format!("filter {} pref {}", filter.kind, filter.priority)))
    }

    pub(crate) async fn own_traffic(&self, links: &LinkTable) -> Result<OwnTraffic, HostError> {
        let mut own = OwnTraffic::default();
        for qdisc in self.qdiscs().await? {
            let Some(link) = links.own(qdisc.index) else { continue };
            if qdisc.kind == CLSACT {
                let filters = self.filters(qdisc.index, ARRIVING).await?;
                if let Some(target) = filters.iter().find_map(Filter::own_target) {
                    // One that leads to a device that is gone drops everything, and equals nothing desired.
                    let to = links.link(target).map(|link| link.name.clone()).unwrap_or_default();
                    own.redirects.insert(link.name.clone(), to);
                }
            } else if qdisc.is_own_queue() {
                // One with values that we never set equals nothing desired.
                let none = TokenBucket { bytes_per_sec: 0, burst_bytes: 0 };
                own.queues.insert(link.name.clone(), bucket::parse(&qdisc.options).unwrap_or(none));
            }
        }
        Ok(own)
    }

    pub(crate) async fn set_queue(&self, device: &str, bucket: &TokenBucket) -> Result<(), HostError> {
        let index = self.link_index(device).await?;
        let roots = self.qdiscs().await?.into_iter().filter(|qdisc| qdisc.is_root_of(index));
        if let Some(foreign) =
            roots.into_iter().find(|qdisc| qdisc.handle.major != 0 && !qdisc.is_own_queue())
        {
            let found = format!("qdisc {} {:x}:", foreign.kind, foreign.handle.major);
            return Err(HostError::Foreign { object: format!("rate limit on {device}"), found });
        }
        let mut message = tc_message(index, TcHandle::ROOT, QUEUE);
        let Some(options) = bucket::emit(bucket) else {
            let reason = "needs a queue of 4 GiB or more".to_owned();
            return Err(HostError::Invalid { what: format!("rate limit on {device}"), reason });
        };
        message.attributes = vec![
            TcAttribute::Kind(TBF.to_owned()),
            TcAttribute::Options(options.into_iter().map(TcOption::Other).collect()),
        ];
        let what = format!("limit {device} to {} byte/s", bucket.bytes_per_sec);
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.socket.request(&what, request, NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// A queue that is not ours is left alone, and counts as absent.
    pub(crate) async fn remove_queue(&self, device: &str) -> Result<(), HostError> {
        let Some(link) = self.link(device).await? else { return Ok(()) };
        let mut own = self.qdiscs().await?.into_iter();
        if !own.any(|qdisc| qdisc.is_root_of(link.index) && qdisc.is_own_queue()) {
            return Ok(());
        }
        let message = tc_message(link.index, TcHandle::ROOT, QUEUE);
        let request = RouteNetlinkMessage::DelQueueDiscipline(message);
        absent_is_fine(self.socket.request(&format!("remove the rate limit of {device}"), request, 0).await)
    }

    pub(crate) async fn set_redirect(&self, device: &str, to: &str) -> Result<(), HostError> {
        let (index, target) = (self.link_index(device).await?, self.link_index(to).await?);
        let what = format!("redirect what arrives at {device} to {to}");
        let mut clsact = tc_message(index, TcHandle::CLSACT, TcHandle { major: u16::MAX, minor: 0 });
        clsact.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
        let request = RouteNetlinkMessage::NewQueueDiscipline(clsact);
        match self.socket.request(&what, request, NLM_F_CREATE | NLM_F_EXCL).await {
            // There is one: our BPF program's, or a qdisc of others that takes filters there too.
            Err(error) if error.errno() == Some(Errno::EEXIST) => {}
            other => other?,
        }
        let present = self.filters(index, ARRIVING).await?;
        if let Some(foreign) = present.iter().find(|filter| filter.is_in_the_way()) {
            let found = format!("filter {} pref {}", foreign.kind, foreign.priority);
            return Err(HostError::Foreign { object: format!("redirection on {device}"), found });
        }
        match present.iter().find_map(Filter::own_target) {
            Some(found) if found == target => return Ok(()),
            Some(_) => self.delete_redirect(device, index).await?,
            None => {}
        }
        let mut message = redirect_message(index);
        message.attributes.push(TcAttribute::Options(redirection(target)));
        let request = RouteNetlinkMessage::NewTrafficFilter(message);
        self.socket.request(&what, request, NLM_F_CREATE | NLM_F_EXCL).await
    }

    pub(crate) async fn remove_redirect(&self, device: &str) -> Result<(), HostError> {
        let Some(link) = self.link(device).await? else { return Ok(()) };
        if self.filters(link.index, ARRIVING).await?.iter().any(|filter| filter.own_target().is_some()) {
            self.delete_redirect(device, link.index).await?;
        }
        Ok(())
    }

    async fn delete_redirect(&self, device: &str, index: u32) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::DelTrafficFilter(redirect_message(index));
        absent_is_fine(self.socket.request(&format!("remove the redirection of {device}"), request, 0).await)
    }

    async fn qdiscs(&self) -> Result<Vec<Qdisc>, HostError> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let replies = match self.socket.dump("list qdiscs", request).await {
            // A kernel without traffic control has none.
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            other => other?,
        };
        Ok(replies.iter().filter_map(Qdisc::parse).collect())
    }

    async fn filters(&self, index: u32, parent: TcHandle) -> Result<Vec<Filter>, HostError> {
        let request = RouteNetlinkMessage::GetTrafficFilter(tc_message(index, parent, TcHandle::UNSPEC));
        match self.socket.dump("list filters", request).await {
            Ok(replies) => Ok(replies.iter().filter_map(Filter::parse).collect()),
            // The qdisc or its link went meanwhile, or the qdisc is `ingress`, which has no leaving side.
            Err(error) if error.is_absent() || error.errno() == Some(Errno::EINVAL) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// A queueing discipline as the kernel has it.
#[derive(Debug)]
struct Qdisc {
    index: u32,
    handle: TcHandle,
    parent: TcHandle,
    kind: String,
    options: Vec<TcOption>,
}

impl Qdisc {
    fn parse(reply: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewQueueDiscipline(message) = reply else { return None };
        let options = message.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options.clone()),
            _ => None,
        });
        Some(Self {
            index: u32::try_from(message.header.index).ok()?,
            handle: message.header.handle,
            parent: message.header.parent,
            kind: kind_of(message)?,
            options: options.unwrap_or_default(),
        })
    }

    fn is_root_of(&self, index: u32) -> bool {
        self.index == index && self.parent == TcHandle::ROOT
    }

    fn is_own_queue(&self) -> bool {
        self.parent == TcHandle::ROOT && self.handle == QUEUE && self.kind == TBF
    }
}

/// A filter as the kernel has it, or a table of one.
#[derive(Debug)]
struct Filter {
    priority: u16,
    kind: String,
    /// Where it redirects packets to, in a filter that does.
    target: Option<u32>,
}

impl Filter {
    fn parse(reply: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewTrafficFilter(message) = reply else { return None };
        let target = message.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Options(options) => options.iter().find_map(target_of),
            _ => None,
        });
        let priority = TcHandle::from(message.header.info).major;
        Some(Self { priority, kind: kind_of(message)?, target })
    }

    fn is_redirect(&self) -> bool {
        self.priority == REDIRECT_PRIORITY && self.kind == TcFilterU32::KIND
    }

    fn is_ours(&self) -> bool {
        self.is_redirect() || (self.priority == BPF_PRIORITY && self.kind == BPF)
    }

    /// One priority has one kind of filter.
    fn is_in_the_way(&self) -> bool {
        self.priority == REDIRECT_PRIORITY && !self.is_redirect()
    }

    fn own_target(&self) -> Option<u32> {
        self.target.filter(|_| self.is_redirect())
    }
}

fn kind_of(message: &TcMessage) -> Option<String> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    })
}

fn target_of(option: &TcOption) -> Option<u32> {
    let TcOption::U32(TcFilterU32Option::Action(actions)) = option else { return None };
    let attributes = actions.iter().flat_map(|action| &action.attributes);
    let options = attributes.filter_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
        _ => None,
    })
}

fn tc_message(index: u32, parent: TcHandle, handle: TcHandle) -> TcMessage {
    // The kernel's own type for it is signed; it gives no number beyond that.
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message.header.handle = handle;
    message
}

/// All filters of our priority: there is one.
fn redirect_message(index: u32) -> TcMessage {
    let mut message = tc_message(index, ARRIVING, TcHandle::UNSPEC);
    message.header.info = TcHandle { major: REDIRECT_PRIORITY, minor: ALL_PROTOCOLS.to_be() }.into();
    message.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    message
}

/// Every packet: a key whose mask is empty.
fn redirection(target: u32) -> Vec<TcOption> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = target;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]
}
