// SPDX-License-Identifier: Apache-2.0
//! The network config on stdin: decode, check, and what each verb takes from it.
//!
//! In three steps, so that each verb is as strict as it may be. [`Stdin::decode`] gives the version that an error has
//! to be written in; [`NetworkConfig::parse`] holds what every verb needs and lets DEL through whatever else is wrong;
//! [`NetworkConfig::refuse_unsupported`] and [`crate::AddOptions`] are for ADD.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{CniError, Code};
use crate::names::is_network_name;
use crate::version::Version;

/// Keys of the plugin's section that the specification owns; ours are [`OWN_KEYS`].
const RESERVED_KEYS: [&str; 10] = [
    "args",
    "cniVersion",
    "cniVersions",
    "disableCheck",
    "disableGC",
    "dns",
    "loadOnlyInlinedPlugins",
    "name",
    "prevResult",
    "runtimeConfig",
];

/// Keys that weft-cni defines or uses itself.
const OWN_KEYS: [&str; 7] = ["capabilities", "fastPath", "ipMasq", "mtu", "socket", "sticky", "type"];

/// Keys with this prefix belong to the runtime.
const RUNTIME_PREFIX: &str = "cni.dev/";

/// Capabilities whose request we cannot fulfil: a veth is no device of the host's.
const UNSERVED_CAPABILITIES: [&str; 2] = ["deviceID", "infinibandGUID"];

/// The smallest MTU accepted, in bytes: what every IPv4 host has to take (RFC 791).
pub const MTU_MIN: u32 = 576;

/// The largest MTU that a veth takes, in bytes (linux/if_ether.h, ETH_MAX_MTU).
pub const MTU_MAX: u32 = 65_535;

/// How much of a value goes into a message, in characters.
const EXCERPT_CHARS_MAX: usize = 200;

/// The longest socket path, in bytes: `sun_path` (linux/un.h) less the NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// stdin as JSON: an object, nothing more is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Stdin(Map<String, Value>);

impl Stdin {
    /// Errors: code 6 where the bytes are no JSON object.
    pub fn decode(bytes: &[u8]) -> Result<Self, CniError> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(_) => Err(CniError::new(Code::DECODE, "stdin: the network config is not a JSON object")),
            Err(error) => {
                Err(CniError::new(Code::DECODE, format!("stdin: the network config is not JSON: {error}")))
            }
        }
    }

    /// `cniVersion` as written; 0.2.0 where there is none, as the specification says.
    pub fn cni_version(&self) -> &str {
        self.0.get("cniVersion").map_or(Version::WHEN_MISSING, |value| value.as_str().unwrap_or_default())
    }
}

/// A container in the runtime's list of living attachments (GC).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct ValidAttachment {
    /// The container's ID.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The link's name in it.
    pub ifname: String,
}

/// What every verb needs of the config, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// The caller's version.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// netd's socket, an absolute path; none means the default.
    pub socket: Option<String>,
    object: Map<String, Value>,
}

impl NetworkConfig {
    /// Checks what every verb needs. Errors: code 1 for the version, 7 for `name` and `socket`.
    pub fn parse(stdin: Stdin) -> Result<Self, CniError> {
        let version = stdin.cni_version().parse()?;
        let object = stdin.0;
        let name = match object.get("name").map(Value::as_str) {
            Some(Some(name)) if is_network_name(name) => name.to_owned(),
            Some(Some(name)) => {
                let rule = "it must start with a letter or digit and hold only those and _ . -";
                return Err(invalid(format!("name is {name:?}: {rule}")));
            }
            Some(None) => return Err(invalid("name is not a string")),
            None => return Err(invalid("name is missing")),
        };
        let socket = match object.get("socket") {
            None => None,
            Some(Value::String(path)) if is_socket_path(path) => Some(path.clone()),
            Some(other) => {
                let rule = format!("it must be an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes");
                return Err(invalid(format!("socket is {}: {rule}", excerpt(other))));
            }
        };
        Ok(Self { version, name, socket, object })
    }

