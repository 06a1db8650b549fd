// SPDX-License-Identifier: Apache-2.0
//! A pod's resolv.conf, as a runtime writes it from a CNI result.

use crate::names;
use anyhow::Result;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// Where it lies.
pub(crate) fn path(lab: &str, pod: &str) -> PathBuf {
    names::lab_dir(lab).join("pods").join(pod).join("resolv.conf")
}

/// Writes it for the `dns` of a CNI result.
pub(super) fn write(lab: &str, pod: &str, dns: &Value) -> Result<()> {
    let file = path(lab, pod);
    fs::create_dir_all(file.parent().unwrap_or(&file))?;
    Ok(fs::write(&file, text(dns))?)
}

fn text(dns: &Value) -> String {
    let words = |key: &str| {
        let list = dns[key].as_array().map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        list.unwrap_or_default()
    };
    let mut text: String =
        words("nameservers").iter().map(|server| format!("nameserver {server}\n")).collect();
    for (key, values) in [("search", words("search")), ("options", words("options"))] {
        if !values.is_empty() {
            text += &format!("{key} {}\n", values.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_result_s_dns_becomes_a_resolv_conf() {
        let dns = json!({
            "nameservers": ["169.254.53.53", "fd00:53::53", "10.96.0.10"],
            "search": ["default.svc.cluster.local", "svc.cluster.local"],
            "options": ["ndots:5"],
        });
        assert_eq!(
            text(&dns),
            "nameserver 169.254.53.53\nnameserver fd00:53::53\nnameserver 10.96.0.10\n\
             search default.svc.cluster.local svc.cluster.local\noptions ndots:5\n"
        );
        assert_eq!(text(&Value::Null), "");
    }
}
