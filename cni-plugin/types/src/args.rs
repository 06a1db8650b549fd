// SPDX-License-Identifier: Apache-2.0
//! CNI_ARGS: `KEY=value;KEY=value`.

use crate::error::{CniError, Code};

/// The keys of CNI_ARGS that we use; all others are ignored, as `IgnoreUnknown=1` asks and most runtimes send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// K8S_POD_NAMESPACE
    pub pod_namespace: Option<String>,
    /// K8S_POD_NAME
    pub pod_name: Option<String>,
    /// K8S_POD_UID
    pub pod_uid: Option<String>,
    /// IP
    pub ip: Option<String>,
    /// MAC
    pub mac: Option<String>,
}

impl CniArgs {
    /// Reads CNI_ARGS. Empty values count as unset. Errors: code 4 where a part is no `KEY=value`.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = Self::default();
        for part in text.split(';').filter(|part| !part.trim().is_empty()) {
            let Some((key, value)) = part.split_once('=') else {
                let msg =
                    format!("invalid CNI variable: CNI_ARGS has the part {part:?}, which is not KEY=value");
                return Err(CniError::new(Code::INVALID_ENVIRONMENT, msg));
            };
            let slot = match key.trim() {
                "K8S_POD_NAMESPACE" => &mut args.pod_namespace,
                "K8S_POD_NAME" => &mut args.pod_name,
                "K8S_POD_UID" => &mut args.pod_uid,
                "IP" => &mut args.ip,
                "MAC" => &mut args.mac,
                _ => continue,
            };
            *slot = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_containerd_sends() {
        let args = CniArgs::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=ab;K8S_POD_UID=7",
        )
        .unwrap();
        assert_eq!(args.pod_namespace.as_deref(), Some("default"));
        assert_eq!(args.pod_name.as_deref(), Some("web-0"));
        assert_eq!(args.pod_uid.as_deref(), Some("7"));
        assert_eq!(args.ip, None);
    }

    #[test]
    fn empty_parts_are_nothing_and_a_part_without_a_value_is_an_error() {
        assert_eq!(CniArgs::parse("").unwrap(), CniArgs::default());
        assert_eq!(CniArgs::parse(";; K8S_POD_UID= ;").unwrap(), CniArgs::default());
        let error = CniArgs::parse("IP=10.0.0.1;FOO").unwrap_err();
        assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
        assert!(error.msg.contains("\"FOO\""));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = CniArgs::parse(&text);
        }
    }
}
