// SPDX-License-Identifier: Apache-2.0
//! Under which name an attachment keeps its addresses, over restarts and moves.

use serde_json::Value;

use crate::config::{NetworkConfig, excerpt, invalid};
use crate::error::CniError;
use crate::options::Pod;

/// The longest name, in bytes: three DNS names and an ifname fit.
const NAME_BYTES_MAX: usize = 512;

/// The sticky name, or none for ordinary addresses. `args.cni.sticky` goes before the config's `sticky`; both say `off`,
/// `pod` (`<network>/<namespace>/<pod>/<ifname>`) or `mac` (`<network>/mac/<MAC>`), the first one also `name:NAME`, for
/// an orchestrator with names of its own. Errors: code 7, also where what the name is made of is not there.
pub(crate) fn sticky(
    config: &NetworkConfig,
    ifname: &str,
    pod: Option<&Pod>,
    mac: Option<[u8; 6]>,
) -> Result<Option<String>, CniError> {
    let (field, value) = match (config.cni_args("sticky"), config.key("sticky")) {
        (Some(value), _) => ("args.cni.sticky", value),
        (None, Some(value)) => ("sticky", value),
        (None, None) => return Ok(None),
    };
    let name = match value.as_str() {
        Some("off" | "") => return Ok(None),
        Some("pod") => {
            let pod = pod.ok_or_else(|| {
                let reason = "is \"pod\", and the runtime names no pod (K8S_POD_NAME in CNI_ARGS)";
                invalid(format!("{field} {reason}"))
            })?;
            if pod.namespace.contains('/') || pod.name.contains('/') {
                return Err(invalid(format!(
                    "{field} is \"pod\": {}/{} has a slash of its own",
                    pod.namespace, pod.name
                )));
            }
            format!("{}/{}/{}/{ifname}", config.name, pod.namespace, pod.name)
        }
        Some("mac") => {
            let mac = mac.ok_or_else(|| {
                invalid(format!("{field} is \"mac\", and no MAC is asked for (runtimeConfig.mac)"))
            })?;
            let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{}/mac/{}", config.name, mac.join(":"))
        }
        Some(text) if field == "args.cni.sticky" && text.starts_with("name:") => text[5..].to_owned(),
        _ => return Err(refused(field, value)),
    };
    let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_plain) {
        let rule = format!("1 to {NAME_BYTES_MAX} visible ASCII characters");
        return Err(invalid(format!("{field}: the name {} is not {rule}", excerpt(&name.into()))));
    }
    Ok(Some(name))
}

fn refused(field: &str, value: &Value) -> CniError {
    let named = if field == "sticky" { "" } else { ", or \"name:NAME\"" };
    invalid(format!("{field} is {}: it must be \"off\", \"pod\" or \"mac\"{named}", excerpt(value)))
}
