// SPDX-License-Identifier: Apache-2.0
//! Services into the maps: changed services → compiler → writes. The compiler adopts what an earlier netd left in the pinned
//! maps, so that identifiers and slots of running services do not move at a restart.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use ebpf_loader::{Datapath, MapSizes};
use lb::{Changed, Compiler, Image, NodeView, ServiceTable};
use netd_api::BadValue;

use super::ended::remembered;
use crate::node::monotonic_ms;

/// Where connections are looked for longer than that, identifiers are given out again all the same: they must not run out.
const KEPT_MAX_MS: u64 = 30_000;

/// Compiles and writes.
pub(crate) struct ServiceSync {
    compiler: Compiler,
    sizes: MapSizes,
    adopted: bool,
    doubtful: bool,
    /// What the maps should hold, for the comparison in doubt.
    wished: Option<Image>,
    attached: bool,
    /// There were services in the maps, or there are now: without the store in sync they are left as they are.
    filled: bool,
    /// What was adopted has been compared with what is wished.
    compared: bool,
    /// All that was compiled is in the maps.
    written: bool,
    /// Services that the next pass looks at; `None`: all of them.
    changed: Option<Changed>,
    /// The node as the maps were made for it.
    view: NodeView,
    problems: Vec<BadValue>,
    /// Connections to look for.
    left: Left,
    /// Since when those had to be that are being looked for.
    searched_since_ms: Option<u64>,
    /// How often what the maps hold may have changed.
    passes: u64,
}

/// Whose connections may have to end.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// (frontend, backend) that connections may still go to and no frontend does, with where that is on the wire: the maps forget
    /// it a moment later.
    pub pairs: BTreeMap<(u32, u32), Option<SocketAddr>>,
    /// Any may be so: what happened while netd was away is not known.
    pub all: bool,
    /// Since when, at the earliest (monotonic milliseconds); `None` where that does not matter.
    pub since_ms: Option<u64>,
}

/// What one pass found.
pub(crate) struct Synced {
    pub problems: Vec<BadValue>,
    /// When there is something to do without any change (the compiler's clock).
    pub due_ms: Option<u64>,
}

impl ServiceSync {
    pub(crate) fn new(sizes: MapSizes) -> Self {
        Self {
            compiler: Compiler::new(sizes.limits()),
            sizes,
            adopted: false,
            doubtful: false,
            wished: None,
            attached: false,
            filled: false,
            compared: false,
            written: false,
            changed: None,
            view: NodeView::default(),
            problems: Vec::new(),
            left: Left::default(),
            searched_since_ms: None,
            passes: 0,
        }
    }

    pub(crate) fn attached(&self) -> bool {
        self.attached
    }

    pub(crate) fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// The node as the maps were made for it.
    pub(crate) fn node_view(&self) -> &NodeView {
        &self.view
    }

    /// The next pass reads the maps back, mends what differs and attaches the socket programs anew.
    pub(crate) fn suspect(&mut self) {
        self.doubtful = true;
    }

    /// Makes ready for a pass in doubt, without the maps. Before the services were compiled once, and while a write is to be
    /// made up for, the maps hold something else by right.
    pub(crate) fn recollect(&mut self) {
        let is_comparable = self.adopted && self.compared && self.written;
        self.wished = (is_comparable && self.doubtful).then(|| self.compiler.image());
    }

    /// The next pass looks at these, too.
    pub(crate) fn note(&mut self, changed: Changed) {
        if let Some(known) = &mut self.changed {
            known.extend(changed);
        }
    }

    /// What connections are to be looked for; asked for once. Until [`Self::searched`], the identifiers that they go by are
    /// nobody else's.
    pub(crate) fn take_left(&mut self) -> Left {
        let left = std::mem::take(&mut self.left);
        self.searched_since_ms = left.since_ms;
        left
    }

    /// All of what was taken was looked for.
    pub(crate) fn searched(&mut self) {
        self.searched_since_ms = None;
    }

    /// Changes whenever what became of a backend may have changed.
    pub(crate) fn passes(&self) -> u64 {
        self.passes
    }

    /// What was retired since then is not given out again: a connection to who had it could not be told from others.
    fn kept_since_ms(&self, now_ms: u64) -> Option<u64> {
        let since = [self.left.since_ms, self.searched_since_ms].into_iter().flatten().min();
        since.filter(|since| now_ms.saturating_sub(*since) < KEPT_MAX_MS)
    }

    /// There are connections to look for.
    pub(crate) fn has_left(&self) -> bool {
        self.left.all || !self.left.pairs.is_empty()
    }

    /// It could not be looked at all of them.
    pub(crate) fn give_back(&mut self, left: Left) {
        self.left.all |= left.all;
        self.left.pairs.extend(left.pairs);
        self.left.since_ms = [self.left.since_ms, left.since_ms].into_iter().flatten().min();
    }

    /// Where connections to a backend go, while the maps have it.
    pub(crate) fn destination(&self, backend_id: u32) -> Option<SocketAddr> {
        destination(&self.compiler, backend_id)
    }

