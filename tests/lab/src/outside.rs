// SPDX-License-Identifier: Apache-2.0
//! The host that is no member: its servers are a worker of this program.

use crate::interrupt::wait_until;
use crate::place::{Place, in_netns};
use crate::process::{self, log_tail};
use crate::run::sibling;
use crate::state::{self, State};
use crate::{cgroup, names};
use anyhow::{Result, bail};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The port that answers each connection with the peer's address.
pub(crate) const ECHO_PORT: u16 = 7;
const READY_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// Starts the outside host's servers and waits until they answer.
pub(crate) fn start(lab: &str) -> Result<()> {
    let state = State::read(lab)?;
    let cgroup = cgroup::lab(lab)?.join("outside");
    cgroup::create(&cgroup)?;
    let log = names::lab_dir(lab).join("outside.log");
    let place = Place { netns: Some(state.outside.netns.clone()), cgroup: Some(cgroup), ..Place::default() };
    let mut argv = vec![sibling("weft-lab")?.into_os_string(), "serve-outside".into()];
    argv.extend(state.families.v6().then(|| "--v6".into()));
    let process = process::start(&place, &argv, &log)?;
    state::edit(lab, |state| {
        state.outside.process = Some(process);
        Ok(())
    })?;
    let address = SocketAddr::from((state.outside.ip, ECHO_PORT));
    let answers = || Ok(TcpStream::connect_timeout(&address, CONNECT_LIMIT).is_ok());
    let ready = wait_until(READY_LIMIT, || {
        if !process.alive() {
            bail!("the outside host's servers ended:\n{}", log_tail(&log, 10));
        }
        in_netns(&state.outside.netns, answers)
    })?;
    if !ready {
        bail!("the outside host's servers do not answer in {READY_LIMIT:?}:\n{}", log_tail(&log, 10));
    }
    Ok(())
}