    /// Errors: code 2 naming key and value of the first key, or the first requested capability, that we do not serve;
    /// code 7 for a `type` that is no file name. For ADD; a DEL of what an older config made must not fail on it.
    pub fn refuse_unsupported(&self) -> Result<(), CniError> {
        let refuse = |what: &str, value: &Value, why: &str| {
            let msg = format!("network config {}: {what} (value {}); {why}", self.name, excerpt(value));
            Err(CniError::new(Code::UNSUPPORTED_FIELD, msg))
        };
        for (key, value) in &self.object {
            match key.as_str() {
                // Go writes an unset one as an empty object.
                "ipam" if is_empty(value) => {}
                "ipam" => {
                    let why = "weft has its own address management and calls no IPAM plugin; remove the key, and \
                               give netd a pool";
                    return refuse("ipam", value, why);
                }
                "ipMasq" if *value == Value::Bool(true) => {}
                "ipMasq" => {
                    let why = "netd masquerades what leaves the pod network, for every pod; remove the key";
                    return refuse("ipMasq", value, why);
                }
                "type" if value.as_str().is_none_or(|name| name.is_empty() || name.contains(['/', '\\'])) => {
                    return Err(invalid(format!("type is {}: it must be a file's name", excerpt(value))));
                }
                key if RESERVED_KEYS.contains(&key) || OWN_KEYS.contains(&key) => {}
                key if key.starts_with(RUNTIME_PREFIX) => {}
                key => return refuse(&format!("weft-cni has no key {key:?}"), value, "remove it"),
            }
        }
        for capability in UNSERVED_CAPABILITIES {
            if let Some(value) = self.capability(capability) {
                let what = format!("weft-cni does not serve the capability {capability:?}");
                return refuse(&what, value, "do not declare it for weft-cni");
            }
        }
        Ok(())
    }

    /// The MTU that the operator asked for, in bytes; none, or 0, leaves it to netd. Errors: code 7.
    pub fn mtu(&self) -> Result<Option<u32>, CniError> {
        match self.object.get("mtu") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(0) => Ok(None),
                Some(mtu) if (u64::from(MTU_MIN)..=u64::from(MTU_MAX)).contains(&mtu) => {
                    Ok(u32::try_from(mtu).ok())
                }
                _ => {
                    Err(invalid(format!("mtu is {}: it must be 0 or {MTU_MIN} to {MTU_MAX}", excerpt(value))))
                }
            },
        }
    }

    /// Whether packets of the network's pods may pass by the host's stack; yes where nobody says no. Errors: code 7.
    pub fn fast_path(&self) -> Result<bool, CniError> {
        match self.key("fastPath") {
            None => Ok(true),
            Some(Value::Bool(wanted)) => Ok(*wanted),
            Some(other) => Err(invalid(format!("fastPath is {}: it must be true or false", excerpt(other)))),
        }
    }

    /// `prevResult` as it came; null counts as none.
    pub fn prev_result(&self) -> Option<&Value> {
        self.object.get("prevResult").filter(|value| !value.is_null())
    }

    /// The attachments that the runtime knows (GC). Errors: code 7 where the list is missing, for an absent list must
    /// never read as "none lives", or where it is damaged.
    pub fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, CniError> {
        // The Go library also sends the list under its first name.
        let key = ["cni.dev/valid-attachments", "cni.dev/attachments"]
            .into_iter()
            .find(|key| self.object.contains_key(*key))
            .ok_or_else(|| invalid("cni.dev/valid-attachments is missing; GC frees nothing without it"))?;
        // A Go runtime writes null for its empty list.
        Option::<Vec<ValidAttachment>>::deserialize(&self.object[key])
            .map(Option::unwrap_or_default)
            .map_err(|error| invalid(format!("{key}: {error}")))
    }

    /// The config's own `dns`.
    pub(crate) fn dns(&self) -> Option<&Value> {
        self.object.get("dns").filter(|value| !is_empty(value))
    }

    /// A value of the plugin's section; null counts as none.
    pub(crate) fn key(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// A value of `runtimeConfig`: what the runtime asks of a capability. Null, and nothing in it, count as none.
    pub(crate) fn capability(&self, key: &str) -> Option<&Value> {
        self.object.get("runtimeConfig")?.get(key).filter(|value| !is_empty(value))
    }

    /// A value of `args.cni`.
    pub(crate) fn cni_args(&self, key: &str) -> Option<&Value> {
        self.object.get("args")?.get("cni")?.get(key).filter(|value| !value.is_null())
    }
}

/// Whether a path can be a socket's: absolute, and short enough.
pub fn is_socket_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= SOCKET_PATH_BYTES_MAX && !path.contains('\0')
}

/// A value for a message: JSON, cut where it is long.
pub(crate) fn excerpt(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(EXCERPT_CHARS_MAX) {
        None => text,
        Some((cut, _)) => format!("{}…", &text[..cut]),
    }
}

/// An error of code 7.
pub(crate) fn invalid(reason: impl std::fmt::Display) -> CniError {
    CniError::new(Code::INVALID_CONFIG, format!("network config: {reason}"))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