    /// Makes the maps match `table`, then attaches the socket programs: maps are full before the first connection is
    /// translated. With `sweep` false (the store is not in sync) maps that already hold services are left as they are.
    pub(crate) fn pass(
        &mut self,
        datapath: &mut Datapath,
        table: &ServiceTable,
        view: NodeView,
        sweep: bool,
        now_ms: u64,
    ) -> Result<Synced> {
        if !self.adopted {
            self.adopt(datapath)?;
        }
        if self.doubtful {
            let observed = datapath.read_image().context("cannot read the pinned maps back")?;
            if self.wished.take().is_some_and(|wished| !is_as_written(&wished, &observed)) {
                tracing::warn!("the service maps are not as they were written: they are written anew");
                self.adopt(datapath)?;
            }
            if self.attached {
                datapath.attach_cgroup().context("cannot attach the socket programs")?;
            }
            self.doubtful = false;
        }
        let mut due_ms = None;
        if sweep || !self.filled {
            self.passes += 1;
            self.compiler.keep_since(self.kept_since_ms(now_ms));
            let writes = self.compiler.update(table, &view, self.changed.as_ref(), now_ms);
            self.view = view;
            // What is written in part is repeated by the next pass; the compiler keeps it.
            self.changed = Some(Changed::new());
            self.problems = problems(&self.compiler);
            if !writes.is_empty() {
                self.written = false;
                datapath.write(&writes).context("cannot write the service maps")?;
                let left = writes.left.iter().map(|pair| (*pair, destination(&self.compiler, pair.1)));
                self.left.pairs.extend(left);
            }
            self.left.all |= !std::mem::replace(&mut self.compared, true);
            if self.has_left() {
                self.left.since_ms.get_or_insert(now_ms);
            }
            // As of now, not of when it was compiled: a program may have read the last of the old entries just before.
            self.compiler.written(monotonic_ms());
            self.written = true;
            self.filled = true;
            due_ms = self.compiler.next_deadline();
        }
        if !self.attached {
            datapath.attach_cgroup().context("cannot attach the socket programs")?;
            self.attached = true;
            tracing::info!("socket programs attached");
        }
        Ok(Synced { problems: self.problems.clone(), due_ms })
    }

    fn adopt(&mut self, datapath: &mut Datapath) -> Result<()> {
        let observed = datapath.read_image().context("cannot read the pinned maps back")?;
        self.compiler = Compiler::new(self.sizes.limits());
        self.compiler.adopt(&observed);
        self.compiler.spare(&remembered(datapath)?);
        self.filled = !observed.services.is_empty();
        self.changed = None;
        self.adopted = true;
        self.compared = false;
        self.written = false;
        Ok(())
    }
}

fn destination(compiler: &Compiler, backend_id: u32) -> Option<SocketAddr> {
    compiler.backend(backend_id).map(|value| SocketAddr::new(value.address(), value.port_number()))
}

/// What the maps cannot express, and what did not fit.
fn problems(compiler: &Compiler) -> Vec<BadValue> {
    let wrong = compiler.problems();
    let wrong = wrong.iter().map(|p| (p.object.clone(), format!("{}: {}", p.field, p.reason)));
    let full = compiler.capacity();
    let full = full.iter().map(|error| (error.frontend.clone(), error.to_string()));
    wrong.chain(full).map(|(key, reason)| BadValue { key, reason }).collect()
}

/// Whether everything that was written is there. What rests before it is reused may be there, too, but no frontend more.
fn is_as_written(wished: &Image, observed: &Image) -> bool {
    let backends = wished.backends.iter().all(|(id, value)| observed.backends.get(id) == Some(value));
    let slots = wished.slots.iter().all(|(slot, id)| observed.slots.get(slot) == Some(id));
    let endpoints = wished.endpoints.iter().all(|(key, count)| observed.endpoints.get(key) == Some(count));
    backends
        && slots
        && endpoints
        && wished.services == observed.services
        && wished.affinity.is_subset(&observed.affinity)
        && wished.ranges == observed.ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_compared_only_with_what_was_written_to_them() {
        let mut services = ServiceSync::new(MapSizes::default());
        services.doubtful = true;
        for (adopted, compared, written) in
            [(false, false, false), (true, false, false), (true, true, false), (true, true, true)]
        {
            (services.adopted, services.compared, services.written) = (adopted, compared, written);
            services.recollect();
            assert_eq!(services.wished.is_some(), adopted && compared && written);
        }
    }

    #[test]
    fn identifiers_are_kept_while_connections_are_looked_for() {
        let mut services = ServiceSync::new(MapSizes::default());
        let left = |since_ms| Left { pairs: [((1, 2), None)].into(), all: false, since_ms };
        services.give_back(left(Some(50)));
        assert_eq!(services.kept_since_ms(60), Some(50), "they wait for an earlier search");
        let taken = services.take_left();
        services.give_back(left(Some(70)));
        assert_eq!((taken.since_ms, services.kept_since_ms(80)), (Some(50), Some(50)), "until both are over");
        services.searched();
        assert_eq!(services.kept_since_ms(80), Some(70));
        assert_eq!(services.kept_since_ms(70 + KEPT_MAX_MS), None, "not for ever");
        services.take_left();
        services.searched();
        assert_eq!(services.kept_since_ms(80), None);
    }
}
