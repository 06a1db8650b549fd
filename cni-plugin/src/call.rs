// SPDX-License-Identifier: Apache-2.0
//! Reads the call, checks that its version has the verb, and hands it to the verb.

use std::io::{self, IsTerminal as _, Read as _};

use cni_types::{Call, CniError, Code, NetworkConfig, Stdin, Version, parse_call, version_reply};
use serde_json::Value;
use tracing::Instrument as _;

use crate::{add, check, del, gc, status};

/// The largest network config, in bytes: GC's list of every attachment of a node fits many times over.
const STDIN_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What goes to stdout: JSON, nothing, or an error.
pub(crate) struct Outcome {
    /// The version that an error is written in.
    pub(crate) cni_version: String,
    /// The verb's result.
    pub(crate) result: Result<Option<Value>, CniError>,
}

/// One call, from the process's environment and stdin.
pub(crate) fn run() -> Outcome {
    let call = parse_call(|name| std::env::var_os(name));
    let stdin = read_stdin().and_then(|bytes| decode(&call, &bytes));
    let known = stdin.as_ref().ok().map(Stdin::cni_version).and_then(|text| text.parse::<Version>().ok());
    let cni_version = known.unwrap_or(Version::NEWEST).to_string();
    let result = call.and_then(|call| carry_out(call, stdin?));
    Outcome { cni_version, result }
}

fn carry_out(call: Call, stdin: Stdin) -> Result<Option<Value>, CniError> {
    if call == Call::Version {
        return Ok(Some(version_reply(stdin.cni_version())));
    }
    let config = NetworkConfig::parse(stdin)?;
    require_version(&call, config.version)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CniError::new(Code::IO, format!("cannot start the event loop: {error}")))?;
    let span = span(&call, &config);
    let verb = async {
        match call {
            Call::Add(target) => add::add(&config, &target).await.map(Some),
            Call::Check(target) => check::check(&config, &target).await.map(|()| None),
            Call::Del(target) => del::del(&config, &target).await.map(|()| None),
            Call::Gc => gc::gc(&config).await.map(|()| None),
            Call::Status => status::status(&config).await.map(|()| None),
            Call::Version => Ok(None),
        }
    };
    runtime.block_on(verb.instrument(span))
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

fn span(call: &Call, config: &NetworkConfig) -> tracing::Span {
    let network = config.name.as_str();
    match call {
        Call::Add(t) => tracing::info_span!("ADD", network, container = %t.container_id, ifname = %t.ifname),
        Call::Check(t) => {
            tracing::info_span!("CHECK", network, container = %t.container_id, ifname = %t.ifname)
        }
        Call::Del(t) => {
            let netns = t.netns.as_deref().unwrap_or_default();
            tracing::info_span!("DEL", network, container = %t.container_id, ifname = %t.ifname, netns)
        }
        Call::Gc => tracing::info_span!("GC", network),
        Call::Status => tracing::info_span!("STATUS", network),
        Call::Version => tracing::Span::none(),
    }
}
