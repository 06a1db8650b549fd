// SPDX-License-Identifier: Apache-2.0
//! Reads the call, checks that its version has the verb, and hands it to the verb.

use std::future::Future;
use std::io::{self, IsTerminal as _, Read as _};

use cni_types::{Call, CniError, Code, NetworkConfig, Salvage, Stdin, Version, parse_call, version_reply};
use netd_api::AttachmentId;
use netd_plan::host_veth_name;
use serde_json::Value;
use tracing::Instrument as _;

use crate::span::{self, Trace};
use crate::{add, check, del, gc, netd, status};

/// The largest network config, in bytes: GC's list of every attachment of a node fits many times over.
const STDIN_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What goes to stdout: JSON, nothing, or an error.
pub(crate) struct Outcome {
    /// The version that an error is written in.
    pub(crate) cni_version: String,
    /// The verb's result.
    pub(crate) result: Result<Option<Value>, CniError>,
    /// What an ADD made.
    pub(crate) made: Option<Made>,
}

/// An attachment whose result the runtime has not heard of yet.
pub(crate) struct Made {
    config: NetworkConfig,
    id: AttachmentId,
}

impl Made {
    /// Takes it back: for the runtime that closed stdout, this ADD has failed.
    pub(crate) fn undo(&self) {
        let client = netd::client(&self.config, netd::REQUEST_TIMEOUT);
        let host_ifname = host_veth_name(&self.id.network, &self.id.container_id, &self.id.ifname);
        let undone = in_event_loop(async {
            add::undo(&client, &self.id, &host_ifname).await;
            Ok(())
        });
        if let Err(error) = undone {
            tracing::error!(%error, attachment = %self.id, "what nobody has heard of stays until DEL");
        }
    }
}

/// One call, from the process's environment and stdin.
pub(crate) fn run() -> Outcome {
    let call = parse_call(|name| std::env::var_os(name));
    let bytes = read_stdin();
    let stdin = bytes.clone().and_then(|bytes| decode(&call, &bytes));
    let known = stdin.as_ref().ok().map(Stdin::cni_version).and_then(|text| text.parse::<Version>().ok());
    let cni_version = known.unwrap_or(Version::NEWEST).to_string();
    let config = match (&call, stdin) {
        (Ok(Call::Version), Ok(stdin)) => {
            return Outcome { result: Ok(Some(version_reply(stdin.cni_version()))), cni_version, made: None };
        }
        (_, stdin) => stdin.and_then(NetworkConfig::parse),
    };
    let trace = Trace::of_environment();
    let span = span::of(&call, config.as_ref().ok(), trace.as_ref());
    let _entered = span.clone().entered();
    let result = call.clone().and_then(|call| match (call, &config) {
        (call, Ok(config)) => carry_out(&call, config, trace),
        (Call::Del(target), Err(damage)) if matches!(damage.code, Code::DECODE | Code::INVALID_CONFIG) => {
            let salvage = Salvage::of(&bytes.unwrap_or_default());
            in_event_loop(del::del_damaged(damage.clone(), salvage, &target)).map(|()| None)
        }
        (_, Err(error)) => Err(error.clone()),
    });
    if let Err(error) = &result {
        tracing::warn!(code = error.code.0, "{error}");
    }
    let made = match (call, config, &result) {
        (Ok(Call::Add(target)), Ok(config), Ok(_)) => {
            let (container_id, ifname) = (target.container_id, target.ifname);
            let id = AttachmentId { network: config.name.clone(), container_id, ifname };
            Some(Made { config, id })
        }
        _ => None,
    };
    Outcome { cni_version, result, made }
}

fn carry_out(call: &Call, config: &NetworkConfig, trace: Option<Trace>) -> Result<Option<Value>, CniError> {
    require_version(call, config.version)?;
    let timeout = if *call == Call::Status { netd::STATUS_TIMEOUT } else { netd::REQUEST_TIMEOUT };
    let client = netd::client(config, timeout).in_trace(trace.map(|trace| trace.own.to_string()));
    in_event_loop(async {
        match call {
            Call::Add(target) => add::add(config, target, &client).await.map(Some),
            Call::Check(target) => check::check(config, target, &client).await.map(|()| None),
            Call::Del(target) => del::del(config, target, &client).await.map(|()| None),
            Call::Gc => gc::gc(config, &client).await.map(|()| None),
            Call::Status => status::status(&client).await.map(|()| None),
            Call::Version => Ok(None),
        }
    })
}

/// Runs a verb to its end on this thread.
fn in_event_loop<T>(verb: impl Future<Output = Result<T, CniError>>) -> Result<T, CniError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CniError::new(Code::IO, format!("cannot start the event loop: {error}")))?
        .block_on(verb.in_current_span())
}

fn require_version(call: &Call, version: Version) -> Result<(), CniError> {
    let (verb, since) = match call {
        Call::Check(_) => ("CHECK", Version::V0_4_0),
        Call::Gc => ("GC", Version::V1_1_0),
        Call::Status => ("STATUS", Version::V1_1_0),
        Call::Add(_) | Call::Del(_) | Call::Version => return Ok(()),
    };
    if version >= since {
        return Ok(());
    }
    let msg = format!("cniVersion {version} has no {verb}: it came with {since}");
    Err(CniError::new(Code::INCOMPATIBLE_VERSION, msg))
}

fn read_stdin() -> Result<Vec<u8>, CniError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        // Somebody tries the plugin by hand: do not wait for what nobody will type.
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    let read = stdin.lock().take(STDIN_BYTES_MAX + 1).read_to_end(&mut bytes);
    match read {
        Ok(count) if count as u64 > STDIN_BYTES_MAX => Err(CniError::new(
            Code::DECODE,
            format!("stdin: the network config has more than {STDIN_BYTES_MAX} bytes"),
        )),
        Ok(_) => Ok(bytes),
        Err(error) => Err(CniError::new(Code::IO, format!("stdin: {error}"))),
    }
}

/// Older runtimes send nothing with VERSION.
fn decode(call: &Result<Call, CniError>, bytes: &[u8]) -> Result<Stdin, CniError> {
    let is_blank = bytes.iter().all(u8::is_ascii_whitespace);
    if is_blank && matches!(call, Ok(Call::Version)) {
        return Stdin::decode(format!("{{\"cniVersion\":\"{}\"}}", Version::NEWEST).as_bytes());
    }
    Stdin::decode(bytes)
}
