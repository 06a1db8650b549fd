// SPDX-License-Identifier: Apache-2.0
//! Services into the maps: table → image → differences. The compiler adopts what an earlier netd left in the pinned maps,
//! so that identifiers and slots of running services do not move at a restart.

use std::sync::Arc;

use anyhow::{Context, Result};
use ebpf_loader::Datapath;
use lb::{Compiler, Image, Limits, ServiceTable};
use netd_api::BadValue;

/// Compiles and writes.
pub(crate) struct ServiceSync {
    compiler: Compiler,
    adopted: bool,
    doubtful: bool,
    attached: bool,
    image: Arc<Image>,
    /// The table that `image` came from, when everything in it fitted.
    written: Option<ServiceTable>,
    /// Nothing retired is left in `image`: the maps hold what is in use and no more.
    settled: bool,
    problems: Vec<BadValue>,
}

/// What one pass found.
pub(crate) struct Synced {
    pub image: Arc<Image>,
    pub problems: Vec<BadValue>,
    /// Something waits for retired slots: another pass after the grace period helps.
    pub retry: bool,
}

impl ServiceSync {
    pub(crate) fn new() -> Self {
        Self {
            compiler: Compiler::new(Limits::default()),
            adopted: false,
            doubtful: false,
            attached: false,
            image: Arc::default(),
            written: None,
            settled: false,
            problems: Vec::new(),
        }
    }

    pub(crate) fn attached(&self) -> bool {
        self.attached
    }

    /// The next pass reads the maps back, writes every difference and attaches the socket programs anew.
    pub(crate) fn suspect(&mut self) {
        self.written = None;
        self.doubtful = true;
    }

    /// Makes the maps match `table`, then attaches the socket programs: maps are full before the first connection is
    /// translated. With `sweep` false (the store is not in sync) maps that already hold services are left as they are.
    pub(crate) fn pass(
        &mut self,
        datapath: &mut Datapath,
        table: &ServiceTable,
        sweep: bool,
        now_ms: u64,
    ) -> Result<Synced> {
        if !self.adopted {
            let observed = datapath.observed_image().context("cannot read the pinned maps back")?;
            self.compiler.adopt(&observed);
            self.image = Arc::new(observed);
            self.adopted = true;
        }
        let mut retry = false;
        if self.doubtful {
            // What `write_image` compares with is then what the kernel has.
            datapath.observed_image().context("cannot read the pinned maps back")?;
            if self.attached {
                datapath.attach_cgroup().context("cannot attach the socket programs")?;
            }
            self.doubtful = false;
        }
        let same = self.settled && self.written.as_ref().is_some_and(|w| w.services == table.services);
        if !same && (sweep || self.image.services.is_empty()) {
            let outcome = self.compiler.compile(table, now_ms);
            datapath.write_image(&outcome.image).context("cannot write the service maps")?;
            self.compiler.written(now_ms);
            // What was retired goes after its grace period: the compiler drops it from a later image.
            self.settled = !self.compiler.has_retired();
            retry = !self.settled || outcome.is_worth_retrying();
            self.problems = outcome
                .problems
                .iter()
                .map(|p| BadValue { key: p.object.clone(), reason: format!("{}: {}", p.field, p.reason) })
                .collect();
            self.problems.extend(
                outcome
                    .capacity
                    .iter()
                    .map(|error| BadValue { key: error.frontend.clone(), reason: error.to_string() }),
            );
            self.image = Arc::new(outcome.image);
            // What did not fit is tried again at the next pass.
            self.written = outcome.capacity.is_empty().then(|| table.clone());
        }
        if !self.attached {
            datapath.attach_cgroup().context("cannot attach the socket programs")?;
            self.attached = true;
            tracing::info!("socket programs attached");
        }
        Ok(Synced { image: self.image.clone(), problems: self.problems.clone(), retry })
    }
}
