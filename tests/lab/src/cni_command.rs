// SPDX-License-Identifier: Apache-2.0
//! One call of weft-cni with every variable and the configuration open to be wrong: for stories of bad input.

use crate::members::Node;
use crate::place::in_netns;
use crate::run::{Output, output, sibling};
use crate::{names, pod};
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// A call that is about to be made, by a runtime in a node.
#[derive(Debug, Clone)]
pub struct CniCall {
    netns: String,
    /// The node's network configuration, to be changed.
    pub config: Value,
    env: BTreeMap<String, String>,
    stdin: Option<Vec<u8>>,
}

impl CniCall {
    pub(crate) fn new(node: &Node) -> CniCall {
        let env =
            BTreeMap::from([("CNI_IFNAME".into(), names::POD_IF.into()), ("CNI_PATH".into(), "/".into())]);
        CniCall { netns: node.netns.clone(), config: pod::network_config(node), env, stdin: None }
    }

    /// Sets a variable, such as CNI_COMMAND.
    pub fn set(mut self, variable: &str, value: &str) -> CniCall {
        self.env.insert(variable.into(), value.into());
        self
    }

    /// Leaves a variable out.
    pub fn unset(mut self, variable: &str) -> CniCall {
        self.env.remove(variable);
        self
    }

    /// Sends these bytes instead of the configuration.
    pub fn stdin(mut self, bytes: &[u8]) -> CniCall {
        self.stdin = Some(bytes.to_vec());
        self
    }

    /// Makes the call.
    pub fn run(&self) -> Result<Output> {
        let stdin = match &self.stdin {
            Some(bytes) => bytes.clone(),
            None => serde_json::to_vec(&self.config)?,
        };
        let mut command = Command::new(sibling("weft-cni")?);
        command.envs(&self.env);
        in_netns(&self.netns, || output(&mut command, &stdin, LIMIT))
    }
}
